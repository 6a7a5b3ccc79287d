//! A small host to test with: interfaces, addresses, routes, cgroups, policies.
#![allow(
    dead_code,
    clippy::allow_attributes,
    clippy::unwrap_used,
    reason = "each test crate uses its own part of this, and a failure here is a failed test"
)]

pub(crate) mod host;
pub(crate) mod strategies;

use std::net::IpAddr;

use steer_core::cgroups::CgroupChange;
use steer_core::config::Config;
use steer_core::engine::Engine;
use steer_core::ids::{CgroupId, IfIndex, TableId};
use steer_core::name::Name;
use steer_core::network::{Address, Link, LinkKind, Network, NetworkChange, Route};
use steer_core::pattern::CgroupPattern;
use steer_core::policy::{Match, Origin, Policy};
use steer_core::state::{Event, State};

pub(crate) fn name(text: &str) -> Name {
    Name::new(text).unwrap()
}

pub(crate) fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

pub(crate) fn link(index: u32, name: &str) -> Link {
    Link {
        under: None,
        index: IfIndex(index),
        name: name.to_owned(),
        kind: LinkKind::Wired,
        up: true,
        carrier: true,
        loopback: name == "lo",
        master: None,
        bridge: false,
        mac: Some([2, 0, 0, 0, 0, u8::try_from(index & 0xff).unwrap()]),
        mtu: 1500,
    }
}

pub(crate) fn address(interface: u32, net: &str) -> Address {
    let (ip, len) = net.split_once('/').unwrap();
    let ip: IpAddr = ip.parse().unwrap();
    let global = match ip {
        IpAddr::V4(ip) => !ip.is_link_local() && !ip.is_loopback(),
        IpAddr::V6(ip) => !ip.is_unicast_link_local() && !ip.is_loopback(),
    };
    Address {
        interface: IfIndex(interface),
        ip,
        prefix_len: len.parse().unwrap(),
        peer: None,
        global,
        usable: true,
        deprecated: false,
        temporary: false,
    }
}

pub(crate) fn route(
    interface: u32,
    destination: &str,
    gateway: Option<&str>,
    metric: u32,
) -> Route {
    Route {
        table: TableId(254),
        destination: destination.parse().unwrap(),
        metric,
        interface: IfIndex(interface),
        gateway: gateway.map(ip),
        onlink: false,
        prefsrc: None,
        mtu: None,
        source: None,
    }
}

/// An uplink with 192.0.`index`.10/24 and 2001:db8:`index`::10/64, a gateway and a link-local
/// address.
pub(crate) fn add_uplink(network: &mut Network, index: u32, name: &str) {
    network.apply(NetworkChange::Link(link(index, name)));
    for net in [
        format!("192.0.{index}.10/24"),
        format!("2001:db8:{index}::10/64"),
        format!("fe80::{index}/64"),
    ] {
        network.apply(NetworkChange::Address(address(index, &net)));
    }
    for route in [
        route(index, &format!("192.0.{index}.0/24"), None, 0),
        route(
            index,
            "0.0.0.0/0",
            Some(&format!("192.0.{index}.1")),
            100 + index,
        ),
        route(index, &format!("2001:db8:{index}::/64"), None, 256),
        route(index, "fe80::/64", None, 256),
        route(index, "::/0", Some("fe80::1"), 100 + index),
    ] {
        network.apply(NetworkChange::Route(route));
    }
}

/// lo, wlan0 (2) and lte0 (3).
pub(crate) fn two_uplinks() -> Network {
    let mut network = Network::default();
    network.apply(NetworkChange::Link(link(1, "lo")));
    network.apply(NetworkChange::Address(address(1, "127.0.0.1/8")));
    add_uplink(&mut network, 2, "wlan0");
    add_uplink(&mut network, 3, "lte0");
    network
}

pub(crate) fn carrier(network: &Network, index: u32, carrier: bool) -> Event {
    let link = network.links[&IfIndex(index)].clone();
    Event::Network(NetworkChange::Link(Link { carrier, ..link }))
}

pub(crate) fn made(id: u64, parent: u64, name: &str) -> Event {
    Event::Cgroups(CgroupChange::Made {
        id: CgroupId(id),
        parent: CgroupId(parent),
        name: name.to_owned(),
    })
}

pub(crate) fn removed(id: u64) -> Event {
    Event::Cgroups(CgroupChange::Removed(CgroupId(id)))
}

pub(crate) fn policy(policy: &str, cgroup: &str, uses: &[&str]) -> Policy {
    let pattern = CgroupPattern::new(cgroup).unwrap();
    let uses = uses.iter().copied().map(name).collect();
    Policy::new(
        name(policy),
        Origin::User,
        vec![Match::Cgroup(pattern)],
        uses,
        false,
    )
}

pub(crate) fn strict(policy: Policy) -> Policy {
    Policy::new(
        policy.name,
        policy.origin,
        policy.matches,
        policy.use_,
        true,
    )
}

pub(crate) fn config(text: &str) -> Config {
    match steer_core::config::parse(&[("steer.toml", text)]) {
        Ok(config) => config,
        Err(errors) => panic!("{}", errors[0]),
    }
}

/// An engine on a host with two uplinks and the cgroups a (10), a/b (11), c (20).
pub(crate) fn engine() -> Engine {
    engine_with("")
}

pub(crate) fn engine_with(text: &str) -> Engine {
    let mut state = State::new(CgroupId(1));
    state.network = two_uplinks();
    state.config = config(text);
    let mut engine = Engine::new(state);
    for event in [made(10, 1, "a"), made(11, 10, "b"), made(20, 1, "c")] {
        engine.apply(event).unwrap();
    }
    engine.settle();
    engine
}

/// Applies an event that must be accepted, and settles.
pub(crate) fn apply(engine: &mut Engine, event: Event) -> steer_core::engine::Changes {
    engine.apply(event).unwrap();
    engine.settle()
}

/// [`engine`] with these policies, of the files where their origin is the administrator's.
pub(crate) fn engine_of(policies: &[Policy]) -> Engine {
    let mut engine = engine();
    for policy in policies {
        if policy.origin == Origin::Admin {
            let mut config = engine.state().config.clone();
            config.policies.insert(policy.name.clone(), policy.clone());
            apply(&mut engine, Event::Config(Box::new(config)));
        } else {
            apply(&mut engine, Event::SetPolicy(policy.clone()));
        }
    }
    engine
}
