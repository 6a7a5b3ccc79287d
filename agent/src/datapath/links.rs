//! Attachments: made, pinned, taken over from an earlier agent, and removed.
//!
//! The pins are the record; nothing is kept in memory. A program is replaced without a gap: cgroup and
//! tcx links by one atomic update, tracepoints by attaching the new program before the old one goes
//! (both running for a moment, which they bear).

use std::{
    collections::BTreeSet,
    fs::{self, File},
    io,
    os::{
        fd::{AsFd as _, BorrowedFd, OwnedFd},
        unix::fs::MetadataExt as _,
    },
    path::{Path, PathBuf},
    sync::Once,
};

use nix::sys::statfs::{CGROUP2_SUPER_MAGIC, statfs};
use steer_core::plan::Hook;

use super::{
    clsact::{self, Filters, Parent},
    error::{Error, Result},
    hook, pins,
    program::{GUARD, INGRESS_MARK, Programs},
    sys::{self, AttachType, LinkTarget},
};

/// A side of an interface at which a packet program runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Side {
    /// The guard, at egress.
    Guard,
    /// The marking of arrivals, at ingress.
    Ingress,
}

impl Side {
    const ALL: [Self; 2] = [Self::Guard, Self::Ingress];

    const fn prefix(self) -> &'static str {
        match self {
            Self::Guard => "guard-",
            Self::Ingress => "ingress-",
        }
    }

    const fn program(self) -> &'static str {
        match self {
            Self::Guard => GUARD,
            Self::Ingress => INGRESS_MARK,
        }
    }

    /// Where kernels without tcx have it.
    const fn parent(self) -> Parent {
        match self {
            Self::Guard => clsact::EGRESS,
            Self::Ingress => clsact::INGRESS,
        }
    }

    /// `BPF_TCX_EGRESS` or `BPF_TCX_INGRESS`.
    const fn attach_type(self) -> AttachType {
        AttachType(match self {
            Self::Ingress => 46,
            Self::Guard => 47,
        })
    }
}

/// Something that can be attached, as its pin's name says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Attachment {
    Hook(Hook),
    Interface(Side, u32),
}

impl Attachment {
    fn name(self) -> String {
        match self {
            Self::Hook(hook) => hook.name().to_owned(),
            Self::Interface(side, ifindex) => format!("{}{ifindex}", side.prefix()),
        }
    }

    fn from_name(name: &str) -> Option<Self> {
        if let Some(hook) = Hook::from_name(name) {
            return Some(Self::Hook(hook));
        }
        Side::ALL.into_iter().find_map(|side| {
            let ifindex = name.strip_prefix(side.prefix())?.parse().ok()?;
            Some(Self::Interface(side, ifindex))
        })
    }

    const fn program(self) -> &'static str {
        match self {
            Self::Hook(hook) => hook::program(hook),
            Self::Interface(side, _) => side.program(),
        }
    }
}

/// The pinned attachments of one layout.
pub(super) struct Links {
    directory: PathBuf,
    filters: PathBuf,
    cgroup: File,
    cgroup_id: u64,
    programs: Programs,
    refusal_told: Once,
}

impl Links {
    /// Takes over every attachment in `directory`: those that stand get `programs`, those whose cgroup
    /// or interface is gone, or is another than `cgroup_root`, are made anew or dropped.
    pub(super) fn adopt(
        directory: PathBuf,
        cgroup_root: &Path,
        programs: Programs,
    ) -> Result<Self> {
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
        // The inode number of a cgroup's directory is the cgroup's id.
        let links = Self {
            filters: directory.with_file_name(pins::FILTERS),
            directory,
            cgroup,
            cgroup_id: metadata.ino(),
            programs,
            refusal_told: Once::new(),
        };
        for (name, path) in pins::list(&links.directory)? {
            match Attachment::from_name(&name) {
                Some(attachment) => links.renew(attachment)?,
                None => remove_pin(&name, &path)?,
            }
        }
        for (name, _) in pins::list(&links.filters)? {
            match Attachment::from_name(&name) {
                Some(Attachment::Interface(side, ifindex)) => {
                    links.renew_filter(side, ifindex)?;
                }
                _ => continue,
            }
        }
        Ok(links)
    }

    /// The hooks that are attached.
    pub(super) fn hooks(&self) -> Result<BTreeSet<Hook>> {
        hooks(&self.directory)
    }

    /// The interfaces at which a program is attached.
    pub(super) fn interfaces(&self, side: Side) -> Result<BTreeSet<u32>> {
        interfaces(&self.directory, side)
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

    fn set(&self, attachment: Attachment, attached: bool) -> Result<()> {
        if !attached {
            remove_pin(&attachment.name(), &self.path(attachment))?;
            return match attachment {
                Attachment::Interface(..) => remove_filter(&self.filters, &attachment.name()),
                Attachment::Hook(_) => Ok(()),
            };
        }
        if let Attachment::Interface(side, ifindex) = attachment
            && self
                .filters()
                .interfaces(side.prefix(), side.parent())?
                .contains(&ifindex)
        {
            return Ok(());
        }
        match self.pinned(attachment)? {
            Some(link) if self.stands(attachment, link.as_fd())? => Ok(()),
            _ => self.attach(attachment),
        }
    }

    /// Puts this agent's program behind a pinned attachment.
    fn renew(&self, attachment: Attachment) -> Result<()> {
        let Some(link) = self.pinned(attachment)? else {
            return Ok(());
        };
        if let Attachment::Hook(hook) = attachment
            && !self.supports(hook)
        {
            return remove_pin(&attachment.name(), &self.path(attachment));
        }
        let updatable = !matches!(sys::link_target(link.as_fd()), Ok(LinkTarget::Tracepoint));
        if self.stands(attachment, link.as_fd())? && updatable {
            let program = self.programs.get(attachment.program());
            return sys::link_update(link.as_fd(), program)
                .map_err(Error::kernel("replace the program of", attachment.name()));
        }
        match attachment {
            Attachment::Hook(_) => self.attach(attachment),
            // The interface is gone; its number may mean another one already.
            Attachment::Interface(..) => pins::unlink(&self.path(attachment)),
        }
    }

    /// Puts this agent's program into a recorded filter.
    fn renew_filter(&self, side: Side, ifindex: u32) -> Result<()> {
        let name = Attachment::Interface(side, ifindex).name();
        let filters = self.filters();
        if filters
            .interfaces(side.prefix(), side.parent())?
            .contains(&ifindex)
        {
            filters.attach(
                &name,
                side.parent(),
                ifindex,
                self.programs.get(side.program()),
            )
        } else {
            filters.detach(&name, side.parent(), ifindex)
        }
    }

    /// Makes and pins an attachment, then drops the one that was pinned there, if any.
    fn attach(&self, attachment: Attachment) -> Result<()> {
        let link = match (self.link(attachment), attachment) {
            // What kernels without tcx say to its attach types.
            (Err(error), Attachment::Interface(side, ifindex))
                if error.raw_os_error() == Some(libc::EINVAL) =>
            {
                let program = self.programs.get(attachment.program());
                return self
                    .filters()
                    .attach(&attachment.name(), side.parent(), ifindex, program);
            }
            (link, _) => link.map_err(Error::kernel("attach", attachment.name()))?,
        };
        let path = self.path(attachment);
        let fresh = self.directory.join(format!("{FRESH}{}", attachment.name()));
        pins::unlink(&fresh)?;
        sys::pin(link.as_fd(), &fresh).map_err(Error::file("pin", &fresh))?;
        fs::rename(&fresh, &path).map_err(Error::file("publish pin", path))
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

    fn filters(&self) -> Filters<'_> {
        Filters {
            directory: &self.filters,
        }
    }

    fn path(&self, attachment: Attachment) -> PathBuf {
        self.directory.join(attachment.name())
    }

    fn pinned(&self, attachment: Attachment) -> Result<Option<OwnedFd>> {
        open(&self.path(attachment))
    }

    /// Whether a link is attached where it should be.
    fn stands(&self, attachment: Attachment, link: BorrowedFd<'_>) -> Result<bool> {
        let target = sys::link_target(link)
            .map_err(Error::kernel("read the properties of", attachment.name()))?;
        Ok(match (attachment, target) {
            (Attachment::Hook(hook), LinkTarget::Cgroup { id, attach_type }) => {
                id == self.cgroup_id && hook::attach_type(hook) == Some(attach_type)
            }
            (Attachment::Hook(hook), LinkTarget::Tracepoint) => hook::attach_type(hook).is_none(),
            (
                Attachment::Interface(side, wanted),
                LinkTarget::Tcx {
                    ifindex,
                    attach_type,
                },
            ) => ifindex == wanted && attach_type == side.attach_type(),
            _ => false,
        })
    }
}

/// Prefix of a pin that is about to replace another.
const FRESH: &str = "fresh-";

/// The hooks that are pinned in `directory` and whose cgroup is there.
pub(super) fn hooks(directory: &Path) -> Result<BTreeSet<Hook>> {
    let mut hooks = BTreeSet::new();
    for (name, path) in pins::list(directory)? {
        let Some(Attachment::Hook(hook)) = Attachment::from_name(&name) else {
            continue;
        };
        if !matches!(
            target(&name, &path)?,
            Some(LinkTarget::Cgroup { id: 0, .. }) | None
        ) {
            hooks.insert(hook);
        }
    }
    Ok(hooks)
}

/// The interfaces whose attachments are pinned in `directory` and that are there.
pub(super) fn interfaces(directory: &Path, wanted: Side) -> Result<BTreeSet<u32>> {
    let filters = directory.with_file_name(pins::FILTERS);
    let mut interfaces = Filters {
        directory: &filters,
    }
    .interfaces(wanted.prefix(), wanted.parent())?;
    for (name, path) in pins::list(directory)? {
        let Some(Attachment::Interface(side, ifindex)) = Attachment::from_name(&name) else {
            continue;
        };
        if side == wanted
            && !matches!(
                target(&name, &path)?,
                Some(LinkTarget::Tcx { ifindex: 0, .. }) | None
            )
        {
            interfaces.insert(ifindex);
        }
    }
    Ok(interfaces)
}

fn target(name: &str, path: &Path) -> Result<Option<LinkTarget>> {
    match open(path)? {
        Some(link) => sys::link_target(link.as_fd())
            .map(Some)
            .map_err(Error::kernel("read the properties of", name)),
        None => Ok(None),
    }
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
            // gone is detached already.
            Err(error)
                if matches!(
                    error.raw_os_error(),
                    Some(libc::EOPNOTSUPP | libc::ENOLINK | libc::ENODEV)
                ) => {}
            Err(error) => return Err(Error::kernel("detach", name)(error)),
        }
    }
    pins::unlink(path)
}

/// Detaches the filter that is recorded as `name` in `directory`, if it is.
pub(super) fn remove_filter(directory: &Path, name: &str) -> Result<()> {
    match Attachment::from_name(name) {
        Some(Attachment::Interface(side, ifindex)) => {
            Filters { directory }.detach(name, side.parent(), ifindex)
        }
        _ => pins::unlink(&directory.join(name)),
    }
}
