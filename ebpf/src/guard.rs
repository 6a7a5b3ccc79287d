//! tc egress: does a packet of a strict policy leave by its domain's interface, with one of its
//! domain's addresses? If not, it is dropped.
//!
//! This sees what no socket program can: sockets older than steer, `IP_PKTINFO`, raw headers, packet
//! sockets, further subflows of MPTCP.

use aya_ebpf::{
    bindings::{__sk_buff, BPF_RB_AVAIL_DATA, TC_ACT_SHOT, TC_ACT_UNSPEC, bpf_sock},
    helpers::generated::{
        bpf_ringbuf_query, bpf_sk_fullsock, bpf_skb_cgroup_id, bpf_skb_load_bytes_relative,
    },
    macros::classifier,
    programs::TcContext,
};
use steer_common::{
    EVENT_RING_BYTES, EventKind, GuardEvent, counter, flow_flags, guard_reason, verdict,
};

use crate::{
    address::Address,
    count::count,
    decision::{Domain, contains},
    flow,
    maps::EVENTS,
    owner::Owner,
    sock::{AF_PACKET, field, set_field},
};

/// Goes on with the next program of the chain (`TCX_NEXT`).
const NEXT: i32 = TC_ACT_UNSPEC;
const DROP: i32 = TC_ACT_SHOT as i32;

const ETH_P_IP: u32 = 0x0800_u16.to_be() as u32;
const ETH_P_IPV6: u32 = 0x86dd_u16.to_be() as u32;
const HEADER_NETWORK: u32 = 1;
const IPPROTO_UDP: u8 = 17;
const SOCK_RAW: u32 = 3;

/// Entry.
#[classifier]
pub fn guard(ctx: TcContext) -> i32 {
    let skb = ctx.skb.skb;
    let socket: *mut bpf_sock = field!(skb, __bindgen_anon_2.sk);
    if socket.is_null() {
        return NEXT;
    }
    // SAFETY: not null.
    let full = unsafe { bpf_sk_fullsock(socket) };
    let (owner, domain) = owner(skb, full);
    if !owner.is_strict() {
        return NEXT;
    }
    match judge(skb, full, &owner, domain) {
        Ok(()) => {
            count(counter::GUARD_PASSED);
            NEXT
        }
        Err(Drop { reason, headers }) => {
            count(counter::GUARD_DROPPED);
            tell(skb, &owner, reason, &headers);
            DROP
        }
    }
}

/// Whose the packet is, and the domain that its flow was put on (0: as the policy chooses now).
///
/// Of a packet without a socket that can be asked (RST, TIME-WAIT) nobody is the owner: it is never
/// dropped for that, but goes by rule and mark.
#[inline(always)]
fn owner(skb: *mut __sk_buff, full: *mut bpf_sock) -> (Owner, u32) {
    if !full.is_null()
        && let Some(flow) = flow::get(full)
    {
        if flow.flags & flow_flags::FOREIGN != 0 {
            return (Owner::NONE, 0);
        }
        if flow.flags & flow_flags::DECIDED != 0 {
            return (Owner::of_policy(flow.policy), flow.domain);
        }
        if flow.creator != 0 {
            return (Owner::of_policy(flow.creator), 0);
        }
    }
    // Request sockets answer for their listener. 0: none; 1: the root, whose sockets are the kernel's.
    // SAFETY: the program's own packet.
    let cgroup = unsafe { bpf_skb_cgroup_id(skb) };
    let owner = if cgroup <= 1 {
        Owner::NONE
    } else {
        Owner::of_cgroup(cgroup)
    };
    (owner, 0)
}

/// Why a packet is dropped.
struct Drop {
    reason: u32,
    headers: Headers,
}

/// Addresses of a packet; `None` where it is not IP.
type Headers = Option<(Address, Address, u8)>;

#[inline(always)]
fn judge(
    skb: *mut __sk_buff,
    full: *mut bpf_sock,
    owner: &Owner,
    decided: u32,
) -> Result<(), Drop> {
    let headers = headers(skb);
    let choice = owner.choice();
    let index = if decided != 0 {
        decided
    } else if choice.verdict == verdict::STEER {
        choice.domain
    } else {
        0
    };
    let domain = Domain::get(index);
    let tag = TAG | index & 0xff;
    if let Some(domain) = domain
        && domain.entry.ifindex == field!(skb, ifindex)
    {
        let Some((source, ..)) = headers else {
            return Ok(());
        };
        if source.is_unspecified()
            || !source.is_v4() && source.is_link_local()
            || (if source.is_v4() {
                source.0[3] == domain.source4()
            } else {
                source.equals(domain.source6())
            })
            || source.belongs_to(index)
        {
            set_field!(tag, skb, tc_index);
            return Ok(());
        }
        return Err(Drop {
            reason: guard_reason::SOURCE,
            headers,
        });
    }
    if index != 0 && field!(skb, tc_index) == tag {
        // Seen and found right at the domain's own interface, of which this one is a part or carrier.
        return Ok(());
    }
    if let Some((_, destination, protocol)) = headers {
        if owner.passes_locals()
            && let Some(local) = destination.local()
            && !contains(local, index)
        {
            return Ok(());
        }
        if protocol == IPPROTO_UDP && domain.is_some() && wraps(skb, full) {
            return Ok(());
        }
    }
    let reason = if domain.is_some() {
        guard_reason::INTERFACE
    } else {
        guard_reason::NO_DOMAIN
    };
    Err(Drop { reason, headers })
}

/// `tc_index` of a packet that was found right at its domain's interface; the domain is added.
///
/// It stays with a packet through VLAN, bond, bridge and kernel tunnels; nothing else in the kernel
/// has used it since the tcindex classifier was removed (Linux 6.3), and no application can set it.
const TAG: u32 = 0x5300;

/// Whether a UDP packet is not its socket's own but a wrapping of it: WireGuard clears `tc_index`, but
/// leaves the inner socket on the packets that carry its flows.
#[inline(always)]
fn wraps(skb: *mut __sk_buff, full: *mut bpf_sock) -> bool {
    // Raw and packet sockets write headers themselves.
    if full.is_null() || field!(full, type_) == SOCK_RAW || field!(full, family) == AF_PACKET {
        return false;
    }
    if field!(full, protocol) != u32::from(IPPROTO_UDP) {
        return true;
    }
    let offset = if field!(skb, protocol) == ETH_P_IP {
        20
    } else {
        40
    };
    match load::<2>(skb, offset) {
        Some(port) => u32::from(u16::from_be_bytes(port)) != field!(full, src_port),
        None => false,
    }
}

#[inline(always)]
fn headers(skb: *mut __sk_buff) -> Headers {
    match field!(skb, protocol) {
        ETH_P_IP => {
            let header: [u32; 5] = load_words(skb)?;
            let protocol = (u32::from_be(header[2]) >> 16 & 0xff) as u8;
            Some((Address::v4(header[3]), Address::v4(header[4]), protocol))
        }
        ETH_P_IPV6 => {
            let header: [u32; 10] = load_words(skb)?;
            let protocol = (u32::from_be(header[1]) >> 8 & 0xff) as u8;
            let source = Address([header[2], header[3], header[4], header[5]]);
            let destination = Address([header[6], header[7], header[8], header[9]]);
            Some((source, destination, protocol))
        }
        _ => None,
    }
}

#[inline(always)]
fn load_words<const WORDS: usize>(skb: *mut __sk_buff) -> Option<[u32; WORDS]> {
    let mut words = [0_u32; WORDS];
    // SAFETY: the buffer has the length that is told.
    let result = unsafe {
        bpf_skb_load_bytes_relative(
            skb.cast(),
            0,
            words.as_mut_ptr().cast(),
            (WORDS * 4) as u32,
            HEADER_NETWORK,
        )
    };
    (result == 0).then_some(words)
}

#[inline(always)]
fn load<const LENGTH: usize>(skb: *mut __sk_buff, offset: u32) -> Option<[u8; LENGTH]> {
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

/// Tells the agent, unless the ring is half full: the rest is kept for cgroups.
fn tell(skb: *mut __sk_buff, owner: &Owner, reason: u32, headers: &Headers) {
    // SAFETY: asks the map for a number.
    let queued = unsafe {
        bpf_ringbuf_query(
            (&raw const EVENTS).cast_mut().cast(),
            BPF_RB_AVAIL_DATA.into(),
        )
    };
    if queued > u64::from(EVENT_RING_BYTES / 2) {
        return;
    }
    let (source, destination) = match headers {
        Some((source, destination, _)) => (*source, *destination),
        None => (Address([0; 4]), Address([0; 4])),
    };
    let Some(mut record) = EVENTS.reserve_untyped::<GuardEvent>(0) else {
        return;
    };
    record.write(GuardEvent {
        kind: EventKind::Guard as u32,
        reason,
        // SAFETY: the program's own packet.
        cgroup: unsafe { bpf_skb_cgroup_id(skb) },
        policy: owner.policy,
        ifindex: field!(skb, ifindex),
        source: source.bytes(),
        destination: destination.bytes(),
    });
    record.submit(0);
}
