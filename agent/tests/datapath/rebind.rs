//! What unconnected sockets do when another domain is chosen: stay, or go with each datagram.

use steer_common::{ChoiceEntry, policy_flags::REBIND_DATAGRAM, policy_flags::STRICT, verdict};

use crate::{
    child::Child,
    lab::{Lab, ONE, SERVER4, SERVER6, TWO, on_a_new_host},
    peer::Udp,
    rules::{OTHER4, ruled, to_other},
};

/// A choice whose domain the tests change.
const CHANGES: u32 = 4;

fn choose(lab: &Lab, domain: u32) {
    let choice = ChoiceEntry {
        verdict: verdict::STEER,
        domain,
        share: 0,
    };
    lab.maps().choices.set(CHANGES, &choice).unwrap();
}

/// A host with everything attached and both uplinks guarded, a policy of that choice, and a process that
/// has it.
fn rebinding(flags: u32, test: impl FnOnce(&mut Lab, &mut Child) + Send + 'static) {
    on_a_new_host(move |lab| {
        lab.attach_all();
        lab.write_domains();
        lab.guard_uplinks();
        choose(lab, TWO);
        lab.policy(1, CHANGES, flags);
        let mut child = Child::start(&lab.group("app", 1));
        test(lab, &mut child);
    });
}

/// A socket of each family, its target, and the sources by `ONE` and by `TWO`.
fn families(port: u16) -> [(&'static str, String, [&'static str; 2]); 2] {
    [
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
    ]
}

#[track_caller]
fn sends(child: &mut Child, server: &Udp, socket: &str, target: &str, source: &str) {
    child.must(&[&format!("send {socket} {target} x")]);
    assert_eq!(server.next().1.to_string(), source);
}

#[test]
fn datagrams_stay_where_the_first_one_went_while_that_domain_serves() {
    for flags in [0, STRICT] {
        rebinding(flags, |lab, child| {
            let server = Udp::new(lab);
            for (family, target, [one, two]) in families(server.port) {
                choose(lab, TWO);
                child.must(&[&format!("open s {family} dgram")]);
                sends(child, &server, "s", &target, two);
                choose(lab, ONE);
                sends(child, &server, "s", &target, two);
                child.must(&[&format!("open t {family} dgram")]);
                sends(child, &server, "t", &target, one);
                // It does not serve the family any more, and then it is no domain.
                let entry = lab.maps().domains.get(TWO).unwrap();
                for gone in ["family", "interface"] {
                    let mut without = entry;
                    match gone {
                        "family" => without.flags = 0,
                        _ => without.ifindex = 0,
                    }
                    lab.maps().domains.set(TWO, &without).unwrap();
                    sends(child, &server, "s", &target, one);
                    lab.maps().domains.set(TWO, &entry).unwrap();
                    child.must(&[&format!("open s {family} dgram")]);
                    choose(lab, TWO);
                    sends(child, &server, "s", &target, two);
                    choose(lab, ONE);
                }
            }
            let counters = lab.datapath().counters().unwrap();
            assert_eq!((counters.guard_dropped, counters.guard_wrong), (0, 0));
        });
    }
}

#[test]
fn each_datagram_goes_by_the_decision_of_the_moment_if_the_policy_says_so() {
    for flags in [0, STRICT] {
        rebinding(flags | REBIND_DATAGRAM, |lab, child| {
            let server = Udp::new(lab);
            for (family, target, [one, two]) in families(server.port) {
                child.must(&[&format!("open s {family} dgram")]);
                for (domain, source) in [(TWO, two), (ONE, one), (TWO, two)] {
                    choose(lab, domain);
                    sends(child, &server, "s", &target, source);
                }
            }
            assert_eq!(lab.datapath().counters().unwrap().guard_dropped, 0);
        });
    }
}

#[test]
fn datagrams_stay_with_a_rule_and_go_when_another_one_fits() {
    for flags in [0, STRICT] {
        ruled(flags, &[|| (to_other(), CHANGES)], |lab, child| {
            choose(lab, TWO);
            let server = Udp::new(lab);
            let target = format!("{OTHER4}:{}", server.port);
            child.must(&["open s inet dgram"]);
            sends(child, &server, "s", &target, "10.0.2.2");
            choose(lab, ONE);
            sends(child, &server, "s", &target, "10.0.2.2");
            lab.rules(1, &[(to_other(), ONE)], ONE);
            sends(child, &server, "s", &target, "10.0.1.2");
            lab.rules(1, &[(to_other(), TWO)], ONE);
            sends(child, &server, "s", &target, "10.0.2.2");
            // What it sends elsewhere in between takes the memory.
            sends(
                child,
                &server,
                "s",
                &format!("{SERVER4}:{}", server.port),
                "10.0.1.2",
            );
            sends(child, &server, "s", &target, "10.0.2.2");
            assert_eq!(lab.datapath().counters().unwrap().guard_dropped, 0);
        });
    }
}
