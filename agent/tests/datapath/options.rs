//! What an application chose by options that no program is shown.

use steer_common::{SourceKey, policy_flags};

use crate::{
    child::Child,
    flows::steered,
    lab::{Lab, SERVER4, SERVER6, TWO, ifindex, ip, mark},
    peer::{Capture, Tcp, Udp},
};

/// Sockets and destinations: family, target, the option that chooses an interface (`IP_UNICAST_IF`,
/// `IPV6_UNICAST_IF`), and the source by either interface.
fn ways(port: u16) -> [(&'static str, String, &'static str, [&'static str; 2]); 3] {
    let (option4, sources4) = ("0 50", ["10.0.1.2", "10.0.2.2"]);
    let mapped = format!("[::ffff:{SERVER4}]:{port}");
    [
        ("inet", format!("{SERVER4}:{port}"), option4, sources4),
        (
            "inet6",
            format!("[{SERVER6}]:{port}"),
            "41 76",
            ["fd00:1::2", "fd00:2::2"],
        ),
        ("inet6", mapped, option4, sources4),
    ]
}

/// Opens socket `s` and has it choose an interface.
fn open(child: &mut Child, family: &str, kind: &str, option: &str, interface: &str) {
    // In network byte order, unlike any other index: ip(7).
    let index = ifindex(interface).to_be();
    child.must(&[
        &format!("open s {family} {kind}"),
        &format!("set s {option} {index}"),
    ]);
}

/// Three datagrams of socket `s` come from `source` and by interface `number` of the peer, and by no other.
fn arrive(
    lab: &Lab,
    child: &mut Child,
    server: &Udp,
    to: Option<&str>,
    number: usize,
    source: &str,
) {
    let captures = ["p1", "p2"].map(|interface| Capture::on(lab, interface));
    for round in 0..3 {
        let text = format!("datagram-{round}");
        let command = match to {
            Some(target) => format!("send s {target} {text}"),
            None => format!("write s {text}"),
        };
        child.must(&[&command]);
        let (arrived, from) = server.next();
        assert_eq!(
            (arrived, from.to_string()),
            (text.clone(), source.to_owned()),
            "{command}"
        );
        for (at, capture) in captures.iter().enumerate() {
            assert_eq!(
                capture.saw(&text),
                at + 1 == number,
                "{command} at p{}",
                at + 1
            );
        }
    }
}

#[test]
fn datagrams_leave_by_the_interface_that_their_application_chose() {
    steered(|lab, child| {
        let server = Udp::new(lab);
        for (family, target, option, sources) in ways(server.port) {
            for (number, source) in (1..).zip(sources) {
                let interface = format!("h{number}");
                open(child, family, "dgram", option, &interface);
                arrive(lab, child, &server, Some(&target), number, source);
                open(child, family, "dgram", option, &interface);
                child.must(&[&format!("connect s {target}")]);
                arrive(lab, child, &server, None, number, source);
                let expected = if number == 1 { 0 } else { mark(TWO) };
                assert_eq!(child.mark("s"), expected, "{target} by {interface}");
            }
        }
    });
}

#[test]
fn a_choice_that_is_taken_back_leaves_the_next_flow_to_the_policy() {
    steered(|lab, child| {
        let server = Udp::new(lab);
        for (family, target, option, [one, two]) in ways(server.port) {
            for connected in [false, true] {
                let to = (!connected).then_some(target.as_str());
                open(child, family, "dgram", option, "h1");
                for (set, number, source) in [(None, 1, one), (Some(0), 2, two)] {
                    if let Some(index) = set {
                        child.must(&[&format!("set s {option} {index}")]);
                    }
                    if connected {
                        child.must(&["disconnect s", &format!("connect s {target}")]);
                    }
                    arrive(lab, child, &server, to, number, source);
                }
            }
        }
    });
}

#[test]
fn a_chosen_interface_is_no_wrong_one_and_is_not_repaired() {
    steered(|lab, child| {
        lab.policy(1, TWO, policy_flags::REPAIR);
        lab.guard_uplinks();
        let server = Udp::new(lab);
        for (family, target, option, [source, _]) in ways(server.port) {
            open(child, family, "dgram", option, "h1");
            arrive(lab, child, &server, Some(&target), 1, source);
            open(child, family, "dgram", option, "h1");
            child.must(&[&format!("connect s {target}")]);
            arrive(lab, child, &server, None, 1, source);
        }
        let counters = lab.datapath().counters().unwrap();
        assert_eq!((counters.guard_wrong, counters.repaired), (0, 0));
    });
}

#[test]
fn connections_of_tcp_are_steered_whatever_interface_datagrams_would_have() {
    steered(|lab, child| {
        let server = Tcp::new(lab);
        for (family, target, option, [_, source]) in ways(server.port) {
            open(child, family, "stream", option, "h1");
            child.must(&[&format!("connect s {target}")]);
            assert_eq!(server.next().to_string(), source, "{target}");
            assert_eq!(child.mark("s"), mark(TWO));
        }
    });
}

#[test]
fn the_kind_of_address_that_the_application_prefers_is_taken_from_its_domain() {
    steered(|lab, child| {
        let public = "fd00:2::beef";
        ip(&format!("addr add {public}/64 dev h2 nodad"));
        let mut entry = lab.maps().domains.get(TWO).unwrap();
        entry.public6[14..].copy_from_slice(&[0xbe, 0xef]);
        let key = SourceKey {
            domain: TWO,
            address: entry.public6,
        };
        lab.maps().sources.set(&key, &1).unwrap();
        lab.datapath().maps.domains.set(TWO, &entry).unwrap();
        lab.guard_uplinks();
        let (udp, tcp) = (Udp::new(lab), Tcp::new(lab));
        let target = format!("[{SERVER6}]:{}", udp.port);
        for flags in [0, policy_flags::STRICT] {
            lab.policy(1, TWO, flags);
            // IPV6_ADDR_PREFERENCES (RFC 5014, section 7): temporary, public, care-of and public, neither.
            for (preference, source) in [
                (1, "fd00:2::2"),
                (2, public),
                (6, public),
                (0x100, "fd00:2::2"),
            ] {
                let prefer = format!("set s 41 72 {preference}");
                child.must(&["open s inet6 stream", &prefer]);
                child.must(&[&format!("connect s [{SERVER6}]:{}", tcp.port)]);
                assert_eq!(tcp.next().to_string(), source, "{preference}");
                child.must(&["open s inet6 dgram", &prefer]);
                arrive(lab, child, &udp, Some(&target), 2, source);
                child.must(&["open s inet6 dgram", &prefer]);
                child.must(&[&format!("connect s {target}")]);
                arrive(lab, child, &udp, None, 2, source);
            }
        }
        let counters = lab.datapath().counters().unwrap();
        assert_eq!((counters.guard_wrong, counters.guard_dropped), (0, 0));
    });
}
