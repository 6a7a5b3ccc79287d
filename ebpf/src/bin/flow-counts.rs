//! Counts what single sockets send and receive: an object of its own, loaded and attached only while
//! somebody asks for flows. Nothing of it is pinned, so it ends with the agent that attached it.
//!
//! `cgroup_skb` sees each packet of a socket once, whatever interfaces it crosses, before it is cut into
//! fragments or segments, and also what is received.
#![no_std]
#![no_main]

use core::ptr::addr_of;

use aya_ebpf::{
    bindings::{__sk_buff, BPF_F_NO_PREALLOC, BPF_NOEXIST, bpf_spin_lock},
    btf_maps::HashMap,
    helpers::generated::{
        bpf_get_socket_cookie, bpf_skb_load_bytes_relative, bpf_spin_lock as lock,
        bpf_spin_unlock as unlock,
    },
    macros::{btf_map, cgroup_skb},
    programs::SkBuffContext,
};
use steer_common::{FlowCount, MAX_COUNTED};

/// See `steer-ebpf`.
#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";

#[panic_handler]
fn panic(_info: &core::panic::PanicInfo) -> ! {
    // No program of ours can panic: the verifier would refuse the endless loop.
    loop {}
}

/// Socket -> what it sent and received. No socket storage, since no kernel lists that of datagram
/// sockets.
#[btf_map]
pub static FLOW_COUNTS: HashMap<
    u64,
    Count,
    { MAX_COUNTED as usize },
    { BPF_F_NO_PREALLOC as usize },
> = HashMap::new();

/// [`FlowCount`] as the kernel wants it, which finds the lock by the name of its type. There is no atomic
/// addition: Rust gives it to targets alone that can compare and swap too.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Count {
    sent_bytes: u64,
    sent_packets: u64,
    received_bytes: u64,
    received_packets: u64,
    source: [u8; 16],
    destination: [u8; 16],
    ifindex: u32,
    port: u32,
    lock: bpf_spin_lock,
    reserved: u32,
}

const _: () = assert!(size_of::<Count>() == size_of::<FlowCount>());

/// Goes on with the packet: nothing is decided here.
const PASS: i32 = 1;

const ETH_P_IP: u32 = 0x0800_u16.to_be() as u32;
const ETH_P_IPV6: u32 = 0x86dd_u16.to_be() as u32;
const HEADER_NETWORK: u32 = 1;
const IPPROTO_UDP: u8 = 17;
const UDP_HEADER: u32 = 8;

/// Reads one context field by itself: the verifier refuses merged loads.
macro_rules! field {
    ($pointer:expr, $($field:tt)+) => {{
        // SAFETY: the verifier checks every access to a context.
        unsafe { core::ptr::read_volatile(addr_of!((*$pointer).$($field)+)) }
    }};
}

/// Entry.
#[cgroup_skb(egress)]
pub fn flow_sent(ctx: SkBuffContext) -> i32 {
    count::<true>(ctx.skb.skb);
    PASS
}

/// Entry.
#[cgroup_skb(ingress)]
pub fn flow_received(ctx: SkBuffContext) -> i32 {
    count::<false>(ctx.skb.skb);
    PASS
}

#[inline(always)]
fn count<const SENT: bool>(skb: *mut __sk_buff) {
    let Some(packet) = Packet::read(skb) else {
        return;
    };
    // SAFETY: the program's own packet, whose socket is the one that it is run for.
    let cookie = unsafe { bpf_get_socket_cookie(skb.cast()) };
    if cookie == 0 {
        return;
    }
    let bytes = u64::from(field!(skb, len).saturating_sub(packet.headers));
    let packets = u64::from(field!(skb, gso_segs).max(1));
    let ifindex = field!(skb, ifindex);
    // Where there is no memory or no room it is not counted, which is no reason to drop it.
    let Some(count) = of(cookie) else { return };
    // SAFETY: the kernel's own value, which lives as long as the program runs; the lock keeps others from
    // it, and is given back below, with no call between.
    unsafe {
        lock(&raw mut (*count).lock);
        if SENT {
            (*count).sent_bytes += bytes;
            (*count).sent_packets += packets;
            (*count).source = packet.source;
            (*count).destination = packet.destination;
            (*count).ifindex = ifindex;
            (*count).port = packet.port;
        } else {
            (*count).received_bytes += bytes;
            (*count).received_packets += packets;
        }
        unlock(&raw mut (*count).lock);
    }
}

/// What is counted of a socket.
#[inline(always)]
fn of(cookie: u64) -> Option<*mut Count> {
    if let Some(count) = FLOW_COUNTS.get_ptr_mut(cookie) {
        return Some(count);
    }
    // SAFETY: all zeros are a count, and a lock that nobody has.
    let zero: Count = unsafe { core::mem::zeroed() };
    // Another CPU may be faster, which is as well.
    let _made = FLOW_COUNTS.insert(cookie, zero, u64::from(BPF_NOEXIST));
    FLOW_COUNTS.get_ptr_mut(cookie)
}

/// What the headers of a packet say.
struct Packet {
    source: [u8; 16],
    destination: [u8; 16],
    /// Destination port.
    port: u32,
    /// Bytes of the headers that are not counted.
    headers: u32,
}

impl Packet {
    #[inline(always)]
    fn read(skb: *mut __sk_buff) -> Option<Self> {
        let (source, destination, protocol, end) = match field!(skb, protocol) {
            ETH_P_IP => {
                let header: [u8; 20] = load(skb, 0)?;
                let end = u32::from(header[0] & 0xf) * 4;
                let [
                    _,
                    _,
                    _,
                    _,
                    _,
                    _,
                    _,
                    _,
                    _,
                    protocol,
                    _,
                    _,
                    a,
                    b,
                    c,
                    d,
                    e,
                    f,
                    g,
                    h,
                ] = header;
                (mapped([a, b, c, d]), mapped([e, f, g, h]), protocol, end)
            }
            ETH_P_IPV6 => {
                let header: [u8; 8] = load(skb, 0)?;
                // Headers between are counted as payload: sockets that ask for them are rare.
                (load(skb, 8)?, load(skb, 24)?, header[6], 40)
            }
            _ => return None,
        };
        let (port, headers) = if protocol == IPPROTO_UDP {
            let [high, low] = load(skb, end + 2)?;
            (u32::from(u16::from_be_bytes([high, low])), end + UDP_HEADER)
        } else {
            (0, end)
        };
        Some(Self {
            source,
            destination,
            port,
            headers,
        })
    }
}

/// As IPv6 has it.
#[inline(always)]
const fn mapped(address: [u8; 4]) -> [u8; 16] {
    let [a, b, c, d] = address;
    [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, a, b, c, d]
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
