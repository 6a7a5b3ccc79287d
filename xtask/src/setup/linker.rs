//! bpf-linker, built for the LLVM that reads the compiler's bitcode, in a folder of its own.

use std::env;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, anyhow, bail};
use serde_json::Value;

use super::{apt, cache};
use crate::{cargo, process, progress};

const NAME: &str = "bpf-linker";
const VERSION: &str = "0.13.0";
/// The newest LLVM that this version can be built for. An older LLVM's bitcode is read by a newer
/// one, never the other way round.
const NEWEST_LLVM: u32 = 23;

/// Returns the directory of a working linker for bitcode of this LLVM.
pub(super) fn find_or_build(llvm: u32) -> Result<PathBuf> {
    let tools = cache::directory()?.join("tools");
    let directory = tools.join("bin");
    if works(&directory.join(NAME)) && built_for(&tools).is_some_and(|built| built >= llvm) {
        progress::step(format_args!("{NAME} {VERSION} at {}", directory.display()));
        return Ok(directory);
    }
    if llvm > NEWEST_LLVM {
        bail!(
            "the toolchain for the kernel programs has LLVM {llvm}, and {NAME} {VERSION} knows none \
             beyond {NEWEST_LLVM}: choose an older one, for instance\n  \
             rustup toolchain install nightly-2026-05-20 --profile minimal --component rust-src\n  \
             export STEER_BPF_TOOLCHAIN=nightly-2026-05-20"
        );
    }
    let (major, prefix) = match find_llvm(llvm) {
        Some(found) => found,
        None => {
            if let Some(other) = in_path() {
                progress::step(format_args!("{NAME} {VERSION} at {}", other.display()));
                return Ok(other);
            }
            install_llvm(llvm)?
        }
    };
    build(&tools, major, &prefix)?;
    if !works(&directory.join(NAME)) {
        bail!(
            "{} was built, but `{NAME} --version` does not say {VERSION}: remove {} and try again",
            directory.join(NAME).display(),
            tools.display()
        );
    }
    Ok(directory)
}

/// Whether the program runs (its libLLVM may have gone) and is the wanted version.
fn works(program: &Path) -> bool {
    process::capture(Command::new(program).arg("--version"))
        .is_ok_and(|version| version.trim() == format!("{NAME} {VERSION}"))
}

/// The LLVM that the linker was built for, as `cargo install` wrote it down.
fn built_for(tools: &Path) -> Option<u32> {
    let record = fs::read_to_string(tools.join(".crates2.json")).ok()?;
    recorded_llvm(&record)
}

fn recorded_llvm(record: &str) -> Option<u32> {
    let record: Value = serde_json::from_str(record).ok()?;
    let (_, install) = record["installs"]
        .as_object()?
        .iter()
        .find(|(package, _)| package.starts_with(&format!("{NAME} {VERSION} ")))?;
    install["features"]
        .as_array()?
        .iter()
        .find_map(|feature| feature.as_str()?.strip_prefix("llvm-")?.parse().ok())
}

/// A linker that the user installed: its LLVM is not known, so it is the last choice.
fn in_path() -> Option<PathBuf> {
    let program = process::find(NAME)?;
    works(&program).then(|| program.parent().map(Path::to_owned))?
}

/// Development files of the wanted LLVM, or of a newer one.
fn find_llvm(oldest: u32) -> Option<(u32, PathBuf)> {
    (oldest..=NEWEST_LLVM).find_map(|major| {
        let named = env::var_os("LLVM_PREFIX").map(PathBuf::from);
        named
            .into_iter()
            // Debian, Fedora, Arch and others.
            .chain([
                format!("/usr/lib/llvm-{major}").into(),
                format!("/usr/lib64/llvm{major}").into(),
                format!("/usr/lib/llvm{major}").into(),
                "/usr".into(),
            ])
            .find(|prefix| config_says(prefix, major))
            .map(|prefix| (major, prefix))
    })
}

/// Whether `llvm-config` is there, of this version, and with headers to build against.
fn config_says(prefix: &Path, major: u32) -> bool {
    let config = prefix.join("bin/llvm-config");
    config.exists()
        && process::capture(Command::new(&config).args(["--version", "--includedir"])).is_ok_and(
            |answer| {
                let mut lines = answer.lines();
                let version = lines.next().and_then(|line| line.split('.').next());
                version.and_then(|version| version.parse().ok()) == Some(major)
                    && lines
                        .next()
                        .is_some_and(|include| Path::new(include).join("llvm-c/Core.h").exists())
            },
        )
}

fn install_llvm(major: u32) -> Result<(u32, PathBuf)> {
    let names = [
        format!("llvm-{major}-dev"),
        format!("libpolly-{major}-dev"),
        "libzstd-dev".to_owned(),
        "zlib1g-dev".to_owned(),
        "g++".to_owned(),
    ];
    let packages: Vec<_> = names.iter().map(String::as_str).collect();
    let by_hand = format!(
        "no LLVM {major} to build {NAME} with. Either install its development files (Debian: {}; \
         elsewhere set LLVM_PREFIX to where they are), or install a ready {NAME} {VERSION} into \
         PATH: cargo binstall {NAME}@{VERSION}",
        apt::command_line(&packages)
    );
    if !apt::is_here() {
        bail!(by_hand);
    }
    apt::install(&packages).with_context(|| by_hand.clone())?;
    find_llvm(major).ok_or_else(|| anyhow!(by_hand))
}

fn build(tools: &Path, major: u32, prefix: &Path) -> Result<()> {
    progress::step(format_args!(
        "building {NAME} {VERSION} for LLVM {major} into {} (about 2.5 minutes on 2 cores, once)",
        tools.display()
    ));
    let mut command = cargo::command();
    command
        .args(["install", NAME, "--version", VERSION, "--locked", "--force"])
        .args(["--no-default-features", "--features"])
        .arg(format!("llvm-{major}"))
        .arg("--root")
        .arg(tools)
        .env("LLVM_PREFIX", prefix)
        .env_remove("RUSTC_BOOTSTRAP")
        .env_remove("RUSTFLAGS")
        .env_remove("CARGO_ENCODED_RUSTFLAGS");
    process::show(&mut command)?;
    progress::step(format_args!(
        "built {NAME}; cargo's remark about your PATH asks nothing of you: `cargo xtask` finds it"
    ));
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_llvm_of_an_installed_linker_is_read_from_cargos_record() {
        let record = |version: &str, features: &str| {
            format!(
                r#"{{"installs":{{"bpf-linker {version} (registry)":{{"features":[{features}]}}}}}}"#
            )
        };
        assert_eq!(recorded_llvm(&record(VERSION, r#""llvm-22""#)), Some(22));
        assert_eq!(recorded_llvm(&record("0.9.0", r#""llvm-22""#)), None);
        assert_eq!(recorded_llvm(&record(VERSION, "")), None);
        assert_eq!(recorded_llvm("not json"), None);
    }
}
