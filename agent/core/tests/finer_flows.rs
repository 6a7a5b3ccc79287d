//! Flows of policies with rules and shares: what becomes of new ones, where live ones are, and what becomes of
//! those.
#![expect(clippy::unwrap_used, reason = "a failure is a failed test")]

mod support;

use std::net::SocketAddr;
use std::time::Duration;

use steer_common::{FlowState, flow_flags};
use steer_core::config::Config;
use steer_core::engine::Engine;
use steer_core::explain::flow::{Fate, Pass, Refuse, guard_lets, members};
use steer_core::explain::held::Held;
use steer_core::explain::words;
use steer_core::flows::{At, Seen, Wrong, place};
use steer_core::ids::{CgroupId, DomainIndex, IfIndex};
use steer_core::rules::Flow;
use steer_core::sessions::{self, Losses, Verdict, Why};
use steer_core::state::Event;
use support::{
    add_uplink, apply, carrier, config, engine_with, ip, made, name, removed, two_uplinks,
};

const RULES: &str = "\
[policy.p]
match.cgroup = [\"a\", \"later\"]
use = \"wlan0\"
[[policy.p.rule]]
destination = [\"10.0.0.0/8\", \"192.0.3.0/24\"]
ports = 443
use = \"lte0\"
[[policy.p.rule]]
protocol = \"udp\"
ports = 53
otherwise = \"block\"
[[policy.p.rule]]
dscp = \"EF\"
use = \"lte0\"
[[policy.p.rule]]
source-ports = 5000
use = \"lte0\"
";

const SHARED: &str = "\
[group.both]
domains = [\"wlan0\", \"lte0\"]
[policy.p]
match.cgroup = [\"a\", \"later\"]
use = \"both\"
share = \"flow\"
";

fn index(engine: &Engine, domain: &str) -> DomainIndex {
    engine.state().memory.indices[&name(domain)]
}

fn to(destination: &str, protocol: u8, port: u16) -> Flow {
    Flow {
        protocol,
        port,
        ..Flow::to(ip(destination))
    }
}

fn fate(engine: &Engine, cgroup: &str, flow: &Flow) -> Fate {
    engine.explain(cgroup).fate(engine, flow)
}

fn says(engine: &Engine, flow: &Flow) -> String {
    let explanation = engine.explain("a");
    words::fate(engine, &explanation, flow, &explanation.fate(engine, flow))
}

#[test]
fn the_first_rule_that_fits_decides_and_is_told() {
    let engine = engine_with(RULES);
    let [wlan, lte] = ["wlan0", "lte0"].map(|domain| index(&engine, domain));
    for cgroup in ["a", "later"] {
        let fate = |flow: &Flow| fate(&engine, cgroup, flow);
        assert_eq!(fate(&to("10.1.1.1", 6, 443)), Fate::Steer(lte));
        assert_eq!(fate(&to("::ffff:10.1.1.1", 6, 443)), Fate::Steer(lte));
        assert_eq!(fate(&to("10.1.1.1", 6, 80)), Fate::Steer(wlan));
        assert_eq!(
            fate(&to("198.51.100.1", 17, 53)),
            Fate::Refuse(Refuse::Blocked)
        );
        assert_eq!(fate(&to("198.51.100.1", 6, 53)), Fate::Steer(wlan));
        let urgent = Flow {
            dscp: 46,
            ..to("198.51.100.1", 6, 80)
        };
        assert_eq!(fate(&urgent), Fate::Steer(lte));
        // A printer at the other interface, and who is named there.
        assert_eq!(
            fate(&to("192.0.3.7", 6, 80)),
            Fate::Local("192.0.3.0/24".parse().unwrap())
        );
        assert_eq!(fate(&to("192.0.3.7", 6, 443)), Fate::Steer(lte));
    }
    let words = says(&engine, &to("10.1.1.1", 6, 443));
    assert_eq!(
        words,
        "policy `p` holds (rule 1 of `p`: destination 10.0.0.0/8,192.0.3.0/24 ports 443 -> lte0): lte0 is the \
         first choice and fits"
    );
    assert!(!says(&engine, &to("10.1.1.1", 6, 80)).contains("rule"));
}

#[test]
fn a_rule_that_names_destinations_reaches_them_at_other_interfaces() {
    // The rule's domain is not where the destination is on-link.
    let engine = engine_with(
        "[policy.p]\nmatch.cgroup = \"a\"\nuse = \"wlan0\"\n[[policy.p.rule]]\ndestination = \
         \"192.0.3.7\"\nuse = \"wlan0\"\n[[policy.p.rule]]\nports = 631\nuse = \"wlan0\"\n",
    );
    let wlan = Fate::Steer(index(&engine, "wlan0"));
    let local = Fate::Local("192.0.3.0/24".parse().unwrap());
    assert_eq!(fate(&engine, "a", &to("192.0.3.7", 6, 80)), wlan);
    assert_eq!(fate(&engine, "a", &to("192.0.3.8", 6, 631)), local);
}

#[test]
fn flows_that_are_shared_one_by_one_may_have_any_member() {
    let engine = engine_with(SHARED);
    let mut both = [index(&engine, "wlan0"), index(&engine, "lte0")];
    both.sort();
    for cgroup in ["a", "later"] {
        let Fate::Shared(set) = fate(&engine, cgroup, &to("198.51.100.1", 6, 443)) else {
            panic!("not shared")
        };
        assert_eq!(members(set).collect::<Vec<_>>(), both);
        // Both are at home there.
        let local = fate(&engine, cgroup, &to("192.0.3.7", 6, 80));
        assert_eq!(local, Fate::Shared(set));
    }
    let words = says(&engine, &to("198.51.100.1", 6, 443));
    assert!(
        words.ends_with("flows are shared by wlan0 (weight 1) and lte0 (weight 1)"),
        "{words}"
    );
}

#[test]
fn each_destination_has_its_member_also_in_a_cgroup_to_come() {
    let engine = engine_with(&SHARED.replace("\"flow\"", "\"destination\""));
    let mut seen = std::collections::BTreeSet::new();
    for host in 1..40 {
        let flow = to(&format!("198.51.100.{host}"), 6, 443);
        let now = fate(&engine, "a", &flow);
        let Fate::Steer(index) = now else {
            panic!("{now:?}")
        };
        assert_eq!(fate(&engine, "later", &flow), now);
        assert_eq!(
            fate(&engine, "a", &to(&format!("198.51.100.{host}"), 17, 53)),
            now,
            "whatever port"
        );
        let memory = &engine.state().memory;
        let (domain, _) = memory
            .indices
            .iter()
            .find(|(_, own)| **own == index)
            .unwrap();
        let words = says(&engine, &flow);
        assert!(
            words.ends_with(&format!("and this one is {domain}'s")),
            "{words}"
        );
        seen.insert(index);
    }
    assert_eq!(seen.len(), 2);
}

#[test]
fn the_guard_of_a_strict_policy_goes_by_rules_and_members() {
    let strict = |file: &str| {
        engine_with(
            &file
                .replace("use = \"wlan0\"\n[", "use = \"wlan0\"\nstrict = true\n[")
                .replace("share", "strict = true\nshare"),
        )
    };
    let lets = |engine: &Engine, flow: &Flow, interface, source: &str| {
        let owner = engine.explain("a").owner(engine, flow).unwrap();
        assert!(owner.strict);
        let flow = Flow {
            source: Some(ip(source)),
            ..*flow
        };
        guard_lets(engine.plan(), &owner, &flow, IfIndex(interface))
    };
    let (wlan, lte) = ((2, "192.0.2.10"), (3, "192.0.3.10"));
    let engine = strict(RULES);
    let ruled = to("10.1.1.1", 6, 443);
    assert!(lets(&engine, &ruled, lte.0, lte.1) && !lets(&engine, &ruled, wlan.0, wlan.1));
    let other = to("10.1.1.1", 6, 80);
    assert!(!lets(&engine, &other, lte.0, lte.1) && lets(&engine, &other, wlan.0, wlan.1));
    assert!(!lets(&engine, &ruled, lte.0, wlan.1), "another's source");
    let engine = strict(SHARED);
    assert!(lets(&engine, &other, lte.0, lte.1) && lets(&engine, &other, wlan.0, wlan.1));
    assert!(!lets(&engine, &other, lte.0, wlan.1));
}

#[test]
fn what_a_cgroup_that_is_made_gets_is_what_was_said() {
    for file in [RULES, SHARED] {
        let mut engine = engine_with(file);
        let flow = to("10.1.1.1", 6, 443);
        let before = fate(&engine, "later", &flow);
        apply(&mut engine, made(30, 1, "later"));
        assert_eq!(fate(&engine, "later", &flow), before);
        apply(&mut engine, removed(30));
    }
}

#[test]
fn maps_of_rules_and_slots_that_hold_something_else_are_named() {
    let engine = engine_with(&format!(
        "{SHARED}[[policy.p.rule]]\nports = 1\nuse = \"lte0\"\n"
    ));
    let planned = Held::planned(engine.plan(), CgroupId(10));
    let map = |held: Held| planned.difference(&held).map(|differs| differs.map);
    assert_eq!(map(planned.clone()), None);
    let without = Held {
        rules: None,
        ..planned.clone()
    };
    assert_eq!(map(without), Some("RULESETS"));
    let without = Held {
        share: None,
        ..planned.clone()
    };
    let differs = planned.difference(&without).unwrap();
    assert_eq!(differs.map, "SHARES");
    assert!(differs.planned.contains("slots of domain 1, "), "{differs}");
}

// Live flows.

const NOW: Duration = Duration::from_secs(1000);

/// A flow of the cgroup `a` that a socket program put on a domain.
fn live(engine: &Engine, domain: &str, peer: &str, port: u16) -> sessions::Flow {
    let local = if domain == "wlan0" {
        "192.0.2.10"
    } else {
        "192.0.3.10"
    };
    let index = index(engine, domain);
    let policy = engine.plan().cgroups[&CgroupId(10)].policy;
    sessions::Flow {
        protocol: 6,
        local: SocketAddr::new(ip(local), 40_000),
        peer: SocketAddr::new(ip(peer), port),
        mark: engine
            .state()
            .config
            .agent
            .mark_mask
            .encode(index.0)
            .unwrap(),
        cgroup: CgroupId(10),
        bound: None,
        accepted: false,
        memory: Some(FlowState {
            policy,
            domain: index.0.into(),
            flags: flow_flags::DECIDED,
            ..FlowState::default()
        }),
    }
}

/// The same flow of datagrams: the kernel does not tell what the socket remembers.
fn datagrams(flow: sessions::Flow) -> sessions::Flow {
    sessions::Flow {
        protocol: 17,
        memory: None,
        ..flow
    }
}

fn judge(engine: &Engine, flow: &sessions::Flow) -> sessions::Judged {
    engine.judge(flow, &mut Losses::default(), NOW)
}

fn reread(engine: &mut Engine, file: &str) {
    let config: Config = config(file);
    apply(engine, Event::Config(Box::new(config)));
}

#[test]
fn a_new_rule_ends_the_flows_that_it_sends_elsewhere_and_no_others() {
    let plain =
        "[policy.p]\nmatch.cgroup = \"a\"\nuse = \"wlan0\"\nsessions.on-better = \"reset\"\n";
    let other = "[policy.q]\nmatch.cgroup = \"c\"\nuse = \"lte0\"\n";
    for (sessions, wanted) in [
        ("reset", Verdict::Reset),
        ("keep", Verdict::Keep),
        // Its address is wlan0's alone, and it is no datagram flow.
        ("move", Verdict::Reset),
    ] {
        let plain = plain.replace("reset", sessions);
        let mut engine = engine_with(&format!("{plain}{other}"));
        let [ruled, not_ruled] =
            ["10.1.1.1", "198.51.100.1"].map(|peer| live(&engine, "wlan0", peer, 443));
        assert_eq!(judge(&engine, &ruled).verdict, Verdict::Home);
        let rule = "[[policy.p.rule]]\ndestination = \"10.0.0.0/8\"\nuse = \"lte0\"\n";
        reread(&mut engine, &format!("{plain}{rule}{other}"));
        let judged = judge(&engine, &ruled);
        assert_eq!((judged.verdict, judged.why), (wanted, Some(Why::Better)));
        assert_eq!(judged.to, Some(name("lte0")));
        assert_eq!(judge(&engine, &not_ruled).verdict, Verdict::Home);
    }
}

#[test]
fn a_new_rule_of_a_strict_policy_ends_what_leaves_elsewhere() {
    let plain = "[policy.p]\nmatch.cgroup = \"a\"\nuse = \"wlan0\"\nstrict = true\n";
    let mut engine = engine_with(plain);
    let [ruled, not_ruled] =
        ["10.1.1.1", "198.51.100.1"].map(|peer| live(&engine, "wlan0", peer, 443));
    let rule = "[[policy.p.rule]]\ndestination = \"10.0.0.0/8\"\nuse = \"lte0\"\n";
    reread(&mut engine, &format!("{plain}{rule}"));
    let judged = judge(&engine, &ruled);
    assert_eq!(
        (judged.verdict, judged.why),
        (Verdict::Reset, Some(Why::NotAllowed))
    );
    assert_eq!(judge(&engine, &not_ruled).verdict, Verdict::Home);
}

#[test]
fn a_rule_that_blocks_is_a_loss_to_the_flows_that_it_fits() {
    let engine = engine_with(&format!(
        "{RULES}[[policy.p.rule]]\nports = 22\notherwise = \"block\"\n"
    ));
    let judged = judge(&engine, &live(&engine, "wlan0", "198.51.100.1", 22));
    assert_eq!(
        (judged.verdict, judged.why),
        (Verdict::Reset, Some(Why::NotAllowed))
    );
}

#[test]
fn a_flow_that_rules_may_have_put_where_it_is_stays() {
    // By its code point or its port, which a socket does not tell as they were.
    let file = RULES.replace(
        "use = \"wlan0\"\n",
        "use = \"wlan0\"\nsessions.on-better = \"reset\"\n",
    );
    let engine = engine_with(&file);
    let urgent = live(&engine, "lte0", "198.51.100.1", 80);
    assert_eq!(judge(&engine, &urgent).verdict, Verdict::Home);
    let only_ports = file.replace("dscp = \"EF\"", "destination = \"203.0.113.0/24\"");
    let engine = engine_with(&only_ports);
    let mut bound = live(&engine, "lte0", "198.51.100.1", 80);
    assert_eq!(judge(&engine, &bound).verdict, Verdict::Reset);
    bound.local.set_port(5000);
    assert_eq!(judge(&engine, &bound).verdict, Verdict::Home);
}

#[test]
fn a_shared_flow_stays_on_any_member_and_leaves_one_that_is_none_any_more() {
    for share in ["flow", "destination"] {
        for strict in ["", "strict = true\n"] {
            let says = format!("{strict}sessions.on-better = \"reset\"\nshare = \"{share}\"");
            let file = SHARED.replace("share = \"flow\"", &says);
            let mut engine = engine_with(&file);
            let flows = ["wlan0", "lte0"].map(|domain| live(&engine, domain, "198.51.100.1", 443));
            let sockets: Vec<_> = flows
                .iter()
                .flat_map(|flow| [*flow, datagrams(*flow)])
                .collect();
            for flow in &sockets {
                assert_eq!(judge(&engine, flow).verdict, Verdict::Home, "{says}");
            }
            // Another member comes: nothing changes for them.
            let mut network = two_uplinks();
            add_uplink(&mut network, 4, "eth0");
            let dump = steer_core::network::NetworkChange::Dump(network);
            apply(&mut engine, Event::Network(dump));
            let three = file.replace("\"lte0\"]", "\"lte0\", \"eth0\"]");
            reread(&mut engine, &three);
            for flow in &sockets {
                assert_eq!(judge(&engine, flow).verdict, Verdict::Home, "{says}");
            }
            reread(&mut engine, &file.replace(", \"lte0\"]", "]"));
            for of in [|flow| flow, datagrams] {
                let [wlan, lte] = flows.map(of);
                assert_eq!(judge(&engine, &wlan).verdict, Verdict::Home);
                assert_eq!(judge(&engine, &lte).verdict, Verdict::Reset);
            }
        }
    }
}

#[test]
fn a_lost_members_flows_alone_are_lost() {
    let mut engine = engine_with(SHARED);
    let flows = ["wlan0", "lte0"].map(|domain| live(&engine, domain, "198.51.100.1", 443));
    let lost = carrier(&engine.state().network, 3, false);
    apply(&mut engine, lost);
    assert_eq!(judge(&engine, &flows[0]).verdict, Verdict::Home);
    let judged = judge(&engine, &flows[1]);
    assert_eq!(
        (judged.verdict, judged.why),
        (Verdict::Reset, Some(Why::Carrier))
    );
}

#[test]
fn a_strict_shared_flow_whose_source_was_chosen_before_is_at_home_on_the_member_that_has_it() {
    for share in ["flow", "destination"] {
        let file = SHARED.replace(
            "share = \"flow\"",
            &format!("strict = true\nshare = \"{share}\""),
        );
        let mut engine = engine_with(&file);
        let known = ["wlan0", "lte0"].map(|domain| live(&engine, domain, "198.51.100.1", 443));
        let [wlan, lte] = known.map(|flow| sessions::Flow {
            memory: None,
            ..flow
        });
        // What the guard remembers of a listener's child: who made it, and no domain.
        let created = FlowState {
            creator: engine.plan().cgroups[&CgroupId(10)].policy,
            ..FlowState::default()
        };
        for (here, there, remembers) in [(wlan, lte, known[1]), (lte, wlan, known[0])] {
            let accepted = sessions::Flow {
                accepted: true,
                memory: Some(created),
                ..here
            };
            for home in [
                here,
                sessions::Flow { mark: 0, ..here },
                accepted,
                sessions::Flow {
                    mark: 0,
                    ..accepted
                },
                // The listener's.
                sessions::Flow {
                    mark: there.mark,
                    ..accepted
                },
            ] {
                assert_eq!(judge(&engine, &home).verdict, Verdict::Home, "{home:?}");
            }
            if share == "destination" {
                // One of both is where its destination has it, whatever else is said of it.
                continue;
            }
            for other in [
                sessions::Flow {
                    mark: there.mark,
                    ..here
                },
                sessions::Flow {
                    memory: remembers.memory,
                    ..here
                },
            ] {
                assert_eq!(judge(&engine, &other).verdict, Verdict::Reset, "{other:?}");
            }
        }
        reread(&mut engine, &file.replace(", \"lte0\"]", "]"));
        let accepted = sessions::Flow {
            accepted: true,
            ..lte
        };
        assert_eq!(judge(&engine, &accepted).verdict, Verdict::Reset);
    }
}

// Where flows are.

#[test]
fn a_flow_without_a_mark_is_where_its_rule_or_a_member_has_it() {
    let seen = Seen {
        state: None,
        cgroup: CgroupId(10),
        mark: 0,
        source: Some(ip("192.0.3.10")),
        sent_from: None,
        destination: Some(ip("10.1.1.1")),
        protocol: 6,
        source_port: 40_000,
        port: 443,
        accepted: false,
        datagrams: false,
        unconnected: false,
        left_by: Some(IfIndex(3)),
    };
    let at = |engine: &Engine, seen: &Seen| {
        place(engine.plan(), engine.state().config.agent.mark_mask, seen).at
    };
    let engine = engine_with(RULES);
    let [wlan, lte] = ["wlan0", "lte0"].map(|domain| index(&engine, domain));
    assert_eq!(at(&engine, &seen), At::Domain(lte));
    let wrong = Wrong::Interface {
        domain: wlan,
        leaves_by: IfIndex(3),
    };
    assert_eq!(at(&engine, &Seen { port: 80, ..seen }), At::Wrong(wrong));
    let engine = engine_with(SHARED);
    assert_eq!(at(&engine, &seen), At::Domain(lte));
    let passed = engine_with(&RULES.replace("use = \"lte0\"", "otherwise = \"pass\""));
    assert_eq!(at(&passed, &seen), At::Host);
    assert_eq!(
        fate(&passed, "a", &to("10.1.1.1", 6, 443)),
        Fate::Pass(Pass::Policy)
    );
}

/// An unconnected socket of the cgroup `a` with the mark that `sock_create` gave it.
fn unconnected(engine: &Engine, made_for: &str) -> Seen {
    Seen {
        state: None,
        cgroup: CgroupId(10),
        mark: engine.plan().domains[&index(engine, made_for)].mark,
        source: None,
        sent_from: Some(ip("192.0.3.10")),
        destination: Some(ip("10.1.1.1")),
        protocol: 17,
        source_port: 40_000,
        port: 443,
        accepted: false,
        datagrams: true,
        unconnected: true,
        left_by: Some(IfIndex(3)),
    }
}

fn whereabouts(engine: &Engine, seen: &Seen) -> At {
    place(engine.plan(), engine.state().config.agent.mark_mask, seen).at
}

#[test]
fn an_unconnected_socket_is_where_its_last_datagram_was_to_go_and_not_where_its_mark_says() {
    let engine = engine_with(RULES);
    let [wlan, lte] = ["wlan0", "lte0"].map(|domain| index(&engine, domain));
    let seen = unconnected(&engine, "wlan0");
    assert_eq!(whereabouts(&engine, &seen), At::Domain(lte));
    // No rule fits this one.
    let other = Seen { port: 80, ..seen };
    let wrong = Wrong::Interface {
        domain: wlan,
        leaves_by: IfIndex(3),
    };
    assert_eq!(whereabouts(&engine, &other), At::Wrong(wrong));
    // The kernel gives it a port before the programs are asked.
    let port = Seen {
        source_port: 5000,
        ..other
    };
    assert_eq!(whereabouts(&engine, &port), At::Domain(lte));
    // Its address was bound, and what it sends goes by that.
    let bound = Seen {
        source: Some(ip("192.0.3.10")),
        ..other
    };
    assert_eq!(whereabouts(&engine, &bound), At::Domain(lte));
    let engine = engine_with(SHARED);
    for made_for in ["wlan0", "lte0"] {
        let seen = unconnected(&engine, made_for);
        assert_eq!(whereabouts(&engine, &seen), At::Domain(lte));
    }
}

#[test]
fn rules_are_asked_for_what_they_saw_when_a_flow_began() {
    let file = RULES.replace("source-ports = 5000", "source = \"192.0.3.10\"");
    let engine = engine_with(&file);
    let lte = index(&engine, "lte0");
    let connected = Seen {
        mark: 0,
        source: Some(ip("192.0.3.10")),
        sent_from: None,
        port: 80,
        unconnected: false,
        ..unconnected(&engine, "wlan0")
    };
    // Its source was chosen after that.
    assert!(matches!(whereabouts(&engine, &connected), At::Wrong(_)));
    let bound = FlowState {
        flags: flow_flags::APP_BOUND,
        ..FlowState::default()
    };
    let bound = Seen {
        state: Some(bound),
        ..connected
    };
    assert_eq!(whereabouts(&engine, &bound), At::Domain(lte));
}
