//! The strong host model (RFC 1122, section 3.3.4.2): an interface takes and sends nothing for the host that
//! bears the address of another interface.
//!
//! A packet for or from an address that is at home at its interface costs one look into `HOSTS`, and any
//! other one two: what is nobody's own is forwarded, and passes. So does what has to do with an interface
//! itself: multicast, broadcast, link-local and loopback addresses, neighbour discovery and DHCP.

use aya_ebpf::bindings::{__sk_buff, BPF_NOEXIST};
use steer_common::{HostCounts, HostKey};

use crate::{
    address::Address,
    maps::{HOST_COUNTS, HOSTS},
    packet::{self, Headers},
    sock::field,
};

const ETH_P_ARP: u32 = 0x0806_u16.to_be() as u32;
/// `PACKET_OTHERHOST`: the frame's destination is not the interface's hardware address, so that the packet
/// is for one that is stacked on it, or for nobody here.
const OTHER_HOST: u32 = 3;
/// Bits of a VLAN tag that name the VLAN.
const VLAN_ID: u32 = 0xfff;

/// Whether a packet arrives for an address of the host that is not its interface's. It is counted.
#[inline(always)]
pub fn refuses_arrival(skb: *mut __sk_buff, ifindex: u32) -> bool {
    if field!(skb, pkt_type) == OTHER_HOST || is_of_vlan(skb) {
        return false;
    }
    if field!(skb, protocol) == ETH_P_ARP {
        let Some(arp) = Arp::read(skb) else {
            return false;
        };
        let refused = arp.is_request && is_elsewhere(ifindex, arp.target);
        if refused {
            count(ifindex, Count::Asked);
        }
        return refused;
    }
    let Some(headers) = packet::headers(skb) else {
        return false;
    };
    let refused = is_elsewhere(ifindex, headers.destination) && !is_about_link(skb, &headers);
    if refused {
        count(ifindex, Count::Received);
    }
    refused
}

/// Whether a packet leaves with an address of the host that is not its interface's. It is counted.
#[inline(always)]
pub fn refuses_departure(skb: *mut __sk_buff, ifindex: u32) -> bool {
    // What is forwarded came by an interface.
    if field!(skb, ingress_ifindex) != 0 || is_of_vlan(skb) {
        return false;
    }
    let refused = if field!(skb, protocol) == ETH_P_ARP {
        Arp::read(skb).is_some_and(|arp| is_elsewhere(ifindex, arp.sender))
    } else {
        match packet::headers(skb) {
            Some(headers) => is_elsewhere(ifindex, headers.source) && !is_about_link(skb, &headers),
            None => false,
        }
    };
    if refused {
        count(ifindex, Count::Sent);
    }
    refused
}

/// Whether the packet is a VLAN's, whose interface is another, with a host model of its own.
#[inline(always)]
fn is_of_vlan(skb: *mut __sk_buff) -> bool {
    field!(skb, vlan_present) != 0 && field!(skb, vlan_tci) & VLAN_ID != 0
}

/// Whether an address is the host's, and at home at other interfaces only.
#[inline(always)]
fn is_elsewhere(ifindex: u32, address: Address) -> bool {
    !address.is_never_steered() && !is_at_home(ifindex, address) && is_at_home(0, address)
}

#[inline(always)]
fn is_at_home(interface: u32, address: Address) -> bool {
    let key = HostKey {
        interface,
        address: address.bytes(),
    };
    HOSTS.get_ptr(&key).is_some()
}

/// DHCP and neighbour discovery, which are about the link and not about an address.
#[inline(always)]
fn is_about_link(skb: *mut __sk_buff, headers: &Headers) -> bool {
    const IPPROTO_UDP: u8 = 17;
    const IPPROTO_ICMPV6: u8 = 58;
    if headers.end == 0 {
        return false;
    }
    match headers.protocol {
        IPPROTO_UDP => match packet::load::<4>(skb, headers.end.into()) {
            Some([a, b, c, d]) => {
                let (from, to) = (u16::from_be_bytes([a, b]), u16::from_be_bytes([c, d]));
                let is_dhcp = |port: u16| matches!(port, 67 | 68 | 546 | 547);
                is_dhcp(from) && is_dhcp(to)
            }
            None => false,
        },
        IPPROTO_ICMPV6 => match packet::load::<1>(skb, headers.end.into()) {
            Some([kind]) => matches!(kind, 133..=137),
            None => false,
        },
        _ => false,
    }
}

/// What ARP for IPv4 says.
struct Arp {
    is_request: bool,
    sender: Address,
    target: Address,
}

impl Arp {
    /// `None`: cut short. Other hardware than Ethernet has its addresses elsewhere, and is left alone too.
    #[inline(always)]
    fn read(skb: *mut __sk_buff) -> Option<Self> {
        const ETHERNET: u32 = 0x0001_0800;
        const LENGTHS: u32 = 0x0604;
        // The sender's IPv4 address begins in the middle of a word.
        let words: [u32; 7] = packet::load_words(skb, 0)?;
        let (kind, rest) = (u32::from_be(words[0]), u32::from_be(words[1]));
        if kind != ETHERNET || rest >> 16 != LENGTHS {
            return None;
        }
        let sender = u32::from_be(words[3]) << 16 | u32::from_be(words[4]) >> 16;
        Some(Self {
            is_request: rest & 0xffff == 1,
            sender: Address::v4(sender.to_be()),
            target: Address::v4(words[6]),
        })
    }
}

/// A field of [`HostCounts`].
enum Count {
    Received,
    Asked,
    Sent,
}

/// Adds one to a count of an interface.
#[inline(always)]
fn count(ifindex: u32, which: Count) {
    if HOST_COUNTS.get_ptr(ifindex).is_none() {
        // Another packet may have been faster; with a full map nothing is counted.
        let _ = HOST_COUNTS.insert(ifindex, HostCounts::default(), BPF_NOEXIST.into());
    }
    let Some(counts) = HOST_COUNTS.get_ptr_mut(ifindex) else {
        return;
    };
    // SAFETY: this CPU's own value; an interrupt in between may lose one count.
    unsafe {
        match which {
            Count::Received => (*counts).received += 1,
            Count::Asked => (*counts).asked += 1,
            Count::Sent => (*counts).sent += 1,
        }
    }
}
