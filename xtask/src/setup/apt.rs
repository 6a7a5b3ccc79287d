//! Installing Debian packages.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Once;

use anyhow::{Context as _, Result, bail};

use super::host;
use crate::{process, progress};

/// Whether this machine installs its packages by apt.
pub(super) fn is_here() -> bool {
    process::find("apt-get").is_some()
}

/// The command that installs these packages, as a user would type it.
pub(super) fn command_line(packages: &[&str]) -> String {
    format!(
        "apt-get install --no-install-recommends {}",
        packages.join(" ")
    )
}

/// The version that would be installed, after one `apt-get update` in this process.
pub(super) fn candidate(package: &str) -> Option<String> {
    update();
    let policy = process::capture(Command::new("apt-cache").args(["policy", package])).ok()?;
    parse_candidate(&policy)
}

fn parse_candidate(policy: &str) -> Option<String> {
    policy
        .lines()
        .find_map(|line| line.trim().strip_prefix("Candidate: "))
        .filter(|version| *version != "(none)")
        .map(str::to_owned)
}

/// What a package depends on first, after one `apt-get update` in this process.
pub(super) fn dependency(package: &str) -> Option<String> {
    update();
    let depends = process::capture(Command::new("apt-cache").args(["depends", package])).ok()?;
    parse_dependency(&depends)
}

fn parse_dependency(depends: &str) -> Option<String> {
    depends
        .lines()
        .find_map(|line| line.trim().strip_prefix("Depends: "))
        .map(str::to_owned)
}

/// Fetches a package's file into an empty directory, and returns its path.
pub(super) fn download(package: &str, into: &Path) -> Result<PathBuf> {
    process::show(
        apt_get()
            // The user that apt would fetch by may not write there.
            .args(["-o", "APT::Sandbox::User=root", "download", package])
            .current_dir(into),
    )
    .with_context(|| format!("{package} could not be fetched; try: apt-get update"))?;
    let file = fs::read_dir(into)
        .with_context(|| format!("list {}", into.display()))?
        .next()
        .with_context(|| format!("{package} was not fetched"))?;
    Ok(file
        .with_context(|| format!("list {}", into.display()))?
        .path())
}

/// Installs packages; never removes one to do so.
pub(super) fn install(packages: &[&str]) -> Result<()> {
    let by_hand = command_line(packages);
    if !host::is_root() {
        bail!("missing packages: run as root, or run: sudo {by_hand}");
    }
    update();
    progress::step(&by_hand);
    process::show(
        apt_get()
            .args(["install", "-y", "--no-install-recommends", "--no-remove"])
            .args(packages),
    )
    .with_context(|| format!("packages could not be installed; try: apt-get update && {by_hand}"))
}

/// Fetches the lists of packages once. A source that fails is no error: the others may have all.
fn update() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        if !host::is_root() {
            return;
        }
        progress::step("apt-get update");
        if let Err(error) = process::show(apt_get().arg("update")) {
            progress::step(format_args!("warning: {error:#}"));
        }
    });
}

fn apt_get() -> Command {
    let mut command = Command::new("apt-get");
    command
        .env("DEBIAN_FRONTEND", "noninteractive")
        // Another installation may be running: wait for it, but not for ever.
        .args([
            "-q",
            "-o",
            "DPkg::Lock::Timeout=300",
            "-o",
            "Dpkg::Use-Pty=0",
        ]);
    command
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn candidate_is_read_from_apts_words() {
        let known = "rustc-web:\n  Installed: (none)\n  Candidate: 1.96.0+dfsg1-1~deb12u2\n";
        assert_eq!(
            parse_candidate(known).as_deref(),
            Some("1.96.0+dfsg1-1~deb12u2")
        );
        assert_eq!(parse_candidate("x:\n  Candidate: (none)\n"), None);
        assert_eq!(parse_candidate(""), None);
    }

    #[test]
    fn dependency_is_read_from_apts_words() {
        let depends = "linux-image-amd64\n  Depends: linux-image-6.1.0-56-amd64\n";
        assert_eq!(
            parse_dependency(depends).as_deref(),
            Some("linux-image-6.1.0-56-amd64")
        );
        assert_eq!(parse_dependency("linux-image-amd64\n"), None);
    }
}
