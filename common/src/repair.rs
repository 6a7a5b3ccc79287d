//! What is remembered of flows that are repaired: leases, written by the packet programs alone.

use bytemuck::{Pod, Zeroable};

/// Key of `REPAIRED` and `ECHOES` (LRU hash): a flow as its sender has it.
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

/// Value of `REPAIRED` and `ECHOES`: what the packets get.
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
    /// The policy that asked for it.
    pub policy: u32,
    /// The number at [`crate::cell::CHANGES`] when it was seen last that all of it still holds.
    pub changes: u32,
}

/// Key of `RETURNS` and `ECHO_RETURNS` (LRU hash): an answer to a repaired flow, as it arrives.
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

/// Value of `RETURNS` and `ECHO_RETURNS`: where it is to arrive.
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
    /// The difference between the destination that answers have and the flow's own source, as checksums count.
    pub difference: u32,
    /// Always zero.
    pub reserved: u32,
}

/// Value of `SOCKET_LEASES` (socket storage): what the packets of a socket get that are like the one it was
/// made for, so that nothing is to be asked about them but whether they are.
///
/// It is replaced and never written, so a program reads one as a whole. Addresses are in network byte order,
/// IPv4 ones v4-mapped.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
pub struct SocketLease {
    /// Their own source.
    pub own: [u32; 4],
    /// Their destination.
    pub destination: [u32; 4],
    /// Their ports as they stand in the packet, source first.
    pub ports: u32,
    /// `ETH_P_IP` or `ETH_P_IPV6`, network byte order.
    pub ethertype: u32,
    /// Version and class as they stand in the first word of the IP header, and the length of IPv4's.
    pub class: u32,
    /// `IPPROTO_TCP` or `IPPROTO_UDP`.
    pub protocol: u32,
    /// The interface that they would leave by.
    pub from: u32,
    /// Bytes of its link-layer header: 14, or 0 where it has none.
    pub link: u32,
    /// The mark that they have.
    pub old_mark: u32,
    /// The policy that they count for.
    pub policy: u32,
    /// Their new source.
    pub source: [u32; 4],
    /// The difference between the two sources as checksums count.
    pub difference: u32,
    /// The domain that they are put on.
    pub domain: u32,
    /// Its interface.
    pub ifindex: u32,
    /// The mark that they get.
    pub mark: u32,
    /// How long they may be there, from the IP header on.
    pub mtu: u32,
    /// Not 0: the next hop there is known.
    pub hop: u32,
    /// Its hardware address, and that of the interface.
    pub hardware: [[u8; 6]; 2],
    /// The number at [`crate::cell::CHANGES`] when it was made.
    pub changes: u32,
    /// When it was made, in ticks of the kernel.
    pub made: u64,
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
    /// As [`ReturnLease::difference`]; of those that leave: 0.
    pub difference: u32,
    /// Always zero.
    pub reserved: u32,
}

const _: () = {
    assert!(size_of::<RepairKey>() == 40);
    assert!(size_of::<RepairLease>() == 40);
    assert!(size_of::<ReturnKey>() == 44);
    assert!(size_of::<ReturnLease>() == 48);
    assert!(size_of::<SocketLease>() == 128);
    assert!(size_of::<FragmentKey>() == 40);
    assert!(size_of::<FragmentLease>() == 48);
};
