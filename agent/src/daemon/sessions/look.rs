//! A look at live flows, from the list of them to what was done with each, in turns.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::time::Duration;
use std::vec::IntoIter;

use steer_core::ids::CgroupId;
use steer_core::name::Name;
use steer_core::sessions::{Flow, Judged, Verdict};

use super::count::{Outcome, Record, Standing, Stay, Sum};
use super::told::Told;
use super::wanted::Wanted;
use crate::netlink::LiveFlow;

/// Flows that are judged before everything else has its turn.
pub(super) const FLOWS_A_TURN: usize = 1024;

/// Flows that are moved or ended before the next ones are judged, by what holds then.
pub(super) const FLOWS_AT_ONCE: usize = 4096;

/// A flow that is to be judged.
#[derive(Clone, Debug)]
pub(super) struct Candidate {
    pub(super) live: LiveFlow,
    /// It is judged as one of this cgroup, into which a process came that has its socket, and not of the
    /// one that made it.
    pub(super) moved: Option<CgroupId>,
}

/// A flow that is to be moved or ended.
#[derive(Debug)]
pub(super) struct Doing {
    pub(super) candidate: Candidate,
    pub(super) judged: Judged,
    /// Its policy was made anew since it was judged.
    forgotten: bool,
}

/// How far a look has come, and what it found until now.
#[derive(Debug, Default)]
pub(super) struct Look {
    pub(super) wanted: Wanted,
    left: IntoIter<Candidate>,
    doing: Vec<Doing>,
    /// Cookies of those that were moved or ended, if a flow may be judged twice.
    acted: HashSet<u64>,
    /// When the first flow is to end that stays on what is lost.
    pub(super) ends: Option<Duration>,
    pub(super) standing: Standing,
    /// By policy, as flows were judged.
    pub(super) done: BTreeMap<Name, Record>,
    pub(super) all: Record,
    /// Policies that were made anew since the flows were taken that are moved or ended now.
    forgotten: BTreeSet<Name>,
    pub(super) told: BTreeMap<Told, Sum>,
    pub(super) trouble: Option<String>,
}

impl Candidate {
    /// As it is judged.
    pub(super) fn flow(&self) -> Flow {
        let live = &self.live;
        Flow {
            cgroup: self.moved.unwrap_or(CgroupId(live.cgroup)),
            ..super::flow(live)
        }
    }
}

impl Look {
    pub(super) fn new(wanted: Wanted) -> Self {
        Self {
            wanted,
            ..Self::default()
        }
    }

    /// Takes what is to be judged.
    pub(super) fn begin(&mut self, listed: Vec<Candidate>) {
        self.left = listed.into_iter();
    }

    /// Judges as many as one turn may, and counts those with which nothing is to be done. False: first what
    /// is to be moved or ended is seen to ([`Look::take_doing`]); where that is nothing, all are judged.
    pub(super) fn turn(
        &mut self,
        mut judge: impl FnMut(&Candidate) -> Option<(Judged, Option<Outcome>)>,
        now: &str,
    ) -> bool {
        let mut left = std::mem::take(&mut self.left);
        for candidate in left.by_ref().take(FLOWS_A_TURN) {
            let twice = candidate.moved.is_some() && self.acted.contains(&candidate.live.cookie);
            let Some((judged, outcome)) = (!twice).then(|| judge(&candidate)).flatten() else {
                continue;
            };
            if let Verdict::Linger { until } = judged.verdict {
                self.ends = Some(self.ends.map_or(until, |ends| ends.min(until)));
            }
            match outcome {
                Some(outcome) => self.count(&candidate, &judged, &outcome, false, now),
                None => {
                    if !self.wanted.moved.is_empty() {
                        self.acted.insert(candidate.live.cookie);
                    }
                    self.doing.push(Doing {
                        candidate,
                        judged,
                        forgotten: false,
                    });
                }
            }
        }
        self.left = left;
        self.left.len() > 0 && self.doing.len() < FLOWS_AT_ONCE
    }

    /// What is to be moved or ended now.
    pub(super) fn take_doing(&mut self) -> Vec<Doing> {
        self.forgotten.clear();
        std::mem::take(&mut self.doing)
    }

    /// Counts what was moved or ended.
    pub(super) fn did(&mut self, done: Vec<(Doing, Outcome)>, now: &str) {
        let anew = std::mem::take(&mut self.forgotten);
        for (doing, outcome) in done {
            if let Outcome::Failed(words) = &outcome {
                self.trouble = Some(format!("live flows could not be ended: {words}"));
            }
            let judged = &doing.judged;
            let anew = judged.policy.as_ref().is_some_and(|p| anew.contains(p));
            let forgotten = doing.forgotten || anew;
            self.count(&doing.candidate, judged, &outcome, forgotten, now);
        }
    }

    /// What was done because of a policy that is made anew now is not told of the new one.
    pub(super) fn forget(&mut self, policy: &Name) {
        self.done.remove(policy);
        self.forgotten.insert(policy.clone());
        for doing in &mut self.doing {
            doing.forgotten |= doing.judged.policy.as_ref() == Some(policy);
        }
    }

    fn count(
        &mut self,
        candidate: &Candidate,
        judged: &Judged,
        outcome: &Outcome,
        forgotten: bool,
        now: &str,
    ) {
        let mut sum = Sum::default();
        sum.count(outcome, now);
        for waiting in &mut self.wanted.waiting {
            waiting.count(candidate, &sum);
        }
        let told = self.told.entry(Told::of(judged)).or_default();
        told.count(outcome, now);
        if candidate.moved.is_none() && sum.stay != Stay::default() {
            let cgroup = CgroupId(candidate.live.cgroup);
            self.standing.add(cgroup, judged.policy.clone(), sum.stay);
        }
        self.all.add(sum.done.clone());
        if let Some(policy) = judged.policy.as_ref().filter(|_| !forgotten) {
            self.done.entry(policy.clone()).or_default().add(sum.done);
        }
    }
}

#[cfg(test)]
mod tests {
    use steer_core::sessions::Verdict;

    use super::super::wanted::Moved;
    use super::*;
    use crate::netlink::{FlowPhase, Transport};

    const NOW: &str = "2026-01-02T03:04:05Z";

    fn candidate(number: u64, moved: Option<CgroupId>) -> Candidate {
        let live = LiveFlow {
            transport: Transport::Tcp,
            phase: FlowPhase::Open,
            local: ([10, 0, 0, 1], 5000).into(),
            peer: ([10, 0, 0, 2], 7).into(),
            v6: false,
            accepted: false,
            uid: 0,
            inode: 0,
            cookie: number,
            mark: 0,
            cgroup: 2,
            interface: 0,
            carried: None,
            state: None,
        };
        Candidate { live, moved }
    }

    fn judged(verdict: Verdict) -> Judged {
        Judged {
            policy: Some(name()),
            from: None,
            to: None,
            verdict,
            why: None,
        }
    }

    fn name() -> Name {
        Name::new("app").unwrap()
    }

    fn look(flows: usize) -> Look {
        let mut look = Look::default();
        look.begin((0..flows as u64).map(|n| candidate(n, None)).collect());
        look
    }

    fn kept(_: &Candidate) -> Option<(Judged, Option<Outcome>)> {
        Some((judged(Verdict::Keep), Some(Outcome::Kept)))
    }

    fn ended(_: &Candidate) -> Option<(Judged, Option<Outcome>)> {
        Some((judged(Verdict::Reset), None))
    }

    fn reset(doing: Vec<Doing>) -> Vec<(Doing, Outcome)> {
        doing.into_iter().map(|d| (d, Outcome::Reset)).collect()
    }

    #[test]
    fn a_turn_judges_so_many_flows_and_each_is_counted_once() {
        let flows = 2 * FLOWS_A_TURN + 1;
        let mut look = look(flows);
        let mut turns = Vec::new();
        loop {
            let mut judged = 0;
            let more = look.turn(
                |candidate| {
                    judged += 1;
                    kept(candidate)
                },
                NOW,
            );
            turns.push(judged);
            if !more {
                break;
            }
        }
        assert_eq!(turns, [FLOWS_A_TURN, FLOWS_A_TURN, 1]);
        assert!(look.take_doing().is_empty());
        assert_eq!(look.standing.of(&name()).kept, flows as u64);
    }

    #[test]
    fn what_is_to_end_ends_before_more_is_judged_than_may_end_at_once() {
        let flows = FLOWS_AT_ONCE + FLOWS_A_TURN;
        let mut look = look(flows);
        let mut batches = Vec::new();
        while batches.last() != Some(&0) {
            while look.turn(ended, NOW) {}
            let doing = look.take_doing();
            batches.push(doing.len());
            look.did(reset(doing), NOW);
        }
        assert_eq!(batches, [FLOWS_AT_ONCE, FLOWS_A_TURN, 0]);
        assert_eq!(look.done[&name()].reset, flows as u64);
    }

    #[test]
    fn what_ended_for_a_policy_is_not_told_of_one_that_took_its_name() {
        for taken_before in [true, false] {
            let mut look = look(3);
            look.turn(ended, NOW);
            let taken = taken_before.then(|| look.take_doing());
            look.forget(&name());
            let doing = taken.unwrap_or_else(|| look.take_doing());
            look.did(reset(doing), NOW);
            assert!(look.done.is_empty(), "{:?}", look.done);
            assert_eq!(look.all.reset, 3);
        }
    }

    #[test]
    fn a_flow_that_ended_with_its_cgroups_is_not_ended_again_with_its_process() {
        let mut look = look(0);
        let cgroup = CgroupId(3);
        look.wanted.moved.push(Moved { pid: 1, cgroup });
        look.begin(vec![candidate(1, None), candidate(1, Some(cgroup))]);
        look.turn(ended, NOW);
        assert_eq!(look.take_doing().len(), 1);
    }
}
