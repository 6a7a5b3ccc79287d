//! Installing Debian packages.

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
}
