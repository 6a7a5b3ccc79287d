//! Records of the `EVENTS` ring. Every record begins with its kind.

use bytemuck::{Pod, Zeroable};

/// Longest name of a cgroup directory with its terminating zero (`NAME_MAX` + 1).
pub const NAME_LEN: usize = 256;

/// First word of every record.
#[repr(u32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EventKind {
    /// A [`CgroupEvent`]: a cgroup was made.
    CgroupMade = 1,
    /// A [`CgroupEvent`] without name: a cgroup was removed.
    CgroupRemoved = 2,
    /// A [`GuardEvent`].
    Guard = 3,
}

/// A cgroup of the unified hierarchy was made or removed, anywhere on the machine.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
pub struct CgroupEvent {
    /// [`EventKind::CgroupMade`] or [`EventKind::CgroupRemoved`].
    pub kind: u32,
    /// Always zero.
    pub reserved: u32,
    /// Its id.
    pub id: u64,
    /// Its parent's id; 0 if it has none.
    pub parent: u64,
    /// Its directory's name, zero-terminated; empty when removed.
    pub name: [u8; NAME_LEN],
}

/// The guard dropped a packet. Rate-limited by the ring's size; `COUNTERS` counts all.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
pub struct GuardEvent {
    /// [`EventKind::Guard`].
    pub kind: u32,
    /// One of [`guard_reason`].
    pub reason: u32,
    /// Cgroup of the socket; 0: unknown.
    pub cgroup: u64,
    /// Cookie of the socket (`SO_COOKIE`); 0: unknown.
    pub cookie: u64,
    /// Policy that owns the packet.
    pub policy: u32,
    /// Interface it was about to leave by.
    pub ifindex: u32,
    /// Source address as in [`crate::SourceKey::address`].
    pub source: [u8; 16],
    /// Destination address, likewise.
    pub destination: [u8; 16],
}

/// Values of [`GuardEvent::reason`].
pub mod guard_reason {
    /// The interface is not the domain's.
    pub const INTERFACE: u32 = 1;
    /// The source address is not the domain's.
    pub const SOURCE: u32 = 2;
    /// No domain is chosen, or the cgroup is undecided.
    pub const NO_DOMAIN: u32 = 3;
}

const _: () = {
    assert!(size_of::<CgroupEvent>() == 280);
    assert!(size_of::<GuardEvent>() == 64);
};
