//! Where the programs under test are.

use std::path::PathBuf;

use anyhow::{Context, Result, bail};

/// Where Debian keeps administrators' programs; not in the PATH of every user.
const SYSTEM: [&str; 2] = ["/usr/sbin", "/sbin"];

/// The probe, built beside the scenarios.
pub(crate) fn probe() -> Result<PathBuf> {
    own("steer-probe")
}

/// A program of the laboratory's own, built beside the scenarios.
pub(crate) fn own(name: &str) -> Result<PathBuf> {
    let path = target_directory()?.join(name);
    if !path.exists() {
        bail!(
            "no {}: run: cargo build -p steer-tests --bins",
            path.display()
        );
    }
    Ok(path)
}

/// A program of the machine's.
pub(crate) fn installed(name: &str) -> Result<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .chain(SYSTEM.map(PathBuf::from))
        .map(|directory| directory.join(name))
        .find(|path| path.is_file())
        .with_context(|| format!("no {name} in PATH: run: cargo xtask setup"))
}

/// The `steer` under test: `$STEER_BIN`, else what was built last beside the scenarios.
///
/// # Errors
/// If there is none.
pub fn steer() -> Result<PathBuf> {
    if let Some(path) = std::env::var_os("STEER_BIN") {
        return std::path::absolute(path).context("make STEER_BIN absolute");
    }
    let target = target_directory()?;
    let target = target.parent().context("target directory")?;
    for profile in ["release", "debug"] {
        let path = target.join(profile).join("steer");
        if path.exists() {
            return Ok(path);
        }
    }
    bail!("no steer to test: run: cargo xtask test (or set STEER_BIN)")
}

/// A `steer` whose kernel maps have another layout and whose kernel programs log: `$STEER_BIN_NEXT`.
pub(crate) fn next_steer() -> Result<PathBuf> {
    let path = std::env::var_os("STEER_BIN_NEXT").context(
        "no steer of another layout to upgrade to: run: cargo xtask test (or set STEER_BIN_NEXT to \
         what `cargo build -p steer --features next-layout,log-programs` made)",
    )?;
    std::path::absolute(path).context("make STEER_BIN_NEXT absolute")
}

/// The profile's directory that the running test or demo was built into.
fn target_directory() -> Result<PathBuf> {
    let mut path = std::env::current_exe().context("find the running program")?;
    path.pop();
    if path.ends_with("deps") {
        path.pop();
    }
    Ok(path)
}
