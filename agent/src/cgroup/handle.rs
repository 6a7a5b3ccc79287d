//! Cgroups by file descriptor: what was checked is what is used, whatever becomes of the name.

use std::fs::File;
use std::io::{self, Write};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use nix::fcntl::{OFlag, OpenHow, ResolveFlag, open, openat, openat2};
use nix::sys::stat::{Mode, mkdirat};
use nix::unistd::{UnlinkatFlags, unlinkat};
use steer_core::ids::CgroupId;

use super::{Error, Tree};

/// A cgroup that is held open.
#[derive(Clone, Debug)]
pub struct Handle {
    directory: Arc<File>,
    /// Where it was found, for messages and for what takes paths only.
    path: PathBuf,
}

const DIRECTORY: OFlag = OFlag::O_DIRECTORY
    .union(OFlag::O_NOFOLLOW)
    .union(OFlag::O_CLOEXEC);

impl Handle {
    /// Opens a cgroup of the hierarchy by its path as in /proc/PID/cgroup, without following links and
    /// without leaving the hierarchy.
    ///
    /// # Errors
    /// There is none, or the path leads elsewhere.
    pub fn open(tree: &Tree, name: &str) -> Result<Self, Error> {
        let path = tree.directory_of(name);
        let failed = |e: nix::Error| Error::Read(path.clone(), e.into());
        let mount = open(tree.mount(), DIRECTORY, Mode::empty()).map_err(failed)?;
        let name = match name.trim_matches('/') {
            "" => ".",
            name => name,
        };
        let how = OpenHow::new().flags(DIRECTORY).resolve(
            ResolveFlag::RESOLVE_BENEATH
                | ResolveFlag::RESOLVE_NO_SYMLINKS
                | ResolveFlag::RESOLVE_NO_XDEV,
        );
        let directory = openat2(mount, name, how).map_err(failed)?;
        Ok(Self::new(directory, path.clone()))
    }

    /// The same by its directory.
    ///
    /// # Errors
    /// It is not in the hierarchy, or its path is no text.
    pub fn at(tree: &Tree, directory: &Path) -> Result<Self, Error> {
        // Without a name it would be the hierarchy's root.
        let name = tree.name_of(directory).ok_or_else(|| {
            let not_text = io::Error::from(io::ErrorKind::InvalidFilename);
            Error::Read(directory.to_owned(), not_text)
        })?;
        Self::open(tree, &name)
    }

    fn new(directory: OwnedFd, path: PathBuf) -> Self {
        Self {
            directory: Arc::new(directory.into()),
            path,
        }
    }

    /// Where it was found.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Its descriptor.
    pub(super) fn raw_fd(&self) -> i32 {
        self.directory.as_raw_fd()
    }

    /// Its id: the inode number of its directory.
    ///
    /// # Errors
    /// The kernel does not tell.
    pub fn id(&self) -> Result<CgroupId, Error> {
        self.metadata().map(|about| CgroupId(about.ino()))
    }

    /// The user who owns its directory: root, or the one whom it was delegated to.
    ///
    /// # Errors
    /// The kernel does not tell.
    pub fn owner(&self) -> Result<u32, Error> {
        self.metadata().map(|about| about.uid())
    }

    fn metadata(&self) -> Result<std::fs::Metadata, Error> {
        let about = self.directory.metadata();
        about.map_err(|e| Error::Read(self.path.clone(), e))
    }

    /// Makes a cgroup below it.
    ///
    /// # Errors
    /// The kernel's refusal; `AlreadyExists` if there is one of that name.
    pub(super) fn make(&self, name: &str) -> Result<Self, Error> {
        let path = self.path.join(name);
        let failed = |e: nix::Error| Error::Make(path.clone(), e.into());
        mkdirat(&*self.directory, name, Mode::from_bits_truncate(0o755)).map_err(failed)?;
        let made = openat(&*self.directory, name, DIRECTORY, Mode::empty()).map_err(|e| {
            // The error that is told is the first.
            let _left = unlinkat(&*self.directory, name, UnlinkatFlags::RemoveDir);
            failed(e)
        })?;
        Ok(Self::new(made, path.clone()))
    }

    /// Moves a process into it, by its number.
    ///
    /// # Errors
    /// There is no such process, or the kernel refuses.
    pub(super) fn take_in(&self, pid: i32) -> Result<(), Error> {
        let flags = OFlag::O_WRONLY | OFlag::O_CLOEXEC;
        let procs = openat(&*self.directory, "cgroup.procs", flags, Mode::empty());
        let moved = procs
            .map_err(io::Error::from)
            .and_then(|procs| File::from(procs).write_all(pid.to_string().as_bytes()));
        moved.map_err(|source| match source.raw_os_error() {
            Some(libc::ESRCH) => Error::NoProcess(pid),
            _ => Error::Move {
                pid,
                path: self.path.clone(),
                source,
            },
        })
    }
}
