//! What the packet programs read from a packet, in two stages.
//!
//! [`headers`] reads the IP header's fixed part, which is all that most packets need: one load.
//! [`transport`] walks what follows, and says of every packet which of four it is ([`shape`]).

use core::mem::MaybeUninit;

use aya_ebpf::{
    bindings::{__sk_buff, bpf_sock},
    helpers::generated::{bpf_skb_load_bytes, bpf_skb_load_bytes_relative},
};

use steer_common::rules::has_ports;

use crate::{
    address::Address,
    sock::{AF_PACKET, SOCK_RAW, field},
};

const ETH_P_IP: u32 = 0x0800_u16.to_be() as u32;
const ETH_P_IPV6: u32 = 0x86dd_u16.to_be() as u32;
const ETH_P_8021Q: u32 = 0x8100_u16.to_be() as u32;
const ETH_P_8021AD: u32 = 0x88a8_u16.to_be() as u32;
const HEADER_NETWORK: u32 = 1;

/// `IPPROTO_ICMP`
pub const ICMP: u32 = 1;
/// `IPPROTO_TCP`
pub const TCP: u32 = 6;
/// `IPPROTO_UDP`
pub const UDP: u32 = 17;
/// `IPPROTO_ICMPV6`
pub const ICMPV6: u32 = 58;

const HOP_BY_HOP: u32 = 0;
const ROUTING: u32 = 43;
const FRAGMENT: u32 = 44;
const DESTINATION: u32 = 60;

/// Headers between IP and transport that are walked; a packet with more is [`shape::OPAQUE`].
///
/// RFC 8200 section 4.1 knows seven, of which destination options may be there twice.
const MAX_EXTENSIONS: u32 = 8;

/// Length of an Ethernet header.
pub const ETHERNET: u32 = 14;

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
    pub end: u8,
    /// The first two words, network byte order: version, length; IPv4 also identification and fragment.
    start: [u32; 2],
}

/// Whether a protocol is a header of IPv6 that is walked: as that of a [`Transport`] it says nothing.
#[inline(always)]
pub fn is_extension(protocol: u32) -> bool {
    protocol == HOP_BY_HOP || protocol == ROUTING || protocol == DESTINATION || protocol == FRAGMENT
}

/// Whether it is an IPv4 packet.
#[inline(always)]
pub fn is_v4(skb: *mut __sk_buff) -> bool {
    field!(skb, protocol) == ETH_P_IP
}

/// Whether it is an IPv6 packet.
#[inline(always)]
pub fn is_v6(skb: *mut __sk_buff) -> bool {
    field!(skb, protocol) == ETH_P_IPV6
}

/// The source of `skb`; `None` where it is not IP.
#[inline(always)]
pub fn source(skb: *mut __sk_buff) -> Option<Address> {
    match field!(skb, protocol) {
        ETH_P_IP => Some(Address::v4(load_words::<1>(skb, 12)?[0])),
        ETH_P_IPV6 => Some(Address(load_words::<4>(skb, 8)?)),
        _ => None,
    }
}

/// Of `skb`; `None` where it is not IP, or ends within the header.
#[inline(always)]
pub fn headers(skb: *mut __sk_buff) -> Option<Headers> {
    headers_at(skb, 0)
}

/// Of the packet at `base` in `skb`, of the same version of IP.
#[inline(always)]
pub fn headers_at(skb: *mut __sk_buff, base: u32) -> Option<Headers> {
    match field!(skb, protocol) {
        ETH_P_IP => {
            let header: [u32; 5] = load_words(skb, base)?;
            let is_later_fragment = u32::from_be(header[1]) & 0x1fff != 0;
            Some(Headers {
                source: Address::v4(header[3]),
                destination: Address::v4(header[4]),
                protocol: (u32::from_be(header[2]) >> 16 & 0xff) as u8,
                end: if is_later_fragment {
                    0
                } else {
                    (u32::from_be(header[0]) >> 24 & 0xf) as u8 * 4
                },
                start: [header[0], header[1]],
            })
        }
        ETH_P_IPV6 => {
            let header: [u32; 10] = load_words(skb, base)?;
            Some(Headers {
                source: Address([header[2], header[3], header[4], header[5]]),
                destination: Address([header[6], header[7], header[8], header[9]]),
                protocol: (u32::from_be(header[1]) >> 8 & 0xff) as u8,
                end: 40,
                start: [header[0], header[1]],
            })
        }
        _ => None,
    }
}

impl Headers {
    /// Differentiated services code point.
    #[inline(always)]
    pub fn dscp(&self) -> u32 {
        let word = u32::from_be(self.start[0]);
        if self.source.is_v4() {
            word >> 18 & 0x3f
        } else {
            word >> 22 & 0x3f
        }
    }
}

/// Values of [`Transport::shape`].
pub mod shape {
    /// The transport header begins at its offset, and what is asked about it was read.
    pub const WHOLE: u16 = 1;
    /// A later fragment: of the transport nothing is here. Protocol and identification are known.
    pub const LATER: u16 = 2;
    /// Intact as far as it was read, but without anything that tells flows apart: another protocol, ESP,
    /// no next header, an ICMP message that is neither echo nor error, more headers than are walked, or
    /// a source that must stay because it is signed (AH) or the way is not at its end (routing header).
    pub const OPAQUE: u16 = 3;
    /// A header says what cannot be, or ends behind the packet's end. To be left as it is.
    pub const BROKEN: u16 = 4;
}

/// Values of [`Transport::fragment`].
pub mod fragment {
    /// The whole packet.
    pub const NONE: u16 = 0;
    /// The first fragment: the transport header is here, what follows it is not.
    pub const FIRST: u16 = 1;
    /// A later fragment.
    pub const LATER: u16 = 2;
}

/// What follows the IP header. Only with [`shape::WHOLE`] are `offset` and `detail` meant, and
/// ports also with [`shape::OPAQUE`].
#[derive(Clone, Copy)]
pub struct Transport {
    /// One of [`shape`].
    pub shape: u16,
    /// Protocol behind all other headers.
    pub protocol: u32,
    /// Where its header begins, from the IP header on.
    pub offset: u32,
    /// Port of a protocol that has some, or identifier of an ICMP echo.
    pub source_port: u32,
    /// Port of a protocol that has some, or 0.
    pub destination_port: u32,
    /// Flags of TCP, type of ICMP.
    pub detail: u32,
    /// One of [`fragment`].
    pub fragment: u16,
    /// Identification of the fragments.
    pub id: u32,
}

/// `SYN`
pub const TCP_SYN: u32 = 0x02;
/// `RST`
pub const TCP_RST: u32 = 0x04;
/// `ACK`
pub const TCP_ACK: u32 = 0x10;

/// Walks from the IP header of `skb`, which `headers` tells, to the transport's. `link`: bytes in front
/// of the IP header, as [`link_header`] says.
#[inline(always)]
pub fn transport(skb: *mut __sk_buff, headers: &Headers, link: u32) -> Transport {
    let there = field!(skb, len).wrapping_sub(link);
    match end(skb, headers, there) {
        Some(end) => walk::<false>(skb, headers, 0, end),
        None => Transport::BROKEN,
    }
}

/// As [`transport`] for the packet at `base` that an ICMP error bears: its end may be missing, and of the
/// transport header no more than eight bytes are asked for.
#[inline(always)]
pub fn borne_transport(skb: *mut __sk_buff, headers: &Headers, base: u32, link: u32) -> Transport {
    let version = if headers.source.is_v4() { 4 } else { 6 };
    if u32::from_be(headers.start[0]) >> 28 != version {
        return Transport::BROKEN;
    }
    walk::<true>(skb, headers, base, field!(skb, len).wrapping_sub(link))
}

impl Transport {
    const BROKEN: Self = Self {
        shape: shape::BROKEN,
        protocol: 0,
        offset: 0,
        source_port: 0,
        destination_port: 0,
        detail: 0,
        fragment: fragment::NONE,
        id: 0,
    };
}

#[inline(always)]
fn walk<const BORNE: bool>(
    skb: *mut __sk_buff,
    headers: &Headers,
    base: u32,
    end: u32,
) -> Transport {
    let mut transport = Transport {
        protocol: headers.protocol.into(),
        ..Transport::BROKEN
    };
    let v4 = headers.source.is_v4();
    let mut offset;
    if v4 {
        let second = u32::from_be(headers.start[1]);
        transport.id = second >> 16;
        if second & 0x1fff != 0 {
            transport.shape = shape::LATER;
            transport.fragment = fragment::LATER;
            return transport;
        }
        if second & 0x2000 != 0 {
            transport.fragment = fragment::FIRST;
        }
        offset = base + u32::from(headers.end);
        if headers.end < 20 || offset > end {
            return transport;
        }
    } else {
        offset = base + 40;
        let mut walked = 0;
        loop {
            let next = transport.protocol;
            if !is_extension(next) {
                break;
            }
            if walked == MAX_EXTENSIONS {
                transport.shape = shape::OPAQUE;
                return transport;
            }
            walked += 1;
            if offset + 8 > end {
                return transport;
            }
            let Some([first, second]) = load_words::<2>(skb, offset) else {
                return transport;
            };
            let (first, second) = (u32::from_be(first), u32::from_be(second));
            if next == FRAGMENT {
                if transport.fragment != fragment::NONE {
                    return transport;
                }
                transport.protocol = first >> 24;
                transport.id = second;
                if first & 0xfff8 != 0 {
                    transport.fragment = fragment::LATER;
                    transport.shape = shape::LATER;
                    return transport;
                }
                // Neither offset nor more to come: an atomic fragment (RFC 6946), which is whole.
                if first & 1 != 0 {
                    transport.fragment = fragment::FIRST;
                }
                offset += 8;
            } else {
                if next == ROUTING && first & 0xff != 0 {
                    transport.shape = shape::OPAQUE;
                    return transport;
                }
                transport.protocol = first >> 24;
                offset += ((first >> 16 & 0xff) + 1) * 8;
            }
            if offset > end {
                return transport;
            }
        }
    }
    transport.offset = offset;
    let needed = match transport.protocol {
        TCP if !BORNE => 20,
        TCP => 8,
        UDP | ICMP | ICMPV6 => 8,
        _ => 0,
    };
    if offset + needed > end {
        return transport;
    }
    let Some([first, second]) = load_words::<2>(skb, offset) else {
        // Less than is asked for of those; of others nothing is.
        if needed == 0 {
            transport.shape = shape::OPAQUE;
        }
        return transport;
    };
    let (first, second) = (u32::from_be(first), u32::from_be(second));
    transport.shape = match transport.protocol {
        TCP if BORNE => shape::WHOLE,
        TCP => {
            let Some([word]) = load_words::<1>(skb, offset + 12) else {
                return transport;
            };
            transport.detail = u32::from_be(word) >> 16 & 0xff;
            shape::WHOLE
        }
        UDP => shape::WHOLE,
        ICMP | ICMPV6 => {
            transport.detail = first >> 24;
            if v4 != (transport.protocol == ICMP) {
                shape::OPAQUE
            } else if is_echo(transport.protocol, transport.detail) {
                transport.source_port = second >> 16;
                shape::WHOLE
            } else if is_error(transport.protocol, transport.detail) {
                shape::WHOLE
            } else {
                shape::OPAQUE
            }
        }
        _ => shape::OPAQUE,
    };
    if has_ports(transport.protocol as u8) {
        transport.source_port = first >> 16;
        transport.destination_port = first & 0xffff;
    }
    transport
}

/// Where the IP packet ends, of which `there` bytes are there; `None` if it cannot end there.
///
/// What an interface pads a short packet with is behind its end.
#[inline(always)]
fn end(skb: *mut __sk_buff, headers: &Headers, there: u32) -> Option<u32> {
    let start = u32::from_be(headers.start[0]);
    let told = if headers.source.is_v4() {
        if start >> 28 != 4 {
            return None;
        }
        start & 0xffff
    } else {
        if start >> 28 != 6 {
            return None;
        }
        match u32::from_be(headers.start[1]) >> 16 {
            0 => 0,
            payload => payload + 40,
        }
    };
    if told == 0 {
        // So the kernel itself tells packets that are longer than can be told, and are split later; IPv6
        // has an option for such ones too (RFC 2675).
        if field!(skb, gso_size) != 0 || !headers.source.is_v4() && headers.protocol == 0 {
            return Some(there);
        }
        return (!headers.source.is_v4()).then_some(40);
    }
    (told <= there).then_some(told)
}

/// Echo request or reply.
#[inline(always)]
pub fn is_echo(protocol: u32, kind: u32) -> bool {
    is_echo_request(protocol, kind)
        || protocol == ICMP && kind == 0
        || protocol == ICMPV6 && kind == 129
}

/// Echo request.
#[inline(always)]
pub fn is_echo_request(protocol: u32, kind: u32) -> bool {
    protocol == ICMP && kind == 8 || protocol == ICMPV6 && kind == 128
}

/// Unreachable, too big, time exceeded, bad parameter, and IPv4's source quench: what bears the packet
/// that it is about. A redirect bears it too, but is about this link alone.
#[inline(always)]
pub fn is_error(protocol: u32, kind: u32) -> bool {
    protocol == ICMP && (kind == 3 || kind == 4 || kind == 11 || kind == 12)
        || protocol == ICMPV6 && kind >= 1 && kind <= 4
}

/// Bytes in front of the IP header: none, or those of Ethernet. `None`: another kind of link.
///
/// The kernel does not tell. An Ethernet header is never taken for an IP header: in its place there would
/// be a multicast address for IPv4, and a particular pair of addresses for IPv6.
#[inline(always)]
pub fn link_header(skb: *mut __sk_buff, headers: &Headers) -> Option<u32> {
    let start = field!(skb, data) as usize;
    let mut bytes = [0_u16; 12];
    if start + 24 <= field!(skb, data_end) as usize {
        // In one piece, as mostly.
        let mut at = 0;
        while at < 12 {
            // SAFETY: found to be there.
            bytes[at] = unsafe { ((start + at * 2) as *const u16).read_volatile() };
            at += 1;
        }
    } else {
        // SAFETY: the buffer has the length that is told. A packet that is shorter than this is none that
        // anything is done with: the least IP header takes 20 bytes, and the least transport 8.
        let result = unsafe { bpf_skb_load_bytes(skb.cast(), 0, bytes.as_mut_ptr().cast(), 24) };
        if result != 0 {
            return None;
        }
    }
    let word = |at: usize| u32::from(bytes[at].to_be()) << 16 | u32::from(bytes[at + 1].to_be());
    let is = |at: usize| {
        word(at) == u32::from_be(headers.start[0]) && word(at + 2) == u32::from_be(headers.start[1])
    };
    if is(0) {
        Some(0)
    } else if is(7) {
        Some(ETHERNET)
    } else {
        None
    }
}

/// Whether a frame that is no IP packet has the type in its Ethernet header that it is said to have: who writes
/// frames may say anything. A VLAN's frame is another network's.
#[inline(always)]
pub fn is_what_it_says(skb: *mut __sk_buff) -> bool {
    let mut written = 0_u16;
    // SAFETY: the buffer has the length that is told.
    let result = unsafe { bpf_skb_load_bytes(skb.cast(), 12, (&raw mut written).cast(), 2) };
    let written = u32::from(written);
    result == 0
        && written == field!(skb, protocol)
        && written != ETH_P_8021Q
        && written != ETH_P_8021AD
}

/// Whether a packet is not its socket's own but a wrapping of it in UDP: WireGuard clears `tc_index`,
/// but leaves the inner socket on the packets that carry its flows.
///
/// Not enough for a strict policy: a socket can give up its port (disconnect, with a datagram held back or under
/// way in another thread), and its own packet then looks like that.
#[inline(always)]
pub fn wraps(skb: *mut __sk_buff, full: *mut bpf_sock, headers: &Headers) -> bool {
    // Raw and packet sockets write headers themselves, and 0 is no socket's type but of a packet's without
    // any of its own.
    if u32::from(headers.protocol) != UDP
        || full.is_null()
        || field!(full, type_) == 0
        || field!(full, type_) == SOCK_RAW
        || field!(full, family) == AF_PACKET
    {
        return false;
    }
    if field!(full, protocol) != UDP {
        return true;
    }
    if headers.end == 0 {
        return false;
    }
    match load::<2>(skb, headers.end.into()) {
        Some(port) => u32::from(u16::from_be_bytes(port)) != field!(full, src_port),
        None => false,
    }
}

/// Words at `offset` from the IP header on, network byte order.
#[inline(always)]
pub fn load_words<const WORDS: usize>(skb: *mut __sk_buff, offset: u32) -> Option<[u32; WORDS]> {
    // Not zeroed first: the compiler would call `memset`, which costs.
    let mut words = MaybeUninit::<[u32; WORDS]>::uninit();
    let length = (WORDS * 4) as u32;
    // SAFETY: the buffer has the length that is told.
    let result = unsafe {
        bpf_skb_load_bytes_relative(
            skb.cast(),
            offset,
            words.as_mut_ptr().cast(),
            length,
            HEADER_NETWORK,
        )
    };
    // SAFETY: all of it was written.
    (result == 0).then(|| unsafe { words.assume_init() })
}

/// Bytes at `offset` from the IP header on.
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
