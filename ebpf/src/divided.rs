//! Where a packet must be whose owner's flows go more than one way: by rules, or spread over members.
//!
//! A connected flow is where it was put, whatever is chosen now. Any other packet is judged by what would be
//! decided for just this one. Where that cannot be told, because it is a later fragment and its ports count,
//! or because its headers make no sense, it must be where the socket's memory says; a strict owner's without
//! memory is nowhere right.

use aya_ebpf::{
    bindings::{__sk_buff, bpf_sock},
    helpers::generated::{bpf_get_socket_cookie, bpf_sk_fullsock},
};
use steer_common::{flow_flags, rules::has_ports, verdict};

use crate::{
    address::Address,
    decision::{choose, chosen, stays},
    judge::{Judgement, Memory},
    owner::Owner,
    packet::{self, Headers, shape},
    share::member_of_packet,
    sock::{self, AF_PACKET, CONNECTED, SOCK_DGRAM, SOCK_STREAM, field},
    tuple::Tuple,
};

/// Bit of what [`expected`] gives: the rule names destinations, so it holds for those at other interfaces.
pub const NAMED: u64 = 1 << 32;

/// The domain at which a packet must be about which is asked, or 0, and perhaps [`NAMED`].
///
/// What an application leaves open is decided without a source, and then has one: so what would be decided
/// with the source that it has is right only if the other is not.
#[inline(always)]
pub fn expected(skb: *mut __sk_buff, asked: &Judgement) -> u64 {
    let (owner, memory) = (&raw const asked.owner, &raw const asked.memory);
    let open = expected_of_rules(skb, owner, memory, WITHOUT_SOURCE);
    let found = where_right(skb, open);
    if found != 0 || open & SOURCE_KNOWN != 0 {
        return if found != 0 { found } else { open & SAID };
    }
    let by_source = expected_of_rules(skb, owner, memory, 0);
    let found = where_right(skb, by_source);
    if found != 0 { found } else { open & SAID }
}

/// What was said, with the domain at which the packet is right as it is. 0: it is right nowhere, or that need
/// not be asked.
#[inline(always)]
fn where_right(skb: *mut __sk_buff, said: u64) -> u64 {
    let choice = (said >> CHOICE_SHIFT) as u32;
    if said & SOURCE_KNOWN != 0 && choice == 0 {
        return 0;
    }
    match member_of_packet(skb, said as u32, choice) {
        0 => 0,
        domain => said & NAMED | u64::from(domain),
    }
}

/// The source of a packet is not to count where the application may have left it open.
const WITHOUT_SOURCE: u32 = 1;
/// It counted all the same.
const SOURCE_KNOWN: u64 = 1 << 33;
/// From here on: the choice whose members the domain is one of, or 0.
const CHOICE_SHIFT: u32 = 40;
/// What is said to who asked.
const SAID: u64 = NAMED | 0xff;

/// A global function to the verifier, as those of `rules` are.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn expected_of_rules(
    skb: *mut __sk_buff,
    owner: *const Owner,
    memory: *const Memory,
    source: u32,
) -> u64 {
    // SAFETY: null, or an owner.
    let Some(owner) = (unsafe { owner.as_ref() }) else {
        return 0;
    };
    // SAFETY: null, or a memory.
    let Some(memory) = (unsafe { memory.as_ref() }) else {
        return 0;
    };
    let mut tuple = Tuple::NONE;
    let read = read_packet(skb, memory, &mut tuple);
    if read & READ == 0 {
        let choice = owner.choice();
        let own = if memory.domain != 0 {
            memory.domain
        } else if read & UNKNOWN == 0 && choice.verdict == verdict::STEER {
            choice.domain
        } else {
            0
        };
        return u64::from(own) | SOURCE_KNOWN;
    }
    let mut expected = SOURCE_KNOWN;
    if source == WITHOUT_SOURCE && read & OPEN != 0 {
        expected = 0;
        tuple.source = Address([0; 4]);
    }
    // SAFETY: the program's own packet.
    let found = choose(owner, &tuple, || unsafe {
        bpf_get_socket_cookie(skb.cast())
    });
    if found.is(chosen::SHARED) {
        expected |= u64::from(found.choice) << CHOICE_SHIFT;
    }
    if found.is(chosen::UNKNOWN) {
        return expected | u64::from(memory.domain) | SOURCE_KNOWN;
    }
    if found.is(chosen::NAMED) {
        expected |= NAMED;
    }
    let v4 = tuple.destination.is_v4();
    if stays(owner, &found, memory.choice, memory.domain, v4) {
        expected | u64::from(memory.domain)
    } else if found.verdict == verdict::STEER {
        expected | u64::from(found.domain)
    } else {
        expected
    }
}

/// What [`read_packet`] gives: the packet was read, and goes by rules and shares.
const READ: u32 = 1;
/// Its headers make no sense.
const UNKNOWN: u32 = 2;
/// The application may have left its source open.
const OPEN: u32 = 4;

/// Reads what rules and shares look at. Not [`READ`]: the packet is none that is steered by itself.
#[inline(never)]
fn read_packet(skb: *mut __sk_buff, memory: &Memory, tuple: &mut Tuple) -> u32 {
    let socket: *mut bpf_sock = field!(skb, __bindgen_anon_2.sk);
    if socket.is_null() {
        return 0;
    }
    // SAFETY: not null.
    let full = unsafe { bpf_sk_fullsock(socket) };
    let Some(headers) = packet::headers(skb) else {
        return 0;
    };
    if headers.destination.is_never_steered() {
        return 0;
    }
    let transport = packet::transport(skb, &headers, 0);
    if transport.shape == shape::BROKEN || packet::is_extension(transport.protocol) {
        return UNKNOWN;
    }
    let mut read = READ;
    if !full.is_null()
        && memory.flags & flow_flags::APP_BOUND == 0
        && field!(full, type_) == SOCK_DGRAM
        && field!(full, family) != AF_PACKET
    {
        read |= OPEN;
    }
    let ports = has_ports(transport.protocol as u8);
    tuple.source = headers.source;
    tuple.destination = headers.destination;
    tuple.protocol = transport.protocol;
    tuple.dscp = headers.dscp();
    if ports {
        tuple.source_port = transport.source_port;
        tuple.destination_port = transport.destination_port;
        tuple.without_ports = (transport.shape == shape::LATER).into();
    }
    read
}

/// Whether a packet belongs to its socket's connection: that is where it was put. A global function to the
/// verifier, as those of `rules` are.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn is_of_connection(skb: *mut __sk_buff) -> u32 {
    let socket: *mut bpf_sock = field!(skb, __bindgen_anon_2.sk);
    if socket.is_null() {
        return 0;
    }
    // SAFETY: not null.
    let full = unsafe { bpf_sk_fullsock(socket) };
    if full.is_null() {
        return 0;
    }
    let kind = field!(full, type_);
    if kind != SOCK_DGRAM || field!(full, state) != CONNECTED {
        return (kind == SOCK_STREAM).into();
    }
    match packet::headers(skb) {
        Some(headers) => {
            let same =
                sock::is_peer(full, headers.destination) && is_to_peer_port(skb, full, &headers);
            same.into()
        }
        None => 0,
    }
}

/// Whether a datagram goes to the port that its socket is connected to, as far as it has one.
#[inline(always)]
fn is_to_peer_port(skb: *mut __sk_buff, full: *mut bpf_sock, headers: &Headers) -> bool {
    let (mut protocol, mut at) = (u32::from(headers.protocol), u32::from(headers.end));
    if packet::is_extension(protocol) {
        let transport = packet::transport(skb, headers, 0);
        if transport.shape != shape::WHOLE {
            return true;
        }
        (protocol, at) = (transport.protocol, transport.offset);
    }
    if protocol != packet::UDP || at == 0 {
        return true;
    }
    match packet::load_words::<1>(skb, at) {
        Some([ports]) => sock::is_peer_port(full, u32::from_be(ports) & 0xffff),
        None => true,
    }
}
