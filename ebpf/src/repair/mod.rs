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
mod too_big;

use core::mem::MaybeUninit;

use aya_ebpf::{
    bindings::{__sk_buff, BPF_F_INGRESS, TC_ACT_SHOT, TC_ACT_UNSPEC, bpf_sock},
    helpers::generated::{bpf_redirect, bpf_redirect_neigh, bpf_sk_fullsock},
};
use steer_common::{FragmentLease, RepairLease, counter};

use self::borne::Borne;
use crate::{
    address::Address,
    count::count,
    decision::Domain,
    globals,
    judge::tag,
    owner::Owner,
    packet::{self, Headers, Transport, fragment, headers, link_header, shape, transport},
    sock::{field, set_field},
};

/// The packet goes on as it is, with the next program of the chain.
const LEAVE: i32 = TC_ACT_UNSPEC;
/// Half rewritten, or too big: it goes nowhere.
const DROP: i32 = TC_ACT_SHOT as i32;

/// A packet, as far as it was read.
#[derive(Clone, Copy)]
struct Packet {
    skb: *mut __sk_buff,
    headers: Headers,
    transport: Transport,
    /// Bytes in front of the IP header.
    link: u32,
    /// Whose it is, one of [`sender`].
    sender: u32,
}

impl Packet {
    #[inline(always)]
    fn read(skb: *mut __sk_buff, sender: u32) -> Option<Self> {
        let headers = headers(skb)?;
        let link = link_header(skb, &headers)?;
        let transport = transport(skb, &headers, link);
        Some(Self {
            skb,
            headers,
            transport,
            link,
            sender,
        })
    }

    #[inline(always)]
    fn is_v4(&self) -> bool {
        self.headers.source.is_v4()
    }
}

/// Puts a packet of a flow of policy `policy` on the domain that is right for it. The verdict; `None`: it is right as
/// it is, or is none that is repaired.
#[inline(always)]
pub fn outbound(skb: *mut __sk_buff, policy: u32) -> Option<i32> {
    let verdict = repaired(skb, policy);
    (verdict != LEAVE).then_some(verdict)
}

// Each step is a function of its own, so that the stack of one is free again for the next. This one is global to
// the verifier, as those of `rules` are.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn repaired(skb: *mut __sk_buff, policy: u32) -> i32 {
    let mut place = MaybeUninit::uninit();
    if !read_outbound(skb, policy, &mut place) {
        return LEAVE;
    }
    // SAFETY: written where `read_outbound` says so.
    let packet = unsafe { place.assume_init_ref() };
    let mut lease = RepairLease::default();
    if packet.transport.shape == shape::LATER {
        if !fragments::outbound(packet, &mut lease) {
            return LEAVE;
        }
    } else {
        lease::find(packet, &mut lease);
        let again = lease::is_stale(&lease) || lease::connects(packet);
        if again && !lease::renew(packet, policy, &mut lease) {
            return LEAVE;
        }
        if packet.transport.fragment == fragment::FIRST {
            fragments::note_outbound(packet, &lease);
        }
    }
    let mtu = too_big::mtu(packet, lease.ifindex);
    if mtu != 0 {
        count(counter::REPAIR_TOO_BIG);
        return too_big::tell(packet, mtu);
    }
    send(packet, &lease)
}

/// Reads a packet that leaves. False: it is none that is repaired, and `place` may not be written.
#[inline(never)]
fn read_outbound(skb: *mut __sk_buff, policy: u32, place: &mut MaybeUninit<Packet>) -> bool {
    let socket: *mut bpf_sock = field!(skb, __bindgen_anon_2.sk);
    if socket.is_null() {
        return false;
    }
    // SAFETY: not null.
    let full = unsafe { bpf_sk_fullsock(socket) };
    let sender = sender::of(skb, full, &Owner::of_policy(policy));
    if sender == sender::NOT_OURS || sender == sender::DECIDED && !sender::asks_for_echo(full) {
        return false;
    }
    match Packet::read(skb, sender) {
        Some(packet) => {
            let repaired = match packet.transport.shape {
                shape::LATER => true,
                shape::WHOLE => sender::sent(&packet, full),
                _ => false,
            };
            place.write(packet);
            repaired
        }
        None => false,
    }
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
    if !rewrite::source(packet, &Address::from_bytes(lease.source))
        || !link::push_ethernet(skb, packet.link)
    {
        return DROP;
    }
    // The mark has the lookup that `bpf_redirect_neigh` makes take the domain's table.
    let mark = field!(skb, mark) & !globals::MARK_MASK.load() | domain.entry.mark;
    set_field!(mark, skb, mark);
    // So the guard there knows that it is right.
    set_field!(tag(lease.domain), skb, tc_index);
    count(counter::REPAIRED);
    // SAFETY: takes numbers; no next hop is told.
    unsafe { bpf_redirect_neigh(lease.ifindex, core::ptr::null_mut(), 0, 0) as i32 }
}

/// Sends an answer to a repaired flow, or an ICMP error about it, where the flow's socket expects it. The
/// verdict; `None`: it is no such packet.
#[inline(always)]
pub fn way_back(skb: *mut __sk_buff) -> Option<i32> {
    let verdict = back(skb);
    (verdict != LEAVE).then_some(verdict)
}

#[inline(never)]
fn back(skb: *mut __sk_buff) -> i32 {
    let mut place = MaybeUninit::uninit();
    if !read_inbound(skb, &mut place) {
        return LEAVE;
    }
    // SAFETY: written where `read_inbound` says so.
    let packet = unsafe { place.assume_init_ref() };
    let mut lease = FragmentLease::default();
    if packet.transport.shape == shape::LATER {
        if !fragments::back(packet, &mut lease) {
            return LEAVE;
        }
    } else if is_error(packet) {
        let mut borne = Borne::NONE;
        if !borne::find(packet, &mut borne, &mut lease) {
            return LEAVE;
        }
        if !borne::rewrite(packet, &borne, &lease) {
            return DROP;
        }
        return arrive(packet, &lease);
    } else {
        if !lease::find_return(packet, &mut lease) || lease::is_over(packet, &lease) {
            return LEAVE;
        }
        if packet.transport.fragment == fragment::FIRST {
            fragments::note_inbound(packet, &mut lease);
        }
    }
    if !rewrite::destination(packet, &Address::from_bytes(lease.address)) {
        return DROP;
    }
    arrive(packet, &lease)
}

/// Reads a packet that arrives. False: it cannot be an answer, and `place` may not be written.
#[inline(never)]
fn read_inbound(skb: *mut __sk_buff, place: &mut MaybeUninit<Packet>) -> bool {
    match Packet::read(skb, sender::NOBODY) {
        Some(packet) => {
            place.write(packet);
            packet.transport.shape == shape::WHOLE || packet.transport.shape == shape::LATER
        }
        None => false,
    }
}

#[inline(always)]
fn is_error(packet: &Packet) -> bool {
    packet::is_error(packet.transport.protocol, packet.transport.detail)
}

/// Has a packet arrive at the interface that the flow's socket knows.
#[inline(always)]
fn arrive(packet: &Packet, lease: &FragmentLease) -> i32 {
    let skb = packet.skb;
    if lease.link != 0 && !link::address_to(skb, packet.link, &lease.mac) {
        return DROP;
    }
    // What marks arrivals at this interface has no meaning at the other.
    let mark = field!(skb, mark) & !globals::MARK_MASK.load();
    set_field!(mark, skb, mark);
    // SAFETY: takes numbers.
    unsafe { bpf_redirect(lease.ifindex, BPF_F_INGRESS.into()) as i32 }
}
