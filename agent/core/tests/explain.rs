//! What becomes of a flow, and where the kernel does otherwise.

mod support;

use std::collections::BTreeSet;
use std::net::IpAddr;

use proptest::prelude::*;
use steer_common::{CgroupEntry, cgroup_flags, policy_flags, verdict};
use steer_core::engine::Engine;
use steer_core::explain::compare::{Answer, Cause, Differs, KernelRoute};
use steer_core::explain::flow::{Fate, Never, Owner, Pass, Refuse, fate, guard_lets};
use steer_core::explain::held::Held;
use steer_core::explain::path::{Leaves, Packet, Planned, TCP, Way, planned, way};
use steer_core::explain::{Closed, Reach, words};
use steer_core::ids::{CgroupId, DomainIndex, IfIndex, TableId};
use steer_core::network::{ForeignRule, NetworkChange};
use steer_core::plan::Family;
use steer_core::policy::{LocalNetworks, Otherwise, Policy};
use steer_core::rules::Flow;
use steer_core::state::Event;
use support::strategies::{events, start};
use support::{
    apply, carrier, engine, engine_of, engine_with, ip, link, made, policy, removed, strict,
};

#[test]
fn a_cgroup_that_nothing_steers_says_why() {
    let reach = |engine: &Engine, path: &str| engine.explain(path).reach;
    assert_eq!(reach(&engine(), "a"), Reach::NoPolicies);
    let mut engine = engine_of(&[policy("p", "**", &["wlan0"])]);
    assert_eq!(reach(&engine, "a"), Reach::Managed);
    assert_eq!(reach(&engine, ""), Reach::Root);
    assert_eq!(engine.explain("/").owner(&engine, &to("192.0.2.1")), None);
    let root = CgroupId(10);
    let exempt = BTreeSet::from([CgroupId(11)]);
    apply(&mut engine, Event::Managed { root, exempt });
    assert_eq!(reach(&engine, "a"), Reach::Managed);
    assert_eq!(reach(&engine, "a/b"), Reach::Exempt);
    assert_eq!(reach(&engine, "c"), Reach::Outside("a".to_owned()));
    assert_eq!(reach(&engine, "ab"), Reach::Outside("a".to_owned()));
    let words = words::unmanaged(&engine.explain("c")).unwrap();
    assert!(
        words.contains("/c is not below the managed root /a"),
        "{words}"
    );
    assert_eq!(words::unmanaged(&engine.explain("a")), None);
}

#[test]
fn a_cgroup_too_deep_for_patterns_of_strict_policies_is_closed() {
    let mut engine = engine_of(&[strict(policy("p", "x/**", &["wlan0"]))]);
    let mut path = String::from("c");
    for level in 0..64_u64 {
        let parent = if level == 0 { 20 } else { 99 + level };
        apply(&mut engine, made(100 + level, parent, "d"));
        path.push_str("/d");
    }
    let explanation = engine.explain(&path);
    assert_eq!(explanation.reach, Reach::Closed(Closed::TooDeep));
    let fate = explanation.fate(&engine, &to("198.51.100.1"));
    assert_eq!(fate, Fate::Refuse(Refuse::Closed));
}

fn to(destination: &str) -> Flow {
    Flow::to(ip(destination))
}

/// What becomes of flows from the cgroup `a` to these destinations.
fn fates(engine: &Engine, destinations: &[&str]) -> Vec<Fate> {
    let explanation = engine.explain("a");
    let destinations = destinations.iter().copied().map(to);
    destinations
        .map(|to| explanation.fate(engine, &to))
        .collect()
}

const WLAN0: DomainIndex = DomainIndex(1);

#[test]
fn destinations_are_judged_in_the_order_of_the_programs() {
    let never = [
        ("0.0.0.0", Never::Unspecified),
        ("::", Never::Unspecified),
        ("127.9.9.9", Never::Loopback),
        ("::1", Never::Loopback),
        ("::ffff:127.0.0.1", Never::Loopback),
        ("169.254.1.1", Never::LinkLocal),
        ("fe80::9", Never::LinkLocal),
        ("224.0.0.251", Never::Multicast),
        ("ff02::fb", Never::Multicast),
        ("255.255.255.255", Never::Broadcast),
        ("192.0.2.10", Never::Host),
        ("192.0.3.10", Never::Host),
        ("2001:db8:3::10", Never::Host),
    ];
    let lte = "192.0.3.0/24".parse().unwrap();
    let lte6 = "2001:db8:3::/64".parse().unwrap();
    let far = [
        "192.0.2.1",
        "192.0.3.1",
        "2001:db8:3::1",
        "198.51.100.1",
        "2001:db8:99::1",
    ];
    let steered = vec![Fate::Steer(WLAN0); 5];

    let with_it = engine_of(&[policy("p", "a", &["wlan0"])]);
    for (destination, reason) in never {
        assert_eq!(
            fates(&with_it, &[destination]),
            [Fate::Never(reason)],
            "{destination}"
        );
    }
    assert_eq!(
        fates(&with_it, &far),
        [
            Fate::Steer(WLAN0),
            Fate::Local(lte),
            Fate::Local(lte6),
            Fate::Steer(WLAN0),
            Fate::Steer(WLAN0)
        ]
    );
    let steer_locals = Policy {
        local_networks: LocalNetworks::Steer,
        ..policy("p", "a", &["wlan0"])
    };
    assert_eq!(fates(&engine_of(&[steer_locals]), &far), steered);
    let closed = strict(policy("p", "a", &["wlan0"]));
    assert_eq!(
        fates(&engine_of(std::slice::from_ref(&closed)), &far),
        steered
    );

    let mut down = engine_of(&[closed]);
    let lost = carrier(&down.state().network, 2, false);
    apply(&mut down, lost);
    let refused = Fate::Refuse(Refuse::Blocked);
    assert_eq!(
        fates(&down, &["192.0.3.1", "198.51.100.1", "127.0.0.1"]),
        [refused, refused, Fate::Never(Never::Loopback)]
    );

    let pass = Policy {
        otherwise: Otherwise::Pass,
        ..policy("p", "a", &["eth9"])
    };
    let mut engine = engine_with("[domain.eth9]\n");
    apply(&mut engine, Event::SetPolicy(pass));
    assert_eq!(
        fates(&engine, &["198.51.100.1"]),
        [Fate::Pass(Pass::Policy)]
    );
    assert_eq!(
        engine.explain("c").fate(&engine, &to("127.0.0.1")),
        Fate::Pass(Pass::NoPolicy),
        "nobody asks what is not anybody's"
    );
}

#[test]
fn a_family_that_the_domain_lacks_is_refused() {
    let mut engine = engine_of(&[policy("p", "a", &["wlan0"])]);
    let gone = NetworkChange::AddressGone(IfIndex(2), ip("2001:db8:2::10"));
    apply(&mut engine, Event::Network(gone));
    assert_eq!(
        fates(&engine, &["198.51.100.1", "2001:db8:99::1"]),
        [Fate::Steer(WLAN0), Fate::Refuse(Refuse::Family(WLAN0))]
    );
}

#[test]
fn the_guard_stops_what_a_strict_policy_sends_elsewhere() {
    let engine = engine_of(&[strict(policy("p", "a", &["wlan0"]))]);
    let owner = engine
        .explain("a")
        .owner(&engine, &to("192.0.2.1"))
        .unwrap();
    let lets = |owner: &Owner, interface, source: &str, destination: &str| {
        let flow = Flow {
            source: Some(ip(source)),
            ..to(destination)
        };
        guard_lets(engine.plan(), owner, &flow, IfIndex(interface))
    };
    assert!(lets(&owner, 2, "192.0.2.10", "224.0.0.251"));
    assert!(lets(&owner, 2, "fe80::2", "ff02::fb"));
    assert!(
        !lets(&owner, 2, "192.0.3.10", "224.0.0.251"),
        "another's address"
    );
    assert!(
        !lets(&owner, 3, "192.0.3.10", "224.0.0.251"),
        "another's interface"
    );
    assert!(
        lets(&owner, 1, "127.0.0.1", "127.0.0.1"),
        "loopback has no guard"
    );
    assert!(!lets(&owner, 3, "192.0.3.10", "192.0.3.1"));
    let passes_locals = Owner {
        passes_locals: true,
        ..owner
    };
    assert!(lets(&passes_locals, 3, "192.0.3.10", "192.0.3.1"));
    let lax = Owner {
        strict: false,
        ..owner
    };
    assert!(lets(&lax, 3, "192.0.3.10", "224.0.0.251"));
}

fn leaves(engine: &Engine, to: &str) -> Leaves {
    match planned(engine.plan(), WLAN0, ip(to), TCP) {
        Planned::Leaves(leaves) => leaves,
        Planned::NoRoute(rule) => panic!("no route to {to}: {rule:?}"),
    }
}

#[test]
fn a_steered_flow_has_its_rule_route_and_source() {
    let engine = engine_of(&[policy("p", "a", &["wlan0"])]);
    let four = leaves(&engine, "198.51.100.1");
    assert_eq!(four.source, Some(ip("192.0.2.10")));
    assert_eq!(four.route.interface, IfIndex(2));
    assert_eq!(four.route.gateway, Some(ip("192.0.2.1")));
    let base = engine.state().config.agent.rule_base;
    let table = four.route.table;
    assert_eq!(
        (four.rule.priority, four.rule.to_string()),
        (
            base + 20,
            format!("from 192.0.2.10 lookup {table} proto 83")
        )
    );
    let near = leaves(&engine, "192.0.2.77");
    assert_eq!(near.route.gateway, None);
    let six = leaves(&engine, "2001:db8:99::1");
    assert_eq!(six.source, Some(ip("2001:db8:2::10")));
    assert_eq!(
        six.rule.to_string(),
        format!("from 2001:db8:2::10 ipproto tcp lookup {table} proto 83")
    );
    // Without a source, the mark decides; past the marked section, the host.
    let packet = Packet {
        destination: ip("198.51.100.1"),
        source: None,
        mark: four.mark,
        protocol: TCP,
    };
    let Way::Route(rule, route) = way(engine.plan(), &packet) else {
        panic!()
    };
    assert_eq!((rule.priority, route), (base + 30, four.route));
    let mask = engine.state().config.agent.mark_mask.bits();
    let mark = four.mark;
    assert_eq!(
        rule.to_string(),
        format!("from all fwmark {mark:#x}/{mask:#x} lookup {table} proto 83")
    );
    assert_eq!(
        way(engine.plan(), &Packet { mark: 0, ..packet }),
        Way::Host(None)
    );
    let multicast = Packet {
        destination: ip("224.0.0.251"),
        ..packet
    };
    let Way::Host(Some(rule)) = way(engine.plan(), &multicast) else {
        panic!()
    };
    assert_eq!(
        rule.to_string(),
        "from all to 224.0.0.0/4 lookup main proto 83"
    );
}

#[test]
fn a_domain_without_a_default_route_refuses_what_its_table_does_not_know() {
    let mut engine = engine_of(&[policy("p", "a", &["wlan0"])]);
    let default = engine.state().network.routes.iter();
    let default = default.copied().find(|r| {
        r.interface == IfIndex(2)
            && r.destination.prefix_len() == 0
            && r.destination.addr().is_ipv4()
    });
    apply(
        &mut engine,
        Event::Network(NetworkChange::RouteGone(default.unwrap())),
    );
    let Planned::NoRoute(Some(rule)) = planned(engine.plan(), WLAN0, ip("198.51.100.1"), TCP)
    else {
        panic!()
    };
    assert!(rule.to_string().ends_with("unreachable proto 83"), "{rule}");
    assert_eq!(leaves(&engine, "192.0.2.77").route.gateway, None);
}

#[test]
fn a_kernel_that_goes_another_way_is_told_of_with_the_cause() {
    let mut engine = engine_of(&[policy("p", "a", &["wlan0"])]);
    let planned = leaves(&engine, "198.51.100.1");
    let agreed = KernelRoute {
        interface: IfIndex(2),
        source: planned.source,
        gateway: planned.route.gateway,
        table: planned.route.table,
    };
    let find = |engine: &Engine, route| {
        Differs::find(&planned, &Answer::Route(route), &engine.state().network)
    };
    assert_eq!(find(&engine, agreed), None);
    let source = KernelRoute {
        source: Some(ip("192.0.2.11")),
        ..agreed
    };
    assert_eq!(find(&engine, source).unwrap().cause, Cause::Source);
    let hop = KernelRoute {
        gateway: Some(ip("192.0.2.9")),
        ..agreed
    };
    assert_eq!(find(&engine, hop).unwrap().cause, Cause::Route);
    let other = KernelRoute {
        interface: IfIndex(3),
        table: TableId(99),
        ..agreed
    };
    assert_eq!(find(&engine, other).unwrap().cause, Cause::Missing);
    let rule = |priority, table| ForeignRule {
        v6: false,
        priority,
        invert: false,
        fwmark: None,
        from: None,
        to: None,
        narrow: false,
        table: Some(TableId(table)),
        suppress_prefix_len: None,
    };
    for foreign in [
        rule(0, 255),
        rule(7, 98),
        rule(planned.rule.priority + 1, 99),
        rule(5, 99),
    ] {
        apply(&mut engine, Event::Network(NetworkChange::Rule(foreign)));
    }
    let differs = find(&engine, other).unwrap();
    assert_eq!(differs.cause, Cause::Rule(rule(5, 99)));
    let words = differs.to_string();
    for part in [
        "by lte0",
        "not by wlan0",
        "priority 5 is not steer's",
        "ip -4 rule show",
    ] {
        assert!(words.contains(part), "{words}");
    }
    let refused = Answer::Refused {
        errno: 101,
        words: "Network is unreachable".to_owned(),
    };
    let differs = Differs::find(&planned, &refused, &engine.state().network).unwrap();
    assert_eq!(differs.cause, Cause::Rule(rule(5, 99)));
    assert!(
        differs
            .to_string()
            .starts_with("the kernel refuses it (Network is unreachable)")
    );
}

#[test]
fn maps_that_hold_something_else_are_named() {
    let engine = engine_of(&[policy("p", "a", &["wlan0"])]);
    let planned = Held::planned(engine.plan(), CgroupId(10));
    assert_eq!(planned.choice.verdict, verdict::STEER);
    assert_ne!(planned.domain.mark, 0);
    assert_eq!(planned.difference(&planned), None);
    let entry = planned.cgroup.unwrap();
    let undecided = CgroupEntry {
        flags: cgroup_flags::UNDECIDED,
        ..entry
    };
    let mut strict = planned.clone();
    strict.policy.flags |= policy_flags::STRICT;
    let mut blocked = planned.clone();
    blocked.choice.verdict = verdict::BLOCK;
    let mut moved = planned.clone();
    moved.domain.ifindex = 3;
    let map = |held: Held| planned.difference(&held).unwrap().map;
    assert_eq!(
        map(Held {
            cgroup: None,
            ..planned.clone()
        }),
        "CGROUPS"
    );
    assert_eq!(
        map(Held {
            cgroup: Some(undecided),
            ..planned.clone()
        }),
        "CGROUPS"
    );
    assert_eq!(map(strict), "POLICIES");
    assert_eq!(map(blocked), "CHOICES");
    assert_eq!(map(moved), "DOMAINS");
    let none = Held::planned(engine.plan(), CgroupId(20));
    assert_eq!(none, Held::default());
}

#[test]
fn a_cgroup_that_is_not_there_is_explained_as_it_will_be() {
    let mut engine = engine_of(&[policy("p", "a/later/*", &["lte0"])]);
    let before = engine.explain("a/later/x");
    assert_eq!(before.id, None);
    let there = to("198.51.100.1");
    let chosen = |owner: Option<Owner>, engine: &Engine| {
        owner.map(|owner| owner.choose(engine.plan(), &there).choice)
    };
    let owner = chosen(before.owner(&engine, &there), &engine);
    apply(&mut engine, made(30, 10, "later"));
    apply(&mut engine, made(31, 30, "x"));
    let after = engine.explain("a/later/x");
    assert_eq!(after.id, Some(CgroupId(31)));
    assert_eq!(before.ranking, after.ranking);
    assert_eq!(owner, chosen(after.owner(&engine, &there), &engine));
    assert!(owner.is_some());
    apply(&mut engine, removed(31));
    assert_eq!(engine.explain("a/later/x"), before);
}

proptest! {
    #[test]
    fn a_flow_is_steered_only_where_the_plan_has_a_way(
        events in proptest::collection::vec(events(), 1..40),
        destination: IpAddr,
    ) {
        let mut engine = start();
        for event in events {
            let _rejected = engine.apply(event);
        }
        engine.settle();
        let plan = engine.plan();
        for (id, entry) in &plan.cgroups {
            let owner = Owner::of(plan, Some(entry));
            let fate = fate(plan, owner.as_ref(), &Flow::to(destination));
            let strict = owner.is_some_and(|owner| owner.strict);
            prop_assert!(!strict || !matches!(fate, Fate::Pass(_)), "{:?}", id);
            if let Fate::Steer(index) = fate {
                let domain = plan.domains[&index];
                if let Planned::Leaves(leaves) = planned(plan, index, destination.to_canonical(), TCP) {
                    prop_assert_eq!(leaves.route.interface.0, domain.ifindex);
                    prop_assert_eq!(leaves.mark, domain.mark);
                    let own = leaves.source.is_some_and(|source| plan.sources.contains(&(index, source)));
                    prop_assert!(own, "{:?}", leaves);
                }
            }
        }
    }
}

#[test]
fn an_interface_that_is_not_known_is_told_by_its_number() {
    let mut engine = engine_of(&[policy("p", "a", &["wlan0"])]);
    apply(
        &mut engine,
        Event::Network(NetworkChange::Link(link(4, "tun0"))),
    );
    let planned = leaves(&engine, "198.51.100.1");
    let route = |interface| {
        Answer::Route(KernelRoute {
            interface: IfIndex(interface),
            source: None,
            gateway: None,
            table: TableId(99),
        })
    };
    let network = &engine.state().network;
    let names = |interface| {
        Differs::find(&planned, &route(interface), network)
            .unwrap()
            .interfaces
    };
    assert_eq!(names(4), ["wlan0", "tun0"]);
    assert_eq!(names(9), ["wlan0", "interface 9"]);
    assert_eq!(planned.rule.family, Family::Ipv4);
}
