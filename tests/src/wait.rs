//! Waiting for a condition with a deadline; nothing in the laboratory sleeps for a guessed time.

use std::time::{Duration, Instant};

use anyhow::{Result, bail};

/// How long the laboratory waits for anything that should happen at once.
pub const DEADLINE: Duration = Duration::from_secs(10);

/// Polls `condition` every two milliseconds until it returns `Some`.
///
/// # Errors
/// After [`DEADLINE`], naming `what` was waited for, or as soon as `condition` fails.
pub fn until<T>(what: &str, condition: impl FnMut() -> Result<Option<T>>) -> Result<T> {
    until_within(DEADLINE, what, condition)
}

/// [`until`] with a deadline of its own.
///
/// # Errors
/// As [`until`].
pub fn until_within<T>(
    deadline: Duration,
    what: &str,
    mut condition: impl FnMut() -> Result<Option<T>>,
) -> Result<T> {
    let start = Instant::now();
    loop {
        if let Some(value) = condition()? {
            return Ok(value);
        }
        if start.elapsed() > deadline {
            bail!("waited {deadline:?} in vain: {what}");
        }
        std::thread::sleep(Duration::from_millis(2));
    }
}
