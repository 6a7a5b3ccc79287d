//! `cargo xtask demo`: the small internet of network namespaces, with the real agent in it.

use std::os::unix::process::CommandExt as _;
use std::process::Command;

use anyhow::{Result, anyhow};

use crate::{build, cargo, progress, setup};

/// Builds what is shown and becomes the demo.
pub(crate) fn run() -> Result<()> {
    setup::for_running()?;
    let built = build::run()?;
    progress::step("building the demo");
    // The probe is what sends the demo's traffic; the demo finds it beside itself.
    let demo = cargo::build_binary(
        cargo::command(),
        "demo",
        &["--package", "steer-tests", "--bin", "steer-probe"],
    )?;
    progress::step("demo");
    let mut command = Command::new(&demo);
    command.env("STEER_BIN", &built.binary);
    cargo::without_own_package(&mut command);
    // Becoming the demo, instead of waiting for it, gives every signal to it alone, and whoever
    // waits for this process waits for its clean-up.
    let error = command.exec();
    Err(anyhow!(error).context(format!("start {}", demo.display())))
}
