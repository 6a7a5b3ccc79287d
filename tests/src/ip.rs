//! iproute2's `ip`, run inside a namespace.

use std::io::Write;
use std::process::Stdio;

use anyhow::{Context, Result, bail};
use serde_json::Value;

use crate::namespace::Namespace;

/// Runs `ip ARGS` inside `namespace` and returns what it printed.
///
/// # Errors
/// If `ip` fails, with its words.
pub fn ip(namespace: &Namespace, args: &[&str]) -> Result<String> {
    let output = namespace
        .command("ip")
        .args(args)
        .output()
        .context("start ip (iproute2)")?;
    if !output.status.success() {
        bail!(
            "ip {}: {}",
            args.join(" "),
            String::from_utf8_lossy(&output.stderr).trim()
        );
    }
    String::from_utf8(output.stdout).context("ip printed something that is not UTF-8")
}

/// `ip -json ARGS`, parsed.
///
/// # Errors
/// As [`ip`].
pub fn ip_json(namespace: &Namespace, args: &[&str]) -> Result<Value> {
    let all: Vec<&str> = ["-json", "-details"].iter().chain(args).copied().collect();
    let text = ip(namespace, &all)?;
    if text.trim().is_empty() {
        return Ok(Value::Array(Vec::new()));
    }
    serde_json::from_str(&text).with_context(|| format!("parse ip {}", args.join(" ")))
}

/// Runs many `ip` commands by one process; the first that fails ends it.
///
/// # Errors
/// If a command fails, with `ip`'s words and the line.
pub fn ip_batch(namespace: &Namespace, lines: &[String]) -> Result<()> {
    if lines.is_empty() {
        return Ok(());
    }
    let mut child = namespace
        .command("ip")
        .args(["-batch", "-"])
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .context("start ip (iproute2)")?;
    let mut script = lines.join("\n");
    script.push('\n');
    child
        .stdin
        .take()
        .context("ip's standard input")?
        .write_all(script.as_bytes())
        .context("write to ip")?;
    let output = child.wait_with_output().context("wait for ip")?;
    if !output.status.success() {
        bail!(
            "ip -batch: {}\n{script}",
            String::from_utf8_lossy(&output.stderr).trim()
        );
    }
    Ok(())
}
