//! The `steer` command: parses, dispatches, and prints what went wrong, one message a line.

use std::process::ExitCode;

use steer::cli;

fn main() -> ExitCode {
    match cli::dispatch(cli::parse()) {
        Ok(code) => code,
        Err(error) => {
            for message in cli::messages(&error) {
                eprintln!("steer: {message}");
            }
            cli::exit_code(&error)
        }
    }
}
