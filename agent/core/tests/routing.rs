//! Rules, tables and maps of the network, compared by value.

mod support;

use std::collections::{BTreeMap, BTreeSet};

use steer_common::{IngressEntry, MarkMask};
use steer_core::engine::{Engine, Warning, plan};
use steer_core::ids::{DomainIndex, IfIndex, TableId};
use steer_core::network::{ForeignRule, NetworkChange};
use steer_core::plan::rules::offset;
use steer_core::plan::{Family, Plan, Rule, RuleAction};
use steer_core::state::Event;
use support::{address, apply, config, engine, engine_with, ip, link, name, policy, route};

/// A rule as `ip rule` prints it.
fn show(rule: &Rule) -> String {
    let mut text = format!("{}:", rule.priority);
    if let Some(from) = rule.from {
        text += &format!(" from {from}");
    }
    if let Some(to) = rule.to {
        text += &format!(" to {to}");
    }
    if let Some((mark, mask)) = rule.fwmark {
        text += &format!(" fwmark {mark:#x}/{mask:#x}");
    }
    if let Some(oif) = rule.oif {
        text += &format!(" oif {}", oif.as_str());
    }
    if let Some(protocol) = rule.protocol {
        text += &format!(" ipproto {protocol}");
    }
    if let Some((from, to)) = rule.udp_ports {
        text += &format!(" udp {from}->{to}");
    }
    text + &match rule.action {
        RuleAction::Lookup {
            table,
            suppress_prefix_len: None,
        } => format!(" lookup {table}"),
        RuleAction::Lookup {
            table,
            suppress_prefix_len: Some(len),
        } => {
            format!(" lookup {table} suppress {len}")
        }
        RuleAction::Goto(to) => format!(" goto {to}"),
        RuleAction::Nop => " nop".to_owned(),
        RuleAction::Unreachable => " unreachable".to_owned(),
    }
}

fn rules(engine: &Engine, family: Family) -> Vec<String> {
    let rules = engine.plan().rules.iter();
    rules
        .filter(|rule| rule.family == family)
        .map(show)
        .collect()
}

fn routes(engine: &Engine, table: u32) -> Vec<String> {
    let routes = engine.plan().routes.iter();
    routes
        .filter(|route| route.table == TableId(table))
        .map(|route| {
            let mut text = route.destination.to_string();
            if let Some(gateway) = route.gateway {
                text += &format!(" via {gateway}");
            }
            text += &format!(" dev {}", route.interface);
            if route.onlink {
                text += " onlink";
            }
            if let Some(source) = route.prefsrc {
                text += &format!(" src {source}");
            }
            text + &format!(" metric {}", route.metric)
        })
        .collect()
}

fn with_policy(mut engine: Engine, uses: &[&str]) -> Engine {
    apply(&mut engine, Event::SetPolicy(policy("p", "a", uses)));
    engine
}

#[test]
fn all_rules_of_one_domain() {
    let engine = with_policy(engine(), &["wlan0"]);
    assert_eq!(
        rules(&engine, Family::Ipv4),
        [
            "4000: fwmark 0x0/0x77000000 goto 4500",
            "4010: udp 68->67 lookup 254",
            "4010: to 169.254.0.0/16 lookup 254",
            "4010: to 224.0.0.0/4 lookup 254",
            "4010: to 255.255.255.255/32 lookup 254",
            "4020: from 192.0.2.10/32 lookup 40001",
            "4021: from 192.0.2.10/32 unreachable",
            "4025: from 192.0.3.10/32 goto 4500",
            "4030: fwmark 0x1000000/0x77000000 lookup 40001",
            "4035: oif lte0 goto 4500",
            "4035: oif wlan0 goto 4500",
            "4040: fwmark 0x1000000/0x77000000 unreachable",
            "4500: nop",
            "4510: from 192.0.2.10/32 lookup 40001 suppress 0",
            "4520: from 192.0.2.10/32 lookup 254 suppress 0",
            "4530: from 192.0.2.10/32 lookup 40001",
        ]
    );
    assert_eq!(
        rules(&engine, Family::Ipv6),
        [
            "4000: fwmark 0x0/0x77000000 goto 4500",
            "4010: udp 546->547 lookup 254",
            "4010: to fe80::/10 lookup 254",
            "4010: to ff00::/8 lookup 254",
            "4020: from 2001:db8:2::10/128 ipproto 6 lookup 40001",
            "4020: from 2001:db8:2::10/128 ipproto 17 lookup 40001",
            "4021: from 2001:db8:2::10/128 ipproto 6 unreachable",
            "4021: from 2001:db8:2::10/128 ipproto 17 unreachable",
            "4025: from 2001:db8:3::10/128 ipproto 6 goto 4500",
            "4025: from 2001:db8:3::10/128 ipproto 17 goto 4500",
            "4030: fwmark 0x1000000/0x77000000 lookup 40001",
            "4035: oif lte0 goto 4500",
            "4035: oif wlan0 goto 4500",
            "4040: fwmark 0x1000000/0x77000000 unreachable",
            "4500: nop",
            "4510: from 2001:db8:2::10/128 lookup 40001 suppress 0",
            "4520: from 2001:db8:2::10/128 lookup 254 suppress 0",
            "4530: from 2001:db8:2::10/128 lookup 40001",
        ]
    );
}

#[test]
fn all_routes_of_one_domain() {
    let engine = with_policy(engine(), &["wlan0"]);
    assert_eq!(
        routes(&engine, 40001),
        [
            "0.0.0.0/0 via 192.0.2.1 dev 2 src 192.0.2.10 metric 102",
            "192.0.2.0/24 dev 2 src 192.0.2.10 metric 0",
            "::/0 via fe80::1 dev 2 src 2001:db8:2::10 metric 102",
            "2001:db8:2::/64 dev 2 src 2001:db8:2::10 metric 256",
        ]
    );
    assert_eq!(
        engine.plan().routes.len(),
        4,
        "nothing for a domain that nobody can choose"
    );
}

#[test]
fn a_domain_without_carrier_keeps_its_mark_and_an_empty_table() {
    let mut engine = with_policy(engine(), &["wlan0"]);
    let before = rules(&engine, Family::Ipv4);
    let network = engine.state().network.clone();
    apply(&mut engine, support::carrier(&network, 2, false));
    assert_eq!(routes(&engine, 40001), [""; 0]);
    let mut refused = before;
    refused.push("4531: from 192.0.2.10/32 unreachable".to_owned());
    assert_eq!(rules(&engine, Family::Ipv4), refused);
}

#[test]
fn a_domain_with_only_a_link_local_ipv6_address_has_no_ipv6() {
    let mut engine = with_policy(engine(), &["wlan0"]);
    let gone = NetworkChange::AddressGone(IfIndex(2), ip("2001:db8:2::10"));
    apply(&mut engine, Event::Network(gone));
    assert_eq!(
        routes(&engine, 40001),
        [
            "0.0.0.0/0 via 192.0.2.1 dev 2 src 192.0.2.10 metric 102",
            "192.0.2.0/24 dev 2 src 192.0.2.10 metric 0",
        ]
    );
    let entry = engine.plan().domains[&DomainIndex(1)];
    assert_eq!(entry.flags, steer_common::domain_flags::IPV4);
}

#[test]
fn beside_a_rule_like_wg_quicks_unmarked_traffic_is_left_alone() {
    let foreign = |priority, table, suppress_prefix_len, fwmark, invert| ForeignRule {
        v6: false,
        priority,
        invert,
        fwmark,
        from: None,
        to: None,
        narrow: false,
        table: Some(TableId(table)),
        suppress_prefix_len,
    };
    let mut engine = with_policy(engine(), &["wlan0"]);
    let suppress = foreign(32764, 254, Some(0), None, false);
    apply(&mut engine, Event::Network(NetworkChange::Rule(suppress)));
    assert!(
        rules(&engine, Family::Ipv4)
            .iter()
            .any(|rule| rule.starts_with("4530:"))
    );
    assert!(engine.warnings().is_empty());

    let catching = foreign(32765, 51820, None, Some((51820, u32::MAX)), true);
    apply(
        &mut engine,
        Event::Network(NetworkChange::Rule(catching.clone())),
    );
    assert_eq!(rules(&engine, Family::Ipv4).last().unwrap(), "4500: nop");
    assert!(
        rules(&engine, Family::Ipv6)
            .last()
            .unwrap()
            .starts_with("4530:"),
        "IPv4 alone"
    );
    assert_eq!(engine.warnings(), [Warning::ForeignRule(catching.clone())]);
    apply(
        &mut engine,
        Event::Network(NetworkChange::RuleGone(catching)),
    );

    for (rule, catches) in [
        (foreign(5270, 52, None, None, false), true),
        (
            foreign(5210, 100, None, Some((0x80000, 0xff0000)), false),
            false,
        ),
        (foreign(5210, 100, None, Some((0, 0xff0000)), false), true),
        (
            ForeignRule {
                narrow: true,
                ..foreign(5270, 52, None, None, false)
            },
            false,
        ),
        (
            ForeignRule {
                from: Some("10.0.0.0/8".parse().unwrap()),
                ..foreign(9, 52, None, None, true)
            },
            true,
        ),
        (
            ForeignRule {
                to: Some("10.0.0.0/8".parse().unwrap()),
                ..foreign(9, 52, None, None, false)
            },
            false,
        ),
    ] {
        apply(
            &mut engine,
            Event::Network(NetworkChange::Rule(rule.clone())),
        );
        assert_eq!(!engine.warnings().is_empty(), catches, "{rule:?}");
        apply(&mut engine, Event::Network(NetworkChange::RuleGone(rule)));
    }
}

#[test]
fn the_same_address_on_two_domains_is_told_apart_by_mark_when_asked_for() {
    let mut engine = with_policy(engine(), &["wlan0", "lte0"]);
    for index in [2, 3] {
        let shared = address(index, "10.9.9.9/24");
        apply(&mut engine, Event::Network(NetworkChange::Address(shared)));
    }
    let about = |engine: &Engine, what: &str| {
        rules(engine, Family::Ipv4)
            .iter()
            .filter(|rule| rule.contains(what))
            .count()
    };
    assert_eq!(
        about(&engine, "10.9.9.9"),
        0,
        "neither by `from` nor as another's"
    );
    assert!(engine.plan().sysctls.is_empty() && engine.plan().ingress.is_empty());
    assert!(matches!(
        engine.warnings().as_slice(),
        [Warning::Overlap { .. }]
    ));

    let text = "
        [domain.one]
        match.interface = \"wlan0\"
        sources = [\"10.9.9.9\"]
        [domain.two]
        match.interface = \"lte0\"
        sources = [\"10.9.9.9\"]
    ";
    apply(&mut engine, Event::Config(Box::new(config(text))));
    let one = MarkMask::DEFAULT.encode(engine.state().memory.indices[&name("one")].0);
    let two = MarkMask::DEFAULT.encode(engine.state().memory.indices[&name("two")].0);
    let entry = |mark: Option<u32>| IngressEntry {
        mark: mark.unwrap(),
        flags: 0,
    };
    let marks = BTreeMap::from([(IfIndex(2), entry(one)), (IfIndex(3), entry(two))]);
    assert_eq!(engine.plan().ingress, marks);
    let sysctls: Vec<_> = engine.plan().sysctls.keys().map(String::as_str).collect();
    assert_eq!(
        sysctls,
        [
            "net/ipv4/conf/lte0/src_valid_mark",
            "net/ipv4/conf/wlan0/src_valid_mark",
            "net/ipv4/fwmark_reflect",
            "net/ipv4/tcp_fwmark_accept",
        ]
    );
    assert_eq!(about(&engine, "10.9.9.9"), 0);
    assert_eq!(
        about(&engine, "from 192.0.2.10/32 goto"),
        1,
        "an address outside `sources`"
    );
    assert!(engine.warnings().is_empty(), "{:?}", engine.warnings());
}

#[test]
fn local_networks_and_own_addresses_are_known_with_their_domains() {
    let mut engine = with_policy(engine(), &["wlan0"]);
    let mut network = engine.state().network.clone();
    network.apply(NetworkChange::Link(link(7, "docker0")));
    network.apply(NetworkChange::Address(address(7, "172.17.0.1/16")));
    network.apply(NetworkChange::Route(route(7, "172.17.0.0/16", None, 0)));
    network.apply(NetworkChange::Link(link(8, "wg0")));
    network.apply(NetworkChange::Address(address(8, "10.66.0.2/32")));
    network.apply(NetworkChange::Route(route(8, "10.0.0.0/8", None, 0)));
    apply(&mut engine, Event::Network(NetworkChange::Dump(network)));
    let local = |net: &str| engine.plan().locals.get(&net.parse().unwrap()).copied();
    let own = local("192.0.2.0/24").unwrap();
    assert!(own.domains.contains(1) && !own.host);
    let docker = local("172.17.0.0/16").unwrap();
    assert!(!docker.domains.contains(1));
    assert_eq!(docker.source, Some(ip("172.17.0.1")));
    assert!(local("127.0.0.1/32").unwrap().host && local("10.66.0.2/32").unwrap().host);
    assert_eq!(
        local("10.0.0.0/8"),
        None,
        "what a tunnel routes is not on-link"
    );
    assert_eq!(local("127.0.0.0/8"), None);
}

#[test]
fn routes_that_only_differ_by_next_hop_get_metrics_of_their_own() {
    let mut engine = with_policy(engine(), &["wlan0"]);
    let second = route(2, "0.0.0.0/0", Some("192.0.2.2"), 102);
    apply(&mut engine, Event::Network(NetworkChange::Route(second)));
    let defaults = &routes(&engine, 40001)[..2];
    assert_eq!(
        defaults,
        [
            "0.0.0.0/0 via 192.0.2.1 dev 2 src 192.0.2.10 metric 102",
            "0.0.0.0/0 via 192.0.2.2 dev 2 src 192.0.2.10 metric 103",
        ]
    );
}

#[test]
fn a_file_gives_sources_and_gateways() {
    let text = "
        [domain.office]
        match.interface = \"wlan0\"
        sources = [\"192.0.2.20\", \"192.0.2.0/24\"]
        gateways = [\"192.0.2.2\", \"198.51.100.1\"]
    ";
    let mut engine = engine_with(text);
    let second = address(2, "192.0.2.20/24");
    apply(&mut engine, Event::Network(NetworkChange::Address(second)));
    let engine = with_policy(engine, &["wlan0"]);
    assert_eq!(
        routes(&engine, 40001)[..3],
        [
            "0.0.0.0/0 via 192.0.2.2 dev 2 src 192.0.2.20 metric 1024",
            "0.0.0.0/0 via 198.51.100.1 dev 2 onlink src 192.0.2.20 metric 1025",
            "192.0.2.0/24 dev 2 src 192.0.2.20 metric 0",
        ]
    );
    let office = engine.domains().get("wlan0").unwrap();
    assert_eq!(office.name.as_str(), "office");
    assert_eq!(office.alias.as_ref().unwrap().as_str(), "wlan0");
}

#[test]
fn a_manager_that_keeps_routes_in_a_table_of_its_own_is_followed() {
    let mut engine = with_policy(engine(), &["wlan0"]);
    let mut network = engine.state().network.clone();
    network.routes = network
        .routes
        .into_iter()
        .map(|mut route| {
            if route.interface == IfIndex(2) {
                route.table = TableId(1002);
            }
            route
        })
        .collect();
    let before = engine.plan().routes.clone();
    apply(&mut engine, Event::Network(NetworkChange::Dump(network)));
    assert_eq!(engine.plan().routes, before);
}

#[test]
fn an_address_the_host_keeps_for_itself_is_not_taken_from_it() {
    let mut engine = engine();
    let mut network = engine.state().network.clone();
    network.apply(NetworkChange::Link(link(7, "vip0")));
    network.apply(NetworkChange::Address(address(7, "203.0.113.9/32")));
    apply(&mut engine, Event::Network(NetworkChange::Dump(network)));
    let engine = with_policy(engine, &["vip0", "wlan0"]);
    let about: Vec<_> = rules(&engine, Family::Ipv4)
        .into_iter()
        .filter(|rule| rule.contains("203.0.113.9"))
        .map(|rule| rule[..5].to_owned())
        .collect();
    assert_eq!(about, ["4020:", "4021:"]);
}

#[test]
fn ipv6_rules_by_source_match_tcp_and_udp_alone() {
    let mut engine = engine();
    apply(
        &mut engine,
        Event::SetPolicy(policy("p", "a", &["wlan0", "lte0"])),
    );
    let by_source = |family: Family, section: std::ops::Range<u32>| -> Vec<Option<u8>> {
        let rules = engine.plan().rules.iter();
        rules
            .filter(|rule| rule.family == family && rule.from.is_some())
            .filter(|rule| section.contains(&(rule.priority - 4000)))
            .map(|rule| rule.protocol)
            .collect()
    };
    let marked = 0..offset::UNMARKED;
    let split = [Some(6), Some(17)].repeat(4);
    let mut v6 = by_source(Family::Ipv6, marked.clone());
    v6.sort_unstable();
    let mut sorted = split;
    sorted.sort_unstable();
    assert_eq!(v6, sorted, "two domains, two rules each, two protocols");
    assert_eq!(by_source(Family::Ipv4, marked), [None; 4]);
    let unmarked = offset::UNMARKED..offset::COUNT;
    assert_eq!(by_source(Family::Ipv6, unmarked), [None; 6]);
}

#[test]
fn each_interface_with_an_address_has_an_oif_rule() {
    let mut engine = with_policy(engine(), &["wlan0"]);
    let about = |engine: &Engine, family| -> Vec<String> {
        let mut rules = rules(engine, family);
        rules.retain(|rule| rule.contains(" oif "));
        rules
    };
    let goto = |name: &str| format!("4035: oif {name} goto 4500");
    apply(
        &mut engine,
        Event::Network(NetworkChange::Link(link(7, "bare0"))),
    );
    for family in Family::BOTH {
        assert_eq!(about(&engine, family), [goto("lte0"), goto("wlan0")]);
    }
    let local = address(7, "fe80::7/64");
    apply(&mut engine, Event::Network(NetworkChange::Address(local)));
    for family in Family::BOTH {
        assert_eq!(
            about(&engine, family),
            [goto("bare0"), goto("lte0"), goto("wlan0")]
        );
    }
    apply(
        &mut engine,
        Event::Network(NetworkChange::Link(link(7, "renamed0"))),
    );
    apply(
        &mut engine,
        Event::Network(NetworkChange::LinkGone(IfIndex(3))),
    );
    assert_eq!(
        about(&engine, Family::Ipv4),
        [goto("renamed0"), goto("wlan0")]
    );
}

#[test]
fn a_domain_that_no_policy_can_choose_any_more_serves_its_marks_until_its_index_is_free() {
    let mut engine = with_policy(engine(), &["wlan0"]);
    apply(&mut engine, Event::SetPolicy(policy("q", "c", &["lte0"])));
    let (wlan, lte) = (routes(&engine, 40001), routes(&engine, 40002));
    apply(&mut engine, Event::UnsetPolicy(name("p")));
    assert_eq!(routes(&engine, 40001), wlan);
    assert_eq!(routes(&engine, 40002), lte);
    let about = |engine: &Engine| -> Vec<String> {
        let mut rules = rules(engine, Family::Ipv4);
        rules.retain(|rule| rule.contains("40001") || rule.contains("192.0.2.10"));
        rules
    };
    assert_eq!(
        about(&engine),
        [
            "4020: from 192.0.2.10/32 lookup 40001",
            "4021: from 192.0.2.10/32 unreachable",
            "4030: fwmark 0x1000000/0x77000000 lookup 40001",
        ],
        "marked flows alone"
    );
    let domains: Vec<_> = engine.plan().domains.keys().copied().collect();
    assert_eq!(domains, [DomainIndex(2)]);
    let mut sources = engine.plan().sources.iter();
    assert!(sources.all(|(domain, _)| *domain == DomainIndex(2)));
    assert_eq!(*engine.plan(), plan(engine.state()));

    let busy = BTreeSet::from([DomainIndex(1)]);
    assert!(apply(&mut engine, Event::IndicesInUse(busy)).is_empty());
    let changes = apply(&mut engine, Event::IndicesInUse(BTreeSet::new()));
    assert!(changes.network);
    assert_eq!(routes(&engine, 40001), [""; 0]);
    assert_eq!(about(&engine), ["4025: from 192.0.2.10/32 goto 4500"]);
    assert_eq!(routes(&engine, 40002), lte);
    assert_eq!(*engine.plan(), plan(engine.state()));
}

#[test]
fn a_former_domain_is_served_until_its_flows_have_ended() {
    let mut engine = with_policy(engine(), &["wlan0"]);
    let wlan = routes(&engine, 40001);
    let closed = support::strict(policy("q", "c", &[]));
    apply(&mut engine, Event::SetPolicy(closed));
    apply(&mut engine, Event::UnsetPolicy(name("p")));
    assert_eq!(routes(&engine, 40001), wlan);
    assert!(engine.plan().domains.is_empty());
    apply(&mut engine, Event::UnsetPolicy(name("q")));
    assert_eq!(routes(&engine, 40001), wlan);
    apply(&mut engine, Event::IndicesInUse(BTreeSet::new()));
    assert_eq!(*engine.plan(), Plan::default());
}
