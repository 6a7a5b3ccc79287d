//! What a flow or packet is, as rules and shares ask for it.

use aya_ebpf::bindings::bpf_sock_addr;

use crate::{
    address::Address,
    sock::{self, field},
};

/// A flow's addresses, ports and class.
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
}

impl Tuple {
    /// Of the flow that an address program is asked about.
    #[inline(always)]
    pub fn of_socket(ctx: *mut bpf_sock_addr, source: Address, destination: Address) -> Self {
        let socket = sock::of(ctx);
        Self {
            source,
            destination,
            protocol: field!(ctx, protocol),
            source_port: field!(socket, src_port),
            destination_port: u32::from(u16::from_be(field!(ctx, user_port) as u16)),
            dscp: 0,
        }
    }
}
