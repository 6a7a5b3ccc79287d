//! Counts of what is sent, per policy and domain.

use aya_ebpf::bindings::{__sk_buff, BPF_NOEXIST};
use steer_common::{Traffic, TrafficKey, counter};

use crate::{count::count, maps::TRAFFIC, sock::field};

/// What a packet counts as beside being sent.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Nothing else.
    Sent,
    /// It left otherwise than its policy says.
    Wrong,
    /// It did not leave.
    Dropped,
}

/// Counts a packet. `TC`: at tc egress, where its length on the wire is known.
#[inline(always)]
pub fn add<const TC: bool>(skb: *mut __sk_buff, policy: u32, domain: u32, kind: Kind) {
    let key = TrafficKey { policy, domain };
    // A packet that the interface is to cut into many counts as these.
    let segments = field!(skb, gso_segs);
    let packets = if segments == 0 {
        1
    } else {
        u64::from(segments)
    };
    let bytes = if TC {
        u64::from(field!(skb, wire_len))
    } else {
        u64::from(field!(skb, len))
    };
    let slot = match TRAFFIC.get_ptr_mut(key) {
        Some(slot) => slot,
        None => {
            // Made for all CPUs with zeros, unless another CPU was faster.
            let _: Result<(), i32> = TRAFFIC.insert(key, Traffic::default(), BPF_NOEXIST.into());
            match TRAFFIC.get_ptr_mut(key) {
                Some(slot) => slot,
                None => return count(counter::TRAFFIC_LOST),
            }
        }
    };
    // SAFETY: the slot is this CPU's own; an interrupt in between may lose one count.
    unsafe {
        if kind == Kind::Dropped {
            (*slot).dropped += packets;
            return;
        }
        (*slot).packets += packets;
        (*slot).bytes += bytes;
        if kind == Kind::Wrong {
            (*slot).wrong += packets;
        }
    }
}
