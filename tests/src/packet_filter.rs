//! `nft` and `tc`, run inside a namespace.

use std::io::Write;
use std::process::Stdio;

use anyhow::{Context, Result, ensure};

use crate::namespace::Namespace;

/// Gives rules to `nft`, and returns what it prints.
///
/// # Errors
/// If it refuses, with its words.
pub(crate) fn nft(namespace: &Namespace, rules: &str) -> Result<String> {
    let mut child = namespace
        .command("nft")
        .args(["-f", "-"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .context("start nft (nftables)")?;
    let mut input = child.stdin.take().context("nft's standard input")?;
    input.write_all(rules.as_bytes()).context("write to nft")?;
    drop(input);
    let output = child.wait_with_output().context("wait for nft")?;
    ensure!(
        output.status.success(),
        "nft: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// Runs `tc` with the words of `arguments`.
///
/// # Errors
/// If it fails, with its words.
pub(crate) fn tc(namespace: &Namespace, arguments: &str) -> Result<String> {
    let output = namespace
        .command("tc")
        .args(arguments.split_whitespace())
        .output()
        .context("start tc (iproute2)")?;
    ensure!(
        output.status.success(),
        "tc {arguments}: {}",
        String::from_utf8_lossy(&output.stderr).trim()
    );
    String::from_utf8(output.stdout).context("tc printed something that is not UTF-8")
}
