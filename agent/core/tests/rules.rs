//! Rules: what the compiled set says is what the first rule that fits says.
#![expect(clippy::unwrap_used, reason = "a failure is a failed test")]

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use proptest::prelude::*;
use steer_core::rules::compile::{TooLarge, compile};
use steer_core::rules::{Dscp, Flow, Ports, Protocol, Rule, Rules, prefix};

/// Few bits that differ, so that prefixes nest and flows hit them.
fn ipv4() -> impl Strategy<Value = Ipv4Addr> {
    prop_oneof![
        (0_u32..8, 0_u32..4).prop_map(|(high, low)| Ipv4Addr::from_bits(high << 29 | low)),
        Just(Ipv4Addr::UNSPECIFIED),
        Just(Ipv4Addr::BROADCAST),
    ]
}

fn ipv6() -> impl Strategy<Value = Ipv6Addr> {
    prop_oneof![
        (0_u128..8, 0_u128..4, 0_u128..4)
            .prop_map(|(a, b, c)| Ipv6Addr::from_bits(a << 125 | b << 64 | c)),
        Just(Ipv6Addr::UNSPECIFIED),
        Just(Ipv6Addr::from_bits(u128::MAX)),
    ]
}

fn ip() -> impl Strategy<Value = IpAddr> {
    prop_oneof![
        3 => ipv4().prop_map(IpAddr::V4),
        2 => ipv6().prop_map(IpAddr::V6),
    ]
}

fn net() -> impl Strategy<Value = IpNet> {
    prop_oneof![
        3 => (ipv4(), 0_u8..=32).prop_map(|(ip, len)| Ipv4Net::new(ip, len).unwrap().trunc().into()),
        2 => (ipv6(), 0_u8..=128).prop_map(|(ip, len)| Ipv6Net::new(ip, len).unwrap().trunc().into()),
    ]
}

fn port() -> impl Strategy<Value = u16> {
    prop_oneof![0_u16..6, Just(u16::MAX), Just(u16::MAX - 1)]
}

fn ports() -> impl Strategy<Value = Ports> {
    (port(), port()).prop_map(|(a, b)| Ports::new(a.min(b).max(1), a.max(b).max(1)).unwrap())
}

fn list<T: Clone + std::fmt::Debug>(
    item: impl Strategy<Value = T>,
) -> impl Strategy<Value = Vec<T>> {
    prop_oneof![
        2 => Just(Vec::new()),
        3 => prop::collection::vec(item, 1..4),
    ]
}

fn rule() -> impl Strategy<Value = Rule> {
    let protocol = prop_oneof![Just(6_u8), Just(17), Just(1), Just(58), Just(255)];
    (
        list(net()),
        list(ports()),
        list(net()),
        list(ports()),
        list(protocol.prop_map(Protocol)),
        list((0_u8..64).prop_map(|value| Dscp::new(value).unwrap())),
    )
        .prop_map(
            |(source, source_ports, destination, ports, protocol, dscp)| Rule {
                source,
                source_ports,
                destination,
                ports,
                protocol,
                dscp,
                ..Rule::default()
            },
        )
}

/// A flow, as hooks tell it: one family, and no source that is unspecified.
fn flow() -> impl Strategy<Value = Flow> {
    let protocol = prop_oneof![Just(6_u8), Just(17), Just(1), Just(58), Just(255)];
    (ip(), ip(), protocol, port(), port(), 0_u8..64).prop_map(
        |(source, destination, protocol, source_port, port, dscp)| Flow {
            source: Some(source)
                .filter(|ip| ip.is_ipv4() == destination.is_ipv4() && !ip.is_unspecified()),
            destination,
            protocol,
            source_port,
            port,
            dscp,
        },
    )
}

/// Destinations that are unspecified are never steered and get to no rule.
fn asked(flow: &Flow) -> bool {
    !flow.destination.is_unspecified()
}

proptest! {
    #[test]
    fn a_set_says_what_the_first_rule_that_fits_says(
        rules in prop::collection::vec(rule(), 0..200),
        flows in prop::collection::vec(flow(), 1..50),
    ) {
        let numbered: Vec<(&Rule, u32)> = rules.iter().zip(1..).collect();
        let image = compile(&numbered, 9_999).unwrap();
        let rules = Rules::from(rules.clone());
        for flow in flows.into_iter().filter(asked) {
            let found = image.find(&flow);
            let first = rules.first(&flow);
            prop_assert_eq!(found.rule, first.map(|(at, _)| at), "{:?}", flow);
            match first {
                Some((at, rule)) => {
                    prop_assert_eq!(found.choice as usize, at + 1);
                    prop_assert_eq!(found.names_destination, !rule.destination.is_empty());
                }
                None => prop_assert_eq!(found.choice, 9_999),
            }
        }
    }

    #[test]
    fn equal_rules_make_equal_sets_and_others_do_not(
        rules in prop::collection::vec(rule(), 1..20),
        at in any::<prop::sample::Index>(),
        other in rule(),
    ) {
        let set = |rules: &[Rule]| {
            let numbered: Vec<(&Rule, u32)> = rules.iter().zip(1..).collect();
            compile(&numbered, 7).unwrap()
        };
        let image = set(&rules);
        prop_assert_eq!(&image, &set(&rules));
        prop_assert_eq!(image.header().hash, image.hash().0);
        let mut changed = rules.clone();
        changed[at.index(rules.len())] = other;
        // What is written otherwise may mean the same.
        let pages = |rules: &[Rule]| set(rules).pages().map(<[u32]>::to_vec).collect::<Vec<_>>();
        prop_assert_eq!(set(&changed) == image, pages(&changed) == pages(&rules));
    }
}

fn to(net: &str) -> Rule {
    Rule {
        destination: vec![net.parse().unwrap()],
        ..Rule::default()
    }
}

fn flow_to(ip: IpAddr) -> Flow {
    Flow {
        source: None,
        destination: ip,
        protocol: 17,
        source_port: 0,
        port: 53,
        dscp: 0,
    }
}

/// Tables of more than one leaf, rows of more than one summary.
#[test]
fn ten_thousand_rules_are_found_in_either_family() {
    for v6 in [false, true] {
        let net = |at: u32| -> IpNet {
            if v6 {
                let bits = 0xfd00_u128 << 112 | u128::from(at) << 64;
                Ipv6Net::new(bits.into(), 64).unwrap().into()
            } else {
                Ipv4Net::new((10 << 24 | at << 8).into(), 24)
                    .unwrap()
                    .into()
            }
        };
        let rules: Vec<Rule> = (0..10_000)
            .map(|at| Rule {
                destination: vec![net(at * 2)],
                ..Rule::default()
            })
            .collect();
        let numbered: Vec<(&Rule, u32)> = rules.iter().zip(0..).collect();
        let image = compile(&numbered, 10_000).unwrap();
        assert_eq!(image.header().summaries, 3);
        for at in 0..10_000 {
            let found = image.find(&flow_to(net(at * 2).broadcast()));
            assert_eq!(found.rule, Some(at as usize), "{v6}");
            let found = image.find(&flow_to(net(at * 2 + 1).network()));
            assert_eq!((found.rule, found.choice), (None, 10_000), "{v6}");
        }
        assert!(image.bytes() < 3 << 20, "{} bytes", image.bytes());
    }
}

#[test]
fn more_rules_than_a_set_holds_are_refused() {
    let many = vec![Rule::default(); 16_385];
    let numbered: Vec<(&Rule, u32)> = many.iter().map(|rule| (rule, 1)).collect();
    assert_eq!(compile(&numbered, 1), Err(TooLarge::Rules(16_385)));
}

#[test]
fn a_rule_without_keys_fits_all_and_none_fits_where_there_is_none() {
    let everything = Rule::default();
    let flow = flow_to("192.0.2.1".parse().unwrap());
    let image = compile(&[(&to("10.0.0.0/8"), 1), (&everything, 2)], 3).unwrap();
    assert_eq!(image.find(&flow).choice, 2);
    assert_eq!(
        compile(&[(&everything, 2)], 3).unwrap().find(&flow).choice,
        2
    );
    assert_eq!(compile(&[], 3).unwrap().find(&flow).choice, 3);
}

#[test]
fn prefixes_that_seem_to_say_something_else_are_refused_with_what_is_meant() {
    let refused = |text: &str| prefix(text).unwrap_err().to_string();
    assert!(refused("10.1.2.3/8").contains("write 10.0.0.0/8"));
    assert!(refused("2001:db8::1/64").contains("write 2001:db8::/64"));
    assert!(refused("::ffff:10.0.0.0/104").contains("write 10.0.0.0/8"));
    assert!(refused("nonsense").contains("neither an address nor a prefix"));
    assert_eq!(
        prefix("192.0.2.1").unwrap(),
        "192.0.2.1/32".parse().unwrap()
    );
}
