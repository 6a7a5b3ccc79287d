//! Repair: what no socket program could decide gets the right source and interface packet by packet, and
//! its answers find back.
//!
//! That is datagrams of connected sockets and SYNs of connections that are older than their policy, further
//! subflows of MPTCP, and ICMP echo requests, whose sockets are asked about no destination. All of it is
//! made better where that is possible and left as it is elsewhere: repair is for policies that are not
//! strict, whose flows may leave by any way.
//!
//! A flow has two leases: one by what its sender knows it by ([`lease`]), one by what its answers look like.
//! [`outbound`] runs at egress of every interface, [`way_back`] at ingress of the domains'.

mod borne;
mod fragments;
mod lease;
mod link;
mod rewrite;
mod sender;
pub mod socket;
mod too_big;

use core::mem::MaybeUninit;

use aya_ebpf::{
    bindings::{__sk_buff, BPF_F_INGRESS, TC_ACT_SHOT, TC_ACT_UNSPEC, bpf_sock},
    helpers::generated::{bpf_redirect, bpf_redirect_neigh, bpf_sk_fullsock},
};
use steer_common::{FragmentLease, RepairLease, counter};

use self::{borne::Borne, sender::NOBODY};
use crate::{
    address::Address,
    count::count,
    decision::Domain,
    globals,
    judge::{SHOWS, asks_for_echo, tag},
    owner::Owner,
    packet::{
        self, ETHERNET, Headers, TCP, TCP_RST, TCP_SYN, Transport, fragment, headers, link_header,
        shape, transport,
    },
    plain,
    sock::{field, set_field},
    stack,
};

/// The packet goes on as it is, with the next program of the chain.
const LEAVE: i32 = TC_ACT_UNSPEC;
/// Half rewritten, or too big: it goes nowhere.
const DROP: i32 = TC_ACT_SHOT as i32;

/// What was read of a packet. Words alone, as in [`crate::tuple::Tuple`].
#[repr(C, align(8))]
#[derive(Clone, Copy)]
struct Parts {
    headers: Headers,
    transport: Transport,
    /// Bytes in front of the IP header.
    link: u32,
    /// Whose it is, one of [`sender`].
    sender: u32,
}

// SAFETY: numbers alone.
unsafe impl stack::Numbers for Parts {}

impl Parts {
    /// Reads a packet. False: it is none that anything is done with.
    #[inline(always)]
    fn read(&mut self, skb: *mut __sk_buff, sender: u32) -> bool {
        self.sender = sender;
        match headers(skb) {
            Some(headers) => self.headers = headers,
            None => return false,
        }
        match link_header(skb, &self.headers) {
            Some(link) => self.link = link,
            None => return false,
        }
        self.transport = transport_of(skb, &self.headers, self.link);
        true
    }
}

/// What follows the IP header.
#[inline(always)]
fn transport_of(skb: *mut __sk_buff, headers: &Headers, link: u32) -> Transport {
    let mut place = MaybeUninit::uninit();
    match plain::read(skb, link, &mut place) {
        Some(found) => found.transport(),
        None => transport(skb, headers, link),
    }
}

/// A packet, as far as it was read.
struct Packet<'parts> {
    skb: *mut __sk_buff,
    parts: &'parts Parts,
}

impl core::ops::Deref for Packet<'_> {
    type Target = Parts;

    #[inline(always)]
    fn deref(&self) -> &Parts {
        self.parts
    }
}

impl Packet<'_> {
    #[inline(always)]
    fn is_v4(&self) -> bool {
        self.headers.source.is_v4()
    }
}

/// Puts a packet of a flow of policy `policy` on the domain that is right for it. The verdict; `None`: it is right as
/// it is, or is none that is repaired. `changes`: how many there were before it was judged.
#[inline(always)]
pub fn outbound(skb: *mut __sk_buff, policy: u32, changes: u32) -> Option<i32> {
    let verdict = repaired(skb, policy, changes);
    (verdict != LEAVE).then_some(verdict)
}

// Each step is a function of its own, so that the stack of one is free again for the next. This one is global to
// the verifier, as those of `rules` are.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn repaired(skb: *mut __sk_buff, policy: u32, changes: u32) -> i32 {
    let mut place = MaybeUninit::uninit();
    let parts = stack::zeroed(&mut place);
    if read_sent(skb, policy, parts) == 0 {
        return LEAVE;
    }
    let packet = &Packet { skb, parts };
    let mut lease = RepairLease::default();
    if packet.transport.shape == shape::LATER {
        if !fragments::outbound(packet, &mut lease) {
            return LEAVE;
        }
    } else {
        lease::find(packet, &mut lease);
        let again = lease::is_stale(&lease, policy, changes) || lease::connects(packet);
        if again && lease::renew_lease(skb, parts, policy, &mut lease, changes) == 0 {
            return LEAVE;
        }
        if packet.transport.fragment == fragment::FIRST {
            fragments::note_outbound(packet, &lease);
        }
    }
    let mtu = too_big::mtu(packet, lease.ifindex);
    if mtu & too_big::EXCEEDED != 0 {
        count(counter::REPAIR_TOO_BIG);
        return too_big::tell(packet, mtu as u32);
    }
    if packet.sender != NOBODY && packet.transport.shape == shape::WHOLE {
        socket::note(packet, policy, &lease, mtu as u32, changes);
    }
    send(packet, &lease)
}

/// Reads a packet that leaves. 0: it is none that is repaired. A global function too.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn read_sent(skb: *mut __sk_buff, policy: u32, place: *mut Parts) -> u32 {
    // SAFETY: null, or room that nobody else uses.
    let Some(place) = (unsafe { place.as_mut() }) else {
        return 0;
    };
    let socket: *mut bpf_sock = field!(skb, __bindgen_anon_2.sk);
    if socket.is_null() {
        return 0;
    }
    // SAFETY: not null.
    let full = unsafe { bpf_sk_fullsock(socket) };
    let sender = sender::of(skb, full, &Owner::of_policy(policy));
    if sender == sender::NOT_OURS || sender == sender::DECIDED && !asks_for_echo(full) {
        return 0;
    }
    if !place.read(skb, sender) {
        return 0;
    }
    let repaired = match place.transport.shape {
        shape::LATER => true,
        shape::WHOLE => sender::sent(&Packet { skb, parts: place }, full),
        _ => false,
    };
    repaired.into()
}

/// Gives the packet its source and sends it by the domain of its lease.
#[inline(never)]
fn send(packet: &Packet, lease: &RepairLease) -> i32 {
    let skb = packet.skb;
    let Some(domain) = Domain::get(lease.domain) else {
        return LEAVE;
    };
    if domain.entry.ifindex != lease.ifindex {
        return LEAVE;
    }
    let mark = field!(skb, mark) & !globals::MARK_MASK.load() | domain.entry.mark;
    if !rewrite::source(packet, &Address::from_bytes(lease.source)) {
        return DROP;
    }
    give_to_neighbour(skb, packet.link, lease.ifindex, lease.domain, mark)
}

/// Sends a packet that has its new source by the kernel's own lookup of its neighbour.
#[inline(always)]
fn give_to_neighbour(skb: *mut __sk_buff, link: u32, ifindex: u32, domain: u32, mark: u32) -> i32 {
    if !link::push_ethernet(skb, link) {
        return DROP;
    }
    // The mark has the lookup take the domain's table.
    prepare(skb, tag(domain) | SHOWS, mark);
    // SAFETY: takes numbers; no next hop is told.
    unsafe { bpf_redirect_neigh(ifindex, core::ptr::null_mut(), 0, 0) as i32 }
}

/// Sends a packet that has its new source and link-layer header.
#[inline(always)]
fn give(skb: *mut __sk_buff, ifindex: u32, domain: u32, mark: u32) -> i32 {
    prepare(skb, tag(domain), mark);
    // SAFETY: takes numbers.
    unsafe { bpf_redirect(ifindex, 0) as i32 }
}

#[inline(always)]
fn prepare(skb: *mut __sk_buff, tag: u32, mark: u32) {
    set_field!(mark, skb, mark);
    // So the guard there knows that it is right.
    set_field!(tag, skb, tc_index);
    count(counter::REPAIRED);
}

/// Sends an answer to a repaired flow, or an ICMP error about it, where the flow's socket expects it. The
/// verdict; `None`: it is no such packet. `ethernet`: it has such a header.
#[inline(always)]
pub fn way_back(skb: *mut __sk_buff, ethernet: bool) -> Option<i32> {
    if ethernet {
        let verdict = plain_answer(skb);
        if verdict != LEAVE {
            return Some(verdict);
        }
    }
    let verdict = back(skb);
    (verdict != LEAVE).then_some(verdict)
}

/// The short way of most answers: those of a connection under way. A global function to the verifier, as those of
/// `rules` are.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn plain_answer(skb: *mut __sk_buff) -> i32 {
    if !packet::is_v4(skb) && !packet::is_v6(skb) {
        return LEAVE;
    }
    let mut place = MaybeUninit::uninit();
    let Some(found) = plain::read(skb, ETHERNET, &mut place) else {
        return LEAVE;
    };
    if found.protocol != TCP || found.flags & (TCP_SYN | TCP_RST) != 0 {
        return LEAVE;
    }
    let Some(lease) = lease::of_answer(skb, found) else {
        return LEAVE;
    };
    let sum = ETHERNET + found.network + rewrite::TCP_CHECKSUM;
    let (from, to) = (found.destination, Address::from_bytes(lease.source));
    if !rewrite::adjust(skb, sum, lease.difference, TCP)
        || !rewrite::store(skb, ETHERNET, rewrite::DESTINATION, &from, &to)
    {
        return DROP;
    }
    arrive(
        skb,
        ETHERNET,
        u32::from(lease.link),
        &lease.mac,
        lease.ifindex,
    )
}

#[inline(never)]
fn back(skb: *mut __sk_buff) -> i32 {
    let mut place = MaybeUninit::uninit();
    let parts = stack::zeroed(&mut place);
    if read_arrived(skb, parts) == 0 {
        return LEAVE;
    }
    let packet = &Packet { skb, parts };
    let mut place = MaybeUninit::uninit();
    if packet.transport.shape == shape::LATER {
        if !fragments::back(packet, &mut place) {
            return LEAVE;
        }
    } else if is_error(packet) {
        let mut borne = Borne::NONE;
        if !borne::find(packet, &mut borne, &mut place) {
            return LEAVE;
        }
        // SAFETY: written where `find` says so.
        let lease = unsafe { place.assume_init_ref() };
        if !borne::rewrite(packet, &borne, lease) {
            return DROP;
        }
        return lease_arrives(packet, lease);
    } else if !lease::find_return(packet, &mut place) {
        return LEAVE;
    }
    // SAFETY: written where the functions say so.
    let lease = unsafe { place.assume_init_mut() };
    if packet.transport.shape != shape::LATER {
        if lease::is_over(packet, lease) {
            return LEAVE;
        }
        if packet.transport.fragment == fragment::FIRST {
            fragments::note_inbound(packet, lease);
        }
    }
    if !rewrite::destination(
        packet,
        &Address::from_bytes(lease.address),
        lease.difference,
    ) {
        return DROP;
    }
    lease_arrives(packet, lease)
}

/// Reads a packet that arrives. 0: it cannot be an answer. A global function too.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn read_arrived(skb: *mut __sk_buff, place: *mut Parts) -> u32 {
    // SAFETY: null, or room that nobody else uses.
    let Some(place) = (unsafe { place.as_mut() }) else {
        return 0;
    };
    if !place.read(skb, sender::NOBODY) {
        return 0;
    }
    (place.transport.shape == shape::WHOLE || place.transport.shape == shape::LATER).into()
}

#[inline(always)]
fn is_error(packet: &Packet) -> bool {
    packet::is_error(packet.transport.protocol, packet.transport.detail)
}

#[inline(always)]
fn lease_arrives(packet: &Packet, lease: &FragmentLease) -> i32 {
    let frame = u32::from(lease.link);
    arrive(packet.skb, packet.link, frame, &lease.mac, lease.ifindex)
}

/// Has a packet behind `link` bytes arrive at the interface that the flow's socket knows, which has frames with
/// `frame` bytes in front, for `mac`.
#[inline(always)]
fn arrive(skb: *mut __sk_buff, link: u32, frame: u32, mac: &[u8; 6], ifindex: u32) -> i32 {
    if frame != 0 && !link::address_to(skb, link, mac) {
        return DROP;
    }
    // What marks arrivals at this interface has no meaning at the other.
    let mark = field!(skb, mark) & !globals::MARK_MASK.load();
    set_field!(mark, skb, mark);
    // SAFETY: takes numbers.
    unsafe { bpf_redirect(ifindex, BPF_F_INGRESS.into()) as i32 }
}
