//! The way from one plan to another: complete, idempotent, and safe to be cut at any step.
#![expect(clippy::unwrap_used, reason = "a failure is a failed test")]

mod support;

use std::collections::{BTreeMap, BTreeSet};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::Arc;

use proptest::prelude::*;
use proptest::sample::subsequence;
use steer_common::{
    CgroupEntry, ChoiceEntry, DomainEntry, DomainSet, IngressEntry, PolicyEntry, ShareEntry,
    domain_flags, share, verdict,
};
use steer_core::config::Config;
use steer_core::engine::Engine;
use steer_core::ids::{
    CgroupId, ChoiceId, DomainIndex, IfIndex, PlaceId, PolicyId, RulesetId, TableId,
};
use steer_core::plan::{Family, Hook, Local, Named, Plan, Rule, RuleAction, TableRoute};
use steer_core::rules::Rule as FlowRule;
use steer_core::rules::compile::compile;
use steer_core::rules::image::Image;
use steer_core::state::Event;
use steer_core::steps::{Scope, Step, Steps, held, steps};
use support::strategies::{events, start};
use support::{apply, carrier, engine, ip, name, policy};

fn net(text: &str) -> ipnet::IpNet {
    text.parse().unwrap()
}

/// A map with a few of the keys.
fn few<K, V>(
    keys: std::ops::Range<u32>,
    key: fn(u32) -> K,
    values: impl Strategy<Value = V>,
) -> impl Strategy<Value = BTreeMap<K, V>>
where
    K: Ord + std::fmt::Debug,
    V: std::fmt::Debug,
{
    proptest::collection::btree_map(keys.prop_map(key), values, 0..4)
}

fn cgroups() -> impl Strategy<Value = BTreeMap<CgroupId, CgroupEntry>> {
    let entry = (0u32..4, 0u32..2).prop_map(|(policy, flags)| CgroupEntry {
        policy,
        flags,
        place: 0,
    });
    few(1..6, |id| CgroupId(id.into()), entry)
}

fn names() -> impl Strategy<Value = BTreeMap<Named, CgroupEntry>> {
    let entry = (0u32..4).prop_map(|policy| CgroupEntry {
        policy,
        ..CgroupEntry::default()
    });
    let named = |place| Named {
        place: PlaceId(place),
        name: "web".into(),
    };
    few(0..4, named, entry)
}

fn policies() -> impl Strategy<Value = BTreeMap<PolicyId, PolicyEntry>> {
    let entry = (0u32..4, 0u32..2, 0u32..2).prop_map(|(choice, flags, rules)| PolicyEntry {
        choice,
        flags,
        rules,
    });
    few(1..4, PolicyId, entry)
}

fn choices() -> impl Strategy<Value = BTreeMap<ChoiceId, ChoiceEntry>> {
    let entry = (0u32..3, 0u32..4, 0u32..2).prop_map(|(verdict, domain, share)| ChoiceEntry {
        verdict,
        domain,
        share,
    });
    few(1..4, ChoiceId, entry)
}

fn rulesets() -> impl Strategy<Value = BTreeMap<RulesetId, Image>> {
    let image = (1u32..4, 1u32..4)
        .prop_map(|(rule, otherwise)| compile(&[(&FlowRule::default(), rule)], otherwise).unwrap());
    // Of what an earlier agent made only the hash is known.
    let image = (image, any::<bool>()).prop_map(|(image, known)| {
        if known {
            image
        } else {
            Image::known(image.hash())
        }
    });
    few(1..3, RulesetId, image)
}

fn shares() -> impl Strategy<Value = BTreeMap<ChoiceId, Arc<ShareEntry>>> {
    let slots = (1u8..3).prop_map(|domain| {
        Arc::new(ShareEntry::new(
            [domain; ShareEntry::SLOTS],
            [domain; ShareEntry::SLOTS],
        ))
    });
    few(1..4, ChoiceId, slots)
}

fn domains() -> impl Strategy<Value = BTreeMap<DomainIndex, DomainEntry>> {
    let entry = (1u32..3, 0u32..3, 0u32..4).prop_map(|(mark, ifindex, flags)| DomainEntry {
        mark,
        ifindex,
        flags,
        ..DomainEntry::default()
    });
    few(
        1..4,
        |index| DomainIndex(u16::try_from(index).unwrap()),
        entry,
    )
}

fn locals() -> impl Strategy<Value = BTreeMap<ipnet::IpNet, Local>> {
    let keys = prop_oneof![
        Just(net("10.0.0.0/8")),
        Just(net("10.0.0.1/32")),
        Just(net("fd00::/8"))
    ];
    let values = (any::<bool>(), 0u16..3).prop_map(|(host, domain)| {
        let mut domains = DomainSet::default();
        domains.insert(domain);
        Local {
            host,
            domains,
            source: None,
        }
    });
    proptest::collection::btree_map(keys, values, 0..3)
}

fn rules() -> impl Strategy<Value = BTreeSet<Rule>> {
    let rule = (any::<bool>(), 0u32..3, 0u32..3).prop_map(|(v6, priority, table)| Rule {
        family: if v6 { Family::Ipv6 } else { Family::Ipv4 },
        priority,
        from: None,
        to: None,
        fwmark: None,
        oif: None,
        protocol: None,
        udp_ports: None,
        action: match table {
            0 => RuleAction::Unreachable,
            table => RuleAction::Lookup {
                table: TableId(table),
                suppress_prefix_len: None,
            },
        },
    });
    proptest::collection::btree_set(rule, 0..5)
}

fn routes() -> impl Strategy<Value = BTreeSet<TableRoute>> {
    let parts = (
        1u32..3,
        any::<bool>(),
        0u32..2,
        1u32..3,
        any::<bool>(),
        any::<bool>(),
    );
    let route = parts.prop_map(|(table, far, metric, interface, gateway, mtu)| TableRoute {
        table: TableId(table),
        destination: net(if far { "0.0.0.0/0" } else { "192.0.2.0/24" }),
        metric,
        interface: IfIndex(interface),
        gateway: gateway.then(|| ip("192.0.2.1")),
        onlink: false,
        prefsrc: None,
        mtu: mtu.then_some(1400),
    });
    proptest::collection::btree_set(route, 0..5)
}

prop_compose! {
    /// Any plan, sound or not.
    fn plans()(
        hooks in subsequence(Hook::ALL.to_vec(), 0..4),
        guards in proptest::collection::btree_set((1u32..4).prop_map(IfIndex), 0..3),
        ingress in few(1..4, IfIndex, (1u32..3, 0u32..2).prop_map(|(mark, flags)| IngressEntry { mark, flags })),
        (cgroups, names) in (cgroups(), names()).boxed(),
        (policies, rulesets) in (policies(), rulesets()).boxed(),
        (choices, shares) in (choices(), shares()).boxed(),
        domains in domains().boxed(),
        (sources, hosts, locals) in (
            proptest::collection::btree_set((1u16..3).prop_map(|index| (DomainIndex(index), ip("10.0.0.1"))), 0..3),
            proptest::collection::btree_set((0u32..3).prop_map(|index| (IfIndex(index), ip("10.0.0.1"))), 0..3),
            locals(),
        ).boxed(),
        rules in rules().boxed(),
        routes in routes().boxed(),
        sysctls in proptest::collection::btree_map("[ab]", "[01]", 0..3),
    ) -> Plan {
        let hooks = hooks.into_iter().collect();
        Plan {
            hooks, guards, ingress, hosts, cgroups, names, policies, rulesets, choices, shares, domains,
            sources, locals, rules, routes, sysctls,
        }
    }
}

fn follow<'s>(is: &mut Plan, steps: impl IntoIterator<Item = &'s Step>) {
    steps.into_iter().for_each(|step| is.record(step));
}

/// As reconcile does it: takes the steps but those that are refused and the removals that wait for
/// these. Returns the ones that were refused and the ones that wait.
fn follow_refused(
    is: &mut Plan,
    wanted: &Plan,
    steps: &Steps,
    refuses: impl Fn(&Step) -> bool,
) -> (Vec<Step>, Vec<Step>) {
    let (mut refused, mut waiting) = (Vec::new(), Vec::new());
    let take = |is: &mut Plan, step: &Step, refused: &mut Vec<Step>| {
        if refuses(step) {
            refused.push(step.clone());
        } else {
            is.record(step);
        }
    };
    for step in &steps.grow {
        take(is, step, &mut refused);
    }
    for removals in steps
        .shrink
        .chunk_by(|a, b| std::mem::discriminant(a) == std::mem::discriminant(b))
    {
        let waits = if refused.is_empty() {
            vec![false; removals.len()]
        } else {
            held(is, wanted, &refused.iter().collect::<Vec<_>>(), removals)
        };
        for (step, waits) in removals.iter().zip(waits) {
            if waits {
                waiting.push(step.clone());
            } else {
                take(is, step, &mut refused);
            }
        }
    }
    (refused, waiting)
}

/// Whether the kernel refuses a step: one of four, always the same ones of a seed.
fn refuses(step: &Step, seed: u64) -> bool {
    let mut hasher = DefaultHasher::new();
    (seed, format!("{step:?}")).hash(&mut hasher);
    hasher.finish().is_multiple_of(4)
}

/// Whether a route or rule is to take the place of the one that goes.
fn replaces(new: &Step, old: &Step) -> bool {
    match (new, old) {
        (Step::AddRoute(new), Step::DeleteRoute(old)) => {
            (new.table, new.destination) == (old.table, old.destination)
        }
        (Step::AddRule(new), Step::DeleteRule(old)) => {
            let about = |rule: &Rule| (rule.family, rule.from, rule.to, rule.fwmark, rule.oif);
            about(new) == about(old)
        }
        _ => false,
    }
}

/// What is now, without the cgroups that lead elsewhere than before.
fn with_old_cgroups(before: &Plan, at: &Plan) -> Plan {
    let mut plan = at.clone();
    plan.cgroups.retain(|id, entry| {
        let policy = PolicyId(entry.policy);
        let now = at.policies.get(&policy);
        before.cgroups.get(id) == Some(entry)
            && (now.is_none() || now == before.policies.get(&policy))
    });
    plan
}

/// What is now, without the policies that lead elsewhere than before.
fn with_old_policies(before: &Plan, at: &Plan) -> Plan {
    let mut plan = at.clone();
    plan.policies
        .retain(|id, entry| before.policies.get(id) == Some(entry));
    plan.rulesets
        .retain(|id, set| before.rulesets.get(id) == Some(set));
    plan
}

/// What is now, without the choices that lead elsewhere than before.
fn with_old_choices(before: &Plan, at: &Plan) -> Plan {
    let mut plan = at.clone();
    plan.choices.retain(|id, entry| {
        let same = |index: u32| {
            let index = DomainIndex(u16::try_from(index).unwrap());
            let now = at.domains.get(&index);
            let leads = now.is_some_and(|domain| domain.ifindex != 0 && domain.flags != 0);
            !leads || now == before.domains.get(&index)
        };
        let slots = at.shares.get(id);
        before.choices.get(id) == Some(entry)
            && (slots.is_none() || before.shares.get(id) == slots)
            && domains_of(at, *id, entry).into_iter().all(same)
    });
    plan
}

/// The domains that flows of a choice are put on.
fn domains_of(plan: &Plan, id: ChoiceId, choice: &ChoiceEntry) -> BTreeSet<u32> {
    let slots = plan.shares.get(&id).filter(|_| choice.share != share::NONE);
    let slots = slots
        .into_iter()
        .flat_map(|slots| [slots.ipv4, slots.ipv6].concat());
    slots.map(u32::from).chain([choice.domain]).collect()
}

/// Policies that lead to a set of rules which is not there, or whose choices are not.
fn ruleless(plan: &Plan) -> BTreeSet<String> {
    let mut ruleless = BTreeSet::new();
    for (id, entry) in plan.policies.iter().filter(|(_, entry)| entry.rules != 0) {
        match plan.rulesets.get(&RulesetId(entry.rules)) {
            None => {
                ruleless.insert(format!("policy {id}: no rules {}", entry.rules));
            }
            Some(set) => {
                let choices = set.choices().map(ChoiceId);
                let missing = choices.filter(|id| !plan.choices.contains_key(id));
                ruleless.extend(missing.map(|choice| format!("policy {id}: no choice {choice}")));
            }
        }
    }
    ruleless
}

/// Choices whose flows are shared, and that have no slots.
fn slotless(plan: &Plan) -> BTreeSet<String> {
    let choices = plan.choices.iter();
    let slotless =
        choices.filter(|(id, choice)| choice.share != share::NONE && !plan.shares.contains_key(id));
    slotless
        .map(|(id, _)| format!("choice {id}: no slots"))
        .collect()
}

/// Cgroups and policies that lead nowhere.
fn dangling(plan: &Plan) -> BTreeSet<String> {
    let cgroups = plan.cgroups.iter();
    let cgroups = cgroups
        .filter(|(_, entry)| entry.policy != 0)
        .filter(|(_, entry)| {
            let policy = plan.policies.get(&PolicyId(entry.policy));
            policy.is_none_or(|policy| {
                policy.choice != 0 && !plan.choices.contains_key(&ChoiceId(policy.choice))
            })
        });
    cgroups.map(|(id, _)| format!("cgroup {id}")).collect()
}

/// What is missing of the domains that choices steer to.
fn gaps(plan: &Plan, config: &Config) -> BTreeSet<String> {
    let mut gaps = BTreeSet::new();
    let steering = plan.choices.iter();
    for (id, choice) in steering.filter(|(_, choice)| choice.verdict == verdict::STEER) {
        for index in domains_of(plan, *id, choice) {
            let table = TableId(config.agent.table_base + index);
            let index = DomainIndex(u16::try_from(index).unwrap());
            let entry = plan.domains.get(&index).copied().unwrap_or_default();
            if entry.ifindex == 0 || entry.flags == 0 {
                gaps.insert(format!("choice {id}: no domain {index}"));
            }
            let families = [
                (Family::Ipv4, domain_flags::IPV4),
                (Family::Ipv6, domain_flags::IPV6),
            ];
            for (family, _) in families.iter().filter(|(_, flag)| entry.flags & flag != 0) {
                let leads = plan.routes.iter().any(|route| {
                    route.table == table
                        && route.interface.0 == entry.ifindex
                        && Family::of_net(&route.destination) == *family
                });
                let lookup = RuleAction::Lookup {
                    table,
                    suppress_prefix_len: None,
                };
                let fwmark = Some((entry.mark, config.agent.mark_mask.bits()));
                let ruled = plan.rules.iter().any(|rule| {
                    (rule.family, rule.fwmark, rule.action) == (*family, fwmark, lookup)
                });
                if !leads || !ruled {
                    gaps.insert(format!("choice {id}: {family:?} of domain {index}"));
                }
            }
        }
    }
    gaps
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    #[test]
    fn all_steps_lead_to_what_is_wanted_and_none_is_left(is in plans(), wanted in plans()) {
        let mut at = is;
        let todo = steps(&at, &wanted, Scope::All);
        follow(&mut at, todo.iter());
        prop_assert_eq!(&at, &wanted);
        prop_assert!(steps(&at, &wanted, Scope::All).is_empty());
    }

    #[test]
    fn a_reconcile_that_was_cut_short_goes_on_to_what_is_wanted(
        is in plans(), wanted in plans(), cut: prop::sample::Index,
    ) {
        let mut at = is;
        let all: Vec<Step> = steps(&at, &wanted, Scope::All).iter().cloned().collect();
        let rest = all.len() - cut.index(all.len() + 1);
        follow(&mut at, &all[..all.len() - rest]);
        let again: Vec<Step> = steps(&at, &wanted, Scope::All).iter().cloned().collect();
        prop_assert_eq!(again.as_slice(), &all[all.len() - rest..], "no step is done twice");
        follow(&mut at, &again);
        prop_assert_eq!(at, wanted);
    }

    #[test]
    fn steps_of_changes_keep_up_with_the_engine(
        events in proptest::collection::vec((events(), any::<bool>()), 1..50)
    ) {
        let mut engine = start();
        let mut at = Plan::default();
        for (event, settle) in events {
            // Refusals are part of it.
            drop(engine.apply(event));
            if settle {
                let changes = engine.settle();
                let todo = steps(&at, engine.plan(), Scope::Changed(&changes));
                follow(&mut at, todo.iter());
                prop_assert_eq!(&at, engine.plan());
            }
        }
    }

    #[test]
    fn no_cut_leaves_a_flow_without_what_it_is_sent_to(
        events in proptest::collection::vec((events(), prop::bool::weighted(0.3)), 1..50)
    ) {
        let mut engine = start();
        let mut at = Plan::default();
        let mut before = engine.state().config.clone();
        for (event, reconcile) in events {
            drop(engine.apply(event));
            engine.settle();
            if !reconcile {
                continue;
            }
            // On the way between two files an object is where the one or the other has it.
            let config = engine.state().config.clone();
            let gaps = |plan: &Plan| &gaps(plan, &config) & &gaps(plan, &before);
            prop_assert_eq!(dangling(engine.plan()), BTreeSet::new());
            prop_assert_eq!(ruleless(engine.plan()), BTreeSet::new());
            prop_assert_eq!(slotless(engine.plan()), BTreeSet::new());
            prop_assert_eq!(gaps(engine.plan()), BTreeSet::new());
            for step in steps(&at, engine.plan(), Scope::All).iter() {
                at.record(step);
                prop_assert_eq!(dangling(&at), BTreeSet::new(), "after {:?}", step);
                prop_assert_eq!(ruleless(&at), BTreeSet::new(), "after {:?}", step);
                prop_assert_eq!(slotless(&at), BTreeSet::new(), "after {:?}", step);
                prop_assert_eq!(gaps(&at), BTreeSet::new(), "after {:?}", step);
            }
            before = config;
        }
    }

    #[test]
    fn whatever_is_refused_what_stays_as_it_was_keeps_what_it_leads_to(
        events in proptest::collection::vec((events(), prop::bool::weighted(0.3)), 1..50),
        seed in any::<u64>(),
    ) {
        let mut engine = start();
        let mut at = Plan::default();
        let mut config = engine.state().config.clone();
        for (event, reconcile) in events {
            drop(engine.apply(event));
            engine.settle();
            if !reconcile {
                continue;
            }
            let before = at.clone();
            let todo = steps(&at, engine.plan(), Scope::All);
            let (_, waiting) =
                follow_refused(&mut at, engine.plan(), &todo, |step| refuses(step, seed));
            let frees_room =
                |step: &Step| matches!(step, Step::RemoveCgroup(_) | Step::RemoveName(_));
            prop_assert!(!waiting.iter().any(frees_room), "{:?}", waiting);
            let (old, new) = (config, engine.state().config.clone());
            let gaps = |plan: &Plan| &gaps(plan, &old) & &gaps(plan, &new);
            let lost = &gaps(&with_old_choices(&before, &at)) - &gaps(&before);
            prop_assert_eq!(lost, BTreeSet::new());
            let lost = &dangling(&with_old_cgroups(&before, &at)) - &dangling(&before);
            prop_assert_eq!(lost, BTreeSet::new());
            let lost = &ruleless(&with_old_policies(&before, &at)) - &ruleless(&before);
            prop_assert_eq!(lost, BTreeSet::new());
            let lost = &slotless(&with_old_choices(&before, &at)) - &slotless(&before);
            prop_assert_eq!(lost, BTreeSet::new());
            config = new;
        }
    }

    #[test]
    fn a_route_or_rule_that_is_refused_keeps_what_it_was_to_replace_and_nothing_else(
        events in proptest::collection::vec((events(), prop::bool::weighted(0.3)), 1..50),
        seed in any::<u64>(),
    ) {
        let mut engine = start();
        let mut at = Plan::default();
        for (event, reconcile) in events {
            drop(engine.apply(event));
            engine.settle();
            if !reconcile {
                continue;
            }
            let todo = steps(&at, engine.plan(), Scope::All);
            let of_network = |step: &Step| matches!(step, Step::AddRoute(_) | Step::AddRule(_));
            let (refused, waiting) = follow_refused(&mut at, engine.plan(), &todo, |step| {
                of_network(step) && refuses(step, seed)
            });
            for step in todo.shrink {
                let replaced = refused.iter().any(|refused| replaces(refused, &step));
                prop_assert_eq!(waiting.contains(&step), replaced, "{:?}", step);
            }
        }
    }

    #[test]
    fn what_waits_is_done_once_nothing_is_refused_any_more(
        is in plans(), wanted in plans(), seed in any::<u64>(),
    ) {
        let mut at = is;
        let todo = steps(&at, &wanted, Scope::All);
        let (refused, waiting) = follow_refused(&mut at, &wanted, &todo, |step| refuses(step, seed));
        let again = steps(&at, &wanted, Scope::All);
        for step in again.iter() {
            prop_assert!(refused.contains(step) || waiting.contains(step), "{:?}", step);
        }
        // Rounds: what a removal was refused of may have kept others.
        let (refused, waiting) = follow_refused(&mut at, &wanted, &again, |_| false);
        prop_assert_eq!((refused, waiting), (vec![], vec![]));
        prop_assert_eq!(at, wanted);
    }
}

/// An engine on which a policy can choose between two uplinks.
fn with_policy() -> Engine {
    let mut engine = engine();
    apply(
        &mut engine,
        Event::SetPolicy(policy("p", "a", &["wlan0", "lte0"])),
    );
    engine
}

#[test]
fn a_refused_gateway_keeps_the_old_one_but_not_another_domains() {
    let via = |table, gateway| TableRoute {
        table: TableId(table),
        destination: net("0.0.0.0/0"),
        metric: 0,
        interface: IfIndex(1),
        gateway: Some(ip(gateway)),
        onlink: false,
        prefsrc: None,
        mtu: None,
    };
    let plan = |routes: &[TableRoute]| Plan {
        routes: routes.iter().copied().collect(),
        ..Plan::default()
    };
    let mut at = plan(&[via(1, "192.0.2.1"), via(2, "198.51.100.1")]);
    let wanted = plan(&[via(1, "192.0.2.2"), via(2, "198.51.100.2")]);
    let new = Step::AddRoute(via(1, "192.0.2.2"));
    for round in 0..3 {
        let todo = steps(&at, &wanted, Scope::All);
        follow_refused(&mut at, &wanted, &todo, |step| *step == new);
        let now = [via(1, "192.0.2.1"), via(2, "198.51.100.2")];
        assert_eq!(at, plan(&now), "round {round}");
    }
    let todo = steps(&at, &wanted, Scope::All);
    follow_refused(&mut at, &wanted, &todo, |_| false);
    assert_eq!(at, wanted);
}

#[test]
fn a_policy_that_could_not_be_written_keeps_its_rules_and_their_choices() {
    let choice = ChoiceEntry {
        verdict: verdict::STEER,
        domain: 1,
        share: share::FLOW,
    };
    let slots = |domain| {
        Arc::new(ShareEntry::new(
            [domain; ShareEntry::SLOTS],
            [domain; ShareEntry::SLOTS],
        ))
    };
    let plan = |number: u32, domain: u8| Plan {
        policies: [(
            PolicyId(1),
            PolicyEntry {
                choice: number,
                rules: number,
                ..PolicyEntry::default()
            },
        )]
        .into(),
        rulesets: [(
            RulesetId(number),
            compile(&[(&FlowRule::default(), number)], number + 1).unwrap(),
        )]
        .into(),
        choices: [number, number + 1].map(|id| (ChoiceId(id), choice)).into(),
        shares: [number, number + 1]
            .map(|id| (ChoiceId(id), slots(domain)))
            .into(),
        domains: [1, domain]
            .map(|index| {
                let entry = DomainEntry {
                    ifindex: 1,
                    flags: 1,
                    ..DomainEntry::default()
                };
                (DomainIndex(index.into()), entry)
            })
            .into(),
        ..Plan::default()
    };
    let (old, wanted) = (plan(1, 2), plan(3, 3));
    let refuse = |step: &Step| matches!(step, Step::SetPolicy(..));
    // Where more than its hash is known of the old set, and where not.
    for known in [true, false] {
        let mut at = old.clone();
        if !known {
            at.rulesets
                .values_mut()
                .for_each(|set| *set = Image::known(Image::hash(set)));
        }
        let todo = steps(&at, &wanted, Scope::All);
        follow_refused(&mut at, &wanted, &todo, refuse);
        assert_eq!(at.policies, old.policies);
        assert!(
            old.rulesets
                .iter()
                .all(|(id, set)| at.rulesets.get(id) == Some(set))
        );
        for id in [1, 2].map(ChoiceId) {
            assert_eq!((at.choices[&id], &at.shares[&id]), (choice, &slots(2)));
        }
        assert!(at.domains.contains_key(&DomainIndex(2)), "{known}");
        let todo = steps(&at, &wanted, Scope::All);
        follow_refused(&mut at, &wanted, &todo, |_| false);
        assert_eq!(at, wanted);
    }
    // An adopted set that stays is known by the plan, and holds nothing else back.
    let mut at = old.clone();
    at.rulesets
        .values_mut()
        .for_each(|set| *set = Image::known(Image::hash(set)));
    at.choices.insert(ChoiceId(9), choice);
    let todo = steps(&at, &old, Scope::All);
    let any = Step::SetSysctl("a".to_owned(), "1".to_owned());
    let gone = [Step::ClearChoice(ChoiceId(9))];
    assert!(todo.iter().any(|step| gone.contains(step)));
    assert_eq!(held(&at, &old, &[&any], &gone), [false]);
}

#[test]
fn a_gateway_comes_after_the_route_to_it() {
    let engine = with_policy();
    let steps = steps(&Plan::default(), engine.plan(), Scope::All);
    let gateways: Vec<bool> = steps
        .grow
        .iter()
        .filter_map(|step| match step {
            Step::AddRoute(route) => Some(route.gateway.is_some()),
            _ => None,
        })
        .collect();
    assert_eq!(
        gateways,
        [false, false, false, false, true, true, true, true]
    );
}

#[test]
fn programs_come_after_all_that_they_read() {
    let engine = with_policy();
    let steps = steps(&Plan::default(), engine.plan(), Scope::All);
    let attaches = |step: &Step| {
        matches!(
            step,
            Step::Attach(_) | Step::Guard(_) | Step::SetIngress(..)
        )
    };
    let first = steps.grow.iter().position(attaches).unwrap();
    assert!(
        steps.grow[..first]
            .iter()
            .any(|step| matches!(step, Step::SetCgroup(..)))
    );
    assert!(steps.grow[first..].iter().all(attaches));
}

#[test]
fn a_lost_carrier_moves_its_choice_before_anything_is_taken_away() {
    let mut engine = with_policy();
    let is = engine.plan().clone();
    let lost = carrier(&engine.state().network.clone(), 2, false);
    let changes = apply(&mut engine, lost);
    let steps = steps(&is, engine.plan(), Scope::Changed(&changes));
    let steps: Vec<Step> = steps.iter().cloned().collect();
    // What unmarked packets from the lost domain's address may no longer do is said first.
    let refusing = steps
        .iter()
        .take_while(
            |step| matches!(step, Step::AddRule(rule) if rule.action == RuleAction::Unreachable),
        )
        .count();
    let [Step::SetChoice(_, choice), rest @ ..] = &steps[refusing..] else {
        panic!("{steps:#?}")
    };
    let lte = engine.state().memory.indices[&name("lte0")];
    assert_eq!(choice.domain, u32::from(lte.0));
    assert!(rest.iter().any(|step| matches!(step, Step::SetDomain(..))));
    assert!(rest.iter().any(|step| matches!(step, Step::DeleteRoute(_))));
    assert!(
        !rest
            .iter()
            .any(|step| matches!(step, Step::AddRoute(_) | Step::AddRule(_)))
    );
}
