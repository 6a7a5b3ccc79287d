//! Ten minutes of carriers, addresses and paths that come and go, on a clock that is told: in the end the agent
//! has chosen what a fresh one would.
#![expect(clippy::unwrap_used, reason = "a failure is a failed test")]

mod support;

use std::time::Duration;

use proptest::prelude::*;
use steer_core::engine::Engine;
use steer_core::health::{Now, Probed};
use steer_core::ids::IfIndex;
use steer_core::network::{Network, NetworkChange};
use steer_core::probe::{Outcome, Probe, Report};
use steer_core::select::Verdict;
use steer_core::state::{Event, State};
use support::{add_uplink, address, carrier, config, made, name};

const UPLINKS: [&str; 3] = ["wlan0", "lte0", "eth0"];

/// Policies of every kind of wish that does not look back further than the last check.
const FILE: &str = "\
    [agent]\n\
    check = { icmp = \"192.0.2.99\", interval = \"5s\" }\n\
    [domain.wlan0]\nkind = \"wlan\"\ncost = 2\n\
    [domain.lte0]\nkind = \"cellular\"\ncost = 9\nmetered = true\n\
    [domain.eth0]\nkind = \"wired\"\n\
    [group.g]\ndomains = [\"wlan0\", \"lte0\"]\n\
    [policy.listed]\nmatch.cgroup = \"a\"\nuse = [\"wlan0\", \"lte0\", \"eth0\"]\n\
    [policy.any]\nmatch.cgroup = \"b\"\nuse = \"any\"\n\
    [policy.cheap]\nmatch.cgroup = \"c\"\nuse = \"any\"\nprefer = \"cost\"\nrequire = { metered = false }\n\
    [policy.grouped]\nmatch.cgroup = \"d\"\nuse = \"g\"\notherwise = \"next\"\nstrict = false\n\
    [policy.default]\nuse = \"eth0\"\notherwise = \"pass\"\n";

/// What is really the matter with a domain's path.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Path {
    Good,
    Dead,
    Portal,
}

/// Something that happens.
#[derive(Clone, Copy, Debug)]
enum Change {
    Carrier(usize, bool),
    Address(usize, bool),
    Path(usize, Path),
    Stall(usize),
    /// Everything is read anew.
    Dump,
}

/// A host and what is really the matter with it.
struct Host {
    engine: Engine,
    /// As the kernel would tell it, all at once.
    network: Network,
    paths: [Path; 3],
    now: Duration,
}

impl Host {
    fn new(network: Network, paths: [Path; 3], now: Duration) -> Self {
        let mut state = State::new(steer_core::ids::CgroupId(1));
        state.config = config(FILE);
        state.network = network.clone();
        let mut host = Self {
            engine: engine(state),
            network,
            paths,
            now,
        };
        host.tick();
        host
    }

    fn tick(&mut self) {
        let wall = 1_000_000 + self.now.as_secs();
        let boot = self.now;
        self.engine.apply(Event::Now(Now { boot, wall })).unwrap();
        self.engine.settle();
    }

    /// Lets time pass until `end`, carries out each check when it is due, and looks when time alone matters.
    fn run(&mut self, end: Duration) {
        loop {
            let probes = self.engine.probes();
            let probe = probes.into_iter().min_by_key(|probe| probe.due);
            let due = probe.as_ref().map_or(end, |probe| probe.due.max(self.now));
            let deadline = self.engine.deadline().map_or(end, |at| at.max(self.now));
            let next = due.min(deadline);
            if next >= end {
                break;
            }
            // A deadline that is not over when it is there would keep time from going on.
            self.now = if next == self.now && due > next {
                next + Duration::from_millis(1)
            } else {
                next
            };
            self.tick();
            if let Some(probe) = probe.filter(|probe| probe.due <= self.now) {
                self.carry_out(&probe);
            }
        }
        self.now = end;
        self.tick();
    }

    fn carry_out(&mut self, probe: &Probe) {
        let at = UPLINKS.iter().position(|one| *one == probe.domain.as_str());
        let path = self.paths[at.unwrap()];
        let report = Report {
            outcome: match path {
                Path::Good => Outcome::Passed,
                Path::Dead => Outcome::Failed("no answer".to_owned()),
                Path::Portal => Outcome::Portal(None),
            },
            rtt: (path == Path::Good).then_some(Duration::from_millis(20)),
            asked: 1,
            lost: u32::from(path == Path::Dead),
        };
        let probed = Probed {
            domain: probe.domain.clone(),
            epoch: probe.epoch,
            began: self.now,
            report,
            gateway: None,
            counted: None,
        };
        self.engine.apply(Event::Probed(probed)).unwrap();
        self.engine.settle();
    }

    fn change(&mut self, change: Change) {
        let index = |at: usize| u32::try_from(at + 2).unwrap();
        let event = match change {
            Change::Carrier(at, up) => carrier(&self.network, index(at), up),
            Change::Address(at, there) => {
                let address = address(index(at), &format!("192.0.{}.10/24", index(at)));
                Event::Network(if there {
                    NetworkChange::Address(address)
                } else {
                    NetworkChange::AddressGone(IfIndex(index(at)), address.ip)
                })
            }
            Change::Path(at, path) => {
                self.paths[at] = path;
                return;
            }
            Change::Stall(at) => Event::Stalled(name(UPLINKS[at])),
            Change::Dump => Event::Network(NetworkChange::Dump(self.network.clone())),
        };
        if let Event::Network(change) = &event {
            self.network.apply(change.clone());
        }
        self.engine.apply(event).unwrap();
        self.engine.settle();
    }

    fn decisions(&self) -> Vec<(Verdict, Vec<bool>)> {
        ["listed", "any", "cheap", "grouped", "default"]
            .iter()
            .map(|policy| {
                let decision = self.engine.decision(policy).unwrap();
                let taken = decision.candidates.iter().map(|one| one.taken);
                (decision.verdict.clone(), taken.collect())
            })
            .collect()
    }
}

/// With a cgroup for each policy.
fn engine(state: State) -> Engine {
    let mut engine = Engine::new(state);
    for (id, cgroup) in (10..).zip(["a", "b", "c", "d"]) {
        engine.apply(made(id, 1, cgroup)).unwrap();
    }
    engine
}

fn network() -> Network {
    let mut network = Network::default();
    for (index, uplink) in (2..).zip(UPLINKS) {
        add_uplink(&mut network, index, uplink);
    }
    network
}

fn changes() -> impl Strategy<Value = Change> {
    let at = 0..UPLINKS.len();
    let path = prop_oneof![Just(Path::Good), Just(Path::Dead), Just(Path::Portal)];
    prop_oneof![
        4 => (at.clone(), any::<bool>()).prop_map(|(at, up)| Change::Carrier(at, up)),
        2 => (at.clone(), any::<bool>()).prop_map(|(at, there)| Change::Address(at, there)),
        4 => (at.clone(), path).prop_map(|(at, path)| Change::Path(at, path)),
        1 => at.prop_map(Change::Stall),
        1 => Just(Change::Dump),
    ]
}

/// Nothing of what happened matters any more then: not even a loss, which is remembered for ten minutes.
const QUIET: Duration = Duration::from_secs(660);

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn ten_minutes_of_changes_end_where_a_fresh_agent_begins(
        changes in proptest::collection::vec((0u64..10_000, changes()), 60..240),
    ) {
        let mut host = Host::new(network(), [Path::Good; 3], Duration::from_secs(1));
        let end = host.now + Duration::from_secs(600);
        for (wait, change) in changes {
            let next = (host.now + Duration::from_millis(wait)).min(end);
            host.run(next);
            host.change(change);
        }
        host.run(end + QUIET);
        let mut fresh = Host::new(host.network.clone(), host.paths, host.now);
        fresh.run(host.now + QUIET);
        prop_assert_eq!(host.decisions(), fresh.decisions());
        // And what is chosen is never worse than something else that is there.
        for (verdict, _) in host.decisions() {
            let Verdict::Steer(domain) = verdict else { continue };
            let at = UPLINKS.iter().position(|one| *one == domain.as_str()).unwrap();
            prop_assert_ne!(host.paths[at], Path::Portal, "{}", domain);
        }
    }
}
