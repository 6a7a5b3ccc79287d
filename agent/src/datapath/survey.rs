//! Programs of others at the places where steer's are attached. Changes nothing.

use std::{
    collections::BTreeSet,
    fs::File,
    os::fd::AsFd as _,
    path::{Path, PathBuf},
};

use steer_core::plan::Hook;

use super::{
    attachment::Side,
    error::{Error, Result},
    hook,
    pins::{self, Layouts},
    sys,
};

/// A program that is not steer's, or not this agent's.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct ForeignProgram {
    /// Its id.
    pub id: u32,
    /// Its name; empty if it has none.
    pub name: String,
}

/// How the programs at a cgroup get on with those above and below.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sharing {
    /// Flags 0: no other may be attached beside it or below it.
    Alone,
    /// `BPF_F_ALLOW_OVERRIDE`: what is attached below runs in its place.
    Overridden,
    /// `BPF_F_ALLOW_MULTI`, and every link: all run.
    Stacked,
}

/// Programs of others at one hook of a cgroup.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AtCgroup {
    /// The cgroup's directory.
    pub directory: PathBuf,
    /// The hook.
    pub hook: Hook,
    /// How they were attached.
    pub sharing: Sharing,
    /// The programs.
    pub programs: Vec<ForeignProgram>,
}

/// A side of an interface.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// What leaves.
    Egress,
    /// What arrives.
    Ingress,
}

/// Programs of others at one side of an interface, by tcx.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AtInterface {
    /// The side.
    pub direction: Direction,
    /// Those that run before steer's, if steer has one there.
    pub before: Vec<ForeignProgram>,
    /// The others.
    pub after: Vec<ForeignProgram>,
}

/// Knows which programs are steer's own.
pub struct Survey {
    own: BTreeSet<u32>,
}

impl Survey {
    /// Reads which programs are pinned below `pin_root`.
    ///
    /// # Errors
    /// A pin cannot be opened.
    pub fn open(pin_root: &Path) -> Result<Self> {
        let mut own = BTreeSet::new();
        for layout in Layouts::below(pin_root).all()? {
            for (name, path) in pins::list(&layout.links())? {
                let link = sys::get(&path).map_err(Error::kernel("open", &name))?;
                let (program, _) =
                    sys::link_state(link.as_fd()).map_err(Error::kernel("read", &name))?;
                own.insert(program);
            }
            for (name, path) in pins::list(&layout.filters())? {
                // Beside the programs there are directories.
                if path.is_dir() {
                    continue;
                }
                let program = sys::get(&path).map_err(Error::kernel("open", &name))?;
                let id = sys::program_id(program.as_fd()).map_err(Error::kernel("read", &name))?;
                own.insert(id);
            }
        }
        Ok(Self { own })
    }

    /// The programs of others that are attached to one cgroup itself, at hooks that steer uses.
    ///
    /// # Errors
    /// The kernel refuses to tell, or the cgroup is gone.
    pub fn at_cgroup(&self, directory: &Path) -> Result<Vec<AtCgroup>> {
        let cgroup = File::open(directory).map_err(Error::file("open", directory))?;
        let mut found = Vec::new();
        for hook in Hook::ALL {
            let Some(attach_type) = hook::attach_type(hook) else {
                continue;
            };
            let attached = sys::attached_to_cgroup(cgroup.as_fd(), attach_type).map_err(
                Error::kernel("list the programs of", directory.to_string_lossy()),
            )?;
            let programs = self.foreign(&attached.programs);
            if !programs.is_empty() {
                found.push(AtCgroup {
                    directory: directory.to_owned(),
                    hook,
                    sharing: match attached.flags & (ALLOW_OVERRIDE | ALLOW_MULTI) {
                        0 => Sharing::Alone,
                        flags if flags & ALLOW_MULTI != 0 => Sharing::Stacked,
                        _ => Sharing::Overridden,
                    },
                    programs,
                });
            }
        }
        Ok(found)
    }

    /// The programs of others at an interface of the calling thread's network namespace. None where the
    /// kernel has no tcx.
    ///
    /// # Errors
    /// The kernel refuses to tell, or the interface is gone.
    pub fn at_interface(&self, ifindex: u32) -> Result<Vec<AtInterface>> {
        let mut found = Vec::new();
        for (side, direction) in [
            (Side::Guard, Direction::Egress),
            (Side::Ingress, Direction::Ingress),
        ] {
            let attached = match sys::attached(ifindex, side.attach_type()) {
                Ok(attached) => attached.programs,
                // Nothing is attached, or the kernel knows no such place.
                Err(error) if matches!(error.raw_os_error(), Some(libc::ENOENT | libc::EINVAL)) => {
                    continue;
                }
                Err(error) => {
                    let object = format!("interface {ifindex}");
                    return Err(Error::kernel("list the programs of", object)(error));
                }
            };
            let own = attached.iter().position(|id| self.own.contains(id));
            let (before, after) = attached.split_at(own.unwrap_or(0));
            let at = AtInterface {
                direction,
                before: self.foreign(before),
                after: self.foreign(after),
            };
            if !at.before.is_empty() || !at.after.is_empty() {
                found.push(at);
            }
        }
        Ok(found)
    }

    fn foreign(&self, ids: &[u32]) -> Vec<ForeignProgram> {
        let foreign = ids.iter().filter(|id| !self.own.contains(id));
        foreign
            .map(|&id| ForeignProgram {
                id,
                // It may be gone by now.
                name: sys::program_name(id).unwrap_or_default(),
            })
            .collect()
    }
}

/// `BPF_F_ALLOW_OVERRIDE`.
const ALLOW_OVERRIDE: u32 = 1;
/// `BPF_F_ALLOW_MULTI`.
const ALLOW_MULTI: u32 = 2;
