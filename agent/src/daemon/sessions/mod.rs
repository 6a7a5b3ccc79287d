//! Live flows: when they are looked at, what is done with each, and what is told of it.
//!
//! What becomes of a flow is for `steer-core` to say ([`steer_core::sessions`]). Here it is done: for the
//! cgroups that a change touched as soon as the change is in force, and for all with every check of
//! everything, since a dead agent may have missed something.
//!
//! There may be very many, so a look keeps nothing else waiting. A thread lists them, the loop judges so many
//! a turn by what holds then, a thread moves and ends those that are to be, and so on until none is left.
//! What a look found is taken over when it is over. Calls that tell of flows are answered then; what they
//! asked for has been in force since before.

mod act;
mod count;
mod look;
mod told;
mod wanted;

use std::collections::{BTreeMap, HashMap};
use std::future::pending;
use std::path::Path;
use std::time::{Duration, SystemTime};

use serde::{Deserialize, Serialize};
use steer_core::engine::Changes;
use steer_core::ids::{CgroupId, IfIndex};
use steer_core::name::Name;
use steer_core::plan::Plan;
use steer_core::sessions::{Flow, Judged, Losses, Means, Verdict};
use tokio::runtime::Handle;
use tokio::task::{JoinError, JoinHandle, spawn_blocking};
use tokio::time::Instant;
use tracing::{debug, warn};

use self::count::{Outcome, Record, Standing, Stay};
use self::look::{Candidate, Doing, Look};
use self::wanted::{Moved, Of, Touched, Waiting, Wanted};
use super::decided::timestamp;
use super::{Daemon, clock};
use crate::api::answer::Answer;
use crate::api::methods::Reply;
use crate::api::types::SessionsView;
use crate::heap;
use crate::netlink::LiveFlow;
use crate::reconcile::chain;
use crate::statefile::{self, RUN_DIRECTORY, StateFile};

/// A little more than the time that was set, so that it has passed by any clock.
const GRACE: Duration = Duration::from_millis(10);

/// Flows that could not be listed are looked at again after this time.
const TROUBLE_PAUSE: Duration = Duration::from_secs(1);

/// What is known of live flows, and the look that is under way.
#[derive(Default)]
pub(super) struct Sessions {
    losses: Losses,
    /// What the next look is for.
    next: Wanted,
    stage: Stage,
    /// A look failed, and none begins by itself before the deadline.
    rests: bool,
    /// Of the call that is carried out now, if it tells what it did to flows.
    call: Option<Call>,
    /// When the next flow is to end that is kept on a lost domain, or a look that failed is tried again.
    pub(super) deadline: Option<Instant>,
    all: Record,
    policies: BTreeMap<Name, Record>,
    standing: Standing,
    /// Flows that the packet programs repair, by cookie, and for which domain: each was moved once.
    repaired: HashMap<u64, Repaired>,
    /// Looks at all flows that began.
    looks: u64,
    /// What was written last.
    kept: Kept,
    /// What went wrong, as it was told.
    told: Option<String>,
}

/// What a call has done until now.
#[derive(Debug, Default)]
struct Call {
    touched: Touched,
    /// A process came into this cgroup.
    moved: Option<CgroupId>,
}

/// A flow that the packet programs repair.
#[derive(Debug)]
struct Repaired {
    to: Option<Name>,
    /// The look at all flows that found it last.
    look: u64,
}

/// How far a look is.
#[derive(Default)]
enum Stage {
    #[default]
    Idle,
    Listing(Look, JoinHandle<Result<Vec<Candidate>, String>>),
    Judging(Look),
    Acting(Look, JoinHandle<Vec<(Doing, Outcome)>>),
}

/// What a thread came to.
pub(super) struct Step(Came);

enum Came {
    Listed(Result<Result<Vec<Candidate>, String>, JoinError>),
    Done(Result<Vec<(Doing, Outcome)>, JoinError>),
}

/// What outlives the agent.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
struct Kept {
    losses: Losses,
    all: Record,
    policies: BTreeMap<Name, Record>,
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
        let touched = Touched::of(changes, plan);
        if let Some(call) = &mut self.call {
            call.touched.add(touched.clone());
        }
        self.next.touched.add(touched);
    }

    /// All are to be looked at.
    pub(super) fn note_all(&mut self) {
        self.next.touched.all = true;
    }

    /// The deadline has come.
    pub(super) fn wake(&mut self) {
        (self.deadline, self.rests) = (None, false);
        self.note_all();
    }

    /// The flows are to be looked at that a process has when it comes into a cgroup: its sockets belong to
    /// the cgroup that made them, but their flows are the process's.
    pub(super) fn note_moved(&mut self, pid: i32, cgroup: CgroupId) {
        if let Some(call) = &mut self.call {
            call.moved = Some(cgroup);
        }
        self.next.moved.push(Moved { pid, cgroup });
    }

    /// What was touched could not be looked at: that is tried again after a pause.
    fn put_off(&mut self, touched: Touched) {
        self.next.touched.add(touched);
        self.rests = true;
        self.deadline = Some(Instant::now() + TROUBLE_PAUSE);
    }

    /// A policy is made anew: what became of flows because of an older one is not told of it.
    pub(super) fn forget(&mut self, policy: &Name) {
        self.policies.remove(policy);
        match &mut self.stage {
            Stage::Idle => {}
            Stage::Listing(look, _) | Stage::Judging(look) | Stage::Acting(look, _) => {
                look.forget(policy);
            }
        }
    }

    /// A call begins that tells what it did to flows.
    pub(super) fn begin_call(&mut self) {
        self.call = Some(Call::default());
    }

    /// It failed.
    pub(super) fn end_call(&mut self) {
        self.call = None;
    }

    /// Answers the call when the flows were looked at that it touched, with what became of them.
    pub(super) fn answer(&mut self, reply: Reply, answer: Answer) {
        let call = self.call.take().unwrap_or_default();
        let of = match (&reply, call.moved) {
            (Reply::Unset(_), _) => Of::Touched(call.touched),
            (_, Some(cgroup)) => Of::Moved(cgroup),
            _ => Of::Nobody,
        };
        self.wait(Waiting::new(reply, answer, of));
    }

    /// The same, for a call by which a process came into a cgroup.
    pub(super) fn answer_moved(
        &mut self,
        reply: Reply,
        answer: Answer,
        (pid, cgroup): (i32, CgroupId),
    ) {
        self.next.moved.push(Moved { pid, cgroup });
        self.wait(Waiting::new(reply, answer, Of::Moved(cgroup)));
    }

    fn wait(&mut self, waiting: Waiting) {
        if self.next.is_empty() {
            return waiting.answer(|policy| self.known(policy));
        }
        self.rests = false;
        self.next.waiting.push(waiting);
    }

    /// What became of a policy's flows.
    pub(super) fn of(&self, policy: &Name) -> SessionsView {
        let (record, stay) = self.known(policy);
        record.view(stay)
    }

    fn known(&self, policy: &Name) -> (Record, Stay) {
        let record = self.policies.get(policy).cloned().unwrap_or_default();
        (record, self.standing.of(policy))
    }

    /// What became of all flows since the host was started.
    pub(super) fn all(&self) -> SessionsView {
        self.all.view(self.standing.all())
    }

    /// Why flows could not be looked at or ended, if so.
    pub(super) fn trouble(&self) -> Option<&str> {
        self.told.as_deref()
    }

    /// Whether there is something to do now ([`Daemon::go_on_with_sessions`]).
    pub(super) fn has_work(&self) -> bool {
        match self.stage {
            Stage::Idle => !self.rests && !self.next.is_empty(),
            Stage::Judging(_) => true,
            Stage::Listing(..) | Stage::Acting(..) => false,
        }
    }

    /// Waits for a thread. Cancel-safe.
    pub(super) async fn step(&mut self) -> Step {
        Step(match &mut self.stage {
            Stage::Listing(_, thread) => Came::Listed(thread.await),
            Stage::Acting(_, thread) => Came::Done(thread.await),
            Stage::Idle | Stage::Judging(_) => pending().await,
        })
    }

    /// Whether a flow is repaired for a domain since before, as far as is known.
    fn repairs(&mut self, cookie: u64, judged: &Judged) -> bool {
        let look = self.looks;
        let known = self.repaired.get_mut(&cookie);
        let before = known.map(|repaired| {
            repaired.look = look;
            repaired.to.clone()
        });
        if judged.verdict != Verdict::Move(Means::Repair) {
            return false;
        }
        let to = judged.to.clone();
        let same = before.is_some_and(|before| before == to);
        self.repaired.insert(cookie, Repaired { to, look });
        same
    }

    /// Takes over what a look found.
    fn take_over(&mut self, look: &mut Look) {
        let left = |until: Duration| until.saturating_sub(now()) + GRACE;
        let ends = look.ends.map(|until| Instant::now() + left(until));
        let found = std::mem::take(&mut look.standing);
        if look.wanted.touched.all {
            self.losses.forget_others();
            self.deadline = ends;
            self.standing = found;
            let looks = self.looks;
            self.repaired.retain(|_, repaired| repaired.look == looks);
        } else {
            self.deadline = self.deadline.into_iter().chain(ends).min();
            let looked_at = look.wanted.touched.cgroups.iter().copied();
            self.standing.replace(looked_at, found);
        }
    }

    /// Takes over what was done, and answers those who wait for it.
    fn tell(&mut self, look: &mut Look) {
        self.all.add(std::mem::take(&mut look.all));
        for (policy, done) in std::mem::take(&mut look.done) {
            self.policies.entry(policy).or_default().add(done);
        }
        for waiting in std::mem::take(&mut look.wanted.waiting) {
            waiting.answer(|policy| self.known(policy));
        }
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
    /// Begins a look at live flows, or judges some.
    pub(super) fn go_on_with_sessions(&mut self) {
        match std::mem::take(&mut self.sessions.stage) {
            Stage::Idle => self.begin_to_see(),
            Stage::Judging(look) => self.judge_some(look),
            busy @ (Stage::Listing(..) | Stage::Acting(..)) => self.sessions.stage = busy,
        }
    }

    fn begin_to_see(&mut self) {
        let sessions = &mut self.sessions;
        let mut wanted = std::mem::take(&mut sessions.next);
        wanted.touched.all |= wanted.touched.cgroups.len() > act::FEW;
        sessions.looks += u64::from(wanted.touched.all);
        let (touched, moved) = (wanted.touched.clone(), wanted.moved.clone());
        let look = Look::new(wanted);
        let means = match self.reconciler.flow_means() {
            Ok(means) => means,
            Err(error) => return self.fail_to_see(look, chain(&error)),
        };
        let runtime = Handle::current();
        let thread = spawn_blocking(move || {
            runtime
                .block_on(act::list(&means, &touched, &moved))
                .map_err(|error| chain(&error))
        });
        self.sessions.stage = Stage::Listing(look, thread);
    }

    fn judge_some(&mut self, mut look: Look) {
        let (engine, sessions) = (&self.engine, &mut self.sessions);
        let (now, then) = (now(), timestamp(SystemTime::now()));
        let judge = |candidate: &Candidate| {
            let judged = engine.judge(&candidate.flow(), &mut sessions.losses, now);
            if matches!(judged.verdict, Verdict::Alone | Verdict::Home) {
                return None;
            }
            let live = &candidate.live;
            debug!(local = %live.local, peer = %live.peer, verdict = ?judged.verdict, "a live flow");
            if sessions.repairs(live.cookie, &judged) {
                return None;
            }
            let outcome = act::outcome(judged.verdict);
            Some((judged, outcome))
        };
        if look.turn(judge, &then) {
            self.sessions.stage = Stage::Judging(look);
            return;
        }
        let doing = look.take_doing();
        if doing.is_empty() {
            return self.end_look(look);
        }
        let mask = self.engine.state().config.agent.mark_mask.bits();
        let runtime = Handle::current();
        let thread = spawn_blocking(move || runtime.block_on(act::carry_out(doing, mask)));
        self.sessions.stage = Stage::Acting(look, thread);
    }

    /// Takes what a thread came to.
    pub(super) fn sessions_step(&mut self, Step(came): Step) {
        match (came, std::mem::take(&mut self.sessions.stage)) {
            (Came::Listed(Ok(Ok(listed))), Stage::Listing(mut look, _)) => {
                look.begin(listed);
                self.sessions.stage = Stage::Judging(look);
            }
            (Came::Listed(Ok(Err(words))), Stage::Listing(look, _)) => {
                self.fail_to_see(look, words);
            }
            (Came::Done(Ok(done)), Stage::Acting(mut look, _)) => {
                look.did(done, &timestamp(SystemTime::now()));
                self.sessions.stage = Stage::Judging(look);
            }
            (
                Came::Listed(Err(error)) | Came::Done(Err(error)),
                Stage::Listing(look, _) | Stage::Acting(look, _),
            ) => self.fail_to_see(look, format!("a thread of the agent ended: {error}")),
            (_, stage) => self.sessions.stage = stage,
        }
    }

    /// A look came to nothing: what it was for is tried again. Nobody waits for that.
    fn fail_to_see(&mut self, mut look: Look, words: String) {
        let touched = std::mem::take(&mut look.wanted.touched);
        self.sessions.put_off(touched);
        self.sessions.tell(&mut look);
        self.sessions.keep();
        self.tell_trouble(Some(words));
    }

    /// Every flow was judged, and what was to be done is done.
    fn end_look(&mut self, mut look: Look) {
        self.sessions.take_over(&mut look);
        self.sessions.tell(&mut look);
        let (engine, sessions) = (&self.engine, &mut self.sessions);
        sessions
            .policies
            .retain(|name, _| engine.state().policy(name.as_str()).is_some());
        sessions.keep();
        for (of, sum) in &look.told {
            of.tell(engine, sum);
        }
        self.tell_trouble(look.trouble.take());
        if look.wanted.touched.all {
            drop(look);
            heap::release();
        }
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
    clock::since_boot()
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
    use super::*;

    #[test]
    fn a_look_that_failed_is_tried_again_after_a_pause_and_for_all_that_was_touched() {
        let mut sessions = Sessions {
            // It was for this that all were to be looked at.
            deadline: Some(Instant::now()),
            ..Sessions::default()
        };
        sessions.next.touched.cgroups.insert(CgroupId(2));
        assert!(sessions.has_work());
        let touched = std::mem::take(&mut sessions.next.touched);
        sessions.next.touched.cgroups.insert(CgroupId(3));
        let failed = Instant::now();
        sessions.put_off(touched);
        assert!(sessions.deadline.is_some_and(|deadline| deadline > failed));
        let both = [CgroupId(2), CgroupId(3)].into();
        assert_eq!(sessions.next.touched.cgroups, both);
        assert!(!sessions.next.touched.all && !sessions.has_work());
        sessions.put_off(Touched {
            all: true,
            ..Touched::default()
        });
        assert!(sessions.next.touched.all && !sessions.has_work());
        sessions.wake();
        assert!(sessions.deadline.is_none() && sessions.has_work());
    }
}
