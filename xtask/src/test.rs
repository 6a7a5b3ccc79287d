//! `cargo xtask test`: every test on the real kernel, then `docs/conformance.md` from those that
//! ran.

use std::ffi::OsString;
use std::fs;
use std::path::PathBuf;
use std::{env, io};

use anyhow::{Context as _, Result, bail};

use crate::{build, cargo, conformance, process, progress, setup};

/// Where the rows that the tests proved are written down.
const CONFORMANCE: &str = "docs/conformance.md";

/// Arguments of `cargo xtask test`.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Given to `cargo test`, for a part of the tests; docs/conformance.md is then left as it is
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    args: Vec<OsString>,
}

/// Builds the binary under test, runs the tests and writes what they proved.
pub(crate) fn run(args: &Args) -> Result<()> {
    setup::for_running()?;
    let built = build::run()?;
    let next = build::next_layout(&built.toolchain)?;

    let rows = RowsDir::new()?;
    let mut command = cargo::with_kernel_toolchain(&built.toolchain)?;
    command.arg("test");
    if !names_packages(&args.args) {
        // The kernel programs are no program of this machine: agent/build.rs builds them.
        command.args(["--workspace", "--exclude", "steer-ebpf"]);
    }
    if args.args.is_empty() {
        command.arg("--no-fail-fast");
    }
    command
        .args(&args.args)
        .env("STEER_BIN", &built.binary)
        .env("STEER_BIN_NEXT", &next)
        .env("STEER_CONFORMANCE_DIR", &rows.path);
    progress::step(process::line(&command));
    process::show(&mut command)?;

    if args.args.is_empty() {
        write_conformance(&rows)
    } else {
        progress::step(format_args!(
            "a part of the tests ran: {CONFORMANCE} is left"
        ));
        Ok(())
    }
}

/// Whether the user chose packages, which `--workspace` would override.
fn names_packages(args: &[OsString]) -> bool {
    args.iter()
        .take_while(|arg| *arg != "--")
        .any(|arg| matches!(arg.to_str(), Some(arg) if arg.starts_with("-p") || arg.starts_with("--package")))
}

/// Writes what was proved; on CI a difference is an error, because it belongs into the commit.
fn write_conformance(rows: &RowsDir) -> Result<()> {
    let table = conformance::table(&conformance::merge(&rows.read()?)?);
    let path = cargo::workspace().join(CONFORMANCE);
    let old = match fs::read_to_string(&path) {
        Ok(old) => old,
        Err(error) if error.kind() == io::ErrorKind::NotFound => String::new(),
        Err(error) => return Err(error).with_context(|| format!("read {}", path.display())),
    };
    if env::var_os("CI").is_some() {
        // The kernel is the machine's, not the commit's.
        if conformance::without_kernel(&old) != conformance::without_kernel(&table) {
            eprintln!("{table}");
            bail!("{CONFORMANCE} is stale: run cargo xtask test and commit it");
        }
        progress::step(format_args!("{CONFORMANCE} is what the tests proved"));
        return Ok(());
    }
    if old == table {
        progress::step(format_args!("{CONFORMANCE} is unchanged"));
        return Ok(());
    }
    if let Some(directory) = path.parent() {
        fs::create_dir_all(directory).with_context(|| format!("make {}", directory.display()))?;
    }
    fs::write(&path, table).with_context(|| format!("write {}", path.display()))?;
    progress::step(format_args!("{CONFORMANCE} is written: commit it"));
    Ok(())
}

/// A fresh directory in which each test leaves a file with the rows that it proved.
struct RowsDir {
    path: PathBuf,
}

impl RowsDir {
    fn new() -> Result<Self> {
        let path = env::temp_dir().join(format!("steer-conformance-{}", std::process::id()));
        fs::create_dir(&path).with_context(|| format!("make {}", path.display()))?;
        Ok(Self { path })
    }

    fn read(&self) -> Result<Vec<String>> {
        let mut files = Vec::new();
        for entry in
            fs::read_dir(&self.path).with_context(|| format!("list {}", self.path.display()))?
        {
            let path = entry
                .with_context(|| format!("list {}", self.path.display()))?
                .path();
            files.push(
                fs::read_to_string(&path).with_context(|| format!("read {}", path.display()))?,
            );
        }
        Ok(files)
    }
}

impl Drop for RowsDir {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_dir_all(&self.path) {
            eprintln!("could not remove {}: {error}", self.path.display());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(words: &[&str]) -> Vec<OsString> {
        words.iter().map(OsString::from).collect()
    }

    #[test]
    fn packages_are_recognised_only_before_the_double_dash() {
        assert!(names_packages(&words(&["-p", "steer-core"])));
        assert!(names_packages(&words(&["--package=steer-core"])));
        assert!(!names_packages(&words(&["strict", "--", "-p"])));
        assert!(!names_packages(&[]));
    }
}
