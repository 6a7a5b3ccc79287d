//! Addresses and the destinations that are never steered.

use steer_common::{LocalEntry, SourceKey};

use crate::maps::{LOCALS4, LOCALS6, SOURCES};
use aya_ebpf::btf_maps::lpm_trie::Key;

/// An address as four words in network byte order; IPv4 as v4-mapped IPv6.
#[derive(Clone, Copy)]
pub struct Address(pub [u32; 4]);

const MAPPED: u32 = 0x0000_ffff_u32.to_be();

impl Address {
    /// An IPv4 address, network byte order.
    #[inline(always)]
    pub fn v4(word: u32) -> Self {
        Self([0, 0, MAPPED, word])
    }

    /// Whether this is IPv4.
    #[inline(always)]
    pub fn is_v4(self) -> bool {
        self.0[0] == 0 && self.0[1] == 0 && self.0[2] == MAPPED
    }

    /// Word by word: comparing arrays would call `memcmp`, which programs do not have.
    #[inline(always)]
    pub fn equals(self, other: Self) -> bool {
        self.0[0] == other.0[0]
            && self.0[1] == other.0[1]
            && self.0[2] == other.0[2]
            && self.0[3] == other.0[3]
    }

    /// `0.0.0.0` or `::`.
    #[inline(always)]
    pub fn is_unspecified(self) -> bool {
        self.0[0] == 0
            && self.0[1] == 0
            && (self.0[2] == 0 || self.0[2] == MAPPED)
            && self.0[3] == 0
    }

    /// `127.0.0.0/8` or `::1`.
    #[inline(always)]
    pub fn is_loopback(self) -> bool {
        if self.is_v4() {
            u32::from_be(self.0[3]) >> 24 == 127
        } else {
            self.0[0] == 0 && self.0[1] == 0 && self.0[2] == 0 && self.0[3] == 1_u32.to_be()
        }
    }

    /// `224.0.0.0/4`, `255.255.255.255` or `ff00::/8`.
    #[inline(always)]
    pub fn is_multicast_or_broadcast(self) -> bool {
        if self.is_v4() {
            let word = u32::from_be(self.0[3]);
            word >> 28 == 0xe || word == u32::MAX
        } else {
            u32::from_be(self.0[0]) >> 24 == 0xff
        }
    }

    /// `169.254.0.0/16` or `fe80::/10`.
    #[inline(always)]
    pub fn is_link_local(self) -> bool {
        if self.is_v4() {
            u32::from_be(self.0[3]) >> 16 == 0xa9fe
        } else {
            u32::from_be(self.0[0]) >> 22 == 0xfe80 >> 6
        }
    }

    /// Destinations that no policy moves: they mean this host or this link.
    #[inline(always)]
    pub fn is_never_steered(self) -> bool {
        self.is_unspecified()
            || self.is_loopback()
            || self.is_link_local()
            || self.is_multicast_or_broadcast()
    }

    /// Whether it is an address of `domain`.
    #[inline(always)]
    pub fn belongs_to(self, domain: u32) -> bool {
        let key = SourceKey {
            domain,
            address: self.bytes(),
        };
        SOURCES.get_ptr(&key).is_some()
    }

    /// The longest prefix in `LOCALS4` or `LOCALS6` that holds it.
    #[inline(always)]
    pub fn local(self) -> Option<&'static LocalEntry> {
        if self.is_v4() {
            LOCALS4.get(&Key::new(32, self.0[3].to_ne_bytes()))
        } else {
            LOCALS6.get(&Key::new(128, self.bytes()))
        }
    }

    /// Of bytes in network byte order; IPv4 as v4-mapped IPv6.
    #[inline(always)]
    pub fn from_bytes(bytes: [u8; 16]) -> Self {
        // SAFETY: same size, every bit pattern is valid.
        Self(unsafe { core::mem::transmute::<[u8; 16], [u32; 4]>(bytes) })
    }

    /// Network byte order.
    #[inline(always)]
    pub fn bytes(self) -> [u8; 16] {
        // SAFETY: same size, every bit pattern is valid.
        unsafe { core::mem::transmute(self.0) }
    }
}
