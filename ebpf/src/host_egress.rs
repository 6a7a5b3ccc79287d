//! tc egress: what leaves an interface whose host model is strong with the address of another one.

use aya_ebpf::{
    bindings::{TC_ACT_SHOT, TC_ACT_UNSPEC},
    macros::classifier,
    programs::TcContext,
};
use steer_common::ingress_flags;

use crate::{host, maps::INGRESS, sock::field};

/// Goes on with the next program of the chain (`TCX_NEXT`).
const NEXT: i32 = TC_ACT_UNSPEC;
const DROP: i32 = TC_ACT_SHOT as i32;

/// Entry.
#[classifier]
pub fn host_egress(ctx: TcContext) -> i32 {
    let skb = ctx.skb.skb;
    let ifindex = field!(skb, ifindex);
    // SAFETY: copied at once.
    let Some(&entry) = (unsafe { INGRESS.get(ifindex) }) else {
        return NEXT;
    };
    if entry.flags & ingress_flags::HOST_MODEL != 0
        && host::refuses_departure(skb, ifindex)
        && entry.flags & ingress_flags::STRONG != 0
    {
        DROP
    } else {
        NEXT
    }
}
