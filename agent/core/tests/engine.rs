//! Which policy holds where, what is chosen, and what a change touches.

mod support;

use std::collections::BTreeSet;

use steer_common::{CgroupEntry, cgroup_flags, policy_flags, verdict};
use steer_core::engine::{Engine, Rejected, Warning, plan};
use steer_core::ids::{CgroupId, DomainIndex, IfIndex, PlaceId, PolicyId};
use steer_core::network::NetworkChange;
use steer_core::pattern::UnitName;
use steer_core::plan::Object;
use steer_core::plan::{Hook, Named, Plan};
use steer_core::policy::{LocalNetworks, Match, Origin, Otherwise, Policy};
use steer_core::select::Verdict;
use steer_core::state::Event;
use support::{
    add_uplink, apply, carrier, config, engine, engine_with, made, name, policy, removed, strict,
};

fn chain(engine: &Engine, cgroup: u64) -> Vec<String> {
    let effective = engine.effective(CgroupId(cgroup));
    let chain = effective
        .map(|effective| effective.chain)
        .unwrap_or_default();
    chain.iter().map(ToString::to_string).collect()
}

fn verdict_at(engine: &Engine, cgroup: u64) -> Option<Verdict> {
    Some(engine.effective(CgroupId(cgroup))?.decision.verdict)
}

fn flags(engine: &Engine, cgroup: u64) -> u32 {
    let entry = engine.plan().cgroups.get(&CgroupId(cgroup));
    entry.map_or(0, |entry| entry.flags)
}

/// What a cgroup that policies name gets when it is made below `parent`.
fn named(engine: &Engine, parent: &str, name: &str) -> Option<CgroupEntry> {
    let levels: Vec<String> = parent.split('/').map(str::to_owned).collect();
    let place = PlaceId(engine.state().memory.places.get(&levels)?);
    let name = name.into();
    engine.plan().names.get(&Named { place, name }).copied()
}

fn set(engine: &mut Engine, policy: Policy) {
    apply(engine, Event::SetPolicy(policy));
}

#[test]
fn without_a_policy_nothing_is_planned() {
    assert_eq!(*engine().plan(), Plan::default());
    let passing = engine_with("[policy.default]\notherwise = \"pass\"\n");
    assert_eq!(*passing.plan(), Plan::default());
    let mut gone = engine();
    set(&mut gone, policy("p", "a", &["wlan0"]));
    assert_ne!(*gone.plan(), Plan::default());
    apply(&mut gone, Event::UnsetPolicy(name("p")));
    // Flows that bear its mark go on by the domain; nothing else is left of it.
    let left = gone.plan();
    assert!(left.hooks.is_empty() && left.domains.is_empty() && left.cgroups.is_empty());
    assert!(!left.rules.is_empty() && !left.routes.is_empty());
    apply(&mut gone, Event::IndicesInUse(BTreeSet::new()));
    assert_eq!(*gone.plan(), Plan::default());
}

#[test]
fn a_policy_holds_for_its_cgroup_and_everything_below() {
    let mut engine = engine();
    set(&mut engine, policy("p", "a", &["wlan0"]));
    assert_eq!(chain(&engine, 10), ["p"]);
    assert_eq!(chain(&engine, 11), ["p"]);
    assert_eq!(chain(&engine, 20), [""; 0]);
    let changes = apply(&mut engine, made(12, 11, "x"));
    assert_eq!(chain(&engine, 12), ["p"]);
    assert_eq!(changes.cgroups, BTreeSet::from([CgroupId(12)]));
    assert!(!changes.network);
    apply(&mut engine, removed(10));
    assert_eq!(engine.plan().cgroups.len() + engine.plan().names.len(), 0);
    assert!(engine.plan().policies.is_empty());
}

#[test]
fn a_strict_policy_whose_cgroup_is_gone_is_known_until_it_is_unset() {
    let mut engine = engine();
    set(&mut engine, strict(policy("p", "a", &["wlan0"])));
    apply(&mut engine, removed(10));
    let ids: Vec<_> = engine.plan().cgroups.keys().collect();
    assert_eq!(ids, [&CgroupId(1)], "the way to it");
    let entry = named(&engine, "", "a").unwrap();
    let policies: Vec<_> = engine.plan().policies.keys().collect();
    assert_eq!(policies, [&PolicyId(0), &PolicyId(entry.policy)]);
    assert_eq!(engine.cgroup_count(&name("p")), 0);
    apply(&mut engine, Event::UnsetPolicy(name("p")));
    assert!(engine.plan().names.is_empty() && engine.plan().policies.is_empty());
    assert_eq!(engine.state().memory.places.iter().count(), 0);
}

#[test]
fn the_deepest_policy_wins() {
    let mut engine = engine();
    set(&mut engine, policy("outer", "a", &["wlan0"]));
    set(&mut engine, policy("inner", "a/b", &["lte0"]));
    assert_eq!(chain(&engine, 10), ["outer"]);
    assert_eq!(chain(&engine, 11), ["inner"]);
    assert_eq!(verdict_at(&engine, 11), Some(Verdict::Steer(name("lte0"))));
}

#[test]
fn at_one_cgroup_origin_then_priority_then_exactness_decide() {
    let mut engine = engine();
    let glob = policy("glob", "*", &["wlan0"]);
    set(&mut engine, glob.clone());
    set(&mut engine, policy("exact", "a", &["lte0"]));
    assert_eq!(chain(&engine, 10), ["exact"]);
    assert_eq!(chain(&engine, 20), ["glob"]);
    set(
        &mut engine,
        Policy {
            priority: 1,
            ..glob.clone()
        },
    );
    assert_eq!(chain(&engine, 10), ["glob"]);
    let app = Policy {
        origin: Origin::App,
        ..glob
    };
    set(&mut engine, Policy { priority: 9, ..app });
    assert_eq!(chain(&engine, 10), ["exact"]);
    assert!(engine.warnings().is_empty());
}

#[test]
fn the_administrators_come_before_a_plain_user() {
    let mut engine = engine();
    let of_user = |policy| Policy {
        owner: Some(1000),
        priority: 9,
        ..policy
    };
    // At one cgroup whatever the priorities say.
    set(&mut engine, of_user(policy("alices", "c", &["wlan0"])));
    set(&mut engine, policy("roots", "c", &["lte0"]));
    assert_eq!(chain(&engine, 20), ["roots"]);
    // Deeper wins all the same, but not against a strict one.
    let inner = of_user(policy("inner", "a/b", &["wlan0"]));
    set(&mut engine, policy("outer", "a", &["lte0"]));
    set(&mut engine, inner.clone());
    assert_eq!(chain(&engine, 11), ["inner"]);
    set(&mut engine, strict(policy("outer", "a", &["lte0"])));
    assert_eq!(chain(&engine, 11), ["outer"]);
    let again = Policy {
        name: name("again"),
        priority: 3,
        ..inner
    };
    let rejected = engine.apply(Event::SetPolicy(again));
    assert!(matches!(rejected, Err(Rejected::ShutOut { by, .. }) if by.as_str() == "outer"));
}

#[test]
fn a_strict_policy_of_the_admin_holds_against_a_users_below_it() {
    let text = "[policy.jail]\nmatch.cgroup = \"a\"\nuse = [\"wlan0\"]\nstrict = true\n";
    let mut engine = engine_with(text);
    let error = engine
        .apply(Event::SetPolicy(policy("direct", "a/b", &["lte0"])))
        .unwrap_err();
    assert_eq!(
        error.to_string(),
        "the strict policy `jail` holds for the cgroup a/b, and `direct` cannot override it"
    );
    set(&mut engine, policy("escape", "*/b", &["lte0"]));
    assert_eq!(chain(&engine, 11), ["jail"]);
    let relaxed = text.replace("strict = true\n", "");
    apply(&mut engine, Event::Config(Box::new(config(&relaxed))));
    assert_eq!(chain(&engine, 11), ["escape"]);
}

#[test]
fn two_equal_policies_on_one_cgroup_are_refused_at_acceptance() {
    let mut engine = engine();
    set(&mut engine, policy("first", "a", &["wlan0"]));
    let before = engine.plan().clone();
    let error = engine
        .apply(Event::SetPolicy(policy("second", "a", &["lte0"])))
        .unwrap_err();
    assert_eq!(
        error.to_string(),
        "policies `second` and `first` have the same origin and priority on the cgroup a; give one \
         of them another priority"
    );
    let by_id = Policy {
        matches: vec![Match::CgroupId(CgroupId(10))],
        ..policy("third", "c", &["lte0"])
    };
    assert!(matches!(
        engine.apply(Event::SetPolicy(by_id)),
        Err(Rejected::Conflict { .. })
    ));
    assert!(engine.settle().is_empty());
    assert_eq!(*engine.plan(), before);
}

#[test]
fn two_equal_patterns_on_one_cgroup_are_decided_by_name_and_reported() {
    for names in [["x", "y"], ["y", "x"]] {
        let mut engine = engine();
        for each in names {
            let pattern = if each == "x" { "a*" } else { "*a" };
            set(&mut engine, policy(each, pattern, &["wlan0"]));
        }
        assert_eq!(chain(&engine, 10), ["x"]);
        let warnings = engine.warnings();
        assert!(matches!(warnings.as_slice(), [Warning::Conflict { path, .. }] if path == "a"));
        assert!(
            warnings[0].to_string().contains("`y` does not apply"),
            "{}",
            warnings[0]
        );
    }
}

#[test]
fn next_asks_the_policy_that_would_hold_otherwise() {
    let mut engine = engine_with("[policy.default]\notherwise = \"block\"\n");
    let next = |policy| Policy {
        otherwise: Otherwise::Next,
        ..policy
    };
    set(&mut engine, next(policy("outer", "a", &["lte0"])));
    set(&mut engine, next(policy("inner", "a/b", &["wlan0"])));
    assert_eq!(chain(&engine, 11), ["inner", "outer", "default"]);
    assert_eq!(verdict_at(&engine, 11), Some(Verdict::Steer(name("wlan0"))));
    let network = engine.state().network.clone();
    apply(&mut engine, carrier(&network, 2, false));
    assert_eq!(verdict_at(&engine, 11), Some(Verdict::Steer(name("lte0"))));
    apply(&mut engine, carrier(&network, 3, false));
    assert_eq!(verdict_at(&engine, 11), Some(Verdict::Block));
    let reason = engine.effective(CgroupId(11)).unwrap().decision.reason;
    assert_eq!(
        reason,
        "blocked, because no domain fits (wlan0: no carrier on wlan0; lte0: no carrier on lte0)"
    );
    apply(&mut engine, Event::UnsetPolicy(name("outer")));
    assert_eq!(chain(&engine, 11), ["inner", "default"]);
}

#[test]
fn behind_the_last_next_is_the_hosts_routing() {
    let mut engine = engine();
    let lonely = policy("p", "a", &["wlan0"]);
    set(
        &mut engine,
        Policy {
            otherwise: Otherwise::Next,
            ..lonely
        },
    );
    let network = engine.state().network.clone();
    apply(&mut engine, carrier(&network, 2, false));
    assert_eq!(verdict_at(&engine, 10), Some(Verdict::Pass));
}

#[test]
fn policies_with_equal_inputs_share_a_choice_and_a_carrier_loss_touches_it_alone() {
    let mut engine = engine();
    set(&mut engine, policy("p", "a", &["wlan0", "lte0"]));
    set(&mut engine, strict(policy("q", "c", &["wlan0", "lte0"])));
    // And the number that says that one is strict.
    assert_eq!(engine.plan().policies.len(), 3);
    assert_eq!(engine.plan().choices.len(), 1);
    let network = engine.state().network.clone();
    let changes = apply(&mut engine, carrier(&network, 2, false));
    assert_eq!(changes.choices.len(), 1);
    assert!(changes.cgroups.is_empty() && changes.policies.is_empty() && changes.network);
    assert_eq!(verdict_at(&engine, 10), Some(Verdict::Steer(name("lte0"))));
}

#[test]
fn a_blocked_policy_keeps_the_mark_of_its_first_domain() {
    let mut engine = engine();
    set(&mut engine, policy("p", "a", &["wlan0"]));
    let index = engine.state().memory.indices[&name("wlan0")];
    let network = engine.state().network.clone();
    apply(&mut engine, carrier(&network, 2, false));
    let choice = engine.plan().choices.values().next().unwrap();
    assert_eq!(
        (choice.verdict, choice.domain),
        (verdict::BLOCK, u32::from(index.0))
    );
    apply(
        &mut engine,
        Event::Network(NetworkChange::LinkGone(IfIndex(2))),
    );
    let choice = engine.plan().choices.values().next().unwrap();
    assert_eq!(
        (choice.verdict, choice.domain),
        (verdict::BLOCK, u32::from(index.0))
    );
    assert_eq!(engine.plan().domains[&index].ifindex, 0);
    let gone = engine.decision("p").unwrap();
    assert_eq!(
        gone.candidates[0].reason,
        "there is no domain, group or interface of this name"
    );
}

#[test]
fn an_interface_that_comes_back_with_another_index_is_the_same_domain() {
    let mut engine = engine();
    set(&mut engine, policy("p", "a", &["wlan0"]));
    let index = engine.state().memory.indices[&name("wlan0")];
    apply(
        &mut engine,
        Event::Network(NetworkChange::LinkGone(IfIndex(2))),
    );
    let mut network = engine.state().network.clone();
    add_uplink(&mut network, 9, "wlan0");
    let changes = apply(&mut engine, Event::Network(NetworkChange::Dump(network)));
    assert_eq!(engine.state().memory.indices[&name("wlan0")], index);
    assert_eq!(engine.plan().domains[&index].ifindex, 9);
    assert_eq!(changes.choices.len(), 1);
}

#[test]
fn every_policy_brings_guards_and_a_strict_one_closes_what_it_awaits() {
    let mut engine = engine();
    assert!(engine.plan().guards.is_empty());
    set(&mut engine, policy("lax", "a/*.scope", &["wlan0"]));
    assert_eq!(flags(&engine, 10), 0);
    assert_eq!(
        engine.plan().guards,
        BTreeSet::from([IfIndex(2), IfIndex(3)])
    );
    assert!(!engine.plan().hooks.contains(&Hook::Setsockopt));
    assert!(!engine.plan().hooks.contains(&Hook::Egress));

    set(
        &mut engine,
        strict(policy("level", "a/*.scope", &["wlan0"])),
    );
    assert_eq!(flags(&engine, 10), cgroup_flags::CHILDREN_UNDECIDED);
    assert_eq!(flags(&engine, 11), 0);
    assert!(engine.plan().hooks.contains(&Hook::Setsockopt));
    assert!(engine.plan().hooks.contains(&Hook::Egress));
    apply(&mut engine, made(12, 10, "x.scope"));
    let entry = engine.plan().cgroups[&CgroupId(12)];
    assert_eq!(entry.flags, 0);
    let kernel = engine.plan().policies[&PolicyId(entry.policy)];
    assert_eq!(kernel.flags, policy_flags::STRICT);

    set(&mut engine, strict(policy("deep", "c/**/x", &["wlan0"])));
    assert_eq!(flags(&engine, 20), cgroup_flags::DESCENDANTS_UNDECIDED);
    assert_eq!(engine.plan().cgroups[&CgroupId(20)].policy, 0);
    let root = engine.plan().cgroups[&CgroupId(1)];
    assert_eq!(
        (root.policy, root.flags),
        (0, cgroup_flags::INHERIT_ONLY),
        "the real root itself is left alone"
    );
}

#[test]
fn a_cgroup_that_a_policy_names_is_known_before_it_is_made() {
    let mut engine = engine();
    set(&mut engine, policy("outer", "a", &["lte0"]));
    set(&mut engine, strict(policy("later", "a/x/y", &["wlan0"])));
    let outer = engine.plan().cgroups[&CgroupId(10)];
    assert_eq!(chain(&engine, 10), ["outer"]);
    let x = named(&engine, "a", "x").unwrap();
    assert_eq!(x.policy, outer.policy, "on the way it is as its parent");
    let y = named(&engine, "a/x", "y").unwrap();
    assert_eq!((y.flags, y.place), (0, 0));
    let kernel = engine.plan().policies[&PolicyId(y.policy)];
    assert_eq!(kernel.flags, policy_flags::STRICT);
    // Nothing beside it is closed.
    assert_eq!((flags(&engine, 10), x.flags), (0, 0));

    // It is what the agent decides when it is told, and stays when it goes.
    let names = engine.plan().names.clone();
    apply(&mut engine, made(12, 10, "x"));
    assert_eq!(engine.plan().cgroups[&CgroupId(12)], x);
    apply(&mut engine, made(13, 12, "y"));
    assert_eq!(engine.plan().cgroups[&CgroupId(13)], y);
    apply(&mut engine, removed(12));
    assert_eq!(engine.plan().names, names);
}

#[test]
fn a_strict_unit_is_known_at_its_usual_place_and_where_it_is_and_closed_elsewhere() {
    let mut engine = engine();
    let unit = UnitName::new("web.service").unwrap();
    let web = Policy {
        matches: vec![Match::Unit(unit)],
        ..policy("web", "a", &["wlan0"])
    };
    set(&mut engine, web.clone());
    assert!(engine.plan().names.is_empty());
    set(&mut engine, strict(web));
    let usual = named(&engine, "system.slice", "web.service").unwrap();
    assert_ne!(usual.policy, 0);
    assert_eq!(named(&engine, "a", "web.service"), None);
    apply(&mut engine, made(12, 10, "web.service"));
    assert_eq!(named(&engine, "a", "web.service"), Some(usual));
    for cgroup in [10, 20] {
        assert_eq!(flags(&engine, cgroup), cgroup_flags::UNITS_UNDECIDED);
    }
    let anywhere = Named {
        place: PlaceId(0),
        name: "web.service".into(),
    };
    assert_eq!(
        engine.plan().names[&anywhere].flags,
        cgroup_flags::UNDECIDED
    );
    assert_eq!(usual.flags & cgroup_flags::UNDECIDED, 0);
    apply(&mut engine, removed(12));
    assert_eq!(named(&engine, "a", "web.service"), None);
}

#[test]
fn the_way_to_a_strict_pattern_is_known_and_only_its_cgroups_start_closed() {
    let mut engine = engine();
    set(
        &mut engine,
        strict(policy("level", "a/x/*.scope", &["wlan0"])),
    );
    assert_eq!(
        (flags(&engine, 10), flags(&engine, 1)),
        (0, cgroup_flags::INHERIT_ONLY)
    );
    let x = named(&engine, "a", "x").unwrap();
    assert_eq!((x.policy, x.flags), (0, cgroup_flags::CHILDREN_UNDECIDED));
}

#[test]
fn a_new_cgroup_below_a_strict_policy_need_not_be_awaited_for_that_policy() {
    let mut engine = engine();
    set(&mut engine, strict(policy("all", "a/**", &["wlan0"])));
    assert_eq!(flags(&engine, 10), cgroup_flags::DESCENDANTS_UNDECIDED);
    assert_eq!(flags(&engine, 11), 0);
}

#[test]
fn the_agents_own_cgroup_is_exempt_and_its_children_inherit_nothing() {
    let mut engine = engine_with("[policy.default]\nuse = [\"wlan0\"]\n");
    set(&mut engine, policy("p", "a", &["lte0"]));
    apply(&mut engine, made(12, 11, "x"));
    let exempt = BTreeSet::from([CgroupId(11)]);
    apply(
        &mut engine,
        Event::Managed {
            root: CgroupId(1),
            exempt,
        },
    );
    assert_eq!(chain(&engine, 10), ["p"]);
    assert_eq!(flags(&engine, 11), cgroup_flags::EXEMPT);
    assert_eq!(chain(&engine, 12), [""; 0]);
    assert_eq!(chain(&engine, 20), ["default"]);
    set(&mut engine, policy("own", "a/b/x", &["wlan0"]));
    assert_eq!(chain(&engine, 12), ["own"]);
}

#[test]
fn only_the_managed_part_of_the_tree_gets_entries() {
    let mut engine = engine_with("[policy.default]\nuse = [\"wlan0\"]\n");
    let exempt = BTreeSet::new();
    apply(
        &mut engine,
        Event::Managed {
            root: CgroupId(10),
            exempt,
        },
    );
    let entries: Vec<_> = engine.plan().cgroups.keys().collect();
    assert_eq!(entries, [&CgroupId(10), &CgroupId(11)]);
}

#[test]
fn a_file_replaces_a_policy_of_the_same_name_and_protects_it() {
    let mut engine = engine();
    set(&mut engine, policy("web", "a", &["wlan0"]));
    let text = "[policy.web]\nmatch.cgroup = \"a\"\nuse = [\"lte0\"]\n";
    apply(&mut engine, Event::Config(Box::new(config(text))));
    assert_eq!(verdict_at(&engine, 10), Some(Verdict::Steer(name("lte0"))));
    assert!(engine.state().api_policies.is_empty());
    let refused = engine.apply(Event::SetPolicy(policy("web", "a", &["wlan0"])));
    assert_eq!(refused, Err(Rejected::InFile(name("web"))));
    assert_eq!(
        engine.apply(Event::UnsetPolicy(name("web"))),
        Err(Rejected::InFile(name("web")))
    );
}

#[test]
fn unknown_names_are_refused_with_a_suggestion() {
    let mut engine = engine();
    let error = engine
        .apply(Event::SetPolicy(policy("p", "a", &["wlan1"])))
        .unwrap_err();
    assert_eq!(
        error.to_string(),
        "unknown domain `wlan1` in policy `p`; did you mean `wlan0`?"
    );
    set(&mut engine, policy("web", "a", &["wlan0"]));
    let error = engine.apply(Event::UnsetPolicy(name("wbe"))).unwrap_err();
    assert_eq!(
        error.to_string(),
        "there is no policy `wbe`; did you mean `web`?"
    );
}

#[test]
fn one_domain_too_many_is_refused_until_an_index_is_free() {
    let mut engine = engine_with("[agent]\nmark-mask = 0x1000\n");
    set(&mut engine, policy("p", "a", &["wlan0"]));
    set(&mut engine, policy("q", "c", &["lte0"]));
    assert_eq!(verdict_at(&engine, 20), Some(Verdict::Block));
    let reason = engine.decision("q").unwrap().candidates[0].reason.clone();
    assert_eq!(
        reason,
        "no mark is left for it: widen `mark-mask` in [agent]"
    );
    assert!(!engine.needs_indices(), "no index is retired");

    apply(&mut engine, Event::UnsetPolicy(name("p")));
    assert!(engine.needs_indices());
    apply(
        &mut engine,
        Event::IndicesInUse(BTreeSet::from([DomainIndex(1)])),
    );
    assert_eq!(
        verdict_at(&engine, 20),
        Some(Verdict::Block),
        "a socket still bears the mark"
    );
    apply(&mut engine, Event::IndicesInUse(BTreeSet::new()));
    assert_eq!(verdict_at(&engine, 20), Some(Verdict::Steer(name("lte0"))));
}

#[test]
fn what_the_kernel_refuses_is_not_chosen() {
    let mut engine = engine();
    set(&mut engine, policy("p", "a", &["wlan0", "lte0"]));
    let object = Object::Domain(name("wlan0"));
    let refused = Err("Operation not supported".to_owned());
    apply(&mut engine, Event::Outcome(object.clone(), refused));
    assert_eq!(verdict_at(&engine, 10), Some(Verdict::Steer(name("lte0"))));
    let reason = &engine.decision("p").unwrap().candidates[0].reason;
    assert_eq!(reason, "the kernel refused it: Operation not supported");
    apply(&mut engine, Event::Outcome(object, Ok(())));
    assert_eq!(verdict_at(&engine, 10), Some(Verdict::Steer(name("wlan0"))));
}

#[test]
fn the_next_agent_goes_on_with_the_same_numbers() {
    let mut first = engine();
    set(&mut first, policy("gone", "a/b", &["lte0"]));
    set(&mut first, policy("p", "a", &["wlan0"]));
    set(&mut first, policy("q", "c", &["lte0", "wlan0"]));
    apply(&mut first, Event::UnsetPolicy(name("gone")));
    let memory = serde_json::to_string(&first.state().memory).unwrap();
    let mut state = first.state().clone();
    state.memory = serde_json::from_str(&memory).unwrap();
    assert_eq!(state, *first.state());
    assert_eq!(plan(&state), *first.plan());
}

#[test]
fn local_networks_are_passed_unless_a_policy_of_the_chain_steers_them() {
    let mut engine = engine();
    let next = Policy {
        otherwise: Otherwise::Next,
        ..policy("p", "a/b", &["wlan0"])
    };
    set(&mut engine, next);
    let flags = |engine: &Engine| {
        let id = engine.effective(CgroupId(11)).unwrap().policy.unwrap();
        engine.plan().policies[&id].flags
    };
    assert_eq!(flags(&engine), policy_flags::LOCAL_PASS);
    let outer = policy("outer", "a", &["lte0"]);
    set(
        &mut engine,
        Policy {
            local_networks: LocalNetworks::Steer,
            ..outer
        },
    );
    assert_eq!(flags(&engine), 0);
}

#[test]
fn strict_policies_are_closed_when_the_kernel_refuses_what_they_rest_on() {
    let mut engine = engine();
    set(&mut engine, policy("lax", "c", &["wlan0"]));
    set(&mut engine, strict(policy("tight", "a", &["wlan0"])));
    let guard = |outcome| Event::Outcome(Object::Guard, outcome);
    apply(&mut engine, guard(Err("Invalid argument".to_owned())));
    let decision = engine.decision("tight").unwrap();
    assert_eq!(decision.verdict, Verdict::Block);
    assert_eq!(
        decision.reason,
        "blocked, because a strict policy cannot be enforced: the kernel refused the guard: Invalid \
         argument"
    );
    let choices: Vec<u32> = engine
        .plan()
        .choices
        .values()
        .map(|choice| choice.verdict)
        .collect();
    assert_eq!(choices, [verdict::STEER, verdict::BLOCK]);
    assert_eq!(verdict_at(&engine, 20), Some(Verdict::Steer(name("wlan0"))));
    apply(&mut engine, guard(Ok(())));
    assert_eq!(verdict_at(&engine, 10), Some(Verdict::Steer(name("wlan0"))));
    assert_eq!(engine.plan().choices.len(), 1);
    assert_eq!(engine.cgroup_count(&name("tight")), 2);
}

#[test]
fn a_name_below_a_cgroup_with_a_policy_by_its_id_is_closed_when_that_matters() {
    let mut engine = engine();
    set(&mut engine, strict(policy("outer", "a", &["wlan0"])));
    set(&mut engine, strict(policy("inner", "a/b/c/d", &["wlan0"])));
    let before = named(&engine, "a/b", "c").unwrap();
    assert_eq!(before.flags & cgroup_flags::UNDECIDED, 0);
    // Cgroup 11 is a/b. Made again it would have another id, and its children another policy.
    let lax = Policy {
        matches: vec![Match::CgroupId(CgroupId(11))],
        ..policy("lax", "a", &["lte0"])
    };
    set(&mut engine, lax);
    let c = named(&engine, "a/b", "c").unwrap();
    assert_ne!(c.flags & cgroup_flags::UNDECIDED, 0);
    let b = named(&engine, "a", "b").unwrap();
    assert_eq!(b.flags & cgroup_flags::UNDECIDED, 0);
    apply(&mut engine, removed(11));
    assert_eq!(named(&engine, "a/b", "c"), Some(before));
}

#[test]
fn where_patterns_cannot_match_any_more_strict_ones_close() {
    let mut engine = engine();
    set(
        &mut engine,
        strict(policy("deep", "a/**/secret", &["wlan0"])),
    );
    let mut parent = 10;
    for depth in 0..70 {
        apply(&mut engine, made(100 + depth, parent, "secret"));
        parent = 100 + depth;
        // `a` is the first level.
        let entry = engine.plan().cgroups[&CgroupId(parent)];
        let closed = entry.flags & cgroup_flags::UNDECIDED != 0;
        assert_eq!(closed, depth + 2 > 64, "level {}", depth + 2);
        assert!(closed || entry.policy != 0);
    }
}

#[test]
fn only_administrators_replace_a_strict_default_policy() {
    let mut engine = engine_with("[policy.default]\nuse = [\"wlan0\"]\nstrict = true\n");
    let of = |owner, path: &str, name: &str| Policy {
        owner,
        ..policy(name, path, &["lte0"])
    };
    let refused = engine.apply(Event::SetPolicy(of(Some(1000), "a", "user")));
    assert!(
        matches!(&refused, Err(Rejected::ShutOut { by, .. }) if by.as_str() == "default"),
        "{refused:?}"
    );
    set(&mut engine, of(None, "c", "root"));
    assert_eq!(chain(&engine, 20), ["root"]);
    assert_eq!(chain(&engine, 10), ["default"]);

    // Nor does one that was there before the files said so.
    let mut engine = engine_with("[policy.default]\nuse = [\"wlan0\"]\n");
    set(&mut engine, of(Some(1000), "a", "user"));
    assert_eq!(chain(&engine, 11), ["user"]);
    let closed = config("[policy.default]\nuse = [\"wlan0\"]\nstrict = true\n");
    apply(&mut engine, Event::Config(Box::new(closed)));
    assert_eq!(chain(&engine, 11), ["default"]);
}
