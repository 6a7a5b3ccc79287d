//! Places: cgroups that the agent makes for single processes (`steer run`, `steer move`).

use std::ffi::CStr;
use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use nix::unistd::geteuid;
use steer_core::cgroups::CgroupTree;
use steer_core::ids::CgroupId;

use super::{Error, Handle, Tree, process};

/// Extended attribute of the directories that the agent made. `trusted.` only root can set, and cgroup2
/// keeps it as long as the directory is there (kernfs, Linux 3.7).
const MARK: &CStr = c"trusted.steer";

/// Directory of the places of processes that are in the managed root itself.
const AT_ROOT: &str = "steer";

/// How the names of places elsewhere begin.
const PREFIX: &str = "steer-";

/// A cgroup made for one command or process.
#[derive(Clone, Debug)]
pub struct Place {
    cgroup: Handle,
    /// Its id.
    pub id: CgroupId,
}

impl Place {
    fn new(cgroup: Handle) -> Result<Self, Error> {
        let id = cgroup.id()?;
        Ok(Self { cgroup, id })
    }

    /// Its directory.
    pub fn directory(&self) -> &Path {
        self.cgroup.path()
    }
}

/// A way to give a process a cgroup of its own.
pub trait Placement {
    /// Makes an empty cgroup for a process that is in the cgroup `inside`. `label` is a valid file name,
    /// and no other place there has it.
    ///
    /// # Errors
    /// The kernel's or the service manager's refusal.
    fn make(&mut self, inside: &Handle, label: &str) -> Result<Place, Error>;

    /// The cgroup that a place was made in; none: it is no place, whatever its name.
    fn made_in(&self, cgroup: &Handle) -> Option<PathBuf>;

    /// Moves a process, with all of its threads, into a place.
    ///
    /// # Errors
    /// The process is gone, or the kernel refuses. Nobody is in the place then that was not before.
    fn enter(&mut self, place: &Place, pid: i32, process: &OwnedFd) -> Result<(), Error>;

    /// Removes a place that no process is in any more. One that is gone already is fine.
    ///
    /// # Errors
    /// Somebody is still in it.
    fn remove(&mut self, directory: &Path) -> Result<(), Error>;

    /// Every place in a tree that this or an earlier agent made.
    fn existing(&self, tree: &CgroupTree) -> Vec<Place>;

    /// Removes what the placement itself made, unless somebody uses it.
    ///
    /// # Errors
    /// The kernel refuses it.
    fn withdraw(&mut self) -> Result<(), Error>;
}

/// Cgroups of the agent's own, each below the one that its process was in: limits of memory or of
/// processes hold as before, service managers find the process where they left it, and a strict policy on
/// what is above holds. They bear a mark: what others made is left alone.
#[derive(Debug)]
pub struct OwnCgroup {
    tree: Tree,
}

impl OwnCgroup {
    /// Nothing is made yet.
    pub fn new(tree: &Tree) -> Self {
        Self { tree: tree.clone() }
    }

    /// Where the places of processes in the managed root are.
    fn at_root(&self) -> PathBuf {
        self.tree.root().join(AT_ROOT)
    }
}

impl Placement for OwnCgroup {
    fn make(&mut self, inside: &Handle, label: &str) -> Result<Place, Error> {
        let root = self.tree.root();
        let cgroup = if inside.path() != root && inside.path().starts_with(root) {
            make(inside, &format!("{PREFIX}{label}"))?
        } else {
            let root = Handle::at(&self.tree, root)?;
            let parent = match make(&root, AT_ROOT) {
                Err(Error::Make(_, e)) if e.kind() == io::ErrorKind::AlreadyExists => {
                    Handle::at(&self.tree, &self.at_root())?
                }
                made => made?,
            };
            make(&parent, label)?
        };
        Place::new(cgroup)
    }

    fn made_in(&self, cgroup: &Handle) -> Option<PathBuf> {
        if !is_own(cgroup) {
            return None;
        }
        let (parent, name) = (cgroup.path().parent()?, cgroup.path().file_name()?);
        if parent == self.at_root() {
            Some(self.tree.root().to_owned())
        } else if name.as_bytes().starts_with(PREFIX.as_bytes()) {
            Some(parent.to_owned())
        } else {
            None
        }
    }

    fn enter(&mut self, place: &Place, pid: i32, process: &OwnedFd) -> Result<(), Error> {
        if process::has_ended(process) {
            return Err(Error::NoProcess(pid));
        }
        place.cgroup.take_in(pid)?;
        if process::has_ended(process) {
            // It ended just before, and another may have got its number.
            self.evict(place);
            return Err(Error::NoProcess(pid));
        }
        Ok(())
    }

    fn remove(&mut self, directory: &Path) -> Result<(), Error> {
        remove_tree(directory)
    }

    fn existing(&self, tree: &CgroupTree) -> Vec<Place> {
        let at_root = self.tree.name_of(&self.at_root());
        let places = tree.ids().filter_map(|id| {
            let named = tree.name(id)?.starts_with(PREFIX);
            let at_root = || {
                let parent = tree.path(tree.parent(id)?)?;
                (Some(&parent) == at_root.as_ref()).then_some(())
            };
            if !named && at_root().is_none() {
                return None;
            }
            let cgroup = Handle::open(&self.tree, &tree.path(id)?).ok()?;
            let place = Place::new(cgroup).ok()?;
            (place.id == id && is_own(&place.cgroup)).then_some(place)
        });
        places.collect()
    }

    fn withdraw(&mut self) -> Result<(), Error> {
        let parent = self.at_root();
        if !Handle::at(&self.tree, &parent).is_ok_and(|own| is_own(&own)) {
            return Ok(());
        }
        match fs::remove_dir(&parent) {
            // Others have cgroups or processes there.
            Err(e) if e.kind() == io::ErrorKind::ResourceBusy => Ok(()),
            Err(e) => Err(Error::Remove(parent, e)),
            Ok(()) => Ok(()),
        }
    }
}

impl OwnCgroup {
    /// Sends everybody away from a place that nobody was to be in: a process that was just started and
    /// got the number of one that had ended. It came from where its parent is.
    fn evict(&self, place: &Place) {
        for pid in process::below(place.directory()) {
            let home = process::parent(pid).and_then(|parent| self.of_process(parent).ok());
            // Who has ended by now needs nothing.
            let _ended = home.map(|home| home.take_in(pid));
        }
    }

    fn of_process(&self, pid: i32) -> Result<Handle, Error> {
        let directory = self.tree.of_process(pid)?;
        Handle::at(&self.tree, &directory)
    }
}

/// Makes a cgroup that bears the agent's mark.
fn make(parent: &Handle, name: &str) -> Result<Handle, Error> {
    let made = parent.make(name)?;
    // Who owns the parent may have removed it and made another of that name before it was opened.
    if made.owner()? != geteuid().as_raw() {
        let taken = io::Error::from(io::ErrorKind::AlreadyExists);
        return Err(Error::Make(made.path().to_owned(), taken));
    }
    let value = b"1";
    // SAFETY: the name ends in zero, and both live until the call returns, which reads `value.len()`
    // bytes of the value and writes nothing.
    let result = unsafe {
        libc::fsetxattr(
            made.raw_fd(),
            MARK.as_ptr(),
            value.as_ptr().cast(),
            value.len(),
            0,
        )
    };
    if result == 0 {
        return Ok(made);
    }
    let error = io::Error::last_os_error();
    // Without its mark no agent would ever remove it. The error that is told is the first.
    let _left = fs::remove_dir(made.path());
    Err(Error::Mark(made.path().to_owned(), error))
}

/// Whether a cgroup bears the agent's mark.
fn is_own(cgroup: &Handle) -> bool {
    // SAFETY: the name ends in zero and lives until the call returns; a size of 0 asks for the length
    // alone, and nothing is written.
    let length =
        unsafe { libc::fgetxattr(cgroup.raw_fd(), MARK.as_ptr(), std::ptr::null_mut(), 0) };
    length >= 0
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

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::chown;
    use std::sync::atomic::{AtomicBool, Ordering};
    use std::time::{Duration, Instant};

    use super::{Error, Handle, Tree, make};

    const ALICE: u32 = 4711;

    #[test]
    fn a_directory_that_the_parents_owner_put_in_place_of_the_made_one_is_not_taken() {
        let directory = tempfile::tempdir().unwrap();
        let mount = directory.path().to_owned();
        let tree = Tree {
            root: mount.clone(),
            mount: mount.clone(),
        };
        let parent = Handle::open(&tree, "").unwrap();
        let (theirs, place) = (mount.join("theirs"), mount.join("place"));
        let over = AtomicBool::new(false);
        let deadline = Instant::now() + Duration::from_secs(20);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                while !over.load(Ordering::Relaxed) {
                    if fs::create_dir(&theirs).is_ok() {
                        chown(&theirs, Some(ALICE), Some(ALICE)).unwrap();
                    }
                    // An empty directory gives way (rename(2)).
                    drop(fs::metadata(&place).and_then(|_| fs::rename(&theirs, &place)));
                }
            });
            let mut outcome = None;
            while outcome.is_none() && Instant::now() < deadline {
                outcome = match make(&parent, "place") {
                    Ok(made) if made.owner().unwrap() == ALICE => Some("it was taken"),
                    // The kernel did not say so: it was made, and is another's.
                    Err(Error::Make(_, e)) if e.raw_os_error().is_none() => Some("caught"),
                    _ => None,
                };
                drop(fs::remove_dir(&place));
            }
            over.store(true, Ordering::Relaxed);
            assert_eq!(outcome, Some("caught"));
        });
    }
}
