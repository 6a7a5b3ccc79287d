//! Learns when the last process of a place has gone.

use std::collections::HashMap;
use std::fs;
use std::io;
use std::os::fd::{AsFd, AsRawFd, RawFd};
use std::path::{Path, PathBuf};

use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify, WatchDescriptor};
use tokio::io::unix::AsyncFd;

use super::Error;

/// inotify's descriptor with the trait that tokio wants.
struct Descriptor(Inotify);

impl AsRawFd for Descriptor {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_fd().as_raw_fd()
    }
}

/// Watches `cgroup.events` of places: the kernel notifies a change of `populated` there.
pub struct EmptyWatch {
    inotify: AsyncFd<Descriptor>,
    places: HashMap<WatchDescriptor, PathBuf>,
}

impl EmptyWatch {
    /// An empty watch. Needs a tokio runtime.
    ///
    /// # Errors
    /// No inotify instance is left (fs.inotify.max_user_instances).
    pub fn open() -> Result<Self, Error> {
        let failed = |e: io::Error| Error::Watch(PathBuf::from("inotify"), e);
        let inotify = Inotify::init(InitFlags::IN_NONBLOCK | InitFlags::IN_CLOEXEC)
            .map_err(|e| failed(e.into()))?;
        // SAFETY: `Descriptor` owns one descriptor, and gives that one for as long as it lives.
        let inotify = unsafe { AsyncFd::register(Descriptor(inotify)) };
        Ok(Self {
            inotify: inotify.map_err(|e| failed(e.into()))?,
            places: HashMap::new(),
        })
    }

    /// Adds a place.
    ///
    /// # Errors
    /// The place is gone, or no watch is left (fs.inotify.max_user_watches).
    pub fn add(&mut self, directory: &Path) -> Result<(), Error> {
        let file = directory.join("cgroup.events");
        let watch = self
            .inotify
            .get_ref()
            .0
            .add_watch(&file, AddWatchFlags::IN_MODIFY)
            .map_err(|e| Error::Watch(directory.to_owned(), e.into()))?;
        self.places.insert(watch, directory.to_owned());
        Ok(())
    }

    /// Waits for places whose last process has gone, and forgets them. Cancel-safe.
    ///
    /// # Errors
    /// The inotify descriptor cannot be read.
    pub async fn emptied(&mut self) -> Result<Vec<PathBuf>, Error> {
        loop {
            let failed = |e: io::Error| Error::Watch(PathBuf::from("inotify"), e);
            let mut ready = self.inotify.readable().await.map_err(failed)?;
            let events = match ready.get_inner().0.read_events() {
                Ok(events) => events,
                Err(nix::errno::Errno::EAGAIN) => {
                    ready.clear_ready();
                    continue;
                }
                Err(e) => return Err(failed(e.into())),
            };
            let mut empty = Vec::new();
            for event in events {
                if let Some(directory) = self.places.get(&event.wd)
                    && !populated(directory)
                {
                    empty.extend(self.places.remove(&event.wd));
                    // The kernel drops the watch itself once the directory is removed.
                    let _removed = self.inotify.get_ref().0.rm_watch(event.wd);
                }
            }
            if !empty.is_empty() {
                return Ok(empty);
            }
        }
    }
}

/// Whether a process is in the cgroup or below it. A cgroup that is gone has none.
pub fn populated(directory: &Path) -> bool {
    fs::read_to_string(directory.join("cgroup.events"))
        .is_ok_and(|events| events.lines().any(|line| line == "populated 1"))
}
