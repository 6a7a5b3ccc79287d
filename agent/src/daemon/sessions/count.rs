//! What became of flows, in numbers.

use std::collections::{BTreeMap, HashMap};

use serde::{Deserialize, Serialize};
use steer_core::ids::CgroupId;
use steer_core::name::Name;

use crate::api::types::SessionsView;

/// What was done with a flow, and its outcome.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Outcome {
    Kept,
    Moved,
    Reset,
    Failed(String),
}

/// What was done to flows until now.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub(super) struct Record {
    pub(super) moved: u64,
    pub(super) reset: u64,
    /// When one was moved or reset last.
    pub(super) at: Option<String>,
}

/// Flows that stay where new ones do not go.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Stay {
    /// As they should.
    pub(super) kept: u64,
    /// They could not be ended.
    pub(super) failed: u64,
}

/// Both, of the same flows.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Sum {
    pub(super) done: Record,
    pub(super) stay: Stay,
}

impl Record {
    pub(super) fn add(&mut self, more: Self) {
        self.moved += more.moved;
        self.reset += more.reset;
        self.at = more.at.or(self.at.take());
    }

    pub(super) fn view(&self, stay: Stay) -> SessionsView {
        SessionsView {
            kept: stay.kept,
            moved: self.moved,
            reset: self.reset,
            failed: stay.failed,
            changed: self.at.clone(),
        }
    }
}

impl Stay {
    fn take(&mut self, less: Self) {
        self.kept = self.kept.saturating_sub(less.kept);
        self.failed = self.failed.saturating_sub(less.failed);
    }

    pub(super) fn plus(self, more: Self) -> Self {
        Self {
            kept: self.kept + more.kept,
            failed: self.failed + more.failed,
        }
    }
}

impl Sum {
    pub(super) fn count(&mut self, outcome: &Outcome, now: &str) {
        let counter = match outcome {
            Outcome::Kept => &mut self.stay.kept,
            Outcome::Failed(_) => &mut self.stay.failed,
            Outcome::Moved => &mut self.done.moved,
            Outcome::Reset => &mut self.done.reset,
        };
        *counter += 1;
        if matches!(outcome, Outcome::Moved | Outcome::Reset) {
            self.done.at = Some(now.to_owned());
        }
    }
}

/// Which flows stay, by the cgroups that made their sockets: a look at some cgroups says nothing of the
/// flows of others.
#[derive(Debug, Default)]
pub(super) struct Standing {
    cgroups: HashMap<CgroupId, BTreeMap<Option<Name>, Stay>>,
    /// The same by their policies, of all cgroups.
    policies: BTreeMap<Option<Name>, Stay>,
}

impl Standing {
    pub(super) fn add(&mut self, cgroup: CgroupId, policy: Option<Name>, more: Stay) {
        let of = self.cgroups.entry(cgroup).or_default();
        let stay = of.entry(policy.clone()).or_default();
        *stay = stay.plus(more);
        let stay = self.policies.entry(policy).or_default();
        *stay = stay.plus(more);
    }

    /// Takes what was found in these cgroups for what was known of them.
    pub(super) fn replace(&mut self, looked_at: impl Iterator<Item = CgroupId>, mut found: Self) {
        for cgroup in looked_at {
            for (policy, less) in self.cgroups.remove(&cgroup).unwrap_or_default() {
                if let Some(stay) = self.policies.get_mut(&policy) {
                    stay.take(less);
                }
            }
            for (policy, stay) in found.cgroups.remove(&cgroup).unwrap_or_default() {
                self.add(cgroup, policy, stay);
            }
        }
        self.policies.retain(|_, stay| *stay != Stay::default());
    }

    pub(super) fn of(&self, policy: &Name) -> Stay {
        let stay = self.policies.get(&Some(policy.clone()));
        stay.copied().unwrap_or_default()
    }

    pub(super) fn all(&self) -> Stay {
        let all = self.policies.values().copied();
        all.fold(Stay::default(), Stay::plus)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_look_at_one_cgroup_leaves_what_is_kept_in_others() {
        let (app, brother) = (CgroupId(2), CgroupId(3));
        let [p, q] = ["p", "q"].map(|name| Name::new(name).unwrap());
        let kept = |kept| Stay { kept, failed: 0 };
        let mut standing = Standing::default();
        standing.add(app, Some(p.clone()), kept(2));
        standing.add(brother, Some(p.clone()), kept(3));
        standing.add(brother, None, kept(1));
        assert_eq!((standing.of(&p), standing.all()), (kept(5), kept(6)));

        // One of its flows has ended, and another policy has it now.
        let mut found = Standing::default();
        found.add(app, Some(q.clone()), kept(1));
        standing.replace([app].into_iter(), found);
        assert_eq!((standing.of(&p), standing.of(&q)), (kept(3), kept(1)));

        standing.replace([brother, app].into_iter(), Standing::default());
        assert_eq!(standing.all(), Stay::default());
        assert!(standing.policies.is_empty() && standing.cgroups.is_empty());
    }
}
