//! `cgroup_skb/egress`: the guard's judgement at interfaces that have no guard yet, because they came
//! while no agent ran.
//!
//! The guard proper sees more (packet sockets, and what leaves below a bridge or tunnel), so where it
//! is attached this leaves the packet to it.

use core::mem::MaybeUninit;

use aya_ebpf::{
    bindings::{__sk_buff, bpf_sock},
    helpers::generated::bpf_sk_fullsock,
    macros::cgroup_skb,
    programs::SkBuffContext,
};
use steer_common::local_flags;

use crate::{
    address::Address,
    divided,
    judge::{Judgement, UNASKED, Verdict, judge, whose},
    maps::GUARDED,
    packet,
    sock::{SOCK_RAW, field, is_ours},
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
    if ifindex == LOOPBACK {
        return PASS;
    }
    // SAFETY: only whether it is there counts.
    if unsafe { GUARDED.get(ifindex) }.is_some() && !is_out_of_reach(skb) {
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

/// Whether the guard may come too late for a packet: where the kernel finds no neighbour it sends the packet back
/// within an error, to its source. Of a strict policy's raw socket that may be anybody, by any interface.
#[inline(always)]
fn is_out_of_reach(skb: *mut __sk_buff) -> bool {
    let socket: *mut bpf_sock = field!(skb, __bindgen_anon_2.sk);
    if socket.is_null() {
        return false;
    }
    // SAFETY: not null.
    let full = unsafe { bpf_sk_fullsock(socket) };
    !full.is_null()
        && field!(full, type_) == SOCK_RAW
        && whose(skb, full).0.is_strict()
        && packet::source(skb).is_some_and(is_foreign)
}

/// Whether an address is none of the host's.
#[inline(always)]
fn is_foreign(address: Address) -> bool {
    let local = address.local();
    !address.is_unspecified() && !local.is_some_and(|local| local.flags & local_flags::HOST != 0)
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
