//! The kernel side of steer: loads the programs, attaches them, owns their pins, and gives typed
//! access to their maps. The only module that knows aya.
//!
//! The kernel is the database. What is attached and what is in a map is asked from there, so that an
//! agent takes over what another left, and dropping a [`Datapath`] changes nothing.

mod attachment;
mod btf;
mod clsact;
mod domains;
mod error;
mod events;
mod flow_counts;
mod hook;
mod links;
#[cfg(feature = "log-programs")]
mod logs;
mod maps;
mod pins;
mod probe;
mod program;
mod rulesets;
mod survey;
mod sys;
mod traffic;

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    os::fd::AsFd as _,
    path::Path,
    time::SystemTime,
};

use steer_common::{HostCounts, IngressEntry, MarkMask, Traffic, TrafficKey, ingress_flags};

pub use btf::BtfError;
pub use domains::Domains;
pub use error::{Error, Result};
pub use events::{Event, EventStream};
pub use flow_counts::FlowCounts;
pub use maps::{Array, Counters, Table, Tables};
pub use pins::{PinsFound, Removed, ensure_bpffs, find_pins, is_bpffs};
pub use probe::{Loaded, Refused, probe};
pub use rulesets::Rulesets;
pub use steer_core::plan::Hook;
pub use survey::{AtCgroup, AtInterface, Direction, ForeignProgram, Sharing, Survey};

use attachment::Side;
use links::Links;
use pins::{Layouts, Pins};
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
    /// Loads the programs for this thread's network namespace, and makes maps, or adopts those that an
    /// agent of the same layout pinned.
    ///
    /// Nothing is attached, and what an earlier agent attached stays in force: it counts as attached
    /// when it was asked for ([`Self::set_hook`] and the like), which puts these programs behind it
    /// without a gap. So the maps are filled first. What is not asked for goes by [`Self::sweep`].
    pub fn open(options: Options<'_>) -> Result<Self> {
        let pins = Pins::lock(options.pin_root)?;
        pins.remove_unfinished()?;
        let own = pins.layouts().own();
        let others = pins.layouts().others()?;
        if pins.layouts().others_in_force()? && !own.is_in_force()? {
            // Maps that an agent left which got no further, perhaps long ago.
            own.remove()?;
        }
        let programs = if own.exists() {
            for map in &maps::MAPS {
                map.open(&own.maps())?;
            }
            Programs::load(&own.maps(), options.mark_mask)?
        } else {
            let layout = pins.begin()?;
            for other in &others {
                // What sockets remember cannot be written anew.
                if let Ok(Some(flows)) = maps::FLOWS.open(&other.maps()) {
                    pins::replace(flows.as_fd(), &layout.maps().join(maps::FLOWS.name))?;
                    break;
                }
            }
            let programs = Programs::load(&layout.maps(), options.mark_mask)?;
            layout.publish()?;
            programs
        };
        let maps = Tables::open(&own.maps())?;
        let links = Links::new(pins.layouts().clone(), options.cgroup_root, programs)?;
        Ok(Self { maps, links, pins })
    }

    /// Whether attachments of another version are in force: the maps must be filled without fail before
    /// anything is attached.
    pub fn takes_over(&self) -> Result<bool> {
        self.pins.layouts().others_in_force()
    }

    /// Removes what earlier agents left and nobody asked for: attachments, what maps say of interfaces
    /// that have none, and the pins of other versions.
    ///
    /// To be called when all that should be attached is.
    pub fn sweep(&self) -> Result<()> {
        let guards = self.links.interfaces(Side::Guard)?;
        for (ifindex, _) in self.maps.guarded.entries()? {
            if !guards.contains(&ifindex) {
                self.maps.guarded.remove(&ifindex)?;
            }
        }
        let attached = self.links.interfaces(Side::Ingress)?;
        let mut asked = BTreeSet::new();
        for (ifindex, entry) in self.maps.ingress.entries()? {
            if !attached.contains(&ifindex) {
                self.maps.ingress.remove(&ifindex)?;
                self.maps.host_counts.remove(ifindex)?;
            } else if has_host_model(&entry) {
                asked.insert(ifindex);
            }
        }
        for ifindex in self.links.interfaces(Side::HostEgress)? {
            if !asked.contains(&ifindex) {
                self.links.set_interface(Side::HostEgress, ifindex, false)?;
            }
        }
        self.links.sweep()
    }

    /// Whether this kernel can have the hook. Only [`Hook::Egress`] may be missing: Linux
    /// 6.18 has what it needs, 6.12 has not.
    pub fn supports(&self, hook: Hook) -> bool {
        self.links.supports(hook)
    }

    /// The hooks that are attached, with the programs of this agent.
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

    /// The interfaces that have a guard of which the hook [`Hook::Egress`] is told.
    pub fn guards(&self) -> Result<BTreeSet<u32>> {
        let told: BTreeSet<u32> = self
            .maps
            .guarded
            .entries()?
            .into_iter()
            .map(|(ifindex, _)| ifindex)
            .collect();
        Ok(&self.links.interfaces(Side::Guard)? & &told)
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

    /// The interfaces where something is done with what arrives, and what. With a host model, something
    /// is done with what leaves, too.
    pub fn ingress(&self) -> Result<Vec<(u32, IngressEntry)>> {
        let attached = self.links.interfaces(Side::Ingress)?;
        let both = self.links.interfaces(Side::HostEgress)?;
        let mut entries = self.maps.ingress.entries()?;
        entries.retain(|(ifindex, entry)| {
            attached.contains(ifindex) && has_host_model(entry) == both.contains(ifindex)
        });
        entries.sort_unstable_by_key(|(ifindex, _)| *ifindex);
        Ok(entries)
    }

    /// Says what is done with what arrives at an interface, or leaves it alone again.
    pub fn set_ingress(&mut self, ifindex: u32, entry: Option<IngressEntry>) -> Result<()> {
        let egress = entry.as_ref().is_some_and(has_host_model);
        match entry {
            Some(entry) => {
                self.maps.ingress.set(&ifindex, &entry)?;
                self.links.set_interface(Side::Ingress, ifindex, true)?;
            }
            None => {
                self.links.set_interface(Side::Ingress, ifindex, false)?;
                self.maps.ingress.remove(&ifindex)?;
            }
        }
        self.links
            .set_interface(Side::HostEgress, ifindex, egress)?;
        if !egress {
            self.maps.host_counts.remove(ifindex)?;
        }
        Ok(())
    }

    /// What the strong host model dropped at an interface, or would have dropped.
    pub fn host_counts(&self, ifindex: u32) -> Result<HostCounts> {
        let each = self.maps.host_counts.get(ifindex)?;
        let sum = |field: fn(&HostCounts) -> u64| each.iter().map(field).sum();
        Ok(HostCounts {
            received: sum(|counts| counts.received),
            asked: sum(|counts| counts.asked),
            sent: sum(|counts| counts.sent),
        })
    }

    /// What the programs counted.
    pub fn counters(&self) -> Result<Counters> {
        self.maps.counters()
    }

    /// What was sent for each policy by each domain.
    pub fn traffic(&self) -> Result<BTreeMap<TrafficKey, Traffic>> {
        self.maps.traffic()
    }

    /// Since when that is counted: its map was pinned then. `None`: nobody knows.
    pub fn traffic_since(&self) -> Option<SystemTime> {
        let map = self.pins.layouts().own().maps().join(maps::TRAFFIC.name);
        fs::metadata(map).ok()?.modified().ok()
    }

    /// What the programs tell. There is one stream; must be called within a Tokio runtime.
    pub fn events(&mut self) -> Result<EventStream> {
        EventStream::open(&self.pins.layouts().own().maps())
    }
}

fn has_host_model(entry: &IngressEntry) -> bool {
    entry.flags & ingress_flags::HOST_MODEL != 0
}

/// What is pinned, seen without taking part: for `status` when no agent runs.
pub struct Pinned {
    /// The hooks that are attached.
    pub hooks: BTreeSet<Hook>,
    /// The interfaces that have a guard.
    pub guards: BTreeSet<u32>,
    /// The tables that the programs read. `None`: they are another version's, which alone knows what
    /// they mean.
    pub maps: Option<Tables>,
}

/// Looks at what is pinned below `pin_root`, by any version. `None`: nothing is.
pub fn read_pinned(pin_root: &Path) -> Result<Option<Pinned>> {
    let layouts = Layouts::below(pin_root);
    let own = layouts.own();
    if !own.exists() && layouts.others()?.is_empty() {
        return Ok(None);
    }
    let (mut hooks, mut guards) = (BTreeSet::new(), BTreeSet::new());
    for layout in layouts.all()? {
        hooks.append(&mut layout.hooks()?);
        guards.append(&mut layout.interfaces(Side::Guard)?);
    }
    let ours = own.exists() && (own.is_in_force()? || !layouts.others_in_force()?);
    Ok(Some(Pinned {
        hooks,
        guards,
        maps: ours.then(|| Tables::open(&own.maps())).transpose()?,
    }))
}

/// Programs are detached and pins removed; no agent starts until [`Self::finish`].
pub struct Detached {
    /// What was removed.
    pub removed: Removed,
    /// `None`: there is no BPF file system yet.
    pins: Option<Pins>,
}

/// Detaches every program and removes every pin below `pin_root`, of any version. Needs no agent, and
/// none may run. A removal that was interrupted is finished by the next.
pub fn detach(pin_root: &Path) -> Result<Detached> {
    let pins = match Pins::lock(pin_root) {
        Ok(pins) => Some(pins),
        Err(Error::NotBpffs { .. }) if !pin_root.exists() => None,
        Err(error) => return Err(error),
    };
    let removed = pins
        .as_ref()
        .map_or(Ok(Removed::default()), Pins::remove_layouts)?;
    Ok(Detached { removed, pins })
}

impl Detached {
    /// Removes the root of the pins, and lets agents start again.
    pub fn finish(self) -> Result<()> {
        self.pins.map_or(Ok(()), Pins::remove_root)
    }
}
