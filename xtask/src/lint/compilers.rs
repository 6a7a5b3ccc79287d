//! What the compilers say: format, clippy, rustdoc, and the kernel programs without a warning.

use std::env;
use std::process::Command;

use anyhow::{Context as _, Result};

use crate::setup::{self, Toolchain};
use crate::{build, cargo, process, progress};

/// The workspace without the kernel programs, which are no programs of this machine.
const WORKSPACE: [&str; 3] = ["--workspace", "--exclude", "steer-ebpf"];

/// Runs all and returns the names of those that failed.
pub(super) fn check() -> Result<Vec<&'static str>> {
    components()?;
    let toolchain = setup::for_build()?;

    let mut format = cargo::command();
    format.args(["fmt", "--all", "--check"]);

    let mut clippy = cargo::with_kernel_toolchain(&toolchain)?;
    clippy.arg("clippy").args(WORKSPACE);
    clippy.args(["--all-targets", "--", "-D", "warnings"]);

    let mut further = cargo::with_kernel_toolchain(&toolchain)?;
    further.args(["clippy", "--package", "steer", "--lib"]);
    further.args(["--features", build::FURTHER, "--", "-D", "warnings"]);

    let mut rustdoc = cargo::with_kernel_toolchain(&toolchain)?;
    rustdoc.args(["doc", "--no-deps"]).args(WORKSPACE);
    rustdoc.env("RUSTDOCFLAGS", "-D warnings");

    let mut failed = Vec::new();
    for (name, mend, mut command) in [
        ("format", "run `cargo fmt --all`", format),
        (
            "clippy",
            "correct the code, or `#[expect(lint, reason = \"..\")]`",
            clippy,
        ),
        ("clippy with further features", "likewise", further),
        ("rustdoc", "correct the comments", rustdoc),
        (
            "kernel programs",
            "correct the code",
            kernel_programs(&toolchain, &[])?,
        ),
        (
            "kernel programs that log",
            "correct the code",
            kernel_programs(&toolchain, &["--features", "log-programs"])?,
        ),
    ] {
        progress::step(format_args!("{name}: {}", process::line(&command)));
        if let Err(error) = process::show(&mut command) {
            progress::step(format_args!("{name}: {error:#}: {mend}"));
            failed.push(name);
        }
    }
    Ok(failed)
}

/// The kernel programs, checked by their own toolchain in a target directory of their own: the flag
/// that makes warnings errors would otherwise rebuild what agent/build.rs has built.
fn kernel_programs(toolchain: &Toolchain, features: &[&str]) -> Result<Command> {
    let mut command = toolchain.cargo(&["check", "--release", "--package", "steer-ebpf"])?;
    command.args(features);
    let workspace = cargo::workspace();
    let target = env::var_os("CARGO_TARGET_DIR").unwrap_or_else(|| "target".into());
    command
        .current_dir(&workspace)
        .arg("--target-dir")
        .arg(workspace.join(target).join("lint-ebpf"))
        .env(
            "CARGO_ENCODED_RUSTFLAGS",
            format!(
                "--cfg=bpf_target_arch=\"{}\"\x1f-Dwarnings",
                env::consts::ARCH
            ),
        );
    Ok(command)
}

/// rustfmt and clippy are components that a minimal rustup leaves out.
fn components() -> Result<()> {
    let mut missing = Vec::new();
    for (component, subcommand) in [("rustfmt", "fmt"), ("clippy", "clippy")] {
        let mut version = cargo::command();
        version.args([subcommand, "--version"]);
        if process::capture(&mut version).is_err() {
            missing.push(component);
        }
    }
    if missing.is_empty() {
        return Ok(());
    }
    let by_hand = format!("rustup component add {}", missing.join(" "));
    progress::step(&by_hand);
    process::show(
        Command::new("rustup")
            .args(["component", "add"])
            .args(&missing),
    )
    .with_context(|| format!("lint needs {}: run `{by_hand}`", missing.join(" and ")))
}
