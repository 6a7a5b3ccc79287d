//! The loop: waits for something to happen, tells the engine, and converges.

use std::collections::BTreeMap;
use std::future::ready;
use std::net::{IpAddr, Ipv6Addr};
use std::time::Duration;

use anyhow::{Context, bail};
use steer_common::{GuardEvent, guard_reason};
use steer_core::cgroups::CgroupChange;
use steer_core::ids::{CgroupId, IfIndex};
use steer_core::name::Name;
use steer_core::network::{Link, NetworkChange};
use steer_core::policy::Match;
use steer_core::state::Event;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio::time::{Instant, MissedTickBehavior, interval, sleep_until};
use tracing::{info, warn};

use super::managers::managed;
use super::{Daemon, Look, clock};
use crate::api::server::Call;
use crate::datapath::{self, EventStream};
use crate::dbus;
use crate::netlink::{Notification, RouterOption, Stations, Watcher};
use crate::reconcile::chain;

/// Longest time that a burst of events is gathered.
const GATHER: Duration = Duration::from_millis(5);

/// Everything is compared with the kernel this often.
const CHECK_ALL: Duration = Duration::from_secs(30);

/// What the kernel refused is tried again after this time, and then less and less often.
const RETRY: Duration = Duration::from_secs(1);

/// The guard's drops are told this often for each policy.
const GUARD_PAUSE: Duration = Duration::from_secs(10);

/// The cgroup tree is read anew for lost events this often at most: any process that makes cgroups fast
/// enough can cause these.
const LOST_PAUSE: Duration = Duration::from_secs(1);

/// Pause after netlink could not be read.
const WATCHER_PAUSE: Duration = Duration::from_millis(50);

/// Events of the kernel programs that are taken before anything else has its turn.
const EVENTS_A_TURN: usize = 1024;

/// What any process may cause without end.
enum Flood {
    Call(Option<Call>),
    Event(std::io::Result<datapath::Event>),
    /// Live flows are to be looked at.
    Flows,
}

/// Where events come from.
pub(super) struct Inputs {
    pub(super) watcher: Watcher,
    pub(super) stations: Stations,
    pub(super) managers: dbus::Watcher,
    pub(super) events: EventStream,
    pub(super) calls: mpsc::Receiver<Call>,
    pub(super) server: JoinHandle<()>,
}

/// Serves until SIGTERM or SIGINT. What is in force stays in force.
pub(super) async fn serve(mut daemon: Daemon, mut inputs: Inputs) -> anyhow::Result<()> {
    let mut terminate = signal(SignalKind::terminate()).context("handle SIGTERM")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("handle SIGINT")?;
    let mut hangup = signal(SignalKind::hangup()).context("handle SIGHUP")?;
    let mut check = interval(CHECK_ALL);
    check.set_missed_tick_behavior(MissedTickBehavior::Delay);
    check.reset();
    // systemd is told only if it asked (NOTIFY_SOCKET).
    sd_notify::notify(&[sd_notify::NotifyState::Ready]).context("tell systemd")?;

    let mut gather: Option<Instant> = None;
    let (mut retry, mut retry_pause): (Option<Instant>, _) = (None, RETRY);
    let mut routing_touched = false;
    let (mut scan, mut scanned): (Option<Instant>, Option<Instant>) = (None, None);
    let signal = loop {
        if (daemon.dirty || routing_touched) && gather.is_none() {
            gather = Some(Instant::now() + GATHER);
        }
        if daemon.reconciler.refused().is_empty() {
            (retry, retry_pause) = (None, RETRY);
        } else if retry.is_none() {
            retry = Some(Instant::now() + retry_pause);
            retry_pause = (retry_pause * 2).min(CHECK_ALL);
        }
        let expiry = daemon.runs.next_deadline();
        let flows = daemon.flows.due();
        // What is decided is in force first, so that whoever connects again gets that. Rules and routes that
        // were touched decide nothing: after each change they were, by the agent itself.
        let judges = !daemon.dirty && daemon.sessions.has_work();
        tokio::select! {
            biased;
            _ = terminate.recv() => break "SIGTERM",
            _ = interrupt.recv() => break "SIGINT",
            // What is wrong is logged: nobody waits for an answer.
            _ = hangup.recv() => drop(daemon.reload().await),
            () = at(gather) => {
                gather = None;
                let look = if std::mem::take(&mut routing_touched) {
                    Look::Routing
                } else {
                    Look::Nothing
                };
                daemon.converge_and_log(look).await;
            }
            batch = inputs.watcher.next() => {
                let batch = match batch {
                    Ok(batch) => batch,
                    Err(error) => {
                        warn!("{}: everything is read again", chain(&error));
                        inputs.watcher.request_dump();
                        // An error that lasts must not keep everything else from its turn.
                        tokio::time::sleep(WATCHER_PAUSE).await;
                        Vec::new()
                    }
                };
                for notification in batch {
                    match notification {
                        Notification::Network(change) => {
                            if loses_carrier(&daemon, &change) {
                                gather = Some(Instant::now());
                            }
                            let network = &daemon.engine.state().network;
                            if network.forgets_station(&change) {
                                inputs.stations.forgotten();
                            }
                            for name in network.names_freed_by(&change) {
                                inputs.managers.forgotten(&name);
                            }
                            daemon.fact(Event::Network(change));
                        }
                        Notification::OwnRule | Notification::OwnRoute => routing_touched = true,
                        Notification::RouterOption { interface, option } => {
                            daemon.fact(Event::Network(announced(interface, option)));
                        }
                    }
                }
            }
            stations = inputs.stations.next() => match stations {
                Ok(stations) => daemon.fact(Event::Network(NetworkChange::Stations(stations))),
                Err(error) => {
                    warn!("{}: what WLANs there are is not known", chain(&error));
                    daemon.fact(Event::Network(NetworkChange::Stations(BTreeMap::new())));
                }
            },
            told = inputs.managers.next() => {
                daemon.fact(Event::Network(NetworkChange::Managed(managed(told))));
                daemon.keep_health();
            }
            emptied = daemon.runs.ended() => {
                for directory in emptied? {
                    daemon.end_run(&directory);
                }
                daemon.expire_runs();
            }
            () = at(expiry) => daemon.expire_runs(),
            () = at(daemon.sessions.deadline) => daemon.sessions.wake(),
            step = daemon.sessions.step() => daemon.sessions_step(step),
            () = at(daemon.checks.due) => daemon.begin_checks(),
            () = at(daemon.stalls.due) => daemon.look_for_stalls(),
            step = daemon.stalls.step() => daemon.stalls_step(step),
            probed = daemon.checks.ended() => daemon.checked(probed),
            () = at(daemon.retire_at) => daemon.retire_domains().await,
            step = daemon.flows.step() => daemon.flows_step(step),
            () = at(retry) => {
                retry = None;
                daemon.converge_and_log(Look::Everything).await;
            }
            () = at(scan) => {
                (scan, scanned) = (None, Some(Instant::now()));
                daemon.check_root()?;
                daemon.converge_and_log(Look::Everything).await;
            }
            _ = check.tick() => {
                daemon.check_root()?;
                daemon.converge_and_log(Look::Everything).await;
            }
            () = at(flows) => daemon.go_on_with_flows(),
            // Last, because any process may cause these without end.
            flood = async {
                // None keeps another from its turn: one of them is taken at random.
                tokio::select! {
                    call = inputs.calls.recv() => Flood::Call(call),
                    event = inputs.events.next() => Flood::Event(event),
                    () = ready(()), if judges => Flood::Flows,
                }
            } => {
                let event = match flood {
                    Flood::Call(Some(call)) => {
                        daemon.call(call).await;
                        continue;
                    }
                    Flood::Flows => {
                        daemon.go_on_with_sessions();
                        continue;
                    }
                    Flood::Call(None) => bail!("the API ended"),
                    Flood::Event(event) => event.context("read the kernel programs' events")?,
                };
                daemon.kernel_event(event);
                for _ in 0..EVENTS_A_TURN {
                    let Some(event) = inputs.events.try_next() else { break };
                    daemon.kernel_event(event);
                }
                if daemon.lost_events() && scan.is_none() {
                    let now = Instant::now();
                    scan = Some(scanned.map_or(now, |last| now.max(last + LOST_PAUSE)));
                }
                // A cgroup below a strict glob is closed until it is decided, and one that was removed
                // may be made again at once: what is in the ring is burst enough.
                if daemon.dirty {
                    daemon.check_root()?;
                    gather = Some(Instant::now());
                }
            }
        }
    };
    daemon.remember_networks();
    daemon.keep_health();
    inputs.server.abort();
    info!("stopped by {signal}; decisions stay in force (`steer detach` removes everything)");
    Ok(())
}

/// Whether a link is gone, or has lost the carrier it had: not to be gathered.
fn loses_carrier(daemon: &Daemon, change: &NetworkChange) -> bool {
    let had = |index: IfIndex| {
        let link = daemon.engine.state().network.links.get(&index);
        link.is_some_and(Link::is_running)
    };
    match change {
        NetworkChange::Link(link) => !link.is_running() && had(link.index),
        NetworkChange::LinkGone(index) => had(*index),
        _ => false,
    }
}

/// What a router announces, as the engine takes it.
fn announced(interface: IfIndex, option: RouterOption) -> NetworkChange {
    match option {
        RouterOption::Servers {
            addresses,
            lifetime,
        } => {
            let addresses = addresses.into_iter().map(IpAddr::V6);
            let until = clock::since_boot().saturating_add(lifetime);
            NetworkChange::Servers(interface, addresses.collect(), until)
        }
        RouterOption::Portal(api) => NetworkChange::Portal(interface, api),
    }
}

/// Completes at `deadline`, or never.
async fn at(deadline: Option<Instant>) {
    match deadline {
        Some(deadline) => sleep_until(deadline).await,
        None => std::future::pending().await,
    }
}

impl Daemon {
    /// The programs hang on the managed root, and go with it: nothing below another directory of its
    /// name would be steered.
    fn check_root(&self) -> anyhow::Result<()> {
        match self.tree.root_id() {
            Ok(id) if id == self.engine.state().cgroup_root => Ok(()),
            _ => bail!(
                "the managed cgroup {} was removed, and every policy with it: start the agent again",
                self.tree.root().display()
            ),
        }
    }

    fn kernel_event(&mut self, event: datapath::Event) {
        match event {
            datapath::Event::CgroupMade { id, parent, name } => {
                self.made.insert(CgroupId(id));
                self.reconciler.cgroup_made(CgroupId(id));
                self.fact(Event::Cgroups(CgroupChange::Made {
                    id: CgroupId(id),
                    parent: CgroupId(parent),
                    name,
                }));
            }
            datapath::Event::CgroupRemoved { id } => self.cgroup_removed(CgroupId(id)),
            datapath::Event::Guard(event) => self.guard_dropped(&event),
        }
    }

    /// Whether events were lost since this was asked last. Behind the last one that was lost there is
    /// always one in the ring, which was full, so that asking after each turn misses none.
    fn lost_events(&mut self) -> bool {
        let lost = match self.reconciler.counters() {
            Ok(counters) => counters.events_lost,
            Err(error) => {
                warn!("{}", chain(&error));
                return false;
            }
        };
        let more = lost.saturating_sub(self.events_lost);
        if more > 0 {
            warn!("{more} events of the kernel programs were lost: everything is read again");
        }
        self.events_lost = lost;
        more > 0
    }

    /// A cgroup is gone, and with it the policies that were set for it alone.
    fn cgroup_removed(&mut self, id: CgroupId) {
        self.end_policies_of(id);
        self.fact(Event::Cgroups(CgroupChange::Removed(id)));
    }

    /// Unsets the policies that were set for one cgroup alone.
    pub(super) fn end_policies_of(&mut self, id: CgroupId) {
        let policies = self.engine.state().api_policies.values();
        let ended: Vec<Name> = policies
            .filter(|policy| policy.matches == [Match::CgroupId(id)])
            .map(|policy| policy.name.clone())
            .collect();
        for name in ended {
            self.fact(Event::UnsetPolicy(name));
        }
    }

    /// Says once in a while that the guard drops packets of a policy; the counters say how many.
    fn guard_dropped(&mut self, event: &GuardEvent) {
        let now = Instant::now();
        let told = self.guard_told.get(&event.policy);
        if told.is_some_and(|told| now - *told < GUARD_PAUSE) {
            return;
        }
        self.guard_told.retain(|_, told| now - *told < GUARD_PAUSE);
        self.guard_told.insert(event.policy, now);
        let policy = self.engine.state().memory.policies.key(event.policy);
        warn!(
            policy = policy.and_then(|chain| chain.first()).map_or("undecided", Name::as_str),
            interface = self.interface(IfIndex(event.ifindex)),
            source = %Ipv6Addr::from(event.source).to_canonical(),
            destination = %Ipv6Addr::from(event.destination).to_canonical(),
            reason = match event.reason {
                guard_reason::INTERFACE => "not its domain's interface",
                guard_reason::SOURCE => "not its domain's address",
                _ => "no domain is chosen for it",
            },
            "the guard dropped a packet"
        );
    }
}
