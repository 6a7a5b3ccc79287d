//! Which member of a choice has a flow, where its flows are spread over several.

use steer_common::{share, share_slot};

use crate::{maps::SHARES, tuple::Tuple};

/// The domain that a flow of `choice` is on, spread as `kind` says; none if nobody has said over what.
///
/// `cookie` tells the socket: a flow is that, and where it goes to, which is the same at `connect`, at
/// `sendmsg` and in its packets.
#[inline(always)]
pub fn member(choice: u32, kind: u32, tuple: &Tuple, cookie: u64) -> Option<u32> {
    // SAFETY: one byte is copied at once.
    let entry = unsafe { SHARES.get(choice) }?;
    let seed = if kind == share::FLOW {
        cookie << 16 | u64::from(tuple.destination_port & 0xffff)
    } else {
        0
    };
    let slot = share_slot(&tuple.destination.0, seed);
    let slots = entry.slots(tuple.destination.is_v4());
    slots.get(slot).map(|domain| (*domain).into())
}
