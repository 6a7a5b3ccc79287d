//! A Rust toolchain that compiles the kernel programs.
//!
//! There are two ways. Debian packages a toolchain with a precompiled core for BPF, which needs no
//! nightly; it is linked into rustup under a name of its own. Elsewhere rustup's nightly compiles
//! core itself (`-Z build-std=core`) from the component rust-src.

use std::env;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, anyhow, bail};

use super::apt;
use crate::{process, progress};

/// Chooses the toolchain by hand; agent/build.rs reads it too.
const CHOICE: &str = "STEER_BPF_TOOLCHAIN";
/// Name under which Debian's toolchain is linked; the default of agent/build.rs.
const LINKED: &str = "steer-bpf";
/// Where Debian's toolchain is.
const DEBIAN_SYSROOT: &str = "/usr";
/// Debian's packages of a toolchain with a core for BPF.
const DEBIAN_PACKAGES: [&str; 3] = ["rustc-web", "cargo-web", "libstd-rust-web-dev-bpf"];
const NIGHTLY: &str = "nightly";

/// The one crate that may use unstable features: see .cargo/config.toml.
const BOOTSTRAP: (&str, &str) = ("RUSTC_BOOTSTRAP", "aya_ebpf");

/// The target of the kernel programs on this machine.
pub(crate) const TARGET: &str = if cfg!(target_endian = "big") {
    "bpfeb-unknown-none"
} else {
    "bpfel-unknown-none"
};

/// A compiler that was found to work for BPF.
pub(super) struct Compiler {
    name: String,
    llvm_major: u32,
    core: Core,
    /// Without rustup, the toolchain in PATH is the only one.
    rustup: bool,
}

/// Where core for BPF comes from.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Core {
    Precompiled,
    Source,
}

/// All that the build of the kernel programs needs.
pub(crate) struct Toolchain {
    compiler: Compiler,
    linker_dir: PathBuf,
}

impl Toolchain {
    pub(super) fn new(compiler: Compiler, linker_dir: PathBuf) -> Self {
        Self {
            compiler,
            linker_dir,
        }
    }

    /// Puts it into the environment of a cargo command.
    pub(crate) fn apply(&self, command: &mut Command) -> Result<()> {
        let path = env::var_os("PATH").unwrap_or_default();
        let path = env::join_paths(
            std::iter::once(self.linker_dir.clone()).chain(env::split_paths(&path)),
        )
        .with_context(|| format!("put {} into PATH", self.linker_dir.display()))?;
        command.env("PATH", path).env(BOOTSTRAP.0, BOOTSTRAP.1);
        // The default is not set: agent/build.rs watches the variable, and would run again at each
        // change between `cargo xtask` and plain `cargo`.
        if self.compiler.name == LINKED {
            command.env_remove(CHOICE);
        } else {
            command.env(CHOICE, &self.compiler.name);
        }
        Ok(())
    }

    /// Cargo of this toolchain itself, with what it needs to compile for [`TARGET`].
    pub(crate) fn cargo(&self, arguments: &[&str]) -> Result<Command> {
        let mut command = if self.compiler.rustup {
            let mut command = Command::new("rustup");
            command.args(["run", &self.compiler.name, "cargo"]);
            command
        } else {
            Command::new("cargo")
        };
        command.args(arguments).args(["--target", TARGET]);
        if self.compiler.core == Core::Source {
            command.args(["-Z", "build-std=core"]);
        }
        // Cargo tells its children its own compiler, which is another one.
        command
            .env_remove("RUSTC")
            .env_remove("RUSTDOC")
            .env_remove("CARGO_TERM_QUIET");
        crate::cargo::without_own_package(&mut command);
        self.apply(&mut command)?;
        Ok(command)
    }
}

impl Compiler {
    /// The major version of LLVM whose bitcode the compiler writes.
    pub(super) fn llvm_major(&self) -> u32 {
        self.llvm_major
    }

    /// Decides which of the two ways this machine has or can have, says so, and goes it.
    pub(super) fn find_or_install() -> Result<Self> {
        let compiler = if process::find("rustup").is_none() {
            Self::without_rustup()?
        } else if let Some(name) = env::var(CHOICE).ok().filter(|name| !name.is_empty()) {
            Self::chosen(&name)?
        } else if let Some(compiler) = Self::debian()? {
            compiler
        } else if let Some(compiler) = Self::of_rustup(NIGHTLY)? {
            compiler
        } else if let Some(compiler) = Self::install_debian()? {
            compiler
        } else {
            Self::install_nightly()?
        };
        progress::step(format_args!(
            "kernel programs by toolchain {}: LLVM {}, core for BPF {}",
            compiler.name,
            compiler.llvm_major,
            match compiler.core {
                Core::Precompiled => "precompiled",
                Core::Source => "compiled from rust-src",
            }
        ));
        Ok(compiler)
    }

    /// Debian's toolchain, if it is installed and new enough; links it into rustup.
    fn debian() -> Result<Option<Self>> {
        let sysroot = Path::new(DEBIAN_SYSROOT);
        let rustc = sysroot.join("bin/rustc");
        if !has_core(sysroot) || !rustc.exists() || !sysroot.join("bin/cargo").exists() {
            return Ok(None);
        }
        let version = process::capture(Command::new(&rustc).arg("-vV"))?;
        if !is_new_enough(field(&version, "release: ")?) {
            return Ok(None);
        }
        link(&rustc)?;
        Ok(Some(Self {
            name: LINKED.to_owned(),
            llvm_major: llvm_major(&version)?,
            core: Core::Precompiled,
            rustup: true,
        }))
    }

    /// Installs Debian's packages where Debian offers them and this machine can take them.
    fn install_debian() -> Result<Option<Self>> {
        if !apt::is_here() {
            return Ok(None);
        }
        let package = DEBIAN_PACKAGES[2];
        match apt::candidate(package) {
            Some(version) if is_new_enough(&version) => {}
            Some(version) => {
                progress::step(format_args!(
                    "{package} {version} is too old: taking rustup's nightly"
                ));
                return Ok(None);
            }
            None => {
                progress::step(format_args!(
                    "no package {package} here: taking rustup's nightly"
                ));
                return Ok(None);
            }
        }
        progress::step("taking Debian's Rust with a precompiled core for BPF");
        apt::install(&DEBIAN_PACKAGES)
            .with_context(|| format!("or take rustup's nightly: {}", rust_src_command(NIGHTLY)))?;
        let compiler = Self::debian()?
            .ok_or_else(|| anyhow!("{package} is installed, but holds no core for {TARGET}"))?;
        Ok(Some(compiler))
    }

    /// Adds what is missing of a nightly; one that is installed is not exchanged for a newer one.
    fn install_nightly() -> Result<Self> {
        let by_hand = rust_src_command(NIGHTLY);
        progress::step(&by_hand);
        let words: Vec<_> = by_hand.split(' ').skip(1).collect();
        process::show(Command::new("rustup").args(words))
            .with_context(|| format!("no toolchain for the kernel programs; run: {by_hand}"))?;
        Self::of_rustup(NIGHTLY)?
            .ok_or_else(|| anyhow!("{NIGHTLY} is installed, but without rust-src; run: {by_hand}"))
    }

    /// The toolchain that the user named.
    fn chosen(name: &str) -> Result<Self> {
        if name == LINKED
            && let Some(compiler) = Self::debian()?
        {
            return Ok(compiler);
        }
        let Some(rustc) = rustc_of(name) else {
            bail!(
                "{CHOICE}={name}: rustup has no such toolchain; run `{}` (a nightly), or unset {CHOICE}",
                rust_src_command(name)
            );
        };
        Self::at(name, &rustc, true)?.ok_or_else(|| {
            anyhow!(
                "{CHOICE}={name}: the toolchain has no core for {TARGET}, and is no nightly with \
                 rust-src, from which core could be compiled; run `{}`, or unset {CHOICE}",
                rust_src_command(name)
            )
        })
    }

    /// A toolchain that rustup knows, if it is there and can compile for BPF.
    fn of_rustup(name: &str) -> Result<Option<Self>> {
        rustc_of(name).map_or(Ok(None), |rustc| Self::at(name, &rustc, true))
    }

    fn without_rustup() -> Result<Self> {
        let rustc = process::find("rustc").context("no rustc in PATH: install Rust by rustup")?;
        Self::at(LINKED, &rustc, false)?.ok_or_else(|| {
            anyhow!(
                "neither rustup nor a Rust with a core for {TARGET} is in PATH: install rustup, or \
                 (Debian): {}",
                apt::command_line(&DEBIAN_PACKAGES)
            )
        })
    }

    fn at(name: &str, rustc: &Path, rustup: bool) -> Result<Option<Self>> {
        let sysroot = process::capture(Command::new(rustc).args(["--print", "sysroot"]))?;
        let sysroot = Path::new(sysroot.trim());
        let version = process::capture(Command::new(rustc).arg("-vV"))?;
        let core = if has_core(sysroot) {
            Core::Precompiled
        } else if has_source(sysroot) && field(&version, "release: ")?.contains("nightly") {
            Core::Source
        } else {
            return Ok(None);
        };
        Ok(Some(Self {
            name: name.to_owned(),
            llvm_major: llvm_major(&version)?,
            core,
            rustup,
        }))
    }
}

/// The compiler of a toolchain that rustup has.
fn rustc_of(name: &str) -> Option<PathBuf> {
    let mut command = Command::new("rustup");
    command
        .args(["which", "--toolchain", name, "rustc"])
        // Looking must not install.
        .env("RUSTUP_AUTO_INSTALL", "0");
    let rustc = process::capture(&mut command).ok()?;
    Some(PathBuf::from(rustc.trim()))
}

/// The command that gives a nightly, installed or not, the source of core.
fn rust_src_command(name: &str) -> String {
    if rustc_of(name).is_some() {
        format!("rustup component add rust-src --toolchain {name}")
    } else {
        format!("rustup toolchain install {name} --profile minimal --component rust-src")
    }
}

/// Makes [`LINKED`] mean Debian's toolchain.
fn link(rustc: &Path) -> Result<()> {
    // rustup names the compiler by the link, which is what must lead to Debian's.
    let known = rustc_of(LINKED).and_then(|known| known.canonicalize().ok());
    if known.is_some() && known == rustc.canonicalize().ok() {
        return Ok(());
    }
    progress::step(format_args!(
        "rustup toolchain link {LINKED} {DEBIAN_SYSROOT}"
    ));
    process::show(Command::new("rustup").args(["toolchain", "link", LINKED, DEBIAN_SYSROOT]))
}

/// Whether core for BPF lies there compiled.
fn has_core(sysroot: &Path) -> bool {
    let libraries = sysroot.join("lib/rustlib").join(TARGET).join("lib");
    libraries.read_dir().is_ok_and(|entries| {
        entries
            .flatten()
            .any(|entry| entry.file_name().to_string_lossy().starts_with("libcore-"))
    })
}

/// Whether the component rust-src is there.
fn has_source(sysroot: &Path) -> bool {
    sysroot
        .join("lib/rustlib/src/rust/library/core/Cargo.toml")
        .exists()
}

/// Whether a version is not older than the workspace's `rust-version`.
fn is_new_enough(version: &str) -> bool {
    match (numbers(version), numbers(env!("CARGO_PKG_RUST_VERSION"))) {
        (Some(version), Some(oldest)) => version >= oldest,
        _ => false,
    }
}

/// `1.96.0+dfsg1-1~deb12u2` -> (1, 96)
fn numbers(version: &str) -> Option<(u32, u32)> {
    let mut numbers = version.split(|c: char| !c.is_ascii_digit());
    Some((numbers.next()?.parse().ok()?, numbers.next()?.parse().ok()?))
}

fn llvm_major(version: &str) -> Result<u32> {
    let llvm = field(version, "LLVM version: ")?;
    llvm.split('.')
        .next()
        .and_then(|major| major.parse().ok())
        .ok_or_else(|| anyhow!("rustc's LLVM version is `{llvm}`"))
}

/// A field of what `rustc -vV` prints.
fn field<'a>(version: &'a str, name: &str) -> Result<&'a str> {
    match version.lines().find_map(|line| line.strip_prefix(name)) {
        Some(value) => Ok(value.trim()),
        None => bail!("`rustc -vV` does not say `{name}`:\n{version}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_read_and_compared() -> Result<()> {
        let version =
            "rustc 1.96.0 (ac68faa20 2026-05-25)\nrelease: 1.96.0\nLLVM version: 22.1.8\n";
        assert_eq!(llvm_major(version)?, 22);
        assert_eq!(field(version, "release: ")?, "1.96.0");
        assert!(field(version, "host: ").is_err());
        assert!(is_new_enough("1.96.0+dfsg1-1~deb12u2"));
        assert!(!is_new_enough("1.85.0+dfsg3-1~deb12u3"));
        assert!(!is_new_enough("unknown"));
        Ok(())
    }
}
