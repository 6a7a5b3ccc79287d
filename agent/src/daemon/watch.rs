//! Tells who watches of every change: of a domain's state, and of what is chosen for policies.

use std::collections::{BTreeMap, BTreeSet};
use std::time::SystemTime;

use steer_core::domains::DomainState;
use steer_core::engine::{Changes, RuleDecision};
use steer_core::ids::{ChoiceId, PolicyId};
use steer_core::name::Name;
use steer_core::policy::Policy;
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
const MOST_RULED: usize = 256;

/// Which decision of a policy: that of its rule with this number, or for what no rule fits.
type Which = Option<usize>;

/// Who watches, and what was told last.
#[derive(Default)]
pub(super) struct Watch {
    watchers: Vec<Watcher>,
    domains: BTreeMap<Name, DomainState>,
    /// What each kernel policy came to for what none of its rules fits. Kept while somebody watches.
    policies: BTreeMap<PolicyId, InForce>,
    /// The same of each choice, which is what rules lead to.
    choices: BTreeMap<ChoiceId, String>,
    /// Choices and kernel policies that changed since it was told last.
    changed: (BTreeSet<ChoiceId>, BTreeSet<PolicyId>),
}

/// A policy that is in force somewhere.
#[derive(PartialEq, Eq)]
struct InForce {
    name: Name,
    owner: Option<u32>,
    /// What it came to, in words: a domain or a verdict.
    words: String,
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

/// What there is to tell of policies.
#[derive(Default)]
struct News {
    decided: Vec<Decided>,
    /// Policies that are in force no more, since they are none any more or in quarantine.
    ended: Vec<InForce>,
}

/// A change of a decision, by the policies that it is about; of rules with the decision, which takes time to make.
struct Decided {
    policies: BTreeMap<Name, Option<Decision>>,
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
        let in_general = seen.iter().map(|name| (*name, None)).collect::<Vec<_>>();
        changes.extend(self.told(&in_general, None, None, &time));
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
            let in_force = policies.filter_map(|id| Some((*id, self.in_force(*id)?)));
            self.watch.policies = in_force.collect();
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
        let mut watchers = std::mem::take(&mut self.watch.watchers);
        watchers.retain(|watcher| !watcher.answer.is_closed());
        let news = self.changed_decisions(&watchers);
        if !(domains.is_empty() && news.decided.is_empty() && news.ended.is_empty()) {
            watchers = watchers
                .into_iter()
                .filter_map(|watcher| self.tell_watcher(watcher, domains.clone(), &news, &time))
                .collect();
        }
        self.watch.watchers = watchers;
    }

    /// Tells a watcher what it may know; gives it back if it takes what it is told.
    fn tell_watcher(
        &self,
        watcher: Watcher,
        mut changes: Vec<ChangeView>,
        news: &News,
        time: &str,
    ) -> Option<Watcher> {
        // Asked once: there may be many policies, and anybody may watch.
        let holding = match news.decided.is_empty() {
            true => Vec::new(),
            false => self.holding(&watcher.caller),
        };
        for decided in &news.decided {
            changes.extend(self.changes_for(&watcher, &holding, decided, time));
        }
        let owner = watcher.authority.owner();
        let ended = news.ended.iter();
        let ended = ended.filter(|ended| owner.is_none_or(|uid| ended.owner == Some(uid)));
        changes.extend(ended.take(MOST_TOLD).map(|ended| self.end_of(ended, time)));
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
    }

    fn end_of(&self, ended: &InForce, time: &str) -> ChangeView {
        let mistakes = self.mistakes_of(ended.name.as_str());
        ChangeView {
            time: time.to_owned(),
            policy: Some(ended.name.to_string()),
            state: match mistakes {
                Some(_) => "quarantined",
                None => "ended",
            }
            .to_owned(),
            was: Some(ended.words.clone()),
            reason: mistakes
                .unwrap_or_else(|| "there is no policy of this name any more".to_owned()),
            ..ChangeView::default()
        }
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

    /// Decisions that came to something else since this was asked last, and policies that ended, as far as somebody
    /// watches.
    fn changed_decisions(&mut self, watchers: &[Watcher]) -> News {
        let (choices, mut policies) = std::mem::take(&mut self.watch.changed);
        let mut news = News::default();
        if watchers.is_empty() {
            return news;
        }
        let choices = self.changed_choices(choices);
        let plan = self.engine.plan();
        let all = plan.policies.iter();
        let leading = all.filter(|(_, entry)| choices.contains_key(&ChoiceId(entry.choice)));
        policies.extend(leading.map(|(id, _)| *id));
        type Alike = (Which, Option<String>, String);
        let mut changed: BTreeMap<Alike, BTreeMap<Name, Option<Decision>>> = BTreeMap::new();
        for id in policies {
            let Some(now) = self.in_force(id) else {
                let was = self.watch.policies.remove(&id);
                news.ended
                    .extend(was.filter(|was| self.has_ended(&was.name)));
                continue;
            };
            let (name, words) = (now.name.clone(), now.words.clone());
            let was = self.watch.policies.insert(id, now).map(|was| was.words);
            if was.as_ref() != Some(&words) {
                let alike = changed.entry((None, was, words)).or_default();
                alike.insert(name, None);
            }
        }
        for (name, ruled) in self.leading_by_rules(&choices, watchers) {
            for RuleDecision {
                at,
                decision,
                choice,
            } in ruled
            {
                let Some((was, now)) = choice.and_then(|choice| choices.get(&choice)) else {
                    continue;
                };
                let alike = (Some(at.number), was.clone(), now.clone());
                let alike = changed.entry(alike).or_default();
                alike.insert(name.clone(), Some(decision));
            }
        }
        let changed = changed.into_iter();
        news.decided = changed
            .map(|((which, was, _), policies)| Decided {
                policies,
                which,
                was,
            })
            .collect();
        news
    }

    /// Whether a policy that was in force is none any more, or in quarantine.
    fn has_ended(&self, name: &Name) -> bool {
        let state = self.engine.state();
        state.policy(name.as_str()).is_none() || state.config.quarantined.contains_key(name)
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

    /// Policies that lead to one of these choices by rules and that a watcher may see, with what their own rules
    /// decide.
    fn leading_by_rules<T>(
        &self,
        choices: &BTreeMap<ChoiceId, T>,
        watchers: &[Watcher],
    ) -> Vec<(Name, Vec<RuleDecision>)> {
        if choices.is_empty() {
            return Vec::new();
        }
        let plan = self.engine.plan();
        let choices: BTreeSet<ChoiceId> = choices.keys().copied().collect();
        let mut leads = plan.leading_to(&choices);
        let ruled = plan.policies.iter().filter(|(_, entry)| entry.rules != 0);
        let leading = ruled.map(|(id, _)| *id).filter(|id| leads(*id));
        let names = leading.filter_map(|id| {
            let chain = self.engine.state().memory.policies.key(id.0)?;
            chain.first().cloned()
        });
        let names: BTreeSet<Name> = names.collect();
        if names.is_empty() {
            return Vec::new();
        }
        let holding = watchers.iter().flat_map(|one| self.holding(&one.caller));
        let holding: BTreeSet<Name> = holding.collect();
        let seen = |name: &Name| {
            let policy = self.find_policy(name.as_str());
            let owned = |policy: &Policy| watchers.iter().any(|one| one.authority.owns(policy));
            holding.contains(name) || policy.is_some_and(owned)
        };
        let seen = names.into_iter().filter(seen).take(MOST_RULED);
        seen.map(|name| (name.clone(), self.by_rule(&name)))
            .collect()
    }

    /// A kernel policy, with what it came to for what none of its rules fits.
    fn in_force(&self, id: PolicyId) -> Option<InForce> {
        let policy = self.engine.plan().policies.get(&id)?;
        let words = self.words_of(ChoiceId(policy.choice))?;
        let name = self.engine.state().memory.policies.key(id.0)?.first()?;
        let owner = self.engine.state().policy(name.as_str())?.owner;
        Some(InForce {
            name: name.clone(),
            owner,
            words,
        })
    }

    /// What a choice came to: a domain, `block` or `pass`.
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
        let seen = decided.policies.iter().filter(|(name, _)| {
            let policy = self.find_policy(name.as_str());
            policy.is_some_and(|policy| {
                watcher.authority.owns(policy) || holding.contains(&policy.name)
            })
        });
        let seen = seen.map(|(name, decision)| (name, decision.as_ref()));
        let seen: Vec<_> = seen.collect();
        self.told(&seen, decided.which, decided.was.as_ref(), time)
    }

    /// What is chosen for policies: the first of them, the last of these with how many more there are.
    fn told(
        &self,
        policies: &[(&Name, Option<&Decision>)],
        which: Which,
        was: Option<&String>,
        time: &str,
    ) -> Vec<ChangeView> {
        let told = policies.iter().take(MOST_TOLD);
        let told = told.filter_map(|(name, decision)| match decision {
            Some(decision) => Some(change(time, name, which, decision, was.cloned())),
            None => {
                let decision = self.engine.decision(name.as_str())?;
                Some(change(time, name, which, &decision, was.cloned()))
            }
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
