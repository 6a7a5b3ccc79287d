//! `bind4`, `bind6`: a strict policy's socket may not bind another domain's address; any other socket
//! that binds an address has chosen for itself and loses our mark.

use aya_ebpf::{bindings::bpf_sock_addr, macros::cgroup_sock_addr, programs::SockAddrContext};
use steer_common::{MAX_DOMAINS, verdict};

use crate::{
    address::Address,
    decision::{ALLOW, Domain, refuse_not_allowed},
    flow,
    owner::{self, Owner},
    sock::{self, field, is_ours, set_mark},
};

const SOCK_STREAM: u32 = 1;

/// Entry for IPv4 addresses.
#[cgroup_sock_addr(bind4)]
pub fn bind4(ctx: SockAddrContext) -> i32 {
    let ctx = ctx.sock_addr;
    bind(ctx, Address::v4(field!(ctx, user_ip4)))
}

/// Entry for IPv6 and v4-mapped addresses.
#[cgroup_sock_addr(bind6)]
pub fn bind6(ctx: SockAddrContext) -> i32 {
    let ctx = ctx.sock_addr;
    // SAFETY: only the address is taken.
    bind(ctx, sock::words(unsafe { &raw const (*ctx).user_ip6 }))
}

#[inline(always)]
fn bind(ctx: *mut bpf_sock_addr, address: Address) -> i32 {
    let (wildcard, stream) = (address.is_unspecified(), field!(ctx, type_) == SOCK_STREAM);
    if wildcard && !stream || address.is_multicast_or_broadcast() {
        return ALLOW;
    }
    let socket = sock::of(ctx);
    let caller = Owner::caller();
    let flow = flow::get(socket);
    if caller.is_none() && flow.is_none() || !is_ours(ctx.cast()) {
        return ALLOW;
    }
    let owner = owner::at_connect(caller, flow.as_deref());
    if owner.is_none() {
        return ALLOW;
    }
    if owner.is_conflict() {
        return refuse_not_allowed();
    }
    if !owner.is_strict() {
        let domain = owner.choice().domain;
        let shared = Domain::get(domain).is_some_and(|domain| domain.shares_address());
        // The mark of `sock_create` would lead replies of a server on that address elsewhere. Where
        // another interface has it too, a listener without a mark gives its connections the mark of
        // what they were asked by, and the mark is all that tells other sockets' packets apart.
        let keeps = if stream {
            wildcard && !shared
        } else {
            shared && address.belongs_to(domain)
        };
        if !keeps {
            set_mark(ctx, socket, 0);
        }
        return ALLOW;
    }
    if wildcard {
        return ALLOW;
    }
    let choice = owner.choice();
    let allowed = address.is_loopback()
        || !address.is_v4() && address.is_link_local()
        || choice.verdict == verdict::STEER && address.belongs_to(choice.domain)
        // Of which rule or member a flow will be is known when it has a destination.
        || owner.divides(&choice) && belongs_to_any(address);
    if allowed { ALLOW } else { refuse_not_allowed() }
}

/// Whether any domain has the address.
#[inline(always)]
fn belongs_to_any(address: Address) -> bool {
    (1..MAX_DOMAINS).any(|domain| address.belongs_to(domain))
}
