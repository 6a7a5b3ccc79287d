//! `connect4`, `connect6`: the full decision for a flow, before the kernel looks its route up, so that
//! table and source come out right.

use aya_ebpf::{
    bindings::{bpf_sock, bpf_sock_addr},
    macros::cgroup_sock_addr,
    programs::SockAddrContext,
};
use steer_common::{FlowState, counter, flow_flags};

use crate::{
    address::Address,
    count::count,
    decision::{ALLOW, Decision, Domain, decide, refuse_no_domain, refuse_not_allowed},
    flow,
    owner::{self, Owner},
    sock::{self, AF_INET6, bind6, field, is_ours, set_mark},
};

/// Entry for IPv4 destinations, also of IPv6 sockets given an `AF_INET` name.
#[cgroup_sock_addr(connect4)]
pub fn connect4(ctx: SockAddrContext) -> i32 {
    let ctx = ctx.sock_addr;
    connect(ctx, Address::v4(field!(ctx, user_ip4)))
}

/// Entry for IPv6 and v4-mapped destinations.
#[cgroup_sock_addr(connect6)]
pub fn connect6(ctx: SockAddrContext) -> i32 {
    let ctx = ctx.sock_addr;
    // SAFETY: only the address is taken.
    connect(ctx, sock::words(unsafe { &raw const (*ctx).user_ip6 }))
}

#[inline(always)]
fn connect(ctx: *mut bpf_sock_addr, destination: Address) -> i32 {
    let socket = sock::of(ctx);
    let caller = Owner::caller();
    let flow = flow::get(socket);
    if caller.is_none() && flow.is_none() || !is_ours(ctx.cast()) {
        return ALLOW;
    }
    let owner = owner::at_connect(caller, flow.as_deref());
    if owner.is_conflict() {
        return refuse_not_allowed();
    }
    let flow = match flow {
        Some(flow) => flow,
        None => match flow::get_or_create(socket, FlowState::default()) {
            Some(flow) => flow,
            // Its source could not be told from a foreign one later.
            None if owner.is_strict() => return refuse_no_domain(),
            None => return ALLOW,
        },
    };
    if owner.is_none() {
        return pass(ctx, socket, flow, 0, false);
    }
    let decision = decide(&owner, destination, field!(socket, bound_dev_if));
    match decision {
        Decision::Pass(_) => pass(ctx, socket, flow, owner.policy, owner.is_strict()),
        Decision::Steer(domain) => steer(ctx, socket, flow, &owner, domain, destination.is_v4()),
        Decision::NoDomain => refuse_no_domain(),
        Decision::NotAllowed => refuse_not_allowed(),
    }
}

/// Leaves the flow to the host's routing: without our mark and without a source of ours.
#[inline(always)]
fn pass(
    ctx: *mut bpf_sock_addr,
    socket: *mut bpf_sock,
    flow: &mut FlowState,
    policy: u32,
    strict: bool,
) -> i32 {
    unbind(ctx, flow);
    if !set_mark(ctx, socket, 0) && strict {
        return refuse_no_domain();
    }
    record(flow, policy, 0);
    ALLOW
}

#[inline(always)]
fn steer(
    ctx: *mut bpf_sock_addr,
    socket: *mut bpf_sock,
    flow: &mut FlowState,
    owner: &Owner,
    domain: Domain,
    v4: bool,
) -> i32 {
    let strict = owner.is_strict();
    let mut source = sock::source(socket, v4);
    if flow.flags & flow_flags::HOOK_BOUND != 0 {
        // What an earlier `connect` bound is not the application's; a socket that has a port keeps it.
        unbind(ctx, flow);
        source = sock::source(socket, v4);
    }
    if source.is_unspecified() {
        flow.flags &= !flow_flags::APP_BOUND;
    } else if flow.flags & (flow_flags::CONNECTED | flow_flags::HOOK_BOUND) == 0 {
        // Nobody else can have chosen it, though `post_bind` did not run.
        flow.flags |= flow_flags::APP_BOUND;
    }
    if flow.flags & flow_flags::APP_BOUND != 0 && !strict {
        // The address that the application bound is its own choice, and rules by source do the rest.
        return pass(ctx, socket, flow, owner.policy, false);
    }
    if !domain.serves(v4) {
        return refuse_no_domain();
    }
    if !v4 && source.is_unspecified() {
        // The IPv6 routing table would take a source from another interface when the domain's own
        // address is gone; a source that is bound cannot be replaced. IPv4 gets it from the table.
        match bind6(ctx, domain.source6()) {
            Ok(()) => flow.flags |= flow_flags::HOOK_BOUND,
            // The mark alone may still give the right source, and the guard checks it if it must.
            Err(_) => count(counter::SOURCE_FAILED),
        }
    } else if !source.is_unspecified() && !source.belongs_to(domain.index) {
        // A datagram socket keeps the source of its first `connect` until it is disconnected.
        if strict {
            return refuse_no_domain();
        }
        if flow.domain != 0
            && source.belongs_to(flow.domain)
            && let Some(earlier) = Domain::get(flow.domain)
        {
            set_mark(ctx, socket, earlier.entry.mark);
            record(flow, owner.policy, earlier.index);
            return ALLOW;
        }
    }
    if !set_mark(ctx, socket, domain.entry.mark) && strict {
        return refuse_no_domain();
    }
    record(flow, owner.policy, domain.index);
    count(counter::CONNECT_STEERED);
    ALLOW
}

/// Takes back the source that `steer` bound.
///
/// It holds across a disconnect (the kernel takes it for the application's), where it would give the
/// next destination, perhaps of the other family, a source that does not fit.
#[inline(always)]
fn unbind(ctx: *mut bpf_sock_addr, flow: &FlowState) {
    if flow.flags & flow_flags::HOOK_BOUND != 0 && field!(ctx, family) == AF_INET6 {
        // Fails where the socket has a port, that is while it is connected: then it keeps its source.
        let _: Result<(), i64> = bind6(ctx, Address([0; 4]));
    }
}

#[inline(always)]
fn record(flow: &mut FlowState, policy: u32, domain: u32) {
    flow.policy = policy;
    flow.domain = domain;
    flow.flags |= flow_flags::DECIDED | flow_flags::CONNECTED;
}
