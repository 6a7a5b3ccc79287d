//! The agent's end of the API: a socket, and calls handed to the agent's loop.
//!
//! A handler only enqueues; whatever a peer does (says too much, too little, nothing, or does not
//! listen) costs it its own connection and no one else anything.

use std::fs::{self, DirBuilder, File, TryLockError};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{DirBuilderExt, FileTypeExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::os::unix::net::UnixStream as StdUnixStream;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use nix::sys::socket::{getsockopt, sockopt};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tracing::{debug, warn};

use super::answer::Answer;
use super::connection::{Connection, refuse};
use super::error::ApiError;
use super::methods::Request;
use super::places::Places;
use crate::cgroup::process;

/// How long to leave the socket alone after a failed accept: what is missing (file descriptors,
/// memory) does not come back at once.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// The socket could not be had.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Its directory could not be made.
    #[error("make directory {0}")]
    Directory(PathBuf, #[source] io::Error),
    /// The lock beside it could not be taken.
    #[error("lock {0}")]
    Lock(PathBuf, #[source] io::Error),
    /// Another agent has it.
    #[error("another agent listens at {0}: stop it first")]
    Taken(PathBuf),
    /// Something else is in its place.
    #[error("{0} exists and is no socket: remove it, or give another --socket")]
    NoSocket(PathBuf),
    /// What an agent that ended has left could not be removed.
    #[error("remove {0}, left by an earlier agent")]
    Remove(PathBuf, #[source] io::Error),
    /// It could not be made.
    #[error("listen at {0}")]
    Listen(PathBuf, #[source] io::Error),
}

/// What a peer may take of the agent.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Connections at once.
    pub connections: usize,
    /// Connections of one user at once; root may have all.
    pub per_user: usize,
    /// Connections that only root may have.
    pub for_root: usize,
    /// Time to take an answer.
    pub take: Duration,
    /// Time from the first byte of a call to its last.
    pub message: Duration,
    /// Time between calls.
    pub idle: Duration,
}

/// Who calls.
#[derive(Clone, Debug)]
pub struct Caller {
    /// Process id, in the agent's namespace.
    pub pid: i32,
    /// Effective user id when it connected.
    pub uid: u32,
    /// Effective and supplementary group ids when it connected.
    pub gids: Vec<u32>,
    /// The process itself, whatever becomes of its id.
    pub pidfd: Arc<OwnedFd>,
}

/// A call, to be answered by the agent's loop.
#[derive(Debug)]
pub struct Call {
    /// Who calls.
    pub caller: Caller,
    /// What is asked.
    pub request: Request,
    /// Where the answer goes.
    pub reply: Answer,
}

/// The socket, listening.
#[derive(Debug)]
pub struct Server {
    listener: UnixListener,
    path: PathBuf,
    calls: mpsc::Sender<Call>,
    limits: Limits,
    /// Held as long as the socket is ours: makes "is there another agent?" and "remove what it
    /// left" one step.
    _lock: File,
}

impl Server {
    /// Listens at `path`, which everybody may use: who may do what is told by the caller's credentials. To
    /// be called within a runtime.
    ///
    /// # Errors
    /// Another agent listens there, or the file system refuses.
    pub fn bind(path: &Path, calls: mpsc::Sender<Call>) -> Result<Self, Error> {
        if let Some(directory) = path.parent().filter(|d| !d.as_os_str().is_empty()) {
            DirBuilder::new()
                .recursive(true)
                .mode(0o755)
                .create(directory)
                .map_err(|e| Error::Directory(directory.to_owned(), e))?;
        }
        let lock = lock(path)?;
        remove_stale(path)?;
        let failed = |e| Error::Listen(path.to_owned(), e);
        let listener = UnixListener::bind(path).map_err(failed)?;
        fs::set_permissions(path, fs::Permissions::from_mode(0o666)).map_err(failed)?;
        Ok(Self {
            listener,
            path: path.to_owned(),
            calls,
            limits: Limits::default(),
            _lock: lock,
        })
    }

    /// The same with other limits.
    #[must_use]
    pub fn with_limits(mut self, limits: Limits) -> Self {
        self.limits = limits;
        self
    }

    /// Serves until dropped; the socket goes with it.
    pub async fn run(self) {
        let places = Places::default();
        let mut connections = JoinSet::new();
        loop {
            while connections.try_join_next().is_some() {}
            let stream = match self.listener.accept().await {
                Ok((stream, _)) => stream,
                Err(e) => {
                    warn!("no call could be accepted: {e}");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                    continue;
                }
            };
            let caller = match identify(&stream) {
                Ok(caller) => caller,
                Err(e) => {
                    debug!("a caller could not be identified: {e}");
                    continue;
                }
            };
            let place = match places.take(caller.uid, &self.limits) {
                Ok(place) => place,
                Err(reason) => {
                    refuse(&stream, &ApiError::Busy { reason });
                    continue;
                }
            };
            let connection = Connection::new(stream, caller, self.limits);
            let calls = self.calls.clone();
            connections.spawn(async move {
                if let Err(e) = connection.serve(calls).await {
                    debug!("connection closed: {e}");
                }
                drop(place);
            });
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if let Err(e) = fs::remove_file(&self.path) {
            debug!("{} was not removed: {e}", self.path.display());
        }
    }
}

/// Removes the socket that an agent which ended has left, and the lock beside it. Returns what was
/// removed.
///
/// # Errors
/// An agent listens there, something else is in its place, or the file system refuses.
pub fn remove_leftovers(path: &Path) -> Result<Vec<PathBuf>, Error> {
    let at = lock_path(path);
    let had = |file: &Path| fs::symlink_metadata(file).is_ok();
    let found: Vec<PathBuf> = [path, &at]
        .into_iter()
        .filter(|file| had(file))
        .map(Path::to_owned)
        .collect();
    if found.is_empty() {
        return Ok(found);
    }
    // Held until the lock itself is gone, so that no agent starts in between.
    let _lock = lock(path)?;
    let socket = remove_stale(path);
    fs::remove_file(&at).map_err(|e| Error::Remove(at, e))?;
    socket.map(|()| found)
}

fn lock_path(path: &Path) -> PathBuf {
    path.with_extension("lock")
}

/// Takes the lock beside the socket.
fn lock(path: &Path) -> Result<File, Error> {
    let at = lock_path(path);
    loop {
        // Root's alone: whoever can open a file, if only to read it, can lock it (flock(2)), and no agent
        // would start any more.
        let file = File::options()
            .create(true)
            .truncate(false)
            .write(true)
            .mode(0o600)
            .open(&at)
            .map_err(|e| Error::Lock(at.clone(), e))?;
        file.set_permissions(fs::Permissions::from_mode(0o600))
            .map_err(|e| Error::Lock(at.clone(), e))?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Err(Error::Taken(path.to_owned())),
            Err(TryLockError::Error(e)) => return Err(Error::Lock(at, e)),
        }
        // Who held it may have removed it since it was opened: a lock on a file without a name
        // keeps no one out.
        let held = file.metadata().map_err(|e| Error::Lock(at.clone(), e))?;
        if fs::metadata(&at).is_ok_and(|named| named.ino() == held.ino()) {
            return Ok(file);
        }
    }
}

/// Removes the socket of an agent that has ended.
fn remove_stale(path: &Path) -> Result<(), Error> {
    match fs::symlink_metadata(path) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(e) => return Err(Error::Listen(path.to_owned(), e)),
        Ok(found) if !found.file_type().is_socket() => {
            return Err(Error::NoSocket(path.to_owned()));
        }
        Ok(_) => {}
    }
    match StdUnixStream::connect(path) {
        Err(e) if e.kind() == io::ErrorKind::ConnectionRefused => {}
        _ => return Err(Error::Taken(path.to_owned())),
    }
    fs::remove_file(path).map_err(|e| Error::Remove(path.to_owned(), e))
}

fn identify(stream: &UnixStream) -> io::Result<Caller> {
    let peer = getsockopt(stream, sockopt::PeerCredentials)?;
    if peer.pid() <= 0 {
        // Of a process outside of our namespace. To the cgroup tree, 0 would be the agent itself.
        return Err(io::Error::other(
            "the caller is not in the agent's PID namespace",
        ));
    }
    let pidfd = match getsockopt(stream, sockopt::PeerPidfd) {
        Ok(pidfd) => pidfd,
        // Before Linux 6.5 (7b26952a91cf): by number. The number may be another process' by now,
        // if the peer has ended; nobody waits then, and whose it is is asked again before it is moved.
        Err(nix::Error::ENOPROTOOPT) => process::open(peer.pid())?,
        Err(e) => return Err(e.into()),
    };
    Ok(Caller {
        pid: peer.pid(),
        uid: peer.uid(),
        gids: process::groups_of_peer(stream, peer.gid())?,
        pidfd: Arc::new(pidfd),
    })
}
