//! Socket storage.

use aya_ebpf::{
    bindings::{bpf_sock, bpf_sock_addr},
    helpers::generated::bpf_ktime_get_coarse_ns,
};
use steer_common::{FlowState, counter, flow_flags};

use crate::{
    address::Address,
    count::count,
    maps::FLOWS3,
    sock::{AF_INET6, field, our_mark},
};

/// What `socket` remembers, if anything.
#[inline(always)]
pub fn get(socket: *mut bpf_sock) -> Option<&'static mut FlowState> {
    FLOWS3.get(socket)
}

/// What `socket` remembers, beginning with `initial`. `None`: no memory; counted.
#[inline(always)]
pub fn get_or_create(
    socket: *mut bpf_sock,
    mut initial: FlowState,
) -> Option<&'static mut FlowState> {
    let state = FLOWS3.get_or_create(socket, &mut initial);
    if state.is_none() {
        count(counter::STORAGE_FAILED);
    }
    state
}

/// Whether the IPv6 source that the socket has is one that `connect` bound.
#[inline(always)]
pub fn is_hook_bound(
    ctx: *mut bpf_sock_addr,
    socket: *mut bpf_sock,
    flow: Option<&FlowState>,
    source6: Address,
) -> bool {
    let flags = flow.map_or(0, |flow| flow.flags);
    field!(ctx, family) == AF_INET6
        && !source6.is_unspecified()
        && (our_mark(socket) != 0 || flags & flow_flags::HOOK_BOUND != 0)
        && flags & flow_flags::APP_BOUND == 0
}

/// Notes what was decided for a flow, and when.
#[inline(always)]
pub fn decided(flow: &mut FlowState, policy: u32, choice: u32, domain: u32) {
    const NANOSECONDS: u64 = 1_000_000_000;
    flow.policy = policy;
    flow.choice = choice;
    flow.domain = domain;
    flow.flags |= flow_flags::DECIDED;
    // SAFETY: takes nothing.
    flow.since = (unsafe { bpf_ktime_get_coarse_ns() } / NANOSECONDS) as u32;
}
