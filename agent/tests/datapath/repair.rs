//! What no socket program could decide, put right packet by packet: on real sockets, seen at the peer's
//! end.

use std::{
    io::Read as _,
    path::{Path, PathBuf},
};

use steer_common::{
    IngressEntry, LocalEntry, LocalKey4, LocalKey6, ingress_flags, local_flags,
    policy_flags::REPAIR,
};

use crate::{
    child::{Child, pumped},
    lab::{Lab, ONE, SERVER4, SERVER6, TWO, ifindex, ip, on_a_new_host, sysctl},
    peer::{Capture, Tcp, Udp, eventually},
    tun::{Tun, Tunnel},
};

/// A host with everything attached, and policy 1 that steers to `TWO` and repairs, while the host's own
/// default route leads to `ONE`; and a process in a cgroup that has no policy yet.
pub(crate) fn repaired(test: impl FnOnce(&mut Lab, &mut Child, PathBuf) + Send + 'static) {
    on_a_new_host(|lab| {
        lab.attach_all();
        lab.write_domains();
        lab.policy(1, TWO, REPAIR);
        for interface in ["h1", "h2"] {
            lab.datapath().set_guard(ifindex(interface), true).unwrap();
        }
        lab.datapath()
            .set_ingress(ifindex("h2"), Some(RETURNS))
            .unwrap();
        own_addresses(lab);
        let group = lab.group("older", 0);
        let mut child = Child::start(&group);
        test(lab, &mut child, group);
    });
}

/// Tells the programs which addresses are the host's.
pub(crate) fn own_addresses(lab: &Lab) {
    let host = LocalEntry {
        flags: local_flags::HOST,
        ..LocalEntry::default()
    };
    for domain in 1..=2 {
        let key = LocalKey4 {
            prefix_len: 32,
            address: [10, 0, domain, 2],
        };
        lab.maps().locals4.set(&key, &host).unwrap();
        let mut address = [0; 16];
        (address[0], address[3], address[15]) = (0xfd, domain, 2);
        let key = LocalKey6 {
            prefix_len: 128,
            address,
        };
        lab.maps().locals6.set(&key, &host).unwrap();
    }
}

/// What an interface's entry says where answers to repaired flows arrive.
pub(crate) const RETURNS: IngressEntry = IngressEntry {
    mark: 0,
    flags: ingress_flags::RETURNS | ingress_flags::ETHERNET,
};

/// The same where packets have no Ethernet header, or it is not known whether they have.
pub(crate) const BARE_RETURNS: IngressEntry = IngressEntry {
    mark: 0,
    flags: ingress_flags::RETURNS,
};

/// Both families: how a socket is opened, where the peer is, and the sources by `ONE` and by `TWO`.
pub(crate) const FAMILIES: [(&str, &str, &str, &str); 2] = [
    ("inet", SERVER4, "10.0.1.2", "10.0.2.2"),
    ("inet6", SERVER6, "fd00:1::2", "fd00:2::2"),
];

pub(crate) fn target(address: &str, port: u16) -> String {
    if address.contains(':') {
        format!("[{address}]:{port}")
    } else {
        format!("{address}:{port}")
    }
}

#[test]
fn a_connected_datagram_socket_older_than_its_policy_is_repaired_both_ways() {
    repaired(|lab, child, group| {
        for rp_filter in ["0", "1", "2"] {
            for interface in ["all", "h1", "h2"] {
                sysctl(&format!("ipv4/conf/{interface}/rp_filter"), rp_filter);
            }
            for (family, address, one, two) in FAMILIES {
                lab.give(&group, 0, 0);
                let server = Udp::at(lab, address);
                let target = target(address, server.port);
                child.must(&[&format!("open s {family} dgram")]);
                child.must(&[&format!("connect s {target}"), "write s before"]);
                assert_eq!(server.echo(), ("before".into(), one.parse().unwrap()));
                assert_eq!(child.ask("read s"), "ok before");
                let wrong = Capture::on(lab, "p1");
                lab.give(&group, 1, 0);
                child.must(&["write s repaired"]);
                assert_eq!(server.echo(), ("repaired".into(), two.parse().unwrap()));
                assert_eq!(child.ask("read s"), "ok repaired", "rp_filter {rp_filter}");
                assert!(!wrong.saw("repaired"));
                child.must(&["close s"]);
            }
        }
        let counters = lab.datapath().counters().unwrap();
        assert_eq!((counters.repaired, counters.repair_refused), (6, 0));
    });
}

#[test]
fn what_the_application_chose_is_left_as_it_is() {
    repaired(|lab, child, group| {
        let server = Udp::new(lab);
        let target = target(SERVER4, server.port);
        // A device (`SO_BINDTODEVICE`), a mark of its own (`SO_MARK`), another destination than the socket's.
        for option in ["set s 1 25 h1", "set s 1 36 7"] {
            lab.give(&group, 0, 0);
            child.must(&["open s inet dgram", option]);
            child.must(&[&format!("connect s {target}")]);
            lab.give(&group, 1, 0);
            child.must(&["write s chosen"]);
            assert_eq!(
                server.next(),
                ("chosen".into(), "10.0.1.2".parse().unwrap())
            );
        }
        assert_eq!(lab.datapath().counters().unwrap().repaired, 0);
    });
}

#[test]
fn echo_requests_are_repaired() {
    repaired(|lab, child, group| {
        for (family, address, ..) in FAMILIES {
            for kind in ["ping", "raw"] {
                lab.give(&group, 0, 0);
                child.must(&[&format!("open s {family} {kind}")]);
                lab.give(&group, 1, 0);
                let wrong = Capture::on(lab, "p1");
                let right = Capture::on(lab, "p2");
                // An echo request by hand: type, code, checksum, identifier 0x4141, sequence 0x4242.
                let request = if family == "inet" {
                    "0800333a414142424142"
                } else {
                    "8000000041414242"
                };
                child.must(&[&format!("send-hex s {} {request}", target(address, 0))]);
                let answer = child.ask("read s");
                assert!(answer.contains("BB"), "{family} {kind}: {answer}");
                assert!(right.saw("BB") && !wrong.saw("BB"), "{family} {kind}");
                child.must(&["close s"]);
            }
        }
        assert_eq!(lab.datapath().counters().unwrap().repaired, 4);
    });
}

#[test]
fn a_connection_is_repaired_from_its_syn_on() {
    repaired(|lab, child, group| {
        let server = Tcp::new(lab);
        for (family, address, one, two) in FAMILIES {
            lab.give(&group, 0, 0);
            let hole = format!("route add blackhole {one}");
            lab.in_peer(|| ip(&hole));
            child.must(&[&format!("open s {family} stream")]);
            child.must(&[&format!("connect-begin s {}", target(address, server.port))]);
            lab.give(&group, 1, 0);
            child.must(&["connect-end s"]);
            let mut stream = server.accept();
            let source = stream.peer_addr().unwrap().ip().to_canonical();
            assert_eq!(source.to_string(), two);
            // Enough for large segments, scaled windows and wrapped buffers.
            const BYTES: u64 = 48 << 20;
            let receiver = std::thread::spawn(move || {
                let (mut place, mut buffer) = (0, vec![0; 1 << 16]);
                loop {
                    let length = stream.read(&mut buffer).unwrap();
                    if length == 0 {
                        return place;
                    }
                    for byte in &buffer[..length] {
                        assert_eq!(*byte, pumped(place), "at {place}");
                        place += 1;
                    }
                }
            });
            child.must(&[&format!("pump s {BYTES}")]);
            assert_eq!(receiver.join().unwrap(), BYTES);
            child.must(&["close s"]);
        }
        assert!(lab.datapath().counters().unwrap().repaired > 1000);
    });
}

/// A connected datagram socket that is older than its policy, which it has then.
pub(crate) fn older(lab: &Lab, child: &mut Child, group: &Path, family: &str, target: &str) {
    lab.give(group, 0, 0);
    child.must(&[&format!("open s {family} dgram")]);
    child.must(&[&format!("connect s {target}")]);
    lab.give(group, 1, 0);
}

#[test]
fn errors_about_a_repaired_flow_reach_its_socket() {
    repaired(|lab, child, group| {
        for (family, address, ..) in FAMILIES {
            // Nobody listens there.
            older(lab, child, &group, family, &target(address, 9));
            child.must(&["write s anybody?"]);
            assert_eq!(child.ask("read s"), "errno 111", "{family}");
            child.must(&["close s"]);
        }
        assert_eq!(lab.datapath().counters().unwrap().repaired, 2);
    });
}

#[test]
fn datagrams_in_fragments_are_repaired_whole() {
    repaired(|lab, child, group| {
        for (family, address, _, two) in FAMILIES {
            let server = Udp::at(lab, address);
            older(lab, child, &group, family, &target(address, server.port));
            let text = "fragment".repeat(400);
            child.must(&[&format!("write s {text}")]);
            assert_eq!(server.echo(), (text.clone(), two.parse().unwrap()));
            assert_eq!(child.ask("read s"), format!("ok {text}"));
            child.must(&["close s"]);
        }
        assert_eq!(lab.datapath().counters().unwrap().repaired, 6);
    });
}

#[test]
fn a_smaller_mtu_of_the_domain_is_learned_by_the_sender() {
    repaired(|lab, child, group| {
        ip("link set h2 mtu 1300");
        // The kernel learns a smaller path for the route that a packet with the source takes (`ip6_update_pmtu`),
        // which a rule by source may have differ from the one that the datagram socket took without one.
        ip("-6 rule del from fd00:1::2 pref 1000");
        for (family, address, _, two) in FAMILIES {
            let server = Udp::at(lab, address);
            older(lab, child, &group, family, &target(address, server.port));
            // Neighbours are known then, and nothing waits for them.
            child.must(&["write s first"]);
            assert_eq!(server.echo().0, "first");
            let text = "tooo_big".repeat(170);
            child.must(&[&format!("write s {text}")]);
            // The socket is told, and then sends smaller packets.
            eventually("the socket hears of it", || {
                child.ask("write s x") == "errno 90"
            });
            child.must(&[&format!("write s {text}")]);
            let got = std::iter::repeat_with(|| server.echo()).find(|(got, _)| got.len() > 1);
            assert_eq!(got, Some((text, two.parse().unwrap())));
            child.must(&["close s"]);
        }
        assert_eq!(lab.datapath().counters().unwrap().repair_too_big, 2);
    });
}

#[test]
fn repaired_flows_go_on_while_no_agent_lives_and_end_with_their_policy() {
    repaired(|lab, child, group| {
        for (family, address, one, two) in FAMILIES {
            let server = Udp::at(lab, address);
            older(lab, child, &group, family, &target(address, server.port));
            child.must(&["write s alive"]);
            assert_eq!(server.echo(), ("alive".into(), two.parse().unwrap()));
            assert_eq!(child.ask("read s"), "ok alive");
            lab.kill_agent();
            child.must(&["write s dead"]);
            assert_eq!(server.echo(), ("dead".into(), two.parse().unwrap()));
            assert_eq!(child.ask("read s"), "ok dead");
            lab.start_agent();
            lab.give(&group, 0, 0);
            child.must(&["write s unset"]);
            assert_eq!(server.echo(), ("unset".into(), one.parse().unwrap()));
            assert_eq!(child.ask("read s"), "ok unset");
            child.must(&["close s"]);
        }
    });
}

#[test]
fn no_packet_goes_by_what_was_true_before_a_change() {
    repaired(|lab, child, group| {
        for (family, address, one, two) in FAMILIES {
            let server = Udp::at(lab, address);
            older(lab, child, &group, family, &target(address, server.port));
            // Sooner than what a socket has of its flow gets old.
            for _ in 0..10 {
                for (policy, source) in [(1, two), (0, one)] {
                    lab.give(&group, policy, 0);
                    for _ in 0..3 {
                        child.must(&["write s changed"]);
                        assert_eq!(server.next(), ("changed".into(), source.parse().unwrap()));
                    }
                }
            }
            child.must(&["close s"]);
        }
    });
}

#[test]
fn echo_requests_follow_a_decision_at_once() {
    repaired(|lab, child, group| {
        lab.give(&group, 0, 0);
        child.must(&["open s inet ping"]);
        lab.give(&group, 1, 0);
        let [one, two] = ["p1", "p2"].map(|interface| Capture::on(lab, interface));
        // Identifier, sequence and text: the kernel writes identifier and checksum.
        let ping = |text: &str| {
            let text: String = text.bytes().map(|byte| format!("{byte:02x}")).collect();
            format!("send-hex s {} 0800000000000001{text}", target(SERVER4, 0))
        };
        for round in 0..5 {
            for (domain, right, wrong) in [(TWO, &two, &one), (ONE, &one, &two)] {
                lab.policy(1, domain, REPAIR);
                lab.maps().count_change().unwrap();
                let text = format!("ping{round}{domain}");
                child.must(&[&ping(&text)]);
                let answer = child.ask("read s");
                assert!(answer.contains(&text), "{answer}");
                assert!(right.saw(&text) && !wrong.saw(&text), "{text}");
            }
        }
    });
}

#[test]
fn packets_of_a_repaired_socket_that_differ_go_their_own_way() {
    repaired(|lab, child, group| {
        let server = Udp::new(lab);
        let other = Udp::new(lab);
        older(lab, child, &group, "inet", &target(SERVER4, server.port));
        let [one, two] = ["10.0.1.2", "10.0.2.2"].map(|source| source.parse().unwrap());
        let is_sent = |child: &mut Child, what: &str| {
            child.must(&[&format!("write s {what}")]);
            assert_eq!(server.next(), (what.into(), two));
        };
        for round in 0..3 {
            is_sent(child, "same");
            is_sent(child, &"long".repeat(4 * (round + 1)));
            // Another class (`IP_TOS`).
            child.must(&[&format!("set s 0 1 {}", 40 * (round + 1))]);
            is_sent(child, "class");
            // Another peer: the source that the socket has is the application's own affair there.
            child.must(&[&format!("send s {} other", target(SERVER4, other.port))]);
            assert_eq!(other.next(), ("other".into(), one));
        }
        // The way that a mark leads is the application's own affair (`SO_MARK`).
        child.must(&["set s 1 36 7", "write s marked"]);
        assert_eq!(server.next(), ("marked".into(), one));
    });
}

#[test]
fn a_neighbour_with_another_hardware_address_is_found_again() {
    repaired(|lab, child, group| {
        for (family, address, _, two) in FAMILIES {
            let server = Udp::at(lab, address);
            older(lab, child, &group, family, &target(address, server.port));
            for _ in 0..3 {
                child.must(&["write s before"]);
                assert_eq!(server.next(), ("before".into(), two.parse().unwrap()));
            }
            let right = Capture::on(lab, "p2");
            let address = format!("02:00:00:00:02:{}", family.len());
            lab.in_peer(|| ip(&format!("link set p2 address {address}")));
            // As if the host had asked.
            for router in ["10.0.2.1", "fd00:2::1"] {
                ip(&format!("neigh replace {router} lladdr {address} dev h2"));
            }
            eventually("datagrams arrive again", || {
                child.must(&["write s after"]);
                server.has("after")
            });
            assert!(right.saw("after"));
            child.must(&["close s"]);
        }
    });
}

#[test]
fn a_flow_that_would_look_like_a_sockets_own_is_refused_and_left() {
    repaired(|lab, child, group| {
        let server = Udp::new(lab);
        child.must(&["open own inet dgram", "bind own 10.0.2.2:5555"]);
        child.must(&["open s inet dgram", "bind s 10.0.1.2:5555"]);
        child.must(&[&format!("connect s {}", target(SERVER4, server.port))]);
        lab.give(&group, 1, 0);
        child.must(&["write s refused"]);
        assert_eq!(
            server.next(),
            ("refused".into(), "10.0.1.2".parse().unwrap())
        );
        let counters = lab.datapath().counters().unwrap();
        assert_eq!((counters.repaired, counters.repair_refused), (0, 1));
        child.must(&["close own", "write s repaired"]);
        assert_eq!(
            server.next(),
            ("repaired".into(), "10.0.2.2".parse().unwrap())
        );
    });
}

/// Lays a tunnel whose packets have no link-layer header, from `t<number>` here to one at the peer.
fn tunnel(lab: &Lab, number: u32) -> Tunnel {
    let addresses = |host: u32| {
        ip(&format!("addr add 10.9.{number}.{host}/24 dev t{number}"));
        ip(&format!(
            "addr add fd09:{number}::{host}/64 dev t{number} nodad"
        ));
        ip(&format!("link set t{number} up"));
    };
    let name = format!("t{number}");
    let here = Tun::new(&name);
    addresses(2);
    let there = lab.in_peer(|| {
        let there = Tun::new(&name);
        addresses(1);
        there
    });
    Tunnel::join(here, there)
}

#[test]
fn flows_are_repaired_to_an_interface_without_a_link_layer_header() {
    repaired(|lab, child, group| {
        let _tunnel = tunnel(lab, 2);
        ip("-4 route replace default dev t2 src 10.9.2.2 table 102");
        ip("-6 route replace default dev t2 src fd09:2::2 table 102");
        let mut entry = lab.maps().domains.get(TWO).unwrap();
        entry.ifindex = ifindex("t2");
        entry.source4 = [10, 9, 2, 2];
        entry.source6[..4].copy_from_slice(&[0xfd, 9, 0, 2]);
        entry.public6 = entry.source6;
        lab.datapath().maps.domains.set(TWO, &entry).unwrap();
        lab.datapath().set_guard(ifindex("t2"), true).unwrap();
        lab.datapath()
            .set_ingress(ifindex("t2"), Some(BARE_RETURNS))
            .unwrap();
        for (family, address, two) in [
            ("inet", SERVER4, "10.9.2.2"),
            ("inet6", SERVER6, "fd09:2::2"),
        ] {
            let server = Udp::at(lab, address);
            older(lab, child, &group, family, &target(address, server.port));
            for _ in 0..3 {
                child.must(&["write s tunnelled"]);
                assert_eq!(server.echo(), ("tunnelled".into(), two.parse().unwrap()));
                assert_eq!(child.ask("read s"), "ok tunnelled");
            }
            child.must(&["close s"]);
        }
    });
}

#[test]
fn flows_are_repaired_from_an_interface_without_a_link_layer_header() {
    repaired(|lab, child, group| {
        let _tunnel = tunnel(lab, 1);
        ip("-4 route replace default dev t1 src 10.9.1.2");
        ip("-6 route replace default dev t1 src fd09:1::2");
        lab.datapath().set_guard(ifindex("t1"), true).unwrap();
        let host = LocalEntry {
            flags: local_flags::HOST,
            ..LocalEntry::default()
        };
        let four = LocalKey4 {
            prefix_len: 32,
            address: [10, 9, 1, 2],
        };
        lab.maps().locals4.set(&four, &host).unwrap();
        let mut address = [0; 16];
        (address[0], address[1], address[3], address[15]) = (0xfd, 9, 1, 2);
        let six = LocalKey6 {
            prefix_len: 128,
            address,
        };
        lab.maps().locals6.set(&six, &host).unwrap();
        for (family, address, _, two) in FAMILIES {
            let server = Udp::at(lab, address);
            older(lab, child, &group, family, &target(address, server.port));
            child.must(&["write s from-tunnel"]);
            assert_eq!(server.echo(), ("from-tunnel".into(), two.parse().unwrap()));
            assert_eq!(child.ask("read s"), "ok from-tunnel");
            child.must(&["close s"]);
        }
    });
}
