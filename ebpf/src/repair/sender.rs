//! Which packets are repaired at all: those of sockets that no socket program could decide, and whose
//! application did not choose for itself.

use aya_ebpf::bindings::{__sk_buff, bpf_sock};
use steer_common::flow_flags;

use super::Packet;
use crate::{
    decision::Domain,
    flow, globals,
    owner::Owner,
    packet::{self, ICMP, ICMPV6, TCP, TCP_ACK, TCP_SYN, UDP},
    sock::{self, AF_PACKET, CONNECTED, SOCK_DGRAM, SOCK_RAW, SOCK_STREAM, field},
};

/// Nothing of it is repaired.
pub const NOT_OURS: u32 = 0;
/// A socket for which nothing was decided.
pub const UNDECIDED: u32 = 1;
/// A socket that was put on a domain: only ICMP goes by the decision of the moment.
pub const DECIDED: u32 = 2;
/// The same, and its datagrams move when the decision changes.
pub const MOVES: u32 = 3;
/// No socket of this host: what the packet itself says is all there is. A socket's type is never 0 but
/// where a packet has none of its own.
pub const NOBODY: u32 = 4;

/// What the socket of a packet is to repair.
#[inline(always)]
pub fn of(skb: *mut __sk_buff, full: *mut bpf_sock, owner: &Owner) -> u32 {
    if full.is_null() {
        return NOT_OURS;
    }
    if field!(full, type_) == 0 {
        return NOBODY;
    }
    if field!(full, family) == AF_PACKET || field!(full, bound_dev_if) != 0 {
        return NOT_OURS;
    }
    let mark = field!(full, mark);
    // A domain's mark as a control message, or from something else that uses our bits. Other bits that the
    // packet has and its socket has not are none of ours: filters of others set them on all that leaves, and
    // they stay on what is repaired.
    if (mark ^ field!(skb, mark)) & globals::MARK_MASK.load() != 0 {
        return NOT_OURS;
    }
    let mut decided = false;
    if mark != 0 {
        if Domain::mark_of(sock::marked_domain(full)) != Some(mark) {
            return NOT_OURS;
        }
        decided = true;
    }
    if let Some(flow) = flow::get(full) {
        if flow.flags & (flow_flags::FOREIGN | flow_flags::APP_BOUND) != 0 {
            return NOT_OURS;
        }
        if flow.flags & flow_flags::DECIDED != 0 {
            // Passed on purpose.
            if flow.domain == 0 {
                return NOT_OURS;
            }
            decided = true;
        }
    }
    if !decided {
        UNDECIDED
    } else if owner.moves() {
        MOVES
    } else {
        DECIDED
    }
}

/// Whether the packet is one that its socket itself sent, and of a kind that is repaired.
///
/// The inner socket of a tunnel's packets is on the outer ones too.
#[inline(always)]
pub fn sent(packet: &Packet, full: *mut bpf_sock) -> bool {
    let (transport, sender) = (&packet.transport, packet.sender);
    if sender == NOBODY {
        return match transport.protocol {
            UDP | TCP => true,
            protocol => packet::is_echo_request(protocol, transport.detail),
        };
    }
    if full.is_null() || field!(full, protocol) != transport.protocol {
        return false;
    }
    let kind = field!(full, type_);
    match transport.protocol {
        UDP => {
            sender != DECIDED
                && kind == SOCK_DGRAM
                && field!(full, state) == CONNECTED
                && field!(full, src_port) == transport.source_port
                // To another destination that was told with it: `sendmsg` has decided.
                && sock::is_peer(full, packet.headers.destination)
                && sock::is_peer_port(full, transport.destination_port)
        }
        TCP => {
            sender == UNDECIDED
                && kind == SOCK_STREAM
                && field!(full, src_port) == transport.source_port
        }
        ICMP | ICMPV6 => {
            (kind == SOCK_RAW || kind == SOCK_DGRAM)
                && packet::is_echo_request(transport.protocol, transport.detail)
                && (field!(full, state) == CONNECTED || !has_source(packet, full))
        }
        _ => false,
    }
}

/// Whether a TCP packet may begin a lease: the first of a connection, sent again.
#[inline(always)]
pub fn begins(packet: &Packet) -> bool {
    packet.transport.protocol != TCP || packet.transport.detail & (TCP_SYN | TCP_ACK) == TCP_SYN
}

/// Whether an unconnected socket has a source: the application bound it.
#[inline(always)]
fn has_source(packet: &Packet, full: *mut bpf_sock) -> bool {
    let [source4, source6] = sock::sources(full);
    if packet.is_v4() {
        !source4.is_unspecified()
    } else {
        !source6.is_unspecified()
    }
}
