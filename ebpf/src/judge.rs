//! Whether a packet may leave by the interface it is about to leave by: the part that the packet
//! programs at egress share.

use aya_ebpf::{
    bindings::{__sk_buff, BPF_RB_AVAIL_DATA, bpf_sock},
    helpers::generated::{bpf_ringbuf_query, bpf_sk_fullsock, bpf_skb_cgroup_id},
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
    packet::{self, Headers},
    sock::{field, set_field},
};

/// Whether a packet may leave. Those of strict policies are counted, and drops are told.
///
/// `TAGS`: a packet that is found right at its domain's interface is told to those below it.
#[inline(always)]
pub fn may_leave<const TAGS: bool>(skb: *mut __sk_buff) -> bool {
    let socket: *mut bpf_sock = field!(skb, __bindgen_anon_2.sk);
    if socket.is_null() {
        return true;
    }
    // SAFETY: not null.
    let full = unsafe { bpf_sk_fullsock(socket) };
    let (owner, domain) = owner(skb, full);
    if !owner.is_strict() {
        return true;
    }
    match judge::<TAGS>(skb, full, &owner, domain) {
        Ok(()) => {
            count(counter::GUARD_PASSED);
            true
        }
        Err(Drop { reason, headers }) => {
            count(counter::GUARD_DROPPED);
            tell(skb, &owner, reason, headers.as_ref());
            false
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
    headers: Option<Headers>,
}

#[inline(always)]
fn judge<const TAGS: bool>(
    skb: *mut __sk_buff,
    full: *mut bpf_sock,
    owner: &Owner,
    decided: u32,
) -> Result<(), Drop> {
    let headers = packet::headers(skb);
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
        let Some(Headers { source, .. }) = headers else {
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
            if TAGS {
                set_field!(tag, skb, tc_index);
            }
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
    if let Some(headers) = &headers {
        if owner.passes_locals()
            && let Some(local) = headers.destination.local()
            && !contains(local, index)
        {
            return Ok(());
        }
        if domain.is_some() && packet::wraps(skb, full, headers) {
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

/// Tells the agent, unless the ring is half full: the rest is kept for cgroups.
fn tell(skb: *mut __sk_buff, owner: &Owner, reason: u32, headers: Option<&Headers>) {
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
        Some(headers) => (headers.source, headers.destination),
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
