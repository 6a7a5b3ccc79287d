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
    family, flow,
    log::log,
    options,
    owner::{self, Owner},
    share::member_by_source,
    sock::{self, bind6, field, is_ours, our_mark, set_mark},
    tuple::Tuple,
};

/// `bpf_bind`: the address is not the host's.
const EADDRNOTAVAIL: i64 = -99;

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
    let mut flow = flow::get(socket);
    if caller.is_none() && flow.is_none() && !bears_domains_mark(socket) || !is_ours(ctx.cast()) {
        return ALLOW;
    }
    let owner = owner::at_connect(caller, flow.as_deref());
    if owner.is_conflict() {
        let verdict = refuse_not_allowed();
        log!(log_connect(0, NOT_ALLOWED, verdict, &destination));
        return verdict;
    }
    if owner.is_none() {
        return pass(ctx, socket, flow, &owner);
    }
    if owner.is_strict() && flow.is_none() {
        flow = flow::get_or_create(socket, FlowState::default());
        if flow.is_none() {
            // The guard could not tell later for which domain it was decided.
            return refuse_no_domain();
        }
    }
    let said = ask(ctx, socket, flow.as_deref(), &owner, &destination);
    let verdict = match said {
        PASS => pass(ctx, socket, flow, &owner),
        PASS_CHOSEN => {
            // Nothing else tells the guard.
            if flow.is_none() {
                flow = flow::get_or_create(socket, FlowState::default());
            }
            pass(ctx, socket, flow, &owner)
        }
        NO_DOMAIN => refuse_no_domain(),
        NOT_ALLOWED => refuse_not_allowed(),
        steer_to if family::turns_away(ctx, &owner, index(steer_to), steer_to & IS_V4 != 0) => {
            refuse_no_domain()
        }
        steer_to => steer(ctx, socket, flow, &owner, steer_to),
    };
    log!(log_connect(owner.policy, said, verdict, &destination));
    verdict
}

/// What [`ask`] gives: left to the host's routing.
const PASS: u64 = 0;
/// Likewise, because the application chose another interface.
const PASS_CHOSEN: u64 = 1;
/// Refused: no domain fits.
const NO_DOMAIN: u64 = 2;
/// Refused: the policy does not allow it.
const NOT_ALLOWED: u64 = 3;
/// Put on a domain: its index is in the lower half, the choice in the upper, beside these.
pub const STEER: u64 = 1 << 31;
/// The flow is IPv4.
const IS_V4: u64 = 1 << 30;

/// The domain that [`STEER`] is said with.
#[inline(always)]
const fn index(to: u64) -> u32 {
    (to & !(STEER | IS_V4)) as u32
}

/// Decides. A function of its own, as [`steer`] and [`pass`] are, so that what each needs of the stack is free
/// again for the others.
#[inline(never)]
fn ask(
    ctx: *mut bpf_sock_addr,
    socket: *mut bpf_sock,
    flow: Option<&FlowState>,
    owner: &Owner,
    destination: &Address,
) -> u64 {
    let [source4, source6] = sock::sources(socket);
    let v4 = destination.is_v4();
    let source = if flow::is_hook_bound(ctx, socket, flow, source6) {
        Address([0; 4])
    } else if v4 {
        source4
    } else {
        source6
    };
    let tuple = Tuple::of_socket(ctx, owner, source, *destination);
    let device = field!(socket, bound_dev_if);
    match decide(owner, &tuple, device, None, || sock::cookie(ctx)) {
        Decision::Pass(_) | Decision::Free => PASS,
        Decision::NoDomain => NO_DOMAIN,
        Decision::NotAllowed => NOT_ALLOWED,
        Decision::Steer(domain, _) if options::lead_elsewhere(ctx, owner, v4, domain) => {
            PASS_CHOSEN
        }
        Decision::Steer(domain, choice) => {
            let domain = member_by_source(choice, domain, &raw const tuple);
            let family = if v4 { IS_V4 } else { 0 };
            u64::from(choice) << 32 | STEER | family | u64::from(domain)
        }
    }
}

/// Whether the socket's mark is as a steered socket has it: a domain's, and nothing else.
///
/// Any other mark is the application's own, even one with bits inside our mask, which other software
/// may use too.
#[inline(always)]
fn bears_domains_mark(socket: *mut bpf_sock) -> bool {
    our_mark(socket) != 0
        && Domain::mark_of(sock::marked_domain(socket)) == Some(field!(socket, mark))
}

/// Leaves the flow to the host's routing: without our mark and without a source of ours.
#[inline(never)]
fn pass(
    ctx: *mut bpf_sock_addr,
    socket: *mut bpf_sock,
    flow: Option<&'static mut FlowState>,
    owner: &Owner,
) -> i32 {
    let [_, source6] = sock::sources(socket);
    let mut flow = flow;
    if owner.is_none() && flow.is_none() {
        // The guard would take it for a flow of who made the socket that nothing was decided for. A rare
        // path, and no harm if there is no memory for it.
        flow = flow::get_or_create(socket, FlowState::default());
    }
    if unbind(ctx, socket, flow.as_deref(), source6) {
        // The mark, which tells that the source was ours, goes too.
        if flow.is_none() {
            flow = flow::get_or_create(socket, FlowState::default());
        }
        if let Some(flow) = &mut flow {
            flow.flags |= flow_flags::HOOK_BOUND;
        }
    }
    if !set_mark(ctx, socket, 0) && owner.is_strict() {
        return refuse_no_domain();
    }
    record(flow, owner.policy, 0, 0);
    ALLOW
}

/// Puts the flow on a domain, as [`STEER`] says.
#[inline(never)]
fn steer(
    ctx: *mut bpf_sock_addr,
    socket: *mut bpf_sock,
    flow: Option<&mut FlowState>,
    owner: &Owner,
    to: u64,
) -> i32 {
    let (choice, v4) = ((to >> 32) as u32, to & IS_V4 != 0);
    let Some(domain) = Domain::get(index(to)) else {
        return refuse_no_domain();
    };
    let [source4, source6] = sock::sources(socket);
    let source = if unbind(ctx, socket, flow.as_deref(), source6) {
        Address([0; 4])
    } else if v4 {
        source4
    } else {
        source6
    };
    // A source on a socket without our mark: `bind` took the mark away, or the flow was passed before.
    // Both go on by that source, which rules lead to its own interface.
    let respected = has(flow.as_deref(), flow_flags::APP_BOUND)
        || our_mark(socket) == 0 && !has(flow.as_deref(), flow_flags::HOOK_BOUND);
    // An address that another interface has too leads nowhere by itself.
    let shared = v4 && domain.shares_address() && source.belongs_to(domain.index);
    if !source.is_unspecified() && respected && !shared && !owner.is_strict() {
        set_mark(ctx, socket, 0);
        let flow = match flow {
            Some(flow) => Some(flow),
            // Bound without a port, which `post_bind` does not see.
            None => flow::get_or_create(socket, FlowState::default()),
        };
        record(flow, owner.policy, 0, 0);
        return ALLOW;
    }
    if !domain.serves(v4) {
        return refuse_no_domain();
    }
    if source.is_unspecified() {
        // The IPv6 routing table would take a source from another interface when the domain's own
        // address is gone; a source that is bound cannot be replaced. IPv4 gets it from the table.
        if !v4 && let Err(error) = bind6(ctx, options::source6(ctx, &domain)) {
            count(counter::SOURCE_FAILED);
            // The address went and nobody told us. The lookup by mark would fail, and IPv6 would then
            // look again with any other address of the host.
            if error == EADDRNOTAVAIL {
                return refuse_no_domain();
            }
            // The socket has a port: the mark gives the right source too.
        }
    } else if !source.belongs_to(domain.index) {
        if owner.is_strict() {
            // `bind` let pass what may be another rule's.
            return if has(flow.as_deref(), flow_flags::APP_BOUND) && owner.divides(&owner.choice())
            {
                refuse_not_allowed()
            } else {
                refuse_no_domain()
            };
        }
        // A datagram socket keeps the source of its first `connect` until it is disconnected.
        let earlier = sock::marked_domain(socket);
        if source.belongs_to(earlier) && Domain::get(earlier).is_some() {
            record(flow, owner.policy, choice, earlier);
            return ALLOW;
        }
    }
    if !set_mark(ctx, socket, domain.entry.mark) && owner.is_strict() {
        return refuse_no_domain();
    }
    record(flow, owner.policy, choice, domain.index);
    count(counter::CONNECT_STEERED);
    ALLOW
}

/// Takes back the source that `steer` bound for an earlier `connect`.
///
/// It holds across a disconnect (the kernel takes it for the application's), where it would give the
/// next destination, perhaps of the other family, a source that does not fit. True: it had one, and has
/// none now.
#[inline(always)]
fn unbind(
    ctx: *mut bpf_sock_addr,
    socket: *mut bpf_sock,
    flow: Option<&FlowState>,
    source6: Address,
) -> bool {
    flow::is_hook_bound(ctx, socket, flow, source6)
        // Fails where the socket has a port, that is while it is connected: then it keeps its source.
        && bind6(ctx, Address([0; 4])).is_ok()
}

#[inline(always)]
fn has(flow: Option<&FlowState>, flag: u32) -> bool {
    flow.is_some_and(|flow| flow.flags & flag != 0)
}

#[inline(always)]
fn record(flow: Option<&mut FlowState>, policy: u32, choice: u32, domain: u32) {
    if let Some(flow) = flow {
        flow::decided(flow, policy, choice, domain);
    }
}
