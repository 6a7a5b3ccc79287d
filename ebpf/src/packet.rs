//! What the packet programs read from a packet.

use aya_ebpf::{
    bindings::{__sk_buff, bpf_sock},
    helpers::generated::bpf_skb_load_bytes_relative,
};

use crate::{
    address::Address,
    sock::{AF_PACKET, field},
};

const ETH_P_IP: u32 = 0x0800_u16.to_be() as u32;
const ETH_P_IPV6: u32 = 0x86dd_u16.to_be() as u32;
const HEADER_NETWORK: u32 = 1;
const IPPROTO_UDP: u8 = 17;
const SOCK_RAW: u32 = 3;

/// What the IP header of a packet says.
#[derive(Clone, Copy)]
pub struct Headers {
    /// Source address.
    pub source: Address,
    /// Destination address.
    pub destination: Address,
    /// Protocol after the header; where IPv6 has further headers, the first of them.
    pub protocol: u8,
    /// Where the header ends. 0: nothing of the protocol's own header follows, because this is a later
    /// fragment.
    pub end: u32,
}

/// Whether it is an IPv4 packet.
#[inline(always)]
pub fn is_v4(skb: *mut __sk_buff) -> bool {
    field!(skb, protocol) == ETH_P_IP
}

/// The source of `skb`; `None` where it is not IP.
#[inline(always)]
pub fn source(skb: *mut __sk_buff) -> Option<Address> {
    match field!(skb, protocol) {
        ETH_P_IP => Some(Address::v4(load_words_at::<1>(skb, 12)?[0])),
        ETH_P_IPV6 => Some(Address(load_words_at::<4>(skb, 8)?)),
        _ => None,
    }
}

/// Of `skb`; `None` where it is not IP.
#[inline(always)]
pub fn headers(skb: *mut __sk_buff) -> Option<Headers> {
    match field!(skb, protocol) {
        ETH_P_IP => {
            let header: [u32; 5] = load_words(skb)?;
            let is_later_fragment = u32::from_be(header[1]) & 0x1fff != 0;
            Some(Headers {
                source: Address::v4(header[3]),
                destination: Address::v4(header[4]),
                protocol: (u32::from_be(header[2]) >> 16 & 0xff) as u8,
                end: if is_later_fragment {
                    0
                } else {
                    (u32::from_be(header[0]) >> 24 & 0xf) * 4
                },
            })
        }
        ETH_P_IPV6 => {
            let header: [u32; 10] = load_words(skb)?;
            Some(Headers {
                source: Address([header[2], header[3], header[4], header[5]]),
                destination: Address([header[6], header[7], header[8], header[9]]),
                protocol: (u32::from_be(header[1]) >> 8 & 0xff) as u8,
                end: 40,
            })
        }
        _ => None,
    }
}

/// Whether a packet is not its socket's own but a wrapping of it in UDP: WireGuard clears `tc_index`,
/// but leaves the inner socket on the packets that carry its flows.
#[inline(always)]
pub fn wraps(skb: *mut __sk_buff, full: *mut bpf_sock, headers: &Headers) -> bool {
    // Raw and packet sockets write headers themselves.
    if headers.protocol != IPPROTO_UDP
        || full.is_null()
        || field!(full, type_) == SOCK_RAW
        || field!(full, family) == AF_PACKET
    {
        return false;
    }
    if field!(full, protocol) != u32::from(IPPROTO_UDP) {
        return true;
    }
    if headers.end == 0 {
        return false;
    }
    match load::<2>(skb, headers.end) {
        Some(port) => u32::from(u16::from_be_bytes(port)) != field!(full, src_port),
        None => false,
    }
}

#[inline(always)]
pub fn load_words<const WORDS: usize>(skb: *mut __sk_buff) -> Option<[u32; WORDS]> {
    load_words_at(skb, 0)
}

#[inline(always)]
fn load_words_at<const WORDS: usize>(skb: *mut __sk_buff, offset: u32) -> Option<[u32; WORDS]> {
    let mut words = [0_u32; WORDS];
    // SAFETY: the buffer has the length that is told.
    let result = unsafe {
        bpf_skb_load_bytes_relative(
            skb.cast(),
            offset,
            words.as_mut_ptr().cast(),
            (WORDS * 4) as u32,
            HEADER_NETWORK,
        )
    };
    (result == 0).then_some(words)
}

#[inline(always)]
pub fn load<const LENGTH: usize>(skb: *mut __sk_buff, offset: u32) -> Option<[u8; LENGTH]> {
    let mut bytes = [0_u8; LENGTH];
    // SAFETY: the buffer has the length that is told.
    let result = unsafe {
        bpf_skb_load_bytes_relative(
            skb.cast(),
            offset,
            bytes.as_mut_ptr().cast(),
            LENGTH as u32,
            HEADER_NETWORK,
        )
    };
    (result == 0).then_some(bytes)
}
