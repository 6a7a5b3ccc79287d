//! What can go wrong between the agent and the kernel's programs and maps.

use std::{io, path::PathBuf};

use aya::{EbpfError, maps::MapError, programs::ProgramError};

use super::btf::BtfError;
use crate::netlink::Refusal;

/// An error of the datapath. Texts name the operation and its object; the cause is the source.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The pins cannot live there.
    #[error("{path} is not on a BPF file system: run `mount -t bpf bpf /sys/fs/bpf`")]
    NotBpffs {
        /// Where the pins should be.
        path: PathBuf,
    },
    /// The programs cannot be attached there.
    #[error("{path} is not a directory of a cgroup2 file system")]
    NotCgroup2 {
        /// The configured root of the managed cgroups.
        path: PathBuf,
    },
    /// Another agent holds the lock.
    #[error("another steer agent uses {path}")]
    Locked {
        /// The root of the pins.
        path: PathBuf,
    },
    /// A file operation failed.
    #[error("{operation} {path}")]
    File {
        /// What was tried.
        operation: &'static str,
        /// On what.
        path: PathBuf,
        /// Why it failed.
        #[source]
        source: io::Error,
    },
    /// A `bpf` system call failed.
    #[error("{operation} {object}")]
    Kernel {
        /// What was tried.
        operation: &'static str,
        /// On what.
        object: String,
        /// Why it failed.
        #[source]
        source: io::Error,
    },
    /// A filter of a kernel without tcx was refused.
    #[error("{operation} {object}")]
    Filter {
        /// What was tried.
        operation: &'static str,
        /// On what.
        object: String,
        /// Why it failed.
        #[source]
        source: Refusal,
    },
    /// The cookie of the network namespace is not to be had.
    #[error("read the cookie of the network namespace (SO_NETNS_COOKIE, Linux 5.14)")]
    NetnsCookie(#[source] io::Error),
    /// The kernel's type information is missing or unexpected.
    #[error("read the kernel's type information from /sys/kernel/btf/vmlinux")]
    Btf(#[from] BtfError),
    /// The object with the programs cannot be loaded.
    #[error("load the kernel programs")]
    Object(#[source] Box<EbpfError>),
    /// One program was refused; the cause carries the verifier's words.
    #[error("load kernel program {name}")]
    Program {
        /// The program.
        name: &'static str,
        /// Why it was refused.
        #[source]
        source: Box<ProgramError>,
    },
    /// A map cannot be read as what it should be.
    #[error("open map {name}")]
    Map {
        /// The map.
        name: &'static str,
        /// Why not.
        #[source]
        source: Box<MapError>,
    },
    /// The programs' messages cannot be read.
    #[cfg(feature = "log-programs")]
    #[error("read what the kernel programs log")]
    ProgramLogs(#[source] aya_log::Error),
    /// A pinned map is not what this agent would make.
    #[error(
        "pinned map {path} was made by another build of steer ({found}, not {expected}): run `steer detach`"
    )]
    MapDiffers {
        /// The pin.
        path: PathBuf,
        /// What it is.
        found: String,
        /// What it should be.
        expected: String,
    },
}

/// A result of the datapath.
pub type Result<T> = std::result::Result<T, Error>;

impl Error {
    /// For `map_err` on a file operation.
    pub(super) fn file(
        operation: &'static str,
        path: impl Into<PathBuf>,
    ) -> impl FnOnce(io::Error) -> Self {
        let path = path.into();
        move |source| Self::File {
            operation,
            path,
            source,
        }
    }

    /// For `map_err` on a `bpf` system call.
    pub(super) fn kernel(
        operation: &'static str,
        object: impl Into<String>,
    ) -> impl FnOnce(io::Error) -> Self {
        let object = object.into();
        move |source| Self::Kernel {
            operation,
            object,
            source,
        }
    }

    /// For `map_err` on a request about a filter.
    pub(super) fn filter(
        operation: &'static str,
        object: impl Into<String>,
    ) -> impl FnOnce(Refusal) -> Self {
        let object = object.into();
        move |source| Self::Filter {
            operation,
            object,
            source,
        }
    }
}
