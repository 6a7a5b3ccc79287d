//! The clocks that the agent goes by. The core takes none: it is told the time.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use nix::time::{ClockId, clock_gettime};
use steer_core::health::Now;
use tokio::time::Instant;

/// Time since boot, sleep included.
pub(super) fn since_boot() -> Duration {
    clock_gettime(ClockId::CLOCK_BOOTTIME).map_or(Duration::ZERO, Duration::from)
}

/// The time by both clocks.
pub(super) fn now() -> Now {
    let wall = SystemTime::now().duration_since(UNIX_EPOCH);
    Now {
        boot: since_boot(),
        wall: wall.map_or(0, |since| since.as_secs()),
    }
}

/// When a time since boot is to come, for the runtime's clock.
pub(super) fn instant(at: Duration) -> Instant {
    Instant::now() + at.saturating_sub(since_boot())
}

/// A time since boot by the wall clock.
pub(super) fn wall(at: Duration) -> SystemTime {
    let now = SystemTime::now();
    now.checked_sub(since_boot().saturating_sub(at))
        .unwrap_or(UNIX_EPOCH)
}

/// A time as changes show it: RFC 3339 with milliseconds, UTC.
pub(super) fn precise(time: SystemTime) -> String {
    humantime::format_rfc3339_millis(time).to_string()
}
