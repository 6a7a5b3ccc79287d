//! `setsockopt`: a strict policy's sockets may not choose interface, mark or source by an option.
//!
//! The kernel does not call this hook for 32-bit system calls on a 64-bit kernel; there the guard is
//! what holds.

use aya_ebpf::{bindings::bpf_sockopt, macros::cgroup_sockopt, programs::SockoptContext};
use steer_common::IFNAME_LEN;

use crate::{
    decision::{ALLOW, Domain, refuse_not_allowed},
    flow,
    owner::{self, Owner},
    sock::{field, is_ours, set_field},
};

const SOL_IP: i32 = 0;
const SOL_SOCKET: i32 = 1;
const SOL_IPV6: i32 = 41;
const SOL_PACKET: i32 = 263;

const SO_BINDTODEVICE: i32 = 25;
const SO_MARK: i32 = 36;
const SO_BINDTOIFINDEX: i32 = 62;
const IP_UNICAST_IF: i32 = 50;
const IPV6_PKTINFO: i32 = 50;
const IPV6_UNICAST_IF: i32 = 76;
const PACKET_QDISC_BYPASS: i32 = 20;

/// Entry.
#[cgroup_sockopt(setsockopt)]
pub fn setsockopt(ctx: SockoptContext) -> i32 {
    let ctx = ctx.sockopt;
    match (field!(ctx, level), field!(ctx, optname)) {
        (SOL_SOCKET, SO_MARK | SO_BINDTODEVICE | SO_BINDTOIFINDEX)
        | (SOL_IP, IP_UNICAST_IF)
        | (SOL_IPV6, IPV6_UNICAST_IF | IPV6_PKTINFO)
        | (SOL_PACKET, PACKET_QDISC_BYPASS) => {}
        _ => return unread(ctx),
    }
    let caller = Owner::caller();
    let flow = flow::get(field!(ctx, __bindgen_anon_1.sk));
    if caller.is_none() && flow.is_none() || !is_ours(ctx.cast()) {
        return unread(ctx);
    }
    let owner = owner::at_connect(caller, flow.as_deref());
    if owner.is_conflict() {
        return refuse_not_allowed();
    }
    if !owner.is_strict() {
        return unread(ctx);
    }
    let domain = Domain::get(owner.choice().domain);
    let allowed = match (field!(ctx, level), field!(ctx, optname)) {
        (SOL_SOCKET, SO_BINDTODEVICE) => names_interface(ctx, domain),
        (SOL_SOCKET, SO_BINDTOIFINDEX) => read_word(ctx).is_some_and(|ifindex| {
            ifindex == 0 || domain.is_some_and(|domain| domain.entry.ifindex == ifindex)
        }),
        _ => false,
    };
    // `optlen` is left as it is: the kernel then uses the copy that was checked, and not the
    // application's memory, which another thread could change meanwhile.
    if allowed { ALLOW } else { refuse_not_allowed() }
}

/// Goes on with the application's own buffer. 0 says that it was not changed; it spares the kernel a
/// copy, and is needed where the value is longer than a page, of which programs see the first only.
#[inline(always)]
fn unread(ctx: *mut bpf_sockopt) -> i32 {
    set_field!(0, ctx, optlen);
    ALLOW
}

#[inline(always)]
fn read_word(ctx: *mut bpf_sockopt) -> Option<u32> {
    let start = field!(ctx, __bindgen_anon_2.optval) as usize;
    let end = field!(ctx, __bindgen_anon_3.optval_end) as usize;
    if start + 4 > end {
        return None;
    }
    // SAFETY: just checked against the end.
    Some(unsafe { (start as *const u32).read_unaligned() })
}

/// Whether the value is empty or the name of the domain's interface.
#[inline(always)]
fn names_interface(ctx: *mut bpf_sockopt, domain: Option<Domain>) -> bool {
    let start = field!(ctx, __bindgen_anon_2.optval) as usize;
    let end = field!(ctx, __bindgen_anon_3.optval_end) as usize;
    let length = field!(ctx, optlen);
    for index in 0..IFNAME_LEN {
        let byte = if index as i32 >= length || index == IFNAME_LEN - 1 {
            0
        } else if start + index + 1 > end {
            return false;
        } else {
            // SAFETY: just checked against the end.
            unsafe { *((start + index) as *const u8) }
        };
        let expected = match domain {
            Some(domain) => domain.name_byte(index),
            None => 0,
        };
        if byte == 0 && (index == 0 || expected == 0) {
            return true;
        }
        if byte != expected {
            return false;
        }
    }
    false
}
