//! What is measured of a domain by its checks: round-trip time, its variation, and loss.

use std::collections::VecDeque;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::Counted;
use crate::criteria::{Bandwidth, Loss};
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
    /// When its interface's counters were read last, since boot, and what they said.
    counted: Option<(Duration, Counted)>,
    /// The most that it was seen to carry, bit/s.
    peak: Option<Bandwidth>,
}

/// No answer takes longer.
const LONGEST: Duration = Duration::from_secs(3600);

impl Measured {
    /// Whether it can have been measured.
    pub(super) fn is_sane(&self) -> bool {
        let latency = self.latency.unwrap_or_default();
        latency <= LONGEST && self.jitter <= LONGEST && self.recent.len() <= REPORTS
    }

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

    /// Takes in what the counters of its interface say.
    pub(super) fn count(&mut self, counted: Counted, now: Duration) {
        let before = self.counted.replace((now, counted));
        let Some((at, before)) = before else { return };
        let time = now.saturating_sub(at).as_micros();
        let bytes = |now: u64, before: u64| now.checked_sub(before).map(u128::from);
        // Counters that went back are another interface's.
        let received = bytes(counted.received, before.received);
        let sent = bytes(counted.sent, before.sent);
        let bits = received.max(sent).map(|bytes| bytes * 8 * 1_000_000);
        let rate = bits.and_then(|bits| bits.checked_div(time));
        let rate = rate.and_then(|rate| u64::try_from(rate).ok());
        self.peak = self.peak.max(rate.filter(|rate| *rate > 0).map(Bandwidth));
    }

    /// The most that it was seen to carry in one direction between two checks: it carries that much, and may
    /// carry more.
    pub fn bandwidth(&self) -> Option<Bandwidth> {
        self.peak
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
