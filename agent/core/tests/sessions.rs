//! What becomes of live flows: by example, and for whatever happened before.
#![expect(clippy::unwrap_used, reason = "a failure is a failed test")]

mod support;

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use proptest::prelude::*;
use steer_common::{FlowState, flow_flags};
use steer_core::engine::Engine;
use steer_core::explain::flow::{Fate, Owner, fate, members};
use steer_core::ids::{CgroupId, DomainIndex, IfIndex};
use steer_core::network::NetworkChange;
use steer_core::plan::Family;
use steer_core::policy::{LocalNetworks, Otherwise, Policy, Session, Sessions};
use steer_core::rules;
use steer_core::sessions::{Flow, Judged, Losses, Means, Verdict, Why};
use steer_core::state::Event;
use support::strategies::{events, start};
use support::{apply, carrier, engine, engine_with, ip, name, policy};

const NOW: Duration = Duration::from_secs(1000);
const WLAN: &str = "192.0.2.10";
const LTE: &str = "192.0.3.10";
const PEER: &str = "198.51.100.7";

/// A TCP flow of cgroup a, from this address to one that no domain is next to.
fn flow(local: &str) -> Flow {
    Flow {
        protocol: 6,
        local: SocketAddr::new(ip(local), 40_000),
        peer: SocketAddr::new(ip(PEER), 443),
        mark: 0,
        cgroup: CgroupId(10),
        bound: None,
        accepted: false,
        memory: None,
    }
}

fn index(engine: &Engine, domain: &str) -> DomainIndex {
    engine.state().memory.indices[&name(domain)]
}

/// The same flow of datagrams: the kernel does not tell what the socket remembers.
fn datagrams(flow: Flow) -> Flow {
    Flow {
        protocol: 17,
        memory: None,
        ..flow
    }
}

/// As a socket program puts it on a domain. `remembers`: for a strict policy.
fn steered(engine: &Engine, domain: &str, local: &str, remembers: bool) -> Flow {
    let index = index(engine, domain);
    let mask = engine.state().config.agent.mark_mask;
    let entry = &engine.plan().cgroups[&CgroupId(10)];
    Flow {
        mark: mask.encode(index.0).unwrap(),
        memory: remembers.then_some(FlowState {
            creator: entry.policy,
            policy: entry.policy,
            domain: index.0.into(),
            flags: flow_flags::DECIDED,
            ..FlowState::default()
        }),
        ..flow(local)
    }
}

fn judge(engine: &Engine, flow: &Flow) -> Judged {
    engine.judge(flow, &mut Losses::default(), NOW)
}

fn verdict(engine: &Engine, flow: &Flow) -> Verdict {
    judge(engine, flow).verdict
}

fn wants(on_better: Session, on_loss: Session) -> Policy {
    Policy {
        sessions: Sessions { on_better, on_loss },
        ..policy("web", "a", &["wlan0", "lte0"])
    }
}

fn strict(policy: Policy) -> Policy {
    let Policy {
        sessions, repair, ..
    } = policy;
    Policy {
        sessions,
        repair,
        ..support::strict(policy)
    }
}

fn set(policy: Policy) -> Event {
    Event::SetPolicy(policy)
}

/// What happens, with wishes for live flows that differ from policy to policy.
fn wishing(event: Event) -> Event {
    const WISHES: [Session; 3] = [Session::Keep, Session::Move, Session::Reset];
    match event {
        Event::SetPolicy(mut policy) => {
            let number = usize::from(policy.name.as_str().as_bytes()[1] - b'0');
            policy.sessions.on_better = WISHES[number % 3];
            policy.sessions.on_loss = WISHES[(number + policy.use_.len()) % 3];
            policy.repair = number % 2 == 1;
            Event::SetPolicy(policy)
        }
        other => other,
    }
}

/// wlan0 has lost its carrier.
fn without_wlan(engine: &mut Engine) {
    let lost = carrier(&engine.state().network, 2, false);
    apply(engine, lost);
}

fn with_wlan(engine: &mut Engine) {
    let back = carrier(&engine.state().network, 2, true);
    apply(engine, back);
}

#[test]
fn a_flow_of_nobody_is_left_alone() {
    let mut engine = engine();
    apply(&mut engine, set(wants(Session::Reset, Session::Reset)));
    let other = Flow {
        cgroup: CgroupId(20),
        ..flow(LTE)
    };
    assert_eq!(verdict(&engine, &other), Verdict::Alone);
    // Also one that somebody else marked.
    let marked = Flow {
        mark: 0x7700_0001,
        ..other
    };
    assert_eq!(verdict(&engine, &marked), Verdict::Alone);
    without_wlan(&mut engine);
    let dead = Flow {
        cgroup: CgroupId(20),
        ..flow(WLAN)
    };
    assert_eq!(verdict(&engine, &dead), Verdict::Alone);
}

#[test]
fn a_flow_where_a_new_one_would_go_is_at_home() {
    let mut engine = engine();
    for policy in [
        wants(Session::Reset, Session::Reset),
        strict(wants(Session::Reset, Session::Reset)),
    ] {
        apply(&mut engine, set(policy));
        let new = steered(&engine, "wlan0", WLAN, true);
        assert_eq!(verdict(&engine, &new), Verdict::Home);
        // Older than the policy, but it leaves as it should.
        assert_eq!(verdict(&engine, &flow(WLAN)), Verdict::Home);
    }
}

#[test]
fn flows_older_than_their_policy_fare_as_it_says() {
    let mut engine = engine();
    for (wish, expected) in [
        (Session::Keep, Verdict::Keep),
        (Session::Reset, Verdict::Reset),
        (Session::Move, Verdict::Reset),
    ] {
        apply(&mut engine, set(wants(wish, Session::Reset)));
        let judged = judge(&engine, &flow(LTE));
        assert_eq!((judged.verdict, judged.why), (expected, Some(Why::Better)));
        assert_eq!(
            (judged.from, judged.to),
            (Some(name("lte0")), Some(name("wlan0")))
        );
        assert_eq!(judged.policy, Some(name("web")));
    }
    // A strict one ends them whatever it says.
    apply(
        &mut engine,
        set(strict(wants(Session::Keep, Session::Keep))),
    );
    let judged = judge(&engine, &flow(LTE));
    assert_eq!(
        (judged.verdict, judged.why),
        (Verdict::Reset, Some(Why::NotAllowed))
    );
}

#[test]
fn flows_of_a_domain_that_is_worse_now_are_kept_or_ended() {
    let mut engine = engine();
    for (wish, expected) in [
        (Session::Keep, Verdict::Keep),
        (Session::Reset, Verdict::Reset),
    ] {
        apply(&mut engine, set(wants(wish, Session::Reset)));
        without_wlan(&mut engine);
        let flow = steered(&engine, "lte0", LTE, false);
        assert_eq!(verdict(&engine, &flow), Verdict::Home);
        with_wlan(&mut engine);
        assert_eq!(verdict(&engine, &flow), expected);
        // The peer chose the way of this one.
        let accepted = Flow {
            accepted: true,
            ..flow
        };
        assert_eq!(verdict(&engine, &accepted), Verdict::Alone);
    }
}

#[test]
fn a_strict_policy_keeps_only_what_its_guard_knows_to_be_on_a_domain_of_its_own() {
    let mut engine = engine();
    apply(
        &mut engine,
        set(strict(wants(Session::Keep, Session::Reset))),
    );
    let known = steered(&engine, "lte0", LTE, true);
    assert_eq!(verdict(&engine, &known), Verdict::Keep);
    let unknown = steered(&engine, "lte0", LTE, false);
    assert_eq!(verdict(&engine, &unknown), Verdict::Reset);
    let foreign = steered(&engine, "lte0", WLAN, true);
    assert_eq!(
        judge(&engine, &foreign).verdict,
        Verdict::Home,
        "the guard sees its source"
    );
    let mut only = strict(wants(Session::Keep, Session::Keep));
    only.use_ = vec![name("wlan0")];
    apply(&mut engine, set(only));
    assert_eq!(verdict(&engine, &known), Verdict::Reset);
    let accepted = Flow {
        accepted: true,
        ..flow(LTE)
    };
    assert_eq!(verdict(&engine, &accepted), Verdict::Reset);
}

#[test]
fn a_strict_policy_knows_connected_datagrams_by_their_mark_and_source() {
    let mut engine = engine();
    apply(
        &mut engine,
        set(strict(wants(Session::Keep, Session::Keep))),
    );
    let home = datagrams(steered(&engine, "wlan0", WLAN, true));
    assert_eq!(verdict(&engine, &home), Verdict::Home);
    // A better domain came.
    let worse = datagrams(steered(&engine, "lte0", LTE, true));
    assert_eq!(verdict(&engine, &worse), Verdict::Keep);
    for unknown in [
        Flow { mark: 0, ..worse },
        Flow {
            mark: home.mark,
            ..worse
        },
    ] {
        assert_eq!(verdict(&engine, &unknown), Verdict::Reset, "{unknown:?}");
    }
    without_wlan(&mut engine);
    assert!(matches!(verdict(&engine, &home), Verdict::Linger { .. }));
    with_wlan(&mut engine);
    let mut only = strict(wants(Session::Keep, Session::Keep));
    only.use_ = vec![name("wlan0")];
    apply(&mut engine, set(only));
    assert_eq!(verdict(&engine, &worse), Verdict::Reset);
}

#[test]
fn flows_of_a_lost_domain_end_or_linger() {
    let mut engine = engine();
    for policy in [
        wants(Session::Keep, Session::Reset),
        strict(wants(Session::Keep, Session::Reset)),
    ] {
        apply(&mut engine, set(policy));
        let flow = steered(&engine, "wlan0", WLAN, true);
        without_wlan(&mut engine);
        let judged = judge(&engine, &flow);
        assert_eq!(
            (judged.verdict, judged.why),
            (Verdict::Reset, Some(Why::Carrier))
        );
        let accepted = Flow {
            accepted: true,
            ..flow
        };
        assert_eq!(
            verdict(&engine, &accepted),
            Verdict::Reset,
            "nobody hears its answers"
        );
        with_wlan(&mut engine);
    }
    for policy in [
        wants(Session::Keep, Session::Keep),
        strict(wants(Session::Keep, Session::Keep)),
    ] {
        apply(&mut engine, set(policy.clone()));
        let flow = steered(&engine, "wlan0", WLAN, true);
        without_wlan(&mut engine);
        let mut losses = Losses::default();
        let at = |losses: &mut Losses, seconds| {
            let now = NOW + Duration::from_secs(seconds);
            engine.judge(&flow, losses, now).verdict
        };
        let until = NOW + Duration::from_secs(30);
        assert_eq!(at(&mut losses, 0), Verdict::Linger { until });
        assert_eq!(at(&mut losses, 29), Verdict::Linger { until });
        // The next agent knows since when.
        let kept = serde_json::to_string(&losses).unwrap();
        let mut losses: Losses = serde_json::from_str(&kept).unwrap();
        assert_eq!(at(&mut losses, 30), Verdict::Reset);
        losses.forget_others();
        losses.forget_others();
        assert_eq!(
            at(&mut losses, 31),
            Verdict::Linger {
                until: until + Duration::from_secs(31)
            }
        );
        // Its own time goes before the agent's.
        let own = Policy {
            linger: Some(Duration::from_secs(5)),
            ..policy
        };
        apply(&mut engine, set(own));
        let until = NOW + Duration::from_secs(5);
        assert_eq!(verdict(&engine, &flow), Verdict::Linger { until });
        with_wlan(&mut engine);
    }
}

#[test]
fn an_address_or_route_that_goes_is_a_loss_too() {
    let mut engine = engine();
    apply(&mut engine, set(wants(Session::Keep, Session::Reset)));
    let flow = steered(&engine, "wlan0", WLAN, false);
    let gone = NetworkChange::AddressGone(IfIndex(2), ip(WLAN));
    apply(&mut engine, Event::Network(gone));
    let judged = judge(&engine, &flow);
    assert_eq!(
        (judged.verdict, judged.why),
        (Verdict::Reset, Some(Why::Address))
    );
    assert_eq!(judged.from, Some(name("wlan0")), "its mark tells");

    let mut engine = support::engine();
    apply(&mut engine, set(wants(Session::Keep, Session::Reset)));
    let default = support::route(2, "0.0.0.0/0", Some("192.0.2.1"), 102);
    apply(
        &mut engine,
        Event::Network(NetworkChange::RouteGone(default)),
    );
    let judged = judge(&engine, &flow);
    assert_eq!(
        (judged.verdict, judged.why),
        (Verdict::Reset, Some(Why::Route))
    );
}

#[test]
fn flows_outlive_their_policy_but_not_their_domain() {
    let mut engine = engine();
    apply(&mut engine, set(wants(Session::Reset, Session::Keep)));
    let flow = steered(&engine, "wlan0", WLAN, false);
    apply(&mut engine, Event::UnsetPolicy(name("web")));
    assert_eq!(verdict(&engine, &flow), Verdict::Alone);
    without_wlan(&mut engine);
    assert_eq!(
        verdict(&engine, &flow),
        Verdict::Reset,
        "nothing else would end it"
    );
}

#[test]
fn what_the_policy_passes_or_the_application_chose_is_left_alone() {
    let mut engine = engine();
    apply(&mut engine, set(wants(Session::Reset, Session::Reset)));
    for peer in ["127.0.0.1", "169.254.1.1", "224.0.0.5", LTE, "192.0.3.77"] {
        let local = Flow {
            peer: SocketAddr::new(ip(peer), 80),
            ..flow(LTE)
        };
        assert_eq!(verdict(&engine, &local), Verdict::Alone, "{peer}");
    }
    let bound = Flow {
        memory: Some(FlowState {
            flags: flow_flags::APP_BOUND,
            ..FlowState::default()
        }),
        ..flow(LTE)
    };
    assert_eq!(verdict(&engine, &bound), Verdict::Alone);
    let device = Flow {
        bound: Some(IfIndex(3)),
        ..flow(LTE)
    };
    assert_eq!(verdict(&engine, &device), Verdict::Alone);
    // A strict policy takes no such choice.
    apply(
        &mut engine,
        set(strict(wants(Session::Keep, Session::Keep))),
    );
    assert_eq!(verdict(&engine, &bound), Verdict::Reset);
    assert_eq!(verdict(&engine, &device), Verdict::Reset);
    let device = Flow {
        bound: Some(IfIndex(3)),
        ..flow(WLAN)
    };
    assert_eq!(verdict(&engine, &device), Verdict::Reset);
}

#[test]
fn a_policy_that_blocks_ends_what_it_would_refuse() {
    let mut engine = engine();
    let mut blocks = wants(Session::Keep, Session::Reset);
    blocks.use_ = Vec::new();
    blocks.otherwise = Otherwise::Block;
    apply(&mut engine, set(blocks));
    let judged = judge(&engine, &flow(LTE));
    assert_eq!(
        (judged.verdict, judged.why),
        (Verdict::Reset, Some(Why::NotAllowed))
    );
}

#[test]
fn a_flow_moves_where_its_source_is_valid_or_its_datagrams_are_repaired() {
    let mut engine = engine_with(
        "[domain.one]\nmatch.interface = \"wlan0\"\nsources = \"10.9.9.9\"\n[domain.two]\n\
         match.interface = \"lte0\"\nsources = \"10.9.9.9\"\n",
    );
    for interface in [2, 3] {
        let shared = support::address(interface, "10.9.9.9/24");
        apply(&mut engine, Event::Network(NetworkChange::Address(shared)));
    }
    let mut moves = wants(Session::Move, Session::Move);
    moves.use_ = vec![name("one"), name("two")];
    apply(&mut engine, set(moves.clone()));
    let two = steered(&engine, "two", "10.9.9.9", false);
    let to = engine.plan().domains[&index(&engine, "one")].mark;
    assert_eq!(verdict(&engine, &two), Verdict::Move(Means::Mark(to)));
    let one = steered(&engine, "one", "10.9.9.9", false);
    assert_eq!(verdict(&engine, &one), Verdict::Home);

    let mut engine = support::engine();
    moves.use_ = vec![name("wlan0"), name("lte0")];
    moves.repair = true;
    apply(&mut engine, set(moves.clone()));
    let tcp = steered(&engine, "lte0", LTE, false);
    assert_eq!(verdict(&engine, &tcp), Verdict::Reset);
    let udp = datagrams(tcp);
    assert_eq!(verdict(&engine, &udp), Verdict::Move(Means::Repair));
    apply(&mut engine, set(strict(moves)));
    assert_eq!(verdict(&engine, &udp), Verdict::Reset);
}

#[test]
fn a_strict_policy_set_later_holds_against_the_one_that_decided() {
    let mut engine = engine();
    apply(&mut engine, set(policy("old", "c", &["lte0"])));
    let mut old = policy("web", "a", &["lte0"]);
    old.sessions.on_better = Session::Keep;
    apply(&mut engine, set(old));
    let flow = steered(&engine, "lte0", LTE, true);
    assert_eq!(verdict(&engine, &flow), Verdict::Home);
    let mut new = strict(policy("web", "a", &["wlan0"]));
    new.local_networks = LocalNetworks::Steer;
    apply(&mut engine, set(new));
    assert_eq!(verdict(&engine, &flow), Verdict::Reset);
}

fn flows() -> impl Strategy<Value = Flow> {
    let ips = || {
        prop_oneof![
            Just(ip(WLAN)),
            Just(ip(LTE)),
            Just(ip("2001:db8:2::10")),
            (0u8..3, 1u8..4).prop_map(|(net, host)| IpAddr::from([10, 0, net, host])),
            Just(ip(PEER)),
            Just(ip("2001:db8:77::1")),
        ]
    };
    let memory =
        (0u32..6, 0u32..6, 0u32..4, 0u32..16).prop_map(|(creator, policy, domain, flags)| {
            FlowState {
                creator,
                policy,
                domain,
                flags,
                ..FlowState::default()
            }
        });
    (
        prop_oneof![Just(6u8), Just(17)],
        (ips(), ips()),
        prop_oneof![
            Just(0u32),
            (1u16..4).prop_map(|i| { steer_common::MarkMask::DEFAULT.encode(i).unwrap() }),
            any::<u32>()
        ],
        (1u64..9).prop_map(CgroupId),
        proptest::option::weighted(0.1, (1u32..6).prop_map(IfIndex)),
        prop::bool::weighted(0.2),
        proptest::option::of(memory),
    )
        .prop_filter_map(
            "one family",
            |(protocol, (local, peer), mark, cgroup, bound, accepted, memory)| {
                let memory = memory.filter(|_| protocol == 6);
                (Family::of(local) == Family::of(peer)).then_some(Flow {
                    protocol,
                    local: SocketAddr::new(local, 40_000),
                    peer: SocketAddr::new(peer, 443),
                    mark,
                    cgroup,
                    bound,
                    accepted,
                    memory,
                })
            },
        )
}

proptest! {
    #[test]
    fn verdicts_follow_from_the_state_alone(
        happened in proptest::collection::vec((events(), any::<bool>()), 0..24),
        flows in proptest::collection::vec(flows(), 1..12),
    ) {
        let mut engine = start();
        for (event, settle) in happened {
            // What is rejected changes nothing.
            let _rejected = engine.apply(wishing(event));
            if settle {
                engine.settle();
            }
        }
        engine.settle();
        let mut other = Engine::new(engine.state().clone());
        other.settle();
        let (mut losses, mut others) = (Losses::default(), Losses::default());
        for flow in &flows {
            prop_assert_eq!(
                engine.judge(flow, &mut losses, NOW),
                other.judge(flow, &mut others, NOW)
            );
        }
        // And whatever else was judged before.
        let mut reversed = Losses::default();
        for flow in flows.iter().rev() {
            prop_assert_eq!(
                engine.judge(flow, &mut reversed, NOW),
                engine.judge(flow, &mut Losses::default(), NOW)
            );
        }
        prop_assert_eq!(losses.known(), reversed.known());
    }

    #[test]
    fn a_new_flow_is_never_touched_and_a_strict_policy_keeps_nothing_foreign(
        happened in proptest::collection::vec(events(), 0..24),
        flows in proptest::collection::vec(flows(), 1..12),
    ) {
        let mut engine = start();
        for event in happened {
            let _rejected = engine.apply(wishing(event));
        }
        engine.settle();
        let plan = engine.plan();
        for flow in &flows {
            let owner = Owner::of(plan, plan.cgroups.get(&flow.cgroup));
            let Some(owner) = owner else { continue };
            // Also by a code point that a rule names, which the socket does not tell.
            let fates = [0, 46].map(|dscp| {
                let began = rules::Flow {
                    protocol: flow.protocol,
                    port: flow.peer.port(),
                    dscp,
                    ..rules::Flow::to(flow.peer.ip())
                };
                fate(plan, Some(&owner), &began)
            });
            let may = |what: fn(&Fate) -> bool| fates.iter().any(what);
            let judged = engine.judge(flow, &mut Losses::default(), NOW);
            if owner.strict && !may(|fate| matches!(fate, Fate::Never(_) | Fate::Local(_)))
                && flow.memory.is_none_or(|memory| memory.flags & flow_flags::FOREIGN == 0)
            {
                let stays = match judged.verdict {
                    Verdict::Alone => false,
                    Verdict::Home | Verdict::Keep => judged.from.as_ref().is_some_and(|domain| {
                        let index = engine.state().memory.indices.get(domain);
                        index.is_some_and(|index| plan.sources.contains(&(*index, flow.local.ip())))
                    }),
                    // By no interface: its domain has none that works, or no such address.
                    Verdict::Linger { .. } => judged.why != Some(Why::Better),
                    Verdict::Reset => true,
                    Verdict::Move(_) => false,
                };
                prop_assert!(stays, "{judged:?}");
            }
            // As a socket program would start it.
            let started = fates.into_iter().flat_map(|fate| match fate {
                Fate::Steer(index) => vec![index],
                Fate::Shared(set) => members(set).collect(),
                _ => Vec::new(),
            });
            for index in started {
            let domain = plan.domains[&index];
            let source = match flow.peer.ip() {
                IpAddr::V4(_) => IpAddr::from(domain.source4),
                IpAddr::V6(_) => IpAddr::from(domain.source6),
            };
            let entry = plan.cgroups[&flow.cgroup];
            let new = Flow {
                local: SocketAddr::new(source, 40_000),
                mark: domain.mark,
                bound: None,
                memory: (flow.protocol == 6).then_some(FlowState {
                    creator: if owner.strict { entry.policy } else { 0 },
                    policy: entry.policy,
                    domain: index.0.into(),
                    flags: flow_flags::DECIDED,
                    ..FlowState::default()
                }),
                ..*flow
            };
            let planned = steer_core::explain::path::planned(plan, index, flow.peer.ip(), 6);
            if !matches!(planned, steer_core::explain::path::Planned::Leaves(_)) {
                continue;
            }
            let holders = engine.domains().iter().filter(|domain| {
                domain.addresses.iter().any(|address| address.ip == source)
            });
            if holders.count() == 1 {
                let judged = engine.judge(&new, &mut Losses::default(), NOW);
                prop_assert_eq!(&judged.verdict, &Verdict::Home, "{:?}", &judged);
            }
            }
        }
    }
}
