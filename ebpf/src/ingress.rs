//! tc ingress: what arrives at an interface that something asks about. The host model first, then answers
//! to repaired flows, then the mark by which flows of overlapping addresses are told apart.

use aya_ebpf::{
    bindings::{TC_ACT_SHOT, TC_ACT_UNSPEC},
    macros::classifier,
    programs::TcContext,
};
use steer_common::ingress_flags;

use crate::{
    globals, host,
    maps::INGRESS,
    repair,
    sock::{field, set_field},
};

/// Goes on with the next program of the chain (`TCX_NEXT`).
const NEXT: i32 = TC_ACT_UNSPEC;
const DROP: i32 = TC_ACT_SHOT as i32;

/// Entry.
#[classifier]
pub fn ingress(ctx: TcContext) -> i32 {
    let skb = ctx.skb.skb;
    let ifindex = field!(skb, ifindex);
    // SAFETY: copied at once.
    let Some(&entry) = (unsafe { INGRESS.get(ifindex) }) else {
        return NEXT;
    };
    if entry.flags & ingress_flags::HOST_MODEL != 0
        && host::refuses_arrival(skb, ifindex)
        && entry.flags & ingress_flags::STRONG != 0
    {
        return DROP;
    }
    if entry.flags & ingress_flags::RETURNS != 0
        && let Some(verdict) = repair::way_back(skb, entry.flags & ingress_flags::ETHERNET != 0)
    {
        return verdict;
    }
    if entry.mark != 0 {
        let mark = field!(skb, mark) & !globals::MARK_MASK.load() | entry.mark;
        set_field!(mark, skb, mark);
    }
    NEXT
}
