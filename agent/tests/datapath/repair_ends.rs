//! A repaired flow that is over leaves nothing that newer flows are taken for.

use std::{net::TcpStream, os::fd::AsRawFd as _, path::Path};

use steer_common::policy_flags::REPAIR;

use crate::{
    child::Child,
    lab::{Lab, ONE, TWO, ip},
    peer::{Capture, Tcp, Udp, eventually},
    repair::{FAMILIES, repaired, target},
};

/// The port that one socket after the other has here.
const PORT: u16 = u16::from_be_bytes(*b"zz");

/// Opens a socket at [`PORT`].
fn open(child: &mut Child, name: &str, family: &str, kind: &str) {
    let any = if family == "inet" { "0.0.0.0" } else { "::" };
    child.must(&[
        &format!("open {name} {family} {kind}"),
        // `SO_REUSEADDR`
        &format!("set {name} 1 2 1"),
        &format!("bind {name} {}", target(any, PORT)),
    ]);
}

/// A connection that begins while its group has no policy and nothing from `one` is answered, and that
/// comes about once it has policy 1, `repaired` or not.
fn older_connection(
    lab: &Lab,
    child: &mut Child,
    group: &Path,
    (family, address, one): (&str, &str, &str),
    server: &Tcp,
    repaired: bool,
) -> TcpStream {
    lab.give(group, 0, 0);
    lab.in_peer(|| ip(&format!("route add blackhole {one}")));
    open(child, "s", family, "stream");
    child.must(&[&format!("connect-begin s {}", target(address, server.port))]);
    let captures = ["p1", "p2"].map(|interface| Capture::on(lab, interface));
    lab.give(group, 1, 0);
    eventually("the SYN is sent again", || {
        captures.iter().any(|capture| capture.saw("zz"))
    });
    // Unless it was repaired, it is answered from now on.
    if !repaired {
        lab.in_peer(|| ip(&format!("route del blackhole {one}")));
    }
    child.must(&["connect-end s"]);
    let stream = server.accept();
    if repaired {
        lab.in_peer(|| ip(&format!("route del blackhole {one}")));
    }
    stream
}

fn source(stream: &TcpStream) -> String {
    stream.peer_addr().unwrap().ip().to_canonical().to_string()
}

/// Ends a connection at once, at both ends.
fn reset(child: &mut Child, name: &str, stream: TcpStream) {
    let now = libc::linger {
        l_onoff: 1,
        l_linger: 0,
    };
    // SAFETY: the value is valid for the length told.
    let result = unsafe {
        libc::setsockopt(
            stream.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_LINGER,
            (&raw const now).cast(),
            libc::socklen_t::try_from(size_of_val(&now)).unwrap(),
        )
    };
    assert_eq!(result, 0);
    drop(stream);
    assert_eq!(child.ask(&format!("read {name}")), "errno 104");
    child.must(&[&format!("close {name}")]);
}

#[test]
fn a_newer_connection_with_the_same_tuple_gets_its_own_answers() {
    repaired(|lab, child, group| {
        let server = Tcp::new(lab);
        for (family, address, one, two) in FAMILIES {
            let older = older_connection(lab, child, &group, (family, address, one), &server, true);
            assert_eq!(source(&older), two);
            reset(child, "s", older);
            open(child, "n", family, "stream");
            child.must(&[&format!("connect-begin n {}", target(address, server.port))]);
            child.must(&["connect-end n"]);
            let newer = server.accept();
            assert_eq!(source(&newer), two);
            reset(child, "n", newer);
        }
    });
}

#[test]
fn a_newer_datagram_flow_with_the_same_tuple_gets_its_own_answers() {
    repaired(|lab, child, group| {
        for (family, address, _, two) in FAMILIES {
            let server = Udp::at(lab, address);
            let target = target(address, server.port);
            lab.give(&group, 0, 0);
            open(child, "s", family, "dgram");
            child.must(&[&format!("connect s {target}")]);
            lab.give(&group, 1, 0);
            child.must(&["write s older"]);
            assert_eq!(server.echo(), ("older".into(), two.parse().unwrap()));
            assert_eq!(child.ask("read s"), "ok older");
            child.must(&["close s"]);
            open(child, "n", family, "dgram");
            child.must(&[&format!("connect n {target}"), "write n newer"]);
            assert_eq!(server.echo(), ("newer".into(), two.parse().unwrap()));
            assert_eq!(child.ask("read n"), "ok newer");
            child.must(&["close n"]);
        }
    });
}

#[test]
fn a_new_connection_goes_where_its_policy_says_now_and_not_by_an_older_ones_lease() {
    repaired(|lab, child, group| {
        let server = Tcp::new(lab);
        for (family, address, one, two) in FAMILIES {
            let flow = (family, address, one);
            lab.policy(1, TWO, REPAIR);
            let older = older_connection(lab, child, &group, flow, &server, true);
            assert_eq!(source(&older), two);
            reset(child, "s", older);
            lab.policy(1, ONE, REPAIR);
            let before = lab.datapath().counters().unwrap().repaired;
            let newer = older_connection(lab, child, &group, flow, &server, false);
            assert_eq!(source(&newer), one);
            reset(child, "s", newer);
            assert_eq!(lab.datapath().counters().unwrap().repaired, before);
        }
    });
}

#[test]
fn a_newer_flow_with_the_same_tuple_goes_where_its_own_policy_says() {
    repaired(|lab, child, group| {
        lab.policy(2, ONE, REPAIR);
        for (family, address, one, two) in FAMILIES {
            let server = Udp::at(lab, address);
            let to = target(address, server.port);
            for (policy, source) in [(1, two), (2, one), (1, two)] {
                lab.give(&group, 0, 0);
                open(child, "s", family, "dgram");
                child.must(&[&format!("connect s {to}")]);
                lab.give(&group, policy, 0);
                child.must(&["write s hello"]);
                assert_eq!(server.next(), ("hello".into(), source.parse().unwrap()));
                child.must(&["close s"]);
            }
        }
    });
}
