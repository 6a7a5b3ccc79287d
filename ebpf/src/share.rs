//! Which member of a choice has a flow, where its flows are spread over several.

use aya_ebpf::bindings::__sk_buff;
use steer_common::{share, share_slot};

use crate::{
    judge::{has_source_of, tag},
    maps::{CHOICES, SHARES},
    packet,
    sock::field,
    tuple::Tuple,
};

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

/// The member of `choice` that a flow with a source has by that source, and else `domain`. A global function to
/// the verifier, as those of `rules` are.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn member_by_source(choice: u32, domain: u32, tuple: *const Tuple) -> u32 {
    // SAFETY: null, or a flow.
    let Some(tuple) = (unsafe { tuple.as_ref() }) else {
        return domain;
    };
    let source = tuple.source;
    if source.is_unspecified() || source.belongs_to(domain) {
        return domain;
    }
    members(choice, source.is_v4())
        .and_then(|mut members| members.find(|member| source.belongs_to(*member)))
        .unwrap_or(domain)
}

/// The domain that a packet is right at: `domain`, or if `choice` is not 0 any member of that, since who
/// answers, or chose a source, is not to go by the slot. 0: it is right nowhere.
///
/// A global function to the verifier, as those of `rules` are.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn member_of_packet(skb: *mut __sk_buff, domain: u32, choice: u32) -> u32 {
    if is_at_domain(skb, domain) != 0 {
        return domain;
    }
    members(choice, packet::is_v4(skb))
        .and_then(|mut members| members.find(|member| is_at_domain(skb, *member) != 0))
        .unwrap_or(0)
}

/// Whether a packet bears a source of a domain at its interface, or did so at one of which this is a part or
/// carrier. Global too.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn is_at_domain(skb: *mut __sk_buff, domain: u32) -> u32 {
    (domain != 0 && (field!(skb, tc_index) == tag(domain) || has_source_of(domain, skb))).into()
}

/// The members of `choice` that have flows of a family.
#[inline(always)]
fn members(choice: u32, v4: bool) -> Option<impl Iterator<Item = u32>> {
    let spread = CHOICES.get(choice)?.share != share::NONE;
    if choice == 0 || !spread {
        return None;
    }
    // SAFETY: an element is not written while it is read, but replaced whole.
    let entry = unsafe { SHARES.get(choice) }?;
    let members = entry.members(v4).iter();
    Some(
        members
            .map(|member| u32::from(*member))
            .take_while(|member| *member != 0),
    )
}
