//! What every kernel program takes, by the kernel's own count, apart from the timed rounds: counting
//! costs some twenty nanoseconds a run itself.

use std::collections::BTreeMap;

use anyhow::Result;

use crate::kernel::{Program, enable_statistics};
use crate::sites::Subject;
use crate::workload::Workload;

/// Bursts of every workload.
const BURSTS: usize = 20;

/// What programs took while one process sent.
#[derive(Debug)]
pub(crate) struct Runs {
    /// The process.
    pub(crate) subject: &'static str,
    /// Of each program that ran: runs and nanoseconds for each.
    pub(crate) programs: BTreeMap<String, (u64, f64)>,
}

/// Lets `subject` send while the programs of its laboratory are counted.
pub(crate) fn count(subject: &mut Subject, programs: &[Program]) -> Result<Runs> {
    let statistics = enable_statistics()?;
    let before = programs.iter().map(Program::counted).collect::<Result<Vec<_>>>()?;
    for workload in Workload::ALL {
        for _ in 0..BURSTS {
            subject.worker.burst(workload)?;
        }
    }
    let mut found = BTreeMap::new();
    for (program, before) in programs.iter().zip(before) {
        let after = program.counted()?;
        let runs = after.runs - before.runs;
        if runs > 0 {
            #[expect(clippy::cast_precision_loss, reason = "a bench takes no 104 days")]
            let each = (after.nanoseconds - before.nanoseconds) as f64 / runs as f64;
            found.insert(program.name.clone(), (runs, each));
        }
    }
    drop(statistics);
    Ok(Runs { subject: subject.name, programs: found })
}
