//! The agent: one loop, and data goes one way through it.
//!
//! `start` opens everything and takes over what an earlier agent left, `serve` turns what happens into
//! events of the engine, and `Daemon::converge` brings the kernel to the plan.

mod access;
mod accounts;
mod ask;
mod calls;
mod check;
mod checks;
mod clock;
mod decided;
mod detach;
mod domain_views;
mod explain;
mod files;
mod flows;
mod load;
mod lookups;
mod managers;
mod offline;
mod prefer;
mod remains;
mod running;
mod runs;
mod serve;
mod sessions;
mod stalls;
mod start;
mod sysfs;
mod views;
mod watch;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use serde::{Deserialize, Serialize};
use steer_common::CgroupEntry;
use steer_core::cgroups::{CgroupChange, CgroupTree};
use steer_core::engine::{Engine, Warning};
use steer_core::ids::{CgroupId, ChoiceId, DomainIndex, PolicyId, TableId};
use steer_core::memory::Memory;
use steer_core::name::Name;
use steer_core::permit::User;
use steer_core::plan::{Hook, Object, Rule, RuleAction};
use steer_core::policy::Policy;
use steer_core::state::{Event, State};
use steer_core::steps::Step;
use tokio::time::Instant;
use tracing::{error, warn};

use crate::cgroup::{self, Tree};
use crate::heap;
use crate::netlink;
use crate::reconcile::{Reconciler, chain};
use crate::statefile::{self, StateFile};

use access::Access;
use checks::Checks;
use decided::Decided;
use flows::Flows;
use running::Claim;
use runs::Runs;
use sessions::Sessions;
use stalls::Stalls;
use watch::Watch;

pub use check::{Checked, check_files};
pub use detach::{DetachReport, detach};
pub use load::Mistakes;
pub use offline::offline_status;
pub use remains::{Remains, configuration, places, remains, state_path};
pub use running::{Running, running};

/// A domain that no policy can choose any more is looked at after this time, and then less and less
/// often, until its flows have ended.
const RETIRE_PAUSE: Duration = Duration::from_secs(1);
const LONGEST_RETIRE_PAUSE: Duration = Duration::from_secs(30);

/// Rounds of [`Daemon::converge`] before everything else has its turn. It takes three at most: what
/// happened, what the kernel refused of it, and what was chosen instead.
const ROUNDS: usize = 8;

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
    /// Preferred domains, by policy.
    preferred: BTreeMap<Name, Name>,
    /// Numbers given out.
    memory: Memory,
    /// Settings that were changed, with their values before.
    sysctls: BTreeMap<String, String>,
    /// The managed root, for `detach`.
    cgroup_root: PathBuf,
    /// Plain users who own policies, with their groups.
    users: Vec<User>,
}

/// What tells whether the state file is up to date, without comparing all of it.
#[derive(Debug, PartialEq, Eq)]
struct Kept {
    policies: u64,
    numbers: [u64; 4],
    indices: BTreeMap<Name, DomainIndex>,
    sysctls: BTreeMap<String, String>,
}

/// The agent's loop between two events.
struct Daemon {
    engine: Engine,
    reconciler: Reconciler,
    tree: Tree,
    runs: Runs,
    access: Access,
    state_file: StateFile,
    kept: Option<Kept>,
    /// Events so far that may have changed the API's policies or what is preferred.
    policy_events: u64,
    config: Option<PathBuf>,
    /// Says that this agent runs.
    claim: Claim,
    decided: Decided,
    flows: Flows,
    sessions: Sessions,
    checks: Checks,
    stalls: Stalls,
    watch: Watch,
    started: SystemTime,
    /// Cgroups that were made since the kernel was last brought to the plan: it gave them an entry of its
    /// own.
    made: BTreeSet<CgroupId>,
    /// When to look at domains that no policy can choose any more, and how long to wait then.
    retire_at: Option<Instant>,
    retire_pause: Duration,
    /// When the guard's drops of a kernel policy were told last.
    guard_told: HashMap<u32, Instant>,
    /// Why the files as they are were not taken, if they were not.
    bad_files: Option<String>,
    /// Warnings that hold and were told.
    warned: BTreeSet<String>,
    /// Something happened that [`Daemon::converge`] has not seen.
    dirty: bool,
    /// What plain users may do is to be asked again: files or domains may be others.
    permits_dirty: bool,
    /// The cgroup tree is to be read anew: cgroups were made before the programs that tell of them were
    /// attached, or events were lost.
    rescan: bool,
    /// Events of the kernel programs that had been lost when this was last looked at.
    events_lost: u64,
}

/// What is read from the kernel before it is compared with the plan.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Look {
    /// Nothing: it is as it was left.
    Nothing,
    /// Rules, tables and settings.
    Routing,
    /// Everything, the cgroup tree too.
    Everything,
}

impl Daemon {
    fn event(&mut self, event: Event) -> Result<(), steer_core::engine::Rejected> {
        self.dirty = true;
        if matches!(
            event,
            Event::SetPolicy(_)
                | Event::PutBack(_)
                | Event::UnsetPolicy(_)
                | Event::Prefer { .. }
                | Event::Config(_)
        ) {
            self.policy_events += 1;
        }
        self.permits_dirty |= matches!(event, Event::Config(_) | Event::Network(_));
        self.engine.apply(event)
    }

    /// As [`Daemon::event`], for events that the engine never rejects.
    fn fact(&mut self, event: Event) {
        if let Err(rejected) = self.event(event) {
            error!("an event was rejected: {rejected}");
        }
    }

    /// Selects and plans anew, keeps what must outlive the agent, brings the kernel to the plan, and
    /// does so again for what came of that, until nothing does. The only way to the kernel once the agent
    /// has started.
    ///
    /// # Errors
    /// The state could not be kept; the kernel was brought to the plan all the same.
    async fn converge(&mut self, look: Look) -> Result<(), statefile::Error> {
        let everything = look == Look::Everything;
        let mut look = Some(look);
        self.pass_time();
        self.rescan |= everything;
        let mut asked = false;
        let mut kept = Ok(());
        for _ in 0..ROUNDS {
            if std::mem::take(&mut self.rescan) {
                self.read_cgroups();
            }
            self.dirty = false;
            kept = self.settle(look.take().unwrap_or(Look::Nothing)).await;
            if self.engine.needs_indices() && !std::mem::replace(&mut asked, true) {
                // Only now no new socket gets the mark of a domain that is no longer used.
                let in_use = self.indices_in_use().await;
                self.fact(Event::IndicesInUse(in_use));
            }
            self.tell_outcomes();
            if std::mem::take(&mut self.permits_dirty) {
                self.ask_permits_again();
            }
            if !self.dirty && !self.rescan {
                // No command starts on a decision that the next agent would not know.
                if kept.is_ok() {
                    self.answer_runs();
                }
                if !self.dirty {
                    break;
                }
            }
        }
        if everything {
            self.sessions.note_all();
        }
        self.plan_retirement();
        self.plan_checks();
        self.plan_stalls();
        self.tell_warnings();
        self.tell_changes();
        if everything {
            self.decided
                .note(&self.engine.plan().choices, None, SystemTime::now());
            heap::release();
        }
        self.claim.seen();
        kept
    }

    /// Logs what `status` warns of, as far as that is news. What the kernel refused is logged where it is
    /// tried, and what is wrong with policies of the files when these are read.
    fn tell_warnings(&mut self) {
        let mut warned = BTreeSet::new();
        for warning in self.engine.warnings() {
            if matches!(warning, Warning::Refused(..) | Warning::Quarantined { .. }) {
                continue;
            }
            let words = warning.to_string();
            if !self.warned.contains(&words) {
                warn!("{words}");
            }
            warned.insert(words);
        }
        self.warned = warned;
    }

    /// One round of [`Daemon::converge`].
    async fn settle(&mut self, look: Look) -> Result<(), statefile::Error> {
        let mut changes = self.engine.settle();
        changes.cgroups.append(&mut self.made);
        self.sessions.note(&changes, self.engine.plan());
        self.watch.note(&changes);
        self.reconciler.remember_settings(self.engine.plan());
        // Numbers are kept before the kernel sees them: sockets remember them longer than an agent
        // lives. What was not kept now is kept below, or told there.
        let _told_below = self.keep();
        let plan = self.engine.plan();
        // What changed does not wait until everything was read.
        self.rescan |= self.reconciler.apply(plan, &changes).await;
        let applied = match look {
            Look::Nothing => Ok(false),
            Look::Routing => self.reconciler.apply_routing(plan).await,
            Look::Everything => self.reconciler.apply_all(plan).await,
        };
        match applied {
            Ok(attached) => self.rescan |= attached,
            Err(error) => error!("{}", chain(&error)),
        }
        let choices = &self.engine.plan().choices;
        self.decided
            .note(choices, Some(&changes.choices), SystemTime::now());
        self.keep()
    }

    /// [`Daemon::converge`] where nobody waits for an answer.
    async fn converge_and_log(&mut self, look: Look) {
        if let Err(error) = self.converge(look).await {
            error!("{}", chain(&error));
        }
    }

    /// Reads the cgroup tree anew.
    fn read_cgroups(&mut self) {
        if let Err(error) = self.reconciler.note_cgroups() {
            warn!("{}", chain(&error));
        }
        match scan(&self.tree) {
            Ok(found) => self.fact(Event::Cgroups(CgroupChange::Dump(found))),
            Err(error) => warn!("{}", chain(&error)),
        }
    }

    /// Lets go the commands that wait for a decision which is in force now.
    fn answer_runs(&mut self) {
        for name in self.runs.waiting() {
            if self
                .refused_of(&name, &self.engine.numbers(&name))
                .is_none()
            {
                self.answer_run(&name);
            }
        }
    }

    /// The kernel's words about a step that it refused and that a policy rests on. `numbers`: those that
    /// it has, and those that it had before it was unset.
    ///
    /// What it refuses of a domain is not among these: selection is told of that, and chooses another or
    /// gives the reason. Neither is what it refuses of other policies.
    fn refused_of(&self, name: &Name, numbers: &[PolicyId]) -> Option<String> {
        let mut refused = self.reconciler.refused().iter();
        let (step, words) = refused.find(|(step, _)| self.rests_on(name, numbers, step))?;
        Some(format!("the kernel refused {step}: {words}"))
    }

    fn rests_on(&self, name: &Name, numbers: &[PolicyId], step: &Step) -> bool {
        let plan = self.engine.plan();
        let is = self.reconciler.is();
        let known = |entry: &CgroupEntry| numbers.contains(&PolicyId(entry.policy));
        let strict = || {
            let policy = self.engine.state().policy(name.as_str());
            policy.is_some_and(|policy| policy.strict)
        };
        let chosen = |index: &DomainIndex| {
            let decision = self.engine.decision(name.as_str());
            let indices = &self.engine.state().memory.indices;
            decision.is_some_and(|decision| {
                let members = decision.members.iter().map(|(domain, _)| domain);
                let mut domains = decision.domain().into_iter().chain(members);
                domains.any(|domain| indices.get(domain) == Some(index))
            })
        };
        let own = || {
            numbers
                .iter()
                .filter_map(|number| plan.policies.get(number))
        };
        let leads_to = |id: ChoiceId| {
            let id = BTreeSet::from([id]);
            numbers.iter().copied().any(plan.leading_to(&id))
        };
        match step {
            Step::SetCgroup(id, entry) => known(entry) || is.cgroups.get(id).is_some_and(known),
            Step::RemoveCgroup(id) => is.cgroups.get(id).is_some_and(known),
            Step::SetName(named, entry) => known(entry) || is.names.get(named).is_some_and(known),
            Step::RemoveName(named) => is.names.get(named).is_some_and(known),
            Step::SetPolicy(id, _) => numbers.contains(id),
            Step::SetRuleset(id, _) => own().any(|policy| policy.rules == id.0),
            Step::SetChoice(id, _) | Step::SetShare(id, _) => leads_to(*id),
            Step::SetDomain(index, _) | Step::AddSource(index, _) => chosen(index),
            Step::Attach(Hook::Setsockopt | Hook::Egress) => strict(),
            Step::Attach(_) => plan.policies.keys().any(|id| numbers.contains(id)),
            _ => false,
        }
    }

    /// Tells the engine what the kernel refuses now, and what no longer, as far as that is news.
    fn tell_outcomes(&mut self) {
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
        for outcome in outcomes {
            self.fact(outcome);
        }
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
        self.converge_and_log(Look::Nothing).await;
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
            preferred: state.preferred.clone(),
            memory: state.memory.clone(),
            sysctls: kept.sysctls.clone(),
            cgroup_root: self.tree.root().to_owned(),
            users: self.access.owners(&state.api_policies),
        })?;
        self.kept = Some(kept);
        Ok(())
    }
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
