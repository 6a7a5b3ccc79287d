//! Rules of the policies in force: compiled once for each chain of policies, and again only when something
//! that they are made of is another.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use super::{Changes, Engine, settle::release};
use crate::criteria::Wish;
use crate::ids::{ChoiceId, PolicyId, RulesetId};
use crate::name::Name;
use crate::policy::{Otherwise, Policy};
use crate::rules::compile::{TooLarge, compile};
use crate::rules::flatten::{Asked, Link, RuleAt, ask, base, flatten};
use crate::rules::{Flow, Rule, Rules};
use crate::select::{Decision, Inputs, Stage};

/// The rules of a kernel policy.
#[derive(Debug)]
pub(super) struct Compiled {
    /// The rules of each policy of the chain, and what it wants itself: nothing else matters.
    made_of: Vec<(Rules, Stage)>,
    /// What became of them.
    outcome: Result<Made, Unruled>,
}

/// Rules as the kernel has them.
#[derive(Debug)]
struct Made {
    ruleset: RulesetId,
    /// Every choice that the set leads to, each once.
    choices: BTreeSet<ChoiceId>,
}

/// Why the rules that hold together at a cgroup cannot be in force.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unruled {
    /// They do not fit the kernel's map.
    #[error("they are {0}")]
    TooLarge(#[from] TooLarge),
    /// There are too many different choices.
    #[error("the kernel map has no room for what they choose")]
    NoChoice,
    /// There are too many different sets of rules.
    #[error("the kernel has no room for one more set of rules")]
    NoRuleset,
}

/// What is decided for a flow.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FlowDecision {
    /// The rules that fit it, in the order in which they are asked; none: no rule does.
    pub rules: Vec<RuleAt>,
    /// What is chosen.
    pub decision: Decision,
}

/// What a rule decides now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RuleDecision {
    /// The rule.
    pub at: RuleAt,
    /// What is chosen for flows that it fits and no other rule that comes into question does.
    pub decision: Decision,
    /// The choice that it leads to, if that is in force.
    pub choice: Option<ChoiceId>,
}

impl Compiled {
    /// The set, unless they cannot be in force.
    pub(super) fn ruleset(&self) -> Result<RulesetId, Unruled> {
        self.outcome
            .as_ref()
            .map(|made| made.ruleset)
            .map_err(|why| *why)
    }

    /// There was no room for them, which there may be another time.
    fn is_starved(&self) -> bool {
        matches!(self.outcome, Err(Unruled::NoChoice | Unruled::NoRuleset))
    }

    fn choices(&self) -> impl Iterator<Item = ChoiceId> {
        self.outcome.iter().flat_map(|made| &made.choices).copied()
    }
}

impl Engine {
    /// The policies of a chain that there are.
    pub(super) fn links<'a>(&'a self, chain: &'a [Name]) -> Vec<Link<'a>> {
        let policies = chain.iter();
        policies
            .filter_map(|name| self.state.policy(name.as_str()))
            .map(|policy| Link {
                policy,
                preferred: self.state.preferred.get(&policy.name),
            })
            .collect()
    }

    /// The rules of a chain, compiled, if it has any; `had` is what it had before.
    pub(super) fn compile(
        &mut self,
        chain: &[Name],
        had: Option<&Arc<Compiled>>,
        changes: &mut Changes,
    ) -> Option<Arc<Compiled>> {
        let links = self.links(chain);
        if links.iter().all(|link| link.policy.rules.is_none()) || self.cannot_enforce(chain) {
            return None;
        }
        let made_of: Vec<(Rules, Stage)> = links
            .iter()
            .map(|link| {
                let stage = Stage::of(link.policy, link.preferred);
                (link.policy.rules.clone(), stage)
            })
            .collect();
        if let Some(had) = had
            && !had.is_starved()
            && same(&had.made_of, &made_of)
        {
            return Some(Arc::clone(had));
        }
        // Cheap, and so numbers can be given out meanwhile.
        let policies: Vec<(Policy, Option<Name>)> = links
            .iter()
            .map(|link| (link.policy.clone(), link.preferred.cloned()))
            .collect();
        let outcome = self.make_ruleset(&policies, changes);
        Some(Arc::new(Compiled { made_of, outcome }))
    }

    fn make_ruleset(
        &mut self,
        policies: &[(Policy, Option<Name>)],
        changes: &mut Changes,
    ) -> Result<Made, Unruled> {
        let links: Vec<Link<'_>> = policies
            .iter()
            .map(|(policy, preferred)| Link {
                policy,
                preferred: preferred.as_ref(),
            })
            .collect();
        let flat = flatten(&links)?;
        let mut given: BTreeMap<&Inputs, u32> = BTreeMap::new();
        let wanted = flat.rules.iter().map(|rule| &rule.inputs);
        for inputs in wanted.chain([&flat.otherwise]) {
            if !given.contains_key(inputs) {
                let number = self.give_choice(inputs).ok_or(Unruled::NoChoice)?;
                given.insert(inputs, number);
            }
        }
        let number = |inputs: &Inputs| given.get(inputs).copied().unwrap_or(0);
        let rules: Vec<(&Rule, u32)> = flat
            .rules
            .iter()
            .map(|rule| (&*rule.condition, number(&rule.inputs)))
            .collect();
        let image = compile(&rules, number(&flat.otherwise))?;
        let rulesets = &mut self.state.memory.rulesets;
        let ruleset = rulesets.give(&image.hash().0).ok_or(Unruled::NoRuleset)?;
        let ruleset = RulesetId(ruleset);
        if let std::collections::btree_map::Entry::Vacant(vacant) =
            self.plan.rulesets.entry(ruleset)
        {
            vacant.insert(image);
            changes.rulesets.insert(ruleset);
        }
        Ok(Made {
            ruleset,
            choices: given.into_values().map(ChoiceId).collect(),
        })
    }

    /// The number of a choice, which is decided if it was not.
    pub(super) fn give_choice(&mut self, inputs: &Inputs) -> Option<u32> {
        let choices = &mut self.state.memory.choices;
        let known = choices.get(inputs).is_some();
        let number = choices.give(inputs)?;
        if !known || !self.plan.choices.contains_key(&ChoiceId(number)) {
            self.dirty.choices.insert(ChoiceId(number));
        }
        Some(number)
    }

    /// Notes the rules of a kernel policy in place of those that it had.
    pub(super) fn put_compiled(
        &mut self,
        id: PolicyId,
        had: Option<&Arc<Compiled>>,
        now: Option<Arc<Compiled>>,
    ) {
        let same = match (had, &now) {
            (Some(had), Some(now)) => Arc::ptr_eq(had, now),
            (had, now) => had.is_none() && now.is_none(),
        };
        if !same {
            if let Some(now) = &now {
                for choice in now.choices() {
                    *self.choice_uses.entry(choice).or_default() += 1;
                }
                if let Ok(ruleset) = now.ruleset() {
                    *self.ruleset_uses.entry(ruleset).or_default() += 1;
                }
            }
            if let Some(had) = had {
                for choice in had.choices() {
                    if release(self.choice_uses.get_mut(&choice)) {
                        self.dirty.choices.insert(choice);
                    }
                }
                if let Ok(ruleset) = had.ruleset()
                    && release(self.ruleset_uses.get_mut(&ruleset))
                {
                    self.dirty.rulesets.insert(ruleset);
                }
            }
        }
        if let Some(now) = now {
            self.compiled.insert(id, now);
        }
    }

    /// Takes back the numbers of sets that no policy has any more.
    pub(super) fn settle_rulesets(&mut self, changes: &mut Changes) {
        let mut rulesets = std::mem::take(&mut self.dirty.rulesets);
        if self.dirty.before.is_none() {
            // Numbers that an earlier agent gave out and nothing bears now.
            let given = self.state.memory.rulesets.iter();
            rulesets.extend(given.map(|(number, _)| RulesetId(number)));
        }
        for id in rulesets {
            if self.ruleset_uses.get(&id).is_some_and(|uses| *uses > 0) {
                continue;
            }
            self.ruleset_uses.remove(&id);
            self.state.memory.rulesets.free(id.0);
            if self.plan.rulesets.remove(&id).is_some() {
                changes.rulesets.insert(id);
            }
        }
    }

    /// Kernel policies for whose rules there was no room.
    pub(super) fn starved(&self) -> Vec<PolicyId> {
        let compiled = self.compiled.iter();
        let starved = compiled.filter(|(_, compiled)| compiled.is_starved());
        starved.map(|(id, _)| *id).collect()
    }

    /// Why the rules of a chain that is in force cannot be.
    pub(super) fn unruled(&self, chain: &[Name]) -> Option<Unruled> {
        let number = self.state.memory.policies.get(chain)?;
        self.compiled.get(&PolicyId(number))?.ruleset().err()
    }

    /// Whether a strict policy of a chain cannot be enforced.
    pub(super) fn cannot_enforce(&self, chain: &[Name]) -> bool {
        self.unenforceable().is_some() && chain.iter().any(|name| self.is_strict(name))
    }

    /// What is asked for a flow of a chain.
    pub(crate) fn ask(&self, chain: &[Name], flow: &Flow) -> Asked {
        ask(&self.links(chain), &flow.canonical())
    }

    /// What is decided for a flow in a cgroup with these policies, the one in force and those behind it by
    /// `otherwise = "next"` ([`Effective::chain`](super::Effective::chain)).
    pub fn decide_flow(&self, chain: &[Name], flow: &Flow) -> FlowDecision {
        if let Some(decision) = self.overruled(chain) {
            return FlowDecision {
                rules: Vec::new(),
                decision,
            };
        }
        let asked = self.ask(chain, flow);
        FlowDecision {
            decision: self.select(&asked.inputs),
            rules: asked.rules,
        }
    }

    /// What each rule of a chain of policies decides now, in the order in which they are asked, for so many at
    /// most. Empty where they cannot be in force.
    pub fn rule_decisions(&self, chain: &[Name], most: usize) -> Vec<RuleDecision> {
        let links = self.links(chain);
        let (Ok(flat), None) = (flatten(&links), self.overruled(chain)) else {
            return Vec::new();
        };
        let mut known: BTreeMap<Inputs, Decision> = BTreeMap::new();
        let own = flat.rules.into_iter().filter_map(|rule| {
            let mut origins = rule.origins.into_iter();
            let at = origins.next().filter(|_| origins.next().is_none())?;
            let choice = self.state.memory.choices.get(&rule.inputs).map(ChoiceId);
            let decision = known
                .entry(rule.inputs)
                .or_insert_with_key(|inputs| self.select(inputs));
            Some(RuleDecision {
                at,
                decision: decision.clone(),
                choice,
            })
        });
        own.take(most).collect()
    }

    /// Inputs to selection of a chain of policies for what none of their rules fits.
    pub(super) fn inputs(&self, chain: &[Name]) -> Inputs {
        base(&self.links(chain))
    }
}

/// What a chain gets that cannot have its rules: closed if it is strict, left out otherwise.
pub(super) fn without_rules(strict: bool) -> Inputs {
    Arc::new([Stage {
        use_: Vec::new(),
        otherwise: if strict {
            Otherwise::Block
        } else {
            Otherwise::Pass
        },
        preferred: None,
        share: None,
        wish: Wish::default(),
    }])
}

fn same(had: &[(Rules, Stage)], now: &[(Rules, Stage)]) -> bool {
    had.len() == now.len()
        && had
            .iter()
            .zip(now)
            .all(|(had, now)| had.0.same(&now.0) && had.1 == now.1)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::Compiled;
    use crate::cgroups::CgroupChange;
    use crate::engine::Engine;
    use crate::ids::CgroupId;
    use crate::memory::Numbers;
    use crate::name::Name;
    use crate::state::{Event, State};

    const FILE: &str = "[policy.p]\nmatch.cgroup = \"a\"\nuse = \"wlan0\"\n[[policy.p.rule]]\nports = 1\nuse = \
                        \"lte0\"\n";

    fn settled(engine: &mut Engine, event: Event) -> Arc<Compiled> {
        engine.apply(event).unwrap();
        engine.settle();
        let mut compiled = engine.compiled.values();
        Arc::clone(compiled.next().unwrap())
    }

    fn made(id: u64, parent: u64, name: &str) -> Event {
        Event::Cgroups(CgroupChange::Made {
            id: CgroupId(id),
            parent: CgroupId(parent),
            name: name.to_owned(),
        })
    }

    #[test]
    fn rules_without_room_are_in_force_as_soon_as_there_is_some() {
        let file = |port: u16| FILE.replace("ports = 1", &format!("ports = {port}"));
        let config = |port| Box::new(crate::config::parse(&[("f", &file(port))]).unwrap());
        let mut state = State::new(CgroupId(1));
        // Room for one set, which another agent left.
        state.memory.rulesets = Numbers::new(2);
        state.memory.rulesets.give(&[1, 2, 3, 4]);
        state.config = *config(1);
        let mut engine = Engine::new(state);
        let first = settled(&mut engine, made(2, 1, "a"));
        assert!(first.ruleset().is_ok(), "{first:?}");
        // The old set and the new one are there at the same time for a moment only.
        let next = settled(&mut engine, Event::Config(config(2)));
        assert!(next.ruleset().is_ok(), "{next:?}");
        assert_eq!(engine.plan.rulesets.len(), 1);
        assert_eq!(engine.plan, super::super::plan(&engine.state));
    }

    #[test]
    fn rules_are_compiled_again_only_when_what_they_are_made_of_is_another() {
        let mut state = State::new(CgroupId(1));
        state.config = crate::config::parse(&[("f", FILE)]).unwrap();
        let mut engine = Engine::new(state);
        let first = settled(&mut engine, made(2, 1, "a"));
        let again = settled(&mut engine, made(3, 2, "b"));
        assert!(Arc::ptr_eq(&first, &again));
        let prefer = Event::Prefer {
            policy: Name::new("p").unwrap(),
            domain: Some(Name::new("lte0").unwrap()),
        };
        let preferred = settled(&mut engine, prefer);
        assert!(!Arc::ptr_eq(&first, &preferred));
        let same = settled(&mut engine, made(4, 2, "c"));
        assert!(Arc::ptr_eq(&preferred, &same));
        // Files that were read again have rules of their own, but the same set.
        let config = crate::config::parse(&[("f", FILE)]).unwrap();
        let number = same.ruleset();
        let read = settled(&mut engine, Event::Config(Box::new(config)));
        assert!(!Arc::ptr_eq(&same, &read));
        assert_eq!(read.ruleset(), number);
    }
}
