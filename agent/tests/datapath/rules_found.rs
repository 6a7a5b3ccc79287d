//! The kernel's way to the first rule that fits, beside `Image::find`: random rules, random packets.
//!
//! The guard is run by `BPF_PROG_TEST_RUN` for a strict policy whose domains have no interface, so that every
//! packet is dropped and counted for the domain that its rule says. Choice and domain have one number.

use std::{collections::BTreeMap, net::IpAddr};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use proptest::{prelude::*, strategy::ValueTree as _, test_runner::TestRunner};
use steer_common::{ChoiceEntry, PolicyEntry, policy_flags::STRICT, rules::has_ports, verdict};
use steer_core::rules::{Dscp, Flow, Ports, Protocol, Rule, compile::compile};

use crate::{
    child::Child,
    frames::{Body, Frame},
    lab::{Lab, ifindex, on_a_new_host},
};

/// Choices that rules have: 1 to so many.
const CHOICES: u32 = 200;
/// What no rule fits.
const OTHERWISE: u32 = 250;

/// Addresses of few bits that differ, so that prefixes nest and packets hit them.
fn address(v6: bool) -> BoxedStrategy<IpAddr> {
    if v6 {
        (0_u128..4, 0_u128..4, 0_u128..4)
            .prop_map(|(a, b, c)| IpAddr::V6((1 << 125 | a << 122 | b << 64 | c).into()))
            .boxed()
    } else {
        (0_u32..7, 0_u32..4, 0_u32..4)
            .prop_map(|(a, b, c)| IpAddr::V4((0x0b00_0000 | a << 29 | b << 14 | c).into()))
            .boxed()
    }
}

fn net() -> impl Strategy<Value = IpNet> {
    (any::<bool>(), 0_u8..=128).prop_flat_map(|(v6, len)| {
        address(v6).prop_map(move |address| match address {
            IpAddr::V4(ip) => Ipv4Net::new(ip, len % 33).unwrap().trunc().into(),
            IpAddr::V6(ip) => Ipv6Net::new(ip, len).unwrap().trunc().into(),
        })
    })
}

fn ports() -> impl Strategy<Value = Ports> {
    let port = || prop_oneof![1_u16..6, Just(u16::MAX), Just(u16::MAX - 1)];
    (port(), port()).prop_map(|(a, b)| Ports::new(a.min(b), a.max(b)).unwrap())
}

fn list<T: Clone + std::fmt::Debug>(
    item: impl Strategy<Value = T>,
) -> impl Strategy<Value = Vec<T>> {
    prop_oneof![3 => Just(Vec::new()), 2 => prop::collection::vec(item, 1..4)]
}

fn protocol() -> impl Strategy<Value = u8> {
    prop_oneof![3 => Just(6_u8), 3 => Just(17), 1 => Just(132), 1 => Just(1), 1 => Just(58), 1 => Just(99)]
}

fn rule() -> impl Strategy<Value = (Rule, u32)> {
    let dscp = (0_u8..4).prop_map(|value| Dscp::new(value * 15).unwrap());
    (
        list(net()),
        list(ports()),
        list(net()),
        list(ports()),
        list(protocol().prop_map(Protocol)),
        list(dscp),
        1..=CHOICES,
    )
        .prop_map(
            |(source, source_ports, destination, ports, protocol, dscp, choice)| {
                let rule = Rule {
                    source,
                    source_ports,
                    destination,
                    ports,
                    protocol,
                    dscp,
                    ..Rule::default()
                };
                (rule, choice)
            },
        )
}

fn flow() -> impl Strategy<Value = Flow> {
    let port = || prop_oneof![0_u16..6, Just(u16::MAX)];
    any::<bool>().prop_flat_map(move |v6| {
        (
            address(v6),
            address(v6),
            protocol(),
            port(),
            port(),
            0_u8..4,
        )
            .prop_map(|(source, destination, protocol, source_port, port, dscp)| {
                let ports = has_ports(protocol);
                Flow {
                    source: Some(source),
                    destination,
                    protocol,
                    source_port: if ports { source_port } else { 0 },
                    port: if ports { port } else { 0 },
                    dscp: dscp * 15,
                }
            })
    })
}

/// A packet of a flow.
fn frame(flow: &Flow) -> Vec<u8> {
    let mut body = [flow.source_port.to_be_bytes(), flow.port.to_be_bytes()].concat();
    body.resize(24, 0);
    // Data offset of TCP; to others it means nothing.
    body[12] = 0x50;
    let source = flow.source.unwrap().to_string();
    let destination = flow.destination.to_string();
    let frame = Frame::new(&source, &destination, Body::Other(flow.protocol, body));
    let mut bytes = frame.bytes([1; 6], [2; 6]);
    if flow.destination.is_ipv4() {
        bytes[15] = flow.dscp << 2 | 1;
    } else {
        bytes[14] |= flow.dscp >> 2;
        bytes[15] |= flow.dscp << 6 | 0x10;
    }
    bytes
}

/// The domain that the guard wants a packet at.
struct Guard<'a> {
    lab: &'a mut Lab,
    child: Child,
    pin: String,
    ifindex: u32,
    before: BTreeMap<u32, u64>,
}

impl<'a> Guard<'a> {
    fn new(lab: &'a mut Lab) -> Self {
        lab.attach_all();
        let ifindex = ifindex("h1");
        lab.datapath().set_guard(ifindex, true).unwrap();
        for number in 1..=OTHERWISE {
            let choice = ChoiceEntry {
                verdict: verdict::STEER,
                domain: number,
                share: 0,
            };
            lab.maps().choices.set(number, &choice).unwrap();
        }
        lab.policy(1, 0, STRICT);
        let policy = PolicyEntry {
            choice: OTHERWISE,
            flags: STRICT,
            rules: 1,
        };
        lab.maps().policies.set(1, &policy).unwrap();
        let child = Child::start(&lab.group("app", 1));
        let pin = lab.layout().join(format!("links/guard-{ifindex}"));
        Self {
            child,
            pin: pin.display().to_string(),
            ifindex,
            before: BTreeMap::new(),
            lab,
        }
    }

    fn rules(&mut self, rules: &[(&Rule, u32)]) {
        let image = compile(rules, OTHERWISE).unwrap();
        self.lab.maps().rulesets.set(1, image.pages()).unwrap();
    }

    fn wants(&mut self, frame: &[u8]) -> u32 {
        let hex: String = frame.iter().map(|byte| format!("{byte:02x}")).collect();
        let answer = self
            .child
            .ask(&format!("test-run {} {} {hex}", self.pin, self.ifindex));
        assert!(answer.starts_with("ok 2 "), "{answer}");
        let traffic = self.lab.datapath().traffic().unwrap();
        let now: BTreeMap<u32, u64> = traffic
            .into_iter()
            .map(|(key, count)| (key.domain, count.dropped))
            .collect();
        let mut more = now
            .iter()
            .filter(|(domain, count)| self.before.get(domain).unwrap_or(&0) < count);
        let (domain, _) = more.next().expect("a drop is counted");
        let domain = *domain;
        assert_eq!(more.next(), None);
        self.before = now;
        domain
    }
}

fn compare(guard: &mut Guard<'_>, rules: &[(Rule, u32)], flows: &[Flow]) -> usize {
    let numbered: Vec<(&Rule, u32)> = rules.iter().map(|(rule, choice)| (rule, *choice)).collect();
    let image = compile(&numbered, OTHERWISE).unwrap();
    guard.lab.maps().rulesets.set(1, image.pages()).unwrap();
    let mut fitting = 0;
    for flow in flows {
        let found = image.find(flow);
        fitting += usize::from(found.rule.is_some());
        assert_eq!(
            guard.wants(&frame(flow)),
            found.choice,
            "{flow:?} of {rules:?}"
        );
    }
    fitting
}

#[test]
fn the_kernel_finds_the_rule_that_the_agent_finds() {
    on_a_new_host(|lab| {
        let mut guard = Guard::new(lab);
        let mut runner = TestRunner::deterministic();
        let sets = prop::collection::vec(rule(), 0..120);
        let packets = prop::collection::vec(flow(), 40);
        let (mut fitting, mut asked) = (0, 0);
        for _ in 0..50 {
            let rules = sets.new_tree(&mut runner).unwrap().current();
            let flows = packets.new_tree(&mut runner).unwrap().current();
            fitting += compare(&mut guard, &rules, &flows);
            asked += flows.len();
        }
        // Neither answer is the only one.
        assert!(
            fitting > asked / 4 && fitting < asked,
            "{fitting} of {asked}"
        );
    });
}

/// Tables of more than one leaf, rows of several summaries, and many words that rows share without a rule.
#[test]
fn the_kernel_finds_the_rule_among_many() {
    on_a_new_host(|lab| {
        let mut guard = Guard::new(lab);
        for v6 in [false, true] {
            let net = |at: u32| -> IpNet {
                if v6 {
                    let bits = 0x2001_u128 << 112 | u128::from(at) << 64;
                    Ipv6Net::new(bits.into(), 64).unwrap().into()
                } else {
                    Ipv4Net::new((11 << 24 | at << 8).into(), 24)
                        .unwrap()
                        .into()
                }
            };
            let rules: Vec<(Rule, u32)> = (0..16_384_u32)
                .map(|at| {
                    let rule = Rule {
                        // A quarter fits every destination, and each a port of its own.
                        destination: if at % 4 == 0 {
                            vec![]
                        } else {
                            vec![net(at * 2)]
                        },
                        ports: vec![Ports::new(1 + (at % 60_000) as u16, 60_000).unwrap()],
                        ..Rule::default()
                    };
                    (rule, 1 + at % CHOICES)
                })
                .collect();
            let flows: Vec<Flow> = (0..400_u32)
                .map(|at| {
                    let net = net(at * 81);
                    let destination = if at % 2 == 0 {
                        net.network()
                    } else {
                        net.broadcast()
                    };
                    Flow {
                        source: Some(net.network()),
                        destination,
                        protocol: 17,
                        source_port: 9,
                        port: [0, 1, 2, 4_097, 16_383, 60_000, 60_001][at as usize % 7],
                        dscp: 0,
                    }
                })
                .collect();
            compare(&mut guard, &rules, &flows);
        }
    });
}

#[test]
fn what_tells_no_ports_is_nowhere_right_where_rules_look_at_them() {
    on_a_new_host(|lab| {
        let mut guard = Guard::new(lab);
        let port = Rule {
            ports: vec!["53".parse().unwrap()],
            ..Rule::default()
        };
        let everywhere = Rule::default();
        for (source, destination) in [("11.0.0.1", "12.0.0.1"), ("2001:db8::1", "2001:db8::2")] {
            let packet = |body| Frame::new(source, destination, body);
            let first = || packet(Body::Udp(9, 53, vec![0; 16])).fragment(5, 0, true);
            let later = || packet(Body::Other(17, vec![0; 16])).fragment(5, 1_480, false);
            let echo = || packet(Body::Echo(53)).fragment(6, 1_480, false);
            let cut = || packet(Body::Other(17, vec![0, 9, 0, 53]));
            let chain = || (0..9).fold(first(), |frame, _| frame.extension(60, &[0; 8]));
            guard.rules(&[(&port, 1)]);
            let mut wants = |frame: Frame| guard.wants(&frame.bytes([1; 6], [2; 6]));
            assert_eq!(wants(first()), 1);
            assert_eq!(wants(later()), 0);
            assert_eq!(wants(cut()), 0);
            assert_eq!(wants(echo()), OTHERWISE);
            if source.contains(':') {
                assert_eq!(wants(chain()), 0);
            }
            guard.rules(&[(&everywhere, 2)]);
            let mut wants = |frame: Frame| guard.wants(&frame.bytes([1; 6], [2; 6]));
            assert_eq!(wants(later()), 2);
            assert_eq!(wants(echo()), 2);
        }
    });
}
