//! Calling cargo from inside `cargo xtask`.

use std::env;
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, anyhow, bail};
use serde_json::Value;

use crate::process;
use crate::setup::Toolchain;

/// The workspace's directory.
///
/// Cargo tells it at run time; the path compiled in serves a binary that is called directly.
pub(crate) fn workspace() -> PathBuf {
    let manifest = env::var_os("CARGO_MANIFEST_DIR")
        .unwrap_or_else(|| OsString::from(env!("CARGO_MANIFEST_DIR")));
    let manifest = PathBuf::from(manifest);
    manifest.parent().map_or(manifest.clone(), Path::to_owned)
}

/// Cargo in the workspace, by the toolchain that runs this program.
pub(crate) fn command() -> Command {
    let program = env::var_os("CARGO").unwrap_or_else(|| OsString::from("cargo"));
    let mut command = Command::new(program);
    command
        .current_dir(workspace())
        // .cargo/config.toml sets it for build scripts; it reaches what `cargo run` runs, too.
        .env_remove("CARGO_TERM_QUIET");
    without_own_package(&mut command);
    command
}

/// Cargo with what the build of the kernel programs needs in its environment.
pub(crate) fn with_kernel_toolchain(toolchain: &Toolchain) -> Result<Command> {
    let mut command = command();
    toolchain.apply(&mut command)?;
    Ok(command)
}

/// Removes what cargo told this program about the package `xtask`: build scripts that watch such a
/// variable would run again at each change between `cargo xtask` and plain `cargo`.
pub(crate) fn without_own_package(command: &mut Command) {
    for (name, _) in env::vars_os() {
        let known = name.to_string_lossy();
        if known.starts_with("CARGO_PKG_") || known.starts_with("CARGO_MANIFEST_") {
            command.env_remove(&name);
        }
    }
}

/// Runs `cargo build` with these arguments and returns the path of the binary `name`.
///
/// Cargo itself says where the binary is, so CARGO_TARGET_DIR and cargo's configuration count.
pub(crate) fn build_binary(mut cargo: Command, name: &str, arguments: &[&str]) -> Result<PathBuf> {
    cargo
        .arg("build")
        .args(arguments)
        .args(["--bin", name, "--message-format=json-render-diagnostics"])
        .stdin(Stdio::null())
        .stderr(Stdio::inherit());
    let output = cargo
        .output()
        .with_context(|| format!("start `{}`", process::line(&cargo)))?;
    if !output.status.success() {
        bail!("`cargo build {}` failed", arguments.join(" "));
    }
    let messages = String::from_utf8(output.stdout).context("cargo's messages are not UTF-8")?;
    executable(&messages, name).ok_or_else(|| {
        anyhow!(
            "`cargo build {}` made no binary {name}",
            arguments.join(" ")
        )
    })
}

/// Finds the executable of the binary target `name` in cargo's messages, one JSON object a line.
fn executable(messages: &str, name: &str) -> Option<PathBuf> {
    messages
        .lines()
        .filter_map(|line| serde_json::from_str::<Value>(line).ok())
        .filter(|message| message["reason"] == "compiler-artifact")
        .filter(|message| message["target"]["name"] == name)
        .find_map(|message| message["executable"].as_str().map(PathBuf::from))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn executable_is_the_binary_of_that_name_not_its_library() {
        let messages = concat!(
            r#"{"reason":"compiler-artifact","target":{"name":"steer"},"executable":null}"#,
            "\n",
            r#"{"reason":"compiler-artifact","target":{"name":"demo"},"executable":"/t/demo"}"#,
            "\nnot json\n",
            r#"{"reason":"compiler-artifact","target":{"name":"steer"},"executable":"/t/steer"}"#,
            "\n",
            r#"{"reason":"build-finished","success":true}"#,
        );
        assert_eq!(executable(messages, "steer"), Some("/t/steer".into()));
        assert_eq!(executable(messages, "other"), None);
    }
}
