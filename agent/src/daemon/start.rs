//! Opens everything that the agent needs, and takes over what an earlier one left.
//!
//! Nothing in the kernel is removed before files, state, netlink and the cgroup tree were read.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::path::Path;
use std::time::SystemTime;

use anyhow::{Context, bail};
use steer_common::policy_flags;
use steer_core::cgroups::{CgroupChange, CgroupTree};
use steer_core::config::Config;
use steer_core::engine::Engine;
use steer_core::network::NetworkChange;
use steer_core::plan::rules::offset;
use steer_core::policy::{Match, Policy};
use steer_core::state::{Event, State};
use tokio::sync::mpsc;
use tracing::{info, warn};

use super::access::Access;
use super::checks::Checks;
use super::clock;
use super::decided::Decided;
use super::flows::Flows;
use super::load::{self, Loaded, load, tell_quarantined};
use super::managers;
use super::running::Claim;
use super::runs::Runs;
use super::serve::Inputs;
use super::sessions::Sessions;
use super::stalls::Stalls;
use super::watch::Watch;
use super::{Daemon, Look, Options, RETIRE_PAUSE, Saved, scan, state_file};
use crate::api::server::Server;
use crate::cgroup::{EmptyWatch, OwnCgroup, Tree, id_of};
use crate::datapath::{self, Datapath, PIN_ROOT, Pinned};
use crate::dbus;
use crate::netlink::{Notification, OwnRange, Routing, Stations, Watcher};
use crate::reconcile::{Reconciler, Sysctls, chain};
use crate::statefile::{self, StateFile};

/// Calls that wait for the loop at one time; each connection has at most one.
const CALL_QUEUE: usize = 64;

pub(super) async fn start(options: &Options) -> anyhow::Result<(Daemon, Inputs)> {
    if !nix::unistd::geteuid().is_root() {
        bail!("the agent needs root: run it as root, or with sudo");
    }
    let Loaded {
        config,
        quarantined,
        ..
    } = load(options.config.as_deref()).map_err(load::Error::into_cause)?;
    tell_quarantined(&quarantined);
    let tree = Tree::open(config.agent.cgroup_root.as_deref().map(Path::new))?;

    // First of all: a second agent must not touch what the first has.
    let claim = Claim::take(&options.socket)?;
    let (calls_in, calls) = mpsc::channel(CALL_QUEUE);
    let server = Server::bind(&options.socket, calls_in).context("offer the API")?;

    let pin_root = Path::new(PIN_ROOT);
    datapath::ensure_bpffs(pin_root.parent().unwrap_or(pin_root))?;
    let state_file = state_file();
    let saved = read_state(&state_file, pin_root)?;

    let mut datapath = Datapath::open(datapath::Options {
        pin_root,
        cgroup_root: tree.root(),
        mark_mask: config.agent.mark_mask,
    })?;
    let events = datapath.events()?;

    let range = OwnRange {
        priorities: config.agent.rule_base
            ..=config.agent.rule_base.saturating_add(offset::COUNT - 1),
        tables: config.agent.table_base
            ..=config
                .agent
                .table_base
                .saturating_add(u32::from(config.agent.mark_mask.capacity())),
    };
    let routing = Routing::open().await?;
    let mut watcher = Watcher::open(range).await?;
    let notifications = watcher.next().await?;
    let mut stations = Stations::open().await?;
    // Known before anything is decided: a WLAN may be what makes an interface a domain.
    let connected = stations.next().await.unwrap_or_else(|error| {
        warn!("{}: what WLANs there are is not known", chain(&error));
        BTreeMap::new()
    });

    let mut access = Access::look_up(&config);
    saved.users.iter().for_each(|user| access.remember(user));
    let (checks, history) = Checks::read();
    let decided = Decided::read();
    let mut engine = engine(&tree, saved.clone(), config, notifications)?;
    engine.apply(Event::Network(NetworkChange::Stations(connected)))?;
    engine.apply(Event::Remembered(history))?;
    let (health, managed) = Checks::recall(&engine.state().network);
    // What no manager has said otherwise since: it will, as soon as it is asked.
    let managers = dbus::Watcher::new(None, managers::told(&managed), dbus::HOLD);
    engine.apply(Event::Network(NetworkChange::Managed(managed)))?;
    engine.apply(Event::Recalled(health))?;
    let chosen = decided.chosen(&saved.memory);
    engine.apply(Event::Chosen(chosen))?;
    let reconciler =
        Reconciler::adopt(datapath, routing, Sysctls::adopt(saved.sysctls.clone())).await?;
    let runs = Runs::new(Box::new(OwnCgroup::new(&tree)), EmptyWatch::open()?);

    let mut daemon = Daemon {
        engine,
        reconciler,
        tree,
        runs,
        access,
        state_file,
        kept: None,
        policy_events: 0,
        config: options.config.clone(),
        claim,
        decided,
        flows: Flows::default(),
        sessions: Sessions::read(),
        checks,
        stalls: Stalls::default(),
        watch: Watch::default(),
        started: SystemTime::now(),
        made: BTreeSet::new(),
        retire_at: None,
        retire_pause: RETIRE_PAUSE,
        guard_told: HashMap::new(),
        bad_files: None,
        warned: BTreeSet::new(),
        dirty: false,
        permits_dirty: true,
        rescan: false,
        events_lost: 0,
    };
    daemon.events_lost = daemon.reconciler.counters()?.events_lost;
    daemon.adopt_runs();
    daemon.fill().await?;
    daemon.converge(Look::Everything).await?;
    info!(
        cgroup_root = %daemon.tree.root().display(),
        policies = daemon.engine.state().policies().count(),
        "ready"
    );
    let inputs = Inputs {
        watcher,
        stations,
        managers,
        events,
        calls,
        server: tokio::task::spawn_local(server.run()),
    };
    Ok((daemon, inputs))
}

/// Rounds of [`Daemon::fill`]: each finds cgroups that were made during the one before.
const FILL_ROUNDS: usize = 8;

impl Daemon {
    /// Writes all that the programs read before anything is attached or taken over.
    ///
    /// The programs of another version tell their own maps of new cgroups. So the first round attaches
    /// those that tell the new maps, and the next ones find what was made before.
    async fn fill(&mut self) -> anyhow::Result<()> {
        for _ in 0..FILL_ROUNDS {
            self.read_cgroups();
            self.engine.settle();
            self.reconciler.remember_settings(self.engine.plan());
            self.keep()?;
            if !self.reconciler.fill(self.engine.plan()).await? {
                break;
            }
        }
        let refused = self.reconciler.refused().iter();
        let mut entries = refused.filter(|(step, _)| step.is_entry());
        if self.reconciler.takes_over()?
            && let Some((step, words)) = entries.next()
        {
            bail!(
                "the kernel refused {step} ({words}): what another version of steer put in force \
                 stays in force; start that version again, or give it up by `steer detach`"
            );
        }
        Ok(())
    }
}

/// What an earlier agent of this boot kept.
///
/// Without it the policies of the API are unknown, and the strict ones among them, still closed by what
/// is pinned, would be opened. So that is refused: only `steer detach` gives them up.
fn read_state(file: &StateFile, pin_root: &Path) -> anyhow::Result<Saved> {
    let lost = match file.read::<Saved>() {
        Ok(Some(saved)) => return Ok(saved),
        Ok(None) => None,
        Err(damaged @ statefile::Error::Damaged(..)) => Some(damaged),
        Err(error) => return Err(error.into()),
    };
    let strict = match datapath::read_pinned(pin_root)? {
        Some(Pinned {
            maps: Some(maps), ..
        }) => {
            let policies = maps.policies.entries()?;
            policies
                .iter()
                .any(|(_, policy)| policy.flags & policy_flags::STRICT != 0)
        }
        // Another version's, which it alone can read.
        Some(pinned) => !pinned.hooks.is_empty(),
        None => false,
    };
    if strict {
        let lost = lost.map_or_else(|| "the state file is gone".to_owned(), |e| chain(&e));
        bail!(
            "{lost}, and strict policies of the last agent are in force; they stay closed until \
             `steer detach` gives them up"
        );
    }
    if let Some(damaged) = lost {
        warn!(
            "{}: policies that were set by command are lost",
            chain(&damaged)
        );
    }
    Ok(Saved::default())
}

fn engine(
    tree: &Tree,
    saved: Saved,
    config: Config,
    notifications: Vec<Notification>,
) -> anyhow::Result<Engine> {
    let cgroups = scan(tree)?;
    let mut state = State::new(cgroups.root());
    state.memory = saved.memory;
    // Not by an event: a name that means nothing at the moment must not open a policy that was in force.
    state.api_policies = saved
        .policies
        .into_iter()
        .filter(|policy| outlives(policy, &cgroups))
        .map(|policy| (policy.name.clone(), policy))
        .collect();
    // Those of policies that are no more go when the files are taken.
    state.preferred = saved.preferred;
    state.now = clock::now();
    let mut engine = Engine::new(state);
    let own = tree.of_process(std::process::id().cast_signed())?;
    let root = tree.root_id()?;
    // Where it runs in the managed cgroup itself, nothing could be managed if that were exempt.
    let own = id_of(&own).ok().filter(|id| *id != root);
    let exempt = own.into_iter().collect();
    let facts = [
        Event::Cgroups(CgroupChange::Dump(cgroups)),
        Event::Managed { root, exempt },
        Event::Config(Box::new(config)),
    ];
    let network = notifications.into_iter().filter_map(|n| match n {
        Notification::Network(change) => Some(Event::Network(change)),
        _ => None,
    });
    for event in facts.into_iter().chain(network) {
        engine.apply(event)?;
    }
    Ok(engine)
}

/// Whether a policy may still hold somewhere: what was set for one cgroup alone ended with it, also
/// while no agent ran.
fn outlives(policy: &Policy, cgroups: &CgroupTree) -> bool {
    policy.matches.iter().any(|m| match m {
        Match::CgroupId(id) => cgroups.contains(*id),
        Match::Cgroup(_) | Match::Unit(_) => true,
    })
}
