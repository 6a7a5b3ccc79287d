//! `cargo xtask build`: the release binary `target/release/steer`, kernel programs embedded.

use std::fs;
use std::path::PathBuf;

use anyhow::{Context as _, Result};

use crate::setup::{self, Toolchain};
use crate::{cargo, progress};

/// Features of the agent that no release has.
pub(crate) const FURTHER: &str = "next-layout,log-programs";

/// The release binary and the toolchain that its kernel programs were built with.
pub(crate) struct Built {
    /// Absolute path of `steer`.
    pub(crate) binary: PathBuf,
    /// For further cargo commands that build the agent.
    pub(crate) toolchain: Toolchain,
}

/// Sets up what the build needs and builds; nothing here needs root once all is installed.
pub(crate) fn run() -> Result<Built> {
    let toolchain = setup::for_build()?;
    progress::step("building steer (release)");
    let binary = cargo::build_binary(
        cargo::with_kernel_toolchain(&toolchain)?,
        "steer",
        &["--release", "--package", "steer"],
    )?;
    let size = binary
        .metadata()
        .with_context(|| format!("read the size of {}", binary.display()))?
        .len();
    progress::step(format_args!(
        "built {} ({:.1} MB)",
        binary.display(),
        size as f64 / 1e6
    ));
    Ok(Built { binary, toolchain })
}

/// Builds the agent whose kernel maps have another layout, for the upgrade scenarios, and whose kernel
/// programs log what they decide, and returns its path, which is not that of `steer`.
///
/// In the profile of the tests, whose dependencies are built anyway.
pub(crate) fn next_layout(toolchain: &Toolchain) -> Result<PathBuf> {
    progress::step("building steer with the next layout and programs that log (debug)");
    let binary = cargo::build_binary(
        cargo::with_kernel_toolchain(toolchain)?,
        "steer",
        &["--package", "steer", "--features", FURTHER],
    )?;
    let next = binary.with_file_name("steer-next-layout");
    fs::rename(&binary, &next).with_context(|| format!("rename {}", binary.display()))?;
    Ok(next)
}
