//! What is counted for policies.

use steer_common::{Traffic, TrafficKey};

use crate::{
    child::Child,
    flows::steered,
    lab::{Lab, ONE, SERVER4, SERVER6, TWO, ifindex},
    peer::Udp,
};

/// Bytes of Ethernet, IPv4 and UDP headers.
const HEADERS4: u64 = 14 + 20 + 8;
/// The same with IPv6.
const HEADERS6: u64 = 14 + 40 + 8;

/// As [`steered`], with a guard on both uplinks.
fn counted(test: impl FnOnce(&mut Lab, &mut Child) + Send + 'static) {
    steered(|lab, child| {
        for interface in ["h1", "h2"] {
            lab.datapath().set_guard(ifindex(interface), true).unwrap();
        }
        test(lab, child);
    });
}

fn sent(lab: &mut Lab, policy: u32, domain: u32) -> Traffic {
    let traffic = lab.datapath().traffic().unwrap();
    let key = TrafficKey { policy, domain };
    traffic.get(&key).copied().unwrap_or_default()
}

#[test]
fn packets_and_bytes_are_those_on_the_wire() {
    counted(|lab, child| {
        let server = Udp::new(lab);
        let target4 = format!("{SERVER4}:{}", server.port);
        let target6 = format!("[{SERVER6}]:{}", server.port);
        child.must(&["open s inet dgram", &format!("connect s {target4}")]);
        for _ in 0..3 {
            child.must(&["write s eightchr"]);
            server.next();
        }
        child.must(&["open t inet6 dgram", &format!("send t {target6} eightchr")]);
        // It waits for its neighbour's address.
        server.next();
        let expected = Traffic {
            packets: 4,
            bytes: 3 * (HEADERS4 + 8) + HEADERS6 + 8,
            wrong: 0,
            dropped: 0,
        };
        assert_eq!(sent(lab, 1, TWO), expected);
        // UDP_SEGMENT: four datagrams that the kernel hands to the interface as one.
        child.must(&[
            "set s 17 103 500",
            &format!("write s {}", "x".repeat(2_000)),
        ]);
        let traffic = sent(lab, 1, TWO);
        assert_eq!(traffic.packets, 4 + 4);
        assert_eq!(traffic.bytes, expected.bytes + 2_000 + 4 * HEADERS4);
        assert_eq!(lab.datapath().traffic().unwrap().len(), 1);
    });
}

#[test]
fn what_was_sent_while_an_entry_went_is_counted_where_it_went() {
    counted(|lab, child| {
        let server = Udp::new(lab);
        let target = format!("{SERVER4}:{}", server.port);
        child.must(&["open s inet dgram", &format!("connect s {target}")]);
        child.must(&["write s before"]);
        let [from, to] = [1, TrafficKey::GONE].map(|policy| TrafficKey {
            policy,
            domain: TWO,
        });
        for packets in [1, 3] {
            let read = sent(lab, 1, TWO);
            child.must(&["write s meanwhile"]);
            lab.maps().move_traffic(&from, read, &to).unwrap();
            assert_eq!(sent(lab, 1, TWO), Traffic::default());
            assert_eq!(sent(lab, to.policy, TWO).packets, packets + 1);
            child.must(&["write s after"]);
        }
        // An entry that has gone meanwhile takes nothing along.
        let read = sent(lab, 1, TWO);
        lab.maps().move_traffic(&from, read, &to).unwrap();
        lab.maps()
            .move_traffic(&from, Traffic::default(), &to)
            .unwrap();
        assert_eq!(sent(lab, to.policy, TWO).packets, 5);
    });
}

#[test]
fn each_policy_has_its_own_counts_and_none_has_none() {
    counted(|lab, child| {
        let server = Udp::new(lab);
        let target = format!("{SERVER4}:{}", server.port);
        let other = lab.group("other", 0);
        child.must(&[&format!("move {}", other.display()), "open s inet dgram"]);
        child.must(&[&format!("send s {target} nobodys")]);
        assert!(lab.datapath().traffic().unwrap().is_empty());
        lab.policy(2, ONE, 0);
        lab.give(&other, 2, 0);
        child.must(&["open s inet dgram", &format!("send s {target} second")]);
        assert_eq!(sent(lab, 2, ONE).packets, 1);
        assert_eq!(sent(lab, 1, TWO).packets, 0);
    });
}

#[test]
fn what_is_older_than_its_policy_is_wrong_and_what_chose_for_itself_is_not() {
    counted(|lab, child| {
        let server = Udp::new(lab);
        let target = format!("{SERVER4}:{}", server.port);
        let none = lab.group("none", 0);
        child.must(&[&format!("move {}", none.display())]);
        for socket in ["old", "device", "bound"] {
            child.must(&[&format!("open {socket} inet dgram")]);
        }
        child.must(&["bind bound 10.0.1.2:0"]);
        // SO_BINDTOIFINDEX
        child.must(&[&format!("set device 1 62 {}", ifindex("h1"))]);
        for socket in ["old", "device", "bound"] {
            child.must(&[&format!("connect {socket} {target}")]);
        }
        lab.give(&none, 1, 0);
        child.must(&["write old wrong"]);
        let traffic = sent(lab, 1, TWO);
        assert_eq!((traffic.packets, traffic.wrong), (1, 1));
        assert_eq!(lab.datapath().counters().unwrap().guard_wrong, 1);
        child.must(&["write device chosen"]);
        assert_eq!(sent(lab, 1, TWO), traffic);
        assert_eq!(sent(lab, 1, 0).packets, 1);
        // New sockets that choose for themselves, before and after their choice is known to the programs.
        child.must(&["open new inet dgram", "bind new 10.0.1.2:0"]);
        child.must(&[&format!("connect new {target}"), "write new chosen"]);
        child.must(&["open free inet dgram", "set free 0 24 1"]);
        child.must(&["bind free 10.0.1.2:0", &format!("connect free {target}")]);
        child.must(&["write free chosen"]);
        child.must(&["open late inet dgram", "set late 0 24 1"]);
        child.must(&[
            "bind late 10.0.1.2:0",
            &format!("send late {target} chosen"),
        ]);
        assert_eq!(sent(lab, 1, TWO), traffic);
        assert_eq!(sent(lab, 1, 0).packets, 4);
    });
}
