//! The family that a policy prefers (`prefer-family`).
//!
//! Nobody tells a program which of several addresses to take but itself. It asks the C library, and that
//! connects a datagram socket to each address to see whether it is reachable, and from where (RFC 6724,
//! section 5, rule 1). So an address of the other family is one that a datagram socket does not reach, as long as the
//! flow's domain has both. Connections, and datagrams that are sent without `connect`, go to any.

use aya_ebpf::bindings::bpf_sock_addr;

use crate::{decision::Domain, owner::Owner, sock::field};

/// `SOCK_DGRAM`.
const DATAGRAM: u32 = 2;
/// Name servers are asked by what reaches them.
const DNS: u32 = 53;

/// Whether a datagram socket of `owner` is not to reach an address of this family by domain `index`.
#[inline(never)]
pub fn turns_away(ctx: *mut bpf_sock_addr, owner: &Owner, index: u32, v4: bool) -> bool {
    if !owner.prefers_other(v4) || field!(ctx, type_) != DATAGRAM {
        return false;
    }
    let port = u32::from(u16::from_be(field!(ctx, user_port) as u16));
    port != DNS && Domain::get(index).is_some_and(|domain| domain.serves(!v4))
}
