//! `sock_create`: a new socket of a steered cgroup gets its policy's mark, so that even raw and ping
//! sockets, which have no other hook, start right.

use aya_ebpf::{macros::cgroup_sock, programs::SockContext};
use steer_common::{FlowState, flow_flags, verdict};

use crate::{
    decision::{ALLOW, Domain, refuse_not_allowed},
    flow, globals,
    owner::Owner,
    sock::{field, is_ours, set_field},
};

/// Entry.
#[cgroup_sock(sock_create)]
pub fn sock_create(ctx: SockContext) -> i32 {
    let owner = Owner::caller();
    if owner.is_none() {
        return ALLOW;
    }
    if owner.is_undecided() {
        // Left without a trace on purpose: until the agent has decided, `connect` and the guard go by
        // the cgroup, which is closed, and afterwards by what it became.
        return ALLOW;
    }
    let ours = is_ours(ctx.sock.cast());
    if owner.is_strict() {
        let initial = if ours {
            FlowState {
                creator: owner.policy,
                ..FlowState::default()
            }
        } else {
            // The guard may meet its packets on a bridge and could not tell its namespace there.
            FlowState {
                flags: flow_flags::FOREIGN,
                ..FlowState::default()
            }
        };
        if flow::get_or_create(ctx.sock, initial).is_none() {
            // Without its state it could be handed to a task without policy and get out.
            return refuse_not_allowed();
        }
    }
    if !ours {
        return ALLOW;
    }
    let choice = owner.choice();
    if choice.verdict == verdict::PASS {
        return ALLOW;
    }
    // The mark of a domain that is gone is right too: its table says unreachable.
    if let Some(bits) = Domain::mark_of(choice.domain) {
        let mark = field!(ctx.sock, mark) & !globals::MARK_MASK.load() | bits;
        set_field!(mark, ctx.sock, mark);
    }
    ALLOW
}
