//! What a flow or packet is, as rules and shares ask for it.

use aya_ebpf::bindings::bpf_sock_addr;

use crate::{
    address::Address,
    owner::Owner,
    packet::TCP,
    rules,
    sock::{self, field},
};

/// A flow's addresses, ports and class. Words alone, since all of it is told to functions that the verifier
/// knows nothing of but the size.
#[repr(C, align(8))]
#[derive(Clone, Copy)]
pub struct Tuple {
    /// Its source; unspecified: not chosen yet.
    pub source: Address,
    /// Its destination.
    pub destination: Address,
    /// Transport protocol (`IPPROTO_*`).
    pub protocol: u32,
    /// Source port, host byte order; 0: not chosen yet, or the protocol has none.
    pub source_port: u32,
    /// Destination port, host byte order; 0: the protocol has none.
    pub destination_port: u32,
    /// Differentiated services code point.
    pub dscp: u32,
    /// Not 0: it is a later fragment, and its ports are not known.
    pub without_ports: u32,
    /// Always zero.
    pub reserved: u32,
}

/// `IPPROTO_MPTCP`: a socket of TCP that may have further ways.
const MPTCP: u32 = 262;

impl Tuple {
    /// Nothing.
    pub const NONE: Self = Self {
        source: Address([0; 4]),
        destination: Address([0; 4]),
        protocol: 0,
        source_port: 0,
        destination_port: 0,
        dscp: 0,
        without_ports: 0,
        reserved: 0,
    };

    /// Of the flow that an address program is asked about. The class is asked for only if the owner's rules
    /// look at it.
    #[inline(always)]
    pub fn of_socket(
        ctx: *mut bpf_sock_addr,
        owner: &Owner,
        source: Address,
        destination: Address,
    ) -> Self {
        let socket = sock::of(ctx);
        let protocol = field!(ctx, protocol);
        Self {
            source,
            destination,
            protocol: if protocol == MPTCP { TCP } else { protocol },
            source_port: field!(socket, src_port),
            destination_port: u32::from(u16::from_be(field!(ctx, user_port) as u16)),
            dscp: if owner.rules != 0 && rules::looks_at_dscp(owner.rules) {
                sock::dscp(ctx, destination.is_v4())
            } else {
                0
            },
            without_ports: 0,
            reserved: 0,
        }
    }
}
