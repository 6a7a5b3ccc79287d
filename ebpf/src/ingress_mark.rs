//! tc ingress: marks what arrives by its interface, where addresses of domains overlap.

use aya_ebpf::{bindings::TC_ACT_UNSPEC, macros::classifier, programs::TcContext};

use crate::{
    globals,
    maps::INGRESS,
    sock::{field, set_field},
};

/// Entry.
#[classifier]
pub fn ingress_mark(ctx: TcContext) -> i32 {
    let skb = ctx.skb.skb;
    let ifindex = field!(skb, ifindex);
    // SAFETY: copied at once.
    if let Some(&entry) = unsafe { INGRESS.get(ifindex) }
        && entry.mark != 0
    {
        let mark = field!(skb, mark) & !globals::MARK_MASK.load() | entry.mark;
        set_field!(mark, skb, mark);
    }
    TC_ACT_UNSPEC
}
