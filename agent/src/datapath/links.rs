//! Attachments: made, pinned, taken over from an earlier agent, and removed.
//!
//! The pins are the record; nothing is kept in memory. An attachment counts as made when its link runs a
//! program of this agent: what an earlier agent left, of this layout or another, stays in force until it
//! is asked for, and is then taken over without a gap. Cgroup and tcx links get the new program by one
//! atomic update and move into this layout's directory, filters are replaced in place, and beside a
//! tracepoint's program a new one is attached before the old one goes (both running for a moment, which
//! they bear). Cut short anywhere, each hook runs the one program or the other.

use std::{
    collections::BTreeSet,
    fs::{self, File},
    io,
    os::{
        fd::{AsFd as _, OwnedFd},
        unix::fs::MetadataExt as _,
    },
    path::Path,
    sync::Once,
};

use nix::sys::statfs::{CGROUP2_SUPER_MAGIC, statfs};
use steer_core::plan::Hook;

use super::{
    attachment::{Attachment, Side},
    clsact::Filters,
    error::{Error, Result},
    hook,
    pins::{self, Layout, Layouts},
    program::Programs,
    sys::{self, LinkTarget},
};

/// The attachments of this agent's layout, and those that other layouts left.
pub(super) struct Links {
    layouts: Layouts,
    cgroup: File,
    cgroup_id: u64,
    programs: Programs,
    refusal_told: Once,
}

impl Links {
    /// For the attachments in `layouts`, with `programs`; hooks belong to `cgroup_root`.
    pub(super) fn new(layouts: Layouts, cgroup_root: &Path, programs: Programs) -> Result<Self> {
        let not_cgroup = || Error::NotCgroup2 {
            path: cgroup_root.to_owned(),
        };
        let found = statfs(cgroup_root)
            .map_err(|errno| Error::file("find the file system of", cgroup_root)(errno.into()))?;
        let cgroup = File::open(cgroup_root).map_err(Error::file("open", cgroup_root))?;
        let metadata = cgroup
            .metadata()
            .map_err(Error::file("examine", cgroup_root))?;
        if found.filesystem_type() != CGROUP2_SUPER_MAGIC || !metadata.is_dir() {
            return Err(not_cgroup());
        }
        Ok(Self {
            layouts,
            cgroup,
            // The inode number of a cgroup's directory is the cgroup's id.
            cgroup_id: metadata.ino(),
            programs,
            refusal_told: Once::new(),
        })
    }

    /// The hooks at which a program of this agent runs.
    pub(super) fn hooks(&self) -> Result<BTreeSet<Hook>> {
        let mut hooks = BTreeSet::new();
        for hook in Hook::ALL {
            if self.runs(Attachment::Hook(hook))? {
                hooks.insert(hook);
            }
        }
        Ok(hooks)
    }

    /// The interfaces at which a program of this agent runs, and none of others before it.
    pub(super) fn interfaces(&self, wanted: Side) -> Result<BTreeSet<u32>> {
        let own = self.layouts.own();
        let mut interfaces = own.interfaces(wanted)?;
        let mut gone = Vec::new();
        for ifindex in &interfaces {
            let runs = self.runs(Attachment::Interface(wanted, *ifindex))?;
            if !runs || self.is_overtaken(wanted, *ifindex)? {
                gone.push(*ifindex);
            }
        }
        interfaces.retain(|ifindex| !gone.contains(ifindex));
        Ok(interfaces)
    }

    /// Whether the kernel can have the hook.
    pub(super) fn supports(&self, hook: Hook) -> bool {
        self.programs.has(hook)
    }

    /// Attaches or detaches a hook.
    pub(super) fn set_hook(&self, hook: Hook, attached: bool) -> Result<()> {
        if attached && !self.supports(hook) {
            self.refusal_told.call_once(|| {
                tracing::warn!(
                    %hook,
                    "this kernel cannot have the hook: an interface that appears while no agent runs \
                     is not guarded until one does"
                );
            });
            return Ok(());
        }
        self.set(Attachment::Hook(hook), attached)
    }

    /// Attaches or detaches a packet program.
    pub(super) fn set_interface(&self, side: Side, ifindex: u32, attached: bool) -> Result<()> {
        self.set(Attachment::Interface(side, ifindex), attached)
    }

    /// Removes every attachment that does not run a program of this agent, then the layouts of other
    /// versions.
    ///
    /// To be called when all that should be attached is.
    pub(super) fn sweep(&self) -> Result<()> {
        let own = self.layouts.own();
        for (name, path) in pins::list(&own.links())? {
            let runs = match Attachment::from_name(&name) {
                Some(attachment) => self.runs(attachment)?,
                None => false,
            };
            if !runs {
                remove_pin(&name, &path)?;
            }
        }
        let filters = own.filters();
        let filters = Filters {
            directory: &filters,
        };
        for side in Side::ALL {
            for ifindex in filters.recorded(side)? {
                if !self.runs(Attachment::Interface(side, ifindex))? {
                    filters.detach(side, ifindex)?;
                }
            }
        }
        for other in self.layouts.others()? {
            let records = other.filters();
            filters.inherit(&Filters {
                directory: &records,
            })?;
            let removed = other.remove()?;
            tracing::info!(
                layout = %other,
                links = removed.links,
                "took over from another version of steer"
            );
        }
        Ok(())
    }

    fn set(&self, attachment: Attachment, attached: bool) -> Result<()> {
        if attached {
            return self.ensure(attachment);
        }
        let name = attachment.name();
        for layout in self.layouts.all()? {
            remove_pin(&name, &layout.links().join(&name))?;
            if let Attachment::Interface(side, ifindex) = attachment {
                let filters = layout.filters();
                Filters {
                    directory: &filters,
                }
                .detach(side, ifindex)?;
            }
        }
        Ok(())
    }

    /// Has this agent's program run at `attachment`: taken over, or made.
    fn ensure(&self, attachment: Attachment) -> Result<()> {
        if self.runs(attachment)? {
            return match attachment {
                Attachment::Interface(side, ifindex) if self.is_overtaken(side, ifindex)? => {
                    self.overtake(side, ifindex)
                }
                _ => Ok(()),
            };
        }
        let name = attachment.name();
        let program = self.programs.get(attachment.program());
        let own = self.layouts.own().links().join(&name);
        for layout in self.layouts.all()? {
            if let Attachment::Interface(side, ifindex) = attachment
                && layout.has_filter(side, ifindex)?
            {
                return self.attach_filter(side, ifindex);
            }
            let path = layout.links().join(&name);
            let Some(link) = open(&path)? else { continue };
            let (_, target) = state(&name, &link)?;
            if target == LinkTarget::Tracepoint || !attachment.is_at(target, self.cgroup_id) {
                continue;
            }
            sys::link_update(link.as_fd(), program)
                .map_err(Error::kernel("replace the program of", &name))?;
            if path != own {
                fs::rename(&path, &own).map_err(Error::file("take pin over as", own))?;
            }
            return Ok(());
        }
        match (self.link(attachment), attachment) {
            // What kernels without tcx say to its attach types.
            (Err(error), Attachment::Interface(side, ifindex))
                if error.raw_os_error() == Some(libc::EINVAL) =>
            {
                self.attach_filter(side, ifindex)
            }
            (link, _) => {
                let link = link.map_err(Error::kernel("attach", name))?;
                // The one that was pinned there, if any, ends with its pin.
                pins::replace(link.as_fd(), &own)
            }
        }
    }

    /// Whether programs of others run before ours, and so may keep packets from it.
    fn is_overtaken(&self, side: Side, ifindex: u32) -> Result<bool> {
        let attached = match sys::attached(ifindex, side.attach_type()) {
            Ok(attached) => attached.programs,
            // Nothing is attached, the kernel knows no such place, or the interface is gone.
            Err(error)
                if matches!(
                    error.raw_os_error(),
                    Some(libc::ENOENT | libc::EINVAL | libc::ENODEV)
                ) =>
            {
                return Ok(false);
            }
            Err(error) => {
                let object = format!("interface {ifindex}");
                return Err(Error::kernel("list the programs of", object)(error));
            }
        };
        let own = self.programs.id(side.program());
        let Some(own) = attached.iter().position(|id| Some(*id) == own) else {
            return Ok(false);
        };
        Ok(attached[..own]
            .iter()
            .any(|id| !self.programs.contains(*id)))
    }

    /// Puts our program before those of others again, without a gap: a second one is put there first,
    /// which gives way when the old one has gone.
    fn overtake(&self, side: Side, ifindex: u32) -> Result<()> {
        let name = Attachment::Interface(side, ifindex).name();
        let own = self.layouts.own();
        let path = own.links().join(&name);
        let Some(old) = open(&path)? else {
            return Ok(());
        };
        let second = self.programs.again(&own.maps(), side.program())?;
        let link = sys::link_tcx(second, ifindex, side.attach_type())
            .map_err(Error::kernel("attach", &name))?;
        pins::replace(link.as_fd(), &path)?;
        sys::link_detach(old.as_fd()).map_err(Error::kernel("detach", &name))?;
        sys::link_update(link.as_fd(), self.programs.get(side.program()))
            .map_err(Error::kernel("replace the program of", &name))?;
        tracing::warn!(
            at = name,
            "a packet program of others was put before steer's, which is the first again"
        );
        Ok(())
    }

    fn attach_filter(&self, side: Side, ifindex: u32) -> Result<()> {
        let program = Attachment::Interface(side, ifindex).program();
        let filters = self.layouts.own().filters();
        Filters {
            directory: &filters,
        }
        .attach(side, ifindex, self.programs.get(program))
    }

    fn link(&self, attachment: Attachment) -> io::Result<OwnedFd> {
        let program = self.programs.get(attachment.program());
        match attachment {
            Attachment::Interface(side, ifindex) => {
                sys::link_tcx(program, ifindex, side.attach_type())
            }
            Attachment::Hook(hook) => match hook::attach_type(hook) {
                Some(attach_type) => sys::link_cgroup(program, self.cgroup.as_fd(), attach_type),
                None => sys::link_tracepoint(program),
            },
        }
    }

    /// Whether a program of this agent runs there, and this layout has the pin.
    fn runs(&self, attachment: Attachment) -> Result<bool> {
        let Some(wanted) = self.programs.id(attachment.program()) else {
            return Ok(false);
        };
        let own = self.layouts.own();
        if let Attachment::Interface(side, ifindex) = attachment {
            let filters = own.filters();
            let filters = Filters {
                directory: &filters,
            };
            if filters.program(side, ifindex)? == Some(wanted) {
                return Ok(true);
            }
        }
        let name = attachment.name();
        let Some(link) = open(&own.links().join(&name))? else {
            return Ok(false);
        };
        let (program, target) = state(&name, &link)?;
        Ok(program == wanted && attachment.is_at(target, self.cgroup_id))
    }
}

impl Layout {
    /// The hooks that are pinned here and whose cgroup is there, whoever's program they run.
    pub(super) fn hooks(&self) -> Result<BTreeSet<Hook>> {
        let mut hooks = BTreeSet::new();
        for (name, path) in pins::list(&self.links())? {
            if let Some(Attachment::Hook(hook)) = Attachment::from_name(&name)
                && let Some(link) = open(&path)?
                && !matches!(state(&name, &link)?.1, LinkTarget::Cgroup { id: 0, .. })
            {
                hooks.insert(hook);
            }
        }
        Ok(hooks)
    }

    /// The interfaces whose attachments are pinned or recorded here and that are there, whoever's
    /// program they run.
    pub(super) fn interfaces(&self, wanted: Side) -> Result<BTreeSet<u32>> {
        let filters = self.filters();
        let filters = Filters {
            directory: &filters,
        };
        let mut interfaces = BTreeSet::new();
        for ifindex in filters.recorded(wanted)? {
            if filters.has(wanted, ifindex)? {
                interfaces.insert(ifindex);
            }
        }
        for (name, path) in pins::list(&self.links())? {
            if let Some(Attachment::Interface(side, ifindex)) = Attachment::from_name(&name)
                && side == wanted
                && let Some(link) = open(&path)?
                && !matches!(state(&name, &link)?.1, LinkTarget::Tcx { ifindex: 0, .. })
            {
                interfaces.insert(ifindex);
            }
        }
        Ok(interfaces)
    }

    fn has_filter(&self, side: Side, ifindex: u32) -> Result<bool> {
        let filters = self.filters();
        Filters {
            directory: &filters,
        }
        .has(side, ifindex)
    }
}

fn state(name: &str, link: &OwnedFd) -> Result<(u32, LinkTarget)> {
    sys::link_state(link.as_fd()).map_err(Error::kernel("read the properties of", name))
}

fn open(path: &Path) -> Result<Option<OwnedFd>> {
    match sys::get(path) {
        Ok(link) => Ok(Some(link)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(Error::file("open pinned link", path)(error)),
    }
}

/// Detaches what is pinned at `path`, if anything.
pub(super) fn remove_pin(name: &str, path: &Path) -> Result<()> {
    if let Some(link) = open(path)? {
        match sys::link_detach(link.as_fd()) {
            Ok(()) => {}
            // Tracing links detach when their last user is gone; a link whose cgroup or interface is
            // gone is detached already; and what is no link has nothing to detach.
            Err(error)
                if matches!(
                    error.raw_os_error(),
                    Some(libc::EOPNOTSUPP | libc::ENOLINK | libc::ENODEV | libc::EINVAL)
                ) => {}
            Err(error) => return Err(Error::kernel("detach", name)(error)),
        }
    }
    pins::unlink(path)
}

/// Detaches the filter that is recorded as `name` in `directory`, if it is.
pub(super) fn remove_filter(directory: &Path, name: &str) -> Result<()> {
    match Attachment::from_name(name) {
        Some(Attachment::Interface(side, ifindex)) => Filters { directory }.detach(side, ifindex),
        _ => pins::unlink(&directory.join(name)),
    }
}
