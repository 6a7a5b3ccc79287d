//! Where flows go.

use steer::netlink::{LiveFlow, Wanted, live_flows};
use steer_common::{LocalEntry, LocalKey4, flow_flags, local_flags, policy_flags};

use crate::{
    child::Child,
    lab::{BLOCKED, Lab, ONE, SERVER4, SERVER6, TWO, mark, on_a_new_host},
    peer::{Tcp, Udp},
};

/// A host with everything attached, and policy 1 that steers to `TWO`, while the host's own default
/// route leads to `ONE`.
pub(crate) fn steered(test: impl FnOnce(&mut Lab, &mut Child) + Send + 'static) {
    on_a_new_host(|lab| {
        lab.attach_all();
        lab.write_domains();
        lab.policy(1, TWO, 0);
        let group = lab.group("app", 1);
        let mut child = Child::start(&group);
        test(lab, &mut child);
    });
}

#[test]
fn tcp_leaves_by_the_domain_with_its_source() {
    steered(|lab, child| {
        let server = Tcp::new(lab);
        let port = server.port;
        for (family, target, source) in [
            ("inet", format!("{SERVER4}:{port}"), "10.0.2.2"),
            ("inet6", format!("[{SERVER6}]:{port}"), "fd00:2::2"),
            ("inet6", format!("[::ffff:{SERVER4}]:{port}"), "10.0.2.2"),
        ] {
            child.must(&[
                &format!("open s {family} stream"),
                &format!("connect s {target}"),
            ]);
            assert_eq!(server.next().to_string(), source, "{target}");
            assert_eq!(child.mark("s"), mark(TWO));
        }
        assert_eq!(lab.datapath().counters().unwrap().connect_steered, 3);
    });
}

#[test]
fn a_process_without_policy_is_left_alone() {
    on_a_new_host(|lab| {
        lab.attach_all();
        lab.write_domains();
        let server = Tcp::new(lab);
        let mut child = Child::start(&lab.group("app", 0));
        child.must(&["open s inet stream", "set s 1 36 5"]);
        child.must(&[&format!("connect s {SERVER4}:{}", server.port)]);
        assert_eq!(server.next().to_string(), "10.0.1.2");
        assert_eq!(child.mark("s"), 5);
    });
}

#[test]
fn marks_of_others_inside_the_mask_are_left_alone() {
    on_a_new_host(|lab| {
        lab.attach_all();
        lab.write_domains();
        let mut child = Child::start(&lab.group("app", 0));
        // Mullvad's, that of a domain that does not exist, and a domain's among other bits.
        for theirs in [0x6d6f_6c65, 0x1000_0000, mark(ONE) | 1] {
            for (family, target) in [
                ("inet", format!("{SERVER4}:9")),
                ("inet6", format!("[{SERVER6}]:9")),
            ] {
                child.must(&[
                    &format!("open s {family} dgram"),
                    &format!("set s 1 36 {theirs}"),
                    &format!("send s {target} x"),
                ]);
                assert_eq!(child.mark("s"), theirs);
                child.must(&[&format!("connect s {target}")]);
                assert_eq!(child.mark("s"), theirs);
            }
        }
    });
}

#[test]
fn connected_datagrams_leave_by_the_domain() {
    steered(|lab, child| {
        let server = Udp::new(lab);
        let port = server.port;
        for (family, target, source) in [
            ("inet", format!("{SERVER4}:{port}"), "10.0.2.2"),
            ("inet6", format!("[{SERVER6}]:{port}"), "fd00:2::2"),
            ("inet6", format!("[::ffff:{SERVER4}]:{port}"), "10.0.2.2"),
        ] {
            child.must(&[
                &format!("open s {family} dgram"),
                &format!("connect s {target}"),
            ]);
            child.must(&["write s hello"]);
            assert_eq!(server.next().1.to_string(), source, "{target}");
        }
    });
}

#[test]
fn unconnected_datagrams_leave_by_the_domain_from_the_first_on() {
    steered(|lab, child| {
        let server = Udp::new(lab);
        let port = server.port;
        for (family, target, source) in [
            ("inet", format!("{SERVER4}:{port}"), "10.0.2.2"),
            ("inet6", format!("[{SERVER6}]:{port}"), "fd00:2::2"),
            ("inet6", format!("[::ffff:{SERVER4}]:{port}"), "10.0.2.2"),
        ] {
            child.must(&[&format!("open s {family} dgram")]);
            for _ in 0..3 {
                child.must(&[&format!("send s {target} hello")]);
                assert_eq!(server.next().1.to_string(), source, "{target}");
            }
        }
    });
}

#[test]
fn an_older_unmarked_socket_sends_its_first_datagram_right() {
    steered(|lab, child| {
        let server = Udp::new(lab);
        let outside = lab.group("outside", 0);
        let inside = lab.cgroup.join("app");
        child.must(&[&format!("move {}", outside.display()), "open s inet dgram"]);
        child.must(&[&format!("move {}", inside.display())]);
        assert_eq!(child.mark("s"), 0);
        child.must(&[&format!("send s {SERVER4}:{} hello", server.port)]);
        assert_eq!(server.next().1.to_string(), "10.0.2.2");
    });
}

#[test]
fn raw_and_ping_sockets_start_with_the_mark() {
    steered(|_, child| {
        for family in ["inet", "inet6"] {
            for kind in ["raw", "ping", "stream", "dgram"] {
                child.must(&[&format!("open s {family} {kind}")]);
                assert_eq!(child.mark("s"), mark(TWO), "{family} {kind}");
            }
        }
    });
}

#[test]
fn foreign_bits_of_the_mark_are_kept() {
    steered(|lab, child| {
        let server = Udp::new(lab);
        child.must(&["open s inet dgram", "set s 1 36 2147483653"]);
        child.must(&[&format!("connect s {SERVER4}:{}", server.port)]);
        assert_eq!(child.mark("s"), 0x8000_0005 | mark(TWO));
        // To the host itself: our bits go, the others stay.
        child.must(&["connect s 127.0.0.1:9"]);
        assert_eq!(child.mark("s"), 0x8000_0005);
    });
}

#[test]
fn a_blocked_flow_sees_network_unreachable() {
    steered(|lab, child| {
        lab.policy(1, BLOCKED, 0);
        for (family, target) in [
            ("inet", format!("{SERVER4}:9")),
            ("inet6", format!("[{SERVER6}]:9")),
            ("inet6", format!("[::ffff:{SERVER4}]:9")),
        ] {
            for kind in ["stream", "dgram"] {
                child.must(&[&format!("open s {family} {kind}")]);
                assert_eq!(
                    child.ask(&format!("connect s {target}")),
                    "errno 101",
                    "{target}"
                );
            }
            child.must(&[&format!("open s {family} dgram")]);
            assert_eq!(
                child.ask(&format!("send s {target} x")),
                "errno 101",
                "{target}"
            );
        }
        assert_eq!(lab.datapath().counters().unwrap().refused, 9);
    });
}

#[test]
fn a_domain_without_interface_or_family_refuses() {
    steered(|lab, child| {
        let mut entry = lab.maps().domains.get(TWO).unwrap();
        entry.flags = steer_common::domain_flags::IPV4;
        lab.datapath().maps.domains.set(TWO, &entry).unwrap();
        child.must(&["open s inet6 dgram"]);
        assert_eq!(child.ask(&format!("connect s [{SERVER6}]:9")), "errno 101");
        assert_eq!(child.ask(&format!("send s [{SERVER6}]:9 x")), "errno 101");
        entry.ifindex = 0;
        lab.datapath().maps.domains.set(TWO, &entry).unwrap();
        child.must(&["open s inet dgram"]);
        assert_eq!(child.ask(&format!("connect s {SERVER4}:9")), "errno 101");
        assert_eq!(child.ask(&format!("send s {SERVER4}:9 x")), "errno 101");
    });
}

#[test]
fn destinations_on_this_host_and_link_are_not_steered() {
    steered(|lab, child| {
        let key = LocalKey4 {
            prefix_len: 32,
            address: [10, 0, 1, 2],
        };
        let entry = LocalEntry {
            flags: local_flags::HOST,
            ..LocalEntry::default()
        };
        lab.maps().locals4.set(&key, &entry).unwrap();
        for target in [
            "127.0.0.1:9",
            "0.0.0.0:9",
            "169.254.7.7:9",
            "224.0.0.251:9",
            "10.0.1.2:9",
        ] {
            child.must(&["open s inet dgram"]);
            let answer = child.ask(&format!("connect s {target}"));
            assert!(
                !answer.contains("101") || target.starts_with("169"),
                "{target}: {answer}"
            );
            assert_eq!(child.mark("s"), 0, "{target}");
        }
        for target in ["[::1]:9", "[ff02::fb%2]:9", "[fe80::1%2]:9"] {
            child.must(&["open s inet6 dgram"]);
            child.ask(&format!("connect s {target}"));
            assert_eq!(child.mark("s"), 0, "{target}");
        }
    });
}

#[test]
fn other_links_are_left_to_the_host_if_the_policy_says_so() {
    steered(|lab, child| {
        lab.policy(1, TWO, policy_flags::LOCAL_PASS);
        let server = Udp::new(lab);
        let entry = |domain: u32| {
            let mut entry = LocalEntry::default();
            entry.domains.insert(u16::try_from(domain).unwrap());
            let octet = u8::try_from(domain).unwrap();
            entry.source[..4].copy_from_slice(&[10, 0, octet, 2]);
            entry
        };
        for domain in [ONE, TWO] {
            let key = LocalKey4 {
                prefix_len: 24,
                address: [10, 0, u8::try_from(domain).unwrap(), 0],
            };
            lab.maps().locals4.set(&key, &entry(domain)).unwrap();
        }
        let port = server.port;
        child.must(&[
            "open s inet dgram",
            &format!("connect s 10.0.1.1:{port}"),
            "write s x",
        ]);
        assert_eq!(server.next().1.to_string(), "10.0.1.2");
        assert_eq!(child.mark("s"), 0);
        child.must(&[
            "open s inet dgram",
            &format!("connect s 10.0.2.1:{port}"),
            "write s x",
        ]);
        assert_eq!(server.next().1.to_string(), "10.0.2.2");
        assert_eq!(child.mark("s"), mark(TWO));
        // One unconnected socket, alternating.
        child.must(&["open s inet dgram"]);
        for _ in 0..3 {
            child.must(&[&format!("send s 10.0.1.1:{port} x")]);
            assert_eq!(server.next().1.to_string(), "10.0.1.2");
            child.must(&[&format!("send s {SERVER4}:{port} x")]);
            assert_eq!(server.next().1.to_string(), "10.0.2.2");
        }
    });
}

#[test]
fn an_address_that_the_application_bound_is_respected() {
    steered(|lab, child| {
        let server = Udp::new(lab);
        let port = server.port;
        for (family, address, target) in [
            ("inet", "10.0.1.2:0", format!("{SERVER4}:{port}")),
            ("inet6", "[fd00:1::2]:0", format!("[{SERVER6}]:{port}")),
        ] {
            let source = address.trim_end_matches(":0").trim_matches(['[', ']']);
            // Option 24: IP_BIND_ADDRESS_NO_PORT, after which the kernel calls no `post_bind`.
            for option in ["set s 0 24 0", "set s 0 24 1"] {
                child.must(&[&format!("open s {family} dgram"), option]);
                child.must(&[&format!("bind s {address}"), &format!("connect s {target}")]);
                child.must(&["write s x"]);
                assert_eq!(server.next().1.to_string(), source);
                assert_eq!(child.mark("s"), 0);
                // Again, to show that it is not taken for the kernel's choice.
                child.must(&[&format!("connect s {target}"), "write s x"]);
                assert_eq!(server.next().1.to_string(), source);
                assert_eq!(child.mark("s"), 0);
            }
            child.must(&[
                &format!("open s {family} dgram"),
                &format!("bind s {address}"),
            ]);
            child.must(&[&format!("send s {target} x")]);
            assert_eq!(server.next().1.to_string(), source);
        }
    });
}

#[test]
fn an_interface_that_the_application_bound_is_respected() {
    steered(|lab, child| {
        let server = Udp::new(lab);
        let target = format!("{SERVER4}:{}", server.port);
        child.must(&[
            "open s inet dgram",
            "set s 1 25 h1",
            &format!("connect s {target}"),
        ]);
        assert_eq!(child.mark("s"), 0);
        child.must(&["write s x"]);
        assert_eq!(server.next().1.to_string(), "10.0.1.2");
    });
}

#[test]
fn a_second_connect_follows_its_source_until_it_is_disconnected() {
    steered(|lab, child| {
        let server = Udp::new(lab);
        let port = server.port;
        for (family, target, sources) in [
            (
                "inet",
                format!("{SERVER4}:{port}"),
                ["10.0.1.2", "10.0.2.2"],
            ),
            (
                "inet6",
                format!("[{SERVER6}]:{port}"),
                ["fd00:1::2", "fd00:2::2"],
            ),
        ] {
            lab.policy(1, TWO, 0);
            child.must(&[
                &format!("open s {family} dgram"),
                &format!("connect s {target}"),
            ]);
            assert_eq!(child.ask("source s"), format!("ok {}", sources[1]));
            lab.policy(1, ONE, 0);
            child.must(&[&format!("connect s {target}"), "write s x"]);
            assert_eq!(server.next().1.to_string(), sources[1]);
            assert_eq!(child.mark("s"), mark(TWO));
            child.must(&["disconnect s", &format!("connect s {target}"), "write s x"]);
            assert_eq!(server.next().1.to_string(), sources[0]);
            assert_eq!(child.mark("s"), mark(ONE));
        }
    });
}

#[test]
fn one_socket_can_be_connected_to_many_destinations_in_turn() {
    steered(|_, child| {
        child.must(&["open s inet6 dgram"]);
        for (target, source) in [
            (format!("{SERVER4}:9"), "::ffff:10.0.2.2"),
            ("127.0.0.1:9".to_owned(), "::ffff:127.0.0.1"),
            (format!("[::ffff:{SERVER4}]:9"), "::ffff:10.0.2.2"),
            (format!("[{SERVER6}]:9"), "fd00:2::2"),
            ("[::1]:9".to_owned(), "::1"),
            (format!("[{SERVER6}]:9"), "fd00:2::2"),
        ] {
            child.must(&[&format!("connect s {target}")]);
            assert_eq!(child.ask("source s"), format!("ok {source}"), "{target}");
            child.must(&["disconnect s"]);
        }
        // The kernel makes a socket that is bound to an IPv6 address IPv6-only for good
        // (`__inet6_bind`), and so does our binding. The C library, which sorts addresses with one
        // socket, takes this answer as a reason to open another.
        assert_eq!(child.ask(&format!("connect s {SERVER4}:9")), "errno 97");
    });
}

#[test]
fn sockets_of_other_network_namespaces_are_passed() {
    steered(|lab, child| {
        lab.policy(1, BLOCKED, policy_flags::STRICT);
        child.must(&["unshare", "open s inet dgram", "open t inet6 stream"]);
        assert_eq!(child.mark("s"), 0);
        child.must(&["set s 1 36 7"]);
        // There is no route in a new namespace, but there is no refusal of ours either.
        assert_eq!(child.ask(&format!("connect s {SERVER4}:9")), "errno 101");
        assert_eq!(child.mark("s"), 7);
        let counters = lab.datapath().counters().unwrap();
        assert_eq!((counters.refused, counters.not_allowed), (0, 0));
    });
}

/// What the kernel tells of this host's flows.
fn live(lab: &Lab) -> Vec<LiveFlow> {
    let wanted = Wanted {
        storage: Some(lab.maps().flows()),
        ..Wanted::default()
    };
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap()
        .block_on(live_flows(wanted))
        .unwrap()
}

#[test]
fn live_flows_tell_what_their_sockets_remember() {
    steered(|lab, child| {
        let server = Tcp::new(lab);
        let target = format!("{SERVER4}:{}", server.port);
        child.must(&["open weak inet stream", &format!("connect weak {target}")]);
        lab.policy(1, TWO, policy_flags::STRICT);
        child.must(&["open s inet stream", &format!("connect s {target}")]);
        child.must(&["open l inet6 stream", "bind l [::]:7003", "listen l"]);
        let asks = lab.in_peer(|| std::net::TcpStream::connect("10.0.2.2:7003").unwrap());

        let flows = live(lab);
        assert_eq!(flows.len(), 3, "{flows:?}");
        let asked = |remembers: bool| {
            let mut asked = flows.iter().filter(|flow| !flow.accepted);
            asked
                .find(|flow| flow.state.is_some() == remembers)
                .unwrap()
        };
        let weak = asked(false);
        assert_eq!(
            (weak.local.ip().to_string().as_str(), weak.mark),
            ("10.0.2.2", mark(TWO))
        );
        assert_eq!(weak.cgroup, crate::lab::id(&lab.cgroup.join("app")));
        let state = asked(true).state.unwrap();
        assert_eq!((state.creator, state.policy, state.domain), (1, 1, TWO));
        assert_ne!(state.flags & flow_flags::DECIDED, 0);
        let accepted = flows.iter().find(|flow| flow.accepted).unwrap();
        assert_eq!(accepted.peer, asks.local_addr().unwrap());
        let state = accepted.state.unwrap();
        assert_eq!((state.creator, state.policy, state.flags), (1, 0, 0));
    });
}
