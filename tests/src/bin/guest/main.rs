//! Scenarios that run in a virtual machine: `guest SCENARIO`, started by the machine's init.
//!
//! The machine is nobody else's, so they make their laboratory there as any test does at its host.

mod wlan;

use std::process::ExitCode;

fn main() -> ExitCode {
    let scenario = std::env::args().nth(1).unwrap_or_default();
    let done = match scenario.as_str() {
        "wlan" => wlan::run(),
        other => {
            eprintln!("guest: no scenario {other:?}");
            return ExitCode::from(2);
        }
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("guest: {error:?}");
            ExitCode::FAILURE
        }
    }
}
