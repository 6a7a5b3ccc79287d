//! `cargo xtask test`: every test on the real kernel, then `docs/conformance.md` from those that
//! ran.

use std::env;
use std::ffi::OsString;
use std::fs::{self, File};
use std::io::{self, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Stdio};
use std::time::Instant;

use anyhow::{Context as _, Result, bail};

use crate::outcome::Outcome;
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
    setup::for_testing()?;
    let built = build::run()?;
    let next = build::next_layout(&built.toolchain)?;

    let rows = RowsDir::beside(&built.binary)?;
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
    let start = Instant::now();
    let (status, outcome) = counted(&mut command)?;
    let summary = format!("{outcome}, {:.0} s", start.elapsed().as_secs_f64());
    if !status.success() {
        let names: Vec<_> = outcome.failed.iter().map(String::as_str).collect();
        match names.as_slice() {
            [] => bail!("`{}` failed: {status}; {summary}", process::line(&command)),
            names => bail!("{summary}: {} failed", names.join(", ")),
        }
    }
    if outcome.programs > 0 && outcome.tests() == 0 {
        bail!("no test matches: `{}` ran none", process::line(&command));
    }

    if args.args.is_empty() {
        write_conformance(&rows)?;
    } else {
        progress::step(format_args!(
            "a part of the tests ran: {CONFORMANCE} is left"
        ));
    }
    // What only lists or builds tests has nothing to sum up.
    if outcome.programs > 0 {
        progress::step(summary);
    }
    Ok(())
}

/// Runs `cargo test`, shows what it prints, and counts.
fn counted(command: &mut Command) -> Result<(ExitStatus, Outcome)> {
    let mut child = command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .with_context(|| format!("start `{}`", process::line(command)))?;
    let outcome = match child.stdout.take() {
        Some(printed) => Outcome::read(BufReader::new(printed), io::stdout()),
        None => Ok(Outcome::default()),
    };
    let status = child
        .wait()
        .with_context(|| format!("wait for `{}`", process::line(command)))?;
    Ok((status, outcome?))
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

/// The directory in which each test leaves a file with the rows that it proved.
///
/// It stays in the target directory, so that a run that is interrupted leaves nothing elsewhere; the
/// next run empties it.
struct RowsDir {
    path: PathBuf,
    /// Locked as long as this run lasts: two runs in one target directory come one after the other.
    _lock: File,
}

impl RowsDir {
    /// Beside the directory of the profile that `binary` was built in.
    fn beside(binary: &Path) -> Result<Self> {
        let target = binary
            .ancestors()
            .nth(2)
            .with_context(|| format!("{} is in no target directory", binary.display()))?;
        Self::new(target.join("conformance"))
    }

    fn new(path: PathBuf) -> Result<Self> {
        fs::create_dir_all(&path).with_context(|| format!("make {}", path.display()))?;
        let lock = File::open(&path).with_context(|| format!("open {}", path.display()))?;
        lock.lock()
            .with_context(|| format!("lock {}", path.display()))?;
        let rows = Self { path, _lock: lock };
        for path in rows.files()? {
            fs::remove_file(&path).with_context(|| format!("remove {}", path.display()))?;
        }
        Ok(rows)
    }

    fn files(&self) -> Result<Vec<PathBuf>> {
        fs::read_dir(&self.path)
            .and_then(|entries| {
                entries
                    .map(|entry| entry.map(|entry| entry.path()))
                    .collect()
            })
            .with_context(|| format!("list {}", self.path.display()))
    }

    fn read(&self) -> Result<Vec<String>> {
        self.files()?
            .iter()
            .map(|path| {
                fs::read_to_string(path).with_context(|| format!("read {}", path.display()))
            })
            .collect()
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

    #[test]
    fn rows_of_an_earlier_run_are_not_read() -> Result<()> {
        let directory = tempfile::tempdir()?;
        fs::write(directory.path().join("old"), "old")?;
        let rows = RowsDir::new(directory.path().to_owned())?;
        fs::write(directory.path().join("new"), "new")?;
        assert_eq!(rows.read()?, ["new"]);
        Ok(())
    }
}
