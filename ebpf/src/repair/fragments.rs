//! Fragments: the later ones, which tell no flow, go the way of the first.
//!
//! A later fragment whose first was not seen, or not within the time in which a packet is put together,
//! passes unchanged.

use core::mem::MaybeUninit;

use aya_ebpf::bindings::BPF_ANY;
use steer_common::{FragmentKey, FragmentLease, RepairLease};

use super::{Packet, lease};
use crate::{maps::FRAGMENTS, sock::field};

/// How long fragments belong together, in nanoseconds; the kernel waits as long (`ipfrag_time`).
const TOGETHER: u64 = 30_000_000_000;

/// Remembers what the first fragment of a packet that leaves gets.
#[inline(never)]
pub fn note_outbound(packet: &Packet, lease: &RepairLease) {
    let mut noted = FragmentLease {
        address: lease.source,
        ifindex: lease.ifindex,
        domain: lease.domain,
        ..FragmentLease::default()
    };
    note(packet, 0, &mut noted);
}

/// Remembers what the first fragment of a packet that arrives gets.
#[inline(never)]
pub fn note_inbound(packet: &Packet, lease: &mut FragmentLease) {
    note(packet, field!(packet.skb, ifindex), lease);
}

#[inline(always)]
fn note(packet: &Packet, ifindex: u32, lease: &mut FragmentLease) {
    lease.since = lease::now();
    // Without it the packet is lost, as any packet may be.
    let _ = FRAGMENTS.insert(&key(packet, ifindex), &*lease, BPF_ANY.into());
}

/// What a later fragment that leaves gets. False: nothing.
#[inline(never)]
pub fn outbound(packet: &Packet, lease: &mut RepairLease) -> bool {
    match find(packet, 0) {
        Some(found) => {
            lease.source = found.address;
            lease.ifindex = found.ifindex;
            lease.domain = found.domain;
            true
        }
        None => false,
    }
}

/// What a later fragment that arrives gets. False: nothing, and `lease` is not written.
#[inline(never)]
pub fn back(packet: &Packet, lease: &mut MaybeUninit<FragmentLease>) -> bool {
    match find(packet, field!(packet.skb, ifindex)) {
        Some(found) => {
            lease.write(found);
            true
        }
        None => false,
    }
}

#[inline(always)]
fn find(packet: &Packet, ifindex: u32) -> Option<FragmentLease> {
    // SAFETY: copied at once, as in `lease::find`.
    let lease = *unsafe { FRAGMENTS.get(&key(packet, ifindex)) }?;
    (lease::now().wrapping_sub(lease.since) < TOGETHER).then_some(lease)
}

#[inline(always)]
fn key(packet: &Packet, ifindex: u32) -> FragmentKey {
    FragmentKey {
        source: packet.headers.source.bytes(),
        destination: packet.headers.destination.bytes(),
        id: packet.transport.id,
        ifindex,
    }
}
