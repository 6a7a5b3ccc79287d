//! Sees when packets of a domain's own connections go out and none come back: the domain is then checked at
//! once, sooner than its check is due.
//!
//! TCP counts for itself what it sends and gets, repetitions too, so nothing is paid for by packets. Only flows
//! of domains that are in use and checked are listed, on a thread, and the less often the longer that takes.

use std::collections::{BTreeMap, HashMap};
use std::future::pending;
use std::time::Duration;

use steer_core::name::Name;
use steer_core::state::Event;
use tokio::runtime::Handle;
use tokio::task::{JoinError, JoinHandle, spawn_blocking};
use tokio::time::Instant;
use tracing::{debug, warn};

use super::Daemon;
use crate::netlink::{Condition, LiveFlow, Wanted, live_flows};
use crate::reconcile::chain;

/// Flows are looked at this often at most.
const SHORTEST_PAUSE: Duration = Duration::from_millis(250);

/// They are looked at this often for each interval of the checks.
const LOOKS_AN_INTERVAL: u32 = 4;

/// At most one part in so many of the time is spent with looking.
const SHARE: u32 = 20;

/// So many packets without any back are a stall: a handshake that is repeated twice, for instance.
const MANY: u32 = 3;

/// What was seen of flows, and the look that is under way.
#[derive(Default)]
pub(super) struct Stalls {
    looking: Option<(Instant, JoinHandle<Listed>)>,
    /// Packets that each connection sent and got, by cookie.
    seen: HashMap<u64, (u32, u32)>,
    /// When the next look begins.
    pub(super) due: Option<Instant>,
}

/// What a look came to.
pub(super) struct Step(Result<Listed, JoinError>);

/// What a thread came to: the flows, or why there are none.
type Listed = Result<Vec<LiveFlow>, String>;

impl Stalls {
    /// The end of the look that is under way.
    pub(super) async fn step(&mut self) -> Step {
        match &mut self.looking {
            Some((_, thread)) => Step(thread.await),
            None => pending().await,
        }
    }

    /// Domains whose connections sent something since the last look, and got nothing.
    fn stalled(&mut self, flows: &[LiveFlow], marks: &BTreeMap<u32, Name>, mask: u32) -> Vec<Name> {
        let mut sums: BTreeMap<u32, (u32, u32)> = BTreeMap::new();
        let mut seen = HashMap::with_capacity(flows.len());
        for flow in flows {
            let Some(carried) = flow.carried else {
                continue;
            };
            let now = (carried.packets_out, carried.packets_in);
            let before = self.seen.get(&flow.cookie).copied().unwrap_or((0, 0));
            let sum = sums.entry(flow.mark & mask).or_default();
            sum.0 = sum.0.saturating_add(now.0.wrapping_sub(before.0));
            sum.1 = sum.1.saturating_add(now.1.wrapping_sub(before.1));
            seen.insert(flow.cookie, now);
        }
        self.seen = seen;
        let stalled = sums.iter().filter(|(_, sum)| sum.0 >= MANY && sum.1 == 0);
        let names = stalled.filter_map(|(mark, _)| marks.get(mark).cloned());
        names.collect()
    }
}

impl Daemon {
    /// Marks of the domains whose flows are worth a look, and how often.
    fn in_use_and_checked(&self) -> (BTreeMap<u32, Name>, Option<Duration>) {
        let chosen = &self.engine.state().chosen;
        let in_use = |name: &Name| chosen.values().any(|chosen| chosen.contains(name));
        let probes = self.engine.probes().into_iter();
        let probes: Vec<_> = probes.filter(|probe| in_use(&probe.domain)).collect();
        let intervals = probes.iter().map(|probe| probe.check.interval);
        let pause = intervals.min().map(|shortest| shortest / LOOKS_AN_INTERVAL);
        let marks = probes.into_iter().map(|probe| (probe.mark, probe.domain));
        (
            marks.collect(),
            pause.map(|pause| pause.max(SHORTEST_PAUSE)),
        )
    }

    /// Sees to it that flows are looked at while there is anything to see.
    pub(super) fn plan_stalls(&mut self) {
        if self.stalls.due.is_none() && self.stalls.looking.is_none() {
            let (_, pause) = self.in_use_and_checked();
            self.stalls.due = pause.map(|pause| Instant::now() + pause);
        }
    }

    /// Begins a look.
    pub(super) fn look_for_stalls(&mut self) {
        self.stalls.due = None;
        let (marks, _) = self.in_use_and_checked();
        if marks.is_empty() {
            self.stalls.seen.clear();
            return;
        }
        let mask = self.engine.state().config.agent.mark_mask.bits();
        let conditions: Vec<Condition> = marks
            .into_keys()
            .map(|mark| Condition::Mark { mark, mask })
            .collect();
        let runtime = Handle::current();
        let thread = spawn_blocking(move || {
            let wanted = Wanted {
                any: &conditions,
                carried: true,
                ..Wanted::default()
            };
            let listed = runtime.block_on(live_flows(wanted));
            listed.map_err(|error| chain(&error))
        });
        self.stalls.looking = Some((Instant::now(), thread));
    }

    /// Takes in what a look came to.
    pub(super) fn stalls_step(&mut self, Step(listed): Step) {
        let began = self.stalls.looking.take().map(|(began, _)| began);
        let (marks, pause) = self.in_use_and_checked();
        let mask = self.engine.state().config.agent.mark_mask.bits();
        match listed {
            Ok(Ok(flows)) => {
                for name in self.stalls.stalled(&flows, &marks, mask) {
                    debug!(domain = %name, "none of its packets come back");
                    self.pass_time();
                    self.fact(Event::Stalled(name));
                }
            }
            Ok(Err(words)) => warn!("{words}"),
            Err(error) => warn!("the thread that lists flows ended: {error}"),
        }
        let rest = began.map_or(Duration::ZERO, |began| began.elapsed() * SHARE);
        self.stalls.due = pause.map(|pause| Instant::now() + pause.max(rest));
    }
}

#[cfg(test)]
mod tests {
    use std::net::SocketAddr;

    use super::*;
    use crate::netlink::{Carried, FlowPhase, Transport};

    fn flow(cookie: u64, mark: u32, out: u32, back: u32) -> LiveFlow {
        let nowhere: SocketAddr = ([0, 0, 0, 0], 0).into();
        LiveFlow {
            transport: Transport::Tcp,
            phase: FlowPhase::Open,
            local: nowhere,
            peer: nowhere,
            v6: false,
            accepted: false,
            uid: 0,
            inode: 0,
            cookie,
            mark,
            cgroup: 0,
            interface: 0,
            carried: Some(Carried {
                packets_out: out,
                packets_in: back,
                ..Carried::default()
            }),
            state: None,
        }
    }

    #[test]
    fn a_domain_stalls_when_much_goes_out_and_nothing_comes_back_on_any_of_its_flows() {
        let wlan = Name::new("wlan0").unwrap();
        let marks = BTreeMap::from([(0x10, wlan.clone())]);
        let mut stalls = Stalls::default();
        let mut look = |flows: &[LiveFlow]| stalls.stalled(flows, &marks, 0xf0);
        // A new one that asks in vain; bits outside the mask are others'.
        assert_eq!(look(&[flow(1, 0x11, 2, 0)]), []);
        let stalled = std::slice::from_ref(&wlan);
        assert_eq!(look(&[flow(1, 0x11, 5, 0)]), stalled);
        // Another one gets something.
        assert_eq!(look(&[flow(1, 0x11, 9, 0), flow(2, 0x10, 4, 1)]), []);
        assert_eq!(
            look(&[flow(1, 0x11, 9, 0), flow(2, 0x10, 4, 1)]),
            [],
            "silence"
        );
        assert_eq!(look(&[flow(1, 0x11, 9, 0), flow(2, 0x10, 7, 1)]), stalled);
        // That of nobody.
        assert_eq!(look(&[flow(3, 0x20, 100, 0)]), []);
    }
}
