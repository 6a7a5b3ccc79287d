//! Tells who watches of every change: of a domain's state, and of what is chosen for policies.

use std::collections::{BTreeMap, BTreeSet};
use std::time::SystemTime;

use steer_core::domains::DomainState;
use steer_core::engine::{Changes, RuleDecision};
use steer_core::ids::{ChoiceId, PolicyId};
use steer_core::name::Name;
use steer_core::select::{Decision, Verdict};
use tracing::info;

use super::access::Authority;
use super::{Daemon, clock};
use crate::api::answer::Answer;
use crate::api::error::ApiError;
use crate::api::methods::{Reply, WatchReply};
use crate::api::server::Caller;
use crate::api::types::ChangeView;

/// Most policies of one choice that are told one by one.
const MOST_TOLD: usize = 64;
/// Most rules of a policy whose decisions are told, and policies whose rules are looked at after a change.
const MOST_RULES: usize = 64;
const MOST_RULED: usize = 1_024;

/// Which decision of a policy: that of its rule with this number, or for what no rule fits.
type Which = Option<usize>;

/// Who watches, and what was told last.
#[derive(Default)]
pub(super) struct Watch {
    watchers: Vec<Watcher>,
    domains: BTreeMap<Name, DomainState>,
    /// What each kernel policy came to for what none of its rules fits, in words: a domain or a verdict. Kept while
    /// somebody watches.
    policies: BTreeMap<PolicyId, String>,
    /// The same of each choice, which is what rules lead to.
    choices: BTreeMap<ChoiceId, String>,
    /// Choices and kernel policies that changed since it was told last.
    changed: (BTreeSet<ChoiceId>, BTreeSet<PolicyId>),
}

struct Watcher {
    caller: Caller,
    authority: Authority,
    answer: Answer,
}

impl Watch {
    /// Something of what was decided is other than it was.
    pub(super) fn note(&mut self, changes: &Changes) {
        self.changed.0.extend(&changes.choices);
        self.changed.1.extend(&changes.policies);
    }
}

/// A change of a decision, by the policies that it is about.
struct Decided {
    policies: BTreeSet<Name>,
    which: Which,
    was: Option<String>,
}

impl Daemon {
    /// Begins to tell a caller; first how everything is.
    pub(super) fn watch(&mut self, caller: Caller, authority: Authority, answer: Answer) {
        if !answer.wants_parts() {
            answer.end(Err(ApiError::InvalidArgument {
                field: "more".to_owned(),
                reason: "changes come in parts: call it with `more`".to_owned(),
            }));
            return;
        }
        let time = time();
        let health = self.engine.health();
        let domains = self.engine.domains().iter().map(|domain| ChangeView {
            time: time.clone(),
            domain: Some(domain.name.to_string()),
            state: domain.state_with(health).to_string(),
            reason: domain.reason_with(health),
            ..ChangeView::default()
        });
        let mut changes: Vec<ChangeView> = domains.collect();
        let seen = self.seen(&caller, &authority);
        let seen: Vec<&Name> = seen.iter().map(|policy| &policy.name).collect();
        changes.extend(self.told(&seen, None, None, &time));
        for name in seen.into_iter().take(MOST_TOLD) {
            let by_rule = self.by_rule(name).into_iter();
            changes.extend(by_rule.map(|decided| {
                let which = Some(decided.at.number);
                change(&time, name, which, &decided.decision, None)
            }));
        }
        self.watch.watchers.retain(|one| !one.answer.is_closed());
        if self.watch.watchers.is_empty() {
            let policies = self.engine.plan().policies.keys();
            let came_to = policies.filter_map(|id| Some((*id, self.came_to(*id)?)));
            self.watch.policies = came_to.collect();
            let choices = self.engine.plan().choices.keys();
            let words = choices.filter_map(|choice| Some((*choice, self.words_of(*choice)?)));
            self.watch.choices = words.collect();
        }
        if answer.part(Reply::Watch(WatchReply { changes })).is_ok() {
            self.watch.watchers.push(Watcher {
                caller,
                authority,
                answer,
            });
        }
    }

    /// Tells what changed since this was called last.
    pub(super) fn tell_changes(&mut self) {
        let time = time();
        let domains = self.changed_domains(&time);
        if !domains.is_empty() {
            self.keep_health();
        }
        let decided = self.changed_decisions();
        if domains.is_empty() && decided.is_empty() {
            return;
        }
        let watchers = std::mem::take(&mut self.watch.watchers);
        self.watch.watchers = watchers
            .into_iter()
            .filter(|watcher| !watcher.answer.is_closed())
            .filter_map(|watcher| {
                let mut changes = domains.clone();
                // Asked once: there may be many policies, and anybody may watch.
                let holding = match decided.is_empty() {
                    true => Vec::new(),
                    false => self.holding(&watcher.caller),
                };
                for decided in &decided {
                    changes.extend(self.changes_for(&watcher, &holding, decided, &time));
                }
                if changes.is_empty() {
                    return Some(watcher);
                }
                match watcher.answer.part(Reply::Watch(WatchReply { changes })) {
                    Ok(()) => Some(watcher),
                    Err(slow) => {
                        watcher.answer.end(Err(ApiError::Failed {
                            reason: slow.to_string(),
                        }));
                        None
                    }
                }
            })
            .collect();
    }

    /// Domains whose state is another, which is logged too.
    fn changed_domains(&mut self, time: &str) -> Vec<ChangeView> {
        let health = self.engine.health();
        let mut changes = Vec::new();
        let mut states = BTreeMap::new();
        for domain in self.engine.domains().iter() {
            let state = domain.state_with(health);
            states.insert(domain.name.clone(), state);
            let was = self.watch.domains.get(&domain.name).copied();
            if was == Some(state) {
                continue;
            }
            let reason = domain.reason_with(health);
            info!(domain = %domain.name, %state, "{reason}");
            changes.push(ChangeView {
                time: time.to_owned(),
                domain: Some(domain.name.to_string()),
                state: state.to_string(),
                was: was.map(|was| was.to_string()),
                reason,
                ..ChangeView::default()
            });
        }
        let before = std::mem::replace(&mut self.watch.domains, states);
        for (name, was) in before {
            if self.watch.domains.contains_key(&name) {
                continue;
            }
            info!(domain = %name, "gone");
            changes.push(ChangeView {
                time: time.to_owned(),
                domain: Some(name.to_string()),
                state: "gone".to_owned(),
                was: Some(was.to_string()),
                reason: format!("{name} is no domain any more"),
                ..ChangeView::default()
            });
        }
        changes
    }

    /// Decisions that came to something else since this was asked last, as far as somebody watches.
    fn changed_decisions(&mut self) -> Vec<Decided> {
        let (choices, mut policies) = std::mem::take(&mut self.watch.changed);
        if self.watch.watchers.is_empty() {
            return Vec::new();
        }
        let choices = self.changed_choices(choices);
        let plan = self.engine.plan();
        let all = plan.policies.iter();
        let leading = all.filter(|(_, entry)| choices.contains_key(&ChoiceId(entry.choice)));
        policies.extend(leading.map(|(id, _)| *id));
        type Alike = (Which, Option<String>, String);
        let mut changed: BTreeMap<Alike, BTreeSet<Name>> = BTreeMap::new();
        let name_of = |id: PolicyId| {
            let chain = self.engine.state().memory.policies.key(id.0);
            chain.and_then(|chain| chain.first()).cloned()
        };
        for id in policies {
            let Some(now) = self.came_to(id) else {
                self.watch.policies.remove(&id);
                continue;
            };
            let was = self.watch.policies.insert(id, now.clone());
            if was.as_ref() != Some(&now) {
                changed
                    .entry((None, was, now))
                    .or_default()
                    .extend(name_of(id));
            }
        }
        for (id, ruled) in self.leading_by_rules(&choices) {
            let Some(name) = name_of(id) else { continue };
            for RuleDecision { at, choice, .. } in ruled {
                let Some((was, now)) = choice.and_then(|choice| choices.get(&choice)) else {
                    continue;
                };
                let alike = (Some(at.number), was.clone(), now.clone());
                changed.entry(alike).or_default().insert(name.clone());
            }
        }
        let changed = changed.into_iter();
        changed
            .map(|((which, was, _), policies)| Decided {
                policies,
                which,
                was,
            })
            .collect()
    }

    /// Those of the choices that came to something else since this was asked last: to what, and what it was.
    fn changed_choices(
        &mut self,
        choices: BTreeSet<ChoiceId>,
    ) -> BTreeMap<ChoiceId, (Option<String>, String)> {
        let mut changed = BTreeMap::new();
        for choice in choices {
            let Some(now) = self.words_of(choice) else {
                self.watch.choices.remove(&choice);
                continue;
            };
            let was = self.watch.choices.insert(choice, now.clone());
            if was.as_ref() != Some(&now) {
                changed.insert(choice, (was, now));
            }
        }
        changed
    }

    /// Kernel policies that lead to one of these choices by rules, with what their own rules decide.
    fn leading_by_rules<T>(
        &self,
        choices: &BTreeMap<ChoiceId, T>,
    ) -> Vec<(PolicyId, Vec<RuleDecision>)> {
        if choices.is_empty() {
            return Vec::new();
        }
        let plan = self.engine.plan();
        let choices: BTreeSet<ChoiceId> = choices.keys().copied().collect();
        let mut leads = plan.leading_to(&choices);
        let ruled = plan.policies.iter().filter(|(_, entry)| entry.rules != 0);
        let leading = ruled.map(|(id, _)| *id).filter(|id| leads(*id));
        let first = leading.take(MOST_RULED);
        first
            .filter_map(|id| {
                let chain = self.engine.state().memory.policies.key(id.0)?;
                Some((id, self.by_rule(chain.first()?)))
            })
            .collect()
    }

    /// What a kernel policy came to for what none of its rules fits: a domain, `block` or `pass`.
    fn came_to(&self, policy: PolicyId) -> Option<String> {
        let policy = self.engine.plan().policies.get(&policy)?;
        self.words_of(ChoiceId(policy.choice))
    }

    fn words_of(&self, choice: ChoiceId) -> Option<String> {
        let entry = self.engine.plan().choices.get(&choice)?;
        let chosen = self.engine.state().chosen.get(&choice);
        Some(match chosen.and_then(|chosen| chosen.first()) {
            Some(domain) => domain.to_string(),
            None if entry.verdict == steer_common::verdict::BLOCK => "block".to_owned(),
            None => "pass".to_owned(),
        })
    }

    /// What a policy's own rules decide now.
    fn by_rule(&self, policy: &Name) -> Vec<RuleDecision> {
        let chain = self.engine.chain_of(policy);
        let decisions = self.engine.rule_decisions(&chain, MOST_RULES).into_iter();
        decisions
            .filter(|decided| decided.at.policy == *policy)
            .collect()
    }

    /// A change of a decision as a caller is told of it, for whom the policies `holding` hold.
    fn changes_for(
        &self,
        watcher: &Watcher,
        holding: &[Name],
        decided: &Decided,
        time: &str,
    ) -> Vec<ChangeView> {
        let seen = decided.policies.iter().filter(|name| {
            let policy = self.find_policy(name.as_str());
            policy.is_some_and(|policy| {
                watcher.authority.owns(policy) || holding.contains(&policy.name)
            })
        });
        let seen: Vec<&Name> = seen.collect();
        self.told(&seen, decided.which, decided.was.as_ref(), time)
    }

    /// What is chosen for policies: the first of them, the last of these with how many more there are.
    fn told(
        &self,
        policies: &[&Name],
        which: Which,
        was: Option<&String>,
        time: &str,
    ) -> Vec<ChangeView> {
        let told = policies.iter().take(MOST_TOLD).filter_map(|name| {
            let decision = match which {
                None => self.engine.decision(name.as_str())?,
                Some(number) => {
                    let mut by_rule = self.by_rule(name).into_iter();
                    by_rule
                        .find(|decided| decided.at.number == number)?
                        .decision
                }
            };
            Some(change(time, name, which, &decision, was.cloned()))
        });
        let mut changes: Vec<ChangeView> = told.collect();
        let more = policies.len().saturating_sub(MOST_TOLD);
        if let Some(last) = changes.last_mut().filter(|_| more > 0) {
            last.more = u64::try_from(more).ok();
        }
        changes
    }
}

fn change(
    time: &str,
    policy: &Name,
    which: Which,
    decision: &Decision,
    was: Option<String>,
) -> ChangeView {
    ChangeView {
        time: time.to_owned(),
        policy: Some(policy.to_string()),
        domain: decision.domain().map(ToString::to_string),
        rule: which.and_then(|number| u64::try_from(number).ok()),
        state: verdict_word(decision).to_owned(),
        was,
        reason: decision.reason.clone(),
        more: None,
    }
}

fn verdict_word(decision: &Decision) -> &'static str {
    match decision.verdict {
        Verdict::Steer(_) => "steer",
        Verdict::Block => "block",
        Verdict::Pass => "pass",
    }
}

fn time() -> String {
    clock::precise(SystemTime::now())
}
