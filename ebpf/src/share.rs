//! Which member of a choice has a flow, where its flows are spread over several.

use steer_common::{ShareEntry, share};

use crate::{maps::SHARES, tuple::Tuple};

/// The domain that a flow of `choice` is on, spread as `kind` says; none if nobody has said over what.
///
/// `cookie` tells the socket: a flow is that, and where it goes to, which is the same at `connect`, at
/// `sendmsg` and in its packets.
#[inline(always)]
pub fn member(choice: u32, kind: u32, tuple: &Tuple, cookie: u64) -> Option<u32> {
    // SAFETY: one byte is copied at once.
    let entry = unsafe { SHARES.get(choice) }?;
    let mut hash = destination(tuple);
    if kind == share::FLOW {
        hash = mix(hash, u64::from(tuple.destination_port));
        hash = mix(hash, cookie);
    }
    let slot = (hash >> 32) as usize & (ShareEntry::SLOTS - 1);
    Some(entry.domains[slot].into())
}

/// A number for the destination address that is the same for all time: flows to it stay where they are when
/// the host starts again.
#[inline(always)]
fn destination(tuple: &Tuple) -> u64 {
    let [a, b, c, d] = tuple
        .destination
        .0
        .map(|word| u64::from(u32::from_be(word)));
    mix(mix(0, a << 32 | b), c << 32 | d)
}

/// One round of a multiplicative hash: every bit of what went in before counts for the upper half.
#[inline(always)]
fn mix(hash: u64, word: u64) -> u64 {
    const ODD: u64 = 0x9e37_79b9_7f4a_7c15;
    let mixed = (hash ^ word).wrapping_mul(ODD);
    (mixed ^ mixed >> 32).wrapping_mul(ODD)
}
