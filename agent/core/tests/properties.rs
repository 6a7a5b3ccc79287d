//! What holds for every state and every sequence of events.
#![expect(clippy::unwrap_used, reason = "a failure is a failed test")]

mod support;

use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;
use steer_common::{CgroupEntry, MarkMask, cgroup_flags, policy_flags, share, verdict};
use steer_core::cgroups::CgroupChange;
use steer_core::domains::Domains;
use steer_core::engine::{Engine, plan};
use steer_core::explain::flow::Owner;
use steer_core::health::{History, Now, Probed};
use steer_core::ids::{CgroupId, ChoiceId, DomainIndex, PlaceId, PolicyId, RulesetId, TableId};
use steer_core::name::Name;
use steer_core::network::NetworkChange;
use steer_core::plan::Object;
use steer_core::plan::rules::offset;
use steer_core::plan::{Family, Named, Plan, RuleAction};
use steer_core::policy::{Match, Otherwise, Policy};
use steer_core::probe::{Outcome, Report};
use steer_core::state::{Event, State};
use support::strategies::{FILES, events, kinds_of_flow, policies, start};
use support::{config, name, two_uplinks};

/// A plan in words that do not depend on which numbers were given out.
fn meaning(engine: &Engine) -> BTreeMap<String, (u32, u32, Vec<String>)> {
    let plan = engine.plan();
    let memory = &engine.state().memory;
    let names: BTreeMap<u32, String> = memory
        .indices
        .iter()
        .map(|(name, index)| (index.0.into(), name.to_string()))
        .collect();
    let cgroups = plan.cgroups.iter();
    cgroups
        .map(|(id, entry)| {
            let policy = plan
                .policies
                .get(&PolicyId(entry.policy))
                .copied()
                .unwrap_or_default();
            let owner = Owner::of(plan, Some(entry));
            let fates = kinds_of_flow().into_iter().map(|flow| {
                let chosen = owner.map(|owner| owner.choose(plan, &flow));
                let domains = chosen.into_iter().flat_map(|chosen| chosen.domains());
                let domains: BTreeSet<_> = domains.map(|index| &names[&index.0.into()]).collect();
                let verdict = chosen.map(|chosen| (chosen.choice.verdict, chosen.choice.share));
                format!("{verdict:?} {domains:?}")
            });
            let fates = fates.collect();
            let path = engine.state().cgroups.path(*id).unwrap();
            (path, (entry.flags, policy.flags, fates))
        })
        .collect()
}

/// What every plan must be in itself.
fn check(plan: &Plan, state: &State) -> Result<(), TestCaseError> {
    let mask = state.config.agent.mark_mask;
    let base = state.config.agent.table_base;
    // Also of domains that no policy can choose any more.
    let tables: BTreeMap<TableId, (&Name, DomainIndex)> = state
        .memory
        .indices
        .iter()
        .map(|(name, index)| (TableId(base + u32::from(index.0)), (name, *index)))
        .collect();
    let domains = Domains::new(&state.config, &state.network);
    let indices: BTreeSet<DomainIndex> = state.memory.indices.values().copied().collect();
    prop_assert!(plan.domains.keys().all(|index| indices.contains(index)));
    for entry in plan.cgroups.values().chain(plan.names.values()) {
        prop_assert!(entry.policy == 0 || plan.policies.contains_key(&PolicyId(entry.policy)));
        let exempt = entry.flags & cgroup_flags::EXEMPT != 0;
        prop_assert!(!exempt || (entry.policy == 0 && entry.flags == cgroup_flags::EXEMPT));
    }
    for (named, entry) in &plan.names {
        let place = state.memory.places.key(named.place.0);
        prop_assert_eq!(place.is_none(), named.place == PlaceId(0), "{:?}", named);
        let within = entry.place == 0 || state.memory.places.key(entry.place).is_some();
        prop_assert!(within, "{:?}", entry);
    }
    for (id, entry) in &plan.policies {
        let any = *id == PolicyId(0) && entry.choice == 0;
        prop_assert!(any || plan.choices.contains_key(&ChoiceId(entry.choice)));
        let set = plan.rulesets.get(&RulesetId(entry.rules));
        prop_assert!(entry.rules == 0 || set.is_some());
        for choice in set.into_iter().flat_map(|set| set.choices()) {
            prop_assert!(plan.choices.contains_key(&ChoiceId(choice)));
        }
        if entry.flags & policy_flags::STRICT != 0 {
            prop_assert!(
                !plan.guards.is_empty() || state.network.links.values().all(|l| l.loopback)
            );
        }
    }
    for id in plan.rulesets.keys() {
        prop_assert!(
            plan.policies.values().any(|entry| entry.rules == id.0),
            "a set for nothing"
        );
    }
    let mut led_to: BTreeSet<u32> = plan.policies.values().map(|entry| entry.choice).collect();
    led_to.extend(plan.rulesets.values().flat_map(|set| set.choices()));
    for (id, choice) in &plan.choices {
        prop_assert!(led_to.contains(&id.0), "a choice for nothing");
        let slots = plan.shares.get(id);
        prop_assert_eq!(slots.is_some(), choice.share != share::NONE);
        for index in slots
            .into_iter()
            .flat_map(|slots| [slots.ipv4, slots.ipv6].concat())
        {
            let domain = plan.domains.get(&DomainIndex(index.into()));
            prop_assert!(domain.is_some_and(|domain| domain.ifindex != 0));
        }
    }
    prop_assert!(plan.shares.keys().all(|id| plan.choices.contains_key(id)));
    for choice in plan.choices.values() {
        let domain = u16::try_from(choice.domain).ok().map(DomainIndex);
        let domain = domain.and_then(|index| plan.domains.get(&index));
        match choice.verdict {
            verdict::STEER => {
                let domain = domain.expect("a domain that is steered to has an entry");
                prop_assert!(domain.mark != 0 && domain.mark & !mask.bits() == 0);
                prop_assert!(domain.ifindex != 0 && domain.flags != 0);
                let table = TableId(base + choice.domain);
                prop_assert!(plan.routes.iter().any(|route| route.table == table));
            }
            verdict::BLOCK => prop_assert!(choice.domain == 0 || domain.is_some()),
            _ => prop_assert_eq!(choice.domain, 0),
        }
    }
    let targets: BTreeSet<u32> = plan
        .rules
        .iter()
        .filter(|rule| rule.action == RuleAction::Nop)
        .map(|rule| rule.priority)
        .collect();
    for rule in &plan.rules {
        match rule.action {
            RuleAction::Lookup { table, .. } => {
                prop_assert!(table == TableId(254) || tables.contains_key(&table));
            }
            RuleAction::Goto(to) => prop_assert!(to > rule.priority && targets.contains(&to)),
            RuleAction::Nop | RuleAction::Unreachable => {}
        }
        let nets = [rule.from, rule.to].into_iter().flatten();
        let v6 = rule.family == Family::Ipv6;
        nets.for_each(|net| assert_eq!(net.addr().is_ipv6(), v6));
        // A marked IPv6 packet without a chosen source must not be let out by one that the kernel
        // tries.
        let marked = rule.priority < state.config.agent.rule_base + offset::UNMARKED;
        if v6 && marked && rule.from.is_some() {
            prop_assert!(matches!(rule.protocol, Some(6 | 17)));
        }
    }
    let mut keys = BTreeSet::new();
    for route in &plan.routes {
        let key = (route.table, route.destination, route.metric);
        prop_assert!(keys.insert(key), "the kernel would take {key:?} once");
        let (name, index) = tables[&route.table];
        let domain = domains.get(name.as_str()).expect("a table is a domain's");
        prop_assert_eq!(domain.interface, Some(route.interface));
        let source = route.prefsrc.expect("a route of a domain has a source");
        prop_assert!(domain.addresses.iter().any(|address| address.ip == source));
        if let Some(entry) = plan.domains.get(&index) {
            prop_assert_eq!(entry.ifindex, route.interface.0);
            prop_assert!(plan.sources.contains(&(index, source)));
        }
    }
    let marks: BTreeSet<u32> = plan.domains.values().map(|domain| domain.mark).collect();
    prop_assert_eq!(marks.len(), plan.domains.len());
    Ok(())
}

/// What the kernel gives a cgroup that is made.
fn entered(plan: &Plan, parent: CgroupId, name: &str) -> CgroupEntry {
    let parent = plan.cgroups.get(&parent).copied().unwrap_or_default();
    if parent.flags & cgroup_flags::EXEMPT != 0 {
        return CgroupEntry::default();
    }
    let named = |place| {
        let (place, name) = (PlaceId(place), name.into());
        plan.names.get(&Named { place, name }).copied()
    };
    if let Some(entry) = named(parent.place).filter(|_| parent.place != 0) {
        return entry;
    }
    let has = |flag| parent.flags & flag != 0;
    let closed = has(cgroup_flags::CHILDREN_UNDECIDED)
        || has(cgroup_flags::DESCENDANTS_UNDECIDED)
        || has(cgroup_flags::UNDECIDED)
        || has(cgroup_flags::UNITS_UNDECIDED) && named(0).is_some();
    CgroupEntry {
        policy: parent.policy,
        flags: if closed { cgroup_flags::UNDECIDED } else { 0 },
        place: 0,
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(192))]

    #[test]
    fn incremental_is_full_and_every_plan_is_sound(
        events in proptest::collection::vec((events(), any::<bool>()), 0..60)
    ) {
        let mut engine = start();
        for (event, settle) in events {
            let before = engine.state().clone();
            let refused = engine.apply(event).is_err();
            prop_assert!(!refused || *engine.state() == before, "a refused event changes nothing");
            if settle {
                engine.settle();
                prop_assert_eq!(engine.plan(), &plan(engine.state()));
                check(engine.plan(), engine.state())?;
            }
        }
        engine.settle();
        prop_assert_eq!(engine.plan(), &plan(engine.state()));
        prop_assert!(engine.settle().is_empty(), "settling twice changes nothing");
        // What it says of itself is total too.
        engine.warnings().iter().for_each(|warning| assert!(!warning.to_string().is_empty()));
        for policy in engine.state().policies() {
            prop_assert!(engine.decision(policy.name.as_str()).is_some());
        }
    }

    #[test]
    fn a_preference_changes_the_order_and_nothing_else(
        events in proptest::collection::vec(events(), 0..40)
    ) {
        let mut engine = start();
        for event in events {
            // Refusals are part of what happens.
            drop(engine.apply(event));
            engine.settle();
        }
        let mut bare = engine.state().clone();
        bare.preferred.clear();
        let mut without = Engine::new(bare);
        without.settle();
        for policy in engine.state().policies() {
            let name = policy.name.as_str();
            let (with, without) = (engine.decision(name).unwrap(), without.decision(name).unwrap());
            prop_assert_eq!(with.domain().is_some(), without.domain().is_some());
            if policy.otherwise != Otherwise::Next {
                let usable = engine.expand(&policy.use_);
                prop_assert!(with.candidates.iter().all(|looked| usable.contains(&looked.domain)));
            }
        }
        let tables = |engine: &Engine| engine.state().memory.indices.keys().cloned().collect::<BTreeSet<_>>();
        prop_assert_eq!(tables(&engine), tables(&without));
        for policy in engine.state().preferred.keys() {
            prop_assert!(engine.state().config.defines(policy.as_str())
                || engine.state().api_policies.contains_key(policy), "it ends with its policy");
        }
    }

    #[test]
    fn changes_name_everything_that_differs(
        events in proptest::collection::vec(events(), 1..40)
    ) {
        let mut engine = start();
        engine.settle();
        for event in events {
            let before = engine.plan().clone();
            let taken = engine.apply(event).is_ok();
            let changes = engine.settle();
            prop_assert!(taken || changes.is_empty());
            let mut patched = before;
            for id in &changes.cgroups {
                let new = engine.plan().cgroups.get(id).copied();
                prop_assert_ne!(patched.cgroups.remove(id), new);
                patched.cgroups.extend(new.map(|new| (*id, new)));
            }
            for named in &changes.names {
                let new = engine.plan().names.get(named).copied();
                prop_assert_ne!(patched.names.remove(named), new);
                patched.names.extend(new.map(|new| (named.clone(), new)));
            }
            for id in &changes.policies {
                let new = engine.plan().policies.get(id).copied();
                prop_assert_ne!(patched.policies.remove(id), new);
                patched.policies.extend(new.map(|new| (*id, new)));
            }
            for id in &changes.choices {
                let new = engine.plan().choices.get(id).copied();
                prop_assert_ne!(patched.choices.remove(id), new);
                patched.choices.extend(new.map(|new| (*id, new)));
            }
            for id in &changes.rulesets {
                let new = engine.plan().rulesets.get(id).cloned();
                prop_assert_ne!(patched.rulesets.remove(id), new.clone());
                patched.rulesets.extend(new.map(|new| (*id, new)));
            }
            for id in &changes.shares {
                let new = engine.plan().shares.get(id).cloned();
                prop_assert_ne!(patched.shares.remove(id), new.clone());
                patched.shares.extend(new.map(|new| (*id, new)));
            }
            if changes.network {
                let (rulesets, shares) = (patched.rulesets, patched.shares);
                let (cgroups, names) = (patched.cgroups, patched.names);
                let (policies, choices) = (patched.policies, patched.choices);
                patched = Plan {
                    cgroups, names, policies, rulesets, choices, shares, ..engine.plan().clone()
                };
            }
            prop_assert_eq!(&patched, engine.plan());
        }
    }

    #[test]
    fn a_new_cgroup_is_never_more_open_than_the_agent_would_have_it(
        events in proptest::collection::vec(events(), 1..40)
    ) {
        let mut engine = start();
        engine.settle();
        for event in events {
            let tree = &engine.state().cgroups;
            let made = match &event {
                Event::Cgroups(CgroupChange::Made { id, parent, name })
                    if tree.contains(*parent)
                        && !tree.contains(*id)
                        && tree.child(*parent, name).is_none() =>
                {
                    Some((*id, entered(engine.plan(), *parent, name)))
                }
                _ => None,
            };
            drop(engine.apply(event));
            engine.settle();
            let Some((id, entered)) = made else { continue };
            let plan = engine.plan();
            let Some(entry) = plan.cgroups.get(&id) else { continue };
            let by_id = |policy: &Policy| policy.matches.contains(&Match::CgroupId(id));
            // Nobody could know of a new cgroup's id.
            let tree = &engine.state().cgroups;
            let exempt = tree.ancestors(id).any(|id| engine.state().exempt.contains(&id));
            if engine.state().cgroup_root == id || exempt || engine.state().policies().any(by_id) {
                continue;
            }
            let policy = |policy| plan.policies.get(&PolicyId(policy)).copied().unwrap_or_default();
            let strict = policy(entry.policy).flags & policy_flags::STRICT != 0;
            let closed = entered.flags & cgroup_flags::UNDECIDED != 0;
            prop_assert!(!strict || closed || entered.policy == entry.policy, "{:?} is {:?}", entered, entry);
        }
    }

    #[test]
    fn how_the_last_state_was_reached_does_not_matter(
        setting in proptest::collection::vec(policies(), 0..6),
        noise in proptest::collection::vec(events(), 0..20),
        file in 0..FILES.len(),
    ) {
        // Whatever happened before: the same network, cgroups, file and policies mean the same.
        let end = |engine: &mut Engine, backwards: bool| {
            let names: Vec<_> = engine.state().api_policies.keys().cloned().collect();
            for name in names {
                engine.apply(Event::UnsetPolicy(name)).unwrap();
            }
            let preferred: Vec<_> = engine.state().preferred.keys().cloned().collect();
            for policy in preferred {
                // One in quarantine has no decision to be changed.
                drop(engine.apply(Event::Prefer { policy, domain: None }));
            }
            let mut tree = steer_core::cgroups::CgroupTree::new(CgroupId(1));
            for (id, parent, name) in [(2, 1, "a"), (3, 2, "b"), (4, 3, "x.service"), (5, 2, "y.scope")] {
                tree.made(CgroupId(id), CgroupId(parent), name);
            }
            let mut last = vec![
                Event::Network(NetworkChange::Dump(two_uplinks())),
                Event::Cgroups(CgroupChange::Dump(tree)),
                Event::Config(Box::new(config(FILES[file]))),
                Event::Managed { root: CgroupId(1), exempt: BTreeSet::new() },
                Event::IndicesInUse(BTreeSet::new()),
                Event::Outcome(Object::Domain(name("wlan0")), Ok(())),
                Event::Outcome(Object::Guard, Ok(())),
            ];
            if backwards {
                last.reverse();
            }
            for event in last {
                engine.apply(event).unwrap();
                engine.settle();
            }
            // What was measured and lost before is past, and every check passes.
            let boot = std::time::Duration::from_secs(10_000);
            let network = |network| Event::Network(NetworkChange::Dump(network));
            for event in [
                network(steer_core::network::Network::default()),
                Event::Now(Now { boot, wall: 10_000 }),
                network(two_uplinks()),
                Event::Now(Now { boot: boot * 2, wall: 20_000 }),
                Event::Remembered(History::default()),
            ] {
                engine.apply(event).unwrap();
                engine.settle();
            }
            for probe in engine.probes() {
                let probed = Probed {
                    domain: probe.domain,
                    epoch: probe.epoch,
                    began: std::time::Duration::ZERO,
                    report: Report { outcome: Outcome::Passed, rtt: None, asked: 1, lost: 0 },
                    gateway: None,
                    counted: None,
                };
                engine.apply(Event::Probed(probed)).unwrap();
            }
            engine.apply(Event::Chosen(BTreeMap::new())).unwrap();
            engine.apply(Event::IndicesInUse(BTreeSet::new())).unwrap();
            engine.settle();
        };
        let mut fresh = start();
        end(&mut fresh, false);
        let mut used = start();
        for event in noise {
            // Refusals are part of the noise.
            drop(used.apply(event));
            used.settle();
        }
        end(&mut used, true);
        prop_assert_eq!(meaning(&fresh), meaning(&used));

        // Policies that do not get into each other's way may come in any order.
        let taken: Vec<Policy> = setting
            .into_iter()
            .filter(|policy| fresh.apply(Event::SetPolicy(policy.clone())).is_ok())
            .collect();
        fresh.settle();
        let last: BTreeMap<_, _> = taken.into_iter().map(|policy| (policy.name.clone(), policy)).collect();
        let enough_marks = fresh.state().config.agent.mark_mask == MarkMask::DEFAULT;
        let mut last: Vec<Policy> = last.into_values().rev().collect();
        // A policy is refused below a strict one of a higher rank, so those come later.
        last.sort_by_key(Policy::rank);
        for policy in last {
            used.apply(Event::SetPolicy(policy)).unwrap();
            used.settle();
        }
        if enough_marks {
            prop_assert_eq!(meaning(&fresh), meaning(&used));
        }
    }
}
