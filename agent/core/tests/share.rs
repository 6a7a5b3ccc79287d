//! Flows that domains share: their slots, and who has a part.
#![expect(clippy::unwrap_used, reason = "a failure is a failed test")]

mod support;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;

use proptest::prelude::*;
use steer_common::{MAX_SHARES, ShareEntry, share, share_slot, verdict};
use steer_core::engine::{Engine, Warning, plan};
use steer_core::ids::{CgroupId, ChoiceId, DomainIndex};
use steer_core::plan::Family;
use steer_core::policy::Share;
use steer_core::select::Decision;
use steer_core::share::{Member, slots};
use steer_core::state::Event;
use steer_core::steps::{Scope, Step, steps};
use support::{add_uplink, apply, carrier, config, engine_with, name, two_uplinks};

fn members(weights: &[u16]) -> Vec<Member> {
    let weights = weights.iter().zip(1..);
    weights
        .map(|(weight, index)| Member {
            domain: name(&format!("domain{index}")),
            weight: *weight,
            index: DomainIndex(index),
            families: Family::BOTH.into(),
        })
        .collect()
}

fn parts(slots: &ShareEntry) -> BTreeMap<u8, usize> {
    let mut parts = BTreeMap::new();
    for domain in slots.ipv4 {
        *parts.entry(domain).or_default() += 1;
    }
    parts
}

proptest! {
    #[test]
    fn who_goes_leaves_its_slots_to_others_and_who_comes_takes_some_of_each(
        weights in proptest::collection::vec(1u16..100, 2..9),
        gone in any::<prop::sample::Index>(),
    ) {
        let all = members(&weights);
        let gone = gone.index(all.len());
        let mut rest = all.clone();
        let member = rest.remove(gone);
        let (with, without) = (slots(&all), slots(&rest));
        let own = u8::try_from(member.index.0).unwrap();
        for (with, without) in with.ipv4.iter().zip(without.ipv4) {
            prop_assert!(without != own && without != 0);
            prop_assert!(*with == own || *with == without);
        }
        // In whatever order, and under whatever number: the names decide.
        rest.reverse();
        prop_assert_eq!(slots(&rest), without);
        for member in &mut rest {
            member.index.0 += 100;
        }
        let moved = slots(&rest).ipv4.map(|index| index - 100);
        prop_assert_eq!(moved, without.ipv4);
    }

    #[test]
    fn parts_are_as_the_weights_say(weights in proptest::collection::vec(1u16..20, 1..6)) {
        let parts = parts(&slots(&members(&weights)));
        let all: u16 = weights.iter().sum();
        for (weight, index) in weights.iter().zip(1u8..) {
            let wanted = f64::from(*weight) / f64::from(all);
            let part = f64::from(u32::try_from(parts.get(&index).copied().unwrap_or(0)).unwrap());
            let part = part / 1024.0;
            // Four times the deviation of as many throws.
            let bound = 4.0 * (wanted * (1.0 - wanted) / 1024.0).sqrt() + 0.002;
            prop_assert!((part - wanted).abs() <= bound, "{part} of {wanted}");
        }
    }

    #[test]
    fn a_weight_that_grows_takes_slots_and_gives_none(
        weights in proptest::collection::vec(1u16..20, 2..6), more in 1u16..20,
    ) {
        let before = slots(&members(&weights));
        let mut weights = weights;
        weights[0] += more;
        let after = slots(&members(&weights));
        for (before, after) in before.ipv4.iter().zip(after.ipv4) {
            prop_assert!(*before == after || after == 1);
        }
    }
}

#[test]
fn slots_are_the_same_in_every_version() {
    // A change moves flows of hosts that upgrade.
    let slots = slots(&members(&[2, 1]));
    let first = [1, 1, 2, 1, 1, 2, 1, 1, 1, 2, 2, 2, 1, 1, 1, 1];
    assert_eq!(slots.ipv4[..16], first);
}

#[test]
fn flows_of_a_family_are_shared_by_those_that_have_them() {
    let mut some = members(&[1, 1, 1]);
    some[1].families = [Family::Ipv4].into();
    let slots_of = |family: &[u8; ShareEntry::SLOTS]| BTreeSet::from(*family);
    let both = slots(&some);
    assert_eq!(slots_of(&both.ipv4), [1, 2, 3].into());
    assert_eq!(slots_of(&both.ipv6), [1, 3].into());
    // Where nobody has them, everybody refuses them.
    for member in &mut some {
        member.families.remove(&Family::Ipv6);
    }
    assert_eq!(slots(&some).ipv6, slots(&some).ipv4);
}

#[test]
fn destinations_are_spread_evenly_over_the_slots() {
    let mut counts = [0_u32; ShareEntry::SLOTS];
    for host in 0..64 * 1024_u32 {
        let address = std::net::Ipv4Addr::from_bits(0x0a00_0000 | host).to_ipv6_mapped();
        let words = address.octets();
        let word = |at: usize| u32::from_ne_bytes(words[at * 4..][..4].try_into().unwrap());
        counts[share_slot(&[word(0), word(1), word(2), word(3)], 0)] += 1;
    }
    // 64 each; Poisson's deviation is 8.
    assert!(
        counts.iter().all(|count| (20..110).contains(count)),
        "{counts:?}"
    );
}

const FILE: &str = "\
[group.both]
domains = [\"wlan0\", \"lte0\", \"eth0\"]
[domain.wlan0]
weight = 2
[domain.lte0]
[domain.eth0]
weight = 0
[domain.spare]
match.interface = \"spare0\"
[policy.p]
match.cgroup = \"a\"
use = [\"both\", \"spare\"]
share = \"flow\"
";

/// wlan0 (2), lte0 (3), eth0 (4), spare0 (5).
fn engine() -> Engine {
    let mut engine = engine_with(FILE);
    let mut network = two_uplinks();
    add_uplink(&mut network, 4, "eth0");
    add_uplink(&mut network, 5, "spare0");
    let dump = steer_core::network::NetworkChange::Dump(network);
    apply(&mut engine, Event::Network(dump));
    engine
}

fn lose(engine: &mut Engine, interface: u32) {
    let lost = carrier(&engine.state().network, interface, false);
    apply(engine, lost);
}

fn decision(engine: &Engine) -> Decision {
    engine.decision("p").unwrap()
}

fn sharing(engine: &Engine) -> (Option<Share>, Vec<(String, u16)>) {
    let decision = decision(engine);
    let members = decision.members.into_iter();
    (
        decision.share,
        members
            .map(|(name, weight)| (name.to_string(), weight))
            .collect(),
    )
}

fn choice(engine: &Engine) -> (ChoiceId, steer_common::ChoiceEntry) {
    let cgroup = engine.plan().cgroups[&CgroupId(10)];
    let policy = engine.plan().policies[&steer_core::ids::PolicyId(cgroup.policy)];
    let id = ChoiceId(policy.choice);
    (id, engine.plan().choices[&id])
}

fn index(engine: &Engine, domain: &str) -> DomainIndex {
    engine.state().memory.indices[&name(domain)]
}

#[test]
fn members_of_the_first_group_that_fits_share_by_their_weights() {
    let engine = engine();
    let says = decision(&engine);
    assert_eq!(
        says.reason,
        "flows are shared by wlan0 (weight 2) and lte0 (weight 1)"
    );
    assert_eq!(says.domain(), Some(&name("wlan0")));
    let taken: Vec<(&str, bool)> = says
        .candidates
        .iter()
        .map(|one| (one.domain.as_str(), one.taken))
        .collect();
    assert_eq!(
        taken,
        [
            ("wlan0", true),
            ("lte0", true),
            ("eth0", false),
            ("spare", false)
        ]
    );
    let (id, entry) = choice(&engine);
    assert_eq!(entry.share, share::FLOW);
    assert_eq!(entry.domain, u32::from(index(&engine, "wlan0").0));
    let parts = parts(&engine.plan().shares[&id]);
    let [wlan, lte] =
        ["wlan0", "lte0"].map(|domain| parts[&u8::try_from(index(&engine, domain).0).unwrap()]);
    assert_eq!(wlan + lte, ShareEntry::SLOTS);
    assert!((600..770).contains(&wlan), "{wlan}");
}

#[test]
fn one_that_is_left_has_all_and_weight_zero_comes_last_in_the_group() {
    let mut engine = engine();
    lose(&mut engine, 3);
    assert_eq!(sharing(&engine), (None, vec![]));
    assert_eq!(decision(&engine).domain(), Some(&name("wlan0")));
    let (id, entry) = choice(&engine);
    assert_eq!((entry.verdict, entry.share), (verdict::STEER, share::NONE));
    assert!(!engine.plan().shares.contains_key(&id));
    lose(&mut engine, 2);
    assert_eq!(decision(&engine).domain(), Some(&name("eth0")));
    lose(&mut engine, 4);
    // The next entry of `use`.
    assert_eq!(decision(&engine).domain(), Some(&name("spare")));
}

#[test]
fn a_preferred_domain_has_all_flows_while_it_fits() {
    let mut engine = engine();
    let domain = Some(name("lte0"));
    apply(
        &mut engine,
        Event::Prefer {
            policy: name("p"),
            domain,
        },
    );
    assert_eq!(sharing(&engine), (None, vec![]));
    assert_eq!(decision(&engine).domain(), Some(&name("lte0")));
    lose(&mut engine, 3);
    assert_eq!(decision(&engine).domain(), Some(&name("wlan0")));
}

#[test]
fn a_member_that_goes_changes_slots_before_the_choice_and_slots_go_after_it() {
    let mut engine = engine();
    let of = |file: &str| Event::Config(Box::new(config(file)));
    // Three members, so that two are left.
    apply(&mut engine, of(&FILE.replace("weight = 0", "weight = 1")));
    let is = engine.plan().clone();
    lose(&mut engine, 2);
    let (id, _) = choice(&engine);
    let touches = |steps: &steer_core::steps::Steps| -> Vec<String> {
        let steps = steps.iter().filter_map(|step| match step {
            Step::SetShare(one, _) if *one == id => Some("slots"),
            Step::ClearShare(one) if *one == id => Some("no slots"),
            Step::SetChoice(one, _) if *one == id => Some("choice"),
            Step::SetDomain(..) => Some("domain"),
            _ => None,
        });
        steps.map(str::to_owned).collect()
    };
    let way = steps(&is, engine.plan(), Scope::All);
    assert_eq!(touches(&way), ["slots", "choice", "domain"]);
    let is = engine.plan().clone();
    lose(&mut engine, 3);
    let way = steps(&is, engine.plan(), Scope::All);
    assert_eq!(touches(&way), ["choice", "no slots", "domain"]);
}

/// These policies, each with a group of its own.
fn many(which: std::ops::Range<u32>) -> String {
    let mut file = String::new();
    for at in which {
        let _ = writeln!(
            file,
            "[group.g{at}]\ndomains = [\"wlan0\", \"lte0\"]\n[policy.p{at}]\nmatch.cgroup = \"a/{at}\"\nuse = \
             \"g{at}\"\nshare = \"flow\""
        );
    }
    file
}

#[test]
fn choices_for_whose_slots_there_is_no_room_have_one_domain_and_a_warning_says_so() {
    let mut engine = engine_with(&many(0..MAX_SHARES + 3));
    for at in 0..MAX_SHARES + 3 {
        let made = support::made(100 + u64::from(at), 10, &at.to_string());
        engine.apply(made).unwrap();
    }
    engine.settle();
    let count = |engine: &Engine| {
        let choices = engine.plan().choices.values();
        let alone = choices.filter(|choice| choice.share == share::NONE).count();
        (engine.plan().shares.len(), alone)
    };
    assert_eq!(count(&engine), (MAX_SHARES as usize, 3));
    assert_eq!(engine.plan(), &plan(engine.state()));
    let told = |engine: &Engine| {
        let warnings = engine.warnings();
        warnings.contains(&Warning::NoShare(3))
    };
    assert!(told(&engine));
    // Where room is made, others take it.
    let changes = apply(
        &mut engine,
        Event::Config(Box::new(config(&many(3..MAX_SHARES + 3)))),
    );
    assert_eq!(count(&engine), (MAX_SHARES as usize, 0));
    assert_eq!(engine.plan(), &plan(engine.state()));
    assert!(!told(&engine) && !changes.shares.is_empty());
}

#[test]
fn the_next_agent_gives_the_same_slots() {
    let engine = engine();
    let mut next = Engine::new(engine.state().clone());
    next.settle();
    assert_eq!(next.plan().shares, engine.plan().shares);
    assert!(!next.plan().shares.is_empty());
}
