//! A hundred thousand policies: counted in what is touched and in the numbers given out. Times are
//! `cargo xtask bench`'s to measure; the one limit here is an order of magnitude above the target.

mod support;

use std::collections::BTreeSet;
use std::time::Instant;

use steer_core::cgroups::{CgroupChange, CgroupTree};
use steer_core::engine::{Engine, plan};
use steer_core::ids::CgroupId;
use steer_core::policy::Policy;
use steer_core::state::{Event, State};
use support::{apply, carrier, name, policy, removed, strict, two_uplinks};

/// A hundred thousand where the compiler optimizes; enough to see growth where it does not.
const MANY: u64 = if cfg!(debug_assertions) {
    10_000
} else {
    100_000
};

fn many(kind: fn(Policy) -> Policy) -> Engine {
    let mut tree = CgroupTree::new(CgroupId(1));
    tree.made(CgroupId(2), CgroupId(1), "app.slice");
    let mut state = State::new(CgroupId(1));
    state.network = two_uplinks();
    for n in 0..MANY {
        tree.made(CgroupId(10 + n), CgroupId(2), &format!("app-{n}.scope"));
        let uses: &[&str] = if n % 2 == 0 {
            &["wlan0", "lte0"]
        } else {
            &["lte0"]
        };
        let policy = kind(policy(
            &format!("p{n}"),
            &format!("app.slice/app-{n}.scope"),
            uses,
        ));
        state.api_policies.insert(name(&format!("p{n}")), policy);
    }
    state.cgroups = tree;
    Engine::new(state)
}

#[test]
fn a_hundred_thousand_policies_share_two_choices() {
    let begin = Instant::now();
    let mut engine = many(strict);
    engine.settle();
    let loaded = begin.elapsed();
    // And the number that says that one is strict.
    let policies = usize::try_from(MANY).unwrap() + 1;
    assert_eq!(engine.plan().policies.len(), policies);
    assert_eq!(engine.plan().choices.len(), 2);

    let network = engine.state().network.clone();
    let begin = Instant::now();
    let changes = apply(&mut engine, carrier(&network, 2, false));
    let lost = begin.elapsed();
    assert_eq!(changes.choices.len(), 1);
    assert!(changes.policies.is_empty() && changes.cgroups.is_empty());

    let begin = Instant::now();
    let other = policy("p7", "app.slice/app-7.scope", &["wlan0"]);
    let changes = apply(&mut engine, Event::SetPolicy(other));
    let set = begin.elapsed();
    assert_eq!(changes.cgroups, BTreeSet::new());
    assert_eq!((changes.policies.len(), changes.choices.len()), (1, 1));

    let begin = Instant::now();
    let changes = apply(&mut engine, removed(11));
    let gone = begin.elapsed();
    assert_eq!(changes.cgroups, BTreeSet::from([CgroupId(11)]));
    assert_eq!(engine.plan(), &plan(engine.state()));
    println!("load {loaded:?}, carrier lost {lost:?}, policy set {set:?}, cgroup gone {gone:?}");
}

#[test]
fn policies_that_come_one_by_one_touch_only_themselves() {
    let mut engine = many(|policy| policy);
    let policies: Vec<Policy> = engine.state().policies().cloned().collect();
    let mut state = engine.state().clone();
    state.api_policies.clear();
    engine = Engine::new(state);
    engine.settle();
    let begin = Instant::now();
    let mut touched = 0;
    for policy in policies {
        let changes = apply(&mut engine, Event::SetPolicy(policy));
        touched += changes.cgroups.len() + changes.policies.len() + changes.choices.len();
    }
    println!("one by one {:?}", begin.elapsed());
    // The first policy's choice and number.
    let others = 2;
    assert_eq!(touched, 2 * usize::try_from(MANY).unwrap() + others);
    let made = CgroupChange::Made {
        id: CgroupId(5),
        parent: CgroupId(2),
        name: "new".to_owned(),
    };
    assert!(apply(&mut engine, Event::Cgroups(made)).is_empty());
}
