//! What was measured beside what it should be.

use crate::document::Document;
use crate::failover::Failover;
use crate::load::{FEW, Load};
use crate::packets::{Packets, subject};
use crate::programs::Runs;
use crate::rounds::Costs;
use crate::sites::FEW_RULES;
use crate::statistics::Sample;
use crate::workload::Workload;

/// A line of the table of targets.
pub(crate) struct Row {
    pub(crate) what: String,
    pub(crate) target: String,
    pub(crate) measured: String,
    pub(crate) recipe: String,
    /// Why it misses its target, if it does.
    pub(crate) missed: Option<String>,
}

/// What a repaired datagram may cost.
const REPAIRED: f64 = 1.25;
/// What a repaired transfer carries at least.
const THROUGHPUT: f64 = 0.9;
/// What a process without a policy may cost.
const UNTOUCHED: f64 = 1.03;
/// What many policies may cost beyond one.
const POLICIES: f64 = 0.03;
/// What many rules may cost beyond few.
const RULES: f64 = 0.05;

/// The whole table.
pub(crate) fn rows(document: &Document) -> Vec<Row> {
    let packets = &document.packets;
    let fresh = || workloads(packets, &Workload::FRESH);
    let mut rows = Vec::new();
    for costs in fresh() {
        let target = match costs.workload {
            Workload::Tcp | Workload::Tcp6 => 1.08,
            _ => 1.05,
        };
        let recipe = spread(&costs.ratios[subject::RECIPE]);
        rows.push(ratio(packets, costs, subject::STEERED, target, recipe));
    }
    for index in [subject::OTHER, subject::BESIDE_STRICT] {
        for costs in fresh() {
            rows.push(ratio(packets, costs, index, UNTOUCHED, none()));
        }
    }
    for (one, many) in [
        (subject::STEERED, subject::MANY),
        (subject::OTHER, subject::BESIDE_MANY),
    ] {
        rows.extend(
            fresh().map(|costs| growth(packets, costs, [one, many], "one policy", POLICIES)),
        );
    }
    for costs in workloads(packets, &[Workload::UdpKept]) {
        let recipe = spread(&costs.ratios[subject::RECIPE]);
        rows.push(ratio(packets, costs, subject::REPAIRED, REPAIRED, recipe));
    }
    for costs in workloads(packets, &[Workload::Upload, Workload::Download]) {
        rows.push(throughput(packets, costs));
    }
    let few = format!("{FEW_RULES} rules");
    for costs in workloads(packets, &Workload::IPV4) {
        let pair = [subject::FEW_RULES, subject::MANY_RULES];
        let mut row = growth(packets, costs, pair, &few, RULES);
        row.what = format!(
            "{}, steered by the last of {} rules",
            costs.workload.title(),
            document.extent.rules
        );
        rows.push(row);
    }
    for costs in workloads(packets, &Workload::DECIDED) {
        rows.push(Row {
            what: what(packets, costs, subject::SHARED),
            target: none(),
            measured: spread(&costs.ratios[subject::SHARED]),
            recipe: none(),
            missed: None,
        });
    }
    rows.extend(load(document));
    rows.extend(failover(document));
    rows
}

fn workloads<'a>(packets: &'a Packets, these: &'a [Workload]) -> impl Iterator<Item = &'a Costs> {
    packets
        .costs
        .iter()
        .filter(|costs| these.contains(&costs.workload))
}

fn what(packets: &Packets, costs: &Costs, index: usize) -> String {
    format!("{}, {}", costs.workload.title(), packets.names[index])
}

fn none() -> String {
    "-".to_owned()
}

/// CPU time as a multiple of the host without steer.
fn ratio(packets: &Packets, costs: &Costs, index: usize, target: f64, recipe: String) -> Row {
    let found = &costs.ratios[index];
    let missed = (found.median() > target).then(|| {
        format!(
            "{:.3} instead of {target:.2}: {}",
            found.median(),
            beyond(packets, costs, index)
        )
    });
    Row {
        what: what(packets, costs, index),
        target: format!("<= {target:.2}"),
        measured: spread(found),
        recipe,
        missed,
    }
}

/// What a repaired connection carries, as a part of what the host without steer does.
fn throughput(packets: &Packets, costs: &Costs) -> Row {
    let found = costs.ratios[subject::REPAIRED].inverse();
    let missed = (found.median() < THROUGHPUT).then(|| {
        format!(
            "{:.3} instead of {THROUGHPUT:.2}: {}",
            found.median(),
            beyond(packets, costs, subject::REPAIRED)
        )
    });
    Row {
        what: format!("throughput: {}", what(packets, costs, subject::REPAIRED)),
        target: format!(">= {THROUGHPUT:.2}"),
        measured: spread(&found),
        recipe: spread(&costs.ratios[subject::RECIPE].inverse()),
        missed,
    }
}

/// The difference that many of something make.
fn growth(
    packets: &Packets,
    costs: &Costs,
    [few, many]: [usize; 2],
    against: &str,
    limit: f64,
) -> Row {
    let found = costs.ratios[many].median() - costs.ratios[few].median();
    let missed = (found > limit).then(|| {
        let mut text =
            format!("{found:+.3} instead of {limit:+.3} against the same with {against}.");
        if let [Some(few), Some(many)] = [few, many].map(|index| runs_of(packets, costs, index)) {
            text.push_str(&format!(
                " The programs take {:.0} ({}) instead of {:.0} ({}).",
                many.total(),
                many.sum(),
                few.total(),
                few.sum(),
            ));
        }
        text
    });
    Row {
        what: what(packets, costs, many),
        target: format!("{against} + {limit:.2}"),
        measured: format!("{found:+.3}"),
        recipe: none(),
        missed,
    }
}

/// What programs took for a subject.
fn runs_of<'a>(packets: &'a Packets, costs: &Costs, index: usize) -> Option<&'a Runs> {
    let name = packets.names[index];
    let mut programs = packets.programs.iter();
    programs.find(|runs| runs.subject == name && runs.workload == costs.workload)
}

/// Where the time goes that a unit takes beyond the host without steer.
fn beyond(packets: &Packets, costs: &Costs, index: usize) -> String {
    let more = |index: usize| (costs.ratios[index].median() - 1.0) * costs.reference.median();
    let mut text = format!("{:.0} ns more than the host without steer.", more(index));
    let Some(runs) = runs_of(packets, costs, index) else {
        return text;
    };
    if costs.ratios[subject::RULES].is_empty() {
        text.push_str(" The programs take");
    } else {
        let any_rule = more(subject::ANY_RULE);
        let rules = more(subject::RULES) - any_rule;
        text.push_str(&format!(
            " Any routing rule takes {any_rule:.0} of them, steer's own rules {rules:+.0}, the programs"
        ));
    }
    text.push_str(&format!(
        " {:.0} ({}); what is left is the kernel's way into and out of the hooks.",
        runs.total(),
        runs.sum(),
    ));
    text
}

fn load(document: &Document) -> Vec<Row> {
    let Load { few, many } = &document.load;
    let count = document.extent.policies;
    let longer = many.ready.median() - few.ready.median();
    let mut rows = vec![
        limit(
            format!("load {count} policies from a file, beyond the start with {FEW}"),
            "< 2 s",
            2000.0,
            longer,
            format!("{:.2} s", longer / 1e3),
        ),
        limit(
            format!("agent's memory with {count} policies"),
            "< 120 MB",
            120.0,
            many.memory.median(),
            format!(
                "{:.0} MB (peak {:.0})",
                many.memory.median(),
                many.peak.median()
            ),
        ),
        limit(
            format!("agent's memory with {FEW} policies"),
            "< 20 MB",
            20.0,
            few.memory.median(),
            format!(
                "{:.1} MB (peak {:.1})",
                few.memory.median(),
                few.peak.median()
            ),
        ),
    ];
    for (policies, loaded) in [(FEW, few), (count, many)] {
        rows.push(limit(
            format!("`policy set` acknowledged, {policies} policies"),
            "< 5 ms",
            5.0,
            loaded.set.quantile(0.99),
            times(&loaded.set),
        ));
        rows.push(limit(
            format!("policies not in force at their acknowledgement, {policies} policies"),
            "0",
            0.5,
            f64::from(u32::try_from(loaded.late).unwrap_or(u32::MAX)),
            loaded.late.to_string(),
        ));
    }
    rows
}

fn failover(document: &Document) -> Vec<Row> {
    let Failover { one, many } = &document.failover;
    let both = [(1, one), (document.extent.policies, many)];
    let carriers = both.map(|(policies, found)| {
        limit(
            format!("carrier lost to first flow on the next domain, policies: {policies}"),
            "< 50 ms",
            50.0,
            found.carrier.quantile(0.99),
            times(&found.carrier),
        )
    });
    let blackholes = both.map(|(policies, found)| {
        let found = &found.blackhole;
        limit(
            format!(
                "path dead, carrier up, to first flow on the next domain, in intervals of the check, policies: \
                 {policies}"
            ),
            "< 3",
            3.0,
            found.quantile(0.99),
            format!("{:.2} (p99 {:.2})", found.median(), found.quantile(0.99)),
        )
    });
    carriers.into_iter().chain(blackholes).collect()
}

fn limit(what: String, target: &str, below: f64, found: f64, measured: String) -> Row {
    let missed = (found >= below).then(|| format!("{measured} instead of {target}."));
    Row {
        what,
        target: target.to_owned(),
        measured,
        recipe: none(),
        missed,
    }
}

/// Median and the middle half.
pub(crate) fn spread(sample: &Sample) -> String {
    if sample.is_empty() {
        return none();
    }
    let (low, high) = sample.quartiles();
    format!("{:.3} ({low:.2} to {high:.2})", sample.median())
}

/// Milliseconds: the median and the worst of a hundred.
pub(crate) fn times(sample: &Sample) -> String {
    format!(
        "{:.2} ms (p99 {:.2})",
        sample.median(),
        sample.quantile(0.99)
    )
}
