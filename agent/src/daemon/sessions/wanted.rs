//! What a look at live flows is for: whose flows may fare otherwise, and who waits for it.

use std::collections::BTreeSet;

use steer_core::engine::Changes;
use steer_core::ids::{CgroupId, ChoiceId, RulesetId};
use steer_core::name::Name;
use steer_core::plan::Plan;

use super::count::{Record, Stay, Sum};
use super::look::Candidate;
use crate::api::answer::Answer;
use crate::api::methods::Reply;
use crate::api::types::SessionsView;

/// What a look is for.
#[derive(Debug, Default)]
pub(super) struct Wanted {
    pub(super) touched: Touched,
    pub(super) moved: Vec<Moved>,
    pub(super) waiting: Vec<Waiting>,
}

/// Whose flows may fare otherwise now.
#[derive(Clone, Debug, Default)]
pub(super) struct Touched {
    pub(super) all: bool,
    pub(super) cgroups: BTreeSet<CgroupId>,
}

/// A process that came into a cgroup: its sockets belong to the cgroup that made them, but their flows are
/// the process's.
#[derive(Clone, Copy, Debug)]
pub(super) struct Moved {
    pub(super) pid: i32,
    pub(super) cgroup: CgroupId,
}

/// A call that is answered when the look is over, with what became of flows.
#[derive(Debug)]
pub(super) struct Waiting {
    reply: Reply,
    answer: Answer,
    of: Of,
    sum: Sum,
}

/// Whose flows are counted for a call by itself.
#[derive(Clone, Debug, Default)]
pub(super) enum Of {
    /// Nobody's: what is known of its policies says all.
    #[default]
    Nobody,
    /// Those that its change touched: no policy is left to know of them.
    Touched(Touched),
    /// Those of the process that came into this cgroup.
    Moved(CgroupId),
}

impl Wanted {
    pub(super) fn is_empty(&self) -> bool {
        self.touched.is_empty() && self.moved.is_empty() && self.waiting.is_empty()
    }
}

impl Touched {
    pub(super) fn is_empty(&self) -> bool {
        !self.all && self.cgroups.is_empty()
    }

    pub(super) fn has(&self, cgroup: CgroupId) -> bool {
        self.all || self.cgroups.contains(&cgroup)
    }

    pub(super) fn add(&mut self, more: Self) {
        self.all |= more.all;
        self.cgroups.extend(more.cgroups);
    }

    pub(super) fn of(changes: &Changes, plan: &Plan) -> Self {
        let mut touched = Self {
            all: changes.network,
            cgroups: BTreeSet::new(),
        };
        if touched.all {
            return touched;
        }
        touched.cgroups.extend(&changes.cgroups);
        let choices: BTreeSet<ChoiceId> = changes.choices.union(&changes.shares).copied().collect();
        if changes.policies.is_empty() && changes.rulesets.is_empty() && choices.is_empty() {
            return touched;
        }
        let mut leads = plan.leading_to(&choices);
        let policies: BTreeSet<u32> = plan
            .policies
            .iter()
            .filter(|(id, entry)| {
                changes.policies.contains(id)
                    || changes.rulesets.contains(&RulesetId(entry.rules))
                    || leads(**id)
            })
            .map(|(id, _)| id.0)
            .collect();
        let cgroups = plan.cgroups.iter();
        let cgroups = cgroups.filter(|(_, entry)| policies.contains(&entry.policy));
        touched.cgroups.extend(cgroups.map(|(id, _)| *id));
        touched
    }
}

impl Waiting {
    pub(super) fn new(reply: Reply, answer: Answer, of: Of) -> Self {
        Self {
            reply,
            answer,
            of,
            sum: Sum::default(),
        }
    }

    pub(super) fn count(&mut self, candidate: &Candidate, sum: &Sum) {
        let own = match &self.of {
            Of::Nobody => false,
            Of::Touched(touched) => {
                candidate.moved.is_none() && touched.has(CgroupId(candidate.live.cgroup))
            }
            Of::Moved(cgroup) => candidate.moved == Some(*cgroup),
        };
        if own {
            self.sum.done.add(sum.done.clone());
            self.sum.stay = self.sum.stay.plus(sum.stay);
        }
    }

    /// Answers. `known`: what became of a policy's flows, and which stay.
    pub(super) fn answer(self, known: impl Fn(&Name) -> (Record, Stay)) {
        let Self {
            mut reply,
            answer,
            sum,
            ..
        } = self;
        let of = |policy: &str| -> Option<SessionsView> {
            let (record, stay) = known(&Name::new(policy).ok()?);
            Some(record.view(stay.plus(sum.stay)))
        };
        match &mut reply {
            Reply::Policy(view) => view.sessions = of(&view.name),
            Reply::Policies(views) => views
                .iter_mut()
                .for_each(|view| view.sessions = of(&view.name)),
            Reply::Run(run) => run.sessions = of(&run.policy),
            Reply::Unset(unset) => unset.sessions = Some(sum.done.view(sum.stay)),
            _ => {}
        }
        answer.end(Ok(reply));
    }
}

#[cfg(test)]
mod tests {
    use steer_core::cgroups::CgroupChange;
    use steer_core::engine::Engine;
    use steer_core::ids::PolicyId;
    use steer_core::state::{Event, State};

    use super::*;

    const FILE: &str = "[policy.p]\nmatch.cgroup = \"a\"\nuse = \"wlan0\"\n[[policy.p.rule]]\nports = 1\nuse = \
                        \"lte0\"\n[policy.q]\nmatch.cgroup = \"b\"\nuse = [\"wlan0\", \"lte0\"]\n";

    #[test]
    fn a_change_touches_the_cgroups_whose_policies_lead_to_it_also_by_rules_and_shares() {
        let mut state = State::new(CgroupId(1));
        state.config = steer_core::config::parse(&[("f", FILE)]).unwrap();
        let mut engine = Engine::new(state);
        for (id, name) in [(2, "a"), (3, "b")] {
            let made = CgroupChange::Made {
                id: CgroupId(id),
                parent: CgroupId(1),
                name: name.to_owned(),
            };
            engine.apply(Event::Cgroups(made)).unwrap();
        }
        engine.settle();
        let plan = engine.plan();
        let number = PolicyId(plan.cgroups[&CgroupId(2)].policy);
        let policy = plan.policies[&number];
        let ruleset = RulesetId(policy.rules);
        let mut choices = plan.rulesets[&ruleset].choices().map(ChoiceId);
        let ruled = choices.find(|choice| choice.0 != policy.choice).unwrap();
        let none = Changes::default;
        for (changes, touched) in [
            (none(), false),
            (
                Changes {
                    policies: [number].into(),
                    ..none()
                },
                true,
            ),
            (
                Changes {
                    choices: [ChoiceId(policy.choice)].into(),
                    ..none()
                },
                true,
            ),
            (
                Changes {
                    choices: [ruled].into(),
                    ..none()
                },
                true,
            ),
            (
                Changes {
                    shares: [ruled].into(),
                    ..none()
                },
                true,
            ),
            (
                Changes {
                    rulesets: [ruleset].into(),
                    ..none()
                },
                true,
            ),
            (
                Changes {
                    rulesets: [RulesetId(99)].into(),
                    shares: [ChoiceId(99)].into(),
                    ..none()
                },
                false,
            ),
        ] {
            let noted = Touched::of(&changes, plan);
            assert!(!noted.all);
            let expected: BTreeSet<_> = touched.then_some(CgroupId(2)).into_iter().collect();
            assert_eq!(noted.cgroups, expected, "{changes:?}");
        }
    }
}
