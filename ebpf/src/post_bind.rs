//! `post_bind4`, `post_bind6`: remembers that the *application* bound an address. In `connect` it
//! could not be told from one that the kernel chose for an earlier `connect`.
//!
//! Not called for `bpf_bind`, nor for a bind that takes no port (`IP_BIND_ADDRESS_NO_PORT`); `connect`
//! knows the latter by a source on a socket without our mark, which `bind4` and `bind6` took away.

use aya_ebpf::{macros::cgroup_sock, programs::SockContext};
use steer_common::{FlowState, flow_flags};

use crate::{
    address::Address,
    decision::ALLOW,
    flow,
    owner::Owner,
    sock::{field, is_ours, words},
};

/// Entry for IPv4 sockets.
#[cgroup_sock(post_bind4)]
pub fn post_bind4(ctx: SockContext) -> i32 {
    let address = Address::v4(field!(ctx.sock, src_ip4));
    remember(&ctx, address)
}

/// Entry for IPv6 sockets.
#[cgroup_sock(post_bind6)]
pub fn post_bind6(ctx: SockContext) -> i32 {
    // SAFETY: only the address is taken.
    let address = words(unsafe { &raw const (*ctx.sock).src_ip6 });
    remember(&ctx, address)
}

#[inline(always)]
fn remember(ctx: &SockContext, address: Address) -> i32 {
    // A multicast address filters what is received and is no source.
    if address.is_unspecified() || address.is_multicast_or_broadcast() {
        return ALLOW;
    }
    let state = match flow::get(ctx.sock) {
        Some(state) => state,
        None => {
            if Owner::caller().is_none() || !is_ours(ctx.sock.cast()) {
                return ALLOW;
            }
            match flow::get_or_create(ctx.sock, FlowState::default()) {
                Some(state) => state,
                // `connect` still sees the address, and that the mark is gone.
                None => return ALLOW,
            }
        }
    };
    state.flags = state.flags & !flow_flags::HOOK_BOUND | flow_flags::APP_BOUND;
    ALLOW
}
