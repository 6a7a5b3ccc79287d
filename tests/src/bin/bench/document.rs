//! The results as a page for readers.

use std::fmt;
use std::fs;
use std::path::Path;

use anyhow::{Context, Result};

use crate::Extent;
use crate::failover::Failover;
use crate::load::{FEW, Load};
use crate::machine::Machine;
use crate::packets::Packets;
use crate::programs::Runs;
use crate::statistics::Sample;
use crate::targets::{self, Row, spread, times};

/// Everything that was measured.
#[derive(Debug)]
pub(crate) struct Document {
    pub(crate) extent: Extent,
    pub(crate) machine: Machine,
    pub(crate) packets: Packets,
    pub(crate) load: Load,
    pub(crate) failover: Failover,
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
}

impl fmt::Display for Document {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "# Benchmarks\n\nWritten by `cargo xtask bench`. {}.\n",
            self.machine
        )?;
        f.write_str(METHOD)?;
        let rows = targets::rows(self);
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

const PROGRAMS: &str = "\
What the programs took for one packet or connection, by the kernel's own count (`BPF_ENABLE_STATS`) less \
what it counts for a program that does nothing. `guard` and `ingress` are at the interfaces, `egress` is the \
backstop in the cgroup for interfaces that came while no agent ran.";

const METHOD: &str = "\
Every configuration is a laboratory of its own: a host in a network namespace with three uplinks (veth) \
to peers, and a cgroup. All stand at the same time. A process in each sends bursts of some two \
milliseconds in turn, always on the same CPU and each between two bursts of the host without steer; a \
ratio is a burst by the mean of these two. Shown are the median of all rounds and, in brackets, the \
middle half. The measure is the sending thread's CPU time: a veth hands packets over in the sender's \
context, so it holds all that a packet costs on its way, softirq included. Datagrams are dropped when \
they arrive at the peer. Of a TCP connection `socket`, `setsockopt(SO_LINGER)`, `connect` and `close` \
(by RST) count. Transfers go over one connection, whose two ends one thread serves in turns, so the time is \
that of both; throughput is its inverse. What is older than its policy is a connected UDP socket, and a \
connection whose first SYN was lost before the policy came. The second host without steer shows how exact \
the method is: it should be 1. Since all stand together, switches that the kernel keeps for the whole machine (is any program of this \
kind attached anywhere?) are on for the host without steer too.

A host without any policy routing skips the kernel's rules altogether (`fib_has_custom_rules`); the \
first rule of anybody, a VPN's for instance, ends that until the host restarts. The host with one \
unrelated routing rule shows this fixed price, which is in every ratio of steer and of the recipe.

The nft recipe is the usual one: `socket cgroupv2` sets a mark in a chain of type `route`, a rule leads \
the mark to a table, masquerade mends the source.
";
