//! Commands that `steer run` starts: a place and a policy each, for as long as a process is in it.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use steer_core::cgroups::{CgroupChange, name_of};
use steer_core::engine::{Engine, Rejected};
use steer_core::name::Name;
use steer_core::policy::{Match, Origin, Policy};
use steer_core::state::Event;
use tokio::sync::oneshot;
use tokio::time::Instant;
use tracing::{info, warn};

use super::calls::{names, refused};
use super::views::candidates;
use super::{Daemon, Look};
use crate::api::error::ApiError;
use crate::api::methods::{Reply, Run, RunReply};
use crate::api::server::Caller;
use crate::cgroup::{self, EmptyWatch, Place, Placement, populated, process};
use crate::reconcile::chain;

/// How the names of places, and of their policies, begin.
const RUN_PREFIX: &str = "run-";

/// Whether a policy is that of a command.
pub(super) fn is_run(name: &Name) -> bool {
    name.as_str().starts_with(RUN_PREFIX)
}

/// Where an answer goes.
pub(super) type Answer = oneshot::Sender<Result<Reply, ApiError>>;

/// The places that exist, and the calls that wait for a domain.
pub(super) struct Runs {
    placement: Box<dyn Placement>,
    watch: EmptyWatch,
    waiting: BTreeMap<Name, Waiting>,
    serial: u32,
}

struct Waiting {
    place: Place,
    path: String,
    pid: i32,
    process: Arc<OwnedFd>,
    /// When to give up; `None`: never.
    deadline: Option<Instant>,
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

    /// Waits for places whose last process has gone. Cancel-safe.
    pub(super) async fn emptied(&mut self) -> Result<Vec<PathBuf>, cgroup::Error> {
        self.watch.emptied().await
    }

    /// When the next waiting call gives up.
    pub(super) fn next_deadline(&self) -> Option<Instant> {
        self.waiting.values().filter_map(|w| w.deadline).min()
    }

    /// The policies of the calls that wait.
    pub(super) fn waiting(&self) -> Vec<Name> {
        self.waiting.keys().cloned().collect()
    }

    /// Lets a waiting call go if its policy now has a domain. Returns its place, to be watched.
    pub(super) fn answer(&mut self, name: &Name, engine: &Engine) -> Option<PathBuf> {
        let domain = domain(engine, name)?;
        let waiting = self.waiting.remove(name)?;
        let reply = self.enter(&waiting).map(|()| {
            Reply::Run(RunReply {
                cgroup: waiting.path.clone(),
                policy: name.to_string(),
                domain: Some(domain.to_string()),
            })
        });
        // A caller that has gone is not in its place, which is then found empty.
        let _gone = waiting.answer.send(reply);
        Some(waiting.place.directory)
    }

    fn make(&mut self, pid: i32) -> Result<(Name, Place), ApiError> {
        loop {
            self.serial = self.serial.wrapping_add(1);
            let label = format!("{RUN_PREFIX}{pid}-{}", self.serial);
            let name = Name::new(&label).map_err(|e| failed(&e))?;
            match self.placement.make(&label) {
                // Left by an earlier agent.
                Err(cgroup::Error::Make(_, e)) if e.kind() == io::ErrorKind::AlreadyExists => {}
                Err(error) => return Err(failed(&error)),
                Ok(place) => return Ok((name, place)),
            }
        }
    }

    /// Moves the caller in. Between the two looks at its pidfd its process id cannot have become
    /// another process's: it waits for our answer.
    fn enter(&mut self, waiting: &Waiting) -> Result<(), ApiError> {
        let gone = || ApiError::Failed {
            reason: "the calling process has ended".to_owned(),
        };
        if process::has_ended(&waiting.process) {
            return Err(gone());
        }
        self.placement
            .enter(&waiting.place, waiting.pid)
            .map_err(|e| failed(&e))?;
        if process::has_ended(&waiting.process) {
            return Err(gone());
        }
        Ok(())
    }
}

fn domain(engine: &Engine, policy: &Name) -> Option<Name> {
    engine.decision(policy.as_str())?.domain().cloned()
}

fn failed(error: &dyn std::error::Error) -> ApiError {
    ApiError::Failed {
        reason: chain(error),
    }
}

impl Daemon {
    /// Makes a place and a policy, and lets the caller in as soon as a domain fits.
    pub(super) async fn run(&mut self, caller: &Caller, run: Run, answer: Answer) {
        let (name, place) = match self.prepare_run(caller.pid, &run) {
            Ok(made) => made,
            Err(error) => {
                let _gone = answer.send(Err(error));
                return;
            }
        };
        info!(policy = %name, command = %run.command.escape_debug(), via = run.via.join(","), "run");
        let deadline = match run.wait_ms {
            Some(ms) if ms > 0 => Some(Instant::now() + Duration::from_millis(ms.unsigned_abs())),
            Some(ms) if ms < 0 => None,
            _ => Some(Instant::now()),
        };
        let waiting = Waiting {
            path: self.tree.name_of(&place.directory).unwrap_or_default(),
            place,
            pid: caller.pid,
            process: caller.pidfd.clone(),
            deadline,
            answer,
        };
        self.runs.waiting.insert(name.clone(), waiting);
        if let Err(error) = self.converge(Look::Nothing).await {
            self.fail_run(&name, failed(&error));
        }
        self.expire_runs();
    }

    fn prepare_run(&mut self, pid: i32, run: &Run) -> Result<(Name, Place), ApiError> {
        let use_ = names("via", &run.via)?;
        let (name, place) = self.runs.make(pid)?;
        let policy = Policy::new(
            name.clone(),
            Origin::User,
            vec![Match::CgroupId(place.id)],
            use_,
            run.strict.unwrap_or(false),
        );
        // The kernel's own notice of the new cgroups comes later than the policy that needs them.
        if let Err(error) = self.learn(&place.directory) {
            warn!("{}", chain(&error));
        }
        if let Err(rejected) = self.event(Event::SetPolicy(policy)) {
            self.remove_place(&place.directory);
            return Err(match rejected {
                // What the command was to be under has a name that nobody gave it.
                Rejected::ShutOut { by, path, .. } => ApiError::Failed {
                    reason: format!(
                        "the strict policy `{by}` holds for the cgroup {path}, and no command can \
                         override it"
                    ),
                },
                rejected => refused(&rejected),
            });
        }
        Ok((name, place))
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
            let directory = waiting.place.directory.clone();
            let _gone = waiting.answer.send(Err(error));
            self.end_run(&directory);
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
            return;
        }
        let name = directory.file_name().unwrap_or_default().to_string_lossy();
        if let Ok(name) = Name::new(&name)
            && is_run(&name)
            && self.engine.state().api_policies.contains_key(&name)
        {
            self.fact(Event::UnsetPolicy(name));
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
        match self.runs.placement.existing() {
            Ok(places) => {
                for place in places {
                    self.watch_run(&place.directory);
                }
            }
            Err(error) => warn!("{}", chain(&error)),
        }
    }
}
