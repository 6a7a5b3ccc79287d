//! Selection compares domains so that nothing flaps: properties of it, and the predicates one by one.
#![expect(clippy::unwrap_used, reason = "a failure is a failed test")]

mod support;

use std::collections::BTreeMap;
use std::time::Duration;

use proptest::prelude::*;
use proptest::sample::{select as one_of, subsequence};
use steer_core::config::Config;
use steer_core::criteria::{Bandwidth, Criteria, Criterion, Margin, Wish};
use steer_core::domains::Domains;
use steer_core::health::{Health, History, Learned, Now, Probed};
use steer_core::ids::DomainIndex;
use steer_core::name::Name;
use steer_core::network::{Network, NetworkChange};
use steer_core::policy::Otherwise;
use steer_core::probe::{Outcome, Report};
use steer_core::select::{Decision, Stage, World, select};
use support::{add_uplink, config, name, route};

const NAMES: [&str; 5] = ["d0", "d1", "d2", "d3", "d4"];

/// What is known of a domain.
#[derive(Clone, Debug)]
struct Known {
    latency: Option<Duration>,
    lost: u32,
    cost: u32,
    bandwidth: u64,
    outcome: Outcome,
}

/// Domains of which this is known.
struct Bed {
    config: Config,
    network: Network,
    domains: Domains,
    health: Health,
    indices: BTreeMap<Name, DomainIndex>,
}

impl Bed {
    fn new(known: &[Known], file: &str) -> Self {
        let mut network = Network::default();
        let mut config = config(&format!(
            "agent.check = {{ icmp = \"192.0.2.99\" }}\n{file}"
        ));
        let mut indices = BTreeMap::new();
        for (at, known) in (2..).zip(known) {
            let domain = NAMES[at - 2];
            add_uplink(&mut network, u32::try_from(at).unwrap(), domain);
            let own = config.domains.entry(name(domain)).or_default();
            own.cost = own.cost.max(known.cost);
            own.bandwidth = own.bandwidth.or(Some(Bandwidth(known.bandwidth)));
            indices.insert(name(domain), DomainIndex(u16::try_from(at).unwrap()));
        }
        let domains = Domains::new(&config, &network);
        let mut bed = Self {
            config,
            network,
            domains,
            health: Health::default(),
            indices,
        };
        bed.observe();
        for (domain, known) in NAMES.iter().zip(known) {
            bed.report(domain, known);
        }
        bed
    }

    fn observe(&mut self) {
        self.domains = Domains::new(&self.config, &self.network);
        self.health.observe(
            &self.config,
            &self.domains,
            &History::default(),
            Now::default(),
        );
    }

    fn report(&mut self, domain: &str, known: &Known) {
        let failures = match known.outcome {
            Outcome::Failed(_) => 3,
            Outcome::Passed | Outcome::Portal(_) => 1,
        };
        for _ in 0..failures {
            let probed = Probed {
                domain: name(domain),
                epoch: self.health.get(&name(domain)).unwrap().epoch(),
                began: Duration::ZERO,
                report: Report {
                    outcome: known.outcome.clone(),
                    rtt: known.latency,
                    asked: 100,
                    lost: known.lost,
                },
                gateway: None,
                counted: None,
            };
            let mut history = History::default();
            let taken = self.health.report(
                &self.config,
                &self.domains,
                &mut history,
                &probed,
                Now::default(),
            );
            assert_ne!(taken, Learned::Nothing);
        }
    }

    fn world(&self) -> World<'_> {
        static NOTHING: BTreeMap<steer_core::plan::Object, String> = BTreeMap::new();
        World {
            config: &self.config,
            network: &self.network,
            domains: &self.domains,
            health: &self.health,
            indices: &self.indices,
            refused: &NOTHING,
            now: Duration::from_secs(1),
            without: None,
        }
    }

    fn select(&self, stage: &Stage, in_use: Option<&str>) -> Decision {
        let in_use: Vec<Name> = in_use.map(name).into_iter().collect();
        select(std::slice::from_ref(stage), self.world(), &in_use)
    }
}

fn stage(use_: &[&str], criteria: Criteria) -> Stage {
    Stage {
        use_: use_.iter().map(|domain| name(domain)).collect(),
        otherwise: Otherwise::Block,
        preferred: None,
        share: None,
        wish: Wish {
            criteria,
            ..Wish::default()
        },
    }
}

fn chosen(decision: &Decision) -> Option<&str> {
    decision.domain().map(Name::as_str)
}

fn outcomes() -> impl Strategy<Value = Outcome> {
    prop_oneof![
        6 => Just(Outcome::Passed),
        1 => Just(Outcome::Failed("no answer".to_owned())),
        1 => Just(Outcome::Portal(None)),
    ]
}

prop_compose! {
    fn known()(
        latency in proptest::option::weighted(0.9, 1_000u64..100_000),
        lost in 0u32..20,
        cost in 0u32..4,
        bandwidth in 1u64..1_000_000_000,
        outcome in outcomes(),
    ) -> Known {
        Known { latency: latency.map(Duration::from_micros), lost, cost, bandwidth, outcome }
    }
}

const ALL: [Criterion; 6] = [
    Criterion::Cost,
    Criterion::Latency,
    Criterion::Loss,
    Criterion::Bandwidth,
    Criterion::Stability,
    Criterion::Metric,
];

fn criteria() -> impl Strategy<Value = Criteria> {
    (subsequence(ALL.to_vec(), 0..4).prop_shuffle(), 0u8..=90).prop_map(|(prefer, margin)| {
        Criteria {
            prefer,
            margin: Margin(margin),
            ..Criteria::default()
        }
    })
}

/// Lists of names in any order.
fn uses() -> impl Strategy<Value = Vec<&'static str>> {
    subsequence(NAMES.to_vec(), 1..=5).prop_shuffle()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    #[test]
    fn what_is_chosen_stays_chosen(
        known in proptest::collection::vec(known(), 5),
        uses in uses(),
        criteria in criteria(),
        in_use in proptest::option::of(one_of(NAMES.to_vec())),
    ) {
        let bed = Bed::new(&known, "");
        let stage = stage(&uses, criteria);
        let first = bed.select(&stage, in_use);
        let again = bed.select(&stage, chosen(&first));
        prop_assert_eq!(chosen(&first), chosen(&again));
    }

    #[test]
    fn what_differs_by_less_than_the_margin_changes_nothing(
        bases in proptest::collection::vec((0u64..=1_000, 0u64..=1_000), 5),
        margin in 1u8..=90,
        prefer in subsequence(vec![Criterion::Latency, Criterion::Bandwidth], 1..=2).prop_shuffle(),
        uses in uses(),
        at in any::<prop::sample::Index>(),
    ) {
        // The domain in use has 100 ms and 100 Mbit/s; others are better by the margin at most.
        let in_use = *at.get(&uses);
        let part = |per_mille: u64| u64::from(margin) * per_mille / 1_000;
        let known: Vec<Known> = NAMES.iter().zip(&bases).map(|(domain, (latency, bandwidth))| {
            let own = *domain == in_use;
            let faster = if own { 0 } else { part(*latency) };
            let wider = if own { 0 } else { part(*bandwidth) };
            Known {
                latency: Some(Duration::from_micros(100_000 - 1_000 * faster)),
                // The time for a bit is what is compared.
                bandwidth: 100_000_000 * 100 / (100 - wider),
                lost: 0,
                cost: 0,
                outcome: Outcome::Passed,
            }
        }).collect();
        let bed = Bed::new(&known, "");
        let stage = stage(&uses, Criteria { prefer, margin: Margin(margin), ..Criteria::default() });
        let decision = bed.select(&stage, Some(in_use));
        prop_assert_eq!(chosen(&decision), Some(in_use));
    }

    #[test]
    fn what_is_better_in_everything_wins(
        mut known in proptest::collection::vec(known(), 5),
        uses in uses(),
        criteria in criteria(),
        in_use in proptest::option::of(one_of(NAMES.to_vec())),
        at in any::<prop::sample::Index>(),
    ) {
        prop_assume!(!criteria.prefer.is_empty() && !criteria.prefer.contains(&Criterion::Metric));
        prop_assume!(!criteria.prefer.contains(&Criterion::Stability));
        let best = *at.get(&uses);
        for (domain, known) in NAMES.iter().zip(&mut known) {
            if *domain == best {
                *known = Known {
                    latency: Some(Duration::from_micros(50)),
                    lost: 0,
                    cost: 0,
                    bandwidth: 1_000_000_000_000,
                    outcome: Outcome::Passed,
                };
            } else {
                known.cost += 1;
                known.lost += 1;
            }
        }
        let bed = Bed::new(&known, "");
        let stage = stage(&uses, criteria);
        let decision = bed.select(&stage, in_use);
        prop_assert_eq!(chosen(&decision), Some(best));
    }

    #[test]
    fn a_loser_that_goes_changes_nothing(
        known in proptest::collection::vec(known(), 5),
        uses in uses(),
        criteria in criteria(),
        in_use in proptest::option::of(one_of(NAMES.to_vec())),
        at in any::<prop::sample::Index>(),
    ) {
        let bed = Bed::new(&known, "");
        let all = stage(&uses, criteria.clone());
        let first = bed.select(&all, in_use);
        let loser = *at.get(&uses);
        prop_assume!(chosen(&first) != Some(loser));
        let left: Vec<&str> = uses.into_iter().filter(|domain| *domain != loser).collect();
        // Not named at all, and named but not there.
        let without = bed.select(&stage(&left, criteria), in_use);
        let gone = name(loser);
        let world = World { without: Some(&gone), ..bed.world() };
        let in_use: Vec<Name> = in_use.map(name).into_iter().collect();
        let absent = select(std::slice::from_ref(&all), world, &in_use);
        prop_assert_eq!(chosen(&first), chosen(&without));
        prop_assert_eq!(chosen(&first), chosen(&absent));
    }

    #[test]
    fn the_order_in_which_things_are_learned_does_not_matter(
        known in proptest::collection::vec(known(), 5),
        uses in uses(),
        criteria in criteria(),
        order in Just(NAMES.to_vec()).prop_shuffle(),
    ) {
        let bed = Bed::new(&known, "");
        let mut other = Bed::new(&[], "");
        for (at, known) in (2..).zip(&known) {
            let own = other.config.domains.entry(name(NAMES[at - 2])).or_default();
            own.cost = known.cost;
            own.bandwidth = Some(Bandwidth(known.bandwidth));
        }
        other.indices.clone_from(&bed.indices);
        for domain in order {
            let at = NAMES.iter().position(|one| *one == domain).unwrap();
            add_uplink(&mut other.network, u32::try_from(at + 2).unwrap(), domain);
            other.observe();
            other.report(domain, &known[at]);
        }
        let stage = stage(&uses, criteria);
        prop_assert_eq!(bed.select(&stage, None), other.select(&stage, None));
    }

    #[test]
    fn every_candidate_has_its_verdict_and_one_at_most_is_taken(
        known in proptest::collection::vec(known(), 5),
        uses in uses(),
        criteria in criteria(),
    ) {
        let bed = Bed::new(&known, "");
        let decision = bed.select(&stage(&uses, criteria), None);
        let looked: Vec<&str> = decision.candidates.iter().map(|one| one.domain.as_str()).collect();
        prop_assert_eq!(looked, uses);
        let taken: Vec<&str> = decision.candidates.iter()
            .filter(|one| one.taken)
            .map(|one| one.domain.as_str())
            .collect();
        prop_assert_eq!(taken, chosen(&decision).into_iter().collect::<Vec<_>>());
        prop_assert!(decision.candidates.iter().all(|one| !one.reason.is_empty()));
    }
}

fn well() -> Known {
    Known {
        latency: Some(Duration::from_millis(20)),
        lost: 0,
        cost: 0,
        bandwidth: 10_000_000,
        outcome: Outcome::Passed,
    }
}

/// What a policy of a file chooses, and each candidate's reason.
fn choose(known: &[Known], file: &str, rules: bool) -> (Option<String>, Vec<String>) {
    let bed = Bed::new(known, file);
    let policy = &bed.config.policies[&name("p")];
    let mut stage = Stage::of(policy, None);
    if rules {
        stage
            .wish
            .to
            .clone_from(&policy.rules.iter().next().unwrap().destination);
    }
    let decision = bed.select(&stage, None);
    (
        chosen(&decision).map(str::to_owned),
        decision
            .candidates
            .into_iter()
            .map(|one| one.reason)
            .collect(),
    )
}

fn policy(says: &str) -> String {
    format!("[policy.p]\nmatch.cgroup = \"a\"\n{says}\n")
}

#[test]
fn each_requirement_refuses_with_its_reason() {
    let known = [
        Known { cost: 5, ..well() },
        Known {
            latency: None,
            ..well()
        },
    ];
    for (require, reason) in [
        ("kind = \"cellular\"", "d0 is of another kind than required"),
        (
            "min-bandwidth = \"20M\"",
            "d0 carries 10M bit/s, less than 20M",
        ),
        (
            "max-latency = \"19ms\"",
            "the latency of d0 is 20 ms, more than 19 ms",
        ),
        ("max-cost = 4", "d0 costs 5, more than 4"),
        ("metered = true", "d0 is not metered"),
        ("security = \"encrypted\"", "d0 is protected, not encrypted"),
        ("profile = \"x\"", "d0 has no profile"),
    ] {
        let file = policy(&format!("use = \"d0\"\nrequire = {{ {require} }}"));
        let (domain, reasons) = choose(&known, &file, false);
        assert_eq!(
            (domain, reasons),
            (None, vec![reason.to_owned()]),
            "{require}"
        );
    }
    let file = policy("use = \"d1\"\nrequire = { max-latency = \"1s\" }");
    let (domain, reasons) = choose(&known, &file, false);
    assert_eq!(domain, None);
    assert_eq!(
        reasons,
        ["the latency of d1 is not known: no check has measured it yet"]
    );
}

#[test]
fn the_domain_in_use_may_exceed_a_requirement_by_the_margin() {
    let file = policy("use = [\"d0\", \"d1\"]\nrequire = { max-latency = \"18ms\" }");
    let slower = Known {
        latency: Some(Duration::from_millis(10)),
        ..well()
    };
    let bed = Bed::new(&[well(), slower], &file);
    let stage = Stage::of(&bed.config.policies[&name("p")], None);
    // 20 ms is within a fifth more than 18 ms.
    assert_eq!(chosen(&bed.select(&stage, Some("d0"))), Some("d0"));
    assert_eq!(chosen(&bed.select(&stage, Some("d1"))), Some("d1"));
    assert_eq!(chosen(&bed.select(&stage, None)), Some("d1"));
}

#[test]
fn a_domain_that_does_not_lead_to_a_rules_destination_is_no_candidate() {
    let rule =
        "use = \"d0\"\n[[policy.p.rule]]\ndestination = \"10.0.0.0/8\"\nuse = [\"d0\", \"d1\"]";
    let mut bed = Bed::new(&[well(), well()], &policy(rule));
    // d0 has no default route any more, d1 has.
    for destination in ["0.0.0.0/0", "::/0"] {
        let gateway = if destination == "::/0" {
            "fe80::1"
        } else {
            "192.0.2.1"
        };
        let gone = route(2, destination, Some(gateway), 102);
        bed.network.apply(NetworkChange::RouteGone(gone));
    }
    bed.observe();
    for domain in ["d0", "d1"] {
        bed.report(domain, &well());
    }
    let mut stage = Stage::of(&bed.config.policies[&name("p")], None);
    stage.use_ = vec![name("d0"), name("d1")];
    stage.wish.to = vec!["10.0.0.0/8".parse().unwrap()];
    let decision = bed.select(&stage, None);
    assert_eq!(chosen(&decision), Some("d1"));
    assert_eq!(
        decision.candidates[0].reason,
        "d0 has no route to 10.0.0.0/8"
    );
    // Named for everything, it is taken at its word; among `any` it must have a default route.
    stage.wish.to.clear();
    assert_eq!(chosen(&bed.select(&stage, None)), Some("d0"));
    stage.use_ = vec![name("any")];
    assert_eq!(chosen(&bed.select(&stage, None)), Some("d1"));
    // A group leads where its members lead, and so does one whose own check passes.
    bed.config.groups.insert(name("g"), vec![name("d0")]);
    stage.use_ = vec![name("g"), name("d1")];
    stage.wish.to = vec!["10.0.0.0/8".parse().unwrap()];
    assert_eq!(chosen(&bed.select(&stage, None)), Some("d0"));
    stage.use_ = vec![name("d0"), name("d1")];
    let check = bed.config.agent.check.clone();
    bed.config.domains.get_mut(&name("d0")).unwrap().check = check;
    assert_eq!(chosen(&bed.select(&stage, None)), Some("d0"));
}

#[test]
fn groups_that_are_always_there_follow_the_hosts_order() {
    let kinds = "[domain.d0]\nkind = \"cellular\"\n[domain.d1]\nkind = \"wlan\"\n[domain.d2]\nkind = \
                 \"wired\"\ncost = 9\n[domain.d3]\nkind = \"wired\"\n";
    let known = [well(), well(), well(), well()];
    for (more, use_, expected) in [
        // Metrics come before costs: that of d2 is the lower.
        ("", "any", "d2"),
        ("agent.order = [\"wlan\", \"wired\"]\n", "any", "d1"),
        ("agent.primary = [\"d0\"]\n", "any", "d0"),
        ("", "any-wlan", "d1"),
        ("", "any-cellular", "d0"),
        ("", "any-wireless", "d1"),
    ] {
        let file = format!("{more}{kinds}{}", policy(&format!("use = \"{use_}\"")));
        assert_eq!(
            choose(&known, &file, false).0.as_deref(),
            Some(expected),
            "{more} {use_}"
        );
    }
}

#[test]
fn a_user_may_name_a_domain_behind_a_portal() {
    let known = [
        Known {
            outcome: Outcome::Portal(None),
            ..well()
        },
        well(),
    ];
    let bed = Bed::new(&known, "group.g.domains = [\"d0\"]\n");
    let mut stage = stage(&["d0"], Criteria::default());
    assert_eq!(chosen(&bed.select(&stage, None)), None);
    stage.wish.by_user = true;
    assert_eq!(chosen(&bed.select(&stage, None)), Some("d0"));
    stage.use_ = vec![name("d0"), name("d1")];
    assert_eq!(
        chosen(&bed.select(&stage, None)),
        Some("d1"),
        "what is better comes first"
    );
    stage.use_ = vec![name("g")];
    assert_eq!(chosen(&bed.select(&stage, None)), None, "nobody named it");
}

#[test]
fn the_reason_names_what_counted() {
    let fast = Known {
        latency: Some(Duration::from_millis(10)),
        ..well()
    };
    let limited = Known {
        outcome: Outcome::Failed("no answer".to_owned()),
        ..well()
    };
    let prefer = |list: &[Criterion]| Criteria {
        prefer: list.to_vec(),
        ..Criteria::default()
    };
    let latency = prefer(&[Criterion::Latency]);
    for (known, criteria, in_use, reason) in [
        (
            [well(), fast.clone()],
            Criteria::default(),
            None,
            "d0 is the first choice and fits",
        ),
        (
            [limited.clone(), fast.clone()],
            Criteria::default(),
            None,
            "d1 is the first that fits and is well",
        ),
        (
            [limited.clone(), limited],
            Criteria::default(),
            None,
            "d0 is the best that fits: nothing that fits is well",
        ),
        (
            [well(), fast],
            latency.clone(),
            None,
            "d1 is best by latency (10 ms; d0: 20 ms)",
        ),
        (
            [
                well(),
                Known {
                    latency: Some(Duration::from_millis(19)),
                    ..well()
                },
            ],
            latency,
            Some("d0"),
            "d0 stays: d1 is not better by more than the margin of 20%",
        ),
    ] {
        let bed = Bed::new(&known, "");
        let decision = bed.select(&stage(&["d0", "d1"], criteria), in_use);
        assert_eq!(decision.reason, reason);
    }
}
