//! tc egress: does a packet of a policy leave by its domain's interface, with one of its domain's
//! addresses? If not, a strict policy's is dropped, and any other's is counted, and
//! repaired where its policy asks for that.
//!
//! This sees what no socket program can: sockets older than steer, `IP_PKTINFO`, raw headers, packet
//! sockets, further subflows of MPTCP.

use aya_ebpf::{
    bindings::{__sk_buff, TC_ACT_SHOT, TC_ACT_UNSPEC},
    macros::classifier,
    programs::TcContext,
};

use crate::{
    judge::{Verdict, judge},
    owner::Owner,
    repair,
};

/// Goes on with the next program of the chain (`TCX_NEXT`).
const NEXT: i32 = TC_ACT_UNSPEC;
const DROP: i32 = TC_ACT_SHOT as i32;

/// Entry.
#[classifier]
pub fn guard(ctx: TcContext) -> i32 {
    let skb = ctx.skb.skb;
    let mut owner = Owner::NONE;
    if !may_leave(skb, &mut owner) {
        return DROP;
    }
    if owner.repairs()
        && let Some(verdict) = repair::outbound(skb, &owner)
    {
        return verdict;
    }
    NEXT
}

/// A function of its own, so that what it needs of the stack is free again when a packet is repaired.
#[inline(never)]
fn may_leave(skb: *mut __sk_buff, owner: &mut Owner) -> bool {
    let judgement = judge::<true>(skb);
    *owner = judgement.owner;
    judgement.verdict != Verdict::Drop
}
