//! Packets that are too big for the interface they are put on: their sender hears of it from the packet
//! programs, as it would from a router.
//!
//! That goes for IPv4 without "don't fragment" as well, though a router would fragment: the sender is this
//! host, which takes the smaller size for the path and then fragments by itself. One packet is lost.

use aya_ebpf::{
    bindings::{BPF_F_INGRESS, bpf_check_mtu_flags::BPF_MTU_CHK_SEGS},
    helpers::generated::{
        bpf_check_mtu, bpf_csum_diff, bpf_redirect, bpf_skb_adjust_room, bpf_skb_change_tail,
        bpf_skb_load_bytes,
    },
};

use super::{
    DROP, Packet,
    link::{self, store},
};
use crate::{
    globals,
    packet::shape,
    sock::{field, set_field},
};

/// `BPF_ADJ_ROOM_MAC`: behind the link-layer header.
const ROOM_MAC: u32 = 1;
/// `BPF_F_ADJ_ROOM_NO_CSUM_RESET`
const KEEP_CHECKSUM: u64 = 1 << 5;

/// Bytes of an IPv4 packet that its error bears: the longest header, and what the kernel asks for of a
/// packet whose TCP checksum is still to be made.
const BORNE4: usize = 80;
/// The same of IPv6, with room for further headers.
const BORNE6: usize = 128;

/// Bit of what [`mtu`] gives: the packet is too big.
pub const EXCEEDED: u64 = 1 << 32;

/// The MTU of an interface, and perhaps [`EXCEEDED`].
#[inline(never)]
pub fn mtu(packet: &Packet, ifindex: u32) -> u64 {
    let skb = packet.skb;
    // Of a packet that will be split the segments count; else what is behind the link-layer header,
    // because the other interface's may be longer or shorter.
    let (mut length, flags) = if field!(skb, gso_size) != 0 {
        (0, BPF_MTU_CHK_SEGS.into())
    } else {
        (field!(skb, len).wrapping_sub(packet.link), 0)
    };
    // SAFETY: `length` outlives the call.
    let result = unsafe { bpf_check_mtu(skb.cast(), ifindex, &raw mut length, 0, flags) };
    // Negative: there is no such interface, and the packet goes nowhere.
    if result > 0 {
        EXCEEDED | u64::from(length)
    } else {
        u64::from(length)
    }
}

/// Makes an ICMP error of the packet and has it arrive at the interface that the packet was leaving by.
#[inline(never)]
pub fn tell(packet: &Packet, mtu: u32) -> i32 {
    // No error is about a later fragment (RFC 1122 section 3.2.2).
    let made = packet.transport.shape == shape::WHOLE
        && if packet.is_v4() {
            fragmentation_needed(packet, mtu)
        } else {
            packet_too_big(packet, mtu)
        };
    let skb = packet.skb;
    if !made
        || packet.link != 0 && !link::address_to(skb, packet.link, &link::own_mac(skb, packet.link))
    {
        return DROP;
    }
    let mark = field!(skb, mark) & !globals::MARK_MASK.load();
    set_field!(mark, skb, mark);
    let ifindex = field!(skb, ifindex);
    // SAFETY: takes numbers.
    unsafe { bpf_redirect(ifindex, BPF_F_INGRESS.into()) as i32 }
}

/// IPv4, RFC 1191: from the packet's destination, which its sender has a way from.
#[inline(never)]
fn fragmentation_needed(packet: &Packet, mtu: u32) -> bool {
    let (skb, link) = (packet.skb, packet.link);
    let mut borne = [0_u32; BORNE4 / 4];
    if !cut(packet, &mut borne, 28) {
        return false;
    }
    let mut icmp = [0x0304_0000_u32.to_be(), (mtu & 0xffff).to_be()];
    let sum = add(&mut icmp, 0);
    let sum = checksum(add(&mut borne, sum));
    icmp[0] |= u32::from(sum).to_be() & 0x0000_ffff_u32.to_be();
    let headers = &packet.headers;
    let mut ip = [
        (0x45c0_0000 | 28 + BORNE4 as u32).to_be(),
        0,
        0x4001_0000_u32.to_be(),
        headers.destination.0[3],
        headers.source.0[3],
    ];
    let sum = checksum(add(&mut ip, 0));
    ip[2] |= u32::from(sum).to_be() & 0x0000_ffff_u32.to_be();
    store(skb, link, &ip) && store(skb, link + 20, &icmp)
}

/// IPv6, RFC 4443 section 3.2.
#[inline(never)]
fn packet_too_big(packet: &Packet, mtu: u32) -> bool {
    let (skb, link) = (packet.skb, packet.link);
    let mut borne = [0_u32; BORNE6 / 4];
    if !cut(packet, &mut borne, 48) {
        return false;
    }
    const LENGTH: u32 = 8 + BORNE6 as u32;
    let mut icmp = [0x0200_0000_u32.to_be(), mtu.to_be()];
    let headers = &packet.headers;
    let (mut source, mut destination) = (headers.destination.0, headers.source.0);
    let mut pseudo = [LENGTH.to_be(), 58_u32.to_be()];
    let sum = add(
        &mut source,
        add(&mut destination, add(&mut pseudo, add(&mut icmp, 0))),
    );
    let sum = checksum(add(&mut borne, sum));
    icmp[0] |= u32::from(sum).to_be() & 0x0000_ffff_u32.to_be();
    let ip = [
        0x6000_0000_u32.to_be(),
        (LENGTH << 16 | 58 << 8 | 255).to_be(),
    ];
    store(skb, link, &ip)
        && store(skb, link + 8, &source)
        && store(skb, link + 24, &destination)
        && store(skb, link + 40, &icmp)
}

/// Reads what is borne, cuts the rest off, and makes room for `room` bytes of headers.
#[inline(always)]
fn cut<const WORDS: usize>(packet: &Packet, borne: &mut [u32; WORDS], room: i32) -> bool {
    let (skb, link) = (packet.skb, packet.link);
    let length = (WORDS * 4) as u32;
    // SAFETY: the buffer has the length that is told; the rest takes numbers.
    unsafe {
        bpf_skb_load_bytes(skb.cast(), link, borne.as_mut_ptr().cast(), length) == 0
            && bpf_skb_change_tail(skb, link + length, 0) == 0
            && bpf_skb_adjust_room(skb, room, ROOM_MAC, KEEP_CHECKSUM) == 0
    }
}

/// Adds words to a partial checksum.
#[inline(always)]
fn add<const WORDS: usize>(words: &mut [u32; WORDS], sum: u32) -> u32 {
    let length = (WORDS * 4) as u32;
    // SAFETY: the words have the length that is told.
    unsafe { bpf_csum_diff(core::ptr::null_mut(), 0, words.as_mut_ptr(), length, sum) as u32 }
}

/// The checksum of a partial one, as a number.
#[inline(always)]
fn checksum(sum: u32) -> u16 {
    let sum = (sum & 0xffff) + (sum >> 16);
    let sum = (sum & 0xffff) + (sum >> 16);
    u16::from_be(!(sum as u16))
}
