//! Who answers, or bound an address, goes by the member that the address is of, and not by the slot.

use std::{
    io::{ErrorKind, Read as _},
    net::{SocketAddr, TcpStream},
    time::Duration,
};

use steer_common::policy_flags::{REPAIR, STRICT};
use steer_core::rules::Rule;

use crate::{
    child::Child,
    lab::{Lab, ONE, SERVER4, SERVER6, TWO},
    peer::Udp,
    share::{SHARED, THREE, with_a_share},
};

/// Enough that not all of them have their slot at the same member.
const FLOWS: u32 = 10;

/// The host's addresses by domain: the one of IPv4, and of IPv6.
fn addresses(domain: u32) -> [String; 2] {
    [format!("10.0.{domain}.2"), format!("fd00:{domain}::2")]
}

/// A listener for both families on all addresses, and its port.
fn listen(child: &mut Child) -> u16 {
    child.must(&["open l inet6 stream", "bind l [::]:5555", "listen l"]);
    5555
}

/// Connects the peer to the host by `domain` as often as [`FLOWS`], and has each connection say something.
fn is_answered(lab: &Lab, child: &mut Child, domain: u32, port: u16) {
    for address in addresses(domain) {
        let address = SocketAddr::new(address.parse().unwrap(), port);
        for _ in 0..FLOWS {
            let patience = Duration::from_secs(5);
            let mut peer = lab
                .in_peer(|| TcpStream::connect_timeout(&address, patience))
                .unwrap_or_else(|error| panic!("{address}: {error}"));
            peer.set_read_timeout(Some(patience)).unwrap();
            child.must(&["accept l a", "write a answer"]);
            let mut text = [0; 6];
            peer.read_exact(&mut text)
                .unwrap_or_else(|error| panic!("{address}: {error}"));
            assert_eq!(&text, b"answer");
        }
    }
}

/// Nothing of an answer comes by `domain`: all of it is dropped.
fn is_not_answered(lab: &mut Lab, domain: u32, port: u16) {
    for address in addresses(domain) {
        let address = SocketAddr::new(address.parse().unwrap(), port);
        let before = lab.datapath().counters().unwrap().guard_dropped;
        let connected = lab.in_peer(|| {
            TcpStream::connect_timeout(&address, Duration::from_millis(300)).map(|_| ())
        });
        assert_eq!(connected.unwrap_err().kind(), ErrorKind::TimedOut);
        let after = lab.datapath().counters().unwrap().guard_dropped;
        assert!(after > before, "{address}");
    }
}

#[test]
fn a_listener_answers_by_the_member_that_it_was_asked_by() {
    with_a_share(STRICT, |lab, child| {
        let port = listen(child);
        is_answered(lab, child, ONE, port);
        is_answered(lab, child, TWO, port);
        assert_eq!(lab.datapath().counters().unwrap().guard_dropped, 0);
        is_not_answered(lab, THREE, port);
    });
    with_a_share(REPAIR, |lab, child| {
        let port = listen(child);
        for domain in [ONE, TWO, THREE] {
            is_answered(lab, child, domain, port);
        }
        let counters = lab.datapath().counters().unwrap();
        assert_eq!((counters.guard_wrong, counters.repaired), (0, 0));
    });
}

/// What one socket each does with a source: the commands, of which the last sends `x`.
fn ways(family: &str, source: &str, target: &str) -> [Vec<String>; 3] {
    let open = format!("open s {family} dgram");
    let bind = if family == "inet" {
        format!("bind s {source}:0")
    } else {
        format!("bind s [{source}]:0")
    };
    [
        vec![open.clone(), format!("send-from s {source} {target} x")],
        vec![open.clone(), bind.clone(), format!("send s {target} x")],
        vec![
            open,
            bind,
            format!("connect s {target}"),
            "write s x".into(),
        ],
    ]
}

/// Sends datagrams from the addresses of `domain`, in each of the [`ways`].
fn sends_from(child: &mut Child, server: &Udp, domain: u32) {
    for (family, source, target) in each_family(server, domain) {
        for commands in ways(family, &source, &target) {
            for _ in 0..FLOWS {
                for command in &commands {
                    child.must(&[command]);
                }
                assert_eq!(server.next(), ("x".into(), source.parse().unwrap()));
            }
        }
    }
}

/// Datagrams from the addresses of `domain` are refused.
fn may_not_send_from(child: &mut Child, server: &Udp, domain: u32) {
    for (family, source, target) in each_family(server, domain) {
        for commands in ways(family, &source, &target) {
            let answers = commands.iter().map(|command| child.ask(command));
            let refused = answers.into_iter().find(|answer| answer != "ok");
            assert_eq!(refused.as_deref(), Some("errno 1"), "{commands:?}");
        }
    }
}

fn each_family(server: &Udp, domain: u32) -> [(&'static str, String, String); 2] {
    let [four, six] = addresses(domain);
    [
        ("inet", four, format!("{SERVER4}:{}", server.port)),
        ("inet6", six, format!("[{SERVER6}]:{}", server.port)),
    ]
}

#[test]
fn datagrams_go_by_the_member_whose_address_they_are_sent_from() {
    with_a_share(STRICT, |lab, child| {
        let server = Udp::new(lab);
        sends_from(child, &server, ONE);
        sends_from(child, &server, TWO);
        may_not_send_from(child, &server, THREE);
        assert_eq!(lab.datapath().counters().unwrap().guard_dropped, 0);
    });
    with_a_share(0, |lab, child| {
        let server = Udp::new(lab);
        sends_from(child, &server, ONE);
        sends_from(child, &server, TWO);
        assert_eq!(lab.datapath().counters().unwrap().guard_wrong, 0);
    });
}

#[test]
fn the_members_are_those_of_the_choice_of_the_rule_that_fits() {
    with_a_share(STRICT, |lab, child| {
        let udp = Rule {
            protocol: vec!["udp".parse().unwrap()],
            ..Rule::default()
        };
        lab.rules(1, &[(udp, SHARED)], TWO);
        lab.policy_with_rules(1, TWO, STRICT, 1);
        let server = Udp::new(lab);
        sends_from(child, &server, ONE);
        sends_from(child, &server, TWO);
        may_not_send_from(child, &server, THREE);
        let port = listen(child);
        is_answered(lab, child, TWO, port);
        is_not_answered(lab, ONE, port);
    });
}
