//! Random networks, cgroups, policies and files, and what happens to them.

use std::net::IpAddr;

use std::time::Duration;

use proptest::option;
use proptest::prelude::*;
use proptest::sample::select;
use steer_core::cgroups::CgroupChange;
use steer_core::engine::Engine;
use steer_core::health::{Now, Probed};
use steer_core::ids::{CgroupId, DomainIndex, IfIndex, TableId};
use steer_core::network::{Address, ForeignRule, Link, LinkKind, NetworkChange, Route};
use steer_core::pattern::{CgroupPattern, UnitName};
use steer_core::plan::Object;
use steer_core::policy::{LocalNetworks, Match, Origin, Otherwise, Policy, Rebind, Share};
use steer_core::probe::{Outcome, Report};
use steer_core::rules::{Dscp, Flow, Ports, Protocol, Rule, Rules};
use steer_core::state::{Event, State};

use super::{config, ip, name, two_uplinks};

const INTERFACES: [&str; 5] = ["lo", "wlan0", "lte0", "eth0", "odd,name"];
const CGROUPS: [&str; 4] = ["a", "b", "x.service", "y.scope"];

/// Files to choose from: none, groups and strictness, a narrow mask, overlapping domains, checks and criteria.
pub(crate) const FILES: [&str; 7] = [
    "",
    "group.g.domains = [\"lte0\", \"wlan0\"]\npolicy.default.use = [\"g\"]\n",
    "agent.mark-mask = 1\n[policy.f]\nmatch.cgroup = \"a/**\"\nuse = \"wlan0\"\nstrict = true\n",
    "[domain.one]\nmatch.interface = \"wlan0\"\nsources = \"10.0.0.1\"\n[domain.two]\nsources = \
     \"10.0.0.1\"\nmatch.interface = \"lte0\"\ngateways = [\"10.0.0.9\"]\n[policy.f]\nmatch.unit = \
     \"x.service\"\nuse = [\"two\", \"one\"]\nstrict = true\n[policy.default]\nuse = \"wlan0\"\n",
    "agent.discover = false\n[domain.lte0]\nmatch.kind = \"cellular\"\n[policy.p1]\nmatch.cgroup = \
     \"*\"\nuse = \"lte0\"\notherwise = \"next\"\n",
    "group.g.domains = [\"lte0\", \"wlan0\", \"eth0\"]\n[domain.lte0]\nweight = 3\n[domain.eth0]\nweight = 0\n\
     [policy.default]\nuse = \"g\"\nshare = \"destination\"\n[[policy.default.rule]]\nports = 443\nuse = \
     \"wlan0\"\notherwise = \"next\"\n[policy.f]\nmatch.cgroup = \"a/*\"\nuse = \"g\"\nstrict = true\nshare = \
     \"flow\"\n[[policy.f.rule]]\ndestination = \"10.0.0.0/8\"\nuse = \"g\"\n",
    "[agent]\ncheck = { icmp = \"gateway\", fall = 2 }\n[domain.lte0]\ncost = 3\n[policy.default]\nuse = \
     \"any\"\nprefer = [\"latency\", \"cost\"]\notherwise = \"pass\"\n[policy.f]\nmatch.cgroup = \"a\"\nuse = \
     [\"any-cellular\", \"wlan0\"]\nstrict = true\nrequire = { max-latency = \"50ms\" }\n",
];

fn ips() -> impl Strategy<Value = IpAddr> {
    prop_oneof![
        4 => (0u8..3, 1u8..4).prop_map(|(net, host)| IpAddr::from([10, 0, net, host])),
        3 => (0u16..3, 1u16..4).prop_map(|(net, host)| IpAddr::from([0x2001, 0xdb8, net, 0, 0, 0, 0, host])),
        1 => Just(ip("fe80::1")),
        1 => Just(ip("169.254.0.1")),
        1 => any::<IpAddr>(),
    ]
}

fn interfaces() -> impl Strategy<Value = IfIndex> {
    (1u32..6).prop_map(IfIndex)
}

prop_compose! {
    fn links()(
        index in interfaces(),
        at in 0..INTERFACES.len(),
        kind in prop_oneof![Just(LinkKind::Wlan), Just(LinkKind::Cellular)],
        up in prop::bool::weighted(0.8),
        carrier in prop::bool::weighted(0.8),
        bridge in prop::bool::weighted(0.1),
        master in option::weighted(0.1, interfaces()),
    ) -> Link {
        let loopback = INTERFACES[at] == "lo";
        let name = INTERFACES[at].to_owned();
        Link { index, under: None, name, kind, up, carrier, loopback, master, bridge, mac: None, mtu: 1500 }
    }
}

prop_compose! {
    fn addresses()(
        interface in interfaces(),
        ip in ips(),
        len in prop_oneof![Just(24u8), Just(32), Just(64), any::<u8>()],
        peer in option::weighted(0.1, ips()),
        global in prop::bool::weighted(0.9),
        usable in prop::bool::weighted(0.9),
        deprecated in prop::bool::weighted(0.1),
        temporary: bool,
    ) -> Address {
        Address { interface, ip, prefix_len: len, peer, global, usable, deprecated, temporary }
    }
}

prop_compose! {
    fn routes()(
        interface in interfaces(),
        net in ips(),
        len in prop_oneof![Just(0u8), Just(24), Just(64)],
        gateway in option::of(ips()),
        prefsrc in option::weighted(0.2, ips()),
        metric in prop_oneof![0u32..3, Just(u32::MAX)],
        table in prop_oneof![4 => Just(254u32), 1 => Just(1000)],
    ) -> Route {
        let net = ipnet::IpNet::from(net);
        let len = len.min(net.max_prefix_len());
        let destination = ipnet::IpNet::new(net.addr(), len).unwrap().trunc();
        Route {
            table: TableId(table), destination, metric, interface, gateway, onlink: false, prefsrc,
            mtu: None, source: None,
        }
    }
}

prop_compose! {
    fn foreign_rules()(
        v6: bool,
        invert: bool,
        fwmark in option::of(0u32..2),
        narrow: bool,
        table in option::of(prop_oneof![Just(254u32), Just(51820)]),
    ) -> ForeignRule {
        ForeignRule {
            v6, priority: 100, invert, fwmark: fwmark.map(|mark| (mark, u32::MAX)), from: None,
            to: None, narrow, table: table.map(TableId), suppress_prefix_len: None,
        }
    }
}

fn paths() -> impl Strategy<Value = String> {
    let level = prop_oneof![
        4 => (0..CGROUPS.len()).prop_map(|at| CGROUPS[at]),
        1 => Just("*"),
        1 => Just("**"),
        1 => Just("*.scope"),
    ];
    proptest::collection::vec(level, 1..4).prop_map(|levels| levels.join("/"))
}

fn matches() -> impl Strategy<Value = Match> {
    prop_oneof![
        6 => paths().prop_map(|path| Match::Cgroup(CgroupPattern::new(&path).unwrap())),
        1 => Just(Match::Unit(UnitName::new("x.service").unwrap())),
        1 => (1u64..9).prop_map(|id| Match::CgroupId(CgroupId(id))),
    ]
}

/// Rules as files can have them.
fn rules(strict: bool) -> impl Strategy<Value = Vec<Rule>> {
    let destinations = select(vec![
        None,
        Some("10.0.0.0/8"),
        Some("10.0.1.0/24"),
        Some("2001:db8::/32"),
    ]);
    let otherwise = if strict {
        vec![None, Some(Otherwise::Block)]
    } else {
        vec![
            None,
            Some(Otherwise::Block),
            Some(Otherwise::Pass),
            Some(Otherwise::Next),
        ]
    };
    let rule = (
        destinations,
        option::weighted(0.4, select(vec![443, 53])),
        option::weighted(0.2, Just(Protocol(17))),
        option::weighted(0.1, Just(Dscp::new(46).unwrap())),
        option::weighted(0.1, Just("10.0.0.0/8")),
        proptest::collection::vec(select(vec!["wlan0", "lte0", "eth0", "g", "two"]), 0..3),
        select(otherwise),
    );
    let rule = rule.prop_map(|(to, port, protocol, dscp, from, use_, otherwise)| {
        let nothing = use_.is_empty() && otherwise.is_none();
        Rule {
            source: from.map(|net| net.parse().unwrap()).into_iter().collect(),
            destination: to.map(|net| net.parse().unwrap()).into_iter().collect(),
            ports: port
                .and_then(|port| Ports::new(port, port))
                .into_iter()
                .collect(),
            protocol: protocol.into_iter().collect(),
            dscp: dscp.into_iter().collect(),
            use_: use_.into_iter().map(name).collect(),
            otherwise: if nothing {
                Some(Otherwise::Block)
            } else {
                otherwise
            },
            ..Rule::default()
        }
    });
    prop_oneof![
        2 => Just(Vec::new()),
        1 => proptest::collection::vec(rule, 1..4),
    ]
}

/// Flows that rules tell apart.
pub(crate) fn kinds_of_flow() -> Vec<Flow> {
    let destinations = [
        "10.0.0.9",
        "10.0.1.9",
        "203.0.113.9",
        "2001:db8:1::9",
        "2a00::9",
    ];
    let kinds = [(6, 443), (6, 80), (17, 443), (17, 53)];
    destinations
        .iter()
        .flat_map(|destination| {
            kinds.map(|(protocol, port)| Flow {
                protocol,
                port,
                ..Flow::to(ip(destination))
            })
        })
        .collect()
}

prop_compose! {
    /// What of a policy only files can say.
    fn finer(strict: bool)(
        rules in rules(strict),
        share in option::weighted(0.3, select(vec![Share::Flow, Share::Destination])),
        datagram in prop::bool::weighted(0.2),
    ) -> (Rules, Option<Share>, Rebind) {
        (rules.into(), share, if datagram { Rebind::Datagram } else { Rebind::Flow })
    }
}

prop_compose! {
    pub(crate) fn policies()(
        strict in prop::bool::weighted(0.3),
    )(
        finer in finer(strict).boxed(),
        policy in coarse(strict).boxed(),
    ) -> Policy {
        let (rules, share, rebind) = finer;
        Policy { rules, share, rebind, ..policy }
    }
}

prop_compose! {
    fn coarse(strict: bool)(
        at in 0..6,
        origin in prop_oneof![Just(Origin::App), Just(Origin::User), Just(Origin::Operator)],
        matches in proptest::collection::vec(matches(), 1..3),
        use_ in proptest::collection::vec(
            prop_oneof![Just("wlan0"), Just("lte0"), Just("eth0"), Just("g"), Just("one"), Just("two")],
            0..3,
        ),
        otherwise in prop_oneof![Just(Otherwise::Block), Just(Otherwise::Pass), Just(Otherwise::Next)],
        steer: bool,
        priority in 0..2,
        owner in option::of(1000u32..1002),
    ) -> Policy {
        Policy {
            owner,
            otherwise: if strict { Otherwise::Block } else { otherwise },
            local_networks: if steer { LocalNetworks::Steer } else { LocalNetworks::Pass },
            priority,
            ..Policy::new(name(&format!("p{at}")), origin, matches, use_.into_iter().map(name).collect(), strict)
        }
    }
}

/// Wishes of users, also for what does not exist.
fn preferences() -> impl Strategy<Value = Event> {
    let policies = ["p0", "p1", "p2", "p3", "p4", "p5", "f", "default"];
    let domains = ["wlan0", "lte0", "eth0", "one", "two", "g"];
    let domains = option::weighted(
        0.8,
        (0..domains.len()).prop_map(move |at| name(domains[at])),
    );
    (0..policies.len(), domains).prop_map(move |(at, domain)| Event::Prefer {
        policy: name(policies[at]),
        domain,
    })
}

/// Anything that can happen to an engine.
///
/// On the heap, since the strategies as plain values are too large for the stack of a test's thread.
fn outcomes() -> impl Strategy<Value = Outcome> {
    prop_oneof![
        3 => Just(Outcome::Passed),
        2 => Just(Outcome::Failed("no answer".to_owned())),
        1 => Just(Outcome::Portal(None)),
    ]
}

/// What comes of checks, and the time.
fn checks() -> impl Strategy<Value = Event> {
    let names = || select(vec!["wlan0", "lte0", "eth0", "one", "two"]).prop_map(name);
    let probed = (
        names(),
        0u64..4,
        outcomes(),
        option::of(0u64..100),
        any::<bool>(),
    )
        .prop_map(|(domain, epoch, outcome, rtt, known)| {
            Event::Probed(Probed {
                domain,
                epoch,
                began: Duration::ZERO,
                report: Report {
                    outcome,
                    rtt: rtt.map(Duration::from_millis),
                    asked: 1,
                    lost: u32::from(rtt.is_none()),
                },
                gateway: known.then_some([2, 0, 0, 0, 0, 1]),
                counted: None,
            })
        });
    prop_oneof![
        6 => probed,
        2 => (0u64..700).prop_map(|seconds| Event::Now(Now {
            boot: Duration::from_secs(seconds),
            wall: 1_000_000 + seconds,
        })),
        1 => names().prop_map(Event::Stalled),
        1 => names().prop_map(Event::Recheck),
    ]
}

pub(crate) fn events() -> BoxedStrategy<Event> {
    let network = prop_oneof![
        3 => links().prop_map(NetworkChange::Link),
        1 => interfaces().prop_map(NetworkChange::LinkGone),
        3 => addresses().prop_map(NetworkChange::Address),
        1 => (interfaces(), ips()).prop_map(|(interface, ip)| NetworkChange::AddressGone(interface, ip)),
        3 => routes().prop_map(NetworkChange::Route),
        1 => routes().prop_map(NetworkChange::RouteGone),
        1 => foreign_rules().prop_map(NetworkChange::Rule),
        1 => foreign_rules().prop_map(NetworkChange::RuleGone),
        1 => Just(NetworkChange::Dump(two_uplinks())),
    ]
    .boxed();
    let made =
        (2u64..9, 1u64..9, 0..CGROUPS.len()).prop_map(|(id, parent, at)| CgroupChange::Made {
            id: CgroupId(id),
            parent: CgroupId(parent),
            name: CGROUPS[at].to_owned(),
        });
    let object = prop_oneof![Just(Object::Domain(name("wlan0"))), Just(Object::Guard)];
    prop_oneof![
        8 => network.prop_map(Event::Network),
        6 => made.prop_map(Event::Cgroups),
        2 => (1u64..9).prop_map(|id| Event::Cgroups(CgroupChange::Removed(CgroupId(id)))),
        6 => policies().boxed().prop_map(Event::SetPolicy),
        2 => (0..6).prop_map(|at| Event::UnsetPolicy(name(&format!("p{at}")))),
        3 => preferences(),
        6 => checks().boxed(),
        1 => (0..FILES.len()).prop_map(|at| Event::Config(Box::new(config(FILES[at])))),
        1 => proptest::collection::btree_set((1u16..4).prop_map(DomainIndex), 0..3)
            .prop_map(Event::IndicesInUse),
        1 => (object, any::<bool>()).prop_map(|(object, ok)| {
            Event::Outcome(object, if ok { Ok(()) } else { Err("no".to_owned()) })
        }),
        1 => (prop_oneof![Just(1u64), 2u64..9], proptest::collection::btree_set((2u64..9).prop_map(CgroupId), 0..2))
            .prop_map(|(root, exempt)| Event::Managed { root: CgroupId(root), exempt }),
    ]
    .boxed()
}

/// A host that has something to do, so that few events already matter.
pub(crate) fn start() -> Engine {
    let mut state = State::new(CgroupId(1));
    state.network = two_uplinks();
    Engine::new(state)
}
