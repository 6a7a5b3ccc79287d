//! What is counted of single flows while somebody asks for them.

use bytemuck::{Pod, Zeroable};

/// Sockets that are counted at a time (`FLOW_COUNTS`); further ones are not.
pub const MAX_COUNTED: u32 = 65_536;

/// Value of `FLOW_COUNTS` (hash; key: cookie of the socket, `u64`): what a socket sent and received since
/// counting began.
///
/// A map of its own, made when counting begins and gone with it: not pinned, and no part of the layout.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
pub struct FlowCount {
    /// Bytes behind the IP header, and behind the UDP header where there is one.
    pub sent_bytes: u64,
    /// Packets, segments of a larger one each for itself.
    pub sent_packets: u64,
    /// As `sent_bytes`.
    pub received_bytes: u64,
    /// As `sent_packets`, but what was merged on arrival counts once.
    pub received_packets: u64,
    /// Source address of the last packet that it sent as in [`crate::SourceKey::address`]; zero: none
    /// was sent.
    pub source: [u8; 16],
    /// Destination address of that packet, likewise.
    pub destination: [u8; 16],
    /// Interface that routing chose for that packet.
    pub ifindex: u32,
    /// Destination port of that packet, host byte order; 0: it had none.
    pub port: u32,
    /// The kernel's: keeps CPUs apart.
    pub lock: u32,
    /// Always zero.
    pub reserved: u32,
}

const _: () = assert!(size_of::<FlowCount>() == 80);
