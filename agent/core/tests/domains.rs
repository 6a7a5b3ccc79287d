//! Which domains there are, and what they can do.

mod support;

use std::net::Ipv6Addr;

use steer_common::domain_flags;
use steer_core::domains::{DomainOrigin, DomainState, Domains};
use steer_core::ids::IfIndex;
use steer_core::network::{Address, Link, LinkKind, Network, NetworkChange};
use steer_core::state::Event;
use support::{
    add_uplink, address, apply, config, engine_with, ip, link, policy, route, two_uplinks,
};

fn names(text: &str, network: &Network) -> Vec<String> {
    let domains = Domains::new(&config(text), network);
    domains
        .iter()
        .map(|domain| domain.name.to_string())
        .collect()
}

#[test]
fn interfaces_with_a_default_route_or_a_global_address_are_domains() {
    let mut network = two_uplinks();
    let changes = [
        NetworkChange::Link(link(4, "bare0")),
        NetworkChange::Address(address(4, "fe80::4/64")),
        NetworkChange::Link(link(5, "ppp0")),
        NetworkChange::Route(route(5, "0.0.0.0/0", None, 0)),
        NetworkChange::Link(Link {
            bridge: true,
            ..link(6, "br0")
        }),
        NetworkChange::Address(address(6, "10.6.0.1/24")),
        NetworkChange::Link(Link {
            master: Some(IfIndex(6)),
            ..link(7, "port0")
        }),
        NetworkChange::Address(address(7, "10.7.0.1/24")),
        NetworkChange::Link(link(8, "odd,0")),
        NetworkChange::Address(address(8, "10.8.0.1/24")),
    ];
    changes.into_iter().for_each(|change| network.apply(change));
    assert_eq!(names("", &network), ["lte0", "ppp0", "wlan0"]);
    assert_eq!(names("agent.discover = false", &network), [""; 0]);
    assert_eq!(names("agent.discover = [\"w*\"]", &network), ["wlan0"]);
    // A bridge is a domain where a file says so.
    assert_eq!(
        names("[domain.br0]\n", &network),
        ["br0", "lte0", "ppp0", "wlan0"]
    );
}

#[test]
fn a_domain_of_the_files_replaces_the_one_that_was_found() {
    let text = "domain.mobile.match.kind = \"cellular\"\ndomain.gone.match.interface = \"eth9\"\n";
    let mut network = two_uplinks();
    network.apply(NetworkChange::Link(Link {
        kind: LinkKind::Cellular,
        ..link(3, "lte0")
    }));
    let domains = Domains::new(&config(text), &network);
    let mobile = domains.get("lte0").expect("the interface is an alias");
    assert_eq!(
        (mobile.name.as_str(), mobile.origin),
        ("mobile", DomainOrigin::File)
    );
    assert_eq!(
        (mobile.state, mobile.interface),
        (DomainState::Up, Some(IfIndex(3)))
    );
    let gone = domains
        .get("gone")
        .expect("a domain that is not there is one all the same");
    assert_eq!(gone.state, DomainState::Absent);
    assert_eq!(gone.reason, "there is no interface eth9");
    assert_eq!(domains.iter().count(), 3);
}

#[test]
fn what_a_domain_lacks_is_said() {
    let reason = |change: fn(&mut Network)| {
        let mut network = two_uplinks();
        change(&mut network);
        let domains = Domains::new(&config("[domain.wlan0]\n"), &network);
        let wlan = domains.get("wlan0").expect("a file names it");
        (wlan.state, wlan.reason.clone())
    };
    let lacks = |state, reason: &str| (state, reason.to_owned());
    assert_eq!(
        reason(|network| network.apply(NetworkChange::Link(Link {
            up: false,
            ..link(2, "wlan0")
        }))),
        lacks(DomainState::Down, "wlan0 is down")
    );
    assert_eq!(
        reason(|network| {
            network.apply(NetworkChange::Link(Link {
                carrier: false,
                ..link(2, "wlan0")
            }));
        }),
        lacks(DomainState::Down, "no carrier on wlan0")
    );
    assert_eq!(
        reason(|network| network.addresses.clear()),
        lacks(DomainState::Configuring, "no usable address on wlan0")
    );
    assert_eq!(
        reason(|network| network.routes.clear()),
        lacks(DomainState::Configuring, "no route by wlan0")
    );
}

#[test]
fn sources_are_ordered_by_what_is_best_to_leave_with() {
    let mut network = Network::default();
    add_uplink(&mut network, 2, "wlan0");
    let unusable = Address {
        usable: false,
        ..address(2, "2001:db8:2::1/64")
    };
    let old = Address {
        deprecated: true,
        ..address(2, "2001:db8:2::2/64")
    };
    let private = Address {
        temporary: true,
        ..address(2, "2001:db8:2::99/64")
    };
    let local = address(2, "fd00::1/64");
    let elsewhere = address(2, "10.0.0.1/8");
    for address in [unusable, old, private, local, elsewhere] {
        network.apply(NetworkChange::Address(address));
    }
    let domains = Domains::new(&config(""), &network);
    let wlan = domains.get("wlan0").expect("it has a default route");
    let v6: Vec<String> = wlan.sources6.iter().map(Ipv6Addr::to_string).collect();
    assert_eq!(v6, ["2001:db8:2::99", "2001:db8:2::10", "fd00::1"]);
    assert_eq!(
        wlan.public6,
        Some("2001:db8:2::10".parse().unwrap()),
        "the first that is not temporary"
    );
    assert_eq!(
        wlan.sources4[0],
        ip("192.0.2.10"),
        "the gateway's neighbour, not the lowest"
    );
    assert!(wlan.addresses.contains(&old), "flows that have it keep it");

    let text = "[domain.wlan0]\nsources = [\"10.0.0.0/8\", \"192.0.2.10\"]\n";
    let domains = Domains::new(&config(text), &network);
    let wlan = domains.get("wlan0").expect("a file names it");
    assert_eq!(wlan.sources4[0], ip("10.0.0.1"), "the file's order");
    assert_eq!(wlan.sources6.len(), 3, "of IPv6 the file says nothing");

    let gone = NetworkChange::AddressGone(IfIndex(2), ip("2001:db8:2::10"));
    network.apply(gone);
    let domains = Domains::new(&config(""), &network);
    let wlan = domains.get("wlan0").expect("it has a default route");
    assert_eq!(
        wlan.public6,
        Some("2001:db8:2::99".parse().unwrap()),
        "a unique local one is no public one of global ones"
    );
}

#[test]
fn what_a_domain_costs_is_said_by_its_file_alone() {
    let engine =
        engine_with("[domain.wifi]\nmatch.interface = \"wlan0\"\ncost = 7\nmetered = true\n");
    let costs = |name: &str| {
        let domain = engine.domains().get(name).unwrap();
        (domain.cost, domain.metered)
    };
    assert_eq!(costs("wifi"), (7, true));
    assert_eq!(costs("lte0"), (0, false));
}

#[test]
fn the_kernel_is_told_which_domains_are_tunnels_whatever_the_file_calls_them() {
    let mut engine = engine_with("[domain.wifi]\nmatch.interface = \"wlan0\"\nkind = \"vpn\"\n");
    let tunnel = Link {
        kind: LinkKind::Vpn,
        ..link(3, "lte0")
    };
    apply(&mut engine, Event::Network(NetworkChange::Link(tunnel)));
    for domain in ["wifi", "lte0"] {
        apply(
            &mut engine,
            Event::SetPolicy(policy(domain, domain, &[domain])),
        );
    }
    let entries = engine.plan().domains.values();
    let tunnels: Vec<_> = entries
        .map(|entry| (entry.ifindex, entry.flags & domain_flags::TUNNEL != 0))
        .collect();
    assert_eq!(tunnels, [(2, false), (3, true)]);
}
