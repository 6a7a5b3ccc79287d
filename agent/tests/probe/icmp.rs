//! ICMP echo.

use std::net::IpAddr;

use steer::probe::run;
use steer_core::probe::{Host, Outcome};
use steer_tests::Lab;

use crate::bed::{UPLINK, in_lab, nobody, only_by_uplink, probe, reason, short, targets};

/// Lets everybody have ping sockets at the host, or nobody: then echo takes raw sockets.
fn ping_sockets(allowed: bool) {
    let groups = if allowed { "0 2147483647" } else { "1 0" };
    std::fs::write("/proc/sys/net/ipv4/ping_group_range", groups).expect("write a sysctl");
}

#[test]
fn an_echo_over_the_domain_alone_passes_by_ping_socket_and_raw() {
    in_lab(async |lab| {
        for allowed in [false, true] {
            ping_sockets(allowed);
            for target in targets(lab) {
                let mut probe = probe(lab);
                probe.check.icmp = vec![Host::Ip(target)];
                let report = run(&probe).await;
                assert_eq!(report.outcome, Outcome::Passed, "{target} {allowed}");
                assert_eq!((report.asked, report.lost), (1, 0));
                assert!(report.rtt.is_some());
                only_by_uplink(lab, target);
            }
        }
    });
}

#[test]
fn the_gateways_of_both_families_answer_and_link_local_ones_too() {
    in_lab(async |lab| {
        ping_sockets(true);
        let link_local = lab.peer_link_local(UPLINK).expect("a link-local address");
        let mut probe = probe(lab);
        probe.check.icmp = vec![Host::Gateway];
        assert_eq!(run(&probe).await.outcome, Outcome::Passed);
        for gateway in [probe.gateways[0], probe.gateways[1], link_local] {
            probe.gateways = vec![gateway];
            assert_eq!(run(&probe).await.outcome, Outcome::Passed, "{gateway}");
        }
        let none = "the domain has no gateway";
        probe.source6 = None;
        assert_eq!(
            reason(&run(&probe).await),
            none,
            "only one of the other family"
        );
        probe.gateways.clear();
        assert_eq!(reason(&run(&probe).await), none);
    });
}

#[test]
fn silence_fails_with_the_target_and_the_time() {
    in_lab(async |lab| {
        let mut probe = short(lab);
        probe.check.icmp = vec![Host::Ip(nobody())];
        let report = run(&probe).await;
        assert_eq!(
            reason(&report),
            "no answer to ICMP echo from 10.2.0.77 within 2s"
        );
        assert_eq!((report.asked, report.lost, report.rtt), (1, 1, None));
    });
}

/// Answers the first echo request that comes to the uplink's peer, and no other: by itself, because the
/// kernel there is told not to.
fn answer_only_the_first(lab: &Lab) {
    let peer = lab.peer(UPLINK).expect("the peer");
    let socket = peer.run(|| {
        std::fs::write("/proc/sys/net/ipv4/icmp_echo_ignore_all", "1")?;
        Ok(socket2::Socket::new(
            socket2::Domain::IPV4,
            socket2::Type::RAW,
            Some(socket2::Protocol::ICMPV4),
        )?)
    });
    let socket = socket.expect("a raw socket");
    socket.set_nonblocking(true).expect("non-blocking");
    let socket = tokio::net::UdpSocket::from_std(socket.into()).expect("the runtime takes it");
    tokio::spawn(async move {
        let mut buffer = [0; 1500];
        loop {
            let (length, from) = socket.recv_from(&mut buffer).await.expect("a packet");
            let message = &buffer[20..length];
            if message[0] != 8 {
                continue;
            }
            let header = etherparse::Icmpv4Header::from_slice(message).expect("an echo");
            let etherparse::Icmpv4Type::EchoRequest(echo) = header.0.icmp_type else {
                panic!("{header:?}");
            };
            let kind = etherparse::Icmpv4Type::EchoReply(echo);
            let reply = etherparse::Icmpv4Header::with_checksum(kind, header.1);
            let reply = [reply.to_bytes().as_slice(), header.1].concat();
            socket.send_to(&reply, from).await.expect("sent");
            return;
        }
    });
}

#[test]
fn two_probes_at_once_do_not_take_each_others_reply() {
    for allowed in [false, true] {
        in_lab(async move |lab| {
            ping_sockets(allowed);
            answer_only_the_first(lab);
            let mut probe = short(lab);
            // The peer's raw socket answers with the address of its own interface.
            let gateway: IpAddr = probe.gateways[0];
            probe.check.icmp = vec![Host::Ip(gateway)];
            let (one, two) = tokio::join!(run(&probe), run(&probe));
            let lost = one.lost + two.lost;
            assert_eq!(lost, 1, "{one:?} {two:?}");
        });
    }
}
