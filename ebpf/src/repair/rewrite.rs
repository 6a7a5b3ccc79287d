//! Addresses are rewritten, and the checksums that cover them.
//!
//! Of an IPv4 packet the sum over all of it stays as it was, because its header has a checksum. Of an IPv6
//! packet the transport's checksum alone makes up for the address; the kernel takes it that way with
//! `BPF_F_IPV6` since Linux 6.16 only. Storing the address with `BPF_F_RECOMPUTE_CSUM` instead has the
//! sum that a device delivered (`CHECKSUM_COMPLETE`) come out right on every kernel.

use aya_ebpf::{
    bindings::{BPF_F_MARK_MANGLED_0, BPF_F_PSEUDO_HDR, BPF_F_RECOMPUTE_CSUM},
    helpers::generated::{
        bpf_csum_diff, bpf_l3_csum_replace, bpf_l4_csum_replace, bpf_skb_store_bytes,
    },
};

use super::Packet;
use crate::{
    address::Address,
    packet::{ICMPV6, TCP, UDP, shape},
};

/// Replaces the source.
#[inline(always)]
pub fn source(packet: &Packet, new: &Address) -> bool {
    address(
        packet,
        if packet.is_v4() { 12 } else { 8 },
        &packet.headers.source,
        new,
    )
}

/// Replaces the destination.
#[inline(always)]
pub fn destination(packet: &Packet, new: &Address) -> bool {
    let at = if packet.is_v4() { 16 } else { 24 };
    address(packet, at, &packet.headers.destination, new)
}

/// Where a transport's checksum is that covers the addresses; `None`: it has none.
#[inline(always)]
pub fn checksum(protocol: u32) -> Option<u32> {
    match protocol {
        TCP => Some(16),
        UDP => Some(6),
        ICMPV6 => Some(2),
        _ => None,
    }
}

/// A UDP checksum of 0 means that there is none, and one that comes out as 0 is written otherwise.
#[inline(always)]
pub fn flags(protocol: u32) -> u64 {
    if protocol == UDP {
        BPF_F_MARK_MANGLED_0.into()
    } else {
        0
    }
}

/// The difference between two addresses as checksums count.
#[inline(always)]
pub fn difference(from: &Address, to: &Address) -> u64 {
    let (mut from, mut to) = (from.0, to.0);
    // SAFETY: both are 16 bytes.
    unsafe { bpf_csum_diff(from.as_mut_ptr(), 16, to.as_mut_ptr(), 16, 0) as u64 }
}

#[inline(never)]
fn address(packet: &Packet, at: u32, from: &Address, to: &Address) -> bool {
    let skb = packet.skb;
    let sum = if packet.transport.shape == shape::WHOLE {
        checksum(packet.transport.protocol)
    } else {
        None
    };
    if let Some(sum) = sum {
        let offset = packet.link + packet.transport.offset + sum;
        let flags = u64::from(BPF_F_PSEUDO_HDR) | flags(packet.transport.protocol);
        // The parts that both addresses have in common, as v4-mapped ones do, add nothing.
        // SAFETY: the kernel checks the offset.
        if unsafe { bpf_l4_csum_replace(skb, offset, 0, difference(from, to), flags) } != 0 {
            return false;
        }
    }
    // SAFETY: the kernel checks offsets; the addresses have the lengths that are told.
    unsafe {
        if packet.is_v4() {
            bpf_l3_csum_replace(skb, packet.link + 10, from.0[3].into(), to.0[3].into(), 4) == 0
                && bpf_skb_store_bytes(skb, packet.link + at, (&raw const to.0[3]).cast(), 4, 0)
                    == 0
        } else {
            bpf_skb_store_bytes(
                skb,
                packet.link + at,
                to.0.as_ptr().cast(),
                16,
                BPF_F_RECOMPUTE_CSUM.into(),
            ) == 0
        }
    }
}
