//! Live flows: when they are looked at, what is done with each, and what is told of it.
//!
//! What becomes of a flow is for `steer-core` to say ([`steer_core::sessions`]). Here it is done: for the
//! cgroups that a change touched as soon as the change is in force, and for all with every check of
//! everything, since a dead agent may have missed something.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::path::Path;
use std::time::{Duration, SystemTime};

use nix::time::{ClockId, clock_gettime};
use serde::{Deserialize, Serialize};
use steer_core::engine::{Changes, Engine};
use steer_core::ids::{CgroupId, ChoiceId, IfIndex, RulesetId};
use steer_core::name::Name;
use steer_core::plan::Plan;
use steer_core::sessions::{Flow, Judged, Losses, Means, Verdict};
use tokio::time::Instant;
use tracing::{debug, info, warn};

use super::Daemon;
use super::decided::timestamp;
use crate::api::types::SessionsView;
use crate::cgroup::sockets;
use crate::netlink::{Condition, LiveFlow};
use crate::reconcile::chain;
use crate::statefile::{self, RUN_DIRECTORY, StateFile};

/// So many cgroups are asked for one by one; for more, all flows are read.
const FEW: usize = 64;

/// A little more than the time that was set, so that it has passed by any clock.
const GRACE: Duration = Duration::from_millis(10);

/// Flows that could not be listed are looked at again after this time.
const TROUBLE_PAUSE: Duration = Duration::from_secs(1);

/// What is known of live flows between two looks.
#[derive(Debug, Default)]
pub(super) struct Sessions {
    losses: Losses,
    touched: Touched,
    /// When the next flow is to end that is kept on a lost domain, or a look that failed is tried again.
    pub(super) deadline: Option<Instant>,
    all: Record,
    policies: BTreeMap<Name, Record>,
    /// Since the call that is carried out now began.
    call: Record,
    /// Flows that the packet programs repair, by cookie, and for which domain: each was moved once.
    repaired: HashMap<u64, Option<Name>>,
    /// What was written last.
    kept: Kept,
    /// What went wrong, as it was told.
    told: Option<String>,
}

/// Whose flows may fare otherwise now.
#[derive(Debug, Default)]
struct Touched {
    all: bool,
    cgroups: BTreeSet<CgroupId>,
}

/// What became of flows.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
struct Record {
    /// How many are kept elsewhere than new ones go, as of the last look.
    #[serde(skip)]
    kept: u64,
    moved: u64,
    reset: u64,
    /// How many could not be ended, as of the last look.
    #[serde(skip)]
    failed: u64,
    /// When one was moved or reset last.
    at: Option<String>,
}

/// What outlives the agent.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
struct Kept {
    losses: Losses,
    all: Record,
    policies: BTreeMap<Name, Record>,
}

/// What is done with a flow, and its outcome.
enum Outcome {
    Kept,
    Moved,
    Reset,
    Failed(String),
}

impl Record {
    /// Forgets what holds for one look alone, and returns it.
    fn look_again(&mut self) -> [u64; 2] {
        [&mut self.kept, &mut self.failed].map(std::mem::take)
    }

    fn count(&mut self, outcome: &Outcome, now: &str) {
        let counter = match outcome {
            Outcome::Kept => &mut self.kept,
            Outcome::Moved => &mut self.moved,
            Outcome::Reset => &mut self.reset,
            Outcome::Failed(_) => &mut self.failed,
        };
        *counter += 1;
        if matches!(outcome, Outcome::Moved | Outcome::Reset) {
            self.at = Some(now.to_owned());
        }
    }

    fn view(&self) -> SessionsView {
        SessionsView {
            kept: self.kept,
            moved: self.moved,
            reset: self.reset,
            failed: self.failed,
            changed: self.at.clone(),
        }
    }
}

impl Touched {
    fn note(&mut self, changes: &Changes, plan: &Plan) {
        self.all |= changes.network;
        if self.all {
            return;
        }
        self.cgroups.extend(&changes.cgroups);
        let choices: BTreeSet<ChoiceId> = changes.choices.union(&changes.shares).copied().collect();
        if changes.policies.is_empty() && changes.rulesets.is_empty() && choices.is_empty() {
            return;
        }
        let mut leads = plan.leading_to(&choices);
        let touched: BTreeSet<u32> = plan
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
        let cgroups = cgroups.filter(|(_, entry)| touched.contains(&entry.policy));
        self.cgroups.extend(cgroups.map(|(id, _)| *id));
    }
}

impl Sessions {
    /// What the last agent kept; nothing if it did not, or if that cannot be read.
    pub(super) fn read() -> Self {
        let kept = file().read::<Kept>().unwrap_or_else(|error| {
            warn!("{}", chain(&error));
            None
        });
        let kept = kept.unwrap_or_default();
        Self {
            losses: kept.losses.clone(),
            all: kept.all.clone(),
            policies: kept.policies.clone(),
            kept,
            ..Self::default()
        }
    }

    /// Notes what changed in the plan.
    pub(super) fn note(&mut self, changes: &Changes, plan: &Plan) {
        self.touched.note(changes, plan);
    }

    /// All are to be looked at.
    pub(super) fn note_all(&mut self) {
        self.touched.all = true;
    }

    /// What was touched could not be looked at: the loop has its turn before that is tried again.
    fn put_off(&mut self, touched: Touched) {
        self.touched.all |= touched.all;
        self.touched.cgroups.extend(touched.cgroups);
        self.deadline = Some(Instant::now() + TROUBLE_PAUSE);
    }

    /// A policy is made anew: what became of flows because of an older one is not told of it.
    pub(super) fn forget(&mut self, policy: &Name) {
        self.policies.remove(policy);
    }

    /// A call begins that tells what it did to flows.
    pub(super) fn begin_call(&mut self) {
        self.call = Record::default();
    }

    /// What was done to flows since then.
    pub(super) fn of_call(&self) -> SessionsView {
        self.call.view()
    }

    /// What became of a policy's flows.
    pub(super) fn of(&self, policy: &Name) -> SessionsView {
        self.policies
            .get(policy)
            .map(Record::view)
            .unwrap_or_default()
    }

    /// What became of all flows since the host was started.
    pub(super) fn all(&self) -> SessionsView {
        self.all.view()
    }

    /// Why flows could not be looked at or ended, if so.
    pub(super) fn trouble(&self) -> Option<&str> {
        self.told.as_deref()
    }

    /// Writes what must outlive the agent, if it changed.
    fn keep(&mut self) {
        let kept = Kept {
            losses: self.losses.clone(),
            all: self.all.clone(),
            policies: self.policies.clone(),
        };
        if kept == self.kept {
            return;
        }
        match file().write(&kept) {
            Ok(()) => self.kept = kept,
            // What is in force does not rest on it.
            Err(error) => warn!("{}", chain(&error)),
        }
    }
}

impl Daemon {
    /// Looks at the live flows that may fare otherwise now, and does what is to be done with each.
    pub(super) async fn see_to_flows(&mut self) {
        let touched = std::mem::take(&mut self.sessions.touched);
        let few = !touched.all && touched.cgroups.len() <= FEW;
        if few && touched.cgroups.is_empty() {
            return;
        }
        let conditions: Vec<Condition> = if few {
            let ids = touched.cgroups.iter();
            ids.map(|id| Condition::Cgroup(id.0)).collect()
        } else {
            Vec::new()
        };
        let live = match self.reconciler.live_flows(&conditions).await {
            Ok(live) => live,
            Err(error) => {
                self.sessions.put_off(touched);
                return self.tell_trouble(Some(chain(&error)));
            }
        };
        let flows = live.iter().map(|live| (live, flow(live)));
        self.deal_with(flows.collect(), !few).await;
    }

    /// As [`Daemon::see_to_flows`], for the flows that a process has when it comes into a cgroup: its
    /// sockets belong to the cgroup that made them, but their flows are the process's.
    pub(super) async fn see_to_flows_of(&mut self, pid: i32, cgroup: CgroupId) {
        let sockets = sockets::of_process(pid);
        if sockets.is_empty() {
            return;
        }
        let live = match self.reconciler.live_flows(&[]).await {
            Ok(live) => live,
            Err(error) => return self.tell_trouble(Some(chain(&error))),
        };
        let own = live.iter().filter(|live| sockets.contains(&live.inode));
        let own = own.map(|live| {
            let flow = Flow {
                cgroup,
                ..flow(live)
            };
            (live, flow)
        });
        self.deal_with(own.collect(), false).await;
    }

    /// `all`: these are all flows that there are.
    async fn deal_with(&mut self, flows: Vec<(&LiveFlow, Flow)>, all: bool) {
        let now = now();
        let sessions = &mut self.sessions;
        let judged: Vec<(&LiveFlow, Judged)> = flows
            .into_iter()
            .map(|(live, flow)| (live, self.engine.judge(&flow, &mut sessions.losses, now)))
            .filter(|(_, judged)| !matches!(judged.verdict, Verdict::Alone | Verdict::Home))
            .collect();
        let ends = judged
            .iter()
            .filter_map(|(_, judged)| match judged.verdict {
                Verdict::Linger { until } => Some(until),
                _ => None,
            });
        let next = ends.min();
        let next = next.map(|until| Instant::now() + until.saturating_sub(now) + GRACE);
        if all {
            sessions.losses.forget_others();
            sessions.deadline = next;
            sessions.all.look_again();
            for record in sessions.policies.values_mut() {
                record.look_again();
            }
            let live: HashSet<u64> = judged.iter().map(|(live, _)| live.cookie).collect();
            sessions.repaired.retain(|cookie, _| live.contains(cookie));
        } else {
            sessions.deadline = sessions.deadline.into_iter().chain(next).min();
            for policy in judged
                .iter()
                .filter_map(|(_, judged)| judged.policy.as_ref())
            {
                if let Some(record) = sessions.policies.get_mut(policy) {
                    let [kept, failed] = record.look_again();
                    sessions.all.kept = sessions.all.kept.saturating_sub(kept);
                    sessions.all.failed = sessions.all.failed.saturating_sub(failed);
                }
            }
        }
        let outcomes = self.carry_out(&judged).await;
        self.record(&judged, &outcomes, SystemTime::now());
        let engine = &self.engine;
        let sessions = &mut self.sessions;
        sessions
            .policies
            .retain(|name, _| engine.state().policy(name.as_str()).is_some());
        sessions.keep();
    }

    /// Does what is to be done with each flow.
    async fn carry_out(&self, judged: &[(&LiveFlow, Judged)]) -> Vec<Outcome> {
        let mask = self.engine.state().config.agent.mark_mask.bits();
        let marks: Vec<(&LiveFlow, u32)> = judged
            .iter()
            .filter_map(|(live, judged)| match judged.verdict {
                Verdict::Move(Means::Mark(mark)) => Some((*live, mark)),
                _ => None,
            })
            .collect();
        let mut marked = self.reconciler.mark(&marks, mask).into_iter();
        let mut outcomes: Vec<Option<Outcome>> = judged
            .iter()
            .map(|(live, judged)| match judged.verdict {
                Verdict::Alone | Verdict::Home | Verdict::Keep | Verdict::Linger { .. } => {
                    Some(Outcome::Kept)
                }
                Verdict::Move(Means::Repair) => Some(Outcome::Moved),
                Verdict::Move(Means::Mark(_)) => match marked.next().flatten() {
                    None => Some(Outcome::Moved),
                    // It is ended instead.
                    Some(words) => {
                        debug!(local = %live.local, peer = %live.peer, "a flow cannot be moved: {words}");
                        None
                    }
                },
                Verdict::Reset => None,
            })
            .collect();
        let open = || {
            outcomes
                .iter()
                .enumerate()
                .filter(|(_, outcome)| outcome.is_none())
        };
        let ending: Vec<usize> = open().map(|(at, _)| at).collect();
        let flows: Vec<&LiveFlow> = ending.iter().map(|at| judged[*at].0).collect();
        let reset = self.reconciler.reset(&flows).await;
        for (at, failed) in ending.into_iter().zip(reset) {
            outcomes[at] = Some(failed.map_or(Outcome::Reset, Outcome::Failed));
        }
        outcomes.into_iter().flatten().collect()
    }

    /// Counts and tells what was done.
    fn record(&mut self, judged: &[(&LiveFlow, Judged)], outcomes: &[Outcome], now: SystemTime) {
        let now = timestamp(now);
        let mut trouble = None;
        let mut told: BTreeMap<Told<'_>, Record> = BTreeMap::new();
        for ((live, judged), outcome) in judged.iter().zip(outcomes) {
            let sessions = &mut self.sessions;
            if judged.verdict == Verdict::Move(Means::Repair) {
                let before = sessions.repaired.insert(live.cookie, judged.to.clone());
                if before.is_some_and(|before| before == judged.to) {
                    continue;
                }
            }
            sessions.all.count(outcome, &now);
            sessions.call.count(outcome, &now);
            if let Some(policy) = &judged.policy {
                match sessions.policies.get_mut(policy) {
                    Some(record) => record.count(outcome, &now),
                    None => {
                        let mut record = Record::default();
                        record.count(outcome, &now);
                        sessions.policies.insert(policy.clone(), record);
                    }
                }
            }
            debug!(
                local = %live.local, peer = %live.peer, verdict = ?judged.verdict, "a live flow"
            );
            if let Outcome::Failed(words) = outcome {
                trouble = Some(words.clone());
            }
            told.entry(Told::of(judged))
                .or_default()
                .count(outcome, &now);
        }
        for (of, record) in told {
            of.tell(&self.engine, &record);
        }
        self.tell_trouble(trouble.map(|words| format!("live flows could not be ended: {words}")));
    }

    /// Tells what went wrong, when that is news.
    fn tell_trouble(&mut self, trouble: Option<String>) {
        if let Some(words) = &trouble
            && self.sessions.told.as_ref() != Some(words)
        {
            warn!("{words}");
        }
        self.sessions.told = trouble;
    }
}

/// Flows that are told of together.
#[derive(PartialEq, Eq, PartialOrd, Ord)]
struct Told<'a> {
    policy: Option<&'a Name>,
    from: Option<&'a Name>,
    to: Option<&'a Name>,
    why: Option<String>,
}

impl<'a> Told<'a> {
    fn of(judged: &'a Judged) -> Self {
        Self {
            policy: judged.policy.as_ref(),
            from: judged.from.as_ref(),
            to: judged.to.as_ref(),
            why: judged.why.map(|why| why.to_string()),
        }
    }

    fn tell(&self, engine: &Engine, record: &Record) {
        if record.moved + record.reset + record.failed == 0 {
            return;
        }
        let name = |name: Option<&'a Name>| name.map_or("none", Name::as_str);
        let Record {
            kept,
            moved,
            reset,
            failed,
            ..
        } = record;
        let policy = self
            .policy
            .and_then(|policy| engine.state().policy(policy.as_str()));
        let why = self.why.as_deref().unwrap_or_default();
        // A plain user cannot fill the log.
        if policy.is_some_and(|policy| policy.owner.is_some()) {
            debug!(
                policy = name(self.policy),
                from = name(self.from),
                to = name(self.to),
                kept,
                moved,
                reset,
                failed,
                "live flows: {why}"
            );
        } else {
            info!(
                policy = name(self.policy),
                from = name(self.from),
                to = name(self.to),
                kept,
                moved,
                reset,
                failed,
                "live flows: {why}"
            );
        }
    }
}

/// A flow as it is judged.
fn flow(live: &LiveFlow) -> Flow {
    Flow {
        protocol: live.transport.number(),
        local: live.local,
        peer: live.peer,
        mark: live.mark,
        cgroup: CgroupId(live.cgroup),
        bound: (live.interface != 0).then_some(IfIndex(live.interface)),
        accepted: live.accepted,
        memory: live.state,
    }
}

/// The clock that losses are counted by: it goes on while the host sleeps, and no agent starts it anew.
fn now() -> Duration {
    clock_gettime(ClockId::CLOCK_BOOTTIME).map_or(Duration::ZERO, Duration::from)
}

/// Removes what is kept.
///
/// # Errors
/// The file system refuses.
pub(super) fn remove() -> Result<(), statefile::Error> {
    file().remove()
}

fn file() -> StateFile {
    StateFile::named(Path::new(RUN_DIRECTORY), "sessions.json")
}

#[cfg(test)]
mod tests {
    use steer_core::cgroups::CgroupChange;
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
            let mut noted = Touched::default();
            noted.note(&changes, plan);
            assert!(!noted.all);
            let expected: BTreeSet<_> = touched.then_some(CgroupId(2)).into_iter().collect();
            assert_eq!(noted.cgroups, expected, "{changes:?}");
        }
    }

    #[test]
    fn a_look_that_failed_is_tried_again_after_a_pause_and_for_all_that_was_touched() {
        let mut sessions = Sessions {
            // It was for this that all were to be looked at.
            deadline: Some(Instant::now()),
            ..Sessions::default()
        };
        sessions.touched.cgroups.insert(CgroupId(2));
        let touched = std::mem::take(&mut sessions.touched);
        sessions.touched.cgroups.insert(CgroupId(3));
        let failed = Instant::now();
        sessions.put_off(touched);
        assert!(sessions.deadline.is_some_and(|deadline| deadline > failed));
        let both = BTreeSet::from([CgroupId(2), CgroupId(3)]);
        assert_eq!(sessions.touched.cgroups, both);
        assert!(!sessions.touched.all);
        sessions.put_off(Touched {
            all: true,
            ..Touched::default()
        });
        assert!(sessions.touched.all);
    }
}
