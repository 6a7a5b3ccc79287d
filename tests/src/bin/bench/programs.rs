//! What every kernel program takes, by the kernel's own count, apart from the timed rounds: counting
//! costs more than some programs do, and is taken off again.

use std::collections::BTreeMap;
use std::fmt::Write;

use anyhow::Result;

use crate::kernel::{Program, cost_of_counting, enable_statistics};
use crate::sites::Subject;
use crate::workload::Workload;

/// Bursts of every workload.
const BURSTS: usize = 20;

/// What programs took while one process did one thing.
#[derive(Debug)]
pub(crate) struct Runs {
    /// The process.
    pub(crate) subject: &'static str,
    /// What it did.
    pub(crate) workload: Workload,
    /// The programs that ran.
    pub(crate) programs: BTreeMap<String, Cost>,
}

/// What a program took.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Cost {
    /// Runs for one unit.
    pub(crate) runs: f64,
    /// Nanoseconds of one run.
    pub(crate) nanoseconds: f64,
}

impl Runs {
    /// Nanoseconds of all programs for one unit.
    pub(crate) fn total(&self) -> f64 {
        self.counted()
            .map(|(_, cost)| cost.runs * cost.nanoseconds)
            .sum()
    }

    /// Programs that ran for the units themselves: others ran once in a burst, or for other processes.
    fn counted(&self) -> impl Iterator<Item = (&String, &Cost)> {
        self.programs.iter().filter(|(_, cost)| cost.runs >= 0.1)
    }

    /// `sock-create 90 + connect4 2 x 110`, the dearest first.
    pub(crate) fn sum(&self) -> String {
        let mut programs: Vec<_> = self.counted().collect();
        let dear = |cost: &Cost| cost.runs * cost.nanoseconds;
        programs.sort_by(|(_, one), (_, other)| dear(other).total_cmp(&dear(one)));
        let mut text = String::new();
        for (name, Cost { runs, nanoseconds }) in programs {
            let times = if (runs - 1.0).abs() < 0.05 {
                String::new()
            } else {
                format!("{runs:.1} x ")
            };
            let plus = if text.is_empty() { "" } else { " + " };
            // Writing to a string does not fail.
            let _: std::fmt::Result = write!(text, "{plus}{name} {times}{nanoseconds:.0}");
        }
        text
    }
}

/// Lets `subject` send while the programs of its laboratory are counted.
pub(crate) fn count(subject: &mut Subject, programs: &[Program]) -> Result<Vec<Runs>> {
    let counting = cost_of_counting()?;
    let statistics = enable_statistics()?;
    let mut all = Vec::new();
    for &workload in subject.workloads {
        let before = programs
            .iter()
            .map(Program::counted)
            .collect::<Result<Vec<_>>>()?;
        for _ in 0..BURSTS {
            subject.worker.burst(workload)?;
        }
        let mut found = BTreeMap::new();
        for (program, before) in programs.iter().zip(before) {
            let after = program.counted()?;
            let runs = precise(after.runs - before.runs);
            if runs > 0.0 {
                let each = precise(after.nanoseconds - before.nanoseconds) / runs;
                let nanoseconds = (each - counting).max(0.0);
                let runs = runs / precise((BURSTS * workload.sent()) as u64);
                found.insert(program.name.clone(), Cost { runs, nanoseconds });
            }
        }
        all.push(Runs {
            subject: subject.name,
            workload,
            programs: found,
        });
    }
    drop(statistics);
    Ok(all)
}

fn precise(count: u64) -> f64 {
    #[expect(clippy::cast_precision_loss, reason = "far below 2^53")]
    let count = count as f64;
    count
}
