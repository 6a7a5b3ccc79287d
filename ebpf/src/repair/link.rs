//! Link-layer headers: pushed, read and written.

use aya_ebpf::{
    bindings::__sk_buff,
    helpers::generated::{bpf_skb_change_head, bpf_skb_load_bytes, bpf_skb_store_bytes},
};

use crate::{packet::ETHERNET, sock::field};

/// Sees to it that the packet has an Ethernet header, of which nothing need be true: the kernel takes none
/// for redirection from a device without (`__bpf_redirect_neigh`), and drops the packet.
#[inline(always)]
pub fn push_ethernet(skb: *mut __sk_buff, link: u32) -> bool {
    // SAFETY: takes numbers.
    link != 0 || unsafe { bpf_skb_change_head(skb, ETHERNET, 0) } == 0
}

/// The hardware address of the interface that the packet leaves by; zero where it has none.
#[inline(always)]
pub fn own_mac(skb: *mut __sk_buff, link: u32) -> [u8; 6] {
    let mut mac = [0; 6];
    if link == ETHERNET {
        // SAFETY: the buffer has the length that is told.
        unsafe { bpf_skb_load_bytes(skb.cast(), 6, mac.as_mut_ptr().cast(), 6) };
    }
    mac
}

/// The hardware address that a packet with an Ethernet header is for.
#[inline(always)]
pub fn peer_mac(skb: *mut __sk_buff) -> [u8; 6] {
    let mut mac = [0; 6];
    // SAFETY: the buffer has the length that is told.
    unsafe { bpf_skb_load_bytes(skb.cast(), 0, mac.as_mut_ptr().cast(), 6) };
    mac
}

/// Writes an Ethernet header to `mac`, pushed in front where there is none: the kernel takes a packet for
/// another host's otherwise.
#[inline(always)]
pub fn address_to(skb: *mut __sk_buff, link: u32, mac: &[u8; 6]) -> bool {
    if link == ETHERNET {
        return store(skb, 0, mac);
    }
    let mut header = [0_u8; ETHERNET as usize];
    let mut at = 0;
    while at < 6 {
        header[at] = mac[at];
        at += 1;
    }
    let protocol = (field!(skb, protocol) as u16).to_ne_bytes();
    (header[12], header[13]) = (protocol[0], protocol[1]);
    push_ethernet(skb, link) && store(skb, 0, &header)
}

/// Writes bytes at `offset` from the beginning of the packet.
#[inline(always)]
pub fn store<T>(skb: *mut __sk_buff, offset: u32, bytes: &T) -> bool {
    // SAFETY: the value has the length that is told.
    let result = unsafe {
        bpf_skb_store_bytes(
            skb,
            offset,
            core::ptr::from_ref(bytes).cast(),
            size_of::<T>() as u32,
            0,
        )
    };
    result == 0
}
