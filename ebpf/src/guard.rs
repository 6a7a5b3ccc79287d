//! tc egress: does a packet of a policy leave by its domain's interface, with one of its domain's
//! addresses? If not, a strict policy's is dropped, and any other's is counted, and
//! repaired where its policy asks for that.
//!
//! This sees what no socket program can: sockets older than steer, `IP_PKTINFO`, raw headers, packet
//! sockets, further subflows of MPTCP.

use core::mem::MaybeUninit;

use aya_ebpf::{
    bindings::{__sk_buff, TC_ACT_SHOT, TC_ACT_UNSPEC},
    macros::classifier,
    programs::TcContext,
};
use steer_common::cell;

use crate::{
    divided,
    judge::{Judgement, UNASKED, Verdict, is_plainly_right, is_to_show, judge, was_judged},
    maps::cell,
    owner::Owner,
    repair, stack,
};

/// Goes on with the next program of the chain (`TCX_NEXT`).
const NEXT: i32 = TC_ACT_UNSPEC;
const DROP: i32 = TC_ACT_SHOT as i32;

/// Entry.
#[classifier]
pub fn guard(ctx: TcContext) -> i32 {
    let skb = ctx.skb.skb;
    if was_judged(skb) {
        if is_to_show(skb) {
            repair::socket::learn(skb);
        }
        if !Owner::any_is_strict() {
            return NEXT;
        }
    } else if repair::socket::any() {
        let verdict = repair::socket::leased(skb);
        if verdict != NEXT {
            return verdict;
        }
    }
    if is_plainly_right(skb) {
        return NEXT;
    }
    // Before anything that it is about is asked.
    let changes = cell(cell::CHANGES);
    let mut place = MaybeUninit::uninit();
    let judgement = stack::zeroed(&mut place);
    let mut verdict = judgement_of_guard(skb, &raw mut *judgement, UNASKED);
    if verdict == Verdict::Ask as u32 {
        verdict = ask(skb, judgement);
    }
    if verdict == Verdict::Drop as u32 {
        return DROP;
    }
    if judgement.owner.repairs()
        && let Some(verdict) = repair::outbound(skb, judgement.owner.policy, changes)
    {
        return verdict;
    }
    NEXT
}

/// Judges a packet of an owner whose flows go more than one way.
#[inline(never)]
fn ask(skb: *mut __sk_buff, judgement: &mut Judgement) -> u32 {
    let expected = divided::expected(skb, judgement);
    judgement.forget();
    judgement_of_guard(skb, core::ptr::from_mut(judgement), expected)
}

/// A global function to the verifier, as those of `rules` are, and so that what it needs of the stack is free
/// again for what follows.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn judgement_of_guard(
    skb: *mut __sk_buff,
    judgement: *mut Judgement,
    expected: u64,
) -> u32 {
    // SAFETY: null, or room that nobody else uses.
    match unsafe { judgement.as_mut() } {
        Some(judgement) => judge::<true>(skb, judgement, expected) as u32,
        None => 0,
    }
}
