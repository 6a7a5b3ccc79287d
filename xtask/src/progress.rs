//! What the user sees while a command works: one line a step, with the seconds since the start.

use std::sync::OnceLock;
use std::time::Instant;

/// Prints one line about a step.
///
/// To standard error, as cargo does, so that the output of a program that is run stays clean.
pub(crate) fn step(text: impl std::fmt::Display) {
    static START: OnceLock<Instant> = OnceLock::new();
    let elapsed = START.get_or_init(Instant::now).elapsed().as_secs_f64();
    eprintln!("[{elapsed:6.1} s] {text}");
}
