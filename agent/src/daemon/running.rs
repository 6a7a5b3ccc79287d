//! Which agent runs on this host, and where it listens: a file that is locked as long as it does.
//!
//! The socket cannot tell: it may be elsewhere, or be removed. The lock ends with the process, however
//! that ends, and asking for it does not take it.

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use nix::fcntl::{FcntlArg, fcntl};
use serde::{Deserialize, Serialize};
use thiserror::Error;
use tracing::warn;

use crate::statefile::RUN_DIRECTORY;

/// The file could not be used.
#[derive(Debug, Error)]
pub(super) enum Error {
    /// Another agent runs.
    #[error("{0}: stop it first, by `systemctl stop steer` or Ctrl-C where it runs")]
    Taken(Running),
    /// It could not be read, locked or written.
    #[error("lock {0}")]
    Lock(PathBuf, #[source] io::Error),
}

/// An agent that runs.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Running {
    /// Its process id, as it sees it itself.
    pub pid: u32,
    /// Where its API listens, or did.
    pub socket: PathBuf,
}

impl std::fmt::Display for Running {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { pid, socket } = self;
        if *pid == 0 {
            // It has the lock, and has not yet said who it is.
            return f.write_str("an agent is starting");
        }
        write!(
            f,
            "an agent runs (pid {pid}) with the socket {}",
            socket.display()
        )
    }
}

/// The agent that runs now, if one does and this user may know.
pub fn running() -> Option<Running> {
    read(&path())
}

/// When an agent was last seen to run: at its end or, if it was killed, when it did something last, at most
/// the time between two checks of everything before that. None: none ran since the boot or the last `detach`, or this user may not
/// know.
pub(super) fn last_seen() -> Option<SystemTime> {
    fs::metadata(path()).ok()?.modified().ok()
}

/// What says that this process is the agent. It does as long as this is kept.
#[derive(Debug)]
pub(super) struct Claim {
    lock: File,
}

impl Drop for Claim {
    fn drop(&mut self) {
        self.seen();
    }
}

impl Claim {
    /// Says that this process is the agent, and where it listens.
    ///
    /// # Errors
    /// Another one is, or the file system refuses.
    pub(super) fn take(socket: &Path) -> Result<Self, Error> {
        Self::take_at(&path(), socket)
    }

    /// Says that this agent runs now: the file is as old as this.
    pub(super) fn seen(&self) {
        if let Err(error) = self.lock.set_modified(SystemTime::now()) {
            // It only tells people how old the last decisions are.
            warn!("note that the agent runs: {error}");
        }
    }

    fn take_at(path: &Path, socket: &Path) -> Result<Self, Error> {
        let failed = |e| Error::Lock(path.to_owned(), e);
        if let Some(directory) = path.parent() {
            fs::create_dir_all(directory).map_err(failed)?;
        }
        let Some(mut file) = lock(path).map_err(failed)? else {
            return Err(Error::Taken(read(path).unwrap_or_default()));
        };
        let running = Running {
            pid: std::process::id(),
            // Others have other directories.
            socket: std::path::absolute(socket).unwrap_or_else(|_| socket.to_owned()),
        };
        let text = serde_json::to_vec(&running).map_err(|e| failed(e.into()))?;
        file.set_len(0)
            .and_then(|()| file.write_all(&text))
            .map_err(failed)?;
        Ok(Self { lock: file })
    }
}

/// Removes the file of an agent that has ended. Without its lock it says nothing.
///
/// # Errors
/// The file system refuses.
pub(super) fn remove_leftover() -> Result<(), Error> {
    let path = path();
    if !path.exists() {
        return Ok(());
    }
    let failed = |e| Error::Lock(path.clone(), e);
    // Held until it is removed: an agent that starts has it, and keeps it, or makes another.
    let Some(_lock) = lock(&path).map_err(failed)? else {
        return Ok(());
    };
    fs::remove_file(&path).map_err(failed)
}

/// The file, locked; none if another agent has the lock.
fn lock(path: &Path) -> io::Result<Option<File>> {
    loop {
        let file = File::options()
            .create(true)
            .truncate(false)
            .write(true)
            .mode(0o600)
            .open(path)?;
        match fcntl(&file, FcntlArg::F_OFD_SETLK(&whole())) {
            Ok(_) => {}
            Err(nix::Error::EAGAIN | nix::Error::EACCES) => {
                if held_by_readers(&file)? {
                    fs::remove_file(path)?;
                    continue;
                }
                return Ok(None);
            }
            Err(errno) => return Err(errno.into()),
        }
        // Who held it may have removed it since it was opened.
        let held = file.metadata()?;
        if fs::metadata(path).is_ok_and(|named| named.ino() == held.ino()) {
            // Only now others may read it, and so lock it as readers do.
            file.set_permissions(fs::Permissions::from_mode(0o644))?;
            return Ok(Some(file));
        }
    }
}

/// Whether those who hold a lock on a file may only read it, as everybody may: no agent is among them, and
/// they keep none from starting.
fn held_by_readers(file: &File) -> io::Result<bool> {
    let mut held = whole();
    fcntl(file, FcntlArg::F_OFD_GETLK(&mut held))?;
    Ok(i32::from(held.l_type) == libc::F_RDLCK)
}

fn path() -> PathBuf {
    Path::new(RUN_DIRECTORY).join("running.json")
}

/// A lock on all of a file. Of the open file description: closing another one of the same file, which
/// would end a lock of the process (fcntl(2)), does not end it.
#[expect(
    clippy::cast_possible_truncation,
    reason = "constants of the kernel, which fit"
)]
fn whole() -> libc::flock {
    libc::flock {
        l_type: libc::F_WRLCK as libc::c_short,
        l_whence: libc::SEEK_SET as libc::c_short,
        l_start: 0,
        l_len: 0,
        l_pid: 0,
    }
}

fn read(path: &Path) -> Option<Running> {
    let mut file = File::open(path).ok()?;
    let mut held = whole();
    fcntl(&file, FcntlArg::F_OFD_GETLK(&mut held)).ok()?;
    // An agent's, not one of those that anybody can hold who may read it.
    if i32::from(held.l_type) != libc::F_WRLCK {
        return None;
    }
    let mut text = String::new();
    file.read_to_string(&mut text).ok()?;
    Some(serde_json::from_str(&text).unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::{Claim, Error, read};

    #[test]
    fn who_runs_is_known_as_long_as_it_does() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("run/running.json");
        assert_eq!(read(&path), None);
        let claim = Claim::take_at(&path, Path::new("/x.sock")).unwrap();
        let known = read(&path).unwrap();
        assert_eq!(
            known.to_string(),
            format!(
                "an agent runs (pid {}) with the socket /x.sock",
                std::process::id()
            )
        );
        let second = Claim::take_at(&path, Path::new("/y.sock"));
        assert!(matches!(second, Err(Error::Taken(first)) if first == known));
        drop(claim);
        assert_eq!(read(&path), None);
        // A file without its lock: an agent that was killed.
        std::fs::write(&path, r#"{"pid":1,"socket":"/x.sock"}"#).unwrap();
        assert_eq!(read(&path), None);
        Claim::take_at(&path, Path::new("/y.sock")).unwrap();
    }
}
