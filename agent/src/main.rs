//! The `steer` command: parses, dispatches, and prints what went wrong.

use std::process::ExitCode;

use steer::cli;

fn main() -> ExitCode {
    match cli::dispatch(cli::parse()) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("{}", cli::message(&error));
            cli::exit_code(&error)
        }
    }
}
