//! tc egress: does a packet of a strict policy leave by its domain's interface, with one of its
//! domain's addresses? If not, it is dropped.
//!
//! This sees what no socket program can: sockets older than steer, `IP_PKTINFO`, raw headers, packet
//! sockets, further subflows of MPTCP.

use aya_ebpf::{
    bindings::{TC_ACT_SHOT, TC_ACT_UNSPEC},
    macros::classifier,
    programs::TcContext,
};

use crate::judge::may_leave;

/// Goes on with the next program of the chain (`TCX_NEXT`).
const NEXT: i32 = TC_ACT_UNSPEC;
const DROP: i32 = TC_ACT_SHOT as i32;

/// Entry.
#[classifier]
pub fn guard(ctx: TcContext) -> i32 {
    if may_leave::<true>(ctx.skb.skb) {
        NEXT
    } else {
        DROP
    }
}
