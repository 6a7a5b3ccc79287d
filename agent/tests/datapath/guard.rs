//! What the guard lets out.

use steer::datapath::Event;
use steer_common::{cgroup_flags, domain_flags, guard_reason, policy_flags::STRICT};

use crate::{
    child::Child,
    flows::steered,
    lab::{BLOCKED, Lab, SERVER4, SERVER6, TWO, id, ifindex, ip},
    peer::{Capture, Tcp, Udp, eventually},
};

/// As [`steered`], strict, with a guard on both uplinks.
fn guarded(test: impl FnOnce(&mut Lab, &mut Child) + Send + 'static) {
    steered(|lab, child| {
        lab.policy(1, TWO, STRICT);
        for interface in ["h1", "h2"] {
            lab.datapath().set_guard(ifindex(interface), true).unwrap();
        }
        test(lab, child);
    });
}

#[test]
fn right_packets_pass_and_are_counted() {
    guarded(|lab, child| {
        let server = Tcp::new(lab);
        child.must(&[
            "open s inet stream",
            &format!("connect s {SERVER4}:{}", server.port),
        ]);
        child.must(&[
            "open s inet6 stream",
            &format!("connect s [{SERVER6}]:{}", server.port),
        ]);
        assert_eq!(server.next().to_string(), "10.0.2.2");
        assert_eq!(server.next().to_string(), "fd00:2::2");
        let counters = lab.datapath().counters().unwrap();
        assert!(counters.guard_passed >= 4);
        assert_eq!(counters.guard_dropped, 0);
    });
}

#[test]
fn a_flow_older_than_its_policy_is_stopped() {
    guarded(|lab, child| {
        let server = Udp::new(lab);
        let arrivals = Capture::on(lab, "p1");
        let target = format!("{SERVER4}:{}", server.port);
        let none = lab.group("none", 0);
        child.must(&[&format!("move {}", none.display()), "open s inet dgram"]);
        child.must(&[&format!("connect s {target}"), "write s allowed-out"]);
        assert_eq!(server.next().1.to_string(), "10.0.1.2");
        lab.give(&none, 1, 0);
        child.must(&["write s not-allowed-out"]);
        assert_eq!(lab.datapath().counters().unwrap().guard_dropped, 1);
        // A later packet shows that the earlier one would have arrived.
        lab.policy(1, TWO, 0);
        child.must(&["write s allowed-again"]);
        assert_eq!(server.next().0, "allowed-again");
        assert!(!arrivals.saw("not-allowed-out"));
    });
}

#[test]
fn an_interface_chosen_by_a_control_message_is_stopped() {
    guarded(|lab, child| {
        let arrivals = Capture::on(lab, "p1");
        let server = Udp::new(lab);
        let target = format!("{SERVER4}:{}", server.port);
        child.must(&[
            "open s inet dgram",
            &format!("send-by s h1 {target} sneaky"),
        ]);
        assert_eq!(lab.datapath().counters().unwrap().guard_dropped, 1);
        child.must(&[&format!("send-by s h2 {target} honest")]);
        assert_eq!(server.next().0, "honest");
        assert!(!arrivals.saw("sneaky"));
    });
}

#[test]
fn options_before_the_header_make_no_wrapping() {
    guarded(|lab, child| {
        let arrivals = Capture::on(lab, "p1");
        let server = Udp::new(lab);
        let target = format!("{SERVER4}:{}", server.port);
        // Four times `IPOPT_NOOP` as `IP_OPTIONS`: the port is not where it was.
        child.must(&["open s inet dgram", "set s 0 4 16843009"]);
        child.must(&[&format!("send-by s h1 {target} sneaky")]);
        honest_packet(lab, &server);
        assert_eq!(lab.datapath().counters().unwrap().guard_dropped, 1);
        assert!(!arrivals.saw("sneaky"));
    });
}

#[test]
fn a_datagram_whose_socket_gave_its_port_up_is_no_wrapping() {
    given_up(0);
}

#[test]
fn it_is_none_either_if_the_domain_is_a_tunnel() {
    given_up(domain_flags::TUNNEL);
}

fn given_up(kind: u32) {
    const UDP_CORK: &str = "17 1";
    guarded(move |lab, child| {
        let mut entry = lab.maps().domains.get(TWO).unwrap();
        entry.flags |= kind;
        lab.datapath().maps.domains.set(TWO, &entry).unwrap();
        let arrivals = Capture::on(lab, "p1");
        let server = Udp::new(lab);
        // The port is written into an IPv6 datagram when it is begun.
        child.must(&[
            "open s inet6 dgram",
            "hold-by s h1 [ff02::1234]:9 sneaky",
            "disconnect s",
            &format!("set s {UDP_CORK} 0"),
        ]);
        honest_packet(lab, &server);
        assert_eq!(lab.datapath().counters().unwrap().guard_dropped, 1);
        assert!(!arrivals.saw("sneaky"));
    });
}

#[test]
fn a_frame_that_is_said_to_be_no_ip_packet_is_looked_at() {
    guarded(|lab, child| {
        let arrivals = Capture::on(lab, "p2");
        let frame = |ethertype: u16, content: &str| {
            let mut frame = [[0xff; 6], [2, 0, 0, 0, 0, 1]].concat();
            frame.extend(ethertype.to_be_bytes());
            frame.extend(content.as_bytes());
            frame
                .iter()
                .map(|byte| format!("{byte:02x}"))
                .collect::<String>()
        };
        child.must(&["open f packet whole"]);
        let said = |said: u16, ethertype: u16, content: &str| {
            format!("frame f h2 {said:04x} {}", frame(ethertype, content))
        };
        for sneaky in [
            said(0x1234, 0x0800, "E..sneaky.packet.of.any.source"),
            said(0x8100, 0x8100, "..sneaky.frame.of.another.network"),
        ] {
            assert_eq!(child.ask(&sneaky), "errno 105");
        }
        child.must(&[&said(0x88b5, 0x88b5, "an.honest.experiment")]);
        eventually("the honest one arrives", || arrivals.saw("honest"));
        assert!(!arrivals.saw("sneaky"));
        assert_eq!(lab.datapath().counters().unwrap().guard_dropped, 2);
    });
}

#[test]
fn later_fragments_are_no_wrapping() {
    guarded(|lab, child| {
        let arrivals = Capture::on(lab, "p1");
        let server = Udp::new(lab);
        let target = format!("{SERVER4}:{}", server.port);
        // The first fragment waits until the neighbour is known, and so the second is sent before it
        // can be heard that the first was dropped.
        let text = "sneaky".repeat(600);
        child.must(&[
            "open s inet dgram",
            &format!("send-by s h1 {target} {text}"),
        ]);
        honest_packet(lab, &server);
        assert!(lab.datapath().counters().unwrap().guard_dropped >= 2);
        assert!(!arrivals.saw("sneaky"));
    });
}

/// Sends by `h1` what may leave there, and waits for it: what was sent before has arrived by then.
pub(crate) fn honest_packet(lab: &Lab, server: &Udp) {
    let mut other = Child::start(&lab.group("honest", 0));
    other.must(&[
        "open s inet dgram",
        &format!("send s {SERVER4}:{} honest", server.port),
    ]);
    assert_eq!(server.next().0, "honest");
}

#[test]
fn packet_sockets_are_held_to_the_domain() {
    guarded(|lab, child| {
        child.must(&["open s packet raw"]);
        child.ask("packet s h1");
        assert_eq!(lab.datapath().counters().unwrap().guard_dropped, 1);
        child.must(&["packet s h2"]);
        assert_eq!(lab.datapath().counters().unwrap().guard_dropped, 1);
    });
}

#[test]
fn servers_answer_only_where_they_may() {
    guarded(|lab, child| {
        // The answer to a SYN has no full socket: it is its listener's.
        child.must(&["open s inet stream", "bind s 0.0.0.0:7000"]);
        child.must(&["listen s"]);
        let connect = |address: &'static str| {
            lab.in_peer(|| {
                std::net::TcpStream::connect_timeout(
                    &address.parse().unwrap(),
                    std::time::Duration::from_millis(300),
                )
            })
        };
        assert!(connect("10.0.2.2:7000").is_ok());
        assert!(connect("10.0.1.2:7000").is_err());
    });
}

#[test]
fn an_undecided_cgroup_is_closed_and_then_what_it_became() {
    guarded(|lab, child| {
        let arrivals = Capture::on(lab, "p1");
        let group = lab.group("new", 0);
        lab.give(&group, 0, cgroup_flags::UNDECIDED);
        child.must(&[&format!("move {}", group.display()), "open s inet dgram"]);
        assert_eq!(child.ask(&format!("connect s {SERVER4}:9")), "errno 101");
        assert_eq!(child.ask(&format!("send s {SERVER4}:9 early")), "errno 101");
        child.must(&["open p packet raw"]);
        child.ask("packet p h1");
        assert_eq!(lab.datapath().counters().unwrap().guard_dropped, 1);
        lab.maps().cgroups.remove(&id(&group)).unwrap();
        let server = Udp::new(lab);
        child.must(&[&format!("send s {SERVER4}:{} late", server.port)]);
        assert_eq!(
            server.next(),
            ("late".to_owned(), "10.0.1.2".parse().unwrap())
        );
        assert!(!arrivals.saw("early"));
    });
}

#[test]
fn drops_are_told_with_their_reason() {
    guarded(|lab, child| {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        let _inside = runtime.enter();
        let mut events = lab.datapath().events().unwrap();
        child.must(&["open s inet dgram", &format!("send-by s h1 {SERVER4}:9 x")]);
        lab.policy(1, BLOCKED, STRICT);
        child.must(&["open p packet raw"]);
        child.ask("packet p h2");
        let mut reasons = Vec::new();
        eventually("two drops are told", || {
            while let Some(event) = events.try_next() {
                if let Event::Guard(event) = event {
                    assert_eq!(event.policy, 1);
                    assert_eq!(event.cgroup, id(&lab.cgroup.join("app")));
                    reasons.push((event.reason, event.ifindex));
                }
            }
            reasons.len() == 2
        });
        assert_eq!(
            reasons,
            [
                (guard_reason::INTERFACE, ifindex("h1")),
                (guard_reason::NO_DOMAIN, ifindex("h2"))
            ]
        );
    });
}

#[test]
fn a_port_of_the_domains_bridge_lets_pass_what_the_bridge_let_pass() {
    guarded(|lab, child| {
        ip("addr flush dev h2");
        ip("link add b2 type bridge");
        ip("link set h2 master b2");
        ip("addr add 10.0.2.2/24 dev b2");
        ip("link set b2 up");
        ip("-4 route add default via 10.0.2.1 dev b2 src 10.0.2.2 table 102");
        on_interface(lab, "b2");
        let server = Udp::new(lab);
        child.must(&[
            "open s inet dgram",
            &format!("send s {SERVER4}:{} bridged", server.port),
        ]);
        assert_eq!(
            server.next(),
            ("bridged".to_owned(), "10.0.2.2".parse().unwrap())
        );
        assert_eq!(lab.datapath().counters().unwrap().guard_dropped, 0);
        // The port itself is not the domain.
        child.must(&["open p packet raw"]);
        child.ask("packet p h2");
        assert_eq!(lab.datapath().counters().unwrap().guard_dropped, 1);
    });
}

#[test]
fn the_carrier_of_the_domains_tunnel_lets_pass_what_the_tunnel_let_pass() {
    guarded(|lab, child| {
        ip("link add x2 type vxlan id 7 remote 10.0.1.1 local 10.0.1.2 dstport 4789 dev h1");
        ip("addr add 10.0.7.2/24 dev x2");
        ip("link set x2 up");
        ip("-4 route replace default via 10.0.7.1 dev x2 src 10.0.7.2 table 102");
        ip("rule add from 10.0.7.2 lookup 102 pref 1000");
        lab.in_peer(|| {
            ip("link add y2 type vxlan id 7 remote 10.0.1.2 local 10.0.1.1 dstport 4789 dev p1");
            ip("addr add 10.0.7.1/24 dev y2");
            ip("link set y2 up");
        });
        let mut entry = lab.maps().domains.get(TWO).unwrap();
        entry.source4 = [10, 0, 7, 2];
        lab.datapath().maps.domains.set(TWO, &entry).unwrap();
        on_interface(lab, "x2");
        let server = Udp::new(lab);
        child.must(&[
            "open s inet dgram",
            &format!("send s {SERVER4}:{} tunnelled", server.port),
        ]);
        assert_eq!(
            server.next(),
            ("tunnelled".to_owned(), "10.0.7.2".parse().unwrap())
        );
        assert_eq!(lab.datapath().counters().unwrap().guard_dropped, 0);
    });
}

/// Moves domain `TWO` to another interface, with a guard of its own.
fn on_interface(lab: &mut Lab, name: &str) {
    let mut entry = lab.maps().domains.get(TWO).unwrap();
    entry.ifindex = ifindex(name);
    lab.datapath().maps.domains.set(TWO, &entry).unwrap();
    lab.datapath().set_guard(ifindex(name), true).unwrap();
}
