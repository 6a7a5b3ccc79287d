//! The kernel's clocks.

use std::time::Duration;

use anyhow::{Context, Result};
use nix::errno::Errno;
use nix::libc;

/// This thread's CPU time.
pub(crate) fn cpu_time() -> Result<Duration> {
    read(libc::CLOCK_THREAD_CPUTIME_ID)
}

/// The monotonic clock, which all processes share.
pub(crate) fn monotonic() -> Result<Duration> {
    read(libc::CLOCK_MONOTONIC)
}

fn read(clock: libc::clockid_t) -> Result<Duration> {
    let mut time = libc::timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    // SAFETY: the structure lives through the call.
    let result = unsafe { libc::clock_gettime(clock, &raw mut time) };
    Errno::result(result).context("read a clock")?;
    let seconds = time.tv_sec.try_into().context("seconds of a clock")?;
    Ok(Duration::new(
        seconds,
        time.tv_nsec.try_into().context("nanoseconds of a clock")?,
    ))
}
