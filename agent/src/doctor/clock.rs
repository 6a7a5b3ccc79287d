//! The clock: TLS and what is remembered of networks need it.

use std::time::{Duration, SystemTime};

use super::code::Code;
use super::finding::Finding;

/// What is known of the clock.
#[derive(Clone, Copy, Debug)]
pub struct ClockFacts {
    /// What it shows.
    pub now: SystemTime,
    /// When the file of this program was made, if that is known: it cannot be later than now.
    pub built: Option<SystemTime>,
    /// A time service has told the kernel that it is right.
    pub synchronised: Option<bool>,
}

/// A day: clocks of the machines that build and that run may differ by their zones.
const TOLERANCE: Duration = Duration::from_secs(86_400);

/// Looks.
pub(super) fn gather() -> ClockFacts {
    let program = std::env::current_exe().and_then(|path| path.metadata());
    ClockFacts {
        now: SystemTime::now(),
        built: program.and_then(|file| file.modified()).ok(),
        synchronised: synchronised(),
    }
}

fn synchronised() -> Option<bool> {
    // SAFETY: all zeroes are a valid timex.
    let mut timex: libc::timex = unsafe { std::mem::zeroed() };
    // SAFETY: without modes it only reads, and writes no more than the structure.
    let state = unsafe { libc::adjtimex(&raw mut timex) };
    (state >= 0).then_some(timex.status & libc::STA_UNSYNC == 0)
}

/// Judges.
pub(super) fn judge(facts: &ClockFacts, findings: &mut Vec<Finding>) {
    if let Some(built) = facts.built
        && facts.now + TOLERANCE < built
    {
        let text = format!(
            "the clock shows {}, and this program was built at {}",
            humantime::format_rfc3339_seconds(facts.now),
            humantime::format_rfc3339_seconds(built)
        );
        findings.push(Finding::new(Code::T01, text).mend("timedatectl set-ntp true"));
    }
    if facts.synchronised == Some(false) {
        let text = "no time service has told the kernel that the clock is right";
        findings.push(Finding::new(Code::T02, text).mend("timedatectl set-ntp true"));
    }
}
