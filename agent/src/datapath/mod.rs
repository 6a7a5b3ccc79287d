//! The kernel side of steer: loads the programs, attaches them, owns their pins, and gives typed
//! access to their maps. The only module that knows aya.
//!
//! The kernel is the database. What is attached and what is in a map is asked from there, so that an
//! agent takes over what another left, and dropping a [`Datapath`] changes nothing.

mod btf;
mod clsact;
mod error;
mod events;
mod hook;
mod links;
mod maps;
mod pins;
mod program;
mod sys;

use std::{collections::BTreeSet, path::Path};

use steer_common::MarkMask;

pub use btf::BtfError;
pub use error::{Error, Result};
pub use events::{Event, EventStream};
pub use maps::{Array, Counters, Table, Tables};
pub use pins::{Removed, ensure_bpffs};
pub use steer_core::plan::Hook;

use links::{Links, Side};
use pins::Pins;
use program::Programs;

/// Where pins live unless told otherwise.
pub const PIN_ROOT: &str = "/sys/fs/bpf/steer";

/// What a datapath is made for.
#[derive(Clone, Copy, Debug)]
pub struct Options<'a> {
    /// Root of the pins, on a BPF file system; [`PIN_ROOT`].
    pub pin_root: &'a Path,
    /// Root of the managed cgroups, where socket programs are attached.
    pub cgroup_root: &'a Path,
    /// Bits of marks that are steer's.
    pub mark_mask: MarkMask,
}

/// Programs loaded, maps open, and the lock held that keeps a second agent away.
pub struct Datapath {
    /// The tables that the programs read.
    pub maps: Tables,
    links: Links,
    pins: Pins,
}

impl Datapath {
    /// Loads the programs for this thread's network namespace and either makes maps, or adopts those
    /// that are pinned and puts these programs behind every attachment there is, without a gap.
    ///
    /// Nothing else is attached. An error leaves what was pinned in force.
    pub fn open(options: Options<'_>) -> Result<Self> {
        let pins = Pins::lock(options.pin_root)?;
        let programs = if pins.is_published() {
            pins.remove_unfinished()?;
            for map in &maps::MAPS {
                map.open(&pins.maps())?;
            }
            Programs::load(&pins.maps(), options.mark_mask)?
        } else {
            let layout = pins.begin()?;
            let programs = Programs::load(&layout.maps(), options.mark_mask)?;
            layout.publish()?;
            programs
        };
        let maps = Tables::open(&pins.maps())?;
        let links = Links::adopt(pins.links(), options.cgroup_root, programs)?;
        let datapath = Self { maps, links, pins };
        datapath.guards()?;
        Ok(datapath)
    }

    /// Whether this kernel can have the hook. Only [`Hook::Egress`] may be missing: Linux
    /// 6.18 has what it needs, 6.12 has not.
    pub fn supports(&self, hook: Hook) -> bool {
        self.links.supports(hook)
    }

    /// The hooks that are attached.
    pub fn hooks(&self) -> Result<BTreeSet<Hook>> {
        self.links.hooks()
    }

    /// Attaches or detaches a hook. What is so already is left alone.
    ///
    /// A hook that this kernel cannot have ([`Self::supports`]) is not attached, which is told in the
    /// log once and is no error: it is a backstop of the guards, and these hold without it.
    pub fn set_hook(&mut self, hook: Hook, attached: bool) -> Result<()> {
        self.links.set_hook(hook, attached)
    }

    /// The interfaces that have a guard, of which the hook [`Hook::Egress`] is told, too: a guard goes
    /// with its interface without a word.
    pub fn guards(&self) -> Result<BTreeSet<u32>> {
        let guards = self.links.interfaces(Side::Guard)?;
        let told: BTreeSet<u32> = self
            .maps
            .guarded
            .entries()?
            .into_iter()
            .map(|(ifindex, _)| ifindex)
            .collect();
        for ifindex in told.difference(&guards) {
            self.maps.guarded.remove(ifindex)?;
        }
        for ifindex in guards.difference(&told) {
            self.maps.guarded.set(ifindex, &1)?;
        }
        Ok(guards)
    }

    /// Attaches a guard to an interface, or detaches it. Not meant for the loopback interface, which
    /// no domain has: there it would drop what strict policies send to the host itself.
    pub fn set_guard(&mut self, ifindex: u32, attached: bool) -> Result<()> {
        // What the backstop is told is never more than what is guarded.
        if attached {
            self.links.set_interface(Side::Guard, ifindex, true)?;
            self.maps.guarded.set(&ifindex, &1)
        } else {
            self.maps.guarded.remove(&ifindex)?;
            self.links.set_interface(Side::Guard, ifindex, false)
        }
    }

    /// The interfaces whose arrivals are marked, and their marks.
    pub fn ingress(&self) -> Result<Vec<(u32, u32)>> {
        let attached = self.links.interfaces(Side::Ingress)?;
        let mut marks = self.maps.ingress.entries()?;
        marks.retain(|(ifindex, _)| attached.contains(ifindex));
        marks.sort_unstable();
        Ok(marks)
    }

    /// Marks what arrives at an interface, or leaves it alone again.
    pub fn set_ingress(&mut self, ifindex: u32, mark: Option<u32>) -> Result<()> {
        match mark {
            Some(mark) => {
                self.maps.ingress.set(&ifindex, &mark)?;
                self.links.set_interface(Side::Ingress, ifindex, true)
            }
            None => {
                self.links.set_interface(Side::Ingress, ifindex, false)?;
                self.maps.ingress.remove(&ifindex).map(drop)
            }
        }
    }

    /// What the programs counted.
    pub fn counters(&self) -> Result<Counters> {
        self.maps.counters()
    }

    /// What the programs tell. There is one stream; must be called within a Tokio runtime.
    pub fn events(&mut self) -> Result<EventStream> {
        EventStream::open(&self.pins.maps())
    }
}

/// What is pinned, seen without taking part: for `status` when no agent runs.
pub struct Pinned {
    /// The hooks that are attached.
    pub hooks: BTreeSet<Hook>,
    /// The interfaces that have a guard.
    pub guards: BTreeSet<u32>,
    /// The tables that the programs read.
    pub maps: Tables,
}

/// Looks at what is pinned below `pin_root`. `None`: nothing of this version is.
pub fn read_pinned(pin_root: &Path) -> Result<Option<Pinned>> {
    let Some((maps, links)) = pins::published(pin_root) else {
        return Ok(None);
    };
    Ok(Some(Pinned {
        hooks: links::hooks(&links)?,
        guards: links::interfaces(&links, Side::Guard)?,
        maps: Tables::open(&maps)?,
    }))
}

/// Detaches every program and removes every pin below `pin_root`, of any version, with `pin_root`
/// itself. Needs no agent, and none may run. A removal that was interrupted is finished by the next.
pub fn detach(pin_root: &Path) -> Result<Removed> {
    if !pin_root.exists() {
        return Ok(Removed::default());
    }
    Pins::lock(pin_root)?.remove_all()
}
