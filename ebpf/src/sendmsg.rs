//! `sendmsg4`, `sendmsg6`: datagrams of unconnected UDP sockets.
//!
//! Only the source is set. A mark set here would count from the next datagram only and is shared by
//! all threads; the source makes the `from` rules route even the first datagram right.

use aya_ebpf::{
    bindings::{bpf_sock, bpf_sock_addr},
    macros::cgroup_sock_addr,
    programs::SockAddrContext,
};
use steer_common::{FlowState, LocalEntry, flow_flags};

use crate::{
    address::Address,
    decision::{ALLOW, Decision, Domain, decide, refuse_no_domain, refuse_not_allowed},
    flow,
    owner::{self, Owner},
    sock::{self, field, is_ours, our_mark, set_field, set_mark},
    tuple::Tuple,
};

/// Entry for IPv4 destinations, also v4-mapped ones.
#[cgroup_sock_addr(sendmsg4)]
pub fn sendmsg4(ctx: SockAddrContext) -> i32 {
    let ctx = ctx.sock_addr;
    sendmsg(ctx, Address::v4(field!(ctx, user_ip4)), true)
}

/// Entry for IPv6 destinations.
#[cgroup_sock_addr(sendmsg6)]
pub fn sendmsg6(ctx: SockAddrContext) -> i32 {
    let ctx = ctx.sock_addr;
    // SAFETY: only the address is taken.
    sendmsg(
        ctx,
        sock::words(unsafe { &raw const (*ctx).user_ip6 }),
        false,
    )
}

#[inline(always)]
fn sendmsg(ctx: *mut bpf_sock_addr, destination: Address, v4: bool) -> i32 {
    let socket = sock::of(ctx);
    let caller = Owner::caller();
    if caller.is_none() && our_mark(socket) == 0 {
        // The one kind of socket that is missed here was made under a strict policy without a domain
        // and then handed on; the guard drops what it sends.
        return ALLOW;
    }
    let flow = flow::get(socket);
    if caller.is_none() && flow.is_none() || !is_ours(ctx.cast()) {
        return ALLOW;
    }
    let owner = owner::at_sendmsg(caller, flow.as_deref());
    if owner.is_none() {
        return ALLOW;
    }
    if owner.is_conflict() {
        return refuse_not_allowed();
    }
    let tuple = Tuple::of_socket(ctx, message_source(ctx, v4), destination);
    match decide(&owner, &tuple, field!(socket, bound_dev_if)) {
        Decision::Pass(local) => {
            if let Some(local) = local {
                lead_to_local(ctx, socket, local, v4);
            }
            ALLOW
        }
        Decision::Steer(domain, choice) => steer(ctx, flow, &owner, choice, domain, &tuple, v4),
        Decision::NoDomain => refuse_no_domain(),
        Decision::NotAllowed => refuse_not_allowed(),
    }
}

#[inline(always)]
fn steer(
    ctx: *mut bpf_sock_addr,
    flow: Option<&'static mut FlowState>,
    owner: &Owner,
    choice: u32,
    domain: Domain,
    tuple: &Tuple,
    v4: bool,
) -> i32 {
    let source = tuple.source;
    if !source.is_unspecified() {
        if !owner.is_strict() {
            // Bound by the application, told by IP_PKTINFO, or kept from an earlier `connect`.
            let socket = sock::of(ctx);
            let [source4, source6] = sock::sources(socket);
            let own = if v4 { source4 } else { source6 };
            if flow.is_none() && our_mark(socket) == 0 && own.equals(source) {
                // Bound without a port, which `post_bind` does not see: the guard is to know.
                let bound = FlowState {
                    flags: flow_flags::APP_BOUND,
                    ..FlowState::default()
                };
                flow::get_or_create(socket, bound);
            }
            return ALLOW;
        }
        if !source.belongs_to(domain.index) {
            return refuse_not_allowed();
        }
    }
    if !domain.serves(v4) {
        return refuse_no_domain();
    }
    let flow = match flow {
        Some(flow) => flow,
        None => match flow::get_or_create(sock::of(ctx), FlowState::default()) {
            Some(flow) => flow,
            None if owner.is_strict() => return refuse_no_domain(),
            None => return ALLOW,
        },
    };
    if flow.policy != owner.policy
        || flow.choice != choice
        || flow.domain != domain.index
        || flow.flags & flow_flags::DECIDED == 0
    {
        flow::decided(flow, owner.policy, choice, domain.index);
    }
    if source.is_unspecified() {
        if v4 && domain.shares_address() && our_mark(sock::of(ctx)) != domain.entry.mark {
            // The source would lead nowhere, and the mark counts from the next datagram on. This one
            // goes as the socket's mark says, with a source that fits.
            set_mark(ctx, sock::of(ctx), domain.entry.mark);
        } else if v4 {
            set_field!(domain.source4(), ctx, msg_src_ip4);
        } else {
            set_source6(ctx, domain.source6());
        }
    }
    ALLOW
}

/// A datagram to another interface's link from a socket with our mark: the mark would lead it to the
/// domain, so it gets that interface's source, which a rule leads round the mark.
#[inline(always)]
fn lead_to_local(ctx: *mut bpf_sock_addr, socket: *mut bpf_sock, local: &LocalEntry, v4: bool) {
    if our_mark(socket) == 0 || !message_source(ctx, v4).is_unspecified() {
        return;
    }
    // SAFETY: same size; the field is aligned to four bytes.
    let source = Address(unsafe { *(&raw const local.source).cast::<[u32; 4]>() });
    if v4 {
        if source.0[0] != 0 {
            set_field!(source.0[0], ctx, msg_src_ip4);
        }
    } else if !source.is_unspecified() {
        set_source6(ctx, source);
    }
}

/// The source that the datagram would have so far; unspecified if the route decides.
#[inline(always)]
fn message_source(ctx: *mut bpf_sock_addr, v4: bool) -> Address {
    if v4 {
        Address::v4(field!(ctx, msg_src_ip4))
    } else {
        // SAFETY: only the address is taken.
        sock::words(unsafe { &raw const (*ctx).msg_src_ip6 })
    }
}

#[inline(always)]
fn set_source6(ctx: *mut bpf_sock_addr, source: Address) {
    set_field!(source.0[0], ctx, msg_src_ip6[0]);
    set_field!(source.0[1], ctx, msg_src_ip6[1]);
    set_field!(source.0[2], ctx, msg_src_ip6[2]);
    set_field!(source.0[3], ctx, msg_src_ip6[3]);
}
