//! steer's development commands: `cargo xtask COMMAND`.
//!
//! One module per command; this file only tells them apart.

mod assets;
mod bench;
mod build;
mod cargo;
mod conformance;
mod demo;
mod lint;
mod outcome;
mod process;
mod progress;
mod setup;
mod test;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

#[derive(Parser)]
#[command(bin_name = "cargo xtask", about = "steer's development commands")]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Find or install what building and testing need
    Setup,
    /// Build the release binary, kernel programs embedded
    Build,
    /// Write manual pages and completion scripts to target/assets
    Assets,
    /// Steer real programs in a small internet of network namespaces
    Demo,
    /// Run every test on the real kernel and write docs/conformance.md
    Test(test::Args),
    /// Check format, lints, docs, kernel programs, module borders and links
    Lint(lint::Args),
    /// Measure steer beside the unsteered host and write docs/benchmarks.md
    Bench(bench::Args),
}

fn main() -> ExitCode {
    let done = match Cli::parse().command {
        Command::Setup => setup::run(),
        Command::Build => build::run().map(drop),
        Command::Assets => assets::run(),
        Command::Demo => demo::run(),
        Command::Test(args) => test::run(&args),
        Command::Lint(args) => lint::run(&args),
        Command::Bench(args) => bench::run(&args),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;

    const PAGES: [&str; 2] = [
        include_str!("../../README.md"),
        include_str!("../../CONTRIBUTING.md"),
    ];

    #[test]
    fn every_command_is_in_the_pages_and_no_other() {
        let command = Cli::command();
        let mut known: Vec<_> = command
            .get_subcommands()
            .map(clap::Command::get_name)
            .collect();
        known.sort_unstable();
        let mut named: Vec<&str> = PAGES
            .iter()
            .flat_map(|page| page.split("cargo xtask ").skip(1))
            .filter_map(|rest| rest.split(|c: char| !c.is_ascii_lowercase()).next())
            .collect();
        named.sort_unstable();
        named.dedup();
        assert_eq!(named, known);
    }
}
