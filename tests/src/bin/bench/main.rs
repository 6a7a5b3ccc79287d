//! `cargo xtask bench`: what steer costs, side by side with the same host without it and with the usual
//! recipe, as ratios.
//!
//! Every configuration is a laboratory of its own, and all of them stand at the same time. A process in
//! each sends bursts of a few milliseconds in turn, always on the same CPU, so that whatever else the
//! machine does meets all of them alike. Nothing is asserted: the numbers go to standard output and to
//! `docs/benchmarks.md`.

mod api;
mod carrier;
mod clock;
mod document;
mod failover;
mod kept;
mod kernel;
mod load;
mod machine;
mod packets;
mod programs;
mod recipe;
mod rounds;
mod sites;
mod statistics;
mod targets;
mod worker;
mod workload;

use std::process::ExitCode;

use anyhow::{Result, bail};

const HELP: &str = "\
usage: cargo xtask bench [--quick] [--cgroups N] [--policies N] [--rules N]

--quick        a few rounds only, to see that everything works; docs/benchmarks.md is left alone
--cgroups N    of the many policies' cgroups, how many really exist (default 2000)
--policies N   how many are many (default 100000)
--rules N      of a policy, how many are many (default 10000)
";

/// How much is measured.
#[derive(Clone, Copy, Debug)]
struct Extent {
    /// Turns of every measured process.
    rounds: usize,
    /// Policies of the laboratory with many.
    policies: usize,
    /// How many of their cgroups exist.
    cgroups: usize,
    /// Rules of the policy with many.
    rules: usize,
    /// `policy set` calls timed.
    sets: usize,
    /// Carrier losses timed.
    losses: usize,
    /// Dead paths timed.
    blackholes: usize,
    /// Starts of the agent timed, each with few and with many policies.
    starts: usize,
    /// Whether the document is written.
    document: bool,
}

impl Extent {
    const FULL: Self = Self {
        rounds: 150,
        policies: 100_000,
        cgroups: 2_000,
        rules: 10_000,
        sets: 200,
        losses: 30,
        blackholes: 10,
        starts: 2,
        document: true,
    };
    const QUICK: Self = Self {
        rounds: 10,
        policies: 2_000,
        cgroups: 100,
        rules: 1_000,
        sets: 20,
        losses: 3,
        blackholes: 2,
        starts: 1,
        document: false,
    };
}

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let result = match arguments.first().map(String::as_str) {
        Some(worker::COMMAND) => worker::serve(&arguments[1..]),
        Some("--help" | "-h") => {
            print!("{HELP}");
            Ok(())
        }
        _ => extent(&arguments).and_then(bench),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("bench: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn extent(arguments: &[String]) -> Result<Extent> {
    let quick = arguments.iter().any(|argument| argument == "--quick");
    let mut extent = if quick { Extent::QUICK } else { Extent::FULL };
    let mut arguments = arguments.iter();
    while let Some(argument) = arguments.next() {
        let number = match argument.as_str() {
            "--quick" => continue,
            "--cgroups" => &mut extent.cgroups,
            "--policies" => &mut extent.policies,
            "--rules" => &mut extent.rules,
            other => bail!("unknown argument {other}\n{HELP}"),
        };
        match arguments.next().map(|value| value.parse()) {
            Some(Ok(value)) => *number = value,
            _ => bail!("{argument} wants a number\n{HELP}"),
        }
    }
    Ok(extent)
}

fn bench(extent: Extent) -> Result<()> {
    let machine = machine::Machine::read()?;
    let packets = packets::measure(&extent)?;
    let load = load::measure(&extent)?;
    let failover = failover::measure(&extent)?;
    let document = document::Document {
        extent,
        machine,
        packets,
        load,
        failover,
    };
    print!("{document}");
    if extent.document {
        document.write()
    } else {
        Ok(())
    }
}
