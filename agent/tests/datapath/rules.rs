//! Flows of one application that rules send different ways: on real sockets, seen at the peer's end.
//!
//! The policy's own choice leads to `ONE`, as the host's routes do, and rules lead to `TWO`.

use std::thread;

use steer_common::{
    LocalEntry, LocalKey4, policy_flags::LOCAL_PASS, policy_flags::REPAIR, policy_flags::STRICT,
};
use steer_core::rules::Rule;

use crate::{
    child::Child,
    guard::honest_packet,
    lab::{BLOCKED, Lab, ONE, SERVER4, SERVER6, TWO, ifindex, ip, on_a_new_host},
    peer::{Capture, Tcp, Udp, eventually},
    repair::{RETURNS, own_addresses},
};

/// The peer's other addresses.
pub(crate) const OTHER4: &str = "192.0.2.2";
pub(crate) const OTHER6: &str = "2001:db8::2";

/// A host with everything attached and both uplinks guarded, policy 1 with `flags` and set 1 of rules, and a
/// process that has it.
pub(crate) fn ruled(
    flags: u32,
    rules: &'static [fn() -> (Rule, u32)],
    test: impl FnOnce(&mut Lab, &mut Child) + Send + 'static,
) {
    on_a_new_host(move |lab| {
        lab.attach_all();
        lab.write_domains();
        lab.guard_uplinks();
        lab.in_peer(|| {
            ip(&format!("addr add {OTHER4}/32 dev lo"));
            ip(&format!("addr add {OTHER6}/128 dev lo"));
        });
        let rules: Vec<(Rule, u32)> = rules.iter().map(|rule| rule()).collect();
        lab.rules(1, &rules, ONE);
        lab.policy_with_rules(1, ONE, flags, 1);
        let mut child = Child::start(&lab.group("app", 1));
        test(lab, &mut child);
    });
}

/// A rule for one address of either family.
pub(crate) fn to_other() -> Rule {
    Rule {
        destination: vec![
            format!("{OTHER4}/32").parse().unwrap(),
            format!("{OTHER6}/128").parse().unwrap(),
        ],
        ..Rule::default()
    }
}

fn protocol(name: &str) -> Rule {
    Rule {
        protocol: vec![name.parse().unwrap()],
        ..Rule::default()
    }
}

fn port(port: u16) -> Rule {
    Rule {
        ports: vec![port.to_string().parse().unwrap()],
        ..Rule::default()
    }
}

/// How a socket is opened, where it is connected to, and the source that the peer should see.
type Case = (&'static str, String, &'static str);

/// One destination of each kind by the policy's own choice, and one by a rule that names [`to_other`].
fn cases(port: u16) -> Vec<Case> {
    vec![
        ("inet", format!("{SERVER4}:{port}"), "10.0.1.2"),
        ("inet", format!("{OTHER4}:{port}"), "10.0.2.2"),
        ("inet6", format!("[{SERVER6}]:{port}"), "fd00:1::2"),
        ("inet6", format!("[{OTHER6}]:{port}"), "fd00:2::2"),
        ("inet6", format!("[::ffff:{SERVER4}]:{port}"), "10.0.1.2"),
        ("inet6", format!("[::ffff:{OTHER4}]:{port}"), "10.0.2.2"),
    ]
}

/// Sends a datagram from a new socket in both ways, and has it arrive with the source.
fn datagrams(child: &mut Child, server: &Udp, (family, target, source): &Case, options: &[&str]) {
    for connected in [true, false] {
        child.must(&[&format!("open s {family} dgram")]);
        child.must(options);
        if connected {
            child.must(&[&format!("connect s {target}"), "write s first"]);
        } else {
            child.must(&[&format!("send s {target} first")]);
        }
        let (text, from) = server.next();
        assert_eq!(
            (text.as_str(), from.to_string().as_str()),
            ("first", *source),
            "{target}, {options:?}, connected: {connected}"
        );
        child.must(&["close s"]);
    }
}

fn each_goes_by_its_rule(lab: &mut Lab, child: &mut Child) {
    let (tcp, udp) = (Tcp::new(lab), Udp::new(lab));
    for (family, target, source) in cases(tcp.port) {
        child.must(&[
            &format!("open s {family} stream"),
            &format!("connect s {target}"),
            "write s hello",
        ]);
        assert_eq!(tcp.next().to_string(), source, "{target}");
    }
    for case in cases(udp.port) {
        datagrams(child, &udp, &case, &[]);
    }
    let counters = lab.datapath().counters().unwrap();
    assert_eq!((counters.guard_dropped, counters.guard_wrong), (0, 0));
}

#[test]
fn flows_to_a_destination_of_a_rule_go_by_it() {
    ruled(0, &[|| (to_other(), TWO)], each_goes_by_its_rule);
}

#[test]
fn flows_of_a_strict_policy_go_by_their_rules_and_pass_the_guard() {
    ruled(STRICT, &[|| (to_other(), TWO)], each_goes_by_its_rule);
}

#[test]
fn the_first_rule_that_fits_counts() {
    ruled(
        STRICT,
        &[
            || (to_other(), TWO),
            || (to_other(), BLOCKED),
            || (Rule::default(), ONE),
        ],
        each_goes_by_its_rule,
    );
}

#[test]
fn one_unconnected_socket_sends_each_datagram_by_its_own_rule() {
    for flags in [0, STRICT] {
        ruled(flags, &[|| (to_other(), TWO)], |lab, child| {
            let server = Udp::new(lab);
            child.must(&["open inet inet dgram", "open inet6 inet6 dgram"]);
            for _ in 0..3 {
                for (family, target, source) in cases(server.port) {
                    child.must(&[&format!("send {family} {target} x")]);
                    assert_eq!(server.next().1.to_string(), source, "{target}");
                }
            }
            let counters = lab.datapath().counters().unwrap();
            assert_eq!((counters.guard_dropped, counters.guard_wrong), (0, 0));
        });
    }
}

#[test]
fn a_datagram_socket_that_is_connected_elsewhere_gets_the_other_domain() {
    for flags in [0, STRICT] {
        ruled(flags, &[|| (to_other(), TWO)], |lab, child| {
            let server = Udp::new(lab);
            child.must(&["open inet inet dgram", "open inet6 inet6 dgram"]);
            // Our binding makes a socket IPv6-only for good.
            let cases = || {
                let cases = cases(server.port).into_iter();
                cases.filter(|(_, target, _)| !target.contains("ffff"))
            };
            for (family, target, source) in cases() {
                child.must(&[
                    &format!("disconnect {family}"),
                    &format!("connect {family} {target}"),
                    &format!("write {family} x"),
                ]);
                assert_eq!(server.next().1.to_string(), source, "{target}");
                // The source of the connection is not that of what comes after it.
                for (_, target, source) in cases().filter(|case| case.0 == family) {
                    child.must(&[
                        &format!("disconnect {family}"),
                        &format!("send {family} {target} y"),
                    ]);
                    assert_eq!(server.next().1.to_string(), source, "{target}");
                }
            }
        });
    }
}

#[test]
fn ports_protocols_and_classes_are_looked_at() {
    for flags in [0, STRICT] {
        ruled(flags, &[], |lab, child| {
            let (one, two, tcp) = (Udp::new(lab), Udp::new(lab), Tcp::new(lab));
            let four =
                |server: &Udp, source| ("inet", format!("{SERVER4}:{}", server.port), source);
            let six =
                |server: &Udp, source| ("inet6", format!("[{SERVER6}]:{}", server.port), source);
            lab.rules(1, &[(port(two.port), TWO)], ONE);
            datagrams(child, &one, &four(&one, "10.0.1.2"), &[]);
            datagrams(child, &two, &four(&two, "10.0.2.2"), &[]);
            datagrams(child, &two, &six(&two, "fd00:2::2"), &[]);

            lab.rules(1, &[(protocol("udp"), TWO)], ONE);
            datagrams(child, &one, &four(&one, "10.0.2.2"), &[]);
            datagrams(child, &one, &six(&one, "fd00:2::2"), &[]);
            child.must(&[
                "open s inet stream",
                &format!("connect s {SERVER4}:{}", tcp.port),
            ]);
            assert_eq!(tcp.next().to_string(), "10.0.1.2");

            let from_port = Rule {
                source_ports: vec!["41000-41001".parse().unwrap()],
                ..Rule::default()
            };
            lab.rules(1, &[(from_port, TWO)], ONE);
            datagrams(
                child,
                &one,
                &four(&one, "10.0.1.2"),
                &["bind s 0.0.0.0:42000"],
            );
            datagrams(
                child,
                &one,
                &four(&one, "10.0.2.2"),
                &["bind s 0.0.0.0:41000"],
            );
            datagrams(child, &one, &six(&one, "fd00:2::2"), &["bind s [::]:41001"]);

            let expedited = Rule {
                dscp: vec!["EF".parse().unwrap()],
                ..Rule::default()
            };
            lab.rules(1, &[(expedited, TWO)], ONE);
            // IP_TOS and IPV6_TCLASS, with bits of congestion.
            datagrams(child, &one, &four(&one, "10.0.1.2"), &["set s 0 1 180"]);
            datagrams(child, &one, &four(&one, "10.0.2.2"), &["set s 0 1 184"]);
            datagrams(child, &one, &six(&one, "fd00:1::2"), &["set s 41 67 180"]);
            datagrams(child, &one, &six(&one, "fd00:2::2"), &["set s 41 67 186"]);
            assert_eq!(lab.datapath().counters().unwrap().guard_dropped, 0);
        });
    }
}

#[test]
fn a_strict_policy_lets_bind_what_may_be_a_rules_and_connect_judges() {
    ruled(
        STRICT,
        &[|| {
            let rule = Rule {
                source: vec![
                    "10.0.2.2/32".parse().unwrap(),
                    "fd00:2::2/128".parse().unwrap(),
                ],
                ports: vec!["1-65534".parse().unwrap()],
                ..Rule::default()
            };
            (rule, TWO)
        }],
        |lab, child| {
            let server = Udp::new(lab);
            for (family, source, target) in [
                ("inet", "10.0.2.2:0", format!("{SERVER4}:{}", server.port)),
                ("inet", "10.0.1.2:0", format!("{SERVER4}:{}", server.port)),
                (
                    "inet6",
                    "[fd00:2::2]:0",
                    format!("[{SERVER6}]:{}", server.port),
                ),
                (
                    "inet6",
                    "[fd00:1::2]:0",
                    format!("[{SERVER6}]:{}", server.port),
                ),
            ] {
                let bind = format!("bind s {source}");
                let expected = source.trim_end_matches(":0").trim_matches(['[', ']']);
                let case: (&'static str, String, &'static str) = (family, target, expected);
                datagrams(child, &server, &case, &[&bind]);
            }
            // No rule for that port: the policy's own domain has another address.
            for (family, source, target) in [
                ("inet", "10.0.2.2:0", format!("{SERVER4}:65535")),
                ("inet6", "[fd00:2::2]:0", format!("[{SERVER6}]:65535")),
            ] {
                child.must(&[
                    &format!("open s {family} dgram"),
                    &format!("bind s {source}"),
                ]);
                assert_eq!(child.ask(&format!("send s {target} x")), "errno 1");
                assert_eq!(child.ask(&format!("connect s {target}")), "errno 1");
            }
            // An address of the host that is no domain's.
            ip("addr add 10.9.9.9/32 dev lo");
            child.must(&["open s inet stream"]);
            assert_eq!(child.ask("bind s 10.9.9.9:0"), "errno 1");
            assert_eq!(lab.datapath().counters().unwrap().guard_dropped, 0);
        },
    );
}

#[test]
fn a_strict_rule_that_blocks_lets_nothing_out() {
    ruled(
        STRICT,
        &[|| (to_other(), BLOCKED), || (protocol("icmp"), BLOCKED)],
        |lab, child| {
            let arrivals = ["p1", "p2"].map(|interface| Capture::on(lab, interface));
            let server = Udp::new(lab);
            for (family, target) in [
                ("inet", format!("{OTHER4}:{}", server.port)),
                ("inet6", format!("[{OTHER6}]:{}", server.port)),
                ("inet6", format!("[::ffff:{OTHER4}]:{}", server.port)),
            ] {
                child.must(&[
                    &format!("open s {family} dgram"),
                    &format!("open t {family} stream"),
                ]);
                assert_eq!(child.ask(&format!("send s {target} blocked")), "errno 101");
                assert_eq!(child.ask(&format!("connect s {target}")), "errno 101");
                assert_eq!(child.ask(&format!("connect t {target}")), "errno 101");
            }
            for kind in ["ping", "raw"] {
                child.must(&[&format!("open s inet {kind}")]);
                // An echo request, "blocked" behind it; past `connect` and `sendmsg`.
                child.ask(&format!(
                    "send-hex s {SERVER4}:0 0800000000010001626c6f636b6564"
                ));
            }
            child.must(&["open s inet dgram"]);
            child.ask(&format!("send-by s h1 {OTHER4}:{} blocked", server.port));
            honest_packet(lab, &server);
            for arrivals in arrivals {
                assert!(!arrivals.saw("blocked"));
            }
            assert!(lab.datapath().counters().unwrap().guard_dropped >= 2);
        },
    );
}

#[test]
fn echo_requests_are_held_to_their_rule_and_go_by_it_when_connected() {
    ruled(
        STRICT,
        &[|| (protocol("icmp"), TWO), || (protocol("icmpv6"), TWO)],
        |lab, child| {
            let [one, two] = ["p1", "p2"].map(|interface| Capture::on(lab, interface));
            for (family, target, hex) in [
                ("inet", format!("{SERVER4}:0"), "0800000000010001"),
                ("inet6", format!("[{SERVER6}]:0"), "8000000000010001"),
            ] {
                // The mark that the socket was made with is that of the policy's own choice.
                child.must(&[&format!("open s {family} ping")]);
                child.ask(&format!("send-hex s {target} {hex}6f6e6c79"));
                child.must(&[
                    &format!("open t {family} ping"),
                    &format!("connect t {target}"),
                ]);
                child.must(&[&format!("send-hex t {target} {hex}726967687479")]);
            }
            eventually("the connected ones arrive", || two.saw("righty"));
            // They may wait for their neighbour's address before.
            eventually("the others are dropped", || {
                lab.datapath().counters().unwrap().guard_dropped >= 2
            });
            assert!(!one.saw("only"));
        },
    );
}

#[test]
fn echo_requests_are_repaired_to_the_domain_of_their_rule() {
    ruled(
        REPAIR,
        &[|| (protocol("icmp"), TWO), || (protocol("icmpv6"), TWO)],
        |lab, child| {
            own_addresses(lab);
            let index = ifindex("h2");
            lab.datapath().set_ingress(index, Some(RETURNS)).unwrap();
            let two = Capture::on(lab, "p2");
            for (family, target, hex) in [
                ("inet", format!("{SERVER4}:0"), "0800000000010001"),
                ("inet6", format!("[{SERVER6}]:0"), "8000000000010001"),
            ] {
                for kind in ["ping", "raw"] {
                    child.must(&[&format!("open s {family} {kind}")]);
                    let name = if kind == "ping" {
                        "70696e67"
                    } else {
                        "6f6e7261"
                    };
                    child.must(&[&format!("send-hex s {target} {hex}{name}")]);
                    let word = if kind == "ping" { "ping" } else { "onra" };
                    eventually(&format!("{kind} by {family}"), || two.saw(word));
                }
            }
            assert_eq!(lab.datapath().counters().unwrap().repaired, 4);
        },
    );
}

#[test]
fn a_rule_that_names_destinations_holds_for_those_at_other_interfaces() {
    for names in [true, false] {
        on_a_new_host(move |lab| {
            lab.attach_all();
            lab.write_domains();
            lab.guard_uplinks();
            let rule = if names { to_other() } else { Rule::default() };
            lab.in_peer(|| ip(&format!("addr add {OTHER4}/32 dev lo")));
            lab.rules(1, &[(rule, TWO)], TWO);
            // On-link at `h1`, whatever that means.
            let key = LocalKey4 {
                prefix_len: 24,
                address: [192, 0, 2, 0],
            };
            let local = LocalEntry {
                source: [10, 0, 1, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0],
                ..LocalEntry::default()
            };
            lab.maps().locals4.set(&key, &local).unwrap();
            let server = Udp::new(lab);
            for flags in [LOCAL_PASS, LOCAL_PASS | STRICT] {
                lab.policy_with_rules(1, TWO, flags, 1);
                let group = lab.group(&format!("app{flags}"), 1);
                let mut child = Child::start(&group);
                let source = if names { "10.0.2.2" } else { "10.0.1.2" };
                let case = ("inet", format!("{OTHER4}:{}", server.port), source);
                datagrams(&mut child, &server, &case, &[]);
                if names {
                    let arrivals = Capture::on(lab, "p1");
                    child.must(&["open s inet dgram"]);
                    child.ask(&format!("send-by s h1 {OTHER4}:{} astray", server.port));
                    honest_packet_of(lab, &server, flags);
                    assert_eq!(arrivals.saw("astray"), flags & STRICT == 0);
                }
            }
        });
    }
}

fn honest_packet_of(lab: &Lab, server: &Udp, flags: u32) {
    let mut other = Child::start(&lab.group(&format!("honest{flags}"), 0));
    other.must(&[
        "open s inet dgram",
        &format!("send s {SERVER4}:{} honest", server.port),
    ]);
    while server.next().0 != "honest" {}
}

#[test]
fn a_set_that_is_replaced_while_flows_run_sends_no_packet_elsewhere() {
    ruled(STRICT, &[|| (to_other(), TWO)], |lab, child| {
        let arrivals = Capture::on(lab, "p1");
        let server = Udp::new(lab);
        let target = format!("{OTHER4}:{}", server.port);
        child.must(&[
            "open s inet dgram",
            "open c inet dgram",
            &format!("connect c {target}"),
        ]);
        thread::scope(|scope| {
            let sender = scope.spawn(|| {
                for _ in 0..2_000 {
                    child.must(&[&format!("send s {target} running"), "write c running"]);
                    // Both before the next are sent: no socket is full.
                    for _ in 0..2 {
                        assert_eq!(server.next().1.to_string(), "10.0.2.2");
                    }
                }
            });
            let mut rules = vec![(to_other(), TWO)];
            while !sender.is_finished() {
                lab.rules(1, &rules, ONE);
                // What fits is another word, another page, another set.
                rules.insert(0, (port(1), BLOCKED));
                if rules.len() > 300 {
                    rules.drain(..299);
                }
            }
            sender.join().unwrap();
        });
        honest_packet(lab, &server);
        assert!(!arrivals.saw("running"));
        assert_eq!(lab.datapath().counters().unwrap().guard_dropped, 0);
    });
}

#[test]
fn large_datagrams_go_by_the_rule_of_their_port_in_all_their_fragments() {
    ruled(STRICT, &[], |lab, child| {
        let server = Udp::new(lab);
        lab.rules(1, &[(port(server.port), TWO)], ONE);
        let text = "fragment".repeat(600);
        for (family, target, source) in [
            ("inet", format!("{SERVER4}:{}", server.port), "10.0.2.2"),
            ("inet6", format!("[{SERVER6}]:{}", server.port), "fd00:2::2"),
        ] {
            child.must(&[&format!("open s {family} dgram")]);
            for _ in 0..2 {
                child.must(&[&format!("send s {target} {text}")]);
                let (received, from) = server.echo();
                assert_eq!((received.len(), from.to_string().as_str()), (4_800, source));
            }
        }
        assert_eq!(lab.datapath().counters().unwrap().guard_dropped, 0);
    });
}

#[test]
fn a_datagram_to_another_address_that_ends_like_the_sockets_peer_goes_by_its_rule() {
    /// As [`SERVER6`] but for the first word.
    const LIKE6: &str = "2001:db9::1";
    fn to_like() -> Rule {
        Rule {
            destination: vec![format!("{LIKE6}/128").parse().unwrap()],
            ..Rule::default()
        }
    }
    ruled(STRICT, &[|| (to_like(), TWO)], |lab, child| {
        lab.in_peer(|| ip(&format!("addr add {LIKE6}/128 dev lo")));
        let server = Udp::new(lab);
        let port = server.port;
        child.must(&[
            "open s inet6 dgram",
            &format!("connect s [{SERVER6}]:{port}"),
            "write s peer",
        ]);
        assert_eq!(server.next(), ("peer".into(), "fd00:1::2".parse().unwrap()));
        child.must(&[&format!("send s [{LIKE6}]:{port} other")]);
        assert_eq!(
            server.next(),
            ("other".into(), "fd00:2::2".parse().unwrap())
        );
    });
}
