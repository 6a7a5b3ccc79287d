//! The host model: whose address it is that a packet bears.

use bytemuck::{Pod, Zeroable};

/// Key of `HOSTS` (hash; value: `u8`, always 1): an address of the host and an interface where it is at
/// home, for interfaces with [`crate::ingress_flags::STRONG`] or [`crate::ingress_flags::COUNT`].
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Pod, Zeroable)]
pub struct HostKey {
    /// The interface's index; 0: whichever.
    pub interface: u32,
    /// The address in network byte order; IPv4 as v4-mapped IPv6.
    pub address: [u8; 16],
}

/// Value of `HOST_COUNTS` (per-CPU hash; key: interface index, `u32`): packets that the strong host model drops at
/// an interface, or would drop.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
pub struct HostCounts {
    /// Arrivals for an address of another interface.
    pub received: u64,
    /// ARP requests for one.
    pub asked: u64,
    /// Departures from one.
    pub sent: u64,
}

const _: () = {
    assert!(size_of::<HostKey>() == 20);
    assert!(size_of::<HostCounts>() == 24);
};
