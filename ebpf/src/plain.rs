//! Packets as most are: TCP or UDP right behind an IP header without options, in one piece. They are read where
//! they lie, without a call.

use core::{mem::MaybeUninit, ptr::read_volatile};

use aya_ebpf::bindings::__sk_buff;

use crate::{
    address::Address,
    packet::{self, ETHERNET, TCP, Transport, UDP, fragment, shape},
    sock::field,
    stack,
};

/// What such a packet says. Words alone, as in [`crate::tuple::Tuple`].
#[repr(C, align(8))]
#[derive(Clone, Copy)]
pub struct Plain {
    /// Source address.
    pub source: Address,
    /// Destination address.
    pub destination: Address,
    /// The ports as they stand there, source first.
    pub ports: u32,
    /// The first word of the IP header as it stands there, without length or flow label.
    pub class: u32,
    /// [`TCP`] or [`UDP`].
    pub protocol: u32,
    /// Flags of TCP.
    pub flags: u32,
    /// Bytes of the IP header.
    pub network: u32,
    /// Bytes of the transport header.
    pub header: u32,
}

/// Reads an IP packet behind `link` bytes. `None`: it is none of these, or its headers are not in one piece.
#[inline(always)]
pub fn read(skb: *mut __sk_buff, link: u32, place: &mut MaybeUninit<Plain>) -> Option<&Plain> {
    let place = stack::zeroed(place);
    (read_plain(skb, link, place) != 0).then_some(place)
}

// SAFETY: numbers alone.
unsafe impl stack::Numbers for Plain {}

/// 0: it is none. A global function to the verifier, as those of `rules` are.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn read_plain(skb: *mut __sk_buff, link: u32, place: *mut Plain) -> u32 {
    // SAFETY: null, or room that nobody else uses.
    let Some(place) = (unsafe { place.as_mut() }) else {
        return 0;
    };
    match plain(skb, link) {
        Some(found) => {
            *place = found;
            1
        }
        None => 0,
    }
}

#[inline(always)]
fn plain(skb: *mut __sk_buff, link: u32) -> Option<Plain> {
    let start = field!(skb, data) as usize + if link == 0 { 0 } else { ETHERNET as usize };
    let end = field!(skb, data_end) as usize;
    // SAFETY: the verifier checks every access to a packet. What is read is within what was found to be there.
    let word = |at: usize| unsafe { read_volatile((start + at) as *const u32) };
    let there = field!(skb, len).wrapping_sub(link);
    if packet::is_v4(skb) {
        const NETWORK: usize = 20;
        if start + NETWORK + 8 > end {
            return None;
        }
        let (first, second) = (word(0), word(4));
        // No options; neither more to come nor offset.
        let plain = u32::from_be(first) >> 24 == 0x45 && u32::from_be(second) & 0x3fff == 0;
        let length = u32::from_be(first) & 0xffff;
        let mut found = Plain {
            source: Address::v4(word(12)),
            destination: Address::v4(word(16)),
            ports: word(NETWORK),
            class: first & 0xffff_0000_u32.to_be(),
            protocol: u32::from_be(word(8)) >> 16 & 0xff,
            flags: 0,
            network: NETWORK as u32,
            header: 8,
        };
        if found.protocol == TCP {
            if start + NETWORK + 20 > end {
                return None;
            }
            found.is_tcp(word(NETWORK + 12));
        }
        (plain && found.fits(length, there)).then_some(found)
    } else {
        const NETWORK: usize = 40;
        if start + NETWORK + 8 > end {
            return None;
        }
        let (first, second) = (word(0), word(4));
        let length = (u32::from_be(second) >> 16) + NETWORK as u32;
        let mut found = Plain {
            source: Address([word(8), word(12), word(16), word(20)]),
            destination: Address([word(24), word(28), word(32), word(36)]),
            ports: word(NETWORK),
            class: first & 0xfff0_0000_u32.to_be(),
            protocol: u32::from_be(second) >> 8 & 0xff,
            flags: 0,
            network: NETWORK as u32,
            header: 8,
        };
        if found.protocol == TCP {
            if start + NETWORK + 20 > end {
                return None;
            }
            found.is_tcp(word(NETWORK + 12));
        }
        // No IPv4 address belongs here.
        let plain =
            u32::from_be(first) >> 28 == 6 && !found.source.is_v4() && !found.destination.is_v4();
        (plain && found.fits(length, there)).then_some(found)
    }
}

impl Plain {
    /// What follows its IP header.
    #[inline(always)]
    pub fn transport(&self) -> Transport {
        let ports = u32::from_be(self.ports);
        Transport {
            shape: shape::WHOLE,
            protocol: self.protocol,
            offset: self.network,
            source_port: ports >> 16,
            destination_port: ports & 0xffff,
            detail: self.flags,
            fragment: fragment::NONE,
            id: 0,
        }
    }

    /// `word`: the one of a TCP header that has its length and flags.
    #[inline(always)]
    fn is_tcp(&mut self, word: u32) {
        let word = u32::from_be(word);
        self.flags = word >> 16 & 0xff;
        self.header = word >> 28 << 2;
    }

    /// Whether it is one of these, and as long as it says. Longer ones that do not say it (RFC 2675, and the
    /// kernel's own before they are split) are none.
    #[inline(always)]
    fn fits(&self, length: u32, there: u32) -> bool {
        (self.protocol == TCP && self.header >= 20 || self.protocol == UDP)
            && length >= self.network + self.header
            && length <= there
    }
}
