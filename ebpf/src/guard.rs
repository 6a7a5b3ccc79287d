//! tc egress: does a packet of a policy leave by its domain's interface, with one of its domain's
//! addresses? If not, a strict policy's is dropped, and any other's is counted.
//!
//! This sees what no socket program can: sockets older than steer, `IP_PKTINFO`, raw headers, packet
//! sockets, further subflows of MPTCP.

use aya_ebpf::{
    bindings::{TC_ACT_SHOT, TC_ACT_UNSPEC},
    macros::classifier,
    programs::TcContext,
};

use crate::judge::{Verdict, judge};

/// Goes on with the next program of the chain (`TCX_NEXT`).
const NEXT: i32 = TC_ACT_UNSPEC;
const DROP: i32 = TC_ACT_SHOT as i32;

/// Entry.
#[classifier]
pub fn guard(ctx: TcContext) -> i32 {
    let judgement = judge::<true>(ctx.skb.skb);
    match judgement.verdict {
        Verdict::Leave | Verdict::Wrong => NEXT,
        Verdict::Drop => DROP,
    }
}
