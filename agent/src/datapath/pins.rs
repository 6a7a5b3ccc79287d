//! Where everything is pinned, so that it outlives the agent.
//!
//! `<root>/v<layout>/maps/<MAP>` and `<root>/v<layout>/links/<link>`. A layout is made in a directory
//! of another name and appears by one rename. Names have no dots: the BPF file system refuses them.
//! While an agent takes over from one of another version, the layouts of both are there.

use std::{
    fs::{self, File},
    io,
    os::fd::BorrowedFd,
    os::unix::fs::{MetadataExt as _, PermissionsExt as _},
    path::{Path, PathBuf},
};

use nix::{
    fcntl::{Flock, FlockArg},
    mount::{MsFlags, mount},
    sys::statfs::{BPF_FS_MAGIC, statfs},
    unistd::geteuid,
};
use steer_common::LAYOUT_VERSION;

use super::{
    error::{Error, Result},
    links, sys,
};

/// The directories of the pins, and the right to change them.
pub(super) struct Pins {
    layouts: Layouts,
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

/// Whether there is a BPF file system at `path`.
pub fn is_bpffs(path: &Path) -> Result<bool> {
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
        keep_from_others(&directory).map_err(Error::file("have for root alone", root))?;
        match Flock::lock(directory, FlockArg::LockExclusiveNonblock) {
            Ok(lock) => Ok(Self {
                layouts: Layouts::below(root),
                _lock: lock,
            }),
            Err((_, nix::Error::EWOULDBLOCK)) => Err(Error::Locked {
                path: root.to_owned(),
            }),
            Err((_, errno)) => Err(Error::file("lock", root)(errno.into())),
        }
    }

    /// The layouts that are there.
    pub(super) const fn layouts(&self) -> &Layouts {
        &self.layouts
    }

    /// Begins a layout of this version under another name.
    pub(super) fn begin(&self) -> Result<Unpublished> {
        let own = self.layouts.own();
        let path = own
            .0
            .with_file_name(format!("{UNFINISHED}{}", std::process::id()));
        let unpublished = Unpublished {
            layout: Layout(path),
            own,
        };
        let layout = &unpublished.layout;
        for directory in [layout.maps(), layout.links()] {
            fs::create_dir_all(&directory).map_err(Error::file("make directory", directory))?;
        }
        Ok(unpublished)
    }

    /// Removes what an agent that died in [`Self::begin`] left.
    pub(super) fn remove_unfinished(&self) -> Result<()> {
        for (name, path) in list(&self.layouts.root)? {
            if name.starts_with(UNFINISHED) {
                remove(&path, &mut Removed::default())?;
            }
        }
        Ok(())
    }

    /// Removes every layout of any version. The root stays, and with it the lock.
    pub(super) fn remove_layouts(&self) -> Result<Removed> {
        let mut removed = Removed::default();
        for (_, layout) in list(&self.layouts.root)? {
            remove(&layout, &mut removed)?;
        }
        Ok(removed)
    }

    /// Removes the root, and gives the lock up.
    pub(super) fn remove_root(self) -> Result<()> {
        remove(&self.layouts.root, &mut Removed::default())
    }
}

/// Sees to it that nobody else can remove what is in a directory, or lock it, for which reading is enough
/// (flock(2)). Some mount the BPF file system so that everybody may make directories in it.
fn keep_from_others(directory: &File) -> io::Result<()> {
    let owner = directory.metadata()?.uid();
    if owner != geteuid().as_raw() {
        let words = format!("it was made by user {owner}: remove it");
        return Err(io::Error::other(words));
    }
    directory.set_permissions(fs::Permissions::from_mode(0o700))
}

const UNFINISHED: &str = "new-";

/// What is pinned, by name alone.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PinsFound {
    /// The layout of this version is there.
    pub own: bool,
    /// Layouts of other versions, the newest first.
    pub others: Vec<String>,
    /// Something is attached by one of them.
    pub in_force: bool,
    /// What agents left that died before they published it.
    pub unfinished: Vec<String>,
}

/// Looks at what is pinned below `root`, changing nothing.
pub fn find_pins(root: &Path) -> Result<PinsFound> {
    let layouts = Layouts::below(root);
    let mut found = PinsFound {
        own: layouts.own().exists(),
        ..PinsFound::default()
    };
    for layout in layouts.all()? {
        found.in_force |= layout.is_in_force()?;
    }
    found.others = layouts.others()?.iter().map(ToString::to_string).collect();
    for (name, _) in list(root)? {
        if name.starts_with(UNFINISHED) {
            found.unfinished.push(name);
        }
    }
    Ok(found)
}

/// A layout that is not published yet; unless it is, dropping it removes it.
pub(super) struct Unpublished {
    layout: Layout,
    own: Layout,
}

impl Unpublished {
    /// Where its maps are pinned.
    pub(super) fn maps(&self) -> PathBuf {
        self.layout.maps()
    }

    /// Makes it the layout that agents and `status` see.
    pub(super) fn publish(self) -> Result<()> {
        let target = &self.own.0;
        fs::rename(&self.layout.0, target).map_err(Error::file("publish the pins as", target))
    }
}

impl Drop for Unpublished {
    fn drop(&mut self) {
        // After publishing there is nothing of that name; else the next agent removes what is left.
        drop(self.layout.remove());
    }
}

/// The layouts below the root of the pins.
#[derive(Clone, Debug)]
pub(super) struct Layouts {
    root: PathBuf,
}

impl Layouts {
    /// Those below `root`, if it is there.
    pub(super) fn below(root: &Path) -> Self {
        Self {
            root: root.to_owned(),
        }
    }

    /// This version's.
    pub(super) fn own(&self) -> Layout {
        self.of(LAYOUT_VERSION)
    }

    /// Those of other versions that are there, the newest first.
    pub(super) fn others(&self) -> Result<Vec<Layout>> {
        let mut versions: Vec<u32> = list(&self.root)?
            .into_iter()
            .filter_map(|(name, _)| name.strip_prefix('v')?.parse().ok())
            .filter(|version| *version != LAYOUT_VERSION)
            .collect();
        versions.sort_unstable_by(|one, other| other.cmp(one));
        Ok(versions
            .into_iter()
            .map(|version| self.of(version))
            .collect())
    }

    /// Whether anything is attached by another version's.
    pub(super) fn others_in_force(&self) -> Result<bool> {
        for other in self.others()? {
            if other.is_in_force()? {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// This version's, then the others.
    pub(super) fn all(&self) -> Result<Vec<Layout>> {
        let mut all = vec![self.own()];
        all.append(&mut self.others()?);
        Ok(all)
    }

    fn of(&self, version: u32) -> Layout {
        Layout(self.root.join(format!("v{version}")))
    }
}

/// The directory of one layout.
#[derive(Clone, Debug)]
pub(super) struct Layout(PathBuf);

impl Layout {
    /// Whether it is published.
    pub(super) fn exists(&self) -> bool {
        self.0.is_dir()
    }

    /// Where maps are pinned.
    pub(super) fn maps(&self) -> PathBuf {
        self.0.join("maps")
    }

    /// Where links are pinned.
    pub(super) fn links(&self) -> PathBuf {
        self.0.join(LINKS)
    }

    /// Where filters of kernels without tcx are recorded.
    pub(super) fn filters(&self) -> PathBuf {
        self.0.join(FILTERS)
    }

    /// Whether anything is attached by it, so that its maps say what is in force.
    pub(super) fn is_in_force(&self) -> Result<bool> {
        Ok(!list(&self.links())?.is_empty() || !list(&self.filters())?.is_empty())
    }

    /// Removes it, and detaches what is attached by it.
    pub(super) fn remove(&self) -> Result<Removed> {
        let mut removed = Removed::default();
        remove(&self.0, &mut removed)?;
        Ok(removed)
    }
}

impl std::fmt::Display for Layout {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let name = self.0.file_name().unwrap_or_default();
        f.write_str(&name.to_string_lossy())
    }
}

const LINKS: &str = "links";
const FILTERS: &str = "filters";

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

/// Pins `object` at `path` in the place of what is pinned there, if anything.
pub(super) fn replace(object: BorrowedFd<'_>, path: &Path) -> Result<()> {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let fresh = path.with_file_name(format!("{FRESH}{name}"));
    unlink(&fresh)?;
    sys::pin(object, &fresh).map_err(Error::file("pin", &fresh))?;
    fs::rename(&fresh, path).map_err(Error::file("publish pin", path))
}

/// Prefix of a pin that is about to replace another.
const FRESH: &str = "fresh-";
