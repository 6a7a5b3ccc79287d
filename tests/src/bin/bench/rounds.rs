//! Bursts in turn: each process is compared with the reference just before and just after it.

use anyhow::{Context, Result};

use crate::sites::Subject;
use crate::statistics::Sample;
use crate::worker::Worker;
use crate::workload::Workload;

/// What a workload cost.
#[derive(Debug)]
pub(crate) struct Costs {
    /// The workload.
    pub(crate) workload: Workload,
    /// CPU time of one unit at the reference, in nanoseconds.
    pub(crate) reference: Sample,
    /// Of each subject, in their order: its cost as a multiple of the reference's; empty where it does
    /// something else.
    pub(crate) ratios: Vec<Sample>,
}

/// Measures all workloads.
pub(crate) fn alternate(
    reference: &mut Worker,
    subjects: &mut [Subject],
    rounds: usize,
) -> Result<Vec<Costs>> {
    let workloads = Workload::ALL;
    let mut references = vec![Vec::new(); workloads.len()];
    let mut ratios = vec![vec![Vec::new(); subjects.len()]; workloads.len()];
    for round in 0..rounds {
        for (index, workload) in workloads.into_iter().enumerate() {
            let mut before = reference.burst(workload)?;
            for turn in 0..subjects.len() {
                // Another order in each round, so that none always follows the same one.
                let turn = (turn + round) % subjects.len();
                let subject = &mut subjects[turn];
                if !subject.workloads.contains(&workload) {
                    continue;
                }
                let spent = subject
                    .worker
                    .burst(workload)
                    .with_context(|| format!("{}: {}", subject.name, workload.title()))?;
                let after = reference.burst(workload)?;
                ratios[index][turn].push(spent * 2.0 / (before + after));
                references[index].push(after);
                before = after;
            }
        }
    }
    Ok(workloads
        .into_iter()
        .zip(references.into_iter().zip(ratios))
        .map(|(workload, (reference, ratios))| Costs {
            workload,
            reference: Sample::new(reference),
            ratios: ratios.into_iter().map(Sample::new).collect(),
        })
        .collect())
}
