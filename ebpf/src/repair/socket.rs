//! The short way, which most packets of repaired flows go: their socket has a lease for packets like the one that
//! it was made for, and these are neither judged nor looked up again.
//!
//! It holds for some ticks, unless the agent changes anything that flows are decided by. Then a packet goes
//! all the way again, and by the kernel's own lookup of its neighbour, which so learns that it is still used.

use core::mem::MaybeUninit;

use aya_ebpf::{
    bindings::{__sk_buff, BPF_ANY, bpf_sock},
    helpers::generated::bpf_jiffies64,
};
use steer_common::{RepairLease, SocketLease, cell, counter};

use super::{DROP, LEAVE, Packet, give, give_to_neighbour, link, rewrite};
use crate::{
    address::Address,
    count::count,
    fit, globals,
    judge::{SHOWS, tag},
    maps::{CELLS, SOCKET_LEASES, cell},
    packet::{ETHERNET, TCP_SYN, headers, link_header},
    plain,
    sock::{field, set_field},
    stack,
    traffic::{self, Kind},
};

// SAFETY: numbers alone.
unsafe impl stack::Numbers for SocketLease {}

/// How long a lease is good: 25 ms where a second has 1,000 ticks, and 250 where it has 100.
const TICKS: u64 = 25;

/// Whether any socket has had a lease.
#[inline(always)]
pub fn any() -> bool {
    cell(cell::LEASED) != 0
}

#[inline(always)]
fn ticks() -> u64 {
    // SAFETY: takes nothing.
    unsafe { bpf_jiffies64() }
}

/// Sends a packet as its socket's lease says. [`LEAVE`]: there is none for it.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn leased(skb: *mut __sk_buff) -> i32 {
    let socket: *mut bpf_sock = field!(skb, __bindgen_anon_2.sk);
    if socket.is_null() {
        return LEAVE;
    }
    let Some(lease) = SOCKET_LEASES.get(socket) else {
        return LEAVE;
    };
    if lease.from != field!(skb, ifindex)
        || lease.ethertype != field!(skb, protocol)
        || lease.old_mark != field!(skb, mark)
        || lease.changes != cell(cell::CHANGES)
        || ticks().wrapping_sub(lease.made) > TICKS
    {
        return LEAVE;
    }
    let mut place = MaybeUninit::uninit();
    let Some(found) = plain::read(skb, lease.link, &mut place) else {
        return LEAVE;
    };
    let alike = found.class == lease.class
        && found.protocol == lease.protocol
        && found.ports == lease.ports
        && found.flags & TCP_SYN == 0
        && found.destination.equals(Address(lease.destination))
        && found.source.equals(Address(lease.own));
    let segment = field!(skb, gso_size);
    let length = if segment == 0 {
        field!(skb, len).wrapping_sub(lease.link)
    } else {
        segment + found.network + found.header
    };
    if !alike || length > lease.mtu {
        return LEAVE;
    }
    traffic::add::<true>(skb, lease.policy, lease.domain, Kind::Wrong);
    count(counter::GUARD_WRONG);
    let link = lease.link;
    let sum = link + found.network + rewrite::checksum(found.protocol).unwrap_or(0);
    if !rewrite::adjust(skb, sum, lease.difference, found.protocol)
        || !rewrite::store(
            skb,
            link,
            rewrite::SOURCE,
            &found.source,
            &Address(lease.source),
        )
    {
        return DROP;
    }
    if lease.hop == 0 {
        give_to_neighbour(skb, link, lease.ifindex, lease.domain, lease.mark)
    } else if link::store(skb, 0, &lease.hardware) {
        give(skb, lease.ifindex, lease.domain, lease.mark)
    } else {
        DROP
    }
}

/// Gives the socket of a packet a lease, so that packets like this one go the short way from now on. `limit`: how
/// long they may be there, from the IP header on; `changes`: how many there were when the first of what is noted
/// was asked.
#[inline(always)]
pub(super) fn note(packet: &Packet, policy: u32, lease: &RepairLease, limit: u32, changes: u32) {
    let policy_and_link = u64::from(policy) << 32 | u64::from(packet.link);
    note_socket(packet.skb, lease, policy_and_link, limit, changes);
}

/// A global function to the verifier, as those of `rules` are.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn note_socket(
    skb: *mut __sk_buff,
    lease: *const RepairLease,
    policy_and_link: u64,
    limit: u32,
    changes: u32,
) -> u32 {
    // SAFETY: null, or a lease.
    let Some(lease) = (unsafe { lease.as_ref() }) else {
        return 0;
    };
    let mut place = MaybeUninit::<SocketLease>::uninit();
    let noted = stack::zeroed(&mut place);
    noted.link = policy_and_link as u32;
    noted.policy = (policy_and_link >> 32) as u32;
    noted.mtu = limit;
    let socket: *mut bpf_sock = field!(skb, __bindgen_anon_2.sk);
    if socket.is_null() || fit::interface(lease.domain) != lease.ifindex || !note_packet(skb, noted)
    {
        return 0;
    }
    let source = Address::from_bytes(lease.source);
    noted.source = source.0;
    noted.difference = rewrite::difference(&Address(noted.own), &source) as u32;
    noted.domain = lease.domain;
    noted.ifindex = lease.ifindex;
    noted.mark = noted.old_mark & !globals::MARK_MASK.load() | fit::mark(lease.domain);
    noted.changes = changes;
    noted.made = ticks();
    put(socket, noted);
    0
}

/// Notes what packets are like that are like this one. False: it is not plain.
#[inline(never)]
fn note_packet(skb: *mut __sk_buff, noted: &mut SocketLease) -> bool {
    let mut place = MaybeUninit::uninit();
    let Some(found) = plain::read(skb, noted.link, &mut place) else {
        return false;
    };
    noted.own = found.source.0;
    noted.destination = found.destination.0;
    noted.ports = found.ports;
    noted.class = found.class;
    noted.protocol = found.protocol;
    noted.ethertype = field!(skb, protocol);
    noted.from = field!(skb, ifindex);
    noted.old_mark = field!(skb, mark);
    true
}

/// Notes what the kernel wrote in front of a packet that it gave to the neighbour: the same is written in front
/// of those that go the short way.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn learn(skb: *mut __sk_buff) -> u32 {
    let seen = field!(skb, tc_index) & !SHOWS;
    set_field!(seen, skb, tc_index);
    let socket: *mut bpf_sock = field!(skb, __bindgen_anon_2.sk);
    if socket.is_null() {
        return 0;
    }
    let Some(found) = SOCKET_LEASES.get(socket) else {
        return 0;
    };
    if found.hop != 0
        || found.link != ETHERNET
        || found.ifindex != field!(skb, ifindex)
        || tag(found.domain) != seen
        || !has_ethernet(skb)
    {
        return 0;
    }
    let mut noted = *found;
    noted.hardware = [link::peer_mac(skb), link::own_mac(skb, ETHERNET)];
    noted.hop = 1;
    put(socket, &mut noted);
    0
}

#[inline(never)]
fn has_ethernet(skb: *mut __sk_buff) -> bool {
    headers(skb).is_some_and(|headers| link_header(skb, &headers) == Some(ETHERNET))
}

/// Replaces a socket's lease.
#[inline(always)]
fn put(socket: *mut bpf_sock, lease: &mut SocketLease) {
    SOCKET_LEASES.remove(socket);
    if SOCKET_LEASES.get_or_create(socket, lease).is_some() {
        // An array has room for it.
        let _ = CELLS.set(cell::LEASED, 1, BPF_ANY.into());
    }
}
