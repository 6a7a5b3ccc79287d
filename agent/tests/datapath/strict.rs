//! What sockets of strict policies may not do.

use steer_common::policy_flags::STRICT;

use crate::{
    flows::steered,
    lab::{ONE, SERVER4, SERVER6, TWO, ifindex},
};

#[test]
fn options_that_choose_a_way_are_refused() {
    steered(|lab, child| {
        lab.policy(1, TWO, STRICT);
        let [one, two] = ["h1", "h2"].map(ifindex);
        child.must(&[
            "open s inet dgram",
            "open v inet6 dgram",
            "open p packet raw",
        ]);
        for refused in [
            "set s 1 36 1".to_owned(),
            "set s 1 25 h1".to_owned(),
            "set s 1 25 h22".to_owned(),
            format!("set s 1 62 {one}"),
            format!("set s 0 50 {}", two.to_be()),
            format!("set v 41 76 {}", two.to_be()),
            "set v 41 50 xxxxxxxxxxxxxxxxxxxx".to_owned(),
            "set p 263 20 1".to_owned(),
            "set-long s 1 25 1".to_owned(),
        ] {
            assert_eq!(child.ask(&refused), "errno 1", "{refused}");
        }
        assert_eq!(lab.datapath().counters().unwrap().not_allowed, 9);
        child.must(&["set s 1 25 h2", &format!("set v 1 62 {two}")]);
        child.must(&["set s 1 7 4096", "set-long s 1 7 8192", "set s 0 2 64"]);
    });
}

#[test]
fn other_policies_may_set_every_option() {
    steered(|_, child| {
        child.must(&[
            "open s inet dgram",
            "set s 1 36 1",
            "set s 1 25 h1",
            "set-long s 1 7 8192",
        ]);
        child.must(&["open p packet raw", "set p 263 20 1"]);
    });
}

#[test]
fn only_addresses_of_the_domain_can_be_bound() {
    steered(|lab, child| {
        lab.policy(1, TWO, STRICT);
        for (family, address, answer) in [
            ("inet", "10.0.1.2:0", "errno 1"),
            ("inet6", "[fd00:1::2]:0", "errno 1"),
            ("inet6", "[::ffff:10.0.1.2]:0", "errno 1"),
            ("inet", "10.0.2.2:0", "ok"),
            ("inet6", "[fd00:2::2]:0", "ok"),
            ("inet6", "[::ffff:10.0.2.2]:0", "ok"),
            ("inet", "0.0.0.0:0", "ok"),
            ("inet6", "[::]:0", "ok"),
            ("inet", "127.0.0.1:0", "ok"),
            ("inet6", "[::1]:0", "ok"),
        ] {
            child.must(&[&format!("open s {family} stream")]);
            assert_eq!(child.ask(&format!("bind s {address}")), answer, "{address}");
        }
    });
}

#[test]
fn an_address_bound_before_the_policy_was_strict_is_refused() {
    steered(|lab, child| {
        child.must(&["open s inet dgram", "bind s 10.0.1.2:0"]);
        child.must(&["open v inet6 dgram", "bind v [fd00:1::2]:0"]);
        lab.policy(1, TWO, STRICT);
        assert_eq!(child.ask(&format!("connect s {SERVER4}:9")), "errno 101");
        assert_eq!(child.ask(&format!("connect v [{SERVER6}]:9")), "errno 101");
        assert_eq!(child.ask(&format!("send s {SERVER4}:9 x")), "errno 1");
        assert_eq!(child.ask(&format!("send v [{SERVER6}]:9 x")), "errno 1");
    });
}

#[test]
fn an_interface_bound_before_the_policy_was_strict_is_refused() {
    steered(|lab, child| {
        child.must(&[
            "open s inet dgram",
            "set s 1 25 h1",
            "open t inet dgram",
            "set t 1 25 h2",
        ]);
        lab.policy(1, TWO, STRICT);
        assert_eq!(child.ask(&format!("connect s {SERVER4}:9")), "errno 1");
        assert_eq!(child.ask(&format!("send s {SERVER4}:9 x")), "errno 1");
        child.must(&[&format!("connect t {SERVER4}:9")]);
    });
}

#[test]
fn a_second_connect_with_the_old_domains_source_is_refused() {
    steered(|lab, child| {
        for (family, target) in [
            ("inet", format!("{SERVER4}:9")),
            ("inet6", format!("[{SERVER6}]:9")),
        ] {
            lab.policy(1, TWO, STRICT);
            child.must(&[
                &format!("open s {family} dgram"),
                &format!("connect s {target}"),
            ]);
            lab.policy(1, ONE, STRICT);
            assert_eq!(child.ask(&format!("connect s {target}")), "errno 101");
            child.must(&["disconnect s", &format!("connect s {target}")]);
        }
    });
}

#[test]
fn a_strict_policy_without_choice_is_closed() {
    steered(|lab, child| {
        lab.policy(1, 0, STRICT);
        child.must(&["open s inet dgram"]);
        assert_eq!(child.ask(&format!("connect s {SERVER4}:9")), "errno 101");
        child.must(&["connect s 127.0.0.1:9"]);
    });
}
