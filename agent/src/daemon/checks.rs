//! Carries out the checks that are due, and remembers what came of them.
//!
//! Which are due, and when, is for `steer-core` to say ([`Engine::probes`](steer_core::engine::Engine)). Each
//! is a task of its own, one at a time for a domain, so that none keeps the loop or another domain waiting.

use std::collections::BTreeMap;
use std::future::{Future, pending};
use std::path::Path;
use std::time::Duration;

use steer_core::attached::Managed;
use steer_core::health::{Condition, Health, History, Probed};
use steer_core::ids::IfIndex;
use steer_core::name::Name;
use steer_core::network::Network;
use steer_core::probe::Probe;
use steer_core::state::Event;
use tokio::task::{AbortHandle, JoinSet};
use tokio::time::Instant;
use tracing::{debug, error, warn};

use super::{Daemon, clock, sysfs};
use crate::netlink;
use crate::probe;
use crate::probe::resolv::name_servers;
use crate::reconcile::chain;
use crate::statefile::{self, RUN_DIRECTORY, StateFile};

/// Where the host's name servers are.
const RESOLV_CONF: &str = "/etc/resolv.conf";

/// Where those are that systemd-resolved asks.
const RESOLVED: &str = "/run/systemd/resolve/resolv.conf";

/// What outlives the boot.
const STATE_DIRECTORY: &str = "/var/lib/steer";

/// What is known of networks is written at most this often,
const WRITE_PAUSE: Duration = Duration::from_secs(60);

/// and this often where all that is new is that they are still well.
const GOOD_PAUSE: Duration = Duration::from_secs(3_600);

/// Checks that are under way, and what is remembered of networks.
pub(super) struct Checks {
    running: JoinSet<Probed>,
    /// The attachment that is checked, by domain.
    under_way: BTreeMap<Name, (u64, AbortHandle)>,
    file: StateFile,
    /// What was written last, and when.
    written: History,
    written_at: Option<Instant>,
    /// When a check is to begin, or time alone changes something.
    pub(super) due: Option<Instant>,
}

impl Checks {
    /// With what an earlier agent remembered of networks.
    pub(super) fn read() -> (Self, History) {
        let file = StateFile::named(Path::new(STATE_DIRECTORY), "networks.json");
        let history = match file.read::<Kept>() {
            Ok(kept) => kept.unwrap_or_default().networks,
            Err(error) => {
                // It says in which order networks are tried, no more.
                warn!("{}: networks are forgotten", chain(&error));
                History::default()
            }
        };
        let checks = Self {
            running: JoinSet::new(),
            under_way: BTreeMap::new(),
            file,
            written: history.clone(),
            written_at: None,
            due: None,
        };
        (checks, history)
    }

    /// How domains were when an earlier agent of this boot looked last, and what connection managers said of interfaces
    /// that are still the same.
    pub(super) fn recall(network: &Network) -> (Health, BTreeMap<String, Managed>) {
        let kept = health_file().read::<KeptHealth>().unwrap_or_else(|error| {
            warn!("{}", chain(&error));
            None
        });
        let kept: KeptHealth = kept.unwrap_or_default();
        let managed = kept.managed.into_iter();
        let managed = managed.filter(|(name, (index, _))| {
            let link = network.links.get(index);
            link.is_some_and(|link| link.name == *name)
        });
        let managed = managed.map(|(name, (_, managed))| (name, managed));
        let health = kept.domains.until(clock::since_boot());
        (health, managed.collect())
    }

    /// The next check that has ended.
    pub(super) async fn ended(&mut self) -> Probed {
        loop {
            match self.running.join_next_with_id().await {
                Some(Ok((_, probed))) => return probed,
                Some(Err(ended)) if ended.is_panic() => {
                    error!("a check ended by itself: {ended}");
                    self.under_way
                        .retain(|_, (_, task)| task.id() != ended.id());
                }
                // It was given up, as its domain is another now.
                Some(Err(_)) => {}
                None => pending().await,
            }
        }
    }

    /// When the next check is to begin.
    pub(super) fn next(&self, probes: &[Probe]) -> Option<Duration> {
        let idle = probes.iter().filter(|probe| !self.is_under_way(probe));
        idle.map(|probe| probe.due).min()
    }

    fn is_under_way(&self, probe: &Probe) -> bool {
        let under_way = self.under_way.get(&probe.domain);
        under_way.is_some_and(|(epoch, _)| *epoch == probe.epoch)
    }

    /// Begins what is due, and gives up what nobody wants to know any more.
    fn begin(&mut self, probes: Vec<Probe>, now: Duration) {
        self.under_way.retain(|name, (epoch, task)| {
            let wanted = probes
                .iter()
                .any(|probe| probe.domain == *name && probe.epoch == *epoch);
            if !wanted {
                task.abort();
            }
            wanted
        });
        for probe in probes {
            if probe.due <= now && !self.is_under_way(&probe) {
                let (name, epoch) = (probe.domain.clone(), probe.epoch);
                let task = self.running.spawn_local(check(probe));
                self.under_way.insert(name, (epoch, task));
            }
        }
    }

    fn forget(&mut self, probed: &Probed) {
        let epoch = self.under_way.get(&probed.domain).map(|(epoch, _)| *epoch);
        if epoch == Some(probed.epoch) {
            self.under_way.remove(&probed.domain);
        }
    }

    /// Writes what is known of networks, if it changed and was not written just now.
    fn write(&mut self, history: &History, at_once: bool) {
        let pause = if history.tells_more_than(&self.written) {
            WRITE_PAUSE
        } else {
            GOOD_PAUSE
        };
        let rests = self.written_at.is_some_and(|at| at.elapsed() < pause);
        if *history == self.written || rests && !at_once {
            return;
        }
        self.written_at = Some(Instant::now());
        let kept = Kept {
            networks: history.clone(),
        };
        match self.file.write(&kept) {
            Ok(()) => self.written = kept.networks,
            Err(error) => warn!("{}", chain(&error)),
        }
    }
}

/// What the file holds.
#[derive(Debug, Default, serde::Serialize, serde::Deserialize)]
#[serde(default)]
struct Kept {
    networks: History,
}

/// What the file of this boot holds.
#[derive(Debug, Default, serde::Serialize, serde::Deserialize)]
#[serde(default)]
struct KeptHealth {
    domains: Health,
    /// By the interfaces' names, with their indices.
    managed: BTreeMap<String, (IfIndex, Managed)>,
}

fn health_file() -> StateFile {
    StateFile::named(Path::new(RUN_DIRECTORY), "health.json")
}

/// Removes what is kept for this boot.
///
/// # Errors
/// The file system refuses.
pub(super) fn remove() -> Result<(), statefile::Error> {
    health_file().remove()
}

/// Carries out one check.
async fn check(probe: Probe) -> Probed {
    let began = clock::since_boot();
    let report = probe::run(&probe).await;
    let gateway = match probe.gateways.first() {
        Some(gateway) => hardware_address(netlink::neighbour(probe.interface, *gateway)).await,
        None => None,
    };
    debug!(domain = %probe.domain, ?report, "checked");
    Probed {
        domain: probe.domain,
        epoch: probe.epoch,
        began,
        report,
        gateway,
        counted: sysfs::counted(Path::new(sysfs::INTERFACES), &probe.ifname),
    }
}

async fn hardware_address(
    asked: impl Future<Output = Result<Option<[u8; 6]>, netlink::Error>>,
) -> Option<[u8; 6]> {
    asked.await.unwrap_or_else(|error| {
        warn!("{}", chain(&error));
        None
    })
}

impl Daemon {
    /// Lets time pass.
    pub(super) fn pass_time(&mut self) {
        // Whatever comes of it is settled with what follows.
        if let Err(rejected) = self.engine.apply(Event::Now(clock::now())) {
            error!("time was rejected: {rejected}");
        }
    }

    /// Sees to it that checks begin when they are due.
    pub(super) fn plan_checks(&mut self) {
        let next = self.checks.next(&self.engine.probes());
        let next = next.into_iter().chain(self.engine.deadline()).min();
        self.checks.due = next.map(clock::instant);
    }

    /// Begins the checks that are due, and takes in what time alone changes.
    pub(super) fn begin_checks(&mut self) {
        let now = clock::now();
        self.read_name_servers();
        if self.engine.deadline().is_some_and(|due| due <= now.boot) {
            self.fact(Event::Now(now));
        }
        self.checks.begin(self.engine.probes(), now.boot);
        self.plan_checks();
    }

    /// The host's own name servers may be others by now.
    fn read_name_servers(&mut self) {
        let read = |path: &str| {
            name_servers(Path::new(path)).unwrap_or_else(|error| {
                debug!("{}", chain(&error));
                Vec::new()
            })
        };
        let mut servers = read(RESOLV_CONF);
        if servers.iter().all(|server| server.ip().is_loopback()) {
            // A resolver on the host, which asks others.
            servers.extend(read(RESOLVED));
        }
        if servers != self.engine.state().name_servers
            && let Err(rejected) = self.engine.apply(Event::NameServers(servers))
        {
            error!("name servers were rejected: {rejected}");
        }
    }

    /// Takes in what came of a check.
    pub(super) fn checked(&mut self, probed: Probed) {
        self.checks.forget(&probed);
        self.pass_time();
        let name = probed.domain.clone();
        let proven = |daemon: &Self| daemon.engine.health().get(&name).map(Condition::proven);
        let before = proven(self);
        self.fact(Event::Probed(probed));
        if proven(self) != before {
            self.keep_health();
        }
        self.checks.write(&self.engine.state().history, false);
    }

    /// Keeps how domains are, for the next agent of this boot.
    pub(super) fn keep_health(&self) {
        let network = &self.engine.state().network;
        let managed = network.links.values().filter_map(|link| {
            let managed = network.managed.get(&link.name)?;
            Some((link.name.clone(), (link.index, managed.clone())))
        });
        let kept = KeptHealth {
            domains: self.engine.health().clone(),
            managed: managed.collect(),
        };
        if let Err(error) = health_file().write(&kept) {
            warn!("{}", chain(&error));
        }
    }

    /// Writes what is known of networks: the agent ends.
    pub(super) fn remember_networks(&mut self) {
        self.checks.write(&self.engine.state().history, true);
    }
}
