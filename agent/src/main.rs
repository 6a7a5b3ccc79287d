//! The `steer` command: parses, dispatches, and prints what went wrong, once.

use std::process::ExitCode;

use clap::Parser;
use steer::cli::{self, Cli};

fn main() -> ExitCode {
    match cli::dispatch(Cli::parse()) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("steer: {}", cli::clean(&format!("{error:#}")));
            cli::exit_code(&error)
        }
    }
}
