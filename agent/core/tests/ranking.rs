//! Why the policy in force is that one: each reason is the one that counted.

mod support;

use std::collections::BTreeMap;

use proptest::prelude::*;
use steer_core::engine::Engine;
use steer_core::engine::ranking::{By, Precedence, Ranking, Standing};
use steer_core::explain::{Reach, words};
use steer_core::ids::CgroupId;
use steer_core::name::Name;
use steer_core::pattern::UnitName;
use steer_core::policy::{Match, Origin, Otherwise, Policy};
use steer_core::state::Event;
use support::strategies::{events, start};
use support::{apply, carrier, engine_of, engine_with, name, policy, strict};

fn standings(ranking: &Ranking) -> Vec<(&str, &str, Standing)> {
    let contenders = ranking.contenders.iter();
    contenders
        .map(|c| (c.policy.as_str(), c.cgroup.as_str(), c.standing.clone()))
        .collect()
}

fn in_force(by: By, other: &str) -> Standing {
    let other = name(other);
    Standing::InForce(Some(Precedence { by, other }))
}

fn behind(by: By, other: &str) -> Standing {
    let other = name(other);
    Standing::Behind(Precedence { by, other })
}

/// Why the policies stand as they do at a cgroup, in words.
fn reasons(engine: &Engine, path: &str) -> Vec<String> {
    let ranking = engine.ranking(path);
    let contenders = ranking.contenders.iter();
    contenders.map(|c| words::standing(engine, c)).collect()
}

#[test]
fn the_deeper_policy_is_in_force_and_the_other_says_why_not() {
    let engine = engine_of(&[
        policy("outer", "a", &["wlan0"]),
        policy("inner", "a/b", &["lte0"]),
    ]);
    assert_eq!(
        standings(&engine.ranking("a/b")),
        [
            ("inner", "a/b", in_force(By::Depth, "outer")),
            ("outer", "a", behind(By::Depth, "inner")),
        ]
    );
    assert_eq!(
        reasons(&engine, "a/b"),
        ["it matches deeper than `outer`", "`inner` matches deeper"]
    );
    assert_eq!(
        standings(&engine.ranking("a")),
        [("outer", "a", Standing::InForce(None))]
    );
    assert_eq!(reasons(&engine, "a"), ["no other matches"]);
    assert_eq!(engine.ranking("c").contenders, []);
    assert_eq!(engine.ranking("c").decision, None);
}

#[test]
fn at_one_cgroup_each_step_of_the_order_is_told() {
    let admin = Policy {
        origin: Origin::Admin,
        ..policy("admin", "a", &["wlan0"])
    };
    let app = Policy {
        origin: Origin::App,
        ..policy("app", "a", &["wlan0"])
    };
    let user = policy("user", "a", &["wlan0"]);
    let plain = Policy {
        owner: Some(1000),
        ..policy("plain", "a", &["wlan0"])
    };
    let high = Policy {
        priority: 5,
        ..policy("high", "a", &["wlan0"])
    };
    let glob = policy("glob", "*", &["wlan0"]);

    let engine = engine_of(&[app, admin, user.clone()]);
    assert_eq!(
        standings(&engine.ranking("a")),
        [
            ("admin", "a", in_force(By::Origin, "user")),
            ("user", "a", behind(By::Origin, "admin")),
            ("app", "a", behind(By::Origin, "admin")),
        ]
    );
    assert_eq!(
        reasons(&engine, "a")[..2],
        [
            "`user` matches the same cgroup, and policies from the files go before those from a user",
            "`admin` matches the same cgroup, and policies from the files go before those from a user"
        ]
    );

    let engine = engine_of(&[plain, user.clone()]);
    assert_eq!(
        standings(&engine.ranking("a")),
        [
            ("user", "a", in_force(By::Owner, "plain")),
            ("plain", "a", behind(By::Owner, "user")),
        ]
    );
    assert!(reasons(&engine, "a")[1].ends_with("not a plain user's"));

    let engine = engine_of(&[high, user.clone()]);
    assert_eq!(
        standings(&engine.ranking("a")),
        [
            ("high", "a", in_force(By::Priority, "user")),
            ("user", "a", behind(By::Priority, "high")),
        ]
    );
    assert_eq!(
        reasons(&engine, "a"),
        [
            "its priority 5 is higher than 0 of `user`",
            "its priority 0 is lower than 5 of `high`"
        ]
    );

    let engine = engine_of(&[glob, user]);
    assert_eq!(
        standings(&engine.ranking("a")),
        [
            ("user", "a", in_force(By::Exactness, "glob")),
            ("glob", "a", behind(By::Exactness, "user")),
        ]
    );
    assert_eq!(
        reasons(&engine, "a"),
        [
            "it names the cgroup, where `glob` matches by pattern or unit",
            "it matches by pattern or unit, where `user` names the cgroup"
        ]
    );
}

#[test]
fn equal_policies_and_those_shut_out_are_told() {
    let engine = engine_of(&[
        policy("one", "*", &["wlan0"]),
        policy("two", "a*", &["lte0"]),
    ]);
    assert_eq!(
        standings(&engine.ranking("a")),
        [
            ("one", "a", Standing::InForce(None)),
            ("two", "a", Standing::Equal(name("one"))),
        ]
    );
    assert!(reasons(&engine, "a")[1].starts_with("refused here: "));

    let lax = policy("lax", "a/*", &["lte0"]);
    let admin = Policy {
        origin: Origin::Admin,
        ..policy("admin", "a", &["wlan0"])
    };
    let engine = engine_of(&[strict(admin), lax]);
    assert_eq!(
        standings(&engine.ranking("a/b")),
        [
            ("lax", "a/b", Standing::ShutOut(name("admin"))),
            ("admin", "a", Standing::InForce(None)),
        ]
    );
    assert_eq!(
        reasons(&engine, "a/b")[0],
        "shut out: `admin` is strict, and policies from the files go before those from a user"
    );
}

#[test]
fn the_default_policy_and_the_chain_behind_the_first_are_told() {
    let mut engine = engine_with("[policy.default]\nuse = [\"lte0\"]\n");
    assert_eq!(
        reasons(&engine, "c"),
        ["the default, since no other matches"]
    );
    let next = Policy {
        otherwise: Otherwise::Next,
        ..policy("p", "a", &["wlan0"])
    };
    apply(&mut engine, Event::SetPolicy(next));
    let ranking = engine.ranking("a");
    assert_eq!(
        standings(&ranking),
        [
            ("p", "a", in_force(By::Default, "default")),
            ("default", "", behind(By::Default, "p")),
        ]
    );
    assert_eq!(ranking.chain, [name("p"), name("default")]);
    let down = carrier(&engine.state().network, 2, false);
    apply(&mut engine, down);
    let decision = engine.ranking("a").decision.unwrap();
    assert_eq!(decision.domain(), Some(&name("lte0")));
    assert_eq!(decision.candidates.len(), 2);
}

#[test]
fn a_policy_that_matches_at_two_levels_is_not_behind_another() {
    let engine = engine_of(&[policy("p", "**", &["wlan0"])]);
    assert_eq!(
        standings(&engine.ranking("a/b")),
        [
            ("p", "a/b", Standing::InForce(None)),
            ("p", "a", behind(By::Depth, "p")),
        ]
    );
    assert_eq!(reasons(&engine, "a/b")[1], "the same policy matches deeper");
}

#[test]
fn what_of_a_policy_matches_is_told() {
    let mut p = policy("p", "a/*", &["wlan0"]);
    p.matches.push(Match::CgroupId(CgroupId(11)));
    p.matches
        .push(Match::Unit(UnitName::new("x.service").unwrap()));
    let engine = engine_of(&[p.clone()]);
    assert_eq!(words::matched(&engine, &p, "a/b"), ["cgroup a/*", "id 11"]);
    assert_eq!(
        words::matched(&engine, &p, "c/x.service"),
        ["unit x.service"]
    );
}

/// Whether `standing` is true of two policies, by what they say themselves.
fn is_true(
    engine: &Engine,
    policy: &Policy,
    at: &str,
    standing: &Standing,
    ranking: &Ranking,
) -> bool {
    let find = |name: &Name| {
        let policy = engine.state().policy(name.as_str());
        policy.expect("who is named is a policy")
    };
    let depth = |path: &str| {
        if path.is_empty() {
            0
        } else {
            path.split('/').count()
        }
    };
    let exact = |policy: &Policy, at: &str| {
        let id = engine.state().cgroups.find(at);
        policy.matches.iter().any(|m| match m {
            Match::Cgroup(pattern) => pattern.exact() == Some(at),
            Match::CgroupId(wanted) => Some(*wanted) == id,
            Match::Unit(_) => false,
        })
    };
    let winner = || {
        ranking
            .contenders
            .iter()
            .find(|c| matches!(c.standing, Standing::InForce(_)))
    };
    let before = |by: By, first: (&Policy, &str), second: (&Policy, &str)| match by {
        By::Default => second.0.origin == Origin::Default,
        By::Depth => depth(first.1) > depth(second.1),
        By::Origin => first.1 == second.1 && first.0.origin > second.0.origin,
        By::Owner => {
            first.1 == second.1
                && first.0.owner.is_none()
                && second.0.owner.is_some()
                && first.0.origin == second.0.origin
        }
        By::Priority => {
            first.1 == second.1
                && first.0.priority > second.0.priority
                && first.0.rank() == second.0.rank()
        }
        By::Exactness => {
            first.1 == second.1
                && (first.0.rank(), first.0.priority) == (second.0.rank(), second.0.priority)
                && exact(first.0, first.1)
                && !exact(second.0, second.1)
        }
    };
    match standing {
        Standing::InForce(None) => true,
        Standing::InForce(Some(Precedence { by, other })) => ranking
            .contenders
            .iter()
            .any(|c| c.policy == *other && before(*by, (policy, at), (find(other), &c.cgroup))),
        Standing::Behind(Precedence { by, other }) => winner().is_some_and(|winner| {
            winner.policy == *other && before(*by, (find(other), &winner.cgroup), (policy, at))
        }),
        Standing::Equal(other) => {
            let other = find(other);
            (other.rank(), other.priority, exact(other, at))
                == (policy.rank(), policy.priority, exact(policy, at))
                && ((other.is_closed(), other.strict) >= (policy.is_closed(), policy.strict))
        }
        Standing::ShutOut(by) => {
            let other = find(by);
            other.strict
                && other.rank() > policy.rank()
                && ranking
                    .contenders
                    .iter()
                    .any(|c| c.policy == *by && depth(&c.cgroup) <= depth(at))
        }
    }
}

proptest! {
    #[test]
    fn what_is_explained_is_what_is_decided(events in proptest::collection::vec(events(), 1..40)) {
        let mut engine = start();
        for event in events {
            let _rejected = engine.apply(event);
        }
        engine.settle();
        let state = engine.state();
        let managed: Vec<CgroupId> = state.cgroups.subtree(state.cgroup_root).collect();
        for id in managed {
            let path = state.cgroups.path(id).unwrap();
            let explanation = engine.explain(&path);
            prop_assert_eq!(explanation.id, Some(id));
            let effective = engine.effective(id);
            let ranking = &explanation.ranking;
            let chain = effective.as_ref().map(|e| e.chain.clone()).unwrap_or_default();
            prop_assert_eq!(&chain, &ranking.chain, "{} in {:?}", path, ranking);
            prop_assert_eq!(effective.map(|e| e.decision), ranking.decision.clone());
            let winner = ranking.contenders.iter().find(|c| matches!(c.standing, Standing::InForce(_)));
            prop_assert_eq!(winner.map(|c| &c.policy), chain.first());
            // Each reason is true of the policies.
            for contender in &ranking.contenders {
                let policy = state.policy(contender.policy.as_str()).unwrap();
                let reason = words::standing(&engine, contender);
                prop_assert!(!reason.is_empty());
                prop_assert!(
                    is_true(&engine, policy, &contender.cgroup, &contender.standing, ranking),
                    "{}: {:?} in {:?}", contender.policy, contender.standing, ranking
                );
            }
            // Nobody who matches is left out, down from the last exempt cgroup.
            if !matches!(explanation.reach, Reach::Managed) {
                continue;
            }
            let mut told = BTreeMap::<(String, String), usize>::new();
            for contender in &ranking.contenders {
                *told.entry((contender.policy.to_string(), contender.cgroup.clone())).or_default() += 1;
            }
            prop_assert!(told.values().all(|count| *count == 1));
            for ancestor in state.cgroups.ancestors(id) {
                if state.exempt.contains(&ancestor) {
                    break;
                }
                let here = state.cgroups.path(ancestor).unwrap();
                for policy in state.policies() {
                    let matches = !here.is_empty() && !words::matched(&engine, policy, &here).is_empty();
                    let told = told.contains_key(&(policy.name.to_string(), here.clone()));
                    prop_assert!(matches == told || here.is_empty(), "{} at {}", policy.name, here);
                }
            }
        }
    }
}
