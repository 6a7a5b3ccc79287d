//! What holds for every state and every sequence of events.
#![expect(clippy::unwrap_used, reason = "a failure is a failed test")]

mod support;

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use proptest::prelude::*;
use steer_common::{MarkMask, cgroup_flags, policy_flags, verdict};
use steer_core::cgroups::CgroupChange;
use steer_core::engine::{Engine, plan};
use steer_core::ids::{CgroupId, ChoiceId, DomainIndex, IfIndex, PolicyId, TableId};
use steer_core::network::{Address, ForeignRule, Link, LinkKind, NetworkChange, Route};
use steer_core::pattern::{CgroupPattern, UnitName};
use steer_core::plan::{Plan, RouteTarget, RuleAction};
use steer_core::policy::{LocalNetworks, Match, Origin, Otherwise, Policy};
use steer_core::state::{Event, Object, State};
use support::{config, name, two_uplinks};

const INTERFACES: [&str; 5] = ["lo", "wlan0", "lte0", "eth0", "odd,name"];
const CGROUPS: [&str; 4] = ["a", "b", "x.service", "y.scope"];

/// Files to choose from: none, groups and strictness, a narrow mask, overlapping domains.
const FILES: [&str; 5] = [
    "",
    "group.g.domains = [\"lte0\", \"wlan0\"]\npolicy.default.use = [\"g\"]\n",
    "agent.mark-mask = 1\n[policy.f]\nmatch.cgroup = \"a/**\"\nuse = \"wlan0\"\nstrict = true\n",
    "[domain.one]\nmatch.interface = \"wlan0\"\nsources = \"10.0.0.1\"\n[domain.two]\nsources = \
     \"10.0.0.1\"\nmatch.interface = \"lte0\"\ngateways = [\"10.0.0.9\"]\n[policy.f]\nmatch.unit = \
     \"x.service\"\nuse = [\"two\", \"one\"]\nstrict = true\n[policy.default]\nuse = \"wlan0\"\n",
    "agent.discover = false\n[domain.lte0]\nmatch.kind = \"cellular\"\n[policy.p1]\nmatch.cgroup = \
     \"*\"\nuse = \"lte0\"\notherwise = \"next\"\n",
];

fn ips() -> impl Strategy<Value = IpAddr> {
    prop_oneof![
        4 => (0u8..3, 1u8..4).prop_map(|(net, host)| IpAddr::from([10, 0, net, host])),
        3 => (0u16..3, 1u16..4).prop_map(|(net, host)| IpAddr::from([0x2001, 0xdb8, net, 0, 0, 0, 0, host])),
        1 => Just(support::ip("fe80::1")),
        1 => Just(support::ip("169.254.0.1")),
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
        master in proptest::option::weighted(0.1, interfaces()),
    ) -> Link {
        let loopback = INTERFACES[at] == "lo";
        let name = INTERFACES[at].to_owned();
        Link { index, name, kind, up, carrier, loopback, master, bridge, mac: None, mtu: 1500 }
    }
}

prop_compose! {
    fn addresses()(
        interface in interfaces(),
        ip in ips(),
        len in prop_oneof![Just(24u8), Just(32), Just(64), any::<u8>()],
        peer in proptest::option::weighted(0.1, ips()),
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
        gateway in proptest::option::of(ips()),
        prefsrc in proptest::option::weighted(0.2, ips()),
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
        fwmark in proptest::option::of(0u32..2),
        narrow: bool,
        table in proptest::option::of(prop_oneof![Just(254u32), Just(51820)]),
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

prop_compose! {
    fn policies()(
        at in 0..6,
        origin in prop_oneof![Just(Origin::App), Just(Origin::User), Just(Origin::Operator)],
        matches in proptest::collection::vec(matches(), 1..3),
        use_ in proptest::collection::vec(
            prop_oneof![Just("wlan0"), Just("lte0"), Just("eth0"), Just("g"), Just("one"), Just("two")],
            0..3,
        ),
        strict in prop::bool::weighted(0.3),
        otherwise in prop_oneof![Just(Otherwise::Block), Just(Otherwise::Pass), Just(Otherwise::Next)],
        steer: bool,
        priority in 0..2,
    ) -> Policy {
        Policy {
            otherwise: if strict { Otherwise::Block } else { otherwise },
            local_networks: if steer { LocalNetworks::Steer } else { LocalNetworks::Pass },
            priority,
            ..Policy::new(name(&format!("p{at}")), origin, matches, use_.into_iter().map(name).collect(), strict)
        }
    }
}

/// On the heap, since the strategies as plain values are too large for the stack of a test's thread.
fn events() -> BoxedStrategy<Event> {
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
fn start() -> Engine {
    let mut state = State::new(CgroupId(1));
    state.network = two_uplinks();
    Engine::new(state)
}

/// A plan in words that do not depend on which numbers were given out.
fn meaning(engine: &Engine) -> BTreeMap<String, (u32, u32, u32, String)> {
    let plan = engine.plan();
    let memory = &engine.state().memory;
    let names: BTreeMap<u32, String> = memory
        .indices
        .iter()
        .map(|(name, index)| (index.0.into(), name.to_string()))
        .collect();
    let cgroups = plan.cgroups.iter();
    cgroups
        .map(|(id, entry)| {
            let policy = plan
                .policies
                .get(&PolicyId(entry.policy))
                .copied()
                .unwrap_or_default();
            let choice = plan
                .choices
                .get(&ChoiceId(policy.choice))
                .copied()
                .unwrap_or_default();
            let domain = names.get(&choice.domain).cloned().unwrap_or_default();
            let path = engine.state().cgroups.path(*id).unwrap();
            (path, (entry.flags, policy.flags, choice.verdict, domain))
        })
        .collect()
}

/// What every plan must be in itself.
fn check(plan: &Plan, state: &State) -> Result<(), TestCaseError> {
    let mask = state.config.agent.mark_mask;
    let base = state.config.agent.table_base;
    let tables: BTreeSet<TableId> = plan
        .domains
        .keys()
        .map(|index| TableId(base + u32::from(index.0)))
        .collect();
    for entry in plan.cgroups.values() {
        prop_assert!(entry.policy == 0 || plan.policies.contains_key(&PolicyId(entry.policy)));
        let exempt = entry.flags & cgroup_flags::EXEMPT != 0;
        prop_assert!(!exempt || (entry.policy == 0 && entry.flags == cgroup_flags::EXEMPT));
    }
    for entry in plan.policies.values() {
        prop_assert!(plan.choices.contains_key(&ChoiceId(entry.choice)));
        if entry.flags & policy_flags::STRICT != 0 {
            prop_assert!(
                !plan.guards.is_empty() || state.network.links.values().all(|l| l.loopback)
            );
        }
    }
    for choice in plan.choices.values() {
        let domain = u16::try_from(choice.domain).ok().map(DomainIndex);
        let domain = domain.and_then(|index| plan.domains.get(&index));
        match choice.verdict {
            verdict::STEER => {
                let domain = domain.expect("a domain that is steered to has an entry");
                prop_assert!(domain.mark != 0 && domain.mark & !mask.bits() == 0);
                prop_assert!(domain.ifindex != 0 && domain.flags != 0);
                let table = TableId(base + choice.domain);
                let leads = plan
                    .routes
                    .iter()
                    .any(|route| route.table == table && route.target != RouteTarget::Unreachable);
                prop_assert!(leads);
            }
            verdict::BLOCK => prop_assert!(choice.domain == 0 || domain.is_some()),
            _ => prop_assert_eq!(choice.domain, 0),
        }
    }
    let targets: BTreeSet<u32> = plan
        .rules
        .iter()
        .filter(|rule| rule.action == RuleAction::Nop)
        .map(|rule| rule.priority)
        .collect();
    for rule in &plan.rules {
        match rule.action {
            RuleAction::Lookup { table, .. } => {
                prop_assert!(table == TableId(254) || tables.contains(&table));
            }
            RuleAction::Goto(to) => prop_assert!(to > rule.priority && targets.contains(&to)),
            RuleAction::Nop | RuleAction::Unreachable => {}
        }
        let nets = [rule.from, rule.to].into_iter().flatten();
        let v6 = rule.family == steer_core::plan::Family::Ipv6;
        nets.for_each(|net| assert_eq!(net.addr().is_ipv6(), v6));
    }
    let mut keys = BTreeSet::new();
    for route in &plan.routes {
        prop_assert!(tables.contains(&route.table));
        let key = (route.table, route.destination, route.metric);
        prop_assert!(keys.insert(key), "the kernel would take {key:?} once");
        if let RouteTarget::Unicast {
            interface, prefsrc, ..
        } = route.target
        {
            let index = DomainIndex(u16::try_from(route.table.0 - base).unwrap());
            prop_assert_eq!(plan.domains[&index].ifindex, interface.0);
            let source = prefsrc.expect("a route of a domain has a source");
            prop_assert!(plan.sources.contains(&(index, source)));
        }
    }
    let marks: BTreeSet<u32> = plan.domains.values().map(|domain| domain.mark).collect();
    prop_assert_eq!(marks.len(), plan.domains.len());
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(192))]

    #[test]
    fn incremental_is_full_and_every_plan_is_sound(
        events in proptest::collection::vec((events(), any::<bool>()), 0..60)
    ) {
        let mut engine = start();
        for (event, settle) in events {
            let before = engine.state().clone();
            let refused = engine.apply(event).is_err();
            prop_assert!(!refused || *engine.state() == before, "a refused event changes nothing");
            if settle {
                engine.settle();
                prop_assert_eq!(engine.plan(), &plan(engine.state()));
                check(engine.plan(), engine.state())?;
            }
        }
        engine.settle();
        prop_assert_eq!(engine.plan(), &plan(engine.state()));
        prop_assert!(engine.settle().is_empty(), "settling twice changes nothing");
        // What it says of itself is total too.
        engine.warnings().iter().for_each(|warning| assert!(!warning.to_string().is_empty()));
        for policy in engine.state().policies() {
            prop_assert!(engine.decision(policy.name.as_str()).is_some());
        }
    }

    #[test]
    fn changes_name_everything_that_differs(
        events in proptest::collection::vec(events(), 1..40)
    ) {
        let mut engine = start();
        engine.settle();
        for event in events {
            let before = engine.plan().clone();
            let taken = engine.apply(event).is_ok();
            let changes = engine.settle();
            prop_assert!(taken || changes.is_empty());
            let mut patched = before;
            for id in &changes.cgroups {
                let new = engine.plan().cgroups.get(id).copied();
                prop_assert_ne!(patched.cgroups.remove(id), new);
                patched.cgroups.extend(new.map(|new| (*id, new)));
            }
            for id in &changes.policies {
                let new = engine.plan().policies.get(id).copied();
                prop_assert_ne!(patched.policies.remove(id), new);
                patched.policies.extend(new.map(|new| (*id, new)));
            }
            for id in &changes.choices {
                let new = engine.plan().choices.get(id).copied();
                prop_assert_ne!(patched.choices.remove(id), new);
                patched.choices.extend(new.map(|new| (*id, new)));
            }
            if changes.network {
                let cgroups = patched.cgroups;
                let (policies, choices) = (patched.policies, patched.choices);
                patched = Plan { cgroups, policies, choices, ..engine.plan().clone() };
            }
            prop_assert_eq!(&patched, engine.plan());
        }
    }

    #[test]
    fn how_the_last_state_was_reached_does_not_matter(
        setting in proptest::collection::vec(policies(), 0..6),
        noise in proptest::collection::vec(events(), 0..20),
        file in 0..FILES.len(),
    ) {
        // Whatever happened before: the same network, cgroups, file and policies mean the same.
        let end = |engine: &mut Engine, backwards: bool| {
            let names: Vec<_> = engine.state().api_policies.keys().cloned().collect();
            for name in names {
                engine.apply(Event::UnsetPolicy(name)).unwrap();
            }
            let mut tree = steer_core::cgroups::CgroupTree::new(CgroupId(1));
            for (id, parent, name) in [(2, 1, "a"), (3, 2, "b"), (4, 3, "x.service"), (5, 2, "y.scope")] {
                tree.made(CgroupId(id), CgroupId(parent), name);
            }
            let mut last = vec![
                Event::Network(NetworkChange::Dump(two_uplinks())),
                Event::Cgroups(CgroupChange::Dump(tree)),
                Event::Config(Box::new(config(FILES[file]))),
                Event::Managed { root: CgroupId(1), exempt: BTreeSet::new() },
                Event::IndicesInUse(BTreeSet::new()),
                Event::Outcome(Object::Domain(name("wlan0")), Ok(())),
                Event::Outcome(Object::Guard, Ok(())),
            ];
            if backwards {
                last.reverse();
            }
            for event in last {
                engine.apply(event).unwrap();
                engine.settle();
            }
            engine.apply(Event::IndicesInUse(BTreeSet::new())).unwrap();
            engine.settle();
        };
        let mut fresh = start();
        end(&mut fresh, false);
        let mut used = start();
        for event in noise {
            // Refusals are part of the noise.
            drop(used.apply(event));
            used.settle();
        }
        end(&mut used, true);
        prop_assert_eq!(meaning(&fresh), meaning(&used));

        // Policies that do not get into each other's way may come in any order.
        let taken: Vec<Policy> = setting
            .into_iter()
            .filter(|policy| fresh.apply(Event::SetPolicy(policy.clone())).is_ok())
            .collect();
        fresh.settle();
        let last: BTreeMap<_, _> = taken.into_iter().map(|policy| (policy.name.clone(), policy)).collect();
        let enough_marks = fresh.state().config.agent.mark_mask == MarkMask::DEFAULT;
        let mut last: Vec<Policy> = last.into_values().rev().collect();
        // A policy is refused below a strict one of a higher origin, so those come later.
        last.sort_by_key(|policy| policy.origin);
        for policy in last {
            used.apply(Event::SetPolicy(policy)).unwrap();
            used.settle();
        }
        if enough_marks {
            prop_assert_eq!(meaning(&fresh), meaning(&used));
        }
    }
}
