//! `cargo xtask assets`: manual pages and completion scripts, as below a prefix such as `/usr`.

use std::process::Command;

use anyhow::{Context as _, Result};

use crate::{build, process, progress};

/// Builds the release binary and has it write what goes with it to `target/assets`.
pub(crate) fn run() -> Result<()> {
    let built = build::run()?;
    let target = built.binary.ancestors().nth(2);
    let assets = target
        .with_context(|| format!("{} is in no target directory", built.binary.display()))?
        .join("assets");
    if assets.exists() {
        // What an older version wrote and this one does not.
        std::fs::remove_dir_all(&assets).with_context(|| format!("remove {}", assets.display()))?;
    }
    let mut command = Command::new(&built.binary);
    command.arg("generate").arg(&assets);
    process::show(&mut command)?;
    progress::step(format_args!("wrote {}", assets.display()));
    Ok(())
}
