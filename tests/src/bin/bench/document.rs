//! The results as a page for readers.

use std::fmt;
use std::fs;
use std::path::Path;

use anyhow::{Context, Result};

use crate::Extent;
use crate::failover::Failover;
use crate::load::{FEW, Load};
use crate::machine::Machine;
use crate::packets::{Packets, subject};
use crate::programs::Runs;
use crate::rounds::Costs;
use crate::statistics::Sample;
use crate::workload::Workload;

/// Everything that was measured.
#[derive(Debug)]
pub(crate) struct Document {
    pub(crate) extent: Extent,
    pub(crate) machine: Machine,
    pub(crate) packets: Packets,
    pub(crate) load: Load,
    pub(crate) failover: Failover,
}

/// A line of the table of targets.
struct Row {
    what: String,
    target: String,
    measured: String,
    recipe: String,
    /// Why it misses its target, if it does.
    missed: Option<String>,
}

impl Document {
    /// Writes `docs/benchmarks.md`.
    pub(crate) fn write(&self) -> Result<()> {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/benchmarks.md");
        if let Some(directory) = path.parent() {
            fs::create_dir_all(directory)
                .with_context(|| format!("make {}", directory.display()))?;
        }
        fs::write(&path, self.to_string()).with_context(|| format!("write {}", path.display()))
    }

    fn rows(&self) -> Vec<Row> {
        let mut rows = Vec::new();
        for costs in &self.packets.costs {
            let target = match costs.workload {
                Workload::UdpConnected | Workload::UdpUnconnected => 1.05,
                Workload::Tcp | Workload::Tcp6 => 1.08,
            };
            let recipe = spread(&costs.ratios[subject::RECIPE]);
            rows.push(self.ratio(costs, subject::STEERED, target, recipe));
        }
        for index in [subject::OTHER, subject::BESIDE_STRICT] {
            for costs in &self.packets.costs {
                rows.push(self.ratio(costs, index, 1.03, "-".to_owned()));
            }
        }
        let pairs = [
            (subject::STEERED, subject::MANY),
            (subject::OTHER, subject::BESIDE_MANY),
        ];
        for (one, many) in pairs {
            rows.extend(
                self.packets
                    .costs
                    .iter()
                    .map(|costs| self.growth(costs, one, many)),
            );
        }
        rows.extend(self.load_rows());
        rows.extend(self.failover_rows());
        rows
    }

    fn ratio(&self, costs: &Costs, index: usize, target: f64, recipe: String) -> Row {
        let found = &costs.ratios[index];
        let what = format!("{}, {}", costs.workload.title(), self.packets.names[index]);
        let nanoseconds = (found.median() - 1.0) * costs.reference.median();
        let missed = (found.median() > target).then(|| {
            let name = self.packets.names[index];
            let mut programs = self.packets.programs.iter();
            let runs =
                programs.find(|runs| runs.subject == name && runs.workload == costs.workload);
            let beyond = |index: usize| {
                (costs.ratios[index].median() - 1.0) * costs.reference.median()
            };
            let any_rule = beyond(subject::ANY_RULE);
            let rules = beyond(subject::RULES) - any_rule;
            let why = runs.map(|runs| {
                format!(
                    " Any routing rule takes {any_rule:.0} of them, steer's own rules {rules:+.0}, the \
                     programs {:.0} ({}); what is left is the kernel's way into and out of the hooks.",
                    runs.total(),
                    runs.sum(),
                )
            });
            format!(
                "{:.3} instead of {target:.2}: {nanoseconds:.0} ns more than the host without steer.{}",
                found.median(),
                why.unwrap_or_default(),
            )
        });
        Row {
            what,
            target: format!("<= {target:.2}"),
            measured: spread(found),
            recipe,
            missed,
        }
    }

    /// The difference that many policies make.
    fn growth(&self, costs: &Costs, one: usize, many: usize) -> Row {
        let found = costs.ratios[many].median() - costs.ratios[one].median();
        let what = format!("{}, {}", costs.workload.title(), self.packets.names[many]);
        let missed = (found > 0.03)
            .then(|| format!("{found:+.3} instead of +0.030 against the same with one policy."));
        Row {
            what,
            target: "one policy + 0.03".to_owned(),
            measured: format!("{found:+.3}"),
            recipe: "-".to_owned(),
            missed,
        }
    }

    fn load_rows(&self) -> Vec<Row> {
        let Load { few, many } = &self.load;
        let count = self.extent.policies;
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

    fn failover_rows(&self) -> Vec<Row> {
        let Failover { one, many } = &self.failover;
        [(1, one), (self.extent.policies, many)]
            .map(|(policies, found)| {
                limit(
                    format!("carrier lost to first flow on the next domain, policies: {policies}"),
                    "< 50 ms",
                    50.0,
                    found.quantile(0.99),
                    times(found),
                )
            })
            .into()
    }
}

impl fmt::Display for Document {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "# Benchmarks\n\nWritten by `cargo xtask bench`. {}.\n",
            self.machine
        )?;
        f.write_str(METHOD)?;
        let rows = self.rows();
        writeln!(
            f,
            "\n## Targets\n\n| what | target | measured | the nft recipe |"
        )?;
        writeln!(f, "|---|---|---|---|")?;
        for Row {
            what,
            target,
            measured,
            recipe,
            missed,
        } in &rows
        {
            let measured = if missed.is_some() {
                format!("**{measured}**")
            } else {
                measured.clone()
            };
            writeln!(f, "| {what} | {target} | {measured} | {recipe} |")?;
        }
        let missed: Vec<_> = rows
            .iter()
            .filter_map(|row| Some((&row.what, row.missed.as_ref()?)))
            .collect();
        if !missed.is_empty() {
            writeln!(f, "\nTargets missed:\n")?;
            for (what, why) in missed {
                writeln!(f, "- {what}: {why}")?;
            }
        }
        self.write_costs(f)?;
        self.write_agent(f)?;
        write_programs(f, &self.packets.programs)
    }
}

impl Document {
    fn write_costs(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "\n## CPU time as a multiple of the host without steer\n")?;
        write!(f, "| process |")?;
        for costs in &self.packets.costs {
            let reference = costs.reference.median();
            write!(f, " {} (1 = {reference:.0} ns) |", costs.workload.title())?;
        }
        writeln!(f, "\n|---|{}", "---|".repeat(self.packets.costs.len()))?;
        for (index, name) in self.packets.names.iter().enumerate() {
            write!(f, "| {name} |")?;
            for costs in &self.packets.costs {
                write!(f, " {} |", spread(&costs.ratios[index]))?;
            }
            writeln!(f)?;
        }
        Ok(())
    }

    fn write_agent(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Load { few, many } = &self.load;
        writeln!(
            f,
            "\n## The agent\n\n| what | {FEW} policies | {} policies |",
            self.extent.policies
        )?;
        writeln!(f, "|---|---|---|")?;
        let mut line =
            |what: &str, few: String, many: String| writeln!(f, "| {what} | {few} | {many} |");
        let time = |sample: &Sample| format!("{:.0} ms", sample.median());
        line(
            "start to the policy's decision",
            time(&few.ready),
            time(&many.ready),
        )?;
        line(
            "the same, everything in force already",
            time(&few.again),
            time(&many.again),
        )?;
        line("`policy set` by the API", times(&few.set), times(&many.set))?;
        line(
            "`policy set` by the command line",
            times(&few.command),
            times(&many.command),
        )
    }
}

fn write_programs(f: &mut fmt::Formatter<'_>, all: &[Runs]) -> fmt::Result {
    writeln!(f, "\n## Kernel programs\n\n{PROGRAMS}\n")?;
    writeln!(
        f,
        "| process | workload | programs, ns a run | together, ns |\n|---|---|---|---|"
    )?;
    for runs in all {
        let Runs {
            subject, workload, ..
        } = runs;
        writeln!(
            f,
            "| {subject} | {} | {} | {:.0} |",
            workload.title(),
            runs.sum(),
            runs.total()
        )?;
    }
    Ok(())
}

fn limit(what: String, target: &str, below: f64, found: f64, measured: String) -> Row {
    let missed = (found >= below).then(|| format!("{measured} instead of {target}."));
    Row {
        what,
        target: target.to_owned(),
        measured,
        recipe: "-".to_owned(),
        missed,
    }
}

/// Median and the middle half.
fn spread(sample: &Sample) -> String {
    let (low, high) = sample.quartiles();
    format!("{:.3} ({low:.2} to {high:.2})", sample.median())
}

/// Milliseconds: the median and the worst of a hundred.
fn times(sample: &Sample) -> String {
    format!(
        "{:.2} ms (p99 {:.2})",
        sample.median(),
        sample.quantile(0.99)
    )
}

const PROGRAMS: &str = "\
What the programs took for one packet or connection, by the kernel's own count (`BPF_ENABLE_STATS`) less \
what it counts for a program that does nothing.";

const METHOD: &str = "\
Every configuration is a laboratory of its own: a host in a network namespace with three uplinks (veth) \
to peers, and a cgroup. All stand at the same time. A process in each sends bursts of some two \
milliseconds in turn, always on the same CPU and each between two bursts of the host without steer; a \
ratio is a burst by the mean of these two. Shown are the median of all rounds and, in brackets, the \
middle half. The measure is the sending thread's CPU time: a veth hands packets over in the sender's \
context, so it holds all that a packet costs on its way, softirq included. Datagrams are dropped when \
they arrive at the peer. Of a TCP connection `socket`, `setsockopt(SO_LINGER)`, `connect` and `close` \
(by RST) count. The second host without steer shows how exact the method is: it should be 1. \
Since all stand together, switches that the kernel keeps for the whole machine (is any program of this \
kind attached anywhere?) are on for the host without steer too.

A host without any policy routing skips the kernel's rules altogether (`fib_has_custom_rules`); the \
first rule of anybody, a VPN's for instance, ends that until the host restarts. The host with one \
unrelated routing rule shows this fixed price, which is in every ratio of steer and of the recipe.

The nft recipe is the usual one: `socket cgroupv2` sets a mark in a chain of type `route`, a rule leads \
the mark to a table, masquerade mends the source.
";
