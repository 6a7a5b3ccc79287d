//! `cargo xtask build`: the release binary `target/release/steer`, kernel programs embedded.

use std::path::PathBuf;

use anyhow::{Context as _, Result};

use crate::setup::{self, Toolchain};
use crate::{cargo, progress};

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
