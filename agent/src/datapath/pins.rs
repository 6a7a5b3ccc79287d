//! Where everything is pinned, so that it outlives the agent.
//!
//! `<root>/v<layout>/maps/<MAP>` and `<root>/v<layout>/links/<link>`. A layout is made in a directory
//! of another name and appears by one rename. Names have no dots: the BPF file system refuses them.

use std::{
    fs::{self, File},
    io,
    path::{Path, PathBuf},
};

use nix::{
    fcntl::{Flock, FlockArg},
    mount::{MsFlags, mount},
    sys::statfs::{BPF_FS_MAGIC, statfs},
};
use steer_common::LAYOUT_VERSION;

use super::{
    error::{Error, Result},
    links,
};

/// The directories of the pins, and the right to change them.
pub(super) struct Pins {
    root: PathBuf,
    _lock: Flock<File>,
}

/// Mounts a BPF file system at `path` if nothing is mounted there that is one. True: it did.
pub fn ensure_bpffs(path: &Path) -> Result<bool> {
    if is_bpffs(path)? {
        return Ok(false);
    }
    mount(
        Some("bpf"),
        path,
        Some("bpf"),
        MsFlags::empty(),
        Some("mode=0700"),
    )
    .map_err(|errno| Error::file("mount a BPF file system at", path)(errno.into()))?;
    Ok(true)
}

fn is_bpffs(path: &Path) -> Result<bool> {
    let found =
        statfs(path).map_err(|errno| Error::file("find the file system of", path)(errno.into()))?;
    Ok(found.filesystem_type() == BPF_FS_MAGIC)
}

impl Pins {
    /// Takes the right to change what is pinned below `root`, which is made if need be.
    pub(super) fn lock(root: &Path) -> Result<Self> {
        let nearest = root
            .ancestors()
            .find(|path| path.exists())
            .unwrap_or_else(|| Path::new("/"));
        if !is_bpffs(nearest)? {
            return Err(Error::NotBpffs {
                path: root.to_owned(),
            });
        }
        fs::create_dir_all(root).map_err(Error::file("make directory", root))?;
        let directory = File::open(root).map_err(Error::file("open", root))?;
        match Flock::lock(directory, FlockArg::LockExclusiveNonblock) {
            Ok(lock) => Ok(Self {
                root: root.to_owned(),
                _lock: lock,
            }),
            Err((_, nix::Error::EWOULDBLOCK)) => Err(Error::Locked {
                path: root.to_owned(),
            }),
            Err((_, errno)) => Err(Error::file("lock", root)(errno.into())),
        }
    }

    /// Whether a layout of this version is published.
    pub(super) fn is_published(&self) -> bool {
        layout(&self.root).is_dir()
    }

    /// Begins a layout of this version under another name.
    pub(super) fn begin(&self) -> Result<Unpublished<'_>> {
        self.remove_unfinished()?;
        let path = self
            .root
            .join(format!("{UNFINISHED}{}", std::process::id()));
        for directory in [maps(&path), links(&path)] {
            fs::create_dir_all(&directory).map_err(Error::file("make directory", directory))?;
        }
        Ok(Unpublished { pins: self, path })
    }

    /// Removes what an agent that died in [`Self::begin`] left.
    pub(super) fn remove_unfinished(&self) -> Result<()> {
        for (name, path) in list(&self.root)? {
            if name.starts_with(UNFINISHED) {
                remove(&path, &mut Removed::default())?;
            }
        }
        Ok(())
    }

    /// Where maps are pinned.
    pub(super) fn maps(&self) -> PathBuf {
        maps(&layout(&self.root))
    }

    /// Where links are pinned.
    pub(super) fn links(&self) -> PathBuf {
        links(&layout(&self.root))
    }

    /// Removes every layout of any version, and the root.
    pub(super) fn remove_all(self) -> Result<Removed> {
        let mut removed = Removed::default();
        remove(&self.root, &mut removed)?;
        Ok(removed)
    }
}

const UNFINISHED: &str = "new-";

/// A layout that is not published yet; unless it is, dropping it removes it.
pub(super) struct Unpublished<'a> {
    pins: &'a Pins,
    path: PathBuf,
}

impl Unpublished<'_> {
    /// Where its maps are pinned.
    pub(super) fn maps(&self) -> PathBuf {
        maps(&self.path)
    }

    /// Makes it the layout that agents and `status` see.
    pub(super) fn publish(self) -> Result<()> {
        let target = layout(&self.pins.root);
        fs::rename(&self.path, &target).map_err(Error::file("publish the pins as", target))
    }
}

impl Drop for Unpublished<'_> {
    fn drop(&mut self) {
        // After publishing there is nothing of that name; else the next agent removes what is left.
        drop(remove(&self.path, &mut Removed::default()));
    }
}

/// The directory of this version's layout below `root`.
fn layout(root: &Path) -> PathBuf {
    root.join(format!("v{LAYOUT_VERSION}"))
}

fn maps(layout: &Path) -> PathBuf {
    layout.join("maps")
}

fn links(layout: &Path) -> PathBuf {
    layout.join(LINKS)
}

const LINKS: &str = "links";

/// Name of the directory beside `links` where filters of kernels without tcx are recorded.
pub(super) const FILTERS: &str = "filters";

/// The directories of maps and links of this version below `root`, if published.
pub(super) fn published(root: &Path) -> Option<(PathBuf, PathBuf)> {
    let layout = layout(root);
    layout.is_dir().then(|| (maps(&layout), links(&layout)))
}

/// What `detach` removed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Removed {
    /// Attachments of programs.
    pub links: usize,
    /// Maps.
    pub maps: usize,
    /// Directories.
    pub directories: usize,
}

/// Removes `path` and all below it. What is gone already is no error, so that a removal that was
/// interrupted can be done again.
fn remove(path: &Path, removed: &mut Removed) -> Result<()> {
    // Which of them are directories is asked before anything goes: some go with others.
    let mut entries: Vec<_> = list(path)?
        .into_iter()
        .map(|(name, path)| (path.is_dir(), name, path))
        .collect();
    // Links before maps: no program runs on maps that nobody can see.
    entries
        .sort_by_key(|(is_directory, name, _)| (name != LINKS && name != FILTERS, *is_directory));
    for (is_directory, name, entry) in entries {
        if is_directory {
            remove(&entry, removed)?;
        } else if path.ends_with(LINKS) {
            links::remove_pin(&name, &entry)?;
            removed.links += 1;
        } else if path.ends_with(FILTERS) {
            links::remove_filter(path, &name)?;
            removed.links += 1;
        } else {
            unlink(&entry)?;
            removed.maps += 1;
        }
    }
    match fs::remove_dir(path) {
        Ok(()) => removed.directories += 1,
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(source) => {
            return Err(Error::File {
                operation: "remove directory",
                path: path.to_owned(),
                source,
            });
        }
    }
    Ok(())
}

/// Removes a pin, if it is there.
pub(super) fn unlink(path: &Path) -> Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(Error::file("remove pin", path)(error))
        }
        _ => Ok(()),
    }
}

/// The entries of a directory; none if it is not there.
pub(super) fn list(path: &Path) -> Result<Vec<(String, PathBuf)>> {
    let entries = match fs::read_dir(path) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(source) => return Err(Error::file("list", path)(source)),
    };
    entries
        .map(|entry| {
            let entry = entry.map_err(Error::file("list", path))?;
            Ok((
                entry.file_name().to_string_lossy().into_owned(),
                entry.path(),
            ))
        })
        .collect()
}
