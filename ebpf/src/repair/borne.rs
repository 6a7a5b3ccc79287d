//! ICMP errors about repaired packets: they bear the packet as the peer saw it, and go back with it as its
//! socket sent it, so that traceroute, refusals and path MTU discovery work.

use core::mem::MaybeUninit;

use aya_ebpf::helpers::generated::{bpf_l3_csum_replace, bpf_l4_csum_replace};
use steer_common::{FragmentLease, ReturnKey};

use super::{Packet, lease, link::store, rewrite};
use crate::{
    address::Address,
    packet::{borne_transport, headers_at, load, shape},
    sock::field,
};

/// Of the packet that is borne: its transport header's offset from the outer IP header on, and its protocol.
pub struct Borne {
    offset: u32,
    protocol: u32,
}

impl Borne {
    /// Not read yet.
    pub const NONE: Self = Self {
        offset: 0,
        protocol: 0,
    };
}

/// Where an ICMP error is to arrive. False: it is not about a repaired flow, and `lease` is not written.
#[inline(never)]
pub fn find(packet: &Packet, borne: &mut Borne, lease: &mut MaybeUninit<FragmentLease>) -> bool {
    let base = packet.transport.offset + 8;
    let Some(headers) = headers_at(packet.skb, base) else {
        return false;
    };
    // About a packet of this address, or of nobody.
    if !headers.source.equals(packet.headers.destination) {
        return false;
    }
    let transport = borne_transport(packet.skb, &headers, base, packet.link);
    if transport.shape != shape::WHOLE {
        return false;
    }
    borne.offset = transport.offset;
    borne.protocol = transport.protocol;
    let key = ReturnKey {
        local: headers.source.bytes(),
        remote: headers.destination.bytes(),
        local_port: transport.source_port as u16,
        remote_port: transport.destination_port as u16,
        protocol: transport.protocol,
        ifindex: field!(packet.skb, ifindex),
    };
    lease::of_return(&key, lease)
}

/// Rewrites the source of the packet that is borne and the destination of the error.
///
/// The sum over all of the error stays as it was, with each of the checksums in it made to fit.
#[inline(never)]
pub fn rewrite(packet: &Packet, borne: &Borne, lease: &FragmentLease) -> bool {
    let base = packet.transport.offset + 8;
    let old = packet.headers.destination;
    let (skb, link) = (packet.skb, packet.link);
    let new = Address::from_bytes(lease.address);
    let more = rewrite::difference(&old, &new);
    let less = rewrite::difference(&new, &old);
    // What changes below the error's own checksum, and for IPv6 in the addresses that it covers.
    let mut changed = 0;
    if !packet.is_v4() {
        changed = fold_add(more, more);
    }
    // The checksum of the borne transport, as far as it is borne.
    if let Some(at) = rewrite::checksum(borne.protocol)
        && let Some(sum) = load::<2>(skb, borne.offset + at)
    {
        let flags = rewrite::flags(borne.protocol);
        // 0 is no checksum.
        if sum[0] != 0 || sum[1] != 0 || flags == 0 {
            let offset = link + borne.offset + at;
            // SAFETY: the kernel checks the offset.
            if unsafe { bpf_l4_csum_replace(skb, offset, 0, more, flags) } != 0 {
                return false;
            }
            changed = fold_add(changed, less);
        }
    }
    let own = link + packet.transport.offset + 2;
    // SAFETY: the kernel checks offsets.
    unsafe {
        if bpf_l4_csum_replace(skb, own, 0, changed, 0) != 0 {
            return false;
        }
        if packet.is_v4() {
            let (from, to) = (old.0[3].into(), new.0[3].into());
            bpf_l3_csum_replace(skb, link + base + 10, from, to, 4) == 0
                && bpf_l3_csum_replace(skb, link + 10, from, to, 4) == 0
                && store(skb, link + base + 12, &new.0[3])
                && store(skb, link + 16, &new.0[3])
        } else {
            store(skb, link + base + 8, &new.0) && store(skb, link + 24, &new.0)
        }
    }
}

/// The sum of two partial checksums.
#[inline(always)]
fn fold_add(a: u64, b: u64) -> u64 {
    let sum = (a & 0xffff_ffff) + (b & 0xffff_ffff);
    (sum & 0xffff_ffff) + (sum >> 32)
}
