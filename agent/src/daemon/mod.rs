//! The agent: one loop, and data goes one way through it.
//!
//! `start` opens everything and takes over what an earlier agent left, `serve` turns what happens into
//! events of the engine, and `Daemon::commit` brings the kernel to the plan.

mod calls;
mod detach;
mod files;
mod offline;
mod runs;
mod serve;
mod start;
mod views;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use serde::{Deserialize, Serialize};
use steer_core::cgroups::{CgroupChange, CgroupTree};
use steer_core::engine::Engine;
use steer_core::ids::{CgroupId, DomainIndex, TableId};
use steer_core::memory::Memory;
use steer_core::name::Name;
use steer_core::plan::{Rule, RuleAction};
use steer_core::policy::Policy;
use steer_core::state::{Event, Object, State};
use steer_core::steps::Step;
use tokio::time::Instant;
use tracing::{error, warn};

use crate::cgroup::{self, Tree};
use crate::netlink;
use crate::reconcile::{Reconciler, chain};
use crate::statefile::{self, StateFile};

use runs::Runs;

pub use detach::{DetachReport, detach};
pub use offline::offline_status;

/// A domain that no policy can choose any more is looked at after this time, and then less and less
/// often, until its flows have ended.
const RETIRE_PAUSE: Duration = Duration::from_secs(1);
const LONGEST_RETIRE_PAUSE: Duration = Duration::from_secs(30);

/// How an agent is started.
#[derive(Clone, Debug)]
pub struct Options {
    /// The main file; none: /etc/steer/steer.toml, if there is one.
    pub config: Option<PathBuf>,
    /// Where the API listens.
    pub socket: PathBuf,
}

/// Runs the agent until it is told to stop. What it put in force stays.
///
/// # Errors
/// It cannot start: the configuration is wrong, the kernel lacks something, or another agent runs.
pub async fn run(options: Options) -> anyhow::Result<()> {
    let (daemon, inputs) = start::start(&options).await?;
    serve::serve(daemon, inputs).await
}

/// What outlives the agent but not the boot.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
struct Saved {
    /// Policies of the API.
    policies: Vec<Policy>,
    /// Numbers given out.
    memory: Memory,
    /// Settings that were changed, with their values before.
    sysctls: BTreeMap<String, String>,
    /// The managed root, for `detach`.
    cgroup_root: PathBuf,
}

/// What tells whether the state file is up to date, without comparing all of it.
#[derive(Debug, PartialEq, Eq)]
struct Kept {
    policies: u64,
    numbers: (u64, u64),
    indices: BTreeMap<Name, DomainIndex>,
    sysctls: BTreeMap<String, String>,
}

/// The agent's loop between two events.
struct Daemon {
    engine: Engine,
    reconciler: Reconciler,
    tree: Tree,
    runs: Runs,
    state_file: StateFile,
    kept: Option<Kept>,
    /// Events so far that may have changed the API's policies.
    policy_events: u64,
    config: Option<PathBuf>,
    started: SystemTime,
    /// Cgroups that were made since the last commit: the kernel gave them an entry of its own.
    made: BTreeSet<CgroupId>,
    /// When to look at domains that no policy can choose any more, and how long to wait then.
    retire_at: Option<Instant>,
    retire_pause: Duration,
    /// When the guard's drops of a kernel policy were told last.
    guard_told: HashMap<u32, Instant>,
    /// Something happened that [`Daemon::commit`] has not seen.
    dirty: bool,
}

impl Daemon {
    fn event(&mut self, event: Event) -> Result<(), steer_core::engine::Rejected> {
        self.dirty = true;
        if matches!(
            event,
            Event::SetPolicy(_) | Event::UnsetPolicy(_) | Event::Config(_)
        ) {
            self.policy_events += 1;
        }
        self.engine.apply(event)
    }

    /// As [`Daemon::event`], for events that the engine never rejects.
    fn fact(&mut self, event: Event) {
        if let Err(rejected) = self.event(event) {
            error!("an event was rejected: {rejected}");
        }
    }

    /// Selects and plans anew, keeps what must outlive the agent, and brings the kernel to the plan.
    ///
    /// # Errors
    /// The state could not be kept; the kernel was brought to the plan all the same.
    async fn commit(&mut self) -> Result<(), statefile::Error> {
        let mut kept = self.settle_and_apply().await;
        if self.engine.needs_indices() {
            // Only now no new socket gets the mark of a domain that is no longer used.
            let in_use = self.indices_in_use().await;
            self.fact(Event::IndicesInUse(in_use));
            kept = kept.and(self.settle_and_apply().await);
        }
        if self.tell_outcomes() {
            kept = kept.and(self.settle_and_apply().await);
        }
        // No command starts on a decision that is not in force, or that the next agent would not know.
        let in_force = !self
            .reconciler
            .refused()
            .iter()
            .any(|(step, _)| decides(step));
        if kept.is_ok() && in_force {
            for place in self.runs.answer(&self.engine) {
                self.watch_run(&place);
            }
        }
        self.plan_retirement();
        kept
    }

    async fn settle_and_apply(&mut self) -> Result<(), statefile::Error> {
        self.dirty = false;
        let mut changes = self.engine.settle();
        changes.cgroups.append(&mut self.made);
        self.reconciler.remember_settings(self.engine.plan());
        // Numbers are kept before the kernel sees them: sockets remember them longer than an agent lives.
        let numbers = self.keep();
        let attached = self.reconciler.apply(self.engine.plan(), &changes).await;
        let settings = self.keep();
        if attached {
            self.rescan().await;
        }
        numbers.and(settings)
    }

    /// Tells the engine what the kernel refuses now, and what no longer. Says whether that is news.
    fn tell_outcomes(&mut self) -> bool {
        let state = self.engine.state();
        let mut refused = BTreeMap::new();
        for (step, words) in self.reconciler.refused() {
            if let Some(object) = object(state, step) {
                refused.insert(object, words.clone());
            }
        }
        let mended = state
            .refused
            .keys()
            .filter(|object| !refused.contains_key(object));
        let mut outcomes: Vec<Event> = mended
            .map(|object| Event::Outcome(object.clone(), Ok(())))
            .collect();
        for (object, words) in refused {
            if state.refused.get(&object) != Some(&words) {
                outcomes.push(Event::Outcome(object, Err(words)));
            }
        }
        let news = !outcomes.is_empty();
        for outcome in outcomes {
            self.fact(outcome);
        }
        self.dirty = false;
        news
    }

    /// Gives up domains that no policy can choose and whose flows have ended: their tables and rules go.
    async fn retire_domains(&mut self) {
        self.retire_at = None;
        self.retire_pause = (self.retire_pause * 2).min(LONGEST_RETIRE_PAUSE);
        let mut kept = self.indices_in_use().await;
        let closed = match netlink::closed_sources().await {
            Ok(closed) => closed,
            Err(error) => {
                warn!("{}", chain(&error));
                return self.plan_retirement();
            }
        };
        let state = self.engine.state();
        for (name, index) in &state.memory.indices {
            let domain = self.engine.domains().get(name.as_str());
            if domain.is_some_and(|d| d.addresses.iter().any(|a| closed.contains(&a.ip))) {
                kept.insert(*index);
            }
        }
        self.fact(Event::IndicesInUse(kept));
        self.commit_and_log().await;
    }

    /// Sees to it that domains which no policy can choose are looked at.
    fn plan_retirement(&mut self) {
        if self.engine.lingering().next().is_none() {
            self.retire_at = None;
            self.retire_pause = RETIRE_PAUSE;
        } else if self.retire_at.is_none() {
            self.retire_at = Some(Instant::now() + self.retire_pause);
        }
    }

    /// Indices of domains that some socket still bears: those of the others may go to another name.
    async fn indices_in_use(&self) -> BTreeSet<DomainIndex> {
        let state = self.engine.state();
        let mask = state.config.agent.mark_mask;
        let mut in_use = BTreeSet::new();
        for &index in state.memory.indices.values() {
            let Some(mark) = mask.encode(index.0) else {
                continue;
            };
            match netlink::sockets_with_mark(mark, mask.bits()).await {
                Ok(0) => {}
                Ok(_) => {
                    in_use.insert(index);
                }
                Err(error) => {
                    warn!("{}", chain(&error));
                    in_use.insert(index);
                }
            }
        }
        in_use
    }

    /// [`Daemon::commit`] where nobody waits for an answer.
    async fn commit_and_log(&mut self) {
        if let Err(error) = self.commit().await {
            error!("{}", chain(&error));
        }
    }

    /// Reads what is from the kernel and brings all of it to the plan.
    async fn check_all(&mut self) {
        self.commit_and_log().await;
        self.rescan().await;
        match self.reconciler.apply_all(self.engine.plan()).await {
            Ok(false) => {}
            Ok(true) => self.rescan().await,
            Err(error) => error!("{}", chain(&error)),
        }
        self.follow_outcomes().await;
    }

    /// Reads rules, tables and settings from the kernel and brings them to the plan.
    async fn check_routing(&mut self) {
        self.commit_and_log().await;
        match self.reconciler.apply_routing(self.engine.plan()).await {
            Ok(false) => {}
            Ok(true) => self.rescan().await,
            Err(error) => error!("{}", chain(&error)),
        }
        self.follow_outcomes().await;
    }

    /// Selects anew if the kernel refuses something else than before.
    async fn follow_outcomes(&mut self) {
        if self.tell_outcomes() {
            self.commit_and_log().await;
        }
    }

    /// Reads the cgroup tree anew: cgroups that were made before the programs that tell of them were
    /// attached, or whose events were lost.
    async fn rescan(&mut self) {
        match scan(&self.tree) {
            Ok(found) => {
                self.fact(Event::Cgroups(CgroupChange::Dump(found)));
                self.dirty = false;
                let changes = self.engine.settle();
                self.reconciler.apply(self.engine.plan(), &changes).await;
            }
            Err(error) => warn!("{}", chain(&error)),
        }
    }

    /// Writes what must outlive the agent, if it changed.
    fn keep(&mut self) -> Result<(), statefile::Error> {
        let state = self.engine.state();
        let kept = Kept {
            policies: self.policy_events,
            numbers: state.memory.revision(),
            indices: state.memory.indices.clone(),
            sysctls: self.reconciler.original_sysctls().clone(),
        };
        if self.kept.as_ref() == Some(&kept) {
            return Ok(());
        }
        self.state_file.write(&Saved {
            policies: state.api_policies.values().cloned().collect(),
            memory: state.memory.clone(),
            sysctls: kept.sysctls.clone(),
            cgroup_root: self.tree.root().to_owned(),
        })?;
        self.kept = Some(kept);
        Ok(())
    }
}

/// Whether a step is part of what puts a flow on its domain.
fn decides(step: &Step) -> bool {
    matches!(
        step,
        Step::SetCgroup(..)
            | Step::SetPolicy(..)
            | Step::SetChoice(..)
            | Step::SetDomain(..)
            | Step::AddSource(..)
            | Step::Attach(_)
    )
}

/// What selection must know to be refused, if `step` is.
fn object(state: &State, step: &Step) -> Option<Object> {
    let domain = |table: TableId| {
        let index = table.0.checked_sub(state.config.agent.table_base)?;
        let mut indices = state.memory.indices.iter();
        let (name, _) = indices.find(|(_, i)| u32::from(i.0) == index)?;
        Some(Object::Domain(name.clone()))
    };
    match step {
        Step::Attach(hook) => Some(Object::Hook(*hook)),
        // An interface that has gone in between needs no guard.
        Step::Guard(interface) if state.network.links.contains_key(interface) => {
            Some(Object::Guard)
        }
        Step::AddRoute(route) => domain(route.table),
        Step::AddRule(Rule {
            action: RuleAction::Lookup { table, .. },
            ..
        }) => domain(*table),
        _ => None,
    }
}

/// The cgroup tree as the engine wants it.
fn scan(tree: &Tree) -> Result<CgroupTree, cgroup::Error> {
    let mut found = tree.scan()?.into_iter();
    let root = found.next().ok_or(cgroup::Error::NotMounted)?;
    let mut cgroups = CgroupTree::new(root.id);
    for cgroup in found {
        if let Some(parent) = cgroup.parent {
            cgroups.made(cgroup.id, parent, &cgroup.name);
        }
    }
    Ok(cgroups)
}

/// The state file of the agent.
fn state_file() -> StateFile {
    StateFile::new(Path::new(statefile::RUN_DIRECTORY))
}
