//! `cargo xtask bench`: steer measured beside the unsteered host and the usual recipe.

use std::ffi::OsString;
use std::os::unix::process::CommandExt as _;
use std::process::Command;

use anyhow::{Result, anyhow};

use crate::{build, cargo, progress, setup};

/// Arguments of `cargo xtask bench`.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Given to the bench as they are
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    args: Vec<OsString>,
}

/// Builds everything with optimisation and becomes the bench.
pub(crate) fn run(args: &Args) -> Result<()> {
    setup::for_running()?;
    let built = build::run()?;
    progress::step("building the bench (release)");
    let bench = cargo::build_binary(
        cargo::command(),
        "bench",
        &["--release", "--package", "steer-tests"],
    )?;
    progress::step("bench");
    let mut command = Command::new(&bench);
    command
        .args(&args.args)
        .env("STEER_BIN", &built.binary)
        .current_dir(cargo::workspace());
    cargo::without_own_package(&mut command);
    let error = command.exec();
    Err(anyhow!(error).context(format!("start {}", bench.display())))
}
