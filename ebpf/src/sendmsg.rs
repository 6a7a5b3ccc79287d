//! `sendmsg4`, `sendmsg6`: datagrams of unconnected UDP sockets.
//!
//! Only the source is set. A mark set here would count from the next datagram only and is shared by
//! all threads; the source makes the `from` rules route even the first datagram right.

use aya_ebpf::{
    bindings::{bpf_sock, bpf_sock_addr},
    macros::cgroup_sock_addr,
    programs::SockAddrContext,
};
use steer_common::{FlowState, flow_flags};

use crate::{
    address::Address,
    decision::{ALLOW, Decision, Domain, decide, refuse_no_domain, refuse_not_allowed},
    flow,
    log::log,
    options,
    owner::{self, Owner},
    share::member_by_source,
    sock::{self, CONNECTED, field, is_ours, our_mark, set_field, set_mark},
    tuple::Tuple,
};

/// Entry for IPv4 destinations, also v4-mapped ones.
#[cgroup_sock_addr(sendmsg4)]
pub fn sendmsg4(ctx: SockAddrContext) -> i32 {
    let ctx = ctx.sock_addr;
    sendmsg::<true>(ctx, Address::v4(field!(ctx, user_ip4)))
}

/// Entry for IPv6 destinations.
#[cgroup_sock_addr(sendmsg6)]
pub fn sendmsg6(ctx: SockAddrContext) -> i32 {
    let ctx = ctx.sock_addr;
    // SAFETY: only the address is taken.
    sendmsg::<false>(ctx, sock::words(unsafe { &raw const (*ctx).user_ip6 }))
}

#[inline(always)]
fn sendmsg<const V4: bool>(ctx: *mut bpf_sock_addr, destination: Address) -> i32 {
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
        let verdict = refuse_not_allowed();
        log!(log_sendmsg(0, NOT_ALLOWED, verdict, &destination));
        return verdict;
    }
    let said = ask::<V4>(ctx, flow.as_deref(), &owner, &destination);
    let verdict = match said {
        PASS => ALLOW,
        PASS_LOCAL => lead_to_local::<V4>(ctx, &destination),
        FREE => {
            // The mark would lead it to a domain, and counts from the next datagram on; those to domains go
            // by their source.
            let source = open_source::<V4>(ctx, flow.as_deref());
            if !is_connected(socket) && source.is_unspecified() && our_mark(socket) != 0 {
                set_mark(ctx, socket, 0);
            }
            ALLOW
        }
        NO_DOMAIN => refuse_no_domain(),
        NOT_ALLOWED => refuse_not_allowed(),
        steer_to => steer::<V4>(ctx, flow, &owner, steer_to),
    };
    log!(log_sendmsg(owner.policy, said, verdict, &destination));
    verdict
}

/// What [`ask`] gives: left to the host's routing.
const PASS: u64 = 0;
/// Likewise, because the destination is on-link at another interface.
const PASS_LOCAL: u64 = 1;
/// Likewise, because nothing else was chosen.
const FREE: u64 = 2;
/// Refused: no domain fits.
const NO_DOMAIN: u64 = 3;
/// Refused: the policy does not allow it.
const NOT_ALLOWED: u64 = 4;
/// Put on a domain: its index is in the lower half, the choice in the upper, beside this.
pub const STEER: u64 = 1 << 31;

/// Decides. A function of its own for the reason that `connect` gives.
#[inline(never)]
fn ask<const V4: bool>(
    ctx: *mut bpf_sock_addr,
    flow: Option<&FlowState>,
    owner: &Owner,
    destination: &Address,
) -> u64 {
    let socket = sock::of(ctx);
    let tuple = Tuple::of_socket(ctx, owner, open_source::<V4>(ctx, flow), *destination);
    let device = field!(socket, bound_dev_if);
    let memory = if is_connected(socket) { None } else { flow };
    match decide(owner, &tuple, device, memory, || sock::cookie(ctx)) {
        Decision::Pass(None) => PASS,
        Decision::Pass(Some(_)) => PASS_LOCAL,
        Decision::Free => FREE,
        Decision::NoDomain => NO_DOMAIN,
        Decision::NotAllowed => NOT_ALLOWED,
        Decision::Steer(domain, choice) => {
            let domain = member_by_source(choice, domain, &raw const tuple);
            // Asked with the first datagram alone: the answer costs as much as the decision.
            let known = memory.is_some_and(|flow| {
                flow.flags & flow_flags::DECIDED != 0
                    && flow.choice == choice
                    && flow.domain == domain
            });
            // The mark that it has leads round the domain where an interface is named.
            if !known && options::lead_elsewhere(ctx, owner, V4, domain) {
                return PASS;
            }
            u64::from(choice) << 32 | STEER | u64::from(domain)
        }
    }
}

/// What a connected socket remembers is its connection, which a datagram with a destination of its own does
/// not go by.
#[inline(always)]
fn is_connected(socket: *mut bpf_sock) -> bool {
    field!(socket, state) == CONNECTED
}

/// The source of the datagram as far as the application has to do with it: not one that is left from a
/// connection that is no more.
#[inline(always)]
fn open_source<const V4: bool>(ctx: *mut bpf_sock_addr, flow: Option<&FlowState>) -> Address {
    let source = message_source(ctx, V4);
    if V4 {
        return source;
    }
    let socket = sock::of(ctx);
    let [_, source6] = sock::sources(socket);
    if source.equals(source6) && flow::is_hook_bound(ctx, socket, flow, source6) {
        Address([0; 4])
    } else {
        source
    }
}

#[inline(never)]
fn steer<const V4: bool>(
    ctx: *mut bpf_sock_addr,
    flow: Option<&'static mut FlowState>,
    owner: &Owner,
    to: u64,
) -> i32 {
    let choice = (to >> 32) as u32;
    let Some(domain) = Domain::get((to & !STEER) as u32) else {
        return refuse_no_domain();
    };
    let socket = sock::of(ctx);
    let source = open_source::<V4>(ctx, flow.as_deref());
    if !source.is_unspecified() {
        if !owner.is_strict() {
            // Bound by the application, told by IP_PKTINFO, or kept from an earlier `connect`.
            let [source4, source6] = sock::sources(socket);
            let own = if V4 { source4 } else { source6 };
            if flow.is_none()
                && our_mark(socket) == 0
                && own.equals(source)
                && !is_connected(socket)
            {
                // Bound without a port, which `post_bind` does not see: the guard is to know. A connected
                // socket has its source from the kernel.
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
    if !domain.serves(V4) {
        return refuse_no_domain();
    }
    let connected = is_connected(socket);
    if !connected && !remember(ctx, flow, owner, choice, domain.index) && owner.is_strict() {
        return refuse_no_domain();
    }
    if source.is_unspecified() {
        if V4 && !connected && domain.shares_address() && our_mark(socket) != domain.entry.mark {
            // The source would lead nowhere, and the mark counts from the next datagram on. This one
            // goes as the socket's mark says, with a source that fits.
            set_mark(ctx, socket, domain.entry.mark);
        } else if V4 {
            set_field!(domain.source4(), ctx, msg_src_ip4);
        } else {
            set_source6(ctx, options::source6(ctx, &domain));
        }
    }
    ALLOW
}

/// Notes what was decided, for the datagrams to come and for the guard. False: there is no memory for it.
#[inline(always)]
fn remember(
    ctx: *mut bpf_sock_addr,
    flow: Option<&'static mut FlowState>,
    owner: &Owner,
    choice: u32,
    domain: u32,
) -> bool {
    let flow = match flow {
        Some(flow) => flow,
        None => match flow::get_or_create(sock::of(ctx), FlowState::default()) {
            Some(flow) => flow,
            None => return false,
        },
    };
    if flow.policy != owner.policy
        || flow.choice != choice
        || flow.domain != domain
        || flow.flags & flow_flags::DECIDED == 0
    {
        flow::decided(flow, owner.policy, choice, domain);
    }
    true
}

/// A datagram to another interface's link from a socket with our mark: the mark would lead it to the
/// domain, so it gets that interface's source, which a rule leads round the mark.
#[inline(never)]
fn lead_to_local<const V4: bool>(ctx: *mut bpf_sock_addr, destination: &Address) -> i32 {
    if our_mark(sock::of(ctx)) == 0 || !message_source(ctx, V4).is_unspecified() {
        return ALLOW;
    }
    let Some(local) = destination.local() else {
        return ALLOW;
    };
    // SAFETY: same size; the field is aligned to four bytes.
    let source = Address(unsafe { *(&raw const local.source).cast::<[u32; 4]>() });
    if V4 {
        if source.0[0] != 0 {
            set_field!(source.0[0], ctx, msg_src_ip4);
        }
    } else if !source.is_unspecified() {
        set_source6(ctx, source);
    }
    ALLOW
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
