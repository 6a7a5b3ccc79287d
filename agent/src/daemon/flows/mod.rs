//! Answers `ListFlows`: who asks is gathered, and then all are answered by one look at the sockets.
//!
//! A look has three stages, none of which keeps the loop from its work: the kernel lists the sockets and,
//! at the end, the processes are searched on threads of their own; in between the loop says a few at a
//! time whose they are. While somebody asks, and a minute longer, the kernel programs count for each
//! socket (`datapath::FlowCounts`).

mod place;
mod tell;

use std::collections::{BTreeSet, HashMap, HashSet};
use std::future::pending;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use nix::time::ClockId;
use steer_common::FlowCount;
use steer_core::name::Name;
use tokio::runtime::Handle;
use tokio::task::{JoinError, JoinHandle, spawn_blocking};
use tokio::time::Instant;
use tracing::{debug, warn};

use self::place::Placed;
use self::tell::{Memory, Told, Wish};
use super::Daemon;
use super::access::Authority;
use super::decided::timestamp;
use crate::api::answer::Answer;
use crate::api::error::ApiError;
use crate::api::flows::ListFlows;
use crate::api::methods::Reply;
use crate::api::server::Caller;
use crate::datapath::FlowCounts;
use crate::netlink::{LiveFlow, Wanted, live_flows};
use crate::reconcile::chain;

/// Who watches is told this often.
const PAUSE: Duration = Duration::from_secs(1);

/// Counting ends when nobody has asked for this time.
const LEASE: Duration = Duration::from_secs(60);

/// Programs that could not be made to count are tried again after this time: loading them costs more than a
/// look, and anybody may ask.
const TROUBLE_PAUSE: Duration = Duration::from_secs(60);

/// How long the loop places flows before everything else has its turn.
const TURN: Duration = Duration::from_millis(2);

/// What is asked and not answered yet, and what is known from the last look.
#[derive(Default)]
pub(super) struct Flows {
    asked: Vec<Asked>,
    stage: Stage,
    counting: Option<Counting>,
    not_counted: Option<NotCounted>,
    /// Somebody asked since the last look began.
    fresh: bool,
    /// When the look began that is under way, or the last one.
    began: Option<Instant>,
    /// For whom that is.
    round: Round,
    /// No look begins before: at most half of the time is spent with them, whoever asks.
    rest: Option<Instant>,
    /// When who watches is told next.
    next: Option<Instant>,
    memory: Memory,
    serial: u64,
}

/// For whom a look is, and so what it must find. Whoever asks while it is under way waits for the next one:
/// what was passed by until then may be theirs.
#[derive(Debug, Default)]
struct Round {
    /// Serial of the last call.
    last: u64,
    /// Somebody asks for flows that no policy has, too.
    all: bool,
    /// Only these users ask; none: an administrator does.
    users: Option<BTreeSet<u32>>,
}

/// A call.
struct Asked {
    /// Names the call, which may have gone when its answer is there.
    serial: u64,
    caller: Caller,
    filter: Arc<tell::Filter>,
    answer: Answer,
}

/// Programs that count, and how long they are wanted.
struct Counting {
    counts: Arc<FlowCounts>,
    since: SystemTime,
    until: Instant,
}

/// Why flows are not counted.
struct NotCounted {
    words: String,
    /// When that is tried again.
    until: Instant,
}

/// What counts in a look.
enum Counter {
    /// Programs that do already.
    Counts(Arc<FlowCounts>),
    /// They are loaded first, for the managed cgroup with this directory.
    Begin(PathBuf),
    /// Nothing: that failed just now.
    Nothing,
}

/// What a look at the kernel came to.
struct Looked {
    /// What came of making programs count, if that was tried, and since when they do.
    begun: Option<(SystemTime, Result<Arc<FlowCounts>, String>)>,
    listed: Result<Listed, String>,
}

/// What the kernel told.
struct Listed {
    flows: Vec<LiveFlow>,
    /// By cookie.
    counts: HashMap<u64, FlowCount>,
}

/// How far a look has come.
#[derive(Default)]
enum Stage {
    #[default]
    Idle,
    Listing(JoinHandle<Looked>),
    Placing {
        left: std::vec::IntoIter<LiveFlow>,
        counts: HashMap<u64, FlowCount>,
        placed: Vec<Placed>,
    },
    Telling(JoinHandle<(Vec<Told>, Memory)>),
}

/// What a stage has come to.
pub(super) struct Step(Came);

enum Came {
    Looked(Result<Looked, JoinError>),
    Told(Result<(Vec<Told>, Memory), JoinError>),
}

impl Round {
    fn new<'a>(asked: impl Iterator<Item = (u64, &'a tell::Filter)> + Clone) -> Self {
        Self {
            last: asked.clone().map(|(serial, _)| serial).max().unwrap_or(0),
            all: asked.clone().any(|(_, filter)| filter.all),
            users: asked.map(|(_, filter)| filter.uid).collect(),
        }
    }

    /// Whether it is for a call.
    fn is_for(&self, serial: u64) -> bool {
        serial <= self.last
    }

    /// Whether a user's flow is wanted. A plain user's look is cheap for others.
    fn wants(&self, uid: u32) -> bool {
        self.users.as_ref().is_none_or(|users| users.contains(&uid))
    }
}

impl Flows {
    /// When [`Daemon::go_on_with_flows`] is to be called; none: not until something else happens.
    pub(super) fn due(&self) -> Option<Instant> {
        match &self.stage {
            Stage::Idle if !self.asked.is_empty() => {
                let next = self.next.filter(|_| !self.fresh);
                Some(next.max(self.rest).unwrap_or_else(Instant::now))
            }
            Stage::Idle => self.counting.as_ref().map(|counting| counting.until),
            Stage::Placing { .. } => Some(Instant::now()),
            Stage::Listing(_) | Stage::Telling(_) => None,
        }
    }

    /// Waits for a thread. Cancel-safe.
    pub(super) async fn step(&mut self) -> Step {
        match &mut self.stage {
            Stage::Listing(thread) => Step(Came::Looked(thread.await)),
            Stage::Telling(thread) => Step(Came::Told(thread.await)),
            Stage::Idle | Stage::Placing { .. } => pending().await,
        }
    }

    /// Forgets those who have gone.
    fn forget_gone(&mut self) {
        self.asked.retain(|asked| !asked.answer.is_closed());
    }

    /// Somebody asks: what counts goes on.
    fn renew_lease(&mut self) {
        if let Some(counting) = &mut self.counting {
            counting.until = Instant::now() + LEASE;
        }
    }

    /// What is to count in a look that begins.
    fn counter(&self, root: &Path) -> Counter {
        let failed = self.not_counted.as_ref();
        match &self.counting {
            Some(counting) => Counter::Counts(Arc::clone(&counting.counts)),
            None if failed.is_some_and(|failed| Instant::now() < failed.until) => Counter::Nothing,
            None => Counter::Begin(root.to_owned()),
        }
    }

    /// Takes what came of making programs count.
    fn begun(&mut self, since: SystemTime, begun: Result<Arc<FlowCounts>, String>) {
        let now = Instant::now();
        match begun {
            Ok(counts) => {
                debug!("flows are counted");
                self.not_counted = None;
                self.counting = Some(Counting {
                    counts,
                    since,
                    until: now + LEASE,
                });
            }
            Err(words) => {
                let told = self.not_counted.as_ref();
                if told.is_none_or(|told| told.words != words) {
                    warn!("flows of datagrams are not counted: {words}");
                }
                self.not_counted = Some(NotCounted {
                    words,
                    until: now + TROUBLE_PAUSE,
                });
            }
        }
    }

    /// Ends what failed: those who asked are told.
    fn fail(&mut self, reason: &str) {
        warn!("live flows cannot be told: {reason}");
        self.stage = Stage::Idle;
        for asked in self.asked.drain(..) {
            asked.answer.end(Err(ApiError::Failed {
                reason: reason.to_owned(),
            }));
        }
    }
}

impl Daemon {
    /// Takes a call for the next look.
    pub(super) fn ask_for_flows(
        &mut self,
        caller: &Caller,
        authority: &Authority,
        asked: &ListFlows,
        answer: Answer,
    ) {
        let filter = match self.filter(caller, authority, asked) {
            Ok(filter) => filter,
            Err(error) => return answer.end(Err(error)),
        };
        let flows = &mut self.flows;
        flows.serial += 1;
        flows.fresh = true;
        flows.asked.push(Asked {
            serial: flows.serial,
            caller: caller.clone(),
            filter: Arc::new(filter),
            answer,
        });
        flows.renew_lease();
    }

    /// Begins a look, goes on with one, or ends counting.
    pub(super) fn go_on_with_flows(&mut self) {
        match &self.flows.stage {
            Stage::Idle => self.begin_look(),
            Stage::Placing { .. } => self.place_some(),
            Stage::Listing(_) | Stage::Telling(_) => {}
        }
    }

    fn begin_look(&mut self) {
        let flows = &mut self.flows;
        flows.forget_gone();
        if flows.asked.is_empty() {
            let now = Instant::now();
            if flows.counting.as_ref().is_some_and(|c| c.until <= now) {
                debug!("flows are counted no longer");
                flows.counting = None;
                flows.memory = Memory::default();
            }
            return;
        }
        flows.fresh = false;
        flows.began = Some(Instant::now());
        let asked = flows.asked.iter();
        flows.round = Round::new(asked.map(|asked| (asked.serial, &*asked.filter)));
        flows.renew_lease();
        let counter = flows.counter(self.tree.root());
        let storage = match self.reconciler.flow_storage() {
            Ok(storage) => storage,
            Err(error) => return flows.fail(&chain(&error)),
        };
        let runtime = Handle::current();
        flows.stage = Stage::Listing(spawn_blocking(move || {
            let begun = match &counter {
                Counter::Begin(root) => {
                    let begun = FlowCounts::begin(root);
                    let begun = begun.map(Arc::new).map_err(|error| chain(&error));
                    Some((SystemTime::now(), begun))
                }
                Counter::Counts(_) | Counter::Nothing => None,
            };
            let counts = match (&counter, &begun) {
                (Counter::Counts(counts), _) | (_, Some((_, Ok(counts)))) => Some(&**counts),
                _ => None,
            };
            let listed = list(&runtime, &storage, counts);
            Looked { begun, listed }
        }));
    }

    /// Takes what a thread came to.
    pub(super) fn flows_step(&mut self, Step(came): Step) {
        match came {
            Came::Looked(Ok(Looked { begun, listed })) => {
                if let Some((since, begun)) = begun {
                    self.flows.begun(since, begun);
                }
                match listed {
                    Ok(Listed { flows, counts }) => {
                        self.flows.stage = Stage::Placing {
                            left: flows.into_iter(),
                            counts,
                            placed: Vec::new(),
                        };
                    }
                    Err(words) => self.flows.fail(&words),
                }
            }
            Came::Told(Ok((told, memory))) => self.tell(told, memory),
            Came::Looked(Err(error)) | Came::Told(Err(error)) => {
                self.flows
                    .fail(&format!("a thread of the agent ended: {error}"));
            }
        }
    }

    fn place_some(&mut self) {
        let Stage::Placing {
            mut left,
            counts,
            mut placed,
        } = std::mem::take(&mut self.flows.stage)
        else {
            return;
        };
        self.flows.forget_gone();
        let round = &self.flows.round;
        let began = Instant::now();
        for flow in left.by_ref() {
            let counted = counts.get(&flow.cookie);
            if round.wants(flow.uid)
                && let Some(found) = self.place(flow, counted, round.all)
            {
                placed.push(found);
            }
            if began.elapsed() > TURN {
                break;
            }
        }
        if left.len() > 0 {
            self.flows.stage = Stage::Placing {
                left,
                counts,
                placed,
            };
            return;
        }
        let mut wishes = Vec::new();
        let asked = self.flows.asked.iter();
        for asked in asked.filter(|asked| round.is_for(asked.serial)) {
            let authority = self.authority(&asked.caller);
            let sees = authority.owner().map(|_| {
                let seen = self.seen(&asked.caller, &authority);
                seen.iter().map(|policy| policy.name.clone()).collect()
            });
            wishes.push(Wish {
                serial: asked.serial,
                filter: Arc::clone(&asked.filter),
                sees,
            });
        }
        let search = tell::Search {
            cgroups: self.cgroups_of(&placed),
            uid: round
                .users
                .as_ref()
                .filter(|users| users.len() == 1)
                .and_then(|users| users.first().copied()),
        };
        let flows = &mut self.flows;
        let memory = std::mem::take(&mut flows.memory);
        let counted_since = flows.counting.as_ref().map(|c| timestamp(c.since));
        let not_counted = flows.not_counted.as_ref().map(|why| why.words.clone());
        flows.stage = Stage::Telling(spawn_blocking(move || {
            let (since, not_counted) = (counted_since.as_deref(), not_counted.as_deref());
            tell::tell(&placed, &wishes, &search, since, not_counted, memory)
        }));
    }

    fn tell(&mut self, told: Vec<Told>, memory: Memory) {
        let flows = &mut self.flows;
        flows.stage = Stage::Idle;
        flows.memory = memory;
        let mut told: HashMap<u64, Told> = told.into_iter().map(|t| (t.serial, t)).collect();
        let mut asked = Vec::new();
        for call in flows.asked.drain(..) {
            let Some(told) = told.remove(&call.serial) else {
                // It came meanwhile.
                asked.push(call);
                continue;
            };
            let reply = Reply::Flows(told.reply);
            if !call.answer.wants_parts() {
                call.answer.end(Ok(reply));
                continue;
            }
            // Who has not read what it was told before is told how it is then.
            if call.answer.has_parts_waiting() || call.answer.part(reply).is_ok() {
                asked.push(call);
            }
        }
        flows.asked = asked;
        let now = Instant::now();
        flows.next = Some(now + PAUSE);
        flows.rest = flows.began.map(|began| now + (now - began).min(PAUSE));
    }

    /// Policies of which the caller is told.
    fn filter(
        &self,
        caller: &Caller,
        authority: &Authority,
        asked: &ListFlows,
    ) -> Result<tell::Filter, ApiError> {
        let policy = match &asked.policy {
            None => None,
            Some(name) => {
                let policy = self.find_policy(name);
                let policy = policy.filter(|policy| self.sees(caller, authority, policy));
                let found = policy.ok_or_else(|| self.no_policy(authority, name.clone()))?;
                Some(found.name.clone())
            }
        };
        let domain: Option<Name> = match &asked.domain {
            None => None,
            Some(name) => Some(self.find_domain(name)?.name.clone()),
        };
        let filter = tell::Filter::new(asked, policy, domain, authority.owner())?;
        if let Some(pid) = filter.pid {
            let process = crate::cgroup::process::open(pid).map_err(|_| ApiError::Failed {
                reason: format!("there is no process {pid}"),
            })?;
            authority.process(pid, &process)?;
        }
        Ok(filter)
    }
}

/// Lists the sockets, with what was counted of each.
fn list(
    runtime: &Handle,
    storage: &impl AsFd,
    counts: Option<&FlowCounts>,
) -> Result<Listed, String> {
    let wanted = Wanted {
        storage: Some(storage.as_fd()),
        unconnected: true,
        carried: true,
        ..Wanted::default()
    };
    // First, so that what is counted and not listed then is no longer there.
    let counted = counts.map_or(Ok(Vec::new()), FlowCounts::read);
    let counted = counted.map_err(|error| chain(&error))?;
    let flows = runtime.block_on(live_flows(wanted));
    let flows = flows.map_err(|error| chain(&error))?;
    let live: HashSet<u64> = flows.iter().map(|flow| flow.cookie).collect();
    for (cookie, _) in counted.iter().filter(|(cookie, _)| !live.contains(cookie)) {
        if let Some(Err(error)) = counts.map(|counts| counts.forget(*cookie)) {
            return Err(chain(&error));
        }
    }
    let counts = counted.into_iter().collect();
    Ok(Listed { flows, counts })
}

/// Seconds of the clock that the kernel programs go by.
fn monotonic() -> u64 {
    let now = ClockId::CLOCK_MONOTONIC.now().map(|now| now.tv_sec());
    now.ok()
        .and_then(|now| u64::try_from(now).ok())
        .unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn filter(uid: Option<u32>, all: bool) -> tell::Filter {
        let asked = ListFlows {
            all: Some(all),
            ..ListFlows::default()
        };
        tell::Filter::new(&asked, None, None, uid).unwrap()
    }

    #[test]
    fn programs_that_could_not_be_loaded_are_not_loaded_again_by_the_next_call() {
        let mut flows = Flows::default();
        let counter = |flows: &Flows| flows.counter(Path::new("/there/is/none"));
        let Counter::Begin(root) = counter(&flows) else {
            panic!("nothing is tried");
        };
        let begun = FlowCounts::begin(&root).map(Arc::new);
        flows.begun(SystemTime::now(), begun.map_err(|error| chain(&error)));
        assert!(flows.not_counted.is_some() && flows.counting.is_none());
        assert!(matches!(counter(&flows), Counter::Nothing));
        if let Some(failed) = &mut flows.not_counted {
            failed.until = Instant::now();
        }
        assert!(matches!(counter(&flows), Counter::Begin(_)));
    }

    #[test]
    fn a_look_is_for_those_who_had_asked_when_it_began() {
        let (user, other, admin) = (
            filter(Some(1000), false),
            filter(Some(1001), false),
            filter(None, true),
        );
        let round = |asked: &[(u64, &tell::Filter)]| Round::new(asked.iter().copied());
        // One who watches has an old serial.
        let look = round(&[(7, &user), (3, &other)]);
        assert!(look.is_for(3) && look.is_for(7));
        assert!(!look.is_for(8), "it found nothing for this one");
        assert!(look.wants(1000) && look.wants(1001) && !look.wants(0));
        assert!(!look.all);
        let next = round(&[(7, &user), (8, &admin)]);
        assert!(next.is_for(8) && next.wants(0) && next.all);
    }
}
