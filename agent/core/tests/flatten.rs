//! Chains of policies with rules: one list of rules says what the policies say one after the other.
#![expect(clippy::unwrap_used, reason = "a failure is a failed test")]

mod support;

use std::collections::{BTreeMap, BTreeSet};

use proptest::collection::{btree_set, vec};
use proptest::prelude::*;
use proptest::sample::select;
use steer_core::name::Name;
use steer_core::policy::{Otherwise, Policy, Share};
use steer_core::rules::compile::{TooLarge, compile};
use steer_core::rules::flatten::{Link, RuleAt, ask, flatten};
use steer_core::rules::{Dscp, Flow, Ports, Protocol, Rule};
use steer_core::select::{Inputs, Stage};
use support::{ip, name, policy};

const DOMAINS: [&str; 4] = ["d0", "d1", "d2", "d3"];

fn nets() -> impl Strategy<Value = Vec<ipnet::IpNet>> {
    let nets = select(vec![
        "10.0.0.0/8",
        "10.1.0.0/16",
        "10.1.1.0/24",
        "192.0.2.0/24",
        "2001:db8::/32",
        "2001:db8:1::/48",
    ]);
    vec(nets.prop_map(|net| net.parse().unwrap()), 0..3)
}

fn ports() -> impl Strategy<Value = Vec<Ports>> {
    let ports = (1u16..6, 0u16..4);
    vec(
        ports.prop_map(|(first, more)| Ports::new(first, first + more).unwrap()),
        0..3,
    )
}

fn otherwise() -> impl Strategy<Value = Otherwise> {
    select(vec![
        Otherwise::Block,
        Otherwise::Pass,
        Otherwise::Next,
        Otherwise::Next,
    ])
}

fn uses() -> impl Strategy<Value = Vec<Name>> {
    vec(select(DOMAINS.map(name).to_vec()), 0..3)
}

/// A list that mostly is not there, so that flows fit.
fn seldom<T: Clone + std::fmt::Debug>(
    list: impl Strategy<Value = Vec<T>>,
) -> impl Strategy<Value = Vec<T>> {
    prop_oneof![3 => Just(Vec::new()), 1 => list]
}

fn rules() -> impl Strategy<Value = Rule> {
    (
        seldom(nets()),
        seldom(ports()),
        nets(),
        seldom(ports()),
        seldom(vec(select(vec![6, 17]).prop_map(Protocol), 0..3)),
        seldom(vec(
            (0u8..3).prop_map(|value| Dscp::new(value).unwrap()),
            0..2,
        )),
        uses(),
        proptest::option::of(otherwise()),
    )
        .prop_map(
            |(source, source_ports, destination, ports, protocol, dscp, use_, otherwise)| {
                let nothing = use_.is_empty() && otherwise.is_none();
                Rule {
                    source,
                    source_ports,
                    destination,
                    ports,
                    protocol,
                    dscp,
                    use_,
                    otherwise: if nothing {
                        Some(Otherwise::Next)
                    } else {
                        otherwise
                    },
                }
            },
        )
}

fn chains() -> impl Strategy<Value = Vec<Policy>> {
    let one = (vec(rules(), 0..4), uses(), otherwise());
    vec(one, 1..4).prop_map(|policies| {
        let policies = policies.into_iter().enumerate();
        policies
            .map(|(at, (rules, use_, otherwise))| Policy {
                use_,
                otherwise,
                rules: rules.into(),
                share: (at == 1).then_some(Share::Flow),
                ..policy(&format!("p{at}"), "a", &[])
            })
            .collect()
    })
}

fn flows() -> impl Strategy<Value = Flow> {
    let addresses = || {
        select(vec![
            "10.1.1.1",
            "10.1.9.9",
            "10.9.9.9",
            "192.0.2.1",
            "203.0.113.1",
            "2001:db8:1::1",
        ])
        .prop_map(ip)
    };
    let source = proptest::option::of(addresses());
    (
        source,
        addresses(),
        select(vec![6, 17]),
        0u16..9,
        0u16..9,
        0u8..3,
    )
        .prop_map(
            |(source, destination, protocol, source_port, port, dscp)| Flow {
                source: source.filter(|source| source.is_ipv4() == destination.is_ipv4()),
                destination,
                protocol,
                source_port,
                port,
                dscp,
            },
        )
}

/// What becomes of a flow: a domain, or not.
#[derive(Clone, Debug, PartialEq)]
enum Outcome {
    On(Name),
    Blocked,
    Passed,
}

/// What the policies say one after the other, in the words of the page for users.
fn said(chain: &[Policy], flow: &Flow, up: &BTreeSet<Name>) -> Outcome {
    let Some((policy, behind)) = chain.split_first() else {
        return Outcome::Passed;
    };
    let first_up = |use_: &[Name]| use_.iter().find(|name| up.contains(*name)).cloned();
    let by_policy = |otherwise| match otherwise {
        Otherwise::Block => Outcome::Blocked,
        Otherwise::Pass => Outcome::Passed,
        Otherwise::Next => said(behind, flow, up),
    };
    let own = || match first_up(&policy.use_) {
        Some(domain) => Outcome::On(domain),
        None => by_policy(policy.otherwise),
    };
    let Some(rule) = policy.rules.iter().find(|rule| rule.fits(flow)) else {
        return own();
    };
    match (first_up(&rule.use_), rule.otherwise) {
        (Some(domain), _) => Outcome::On(domain),
        (None, Some(Otherwise::Block)) => Outcome::Blocked,
        (None, Some(Otherwise::Pass)) => Outcome::Passed,
        (None, Some(Otherwise::Next)) => own(),
        (None, None) => by_policy(policy.otherwise),
    }
}

/// What selection does with inputs, where nothing but what is up matters.
fn chosen(inputs: &[Stage], up: &BTreeSet<Name>) -> Outcome {
    for stage in inputs {
        if let Some(domain) = stage.use_.iter().find(|name| up.contains(*name)) {
            return Outcome::On(domain.clone());
        }
        match stage.otherwise {
            Otherwise::Block => return Outcome::Blocked,
            Otherwise::Pass => return Outcome::Passed,
            Otherwise::Next => {}
        }
    }
    Outcome::Passed
}

fn links(chain: &[Policy]) -> Vec<Link<'_>> {
    let links = chain.iter();
    links
        .map(|policy| Link {
            policy,
            preferred: None,
        })
        .collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    #[test]
    fn one_list_says_what_the_chain_says(
        chain in chains(),
        flows in vec(flows(), 1..20),
        up in btree_set(select(DOMAINS.map(name).to_vec()), 0..4),
    ) {
        let links = links(&chain);
        let flat = flatten(&links).unwrap();
        let mut numbers: BTreeMap<&Inputs, u32> = BTreeMap::new();
        let mut all: Vec<&Inputs> = Vec::new();
        for inputs in flat.rules.iter().map(|rule| &rule.inputs).chain([&flat.otherwise]) {
            numbers.entry(inputs).or_insert_with(|| {
                all.push(inputs);
                u32::try_from(all.len() - 1).unwrap()
            });
        }
        let rules: Vec<(&Rule, u32)> = flat
            .rules
            .iter()
            .map(|rule| (&*rule.condition, numbers[&rule.inputs]))
            .collect();
        let image = compile(&rules, numbers[&flat.otherwise]).unwrap();
        for flow in &flows {
            let first = flat.rules.iter().find(|rule| rule.condition.fits(flow));
            let inputs = first.map_or(&flat.otherwise, |rule| &rule.inputs);
            prop_assert_eq!(chosen(inputs, &up), said(&chain, flow, &up), "{:?}", flow);
            prop_assert_eq!(all[image.find(flow).choice as usize], inputs);
            let asked = ask(&links, flow);
            prop_assert_eq!(&asked.inputs, inputs);
            let origins = first.map_or(&[][..], |rule| &rule.origins);
            prop_assert_eq!(&asked.rules[..], origins);
        }
    }

    #[test]
    fn the_intersection_fits_what_both_fit(one in rules(), two in rules(), flows in vec(flows(), 1..30)) {
        let both = one.both(&two);
        for flow in &flows {
            let fits = both.as_ref().is_some_and(|both| both.fits(flow));
            prop_assert_eq!(fits, one.fits(flow) && two.fits(flow), "{:?}", flow);
        }
    }

    #[test]
    fn a_rule_that_holds_another_fits_all_that_it_fits(
        one in rules(), two in rules(), flows in vec(flows(), 1..30),
    ) {
        prop_assert!(one.holds(&one));
        if one.holds(&two) {
            prop_assert!(flows.iter().all(|flow| one.fits(flow) || !two.fits(flow)));
        }
        // What is narrower in each list is held.
        let narrower = one.both(&two);
        prop_assert!(narrower.is_none_or(|both| one.holds(&both) && two.holds(&both)));
    }
}

fn to(net: &str, use_: &[&str], otherwise: Option<Otherwise>) -> Rule {
    Rule {
        destination: vec![net.parse().unwrap()],
        use_: use_.iter().copied().map(name).collect(),
        otherwise,
        ..Rule::default()
    }
}

#[test]
fn behind_a_rule_that_goes_on_the_next_policys_rules_are_asked() {
    let first = Policy {
        otherwise: Otherwise::Next,
        rules: vec![to("10.0.0.0/8", &["d1"], None)].into(),
        ..policy("first", "a/b", &["d0"])
    };
    let second = Policy {
        rules: vec![to("10.1.0.0/16", &["d2"], None)].into(),
        ..policy("second", "a", &["d3"])
    };
    let chain = [first, second];
    let rules_of = |destination: &str| {
        let asked = ask(&links(&chain), &Flow::to(ip(destination)));
        let rules = asked.rules.iter();
        let rules: Vec<String> = rules
            .map(|at| format!("{} {}", at.policy, at.number))
            .collect();
        let uses = asked.inputs.iter().map(|stage| stage.use_[0].to_string());
        (rules.join(", "), uses.collect::<Vec<_>>().join(", "))
    };
    let says = |rules: &str, uses: &str| (rules.to_owned(), uses.to_owned());
    // The rule falls to the next policy, not to its own policy's `use`.
    assert_eq!(rules_of("10.1.0.1"), says("first 1, second 1", "d1, d2"));
    assert_eq!(rules_of("10.2.0.1"), says("first 1", "d1, d3"));
    assert_eq!(rules_of("192.0.2.1"), says("", "d0, d3"));
    let flat = flatten(&links(&chain)).unwrap();
    let at = |policy: &str| RuleAt {
        policy: name(policy),
        number: 1,
    };
    let origins: Vec<_> = flat.rules.into_iter().map(|rule| rule.origins).collect();
    let both = vec![at("first"), at("second")];
    assert_eq!(origins, [both, vec![at("first")], vec![at("second")]]);
}

#[test]
fn too_many_rules_and_too_many_pairs_are_refused() {
    let many = |count: u32, otherwise| -> Vec<Rule> {
        (0..count)
            .map(|at| {
                to(
                    &format!("10.{}.{}.0/24", at / 256, at % 256),
                    &["d1"],
                    otherwise,
                )
            })
            .collect()
    };
    let chain = |own: u32, behind: u32, rule: Option<Otherwise>| {
        [
            Policy {
                otherwise: Otherwise::Next,
                rules: many(own, rule).into(),
                ..policy("first", "a/b", &["d0"])
            },
            Policy {
                rules: many(behind, None).into(),
                ..policy("second", "a", &["d3"])
            },
        ]
    };
    let refused = |chain: &[Policy]| flatten(&links(chain)).err();
    assert_eq!(refused(&chain(8_000, 8_000, Some(Otherwise::Block))), None);
    assert_eq!(
        refused(&chain(9_000, 9_000, Some(Otherwise::Block))),
        Some(TooLarge::Rules(16_385))
    );
    assert_eq!(refused(&chain(9_000, 9_000, None)), Some(TooLarge::Pairs));
}
