//! What is measured of a domain by its checks: round-trip time, its variation, and loss.

use std::collections::VecDeque;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::criteria::Loss;
use crate::probe::Report;

/// Reports that loss is counted over.
const REPORTS: usize = 20;

/// What was measured.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Measured {
    /// Smoothed round-trip time (RFC 6298, section 2).
    latency: Option<Duration>,
    /// Its smoothed variation.
    jitter: Duration,
    /// Questions and those without an answer, of the last reports.
    recent: VecDeque<(u32, u32)>,
}

impl Measured {
    pub(super) fn note(&mut self, report: &Report) {
        if report.asked > 0 {
            if self.recent.len() == REPORTS {
                self.recent.pop_front();
            }
            let lost = report.lost.min(report.asked);
            self.recent.push_back((report.asked, lost));
        }
        let Some(rtt) = report.rtt else { return };
        match self.latency {
            None => {
                self.latency = Some(rtt);
                self.jitter = rtt / 2;
            }
            Some(latency) => {
                self.jitter = (self.jitter * 3 + latency.abs_diff(rtt)) / 4;
                self.latency = Some((latency * 7 + rtt) / 8);
            }
        }
    }

    /// Round-trip time.
    pub fn latency(&self) -> Option<Duration> {
        self.latency
    }

    /// How much it varies.
    pub fn jitter(&self) -> Option<Duration> {
        self.latency.map(|_| self.jitter)
    }

    /// The part of what was asked that had no answer.
    pub fn loss(&self) -> Option<Loss> {
        let (asked, lost) = self
            .recent
            .iter()
            .fold((0_u64, 0_u64), |(asked, lost), one| {
                (asked + u64::from(one.0), lost + u64::from(one.1))
            });
        let permille = (lost * 1_000).checked_div(asked)?;
        u16::try_from(permille).ok().map(Loss)
    }
}
