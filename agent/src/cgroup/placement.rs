//! Places for processes that `steer run` starts.

use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use steer_core::ids::CgroupId;

use super::{Error, Tree, id_of};

/// A cgroup made for one command.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    /// Its directory.
    pub directory: PathBuf,
    /// Its id.
    pub id: CgroupId,
}

/// A way to give a command a cgroup of its own.
pub trait Placement {
    /// Makes an empty cgroup. `label` is a valid file name and unique.
    ///
    /// # Errors
    /// The kernel's or the service manager's refusal.
    fn make(&mut self, label: &str) -> Result<Place, Error>;

    /// Moves a process, with all of its threads, into a place.
    ///
    /// # Errors
    /// The process is gone, or the kernel refuses.
    fn enter(&mut self, place: &Place, pid: i32) -> Result<(), Error>;

    /// Removes a place that no process is in any more. One that is gone already is fine.
    ///
    /// # Errors
    /// Somebody is still in it.
    fn remove(&mut self, directory: &Path) -> Result<(), Error>;

    /// Every place that exists, also those an earlier agent made.
    ///
    /// # Errors
    /// The tree cannot be read.
    fn existing(&self) -> Result<Vec<Place>, Error>;

    /// Removes what the placement itself made, if it is empty.
    ///
    /// # Errors
    /// Somebody is still in it.
    fn withdraw(&mut self) -> Result<(), Error>;
}

/// Cgroups of the agent's own, below `steer/` in the managed root.
#[derive(Debug)]
pub struct OwnCgroup {
    parent: PathBuf,
}

impl OwnCgroup {
    /// Places below `<root>/steer/`; nothing is made yet.
    pub fn new(tree: &Tree) -> Self {
        Self {
            parent: tree.root().join("steer"),
        }
    }
}

impl Placement for OwnCgroup {
    fn make(&mut self, label: &str) -> Result<Place, Error> {
        match fs::create_dir(&self.parent) {
            Err(e) if e.kind() != io::ErrorKind::AlreadyExists => {
                return Err(Error::Make(self.parent.clone(), e));
            }
            _ => {}
        }
        let directory = self.parent.join(label);
        fs::create_dir(&directory).map_err(|e| Error::Make(directory.clone(), e))?;
        let id = id_of(&directory)?;
        Ok(Place { directory, id })
    }

    fn enter(&mut self, place: &Place, pid: i32) -> Result<(), Error> {
        let moved = fs::OpenOptions::new()
            .write(true)
            .open(place.directory.join("cgroup.procs"))
            .and_then(|mut procs| procs.write_all(pid.to_string().as_bytes()));
        moved.map_err(|source| Error::Move {
            pid,
            path: place.directory.clone(),
            source,
        })
    }

    fn remove(&mut self, directory: &Path) -> Result<(), Error> {
        remove_tree(directory)
    }

    fn existing(&self) -> Result<Vec<Place>, Error> {
        let entries = match fs::read_dir(&self.parent) {
            Ok(entries) => entries,
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(e) => return Err(Error::Read(self.parent.clone(), e)),
        };
        let mut places = Vec::new();
        for entry in entries.flatten() {
            let directory = entry.path();
            if let (true, Ok(id)) = (directory.is_dir(), id_of(&directory)) {
                places.push(Place { directory, id });
            }
        }
        Ok(places)
    }

    fn withdraw(&mut self) -> Result<(), Error> {
        remove_tree(&self.parent)
    }
}

/// Removes a cgroup and those that a command made below it, deepest first. The kernel refuses if a
/// process is left in any of them (EBUSY).
fn remove_tree(directory: &Path) -> Result<(), Error> {
    if let Ok(entries) = fs::read_dir(directory) {
        for entry in entries.flatten() {
            if entry.file_type().is_ok_and(|t| t.is_dir()) {
                remove_tree(&entry.path())?;
            }
        }
    }
    match fs::remove_dir(directory) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => {
            Err(Error::Remove(directory.to_owned(), e))
        }
        _ => Ok(()),
    }
}
