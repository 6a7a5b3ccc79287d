//! Where a live flow is, by what its socket says.

mod support;

use steer_common::{FlowState, flow_flags};
use steer_core::engine::Engine;
use steer_core::flows::{At, Place, Seen, Wrong, place};
use steer_core::ids::{CgroupId, DomainIndex, IfIndex, PolicyId};
use steer_core::policy::{Otherwise, Policy};
use support::{engine_of, ip, policy, strict};

const WLAN0: DomainIndex = DomainIndex(1);
const LTE0: DomainIndex = DomainIndex(2);
const OUTSIDE: &str = "198.51.100.1";

/// A flow of the cgroup `a` from wlan0's address, as `connect` left it.
fn seen() -> Seen {
    Seen {
        state: None,
        cgroup: CgroupId(10),
        mark: 0x0100_0000,
        source: Some(ip("192.0.2.10")),
        sent_from: None,
        destination: Some(ip(OUTSIDE)),
        protocol: 6,
        source_port: 40_000,
        port: 443,
        accepted: false,
        datagrams: false,
        unconnected: false,
        left_by: None,
    }
}

fn at(engine: &Engine, seen: Seen) -> At {
    let Place { policy, at } = placed(engine, seen);
    assert_eq!(policy, Some(PolicyId(1)), "{seen:?}");
    at
}

fn placed(engine: &Engine, seen: Seen) -> Place {
    place(engine.plan(), engine.state().config.agent.mark_mask, &seen)
}

/// The policy of `a`, and another so that both domains are known.
fn with(own: Policy) -> Engine {
    engine_of(&[own, policy("q", "c", &["lte0"])])
}

#[test]
fn a_flow_is_where_its_mark_says_if_its_source_agrees() {
    let engine = with(policy("p", "a", &["wlan0"]));
    assert_eq!(at(&engine, seen()), At::Domain(WLAN0));
    let source = Some(ip("192.0.3.10"));
    let elsewhere = Seen { source, ..seen() };
    let wrong = Wrong::Source {
        domain: WLAN0,
        source: ip("192.0.3.10"),
    };
    assert_eq!(at(&engine, elsewhere), At::Wrong(wrong));
    let left_by = Some(IfIndex(3));
    let leaves = Seen { left_by, ..seen() };
    let wrong = Wrong::Interface {
        domain: WLAN0,
        leaves_by: IfIndex(3),
    };
    assert_eq!(at(&engine, leaves), At::Wrong(wrong));
    assert_eq!(wrong.domain(), Some(WLAN0));
}

#[test]
fn a_flow_older_than_its_policy_is_wrong() {
    let engine = with(policy("p", "a", &["wlan0"]));
    let old = Seen {
        mark: 0,
        source: Some(ip("192.0.3.10")),
        ..seen()
    };
    assert!(matches!(at(&engine, old), At::Wrong(Wrong::Source { .. })));
    // By chance it is where it should be.
    let right = Seen { mark: 0, ..seen() };
    assert_eq!(at(&engine, right), At::Domain(WLAN0));
}

#[test]
fn who_was_asked_or_bound_an_address_goes_by_its_source() {
    let engine = with(policy("p", "a", &["wlan0"]));
    let other = Seen {
        source: Some(ip("192.0.3.10")),
        left_by: Some(IfIndex(3)),
        ..seen()
    };
    let accepted = Seen {
        accepted: true,
        ..other
    };
    assert_eq!(at(&engine, accepted), At::Domain(LTE0));
    let bound = FlowState {
        flags: flow_flags::APP_BOUND,
        ..FlowState::default()
    };
    let bound = Seen {
        state: Some(bound),
        mark: 0,
        ..other
    };
    assert_eq!(at(&engine, bound), At::Domain(LTE0));
    // A strict policy has none of that.
    let engine = with(strict(policy("p", "a", &["wlan0"])));
    for seen in [accepted, bound] {
        assert!(matches!(at(&engine, seen), At::Wrong(_)), "{seen:?}");
    }
}

#[test]
fn what_the_socket_remembers_comes_before_its_cgroup_and_mark() {
    let engine = with(policy("p", "a", &["wlan0"]));
    let state = |domain: u32, flags: u32| FlowState {
        policy: 1,
        domain,
        flags,
        ..FlowState::default()
    };
    let decided = Seen {
        state: Some(state(2, flow_flags::DECIDED)),
        cgroup: CgroupId(20),
        source: Some(ip("192.0.3.10")),
        ..seen()
    };
    assert_eq!(at(&engine, decided), At::Domain(LTE0));
    let passed = Seen {
        state: Some(state(0, flow_flags::DECIDED)),
        mark: 0,
        source: None,
        ..seen()
    };
    assert_eq!(at(&engine, passed), At::Host);
    let foreign = Seen {
        state: Some(state(1, flow_flags::FOREIGN)),
        mark: 0,
        ..seen()
    };
    let nobodys = Place {
        policy: None,
        at: At::Host,
    };
    assert_eq!(placed(&engine, foreign), nobodys);
}

#[test]
fn what_is_left_to_the_host_is_said_so() {
    let pass = Policy {
        otherwise: Otherwise::Pass,
        ..policy("p", "a", &[])
    };
    let passing = with(pass);
    let unmarked = Seen { mark: 0, ..seen() };
    assert_eq!(at(&passing, unmarked), At::Host);
    let engine = with(policy("p", "a", &["wlan0"]));
    for to in ["127.0.0.1", "192.0.3.77", "224.0.0.1", "fe80::1"] {
        let destination = Some(ip(to));
        let source = Some(ip("192.0.3.10"));
        let local = Seen {
            destination,
            source,
            ..unmarked
        };
        assert_eq!(at(&engine, local), At::Host, "{to}");
    }
    let nowhere = Seen {
        destination: None,
        source: None,
        ..unmarked
    };
    assert_eq!(at(&engine, nowhere), At::Host);
    // A strict policy without a domain closes.
    let closed = with(strict(policy("p", "a", &[])));
    assert_eq!(at(&closed, unmarked), At::Wrong(Wrong::NoDomain));
}

#[test]
fn a_policy_that_is_gone_leaves_its_flows_where_they_are() {
    let engine = engine_of(&[policy("q", "c", &["wlan0", "lte0"])]);
    let left = Place {
        policy: None,
        at: At::Domain(WLAN0),
    };
    assert_eq!(placed(&engine, seen()), left);
}
