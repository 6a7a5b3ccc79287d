//! Whose flow is it, where creator and caller differ.

use steer_common::policy_flags::STRICT;

use crate::{
    flows::steered,
    lab::{ONE, SERVER4, TWO, mark},
    peer::Udp,
};

#[test]
fn the_callers_policy_decides() {
    steered(|lab, child| {
        lab.policy(2, ONE, 0);
        let [other, none] = [lab.group("other", 2), lab.group("none", 0)];
        child.must(&["open s inet dgram", "open t inet dgram"]);
        child.must(&[
            &format!("move {}", other.display()),
            &format!("connect s {SERVER4}:9"),
        ]);
        assert_eq!(child.mark("s"), mark(ONE));
        child.must(&[
            &format!("move {}", none.display()),
            &format!("connect t {SERVER4}:9"),
        ]);
        assert_eq!(child.mark("t"), 0);
        assert_eq!(child.ask("source t"), "ok 10.0.1.2");
    });
}

#[test]
fn a_strict_creator_wins_over_a_caller_that_is_not() {
    steered(|lab, child| {
        lab.policy(1, TWO, STRICT);
        lab.policy(2, ONE, 0);
        for group in [lab.group("other", 2), lab.group("none", 0)] {
            let home = lab.cgroup.join("app");
            child.must(&[&format!("move {}", home.display()), "open s inet dgram"]);
            child.must(&["open t inet dgram", &format!("move {}", group.display())]);
            assert_eq!(child.ask("set s 1 36 1"), "errno 1");
            assert_eq!(child.ask("bind s 10.0.1.2:0"), "errno 1");
            child.must(&[&format!("connect s {SERVER4}:9")]);
            assert_eq!(child.ask("source s"), "ok 10.0.2.2");
            let server = Udp::new(lab);
            child.must(&[&format!("send t {SERVER4}:{} x", server.port)]);
            assert_eq!(server.next().1.to_string(), "10.0.2.2");
        }
    });
}

#[test]
fn two_strict_policies_that_differ_are_refused() {
    steered(|lab, child| {
        lab.policy(1, TWO, STRICT);
        lab.policy(2, ONE, STRICT);
        let other = lab.group("other", 2);
        child.must(&["open s inet dgram", &format!("move {}", other.display())]);
        assert_eq!(child.ask(&format!("connect s {SERVER4}:9")), "errno 1");
        assert_eq!(child.ask(&format!("send s {SERVER4}:9 x")), "errno 1");
        child.must(&["open s inet dgram", &format!("connect s {SERVER4}:9")]);
        assert_eq!(child.ask("source s"), "ok 10.0.1.2");
    });
}

#[test]
fn the_first_datagram_fixes_the_policy() {
    steered(|lab, child| {
        lab.policy(2, ONE, 0);
        let other = lab.group("other", 2);
        let server = Udp::new(lab);
        let send = format!("send s {SERVER4}:{} x", server.port);
        child.must(&[
            "open s inet dgram",
            &send,
            &format!("move {}", other.display()),
            &send,
        ]);
        for _ in 0..2 {
            assert_eq!(server.next().1.to_string(), "10.0.2.2");
        }
        // But not the domain: a decision that changes moves the next datagram.
        lab.policy(1, ONE, 0);
        child.must(&[&send]);
        assert_eq!(server.next().1.to_string(), "10.0.1.2");
    });
}
