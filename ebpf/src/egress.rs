//! `cgroup_skb/egress`: the guard's judgement at interfaces that have no guard yet, because they came
//! while no agent ran.
//!
//! The guard proper sees more (packet sockets, and what leaves below a bridge or tunnel), so where it
//! is attached this leaves the packet to it.

use core::mem::MaybeUninit;

use aya_ebpf::{bindings::__sk_buff, macros::cgroup_skb, programs::SkBuffContext};

use crate::{
    divided,
    judge::{Judgement, UNASKED, Verdict, judge},
    maps::GUARDED,
    sock::{field, is_ours},
    stack,
};

const PASS: i32 = 1;
/// A local sender sees `EPERM`.
const DROP: i32 = 0;

/// The loopback interface's number in every namespace.
const LOOPBACK: u32 = 1;

/// Entry.
#[cgroup_skb(egress)]
pub fn egress(ctx: SkBuffContext) -> i32 {
    let skb = ctx.skb.skb;
    let ifindex = field!(skb, ifindex);
    // SAFETY: only whether it is there counts.
    if ifindex == LOOPBACK || unsafe { GUARDED.get(ifindex) }.is_some() {
        return PASS;
    }
    // Another namespace's interface of a guarded one's number has passed already, which is right.
    if !is_ours(skb.cast()) {
        return PASS;
    }
    let mut place = MaybeUninit::uninit();
    let judgement = stack::zeroed(&mut place);
    let mut verdict = judgement_of_egress(skb, &raw mut *judgement, UNASKED);
    if verdict == Verdict::Ask as u32 {
        let expected = divided::expected(skb, judgement);
        verdict = judgement_of_egress(skb, &raw mut *judgement, expected);
    }
    if verdict == Verdict::Drop as u32 {
        DROP
    } else {
        PASS
    }
}

/// As in `guard`.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn judgement_of_egress(
    skb: *mut __sk_buff,
    judgement: *mut Judgement,
    expected: u64,
) -> u32 {
    // SAFETY: null, or room that nobody else uses.
    match unsafe { judgement.as_mut() } {
        Some(judgement) => judge::<false>(skb, judgement, expected) as u32,
        None => 0,
    }
}
