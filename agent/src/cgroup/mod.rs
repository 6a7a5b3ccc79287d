//! The cgroup tree: where it is mounted, what is in it, and places for processes.

mod handle;
mod holders;
mod mounts;
mod placement;
pub mod process;
pub mod sockets;
mod watch;

use std::fs;
use std::io;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use steer_core::cgroups::name_of;
use steer_core::ids::CgroupId;
use thiserror::Error;

pub use handle::Handle;
pub use holders::{Found as FoundHolders, Holder, Holders, holders};
pub use mounts::{Mount, mounts};
pub use placement::{OwnCgroup, Place, Placement};
pub use watch::{EmptyWatch, populated};

/// What went wrong with the cgroup tree.
#[derive(Debug, Error)]
pub enum Error {
    /// /proc/self/mountinfo could not be read.
    #[error("read /proc/self/mountinfo")]
    Mounts(#[source] io::Error),
    /// No cgroup v2 mount.
    #[error("no cgroup v2 hierarchy is mounted: mount -t cgroup2 none /sys/fs/cgroup")]
    NotMounted,
    /// A cgroup could not be opened or listed.
    #[error("read cgroup {0}")]
    Read(PathBuf, #[source] io::Error),
    /// A cgroup could not be made.
    #[error("make cgroup {0}")]
    Make(PathBuf, #[source] io::Error),
    /// A cgroup that was made could not be marked as the agent's.
    #[error("mark cgroup {0} as the agent's own (trusted.steer)")]
    Mark(PathBuf, #[source] io::Error),
    /// A cgroup could not be removed.
    #[error("remove cgroup {0}")]
    Remove(PathBuf, #[source] io::Error),
    /// A process could not be moved.
    #[error("move process {pid} to cgroup {path}")]
    Move {
        /// The process.
        pid: i32,
        /// Where to.
        path: PathBuf,
        /// The kernel's answer.
        #[source]
        source: io::Error,
    },
    /// There is no such process.
    #[error("no process {0}")]
    NoProcess(i32),
    /// A process has no cgroup in the unified hierarchy.
    #[error("find the cgroup of process {pid}")]
    Process {
        /// The process.
        pid: i32,
        /// The kernel's answer.
        #[source]
        source: io::Error,
    },
    /// The managed root is no cgroup.
    #[error(
        "`cgroup-root` in [agent]: there is no cgroup {0} (a path below the mount of the unified \
         hierarchy, as in /proc/PID/cgroup, or the whole path)"
    )]
    Root(PathBuf, #[source] io::Error),
    /// inotify failed.
    #[error("watch cgroup {0}")]
    Watch(PathBuf, #[source] io::Error),
}

/// The managed part of the unified hierarchy.
#[derive(Clone, Debug)]
pub struct Tree {
    mount: PathBuf,
    root: PathBuf,
}

/// A cgroup found by a scan.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Found {
    /// Its id.
    pub id: CgroupId,
    /// Its parent's id; `None` for the hierarchy's own root.
    pub parent: Option<CgroupId>,
    /// Its directory's name; empty for the hierarchy's own root.
    pub name: String,
}

impl Tree {
    /// The tree below `root`, or below the hierarchy's own root.
    ///
    /// `root` is a path below the mount, as in /proc/PID/cgroup; or the whole path of its directory.
    ///
    /// # Errors
    /// No cgroup v2 mount, or `root` is not a directory in it.
    pub fn open(root: Option<&Path>) -> Result<Self, Error> {
        let mounts = fs::read_to_string("/proc/self/mountinfo").map_err(Error::Mounts)?;
        let mount = find_mount(&mounts).ok_or(Error::NotMounted)?;
        let root = match root {
            None => mount.clone(),
            Some(root) => {
                let whole = root.is_absolute().then(|| root.canonicalize().ok());
                match whole.flatten().filter(|whole| whole.starts_with(&mount)) {
                    Some(whole) => whole,
                    None => below(&mount, root)?,
                }
            }
        };
        Ok(Self { mount, root })
    }

    /// Where the hierarchy is mounted.
    pub(super) fn mount(&self) -> &Path {
        &self.mount
    }

    /// Directory of the managed root.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// Id of the managed root.
    ///
    /// # Errors
    /// The root is gone.
    pub fn root_id(&self) -> Result<CgroupId, Error> {
        id_of(&self.root)
    }

    /// Path of a directory as in /proc/PID/cgroup, without the leading slash.
    pub fn name_of(&self, directory: &Path) -> Option<String> {
        Some(
            directory
                .strip_prefix(&self.mount)
                .ok()?
                .to_str()?
                .to_owned(),
        )
    }

    /// Directory of a path as in /proc/PID/cgroup.
    pub fn directory_of(&self, name: &str) -> PathBuf {
        self.mount.join(name.trim_start_matches('/'))
    }

    /// The managed root with its ancestors, and everything below it. Parents come before children.
    ///
    /// Cgroups that go while the scan runs are left out; those that come may be missing: the kernel's
    /// events tell of them.
    ///
    /// # Errors
    /// The root itself cannot be read.
    pub fn scan(&self) -> Result<Vec<Found>, Error> {
        let mut found = Vec::new();
        let mut parent = None;
        let ancestors: Vec<&Path> = self
            .root
            .ancestors()
            .take_while(|p| p.starts_with(&self.mount))
            .collect();
        for directory in ancestors.into_iter().rev() {
            let id = id_of(directory)?;
            let name = if directory == self.mount {
                String::new()
            } else {
                file_name(directory)
            };
            found.push(Found { id, parent, name });
            parent = Some(id);
        }
        let mut pending = vec![(self.root.clone(), self.root_id()?)];
        while let Some((directory, id)) = pending.pop() {
            let entries = match fs::read_dir(&directory) {
                Ok(entries) => entries,
                Err(e) if directory == self.root => return Err(Error::Read(directory, e)),
                Err(_) => continue,
            };
            for entry in entries.flatten() {
                let Ok(kind) = entry.file_type() else {
                    continue;
                };
                if !kind.is_dir() {
                    continue;
                }
                let Ok(child) = id_of(&entry.path()) else {
                    continue;
                };
                found.push(Found {
                    id: child,
                    parent: Some(id),
                    name: file_name(&entry.path()),
                });
                pending.push((entry.path(), child));
            }
        }
        Ok(found)
    }

    /// The directories of the managed root's ancestors, of itself, and of everything below it. Those that
    /// come or go meanwhile may be missing.
    ///
    /// # Errors
    /// The root itself cannot be read.
    pub fn directories(&self) -> Result<Vec<PathBuf>, Error> {
        let mut found: Vec<PathBuf> = self
            .root
            .ancestors()
            .take_while(|path| path.starts_with(&self.mount))
            .map(Path::to_owned)
            .collect();
        let mut pending = vec![self.root.clone()];
        while let Some(directory) = pending.pop() {
            let entries = match fs::read_dir(&directory) {
                Ok(entries) => entries,
                Err(e) if directory == self.root => return Err(Error::Read(directory, e)),
                Err(_) => continue,
            };
            for entry in entries.flatten() {
                if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                    found.push(entry.path());
                    pending.push(entry.path());
                }
            }
        }
        Ok(found)
    }

    /// Directory of the cgroup that a process is in.
    ///
    /// # Errors
    /// The process is gone, or its cgroup is hidden (another cgroup namespace).
    pub fn of_process(&self, pid: i32) -> Result<PathBuf, Error> {
        let failed = |source| Error::Process { pid, source };
        let text = fs::read_to_string(format!("/proc/{pid}/cgroup")).map_err(|e| {
            // The second: it ended between opening and reading.
            match e.raw_os_error() {
                Some(libc::ENOENT | libc::ESRCH) => Error::NoProcess(pid),
                _ => failed(e),
            }
        })?;
        let path = text
            .lines()
            .find_map(|line| line.strip_prefix("0::"))
            .filter(|path| path.split('/').all(|level| level != ".."))
            .ok_or_else(|| failed(io::Error::from(io::ErrorKind::NotFound)))?;
        Ok(self.directory_of(path))
    }
}

/// The directory of a path below the mount.
fn below(mount: &Path, path: &Path) -> Result<PathBuf, Error> {
    let tried = if path.starts_with(mount) {
        path.to_owned()
    } else {
        mount.join(path.strip_prefix("/").unwrap_or(path))
    };
    match tried.canonicalize() {
        Ok(full) if full.is_dir() && full.starts_with(mount) => Ok(full),
        Ok(_) => Err(Error::Root(
            tried,
            io::Error::from(io::ErrorKind::NotADirectory),
        )),
        Err(e) => Err(Error::Root(tried, e)),
    }
}

/// Id of the cgroup at a directory: its inode number (kernfs; 64 bits, never used twice in a boot).
///
/// # Errors
/// The directory is gone.
pub fn id_of(directory: &Path) -> Result<CgroupId, Error> {
    fs::metadata(directory)
        .map(|m| CgroupId(m.ino()))
        .map_err(|e| Error::Read(directory.to_owned(), e))
}

fn file_name(path: &Path) -> String {
    path.file_name()
        .map(|n| name_of(n.as_bytes()))
        .unwrap_or_default()
}

/// Mount point of the whole unified hierarchy.
fn find_mount(mountinfo: &str) -> Option<PathBuf> {
    let mut mounts = mounts(mountinfo).into_iter();
    mounts
        .find(|mount| mount.unified && mount.whole)
        .map(|mount| mount.path)
}

fn unescape(field: &str) -> PathBuf {
    let mut out = String::with_capacity(field.len());
    let mut rest = field;
    while let Some(at) = rest.find('\\') {
        out.push_str(&rest[..at]);
        let code = rest
            .get(at + 1..at + 4)
            .and_then(|c| u8::from_str_radix(c, 8).ok());
        match code {
            Some(byte) => {
                out.push(char::from(byte));
                rest = &rest[at + 4..];
            }
            None => {
                out.push('\\');
                rest = &rest[at + 1..];
            }
        }
    }
    out.push_str(rest);
    PathBuf::from(out)
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use super::{Tree, find_mount};

    #[test]
    fn unified_hierarchy_is_found_wherever_it_is_mounted() {
        let hybrid = "31 24 0:27 / /sys/fs/cgroup rw - tmpfs tmpfs rw\n\
                      40 31 0:37 / /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu\n\
                      41 31 0:38 / /sys/fs/cgroup/unified rw,relatime shared:9 - cgroup2 cgroup2 rw";
        assert_eq!(
            find_mount(hybrid),
            Some(PathBuf::from("/sys/fs/cgroup/unified"))
        );
        let escaped = "41 31 0:38 / /mnt/c\\040group rw - cgroup2 none rw";
        assert_eq!(find_mount(escaped), Some(PathBuf::from("/mnt/c group")));
    }

    #[test]
    fn a_process_that_is_not_there_is_named() {
        let tree = Tree {
            mount: PathBuf::from("/"),
            root: PathBuf::from("/"),
        };
        // Above the kernel's limit of 2^22.
        let error = tree.of_process(999_999_999).unwrap_err();
        assert_eq!(error.to_string(), "no process 999999999");
    }

    #[test]
    fn a_part_of_the_hierarchy_is_not_taken_for_the_whole() {
        let bound = "41 31 0:38 /machine.slice /mnt rw - cgroup2 none rw";
        assert_eq!(find_mount(bound), None);
    }
}
