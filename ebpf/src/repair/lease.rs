//! Leases: which flow is repaired to what, and that no two flows look alike to their peer.

use core::mem::MaybeUninit;

use aya_ebpf::{
    bindings::{__sk_buff, BPF_ANY, BPF_F_CURRENT_NETNS, bpf_sock_tuple},
    helpers::generated::{
        bpf_get_socket_cookie, bpf_ktime_get_coarse_ns, bpf_sk_lookup_udp, bpf_sk_release,
        bpf_skc_lookup_tcp,
    },
};
use steer_common::{
    FragmentLease, RepairKey, RepairLease, ReturnKey, ReturnLease, counter, local_flags,
};

use super::{
    Packet, Parts, link, rewrite,
    sender::{self, MOVES, NOBODY},
};
use crate::{
    address::Address,
    count::count,
    decision::{Chosen, Decision, Domain, choice_of_flow, settle},
    fit,
    log::log,
    maps::{ECHO_RETURNS, ECHOES, REPAIRED, RETURNS},
    owner::Owner,
    packet::{self, TCP, TCP_RST, TCP_SYN, UDP},
    plain::Plain,
    sock::{field, words},
    tuple::Tuple,
};

const SECOND: u64 = 1_000_000_000;
/// A lease that was looked at so long ago is looked at again, in nanoseconds.
const RECHECK: u64 = SECOND;
/// A lease without a socket (ICMP) that was not used for so long may be taken by another flow.
const IDLE: u64 = 30 * SECOND;
/// A flow without connection that sent nothing for so long is over, if no socket has it.
const FORGOTTEN: u64 = 180 * SECOND;

/// The coarse monotonic clock, in nanoseconds.
#[inline(always)]
pub fn now() -> u64 {
    // SAFETY: takes nothing.
    unsafe { bpf_ktime_get_coarse_ns() }
}

/// The lease of a packet's flow, if it has one.
#[inline(never)]
pub fn find(packet: &Packet, lease: &mut RepairLease) {
    // SAFETY: copied at once; a slot that is given to another flow meanwhile has been idle for long.
    if let Some(found) = unsafe { kept(&key(packet)) } {
        *lease = *found;
    }
}

/// Whether leases are in the maps of pings.
#[inline(always)]
fn is_echo(protocol: u32) -> bool {
    protocol != TCP && protocol != UDP
}

/// # Safety
/// To be copied at once.
#[inline(always)]
unsafe fn kept(key: &RepairKey) -> Option<&'static RepairLease> {
    // SAFETY: as this function's.
    unsafe {
        if is_echo(key.protocol) {
            ECHOES.get(key)
        } else {
            REPAIRED.get(key)
        }
    }
}

/// # Safety
/// To be copied at once.
#[inline(always)]
unsafe fn kept_return(key: &ReturnKey) -> Option<&'static ReturnLease> {
    // SAFETY: as this function's.
    unsafe {
        if is_echo(key.protocol) {
            ECHO_RETURNS.get(key)
        } else {
            RETURNS.get(key)
        }
    }
}

#[inline(always)]
fn key(packet: &Packet) -> RepairKey {
    RepairKey {
        source: packet.headers.source.bytes(),
        destination: packet.headers.destination.bytes(),
        source_port: packet.transport.source_port as u16,
        destination_port: packet.transport.destination_port as u16,
        protocol: packet.transport.protocol,
    }
}

/// Where an answer is to arrive. False: it is no answer to a repaired flow, and `lease` is not written.
#[inline(never)]
pub fn find_return(packet: &Packet, lease: &mut MaybeUninit<FragmentLease>) -> bool {
    if packet::is_echo_request(packet.transport.protocol, packet.transport.detail) {
        // The peer asks.
        return false;
    }
    of_return(&return_key(packet), lease)
}

/// The key of the lease that an answer has.
#[inline(always)]
fn return_key(packet: &Packet) -> ReturnKey {
    let transport = &packet.transport;
    let (local_port, remote_port) = if transport.protocol == TCP || transport.protocol == UDP {
        (transport.destination_port, transport.source_port)
    } else {
        // The identifier of an echo.
        (transport.source_port, 0)
    };
    ReturnKey {
        local: packet.headers.destination.bytes(),
        remote: packet.headers.source.bytes(),
        local_port: local_port as u16,
        remote_port: remote_port as u16,
        protocol: transport.protocol,
        ifindex: field!(packet.skb, ifindex),
    }
}

/// Whether the flow whose lease was found for an answer is over: the answer is to a newer one that looks the same,
/// as its own socket says, or the older has been forgotten. The lease goes then.
#[inline(never)]
pub fn is_over(packet: &Packet, lease: &FragmentLease) -> bool {
    let transport = &packet.transport;
    // Of a new connection's answers one of these comes first.
    let is_first = transport.protocol == UDP
        || transport.protocol == TCP && transport.detail & (TCP_SYN | TCP_RST) != 0;
    let over = is_first && is_answered(packet, &packet.headers.destination)
        || transport.protocol != TCP
            && now().wrapping_sub(lease.since) > FORGOTTEN
            && !is_answered(packet, &Address::from_bytes(lease.address));
    if over {
        // It may be gone already.
        let key = return_key(packet);
        let _ = if is_echo(key.protocol) {
            ECHO_RETURNS.remove(&key)
        } else {
            RETURNS.remove(&key)
        };
    }
    over
}

/// Whether an answer, if it went to `local`, would go to a socket as [`has_socket`] says.
#[inline(never)]
fn is_answered(packet: &Packet, local: &Address) -> bool {
    let transport = &packet.transport;
    let ports = [
        transport.source_port as u16,
        transport.destination_port as u16,
    ];
    is_taken(packet, &packet.headers.source, local, ports)
}

/// What the lease of the answers to a flow says. False: there is none, and `lease` is not written.
#[inline(always)]
pub fn of_return(key: &ReturnKey, lease: &mut MaybeUninit<FragmentLease>) -> bool {
    // SAFETY: copied at once, as in `find`.
    match unsafe { kept_return(key) } {
        Some(found) => {
            lease.write(FragmentLease {
                address: found.source,
                ifindex: found.ifindex,
                domain: found.domain,
                mac: found.mac,
                link: found.link,
                since: found.seen,
                difference: found.difference,
                reserved: 0,
            });
            true
        }
        None => false,
    }
}

/// The lease of a plain answer.
#[inline(always)]
pub fn of_answer(skb: *mut __sk_buff, answer: &Plain) -> Option<&'static ReturnLease> {
    let ports = u32::from_be(answer.ports);
    let key = ReturnKey {
        local: answer.destination.bytes(),
        remote: answer.source.bytes(),
        local_port: ports as u16,
        remote_port: (ports >> 16) as u16,
        protocol: answer.protocol,
        ifindex: field!(skb, ifindex),
    };
    // SAFETY: read at once, as in `find`.
    unsafe { RETURNS.get(&key) }
}

/// Whether a lease is to be looked at again by a packet of `policy`, after so many changes.
#[inline(always)]
pub fn is_stale(lease: &RepairLease, policy: u32, changes: u32) -> bool {
    lease.policy != policy
        || lease.changes != changes
        || now().wrapping_sub(lease.checked) > RECHECK
}

/// Makes the lease of a packet's flow, or looks whether it still holds. 0: there is none. A global function to the
/// verifier, as those of `rules` are.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn renew_lease(
    skb: *mut __sk_buff,
    parts: *const Parts,
    policy: u32,
    lease: *mut RepairLease,
    changes: u32,
) -> u32 {
    // SAFETY: null, or what was read.
    let Some(parts) = (unsafe { parts.as_ref() }) else {
        return 0;
    };
    // SAFETY: null, or a lease that nobody else uses.
    let Some(lease) = (unsafe { lease.as_mut() }) else {
        return 0;
    };
    let packet = &Packet { skb, parts };
    let wanted = if sender::begins(packet) {
        wanted(packet, policy)
    } else {
        0
    };
    if choose(packet, policy, wanted, lease) {
        lease.checked = now();
        lease.changes = changes;
        lease.policy = policy;
        if keep_return(packet, lease) {
            log!(log_leased(policy, lease.domain, lease.ifindex));
            return remember(packet, lease).into();
        }
        count(counter::REPAIR_REFUSED);
        log!(log_lease_refused(policy, lease.domain));
    }
    if connects(packet) {
        forget(packet);
    }
    0
}

/// Whether a packet begins a connection, which must not go on by the lease of an older one.
#[inline(always)]
pub fn connects(packet: &Packet) -> bool {
    packet.transport.protocol == TCP && sender::begins(packet)
}

#[inline(never)]
fn forget(packet: &Packet) {
    // Most have none.
    let _ = REPAIRED.remove(&key(packet));
}

#[inline(never)]
fn remember(packet: &Packet, lease: &RepairLease) -> bool {
    let key = key(packet);
    let kept = if is_echo(key.protocol) {
        ECHOES.insert(&key, lease, BPF_ANY.into())
    } else {
        REPAIRED.insert(&key, lease, BPF_ANY.into())
    };
    kept.is_ok()
}

/// What the packet's flow is repaired to, where domain `wanted` is right for it. False: it is not.
#[inline(never)]
fn choose(packet: &Packet, policy: u32, wanted: u32, lease: &mut RepairLease) -> bool {
    let protocol = packet.transport.protocol;
    let kept = lease.domain != 0 && holds(lease);
    // A connection stays where its SYN went, whatever policy it has now. Datagrams stay too unless they are to
    // move, or the lease is of another socket that had the same ports; echo requests are no sessions.
    let goes_on = protocol == TCP && !connects(packet);
    let stays = protocol == UDP && packet.sender != MOVES && lease.policy == policy;
    if kept && (goes_on || stays) {
        return true;
    }
    let Some(domain) = Domain::get(wanted) else {
        return false;
    };
    if domain.entry.ifindex == field!(packet.skb, ifindex)
        && packet.headers.source.belongs_to(domain.index)
    {
        return false;
    }
    // The source of the host is replaced, and nothing that an application made up.
    if packet.sender != NOBODY
        && !packet
            .headers
            .source
            .local()
            .is_some_and(|local| local.flags & local_flags::HOST != 0)
    {
        return false;
    }
    if !(kept && domain.index == lease.domain) {
        lease.source = if packet.is_v4() {
            Address::v4(domain.source4()).bytes()
        } else {
            domain.source6().bytes()
        };
        lease.domain = domain.index;
        lease.ifindex = domain.entry.ifindex;
    }
    true
}

/// The domain that a packet's flow should be on, if it can be there; else 0.
#[inline(never)]
fn wanted(packet: &Packet, policy: u32) -> u32 {
    let owner = Owner::of_policy(policy);
    let transport = &packet.transport;
    let mut tuple = Tuple::NONE;
    // Any other's source the host chose, as it would not have if the flow had been decided.
    if packet.sender == NOBODY {
        tuple.source = packet.headers.source;
    }
    tuple.destination = packet.headers.destination;
    tuple.protocol = transport.protocol;
    if transport.protocol == TCP || transport.protocol == UDP {
        tuple.source_port = transport.source_port;
        tuple.destination_port = transport.destination_port;
    }
    tuple.dscp = packet.headers.dscp();
    let mut found = Chosen::NOTHING;
    // SAFETY: the program's own packet.
    let cookie = unsafe { bpf_get_socket_cookie(packet.skb.cast()) };
    choice_of_flow(&raw const owner, &raw const tuple, cookie, &raw mut found);
    settled(packet, &owner, &found)
}

#[inline(never)]
fn settled(packet: &Packet, owner: &Owner, found: &Chosen) -> u32 {
    if packet.headers.destination.is_never_steered() {
        return 0;
    }
    match settle(owner, &packet.headers.destination, 0, found) {
        Decision::Steer(domain, _) if fit::serves(domain, packet.is_v4()) => domain,
        _ => 0,
    }
}

/// Whether the domain of a lease is there, at the same interface and with the same source.
#[inline(always)]
fn holds(lease: &RepairLease) -> bool {
    match Domain::get(lease.domain) {
        Some(domain) => {
            domain.entry.ifindex == lease.ifindex
                && Address::from_bytes(lease.source).belongs_to(lease.domain)
        }
        None => false,
    }
}

/// Makes or refreshes the lease of the answers. False: answers would belong to two flows, or the map is
/// full.
#[inline(never)]
fn keep_return(packet: &Packet, lease: &RepairLease) -> bool {
    let transport = &packet.transport;
    let key = ReturnKey {
        local: lease.source,
        remote: packet.headers.destination.bytes(),
        local_port: transport.source_port as u16,
        remote_port: transport.destination_port as u16,
        protocol: transport.protocol,
        ifindex: lease.ifindex,
    };
    let found = if is_echo(key.protocol) {
        ECHO_RETURNS.get_ptr_mut(&key)
    } else {
        RETURNS.get_ptr_mut(&key)
    };
    if let Some(found) = found {
        // SAFETY: copied at once, as in `find`.
        let found = unsafe { &mut *found };
        let source = Address::from_bytes(found.source);
        if source.equals(packet.headers.source) {
            found.seen = lease.checked;
            // The flow may leave by another interface than before, and expects its answers there.
            if found.ifindex == field!(packet.skb, ifindex) {
                return true;
            }
        } else if is_in_use(packet, &source, lease.checked.wrapping_sub(found.seen)) {
            return false;
        }
    } else if has_socket(packet, &Address::from_bytes(lease.source)) {
        return false;
    }
    let entry = ReturnLease {
        source: packet.headers.source.bytes(),
        ifindex: field!(packet.skb, ifindex),
        domain: lease.domain,
        mac: link::own_mac(packet.skb, packet.link),
        link: packet.link as u16,
        seen: lease.checked,
        difference: rewrite::difference(&Address::from_bytes(lease.source), &packet.headers.source)
            as u32,
        reserved: 0,
    };
    let kept = if is_echo(key.protocol) {
        ECHO_RETURNS.insert(&key, &entry, BPF_ANY.into())
    } else {
        RETURNS.insert(&key, &entry, BPF_ANY.into())
    };
    kept.is_ok()
}

/// Whether the flow that a lease is for, which had `source`, is still there.
#[inline(always)]
fn is_in_use(packet: &Packet, source: &Address, idle: u64) -> bool {
    let protocol = packet.transport.protocol;
    if packet.sender == NOBODY || protocol != TCP && protocol != UDP {
        idle < IDLE
    } else {
        has_socket(packet, source)
    }
}

/// Whether the answers to `packet`, if it had `source`, would go to a socket that is bound to just that
/// address, or connected from it. A socket that is bound to another device is not found.
#[inline(never)]
fn has_socket(packet: &Packet, source: &Address) -> bool {
    let transport = &packet.transport;
    let ports = [
        transport.destination_port as u16,
        transport.source_port as u16,
    ];
    is_taken(packet, &packet.headers.destination, source, ports)
}

/// Whether what arrives from `remote` for `local` goes to a socket with just that address. `ports`: likewise.
#[inline(always)]
fn is_taken(packet: &Packet, remote: &Address, local: &Address, ports: [u16; 2]) -> bool {
    let protocol = packet.transport.protocol;
    if protocol != TCP && protocol != UDP {
        return false;
    }
    let ports = [ports[0].to_be(), ports[1].to_be()];
    let (mut tuple4, mut tuple6);
    let (tuple, size) = if packet.is_v4() {
        tuple4 = Tuple4 {
            addresses: [remote.0[3], local.0[3]],
            ports,
        };
        ((&raw mut tuple4).cast(), size_of::<Tuple4>() as u32)
    } else {
        tuple6 = Tuple6 {
            addresses: [remote.0, local.0],
            ports,
        };
        ((&raw mut tuple6).cast(), size_of::<Tuple6>() as u32)
    };
    // Apart, because an instruction of the program may read one kind of socket only.
    if protocol == TCP {
        belongs::<true>(packet, tuple, size, local)
    } else {
        belongs::<false>(packet, tuple, size, local)
    }
}

/// Whether a packet of `tuple` belongs to a socket with `source`.
#[inline(always)]
fn belongs<const IS_TCP: bool>(
    packet: &Packet,
    tuple: *mut bpf_sock_tuple,
    size: u32,
    source: &Address,
) -> bool {
    let netns = BPF_F_CURRENT_NETNS as i64 as u64;
    let skb = packet.skb.cast();
    // SAFETY: the tuple has the size that is told.
    let socket = unsafe {
        if IS_TCP {
            bpf_skc_lookup_tcp(skb, tuple, size, netns, 0)
        } else {
            bpf_sk_lookup_udp(skb, tuple, size, netns, 0)
        }
    };
    if socket.is_null() {
        return false;
    }
    let source4 = field!(socket, src_ip4);
    // SAFETY: only the address is taken.
    let source6 = words(unsafe { &raw const (*socket).src_ip6 });
    // SAFETY: it was looked up here.
    unsafe { bpf_sk_release(socket.cast()) };
    if packet.is_v4() {
        source4 == source.0[3]
    } else {
        source6.equals(*source)
    }
}

/// `bpf_sock_tuple` of IPv4.
#[repr(C)]
struct Tuple4 {
    /// Remote, local.
    addresses: [u32; 2],
    /// Likewise.
    ports: [u16; 2],
}

/// `bpf_sock_tuple` of IPv6.
#[repr(C)]
struct Tuple6 {
    addresses: [[u32; 4]; 2],
    ports: [u16; 2],
}
