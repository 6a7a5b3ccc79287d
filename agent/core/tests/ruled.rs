//! Rules in the engine: which numbers they get, when they are compiled, and what happens where they cannot be.
#![expect(clippy::unwrap_used, reason = "a failure is a failed test")]

mod support;

use std::collections::BTreeSet;
use std::fmt::Write as _;

use steer_common::{PolicyEntry, policy_flags, verdict};
use steer_core::engine::{Engine, Warning};
use steer_core::explain::flow::Owner;
use steer_core::ids::{CgroupId, ChoiceId, PolicyId, RulesetId};
use steer_core::memory::Memory;
use steer_core::policy::{Otherwise, Policy};
use steer_core::rules::{Flow, Rule, Rules};
use steer_core::select::Verdict;
use steer_core::state::Event;
use support::{apply, carrier, config, engine, engine_with, ip, name, policy, strict};

fn rule(net: &str, use_: &[&str]) -> Rule {
    Rule {
        destination: vec![net.parse().unwrap()],
        use_: use_.iter().copied().map(name).collect(),
        ..Rule::default()
    }
}

fn with_rules(policy: Policy, rules: Vec<Rule>) -> Policy {
    Policy {
        rules: rules.into(),
        ..policy
    }
}

fn entry(engine: &Engine, cgroup: u64) -> PolicyEntry {
    let cgroup = engine.plan().cgroups[&CgroupId(cgroup)];
    engine.plan().policies[&PolicyId(cgroup.policy)]
}

/// The domain that a flow from a cgroup is put on.
fn domain(engine: &Engine, cgroup: u64, destination: &str) -> Option<String> {
    let entry = engine.plan().cgroups.get(&CgroupId(cgroup));
    let owner = Owner::of(engine.plan(), entry)?;
    let chosen = owner.choose(engine.plan(), &Flow::to(ip(destination)));
    assert_eq!(chosen.choice.verdict, verdict::STEER);
    let indices = &engine.state().memory.indices;
    let index = chosen.domains().next()?;
    let name = indices.iter().find(|(_, own)| **own == index)?.0;
    Some(name.to_string())
}

#[test]
fn policies_with_the_same_rules_have_one_set() {
    let mut engine = engine();
    let rules = vec![rule("10.0.0.0/8", &["lte0"])];
    for (own, cgroup) in [("p", "a"), ("q", "c")] {
        let policy = with_rules(policy(own, cgroup, &["wlan0"]), rules.clone());
        apply(&mut engine, Event::SetPolicy(policy));
    }
    assert_eq!(engine.plan().rulesets.len(), 1);
    assert_eq!(entry(&engine, 10).rules, entry(&engine, 20).rules);
    assert_eq!(domain(&engine, 10, "10.0.0.1").unwrap(), "lte0");
    assert_eq!(domain(&engine, 20, "192.0.2.77").unwrap(), "wlan0");
    apply(&mut engine, Event::UnsetPolicy(name("p")));
    assert_eq!(engine.plan().rulesets.len(), 1);
    let changes = apply(&mut engine, Event::UnsetPolicy(name("q")));
    assert_eq!(changes.rulesets, BTreeSet::from([RulesetId(1)]));
    assert!(engine.plan().rulesets.is_empty() && engine.plan().choices.is_empty());
}

#[test]
fn other_rules_are_another_set_and_the_old_number_does_not_come_back_soon() {
    let mut engine = engine();
    let set = |engine: &mut Engine, net: &str| {
        let policy = with_rules(policy("p", "a", &["wlan0"]), vec![rule(net, &["lte0"])]);
        apply(engine, Event::SetPolicy(policy));
        entry(engine, 10).rules
    };
    assert_eq!(set(&mut engine, "10.0.0.0/8"), 1);
    assert_eq!(set(&mut engine, "10.0.0.0/9"), 2);
    assert_eq!(set(&mut engine, "10.0.0.0/8"), 3);
    assert_eq!(
        engine.plan().rulesets.keys().collect::<Vec<_>>(),
        [&RulesetId(3)]
    );
    // The next agent goes on with the same.
    let saved = serde_json::to_string(&engine.state().memory).unwrap();
    let mut state = engine.state().clone();
    state.memory = serde_json::from_str(&saved).unwrap();
    let mut next = Engine::new(state);
    next.settle();
    assert_eq!(next.plan(), engine.plan());
    // Also after one that knew no rules.
    let mut older: serde_json::Value = serde_json::from_str(&saved).unwrap();
    older.as_object_mut().unwrap().remove("rulesets").unwrap();
    let older: Memory = serde_json::from_value(older).unwrap();
    assert_eq!(older.rulesets, Memory::default().rulesets);
}

#[test]
fn a_lost_carrier_writes_choices_and_leaves_the_rules() {
    let mut engine = engine();
    let rules = vec![rule("10.0.0.0/8", &["lte0", "wlan0"])];
    let policy = with_rules(policy("p", "a", &["wlan0", "lte0"]), rules);
    apply(&mut engine, Event::SetPolicy(policy));
    let lost = carrier(&engine.state().network, 3, false);
    let changes = apply(&mut engine, lost);
    assert!(changes.rulesets.is_empty() && changes.policies.is_empty());
    assert_eq!(changes.choices.len(), 1);
    assert_eq!(domain(&engine, 10, "10.0.0.1").unwrap(), "wlan0");
}

#[test]
fn a_preference_orders_the_domains_of_rules_too() {
    let mut engine = engine();
    let rules = vec![rule("10.0.0.0/8", &["lte0", "wlan0"])];
    let policy = with_rules(policy("p", "a", &["lte0"]), rules);
    apply(&mut engine, Event::SetPolicy(policy));
    assert_eq!(domain(&engine, 10, "10.0.0.1").unwrap(), "lte0");
    let prefer = |domain| Event::Prefer {
        policy: name("p"),
        domain,
    };
    apply(&mut engine, prefer(Some(name("wlan0"))));
    assert_eq!(domain(&engine, 10, "10.0.0.1").unwrap(), "wlan0");
    assert_eq!(domain(&engine, 10, "192.0.2.77").unwrap(), "lte0");
}

#[test]
fn a_policy_leads_to_what_it_and_its_rules_choose_and_to_nothing_else() {
    let mut engine = engine();
    let rules = vec![rule("10.0.0.0/8", &["lte0"])];
    for policy in [
        with_rules(policy("p", "a", &["wlan0"]), rules),
        policy("q", "c", &["lte0", "wlan0"]),
    ] {
        apply(&mut engine, Event::SetPolicy(policy));
    }
    let plan = engine.plan();
    let [p, q] = [10, 20].map(|id| PolicyId(plan.cgroups[&CgroupId(id)].policy));
    let choice = |policy| ChoiceId(plan.policies[&policy].choice);
    let owner = Owner::of(plan, plan.cgroups.get(&CgroupId(10))).unwrap();
    let ruled = owner.choose(plan, &Flow::to(ip("10.0.0.1"))).id;
    assert_ne!(ruled, choice(p));
    for (of, expected) in [
        (choice(p), [true, false]),
        (ruled, [true, false]),
        (choice(q), [false, true]),
        (ChoiceId(0), [false, false]),
    ] {
        let of = BTreeSet::from([of]);
        let mut leads = plan.leading_to(&of);
        assert_eq!([p, q].map(&mut leads), expected, "{of:?}");
        assert!(!leads(PolicyId(99)));
    }
}

#[test]
fn each_rule_tells_what_it_decides() {
    let mut engine = engine();
    let rules = vec![
        rule("10.0.0.0/8", &["lte0"]),
        Rule {
            otherwise: Some(Otherwise::Block),
            ..rule("192.0.2.0/24", &[])
        },
    ];
    let policy = with_rules(policy("p", "a", &["wlan0"]), rules);
    apply(&mut engine, Event::SetPolicy(policy));
    let chain = engine.effective(CgroupId(10)).unwrap().chain;
    assert_eq!(engine.rule_decisions(&chain, 1).len(), 1);
    let decisions = engine.rule_decisions(&chain, 10);
    let says: Vec<_> = decisions
        .into_iter()
        .map(|one| (one.at.number, one.decision.verdict))
        .collect();
    assert_eq!(
        says,
        [(1, Verdict::Steer(name("lte0"))), (2, Verdict::Block)]
    );
    let asked = engine.decide_flow(&chain, &Flow::to(ip("192.0.2.9")));
    assert_eq!(asked.rules[0].number, 2);
    assert_eq!(asked.decision.verdict, Verdict::Block);
}

#[test]
fn rules_of_a_policy_that_is_in_force_nowhere_are_told_as_its_decision_is() {
    let file = "[policy.default]\nuse = \"wlan0\"\n[policy.p]\nmatch.cgroup = \"nowhere\"\notherwise = \
                \"next\"\n[[policy.p.rule]]\nports = 443\notherwise = \"next\"\n";
    let engine = engine_with(file);
    let chain = engine.chain_of(&name("p"));
    assert_eq!(chain, [name("p"), name("default")]);
    let wlan = Verdict::Steer(name("wlan0"));
    assert_eq!(engine.decision("p").unwrap().verdict, wlan);
    let [rule] = &engine.rule_decisions(&chain, 10)[..] else {
        panic!("it has one rule");
    };
    assert_eq!(rule.decision.verdict, wlan);
    // In force it is told with those that are behind it there.
    let engine = engine_with(&file.replace("nowhere", "a"));
    let effective = engine.effective(CgroupId(10)).unwrap();
    assert_eq!(engine.chain_of(&name("p")), effective.chain);
    assert_eq!(engine.chain_of(&name("default")), [name("default")]);
}

#[test]
fn datagrams_are_decided_one_by_one_where_any_policy_of_the_chain_says_so() {
    let file = "[policy.p]\nmatch.cgroup = \"a\"\nuse = \"wlan0\"\notherwise = \"next\"\n[policy.default]\nuse = \
                \"lte0\"\n";
    let flag = |engine: &Engine| entry(engine, 10).flags & policy_flags::REBIND_DATAGRAM != 0;
    assert!(!flag(&engine_with(file)));
    assert!(flag(&engine_with(&format!(
        "{file}rebind = \"datagram\"\n"
    ))));
}

/// Two policies whose rules are too many together, the one for `a` with so many.
fn too_many(outer: &str, count: u16) -> String {
    let mut file = String::new();
    let inner = ("p", "a/b", "otherwise = \"next\"", 9_000);
    for (policy, cgroup, says, count) in [inner, ("q", "a", outer, count)] {
        let _ = writeln!(
            file,
            "[policy.{policy}]\nmatch.cgroup = \"{cgroup}\"\nuse = \"wlan0\"\n{says}"
        );
        for port in 1..=count {
            let _ = writeln!(
                file,
                "[[policy.{policy}.rule]]\nports={port}\notherwise=\"block\""
            );
        }
    }
    file
}

#[test]
fn rules_that_are_too_many_together_are_closed_if_strict_and_left_out_if_not() {
    for (outer, closed) in [("strict = true", true), ("otherwise = \"pass\"", false)] {
        let engine = engine_with(&too_many(outer, 9_000));
        let warnings = engine.warnings();
        let told = warnings.iter().find_map(|warning| match warning {
            Warning::Unruled { policy, closed, .. } => Some((policy.as_str(), *closed)),
            _ => None,
        });
        assert_eq!(told, Some(("p", closed)), "{warnings:?}");
        let PolicyEntry { choice, rules, .. } = entry(&engine, 11);
        assert_eq!(rules, 0);
        let choice = engine.plan().choices[&ChoiceId(choice)];
        let wanted = if closed {
            verdict::BLOCK
        } else {
            verdict::PASS
        };
        assert_eq!(choice.verdict, wanted);
        let says = engine.effective(CgroupId(11)).unwrap().decision.reason;
        assert!(
            says.contains("its rules cannot be in force: they are 16385 rules"),
            "{says}"
        );
        // Each by itself is in force.
        assert_ne!(entry(&engine, 10).rules, 0);
        // And both, once they are not too many.
        let mut engine = engine;
        apply(
            &mut engine,
            Event::Config(Box::new(config(&too_many(outer, 1)))),
        );
        assert_ne!(entry(&engine, 11).rules, 0);
        assert!(engine.warnings().is_empty());
    }
}

#[test]
fn a_strict_policy_that_cannot_be_enforced_has_no_rules_either() {
    let mut engine = engine();
    let policy = with_rules(
        strict(policy("p", "a", &["wlan0"])),
        vec![rule("10.0.0.0/8", &["lte0"])],
    );
    apply(&mut engine, Event::SetPolicy(policy));
    assert_ne!(entry(&engine, 10).rules, 0);
    let refused = Event::Outcome(steer_core::plan::Object::Guard, Err("no".to_owned()));
    apply(&mut engine, refused);
    assert_eq!(entry(&engine, 10).rules, 0);
    assert!(engine.plan().rulesets.is_empty());
    let asked = engine.decide_flow(&[name("p")], &Flow::to(ip("10.0.0.1")));
    assert_eq!(asked.decision.verdict, Verdict::Block);
}

#[test]
fn a_policy_whose_rules_alone_act_acts() {
    let none = Policy {
        otherwise: Otherwise::Pass,
        ..policy("p", "a", &[])
    };
    assert!(!none.acts());
    assert!(with_rules(none.clone(), vec![rule("10.0.0.0/8", &["lte0"])]).acts());
    let block = Rule {
        otherwise: Some(Otherwise::Block),
        ..Rule::default()
    };
    assert!(with_rules(none.clone(), vec![block]).acts());
    let pass = Rule {
        otherwise: Some(Otherwise::Pass),
        ..Rule::default()
    };
    assert!(!with_rules(none.clone(), vec![pass]).acts());
    let closed = strict(none).closed();
    assert!(closed.is_closed());
    assert!(!with_rules(closed.clone(), vec![rule("10.0.0.0/8", &["lte0"])]).is_closed());
    assert_eq!(
        with_rules(closed, vec![rule("10.0.0.0/8", &["lte0"])])
            .closed()
            .rules,
        Rules::default()
    );
}
