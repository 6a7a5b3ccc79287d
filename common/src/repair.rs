//! What is remembered of flows that are repaired: leases, written by the packet programs alone.

use bytemuck::{Pod, Zeroable};

/// Key of `REPAIRED` (LRU hash): a flow as its sender has it.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Pod, Zeroable)]
pub struct RepairKey {
    /// The packets' own source, network byte order; IPv4 as v4-mapped IPv6.
    pub source: [u8; 16],
    /// Their destination, likewise.
    pub destination: [u8; 16],
    /// Port or identifier of an ICMP echo, host byte order.
    pub source_port: u16,
    /// Port, host byte order; 0 for ICMP.
    pub destination_port: u16,
    /// `IPPROTO_*`.
    pub protocol: u32,
}

/// Value of `REPAIRED`: what the packets get.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
pub struct RepairLease {
    /// Their new source, as in [`RepairKey::source`].
    pub source: [u8; 16],
    /// The domain they are put on.
    pub domain: u32,
    /// Its interface when the lease was made.
    pub ifindex: u32,
    /// When it was last seen that all of it still holds, in nanoseconds of the coarse monotonic clock.
    pub checked: u64,
}

/// Key of `RETURNS` (LRU hash): an answer to a repaired flow, as it arrives.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Pod, Zeroable)]
pub struct ReturnKey {
    /// Its destination, which is [`RepairLease::source`].
    pub local: [u8; 16],
    /// Its source.
    pub remote: [u8; 16],
    /// Our port or the identifier of the echo, host byte order.
    pub local_port: u16,
    /// The peer's port, host byte order; 0 for ICMP.
    pub remote_port: u16,
    /// `IPPROTO_*`.
    pub protocol: u32,
    /// Interface at which it arrives.
    pub ifindex: u32,
}

/// Value of `RETURNS`: where it is to arrive.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
pub struct ReturnLease {
    /// The flow's own source.
    pub source: [u8; 16],
    /// The interface that the flow would have left by.
    pub ifindex: u32,
    /// The domain that the flow was put on.
    pub domain: u32,
    /// That interface's hardware address.
    pub mac: [u8; 6],
    /// Bytes of its link-layer header: 14, or 0 where it has none.
    pub link: u16,
    /// When the flow last sent something, to about a second, as [`RepairLease::checked`].
    pub seen: u64,
}

/// Key of `FRAGMENTS` (LRU hash): what the fragments of a packet have in common.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Pod, Zeroable)]
pub struct FragmentKey {
    /// Source before anything is changed.
    pub source: [u8; 16],
    /// Destination before anything is changed.
    pub destination: [u8; 16],
    /// Identification.
    pub id: u32,
    /// Interface at which they arrive; 0: they leave.
    pub ifindex: u32,
}

/// Value of `FRAGMENTS`: what the first fragment got, and the later ones get too.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
pub struct FragmentLease {
    /// The new address: source of those that leave, destination of those that arrive.
    pub address: [u8; 16],
    /// The interface they are given to.
    pub ifindex: u32,
    /// The domain.
    pub domain: u32,
    /// As [`ReturnLease::mac`].
    pub mac: [u8; 6],
    /// As [`ReturnLease::link`].
    pub link: u16,
    /// When the first came, as [`RepairLease::checked`]; of no fragment: [`ReturnLease::seen`].
    pub since: u64,
}

const _: () = {
    assert!(size_of::<RepairKey>() == 40);
    assert!(size_of::<RepairLease>() == 32);
    assert!(size_of::<ReturnKey>() == 44);
    assert!(size_of::<ReturnLease>() == 40);
    assert!(size_of::<FragmentKey>() == 40);
    assert!(size_of::<FragmentLease>() == 40);
};
