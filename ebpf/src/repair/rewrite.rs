//! Addresses are rewritten, and the checksums that cover them.
//!
//! Of an IPv4 packet the sum over all of it stays as it was, because its header has a checksum. Of an IPv6
//! packet the transport's checksum alone makes up for the address; the kernel takes it that way with
//! `BPF_F_IPV6` since Linux 6.16 only. Storing the address with `BPF_F_RECOMPUTE_CSUM` instead has the
//! sum that a device delivered (`CHECKSUM_COMPLETE`) come out right on every kernel.

use aya_ebpf::{
    bindings::{__sk_buff, BPF_F_MARK_MANGLED_0, BPF_F_PSEUDO_HDR, BPF_F_RECOMPUTE_CSUM},
    helpers::generated::{
        bpf_csum_diff, bpf_l3_csum_replace, bpf_l4_csum_replace, bpf_skb_store_bytes,
    },
};

use super::{Packet, link};
use crate::{
    address::Address,
    packet::{ICMPV6, TCP, UDP, shape},
};

/// Replaces the source.
#[inline(always)]
pub fn source(packet: &Packet, new: &Address) -> bool {
    let old = &packet.headers.source;
    address(packet, SOURCE, old, new, difference(old, new) as u32)
}

/// Replaces the destination, which differs as `difference` says.
#[inline(always)]
pub fn destination(packet: &Packet, new: &Address, difference: u32) -> bool {
    let old = &packet.headers.destination;
    address(packet, DESTINATION, old, new, difference)
}

/// Where the source is in a header of IPv4 and of IPv6.
pub const SOURCE: [u32; 2] = [12, 8];
/// Likewise the destination.
pub const DESTINATION: [u32; 2] = [16, 24];

/// Where the checksum is in a TCP header.
pub const TCP_CHECKSUM: u32 = 16;

/// Where a transport's checksum is that covers the addresses; `None`: it has none.
#[inline(always)]
pub fn checksum(protocol: u32) -> Option<u32> {
    match protocol {
        TCP => Some(TCP_CHECKSUM),
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
fn address(packet: &Packet, at: [u32; 2], from: &Address, to: &Address, difference: u32) -> bool {
    let (skb, link, transport) = (packet.skb, packet.link, &packet.transport);
    // The parts that both addresses have in common, as v4-mapped ones do, add nothing.
    if transport.shape == shape::WHOLE
        && let Some(sum) = checksum(transport.protocol)
        && !adjust(
            skb,
            link + transport.offset + sum,
            difference,
            transport.protocol,
        )
    {
        return false;
    }
    store(skb, link, at, from, to)
}

/// Adds the difference between two addresses to a transport's checksum.
#[inline(always)]
pub fn adjust(skb: *mut __sk_buff, checksum: u32, difference: u32, protocol: u32) -> bool {
    let flags = u64::from(BPF_F_PSEUDO_HDR) | flags(protocol);
    // SAFETY: the kernel checks the offset.
    unsafe { bpf_l4_csum_replace(skb, checksum, 0, difference.into(), flags) == 0 }
}

/// Replaces an address in the IP header, and makes up for it in that header's own checksum. `at`: where it is in a
/// header of IPv4 and of IPv6.
#[inline(always)]
pub fn store(skb: *mut __sk_buff, link: u32, at: [u32; 2], from: &Address, to: &Address) -> bool {
    // SAFETY: the kernel checks offsets; the addresses have the lengths that are told.
    unsafe {
        if from.is_v4() {
            let (from, to) = (from.0[3], to.0[3]);
            bpf_l3_csum_replace(skb, link + 10, from.into(), to.into(), 4) == 0
                && link::store(skb, link + at[0], &to)
        } else {
            let to = to.0.as_ptr().cast();
            bpf_skb_store_bytes(skb, link + at[1], to, 16, BPF_F_RECOMPUTE_CSUM.into()) == 0
        }
    }
}
