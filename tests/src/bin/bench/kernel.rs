//! What the kernel counts of pinned eBPF programs, asked by the system call itself.

use std::ffi::CString;
use std::fs;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use nix::libc;
use steer_tests::Namespace;

// enum bpf_cmd
const BPF_OBJ_GET: libc::c_long = 7;
const BPF_PROG_GET_FD_BY_ID: libc::c_long = 13;
const BPF_ENABLE_STATS: libc::c_long = 32;

/// `union bpf_attr` as the three commands want it.
#[repr(C)]
#[derive(Default)]
struct Attributes {
    first: u64,
    second: u64,
}

fn bpf(command: libc::c_long, attributes: &Attributes) -> io::Result<OwnedFd> {
    // SAFETY: the attributes live through the call and have the size that is told.
    let result = unsafe {
        libc::syscall(libc::SYS_bpf, command, &raw const *attributes, size_of::<Attributes>())
    };
    let descriptor = i32::try_from(result).map_err(io::Error::other)?;
    if descriptor < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: all three commands return a new descriptor.
    Ok(unsafe { OwnedFd::from_raw_fd(descriptor) })
}

/// Lets the kernel count runs and their time while the descriptor lives.
pub(crate) fn enable_statistics() -> Result<OwnedFd> {
    // BPF_STATS_RUN_TIME is 0.
    bpf(BPF_ENABLE_STATS, &Attributes::default()).context("enable BPF statistics")
}

/// A program attached by a pinned link.
#[derive(Debug)]
pub(crate) struct Program {
    /// Name of the link's pin.
    pub(crate) name: String,
    descriptor: OwnedFd,
}

/// What the kernel has counted of a program.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Counted {
    /// Runs.
    pub(crate) runs: u64,
    /// Nanoseconds spent in them.
    pub(crate) nanoseconds: u64,
}

impl Program {
    /// All that are pinned in `namespace`.
    pub(crate) fn all(namespace: &Namespace) -> Result<Vec<Self>> {
        namespace.run(|| {
            let mut links = Vec::new();
            find(Path::new("/sys/fs/bpf/steer"), &mut links)?;
            links.sort();
            links.iter().map(|path| Self::of_link(path)).collect()
        })
    }

    fn of_link(path: &Path) -> Result<Self> {
        let text = CString::new(path.as_os_str().as_bytes()).context("path of a pin")?;
        let attributes = Attributes { first: text.as_ptr() as u64, second: 0 };
        let link = bpf(BPF_OBJ_GET, &attributes)
            .with_context(|| format!("open pin {}", path.display()))?;
        let id = fact(&link, "prog_id")?;
        let attributes = Attributes { first: id, second: 0 };
        let descriptor = bpf(BPF_PROG_GET_FD_BY_ID, &attributes).context("open a program")?;
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        Ok(Self { name, descriptor })
    }

    /// What has been counted so far.
    pub(crate) fn counted(&self) -> Result<Counted> {
        Ok(Counted {
            runs: fact(&self.descriptor, "run_cnt")?,
            nanoseconds: fact(&self.descriptor, "run_time_ns")?,
        })
    }
}

/// Pins in directories named `links` below `directory`.
fn find(directory: &Path, found: &mut Vec<PathBuf>) -> Result<()> {
    for entry in fs::read_dir(directory).with_context(|| format!("read {}", directory.display()))? {
        let path = entry.with_context(|| format!("read {}", directory.display()))?.path();
        if path.is_dir() {
            find(&path, found)?;
        } else if directory.file_name().is_some_and(|name| name == "links") {
            found.push(path);
        }
    }
    Ok(())
}

/// A number in what the kernel says of a descriptor.
fn fact(descriptor: &OwnedFd, key: &str) -> Result<u64> {
    let path = format!("/proc/self/fdinfo/{}", descriptor.as_raw_fd());
    let text = fs::read_to_string(&path).with_context(|| format!("read {path}"))?;
    let value = text.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(':'));
    let value = value.with_context(|| format!("no {key} in {path}"))?;
    ensure!(!value.is_empty(), "{key} is empty in {path}");
    value.trim().parse().with_context(|| format!("{key} in {path}"))
}
