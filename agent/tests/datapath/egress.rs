//! What strict policies' packets may do at an interface that has no guard.

use std::fs;

use steer::datapath::Hook;
use steer_common::policy_flags::STRICT;

use crate::{
    child::Child,
    flows::steered,
    frames::{Body, Frame},
    guard::honest_packet,
    lab::{Lab, SERVER4, SERVER6, TWO, ifindex, ip},
    peer::{Capture, Udp},
};

/// As [`steered`], with a guard on the domain's interface alone. A strict policy takes effect by
/// [`close`].
fn half_guarded(test: impl FnOnce(&mut Lab, &mut Child) + Send + 'static) {
    steered(|lab, child| {
        if !lab.datapath().supports(Hook::Egress) {
            let release = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap();
            let mut numbers = release.split('.').map(|n| n.parse::<u32>().unwrap_or(0));
            let version = (numbers.next(), numbers.next());
            assert!(version < (Some(6), Some(18)), "{release} can have it");
            // Asked for all the same, and no error.
            assert!(!lab.datapath().hooks().unwrap().contains(&Hook::Egress));
            return;
        }
        lab.datapath().set_guard(ifindex("h2"), true).unwrap();
        let none = lab.group("none", 0);
        child.must(&[&format!("move {}", none.display())]);
        test(lab, child);
    });
}

/// Gives the child's cgroup the strict policy, which its sockets are older than.
fn close(lab: &Lab) {
    lab.policy(1, TWO, STRICT);
    lab.give(&lab.cgroup.join("none"), 1, 0);
}

fn dropped(lab: &mut Lab) -> u64 {
    lab.datapath().counters().unwrap().guard_dropped
}

#[test]
fn an_interface_without_guard_sends_nothing() {
    half_guarded(|lab, child| {
        let arrivals = Capture::on(lab, "p1");
        let server = Udp::new(lab);
        let port = server.port;
        child.must(&[
            "open s inet dgram",
            "set s 1 25 h1",
            &format!("connect s {SERVER4}:{port}"),
            "open v inet6 dgram",
            "set v 1 25 h1",
            &format!("connect v [{SERVER6}]:{port}"),
            "open t inet dgram",
        ]);
        close(lab);
        let by_message = format!("send-by t h1 {SERVER4}:{port} sneaky");
        for send in ["write s sneaky", "write v sneaky", &by_message] {
            assert_eq!(child.ask(send), "errno 1", "{send}");
        }
        assert_eq!(dropped(lab), 3);
        child.must(&[&format!("send-by t h2 {SERVER4}:{port} right")]);
        assert_eq!(server.next().0, "right");
        honest_packet(lab, &server);
        assert_eq!(dropped(lab), 3);
        assert!(!arrivals.saw("sneaky"));
    });
}

#[test]
fn a_guarded_interface_is_left_to_its_guard() {
    half_guarded(|lab, child| {
        let arrivals = Capture::on(lab, "p1");
        let server = Udp::new(lab);
        child.must(&["open t inet dgram"]);
        close(lab);
        let send = format!("send-by t h1 {SERVER4}:{} sneaky", server.port);
        for (guarded, answer, drops) in [(true, "ok", 1), (false, "errno 1", 2), (true, "ok", 3)] {
            lab.datapath().set_guard(ifindex("h1"), guarded).unwrap();
            // The guard drops without a word to the sender.
            assert_eq!(child.ask(&send), answer);
            assert_eq!(dropped(lab), drops);
        }
        lab.kill_agent();
        lab.start_agent();
        child.must(&[&send]);
        assert_eq!(dropped(lab), 4);
        honest_packet(lab, &server);
        assert!(!arrivals.saw("sneaky"));
    });
}

#[test]
fn an_interface_that_appears_while_no_agent_runs_sends_nothing() {
    half_guarded(|lab, child| {
        child.must(&["open t inet dgram"]);
        close(lab);
        lab.kill_agent();
        lab.lay_cable(3);
        let arrivals = Capture::on(lab, "p3");
        let send = format!("send-by t h3 {SERVER4}:9 sneaky");
        assert_eq!(child.ask(&send), "errno 1");
        lab.start_agent();
        assert_eq!(child.ask(&send), "errno 1");
        lab.datapath().set_guard(ifindex("h3"), true).unwrap();
        child.must(&[&send]);
        assert_eq!(dropped(lab), 3);
        let mut other = Child::start(&lab.group("other", 0));
        let server = Udp::new(lab);
        other.must(&[
            "open s inet dgram",
            &format!("send-by s h3 10.0.3.1:{} honest", server.port),
        ]);
        assert_eq!(server.next().0, "honest");
        assert!(!arrivals.saw("sneaky"));
    });
}

#[test]
fn a_guards_number_is_forgotten_with_its_interface() {
    half_guarded(|lab, child| {
        child.must(&["open t inet dgram"]);
        close(lab);
        let index = ifindex("h1");
        lab.datapath().set_guard(index, true).unwrap();
        ip("link del h1");
        assert!(!lab.datapath().guards().unwrap().contains(&index));
        lab.datapath().sweep().unwrap();
        ip(&format!("link add h3 index {index} type veth peer name q3"));
        ip("addr add 10.0.3.2/24 dev h3");
        ip("link set h3 up");
        ip("link set q3 up");
        assert_eq!(child.ask("send-by t h3 10.0.3.1:9 sneaky"), "errno 1");
    });
}

#[test]
fn packets_of_other_network_namespaces_are_passed() {
    half_guarded(|lab, child| {
        child.must(&[
            "unshare",
            "ip link add d0 index 4000 type veth peer name d1",
            "ip addr add 10.0.9.2/24 dev d0",
            "ip link set d0 up",
            "ip link set d1 up",
            "open t inet dgram",
        ]);
        close(lab);
        child.must(&["send-by t d0 10.0.9.1:9 theirs"]);
        assert_eq!(dropped(lab), 0);
    });
}

#[test]
fn a_raw_packet_that_would_come_back_to_somebody_else_is_refused_at_a_guarded_interface_too() {
    half_guarded(|lab, child| {
        child.must(&["open r inet whole"]);
        close(lab);
        lab.datapath().set_guard(ifindex("h1"), true).unwrap();
        // Nobody is there, and no guard sees what finds no neighbour. An error about it has all of it.
        const NOBODY: &str = "10.0.2.99";
        let packet = |source: &str| {
            let body = Body::Udp(1, 9, b"secret".to_vec());
            let packet = Frame::new(source, NOBODY, body).packet();
            let hex: String = packet.iter().map(|byte| format!("{byte:02x}")).collect();
            format!("send-hex r {NOBODY}:0 {hex}")
        };
        assert_eq!(child.ask(&packet(SERVER4)), "errno 1");
        assert_eq!(dropped(lab), 1);
        // One that would come back here.
        assert_eq!(child.ask(&packet("10.0.2.2")), "ok");
        assert_eq!(dropped(lab), 1);
    });
}
