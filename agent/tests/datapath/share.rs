//! Flows that are spread over the members of a choice.

use std::{
    collections::BTreeMap,
    net::{IpAddr, Ipv4Addr},
};

use steer_common::{
    ChoiceEntry, DomainEntry, ShareEntry, SourceKey, domain_flags, policy_flags::STRICT, share,
    share_slot, verdict,
};
use steer_core::rules::Rule;

use crate::{
    child::Child,
    lab::{Lab, ONE, SERVER4, SERVER6, TWO, ifindex, ip, mark, on_a_new_host},
    peer::Udp,
};

/// A choice with members.
pub(crate) const SHARED: u32 = 5;
/// Index of the domain on `h3`, which is no member at first.
pub(crate) const THREE: u32 = 3;

/// Gives the domains so many slots each, the first slots to the first.
fn members(lab: &Lab, kind: u32, slots: &[(u32, usize)]) {
    let mut domains = [0; ShareEntry::SLOTS];
    let each = slots
        .iter()
        .flat_map(|(domain, slots)| std::iter::repeat_n(u8::try_from(*domain).unwrap(), *slots));
    let mut written = 0;
    for (slot, domain) in domains.iter_mut().zip(each) {
        *slot = domain;
        written += 1;
    }
    assert_eq!(written, ShareEntry::SLOTS);
    lab.maps()
        .shares
        .set(&SHARED, &ShareEntry::new(domains, domains))
        .unwrap();
    let choice = ChoiceEntry {
        verdict: verdict::STEER,
        domain: slots[0].0,
        share: kind,
    };
    lab.maps().choices.set(SHARED, &choice).unwrap();
}

/// A host with everything attached and three uplinks guarded, policy 1 with the choice [`SHARED`], and a
/// process that has it.
fn shared(flags: u32, test: impl Fn(&mut Lab, &mut Child) + Send + 'static) {
    with_a_share(flags, move |lab, child| {
        test(lab, child);
        let counters = lab.datapath().counters().unwrap();
        assert_eq!((counters.guard_dropped, counters.guard_wrong), (0, 0));
    });
}

/// The same, where packets may be wrong.
pub(crate) fn with_a_share(flags: u32, test: impl Fn(&mut Lab, &mut Child) + Send + 'static) {
    on_a_new_host(move |lab| {
        lab.attach_all();
        lab.write_domains();
        third_uplink(lab);
        for interface in ["h1", "h2", "h3"] {
            lab.datapath().set_guard(ifindex(interface), true).unwrap();
        }
        members(lab, share::FLOW, &[(ONE, 512), (TWO, 512)]);
        lab.policy(1, SHARED, flags);
        let mut child = Child::start(&lab.group("app", 1));
        test(lab, &mut child);
    });
}

fn third_uplink(lab: &Lab) {
    lab.lay_cable(THREE);
    for (family, source, gateway) in [
        ("-4", "10.0.3.2", "10.0.3.1"),
        ("-6", "fd00:3::2", "fd00:3::1"),
    ] {
        let fwmark = mark(THREE);
        let mask = steer_common::MarkMask::DEFAULT.bits();
        ip(&format!(
            "{family} route add default via {gateway} dev h3 src {source} table 103"
        ));
        ip(&format!(
            "{family} rule add from {source} lookup 103 pref 1000"
        ));
        ip(&format!(
            "{family} rule add fwmark {fwmark}/{mask} lookup 103 pref 2000"
        ));
    }
    let source6 = [0xfd, 0, 0, 3, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 2];
    let entry = DomainEntry {
        mark: mark(THREE),
        ifindex: ifindex("h3"),
        flags: domain_flags::IPV4 | domain_flags::IPV6,
        source4: [10, 0, 3, 2],
        source6,
        public6: source6,
        ..DomainEntry::default()
    };
    lab.maps().domains.set(THREE, &entry).unwrap();
    let mapped = Ipv4Addr::from(entry.source4).to_ipv6_mapped().octets();
    for address in [mapped, entry.source6] {
        let key = SourceKey {
            domain: THREE,
            address,
        };
        lab.maps().sources.set(&key, &1).unwrap();
    }
}

/// The domain that a source belongs to.
fn domain_of(source: IpAddr) -> u32 {
    match source {
        IpAddr::V4(ip) => ip.octets()[2].into(),
        IpAddr::V6(ip) => ip.segments()[1].into(),
    }
}

/// Sends by sockets `s0` and so on: the domain of each.
fn domains(
    child: &mut Child,
    server: &Udp,
    sockets: u32,
    command: impl Fn(u32) -> String,
) -> Vec<u32> {
    (0..sockets)
        .map(|socket| {
            child.must(&[&command(socket)]);
            domain_of(server.next().1)
        })
        .collect()
}

fn shares(domains: &[u32]) -> BTreeMap<u32, usize> {
    let mut shares = BTreeMap::new();
    for domain in domains {
        *shares.entry(*domain).or_default() += 1;
    }
    shares
}

/// Opens sockets `s0` and so on of a family, connected or not.
fn open(child: &mut Child, family: &str, sockets: u32, connect: Option<&str>) {
    for socket in 0..sockets {
        child.must(&[&format!("open s{socket} {family} dgram")]);
        if let Some(target) = connect {
            child.must(&[&format!("connect s{socket} {target}")]);
        }
    }
}

const SOCKETS: u32 = 240;

#[test]
fn flows_are_spread_by_weight_connected_or_not() {
    shared(0, spread);
    shared(STRICT, spread);
}

fn spread(lab: &mut Lab, child: &mut Child) {
    let server = Udp::new(lab);
    for (family, target) in [
        ("inet", format!("{SERVER4}:{}", server.port)),
        ("inet6", format!("[{SERVER6}]:{}", server.port)),
    ] {
        for slots in [
            vec![(ONE, 512), (TWO, 512)],
            vec![(ONE, 256), (TWO, 768)],
            vec![(ONE, 256), (TWO, 256), (THREE, 512)],
        ] {
            members(lab, share::FLOW, &slots);
            for connected in [true, false] {
                open(child, family, SOCKETS, connected.then_some(&target));
                let send = |socket: u32| match connected {
                    true => format!("write s{socket} x"),
                    false => format!("send s{socket} {target} x"),
                };
                let first = domains(child, &server, SOCKETS, send);
                let found = shares(&first);
                for (domain, slots) in &slots {
                    // Six standard deviations are a fifth of all.
                    let expected = SOCKETS as usize * slots / ShareEntry::SLOTS;
                    let count = found.get(domain).copied().unwrap_or_default();
                    let room = SOCKETS as usize / 5;
                    assert!(count.abs_diff(expected) < room, "{found:?} of {slots:?}");
                }
                assert_eq!(domains(child, &server, SOCKETS, send), first);
            }
        }
    }
}

#[test]
fn each_family_is_shared_by_those_that_have_its_flows() {
    shared(STRICT, |lab, child| {
        let slots = ShareEntry::new([2; ShareEntry::SLOTS], [1; ShareEntry::SLOTS]);
        lab.maps().shares.set(&SHARED, &slots).unwrap();
        let server = Udp::new(lab);
        for (family, target, domain) in [
            ("inet", format!("{SERVER4}:{}", server.port), TWO),
            ("inet6", format!("[{SERVER6}]:{}", server.port), ONE),
            ("inet6", format!("[::ffff:{SERVER4}]:{}", server.port), TWO),
        ] {
            for connect in [None, Some(target.as_str())] {
                open(child, family, 8, connect);
                let send = |socket| match connect {
                    Some(_) => format!("write s{socket} x"),
                    None => format!("send s{socket} {target} x"),
                };
                assert_eq!(domains(child, &server, 8, send), [domain; 8], "{target}");
            }
        }
    });
}

#[test]
fn all_flows_to_one_destination_are_on_one_member() {
    shared(STRICT, |lab, child| {
        members(lab, share::DESTINATION, &[(ONE, 512), (TWO, 512)]);
        lab.in_peer(|| {
            for host in 10..60 {
                ip(&format!("addr add 192.0.2.{host}/32 dev lo"));
            }
        });
        let servers = [Udp::new(lab), Udp::new(lab)];
        let mut of_each = Vec::new();
        for host in 10..60 {
            let mut seen = BTreeMap::new();
            for server in &servers {
                child.must(&["open s inet dgram", "open c inet dgram"]);
                let target = format!("192.0.2.{host}:{}", server.port);
                child.must(&[&format!("connect c {target}"), "write c x"]);
                *seen.entry(domain_of(server.next().1)).or_insert(0) += 1;
                child.must(&[&format!("send s {target} x")]);
                *seen.entry(domain_of(server.next().1)).or_insert(0) += 1;
            }
            assert_eq!(seen.len(), 1, "{seen:?}");
            of_each.extend(seen.into_keys());
        }
        let found = shares(&of_each);
        assert!(found[&ONE] > 10 && found[&TWO] > 10, "{found:?}");
        let said = (10..60).map(|host| {
            let address = Ipv4Addr::new(192, 0, 2, host).to_ipv6_mapped();
            let slot = share_slot(&bytemuck::cast(address.octets()), 0);
            if slot < 512 { ONE } else { TWO }
        });
        assert_eq!(of_each, said.collect::<Vec<_>>());
    });
}

#[test]
fn connected_flows_stay_when_a_member_leaves_and_only_its_others_move() {
    shared(0, leaves);
    shared(STRICT, leaves);
}

fn leaves(lab: &mut Lab, child: &mut Child) {
    const FEW: u32 = 60;
    let server = Udp::new(lab);
    for (family, target) in [
        ("inet", format!("{SERVER4}:{}", server.port)),
        ("inet6", format!("[{SERVER6}]:{}", server.port)),
    ] {
        for connected in [true, false] {
            members(lab, share::FLOW, &[(ONE, 256), (TWO, 256), (THREE, 512)]);
            open(child, family, FEW, connected.then_some(&target));
            let send = |socket: u32| match connected {
                true => format!("write s{socket} x"),
                false => format!("send s{socket} {target} x"),
            };
            let before = domains(child, &server, FEW, send);
            assert_eq!(shares(&before).len(), 3);
            // The slots of `TWO` go to the others.
            members(lab, share::FLOW, &[(ONE, 384), (THREE, 640)]);
            let after = domains(child, &server, FEW, send);
            for (before, after) in before.into_iter().zip(after) {
                if connected || before != TWO {
                    assert_eq!(after, before);
                } else {
                    assert_ne!(after, TWO);
                }
            }
        }
    }
}

#[test]
fn a_rules_choice_is_spread_too_and_without_members_it_is_its_domain() {
    shared(STRICT, |lab, child| {
        let server = Udp::new(lab);
        let target = format!("{SERVER4}:{}", server.port);
        let udp = Rule {
            protocol: vec!["udp".parse().unwrap()],
            ..Rule::default()
        };
        lab.rules(1, &[(udp, SHARED)], TWO);
        lab.policy_with_rules(1, TWO, STRICT, 1);
        let send = |socket: u32| format!("send s{socket} {target} x");
        open(child, "inet", 60, None);
        assert_eq!(shares(&domains(child, &server, 60, send)).len(), 2);
        lab.maps().shares.remove(&SHARED).unwrap();
        open(child, "inet", 60, None);
        let all = domains(child, &server, 60, send);
        assert_eq!(shares(&all), BTreeMap::from([(ONE, 60)]));
    });
}
