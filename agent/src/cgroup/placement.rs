//! Places for processes that `steer run` starts.

use std::ffi::{CStr, CString};
use std::fs;
use std::io::{self, Write};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use steer_core::ids::CgroupId;

use super::{Error, Tree, id_of};

/// Extended attribute of the directories that the agent made. `trusted.` only root can set, and cgroup2
/// keeps it as long as the directory is there (kernfs, Linux 3.7).
const MARK: &CStr = c"trusted.steer";

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

    /// Every place that this or an earlier agent made and that exists still.
    ///
    /// # Errors
    /// The tree cannot be read.
    fn existing(&self) -> Result<Vec<Place>, Error>;

    /// Removes what the placement itself made, unless somebody uses it.
    ///
    /// # Errors
    /// The kernel refuses it.
    fn withdraw(&mut self) -> Result<(), Error>;
}

/// Cgroups of the agent's own, below `steer/` in the managed root. They bear a mark there: what others
/// made is left alone.
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
        match make(&self.parent) {
            Err(Error::Make(_, e)) if e.kind() == io::ErrorKind::AlreadyExists => {}
            made => made?,
        }
        let directory = self.parent.join(label);
        make(&directory)?;
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
            if let (true, Ok(id)) = (is_own(&directory), id_of(&directory)) {
                places.push(Place { directory, id });
            }
        }
        Ok(places)
    }

    fn withdraw(&mut self) -> Result<(), Error> {
        if !is_own(&self.parent) {
            return Ok(());
        }
        match fs::remove_dir(&self.parent) {
            // Others have cgroups or processes there.
            Err(e) if e.kind() == io::ErrorKind::ResourceBusy => Ok(()),
            Err(e) => Err(Error::Remove(self.parent.clone(), e)),
            Ok(()) => Ok(()),
        }
    }
}

/// Makes a cgroup that bears the agent's mark.
fn make(directory: &Path) -> Result<(), Error> {
    fs::create_dir(directory).map_err(|e| Error::Make(directory.to_owned(), e))?;
    if let Err(e) = mark(directory) {
        // Without its mark no agent would ever remove it. The error that is told is the first.
        let _left = fs::remove_dir(directory);
        return Err(Error::Mark(directory.to_owned(), e));
    }
    Ok(())
}

fn mark(directory: &Path) -> io::Result<()> {
    let path = c_path(directory)?;
    let value = b"1";
    // SAFETY: both strings end in zero and live until the call returns, which reads `value.len()`
    // bytes of the value and writes nothing.
    let result = unsafe {
        libc::setxattr(
            path.as_ptr(),
            MARK.as_ptr(),
            value.as_ptr().cast(),
            value.len(),
            0,
        )
    };
    if result == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

/// Whether a cgroup bears the agent's mark.
fn is_own(directory: &Path) -> bool {
    c_path(directory).is_ok_and(|path| {
        // SAFETY: both strings end in zero and live until the call returns; a size of 0 asks for the
        // length alone, and nothing is written.
        let length =
            unsafe { libc::getxattr(path.as_ptr(), MARK.as_ptr(), std::ptr::null_mut(), 0) };
        length >= 0
    })
}

fn c_path(path: &Path) -> io::Result<CString> {
    CString::new(path.as_os_str().as_bytes()).map_err(io::Error::from)
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
