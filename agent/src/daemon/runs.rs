//! Places: what `steer run`, `steer move` and a plain user's `steer policy set --pid` make, a cgroup and a
//! policy each, for as long as a process is in it.

use std::collections::BTreeMap;
use std::future::poll_fn;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use steer_core::cgroups::{CgroupChange, name_of};
use steer_core::engine::{Engine, Rejected};
use steer_core::ids::CgroupId;
use steer_core::name::Name;
use steer_core::policy::{Match, Origin, Policy};
use steer_core::state::Event;
use tokio::time::Instant;
use tracing::{debug, info, warn};

use super::access::Authority;
use super::ask::Question;
use super::calls::{names, refused};
use super::views::candidates;
use super::{Daemon, Look};
use crate::api::answer::Answer;
use crate::api::error::ApiError;
use crate::api::methods::{Move, Reply, Run, RunReply};
use crate::api::server::Caller;
use crate::cgroup::{self, EmptyWatch, Handle, Place, Placement, Tree, populated, process};
use crate::reconcile::chain;

/// How the names of policies begin that `run` and `move` make.
const RUN_PREFIX: &str = "run-";

/// Names that are tried for a place before it is given up: somebody may have taken them on purpose.
const TRIES: usize = 64;

/// Whether a policy is that of a command.
pub(super) fn is_run(name: &Name) -> bool {
    name.as_str().starts_with(RUN_PREFIX)
}

/// The places that exist, and the calls that wait for a domain.
pub(super) struct Runs {
    placement: Box<dyn Placement>,
    watch: EmptyWatch,
    pub(super) waiting: BTreeMap<Name, Waiting>,
    serial: u32,
}

/// A process that is to be moved to a place.
#[derive(Clone)]
struct Process {
    pid: i32,
    process: Arc<OwnedFd>,
    /// Where it was when it was decided that it may be moved.
    from: PathBuf,
}

pub(super) struct Waiting {
    place: Place,
    path: String,
    process: Process,
    pub(super) authority: Authority,
    /// When to give up; `None`: never.
    pub(super) deadline: Option<Instant>,
    /// Which domain it is to be, as long as nobody has said.
    pub(super) question: Option<Question>,
    /// Why it waits, as the caller was told last.
    told: Option<RunReply>,
    /// What goes there, for the log.
    what: String,
    /// It ran before, and its flows are looked at. What a new command was given, such as the connection
    /// that its shell came by, is its giver's.
    ran: bool,
    answer: Answer,
}

impl Runs {
    pub(super) fn new(placement: Box<dyn Placement>, watch: EmptyWatch) -> Self {
        Self {
            placement,
            watch,
            waiting: BTreeMap::new(),
            serial: 0,
        }
    }

    /// Waits for places whose last process has gone, or until nobody waits for the answer to a call any
    /// more. Cancel-safe.
    pub(super) async fn ended(&mut self) -> Result<Vec<PathBuf>, cgroup::Error> {
        let Self { watch, waiting, .. } = self;
        let abandoned = poll_fn(|context| {
            let mut answers = waiting.values_mut().map(|waiting| &mut waiting.answer);
            if answers.any(|answer| answer.poll_closed(context).is_ready()) {
                Poll::Ready(())
            } else {
                Poll::Pending
            }
        });
        tokio::select! {
            emptied = watch.emptied() => emptied,
            () = abandoned => Ok(Vec::new()),
        }
    }

    /// When the next waiting call gives up.
    pub(super) fn next_deadline(&self) -> Option<Instant> {
        self.waiting.values().filter_map(|w| w.deadline).min()
    }

    /// The policies of the calls that wait.
    pub(super) fn waiting(&self) -> Vec<Name> {
        self.waiting.keys().cloned().collect()
    }

    /// Makes a place for a process, with a policy's name that nothing bears.
    fn make(
        &mut self,
        inside: &Handle,
        pid: i32,
        borne: impl Fn(&Name) -> bool,
    ) -> Result<(Name, Place), ApiError> {
        let mut tried = 0;
        loop {
            self.serial = self.serial.wrapping_add(1);
            let label = format!("{RUN_PREFIX}{pid}-{}", self.serial);
            let name = Name::new(&label).map_err(|e| failed(&e))?;
            if borne(&name) {
                // Policies have an end, and so has this.
                continue;
            }
            match self.placement.make(inside, &label) {
                // Left by an earlier agent.
                Err(cgroup::Error::Make(_, e))
                    if e.kind() == io::ErrorKind::AlreadyExists && tried < TRIES =>
                {
                    tried += 1;
                }
                Err(error) => return Err(failed(&error)),
                Ok(place) => return Ok((name, place)),
            }
        }
    }

    /// Moves a process in, if it still is what it was when that was allowed.
    fn enter(
        &mut self,
        tree: &Tree,
        place: &Place,
        process: &Process,
        authority: &Authority,
    ) -> Result<(), ApiError> {
        authority.process(process.pid, &process.process)?;
        let now = tree.of_process(process.pid).map_err(|e| failed(&e))?;
        if now != process.from {
            return Err(ApiError::Failed {
                reason: format!(
                    "process {} was moved to another cgroup meanwhile: try again",
                    process.pid
                ),
            });
        }
        self.placement
            .enter(place, process.pid, &process.process)
            .map_err(|e| failed(&e))
    }
}

fn domain(engine: &Engine, policy: &Name) -> Option<Name> {
    engine.decision(policy.as_str())?.domain().cloned()
}

/// A place that has its policy, and the process that is to be in it.
pub(super) struct Made {
    name: Name,
    place: Place,
    process: Process,
    authority: Authority,
    question: Option<Question>,
}

impl Made {
    /// The process.
    pub(super) fn pid(&self) -> i32 {
        self.process.pid
    }

    /// The place's cgroup.
    pub(super) fn cgroup(&self) -> CgroupId {
        self.place.id
    }
}

/// A process by its number, held by its descriptor.
fn open_process(pid: u32) -> Result<(i32, Arc<OwnedFd>), ApiError> {
    let wrong = |reason: String| ApiError::InvalidArgument {
        field: "pid".to_owned(),
        reason,
    };
    let none =
        || wrong(cgroup::Error::NoProcess(i32::try_from(pid).unwrap_or(i32::MAX)).to_string());
    let number = i32::try_from(pid).map_err(|_| none())?;
    match process::open(number) {
        Ok(process) => Ok((number, Arc::new(process))),
        Err(e) if e.raw_os_error() == Some(libc::ESRCH) => Err(none()),
        Err(e) => Err(wrong(format!("process {pid} could not be opened: {e}"))),
    }
}

/// Logs what is steered; a plain user's not by default, so that it cannot fill the log.
fn tell_run(waiting: &Waiting, name: &Name, domain: &Name) {
    let what = &waiting.what;
    match waiting.authority.owner() {
        None => info!(policy = %name, what, %domain, "steered"),
        Some(uid) => debug!(policy = %name, uid, what, %domain, "steered"),
    }
}

fn failed(error: &dyn std::error::Error) -> ApiError {
    ApiError::Failed {
        reason: chain(error),
    }
}

/// What is wanted for the process in a place.
pub(super) struct Wanted {
    pub(super) use_: Vec<Name>,
    pub(super) strict: bool,
    pub(super) question: Option<Question>,
}

impl Wanted {
    pub(super) fn new(via: &[String], strict: Option<bool>) -> Result<Self, ApiError> {
        Ok(Self {
            use_: names("via", via)?,
            strict: strict.unwrap_or(false),
            question: None,
        })
    }

    /// Nothing until it is known which domain. `at_once`: and nothing if that does not fit.
    fn asking(via: &[String], strict: Option<bool>, at_once: bool) -> Result<Self, ApiError> {
        let strict = strict.unwrap_or(false);
        let via = if via.is_empty() {
            Vec::new()
        } else {
            names("via", via)?
        };
        Ok(Self {
            use_: Vec::new(),
            strict,
            question: Some(Question {
                via,
                strict,
                at_once,
            }),
        })
    }
}

impl Daemon {
    /// Makes a place and a policy, and lets the caller in as soon as a domain fits.
    pub(super) async fn run(&mut self, caller: &Caller, run: Run, answer: Answer) {
        let asks = run.ask.unwrap_or(false);
        let waits = run.wait_ms.unwrap_or(0);
        let deadline = match waits {
            1.. => Some(Instant::now() + Duration::from_millis(waits.unsigned_abs())),
            // Who asks has the time that an answer takes.
            0 if !asks => Some(Instant::now()),
            _ => None,
        };
        let authority = self.authority(caller);
        let process = (caller.pid, Arc::clone(&caller.pidfd));
        let wanted = if asks {
            Wanted::asking(&run.via, run.strict, waits == 0)
        } else {
            Wanted::new(&run.via, run.strict)
        };
        // Not its arguments: they may hold what no log should.
        let command = run.command.split(' ').next().unwrap_or_default();
        let command = command.escape_debug().to_string();
        let made = wanted.and_then(|wanted| self.make_place(authority, process, wanted));
        self.wait_for_domain(made, deadline, answer, command, false)
            .await;
    }

    /// Moves a process to a place of its own, with a policy, if a domain fits now.
    pub(super) async fn move_process(&mut self, caller: &Caller, moved: Move, answer: Answer) {
        let authority = self.authority(caller);
        let wanted = Wanted::new(&moved.via, moved.strict);
        let process = open_process(moved.pid);
        let made = wanted.and_then(|wanted| {
            let process = process?;
            authority.process(process.0, &process.1)?;
            self.make_place(authority, process, wanted)
        });
        let what = format!("process {}", moved.pid);
        self.wait_for_domain(made, Some(Instant::now()), answer, what, true)
            .await;
    }

    /// Waits with a place until its policy has a domain. `what` goes there, for the log; `ran`: and did
    /// something before.
    async fn wait_for_domain(
        &mut self,
        made: Result<Made, ApiError>,
        deadline: Option<Instant>,
        answer: Answer,
        what: String,
        ran: bool,
    ) {
        let made = match made {
            Ok(made) => made,
            Err(error) => {
                answer.end(Err(error));
                return;
            }
        };
        let waiting = Waiting {
            path: self
                .tree
                .name_of(made.place.directory())
                .unwrap_or_default(),
            place: made.place,
            process: made.process,
            authority: made.authority,
            deadline,
            question: made.question,
            told: None,
            what,
            ran,
            answer,
        };
        let name = made.name;
        self.runs.waiting.insert(name.clone(), waiting);
        if let Err(error) = self.converge(Look::Nothing).await {
            self.fail_run(&name, failed(&error));
        }
        self.expire_runs();
    }

    fn make_place(
        &mut self,
        authority: Authority,
        (pid, process): (i32, Arc<OwnedFd>),
        wanted: Wanted,
    ) -> Result<Made, ApiError> {
        self.permit(&authority, &wanted.use_, wanted.strict, None)?;
        self.may_have_more(&authority)?;
        if let Some(question) = &wanted.question {
            self.check_question(&authority, question)?;
        }
        let from = self.home(&authority, pid, &process)?;
        let home = self.home_of(&authority, from.clone())?;
        let (name, place) = self.make_at(&home, pid)?;
        let policy = Policy {
            owner: authority.owner(),
            ..Policy::new(
                name.clone(),
                Origin::User,
                vec![Match::CgroupId(place.id)],
                wanted.use_,
                wanted.strict,
            )
        };
        let process = Process {
            pid,
            process,
            from: from.path().to_owned(),
        };
        let made = Made {
            name,
            place,
            process,
            authority,
            question: wanted.question,
        };
        match self.furnish(&made, policy) {
            Ok(()) => Ok(made),
            Err(error) => {
                self.remove_place(made.place.directory());
                Err(error)
            }
        }
    }

    /// Makes a place, with a name for its policy.
    fn make_at(&mut self, inside: &Handle, pid: i32) -> Result<(Name, Place), ApiError> {
        let engine = &self.engine;
        let borne = |name: &Name| {
            let config = &engine.state().config;
            engine.state().policy(name.as_str()).is_some() || config.defines(name.as_str())
        };
        self.runs.make(inside, pid, borne)
    }

    /// The cgroup of a process that is to be steered.
    fn home(&self, authority: &Authority, pid: i32, process: &OwnedFd) -> Result<Handle, ApiError> {
        let directory = self.tree.of_process(pid).map_err(|e| failed(&e))?;
        // Asked after reading: where another process is that has its number now, nothing is made.
        authority.process(pid, process)?;
        if process::has_ended(process) {
            return Err(failed(&cgroup::Error::NoProcess(pid)));
        }
        if !directory.starts_with(self.tree.root()) {
            // Limits of where it is now would no longer hold for it.
            authority.administrator(&format!(
                "steer process {pid}, which is in the cgroup {} outside of the managed {}",
                directory.display(),
                self.tree.root().display()
            ))?;
        }
        Handle::at(&self.tree, &directory).map_err(|e| failed(&e))
    }

    /// The cgroup in which a process gets its place: the one that it is in, but beside a place that the
    /// caller has made for it, not below, or each command that starts another would lead deeper.
    fn home_of(&self, authority: &Authority, mut inside: Handle) -> Result<Handle, ApiError> {
        while let Some(outer) = self.runs.placement.made_in(&inside) {
            let id = inside.id().map_err(|e| failed(&e))?;
            // What is in force there must be what the caller may undo: with it, nothing of a higher rank
            // is left behind.
            let effective = self.engine.effective(id);
            let in_force = effective
                .as_ref()
                .and_then(|effective| effective.chain.first());
            let policies = &self.engine.state().api_policies;
            let own = in_force
                .and_then(|name| policies.get(name))
                .filter(|policy| policy.matches == [Match::CgroupId(id)]);
            if !own.is_some_and(|policy| authority.owns(policy)) {
                break;
            }
            inside = Handle::at(&self.tree, &outer).map_err(|e| failed(&e))?;
        }
        Ok(inside)
    }

    /// Gives a place its policy.
    fn furnish(&mut self, made: &Made, policy: Policy) -> Result<(), ApiError> {
        // The kernel's own notice of the new cgroups comes later than the policy that needs them.
        if let Err(error) = self.learn(made.place.directory()) {
            warn!("{}", chain(&error));
        }
        self.event(Event::SetPolicy(policy)).map_err(|rejected| match rejected {
            // What the command was to be under has a name that nobody gave it.
            Rejected::ShutOut { by, path, .. } => ApiError::Failed {
                reason: format!(
                    "the strict policy `{by}` holds for the cgroup {path}, and no command can override it"
                ),
            },
            rejected => refused(&rejected),
        })
    }

    /// Gives a process of a plain user a place, with the policy that it asks for by `--pid` and is
    /// permitted. One that is in the place of that policy already stays there.
    pub(super) fn place_for(
        &mut self,
        authority: Authority,
        pid: u32,
        mut policy: Policy,
    ) -> Result<Option<Made>, ApiError> {
        let process = open_process(pid)?;
        let from = self.home(&authority, process.0, &process.1)?;
        let id = from.id().map_err(|e| failed(&e))?;
        let old = self.engine.state().api_policies.get(&policy.name);
        if old.is_some_and(|old| old.matches == [Match::CgroupId(id)]) {
            policy.matches = vec![Match::CgroupId(id)];
            self.event(Event::SetPolicy(policy))
                .map_err(|e| refused(&e))?;
            return Ok(None);
        }
        let home = self.home_of(&authority, from.clone())?;
        let (_, place) = self.make_at(&home, process.0)?;
        policy.matches = vec![Match::CgroupId(place.id)];
        let made = Made {
            name: policy.name.clone(),
            process: Process {
                pid: process.0,
                process: process.1,
                from: from.path().to_owned(),
            },
            place,
            authority,
            question: None,
        };
        if let Err(error) = self.furnish(&made, policy) {
            self.remove_place(made.place.directory());
            return Err(error);
        }
        Ok(Some(made))
    }

    /// Moves the process in, once its policy is in force; or takes the place away again.
    pub(super) fn settle_in(&mut self, made: &Made, in_force: bool) -> Result<(), ApiError> {
        let directory = made.place.directory();
        let moved = if in_force {
            self.runs
                .enter(&self.tree, &made.place, &made.process, &made.authority)
        } else {
            Ok(())
        };
        self.watch_run(directory);
        moved
    }

    /// Lets a waiting call go if its policy now has a domain, else tells it why it waits.
    pub(super) fn answer_run(&mut self, name: &Name) {
        let Some(domain) = domain(&self.engine, name) else {
            return self.tell_waiting(name);
        };
        if let Some(by) = self.outdone_by(name) {
            let reason = format!("the policy `{by}` holds for the new cgroup by now");
            return self.fail_run(name, ApiError::Failed { reason });
        }
        let Some(waiting) = self.runs.waiting.remove(name) else {
            return;
        };
        let entered = self.runs.enter(
            &self.tree,
            &waiting.place,
            &waiting.process,
            &waiting.authority,
        );
        let reply = entered.map(|()| {
            tell_run(&waiting, name, &domain);
            Reply::Run(RunReply {
                cgroup: Some(waiting.path.clone()),
                policy: name.to_string(),
                domain: Some(domain.to_string()),
                waits: None,
                question: None,
                sessions: None,
            })
        });
        // A caller that has gone is not in its place, which is then found empty.
        match reply {
            Ok(reply) if waiting.ran => {
                self.sessions.forget(name);
                let moved = (waiting.process.pid, waiting.place.id);
                self.sessions.answer_moved(reply, waiting.answer, moved);
            }
            reply => waiting.answer.end(reply),
        }
        self.watch_run(waiting.place.directory());
    }

    /// The policy that is in force in the place of a call that waits, if it is not the call's own: one of a
    /// higher rank may have come in between.
    fn outdone_by(&self, name: &Name) -> Option<String> {
        let place = self.runs.waiting.get(name)?.place.id;
        let mut chain = self
            .engine
            .effective(place)
            .map_or_else(Vec::new, |e| e.chain);
        match chain.first() {
            Some(first) if first == name => None,
            Some(_) => Some(chain.swap_remove(0).to_string()),
            None => Some("none".to_owned()),
        }
    }

    /// Tells a call that waits why it does, when that is news.
    fn tell_waiting(&mut self, name: &Name) {
        if self.engine.state().policy(name.as_str()).is_none() {
            let reason = format!("its policy `{name}` was unset while it waited");
            return self.fail_run(name, ApiError::Failed { reason });
        }
        let reason = self.engine.decision(name.as_str()).map(|d| d.reason);
        let reply = RunReply {
            cgroup: None,
            policy: name.to_string(),
            domain: None,
            waits: self.runs.waits_for_answer(name).or(reason),
            question: self.offer(name),
            sessions: None,
        };
        let Some(waiting) = self.runs.waiting.get_mut(name) else {
            return;
        };
        let over = waiting.deadline.is_some_and(|d| d <= Instant::now());
        // A question is told even if there is no time to answer it: the error alone would be a riddle.
        let idle = over && reply.question.is_none();
        if idle || waiting.told.as_ref() == Some(&reply) {
            return;
        }
        waiting.told = Some(reply.clone());
        let part = waiting.answer.part(Reply::Run(reply));
        if let Err(slow) = part {
            self.fail_run(name, failed(&slow));
        }
    }

    /// Tells the engine of a cgroup and of those above it that it does not know.
    pub(super) fn learn(&mut self, directory: &Path) -> Result<(), cgroup::Error> {
        let mut missing = Vec::new();
        for level in directory.ancestors() {
            let id = cgroup::id_of(level)?;
            if self.engine.state().cgroups.contains(id) {
                let mut parent = id;
                for (id, name) in missing.into_iter().rev() {
                    self.fact(Event::Cgroups(CgroupChange::Made { id, parent, name }));
                    parent = id;
                }
                return Ok(());
            }
            let name = level.file_name().unwrap_or_default();
            missing.push((id, name_of(name.as_bytes())));
        }
        Ok(())
    }

    /// Gives up calls that have waited long enough, or whose caller has.
    pub(super) fn expire_runs(&mut self) {
        let now = Instant::now();
        let over: Vec<Name> = self
            .runs
            .waiting
            .iter()
            .filter(|(_, w)| w.answer.is_closed() || w.deadline.is_some_and(|d| d <= now))
            .map(|(name, _)| name.clone())
            .collect();
        for name in over {
            let refused = self.refused_of(&name, &self.engine.numbers(&name));
            let error = match (refused, self.engine.decision(name.as_str())) {
                (Some(words), _) => ApiError::Failed { reason: words },
                (None, _) if self.runs.waits_for_answer(&name).is_some() => {
                    ApiError::NoDomainFits {
                        policy: None,
                        reason: "nobody chose one in time".to_owned(),
                        candidates: Vec::new(),
                    }
                }
                // None was looked at: a strict policy cannot be enforced, and the reason is the kernel's.
                (None, Some(decision)) if decision.candidates.is_empty() => ApiError::Failed {
                    reason: decision.reason,
                },
                (None, Some(decision)) => ApiError::NoDomainFits {
                    policy: None,
                    reason: decision.reason.clone(),
                    candidates: candidates(&decision),
                },
                (None, None) => ApiError::Failed {
                    reason: "another policy holds for the new cgroup".to_owned(),
                },
            };
            self.fail_run(&name, error);
        }
    }

    fn fail_run(&mut self, name: &Name, error: ApiError) {
        if let Some(waiting) = self.runs.waiting.remove(name) {
            waiting.answer.end(Err(error));
            self.end_run(waiting.place.directory());
        }
    }

    /// Removes a place that nobody is in any more, and its policy. Where somebody entered it in between,
    /// both stay until it is empty again.
    pub(super) fn end_run(&mut self, directory: &Path) {
        if let Err(error) = self.runs.placement.remove(directory) {
            warn!("{}", chain(&error));
            if let Err(error) = self.runs.watch.add(directory) {
                warn!("{}", chain(&error));
            }
            // Nobody tells of a process that ended before the watch was there.
            if populated(directory) || self.runs.placement.remove(directory).is_err() {
                return;
            }
        }
        let name = self.tree.name_of(directory);
        if let Some(id) = name.and_then(|name| self.engine.state().cgroups.find(&name)) {
            self.end_policies_of(id);
        }
    }

    fn remove_place(&mut self, directory: &Path) {
        if let Err(error) = self.runs.placement.remove(directory) {
            warn!("{}", chain(&error));
        }
    }

    /// Ends the run of a place as soon as nobody is in it.
    pub(super) fn watch_run(&mut self, directory: &Path) {
        if let Err(error) = self.runs.watch.add(directory) {
            warn!(
                "{}: its policy stays until the agent is started again",
                chain(&error)
            );
        }
        // Nobody tells of a command that had ended before the watch was there.
        if !populated(directory) {
            self.end_run(directory);
        }
    }

    /// Takes over the places of an earlier agent.
    pub(super) fn adopt_runs(&mut self) {
        let places = self.runs.placement.existing(&self.engine.state().cgroups);
        for place in places {
            self.watch_run(place.directory());
        }
    }
}
