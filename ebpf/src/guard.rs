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
    divided,
    judge::{Judgement, UNASKED, Verdict, judge},
    repair,
};

/// Goes on with the next program of the chain (`TCX_NEXT`).
const NEXT: i32 = TC_ACT_UNSPEC;
const DROP: i32 = TC_ACT_SHOT as i32;

/// Entry.
#[classifier]
pub fn guard(ctx: TcContext) -> i32 {
    let skb = ctx.skb.skb;
    match judged(skb) {
        DROPPED => DROP,
        0 => NEXT,
        policy => repair::outbound(skb, policy).unwrap_or(NEXT),
    }
}

/// What [`judged`] gives: the packet is dropped.
const DROPPED: u32 = u32::MAX;

/// Judges the packet: the policy whose packets are repaired, or 0. A function of its own, so that what it needs
/// of the stack is free again for repair, and a global one to the verifier, as those of `rules` are.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn judged(skb: *mut __sk_buff) -> u32 {
    let mut judgement = Judgement::LEAVE;
    judgement_of_guard(skb, &raw mut judgement, UNASKED);
    if judgement.verdict == Verdict::Ask as u32 {
        let expected = divided::expected(skb, &judgement);
        judgement_of_guard(skb, &raw mut judgement, expected);
    }
    if judgement.verdict == Verdict::Drop as u32 {
        DROPPED
    } else if judgement.owner.repairs() {
        judgement.owner.policy
    } else {
        0
    }
}

/// A global function to the verifier, as those of `rules` are.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn judgement_of_guard(
    skb: *mut __sk_buff,
    judgement: *mut Judgement,
    expected: u64,
) -> u32 {
    // SAFETY: null, or room that nobody else uses.
    if let Some(judgement) = unsafe { judgement.as_mut() } {
        *judgement = judge::<true>(skb, expected);
    }
    0
}
