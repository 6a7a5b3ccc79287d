//! Rows of FEATURES.md that a test has proved, written down for `docs/conformance.md`.

use std::path::Path;

use anyhow::{Context, Result};
use serde_json::json;

/// Records that `row` holds, as `scenario` (a sentence) shows. Called last in the test that shows it.
///
/// Writes one JSON file to `$STEER_CONFORMANCE_DIR`; does nothing if that is not set.
///
/// # Errors
/// If the file cannot be written.
pub fn row(row: &str, scenario: &str) -> Result<()> {
    let Some(directory) = std::env::var_os("STEER_CONFORMANCE_DIR") else {
        return Ok(());
    };
    let directory = Path::new(&directory);
    std::fs::create_dir_all(directory).context("make the conformance directory")?;
    let kernel = nix::sys::utsname::uname().context("ask for the kernel's release")?;
    let record = json!({
        "row": row,
        "scenario": scenario,
        "kernel": kernel.release().to_string_lossy(),
    });
    let file = tempfile::Builder::new()
        .prefix(&format!("{row}-"))
        .suffix(".json")
        .tempfile_in(directory)
        .context("make a conformance file")?;
    serde_json::to_writer_pretty(&file, &record).context("write a conformance file")?;
    file.keep().context("keep a conformance file")?;
    Ok(())
}
