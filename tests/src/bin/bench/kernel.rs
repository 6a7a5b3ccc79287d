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
const BPF_PROG_LOAD: libc::c_long = 5;
const BPF_OBJ_GET: libc::c_long = 7;
const BPF_PROG_TEST_RUN: libc::c_long = 10;
const BPF_PROG_GET_FD_BY_ID: libc::c_long = 13;
const BPF_ENABLE_STATS: libc::c_long = 32;

/// `union bpf_attr`, its first 64 bytes in words.
type Attributes = [u64; 8];

fn bpf(command: libc::c_long, attributes: &Attributes) -> io::Result<i32> {
    // SAFETY: the attributes live through the call, have the size that is told, and point to what
    // lives as long.
    let result = unsafe {
        libc::syscall(
            libc::SYS_bpf,
            command,
            attributes.as_ptr(),
            size_of::<Attributes>(),
        )
    };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    i32::try_from(result).map_err(io::Error::other)
}

/// A command that returns a descriptor.
fn open(command: libc::c_long, attributes: &Attributes) -> io::Result<OwnedFd> {
    let descriptor = bpf(command, attributes)?;
    // SAFETY: the descriptor is new and nobody else's.
    Ok(unsafe { OwnedFd::from_raw_fd(descriptor) })
}

/// Two 32-bit fields as they lie in a word.
fn pair(first: u32, second: u32) -> u64 {
    let ([a, b, c, d], [e, f, g, h]) = (first.to_ne_bytes(), second.to_ne_bytes());
    u64::from_ne_bytes([a, b, c, d, e, f, g, h])
}

/// Lets the kernel count runs and their time while the descriptor lives.
pub(crate) fn enable_statistics() -> Result<OwnedFd> {
    // BPF_STATS_RUN_TIME is 0.
    open(BPF_ENABLE_STATS, &Attributes::default()).context("enable BPF statistics")
}

/// Nanoseconds that the kernel counts for a run of a program that does nothing: the cost of counting.
pub(crate) fn cost_of_counting() -> Result<f64> {
    const RUNS: u32 = 100_000;
    // r0 = 0; exit
    let instructions = [0x0000_00b7_u64.to_le(), 0x0000_0095_u64.to_le()];
    let (packet, license) = ([0_u8; 64], c"GPL");
    // A socket filter (BPF_PROG_TYPE_SOCKET_FILTER is 1) of two instructions.
    let mut load = Attributes::default();
    load[..3].copy_from_slice(&[
        pair(1, 2),
        instructions.as_ptr() as u64,
        license.as_ptr() as u64,
    ]);
    let program = open(BPF_PROG_LOAD, &load).context("load an empty program")?;
    let descriptor = program.as_raw_fd().try_into().context("a descriptor")?;
    let mut test = Attributes::default();
    test[1] = pair(64, 0);
    test[0] = pair(descriptor, 0);
    test[2] = packet.as_ptr() as u64;
    test[4] = pair(RUNS, 0);
    let statistics = enable_statistics()?;
    bpf(BPF_PROG_TEST_RUN, &test).context("run an empty program")?;
    let Counted { runs, nanoseconds } = Counted::of(&program)?;
    drop(statistics);
    ensure!(runs > 0, "the kernel counted no run of an empty program");
    #[expect(clippy::cast_precision_loss, reason = "a short time")]
    Ok(nanoseconds as f64 / runs as f64)
}

/// A program attached by pinned links.
#[derive(Debug)]
pub(crate) struct Program {
    /// Name of the link's pin, without the number of the interface.
    pub(crate) name: String,
    id: u64,
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

impl Counted {
    fn of(program: &OwnedFd) -> Result<Self> {
        Ok(Self {
            runs: fact(program, "run_cnt")?,
            nanoseconds: fact(program, "run_time_ns")?,
        })
    }
}

impl Program {
    /// All that are pinned in `namespace`.
    pub(crate) fn all(namespace: &Namespace) -> Result<Vec<Self>> {
        namespace.run(|| {
            let mut links = Vec::new();
            find(Path::new("/sys/fs/bpf/steer"), &mut links)?;
            links.sort();
            let mut programs = Vec::new();
            for path in links {
                let program = Self::of_link(&path)?;
                // The guard has a link for every interface.
                if programs.iter().all(|known: &Self| known.id != program.id) {
                    programs.push(program);
                }
            }
            Ok(programs)
        })
    }

    fn of_link(path: &Path) -> Result<Self> {
        let text = CString::new(path.as_os_str().as_bytes()).context("path of a pin")?;
        let mut attributes = Attributes::default();
        attributes[0] = text.as_ptr() as u64;
        let link = open(BPF_OBJ_GET, &attributes)
            .with_context(|| format!("open pin {}", path.display()))?;
        let id = fact(&link, "prog_id")?;
        attributes[0] = pair(id.try_into().context("a program's id")?, 0);
        let descriptor = open(BPF_PROG_GET_FD_BY_ID, &attributes).context("open a program")?;
        let pin = path.file_name().unwrap_or_default().to_string_lossy();
        let name = match pin.rsplit_once('-') {
            Some((name, number)) if number.parse::<u32>().is_ok() => name.to_owned(),
            _ => pin.into_owned(),
        };
        Ok(Self {
            name,
            id,
            descriptor,
        })
    }

    /// What has been counted so far.
    pub(crate) fn counted(&self) -> Result<Counted> {
        Counted::of(&self.descriptor)
    }
}

/// Pins in directories named `links` below `directory`.
fn find(directory: &Path, found: &mut Vec<PathBuf>) -> Result<()> {
    for entry in fs::read_dir(directory).with_context(|| format!("read {}", directory.display()))? {
        let path = entry
            .with_context(|| format!("read {}", directory.display()))?
            .path();
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
    let value = text
        .lines()
        .find_map(|line| line.strip_prefix(key)?.strip_prefix(':'));
    let value = value.with_context(|| format!("no {key} in {path}"))?;
    ensure!(!value.is_empty(), "{key} is empty in {path}");
    value
        .trim()
        .parse()
        .with_context(|| format!("{key} in {path}"))
}
