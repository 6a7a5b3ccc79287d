//! What the programs read from and write to a socket.

use core::{
    ffi::c_void,
    ptr::{addr_of, read_volatile},
};

use aya_ebpf::{
    bindings::{SO_MARK, SOL_SOCKET, bpf_sock, bpf_sock_addr, sockaddr},
    helpers::generated::{
        bpf_bind, bpf_get_netns_cookie, bpf_get_socket_cookie, bpf_getsockopt, bpf_setsockopt,
    },
};

use steer_common::MarkMask;

use crate::{address::Address, globals};

/// `AF_INET`
pub const AF_INET: u32 = 2;
/// `AF_INET6`
pub const AF_INET6: u32 = 10;
/// `AF_PACKET`
pub const AF_PACKET: u32 = 17;

/// `SOCK_STREAM`
pub const SOCK_STREAM: u32 = 1;
/// `SOCK_DGRAM`
pub const SOCK_DGRAM: u32 = 2;
/// `SOCK_RAW`
pub const SOCK_RAW: u32 = 3;
/// `TCP_ESTABLISHED`, which a connected datagram socket is too.
pub const CONNECTED: u32 = 1;
/// `TCP_TIME_WAIT`: what is left of a socket.
pub const TIME_WAIT: u32 = 6;
/// `TCP_NEW_SYN_RECV`: what will be a socket.
pub const NEW_SYN_RECV: u32 = 12;

/// Reads one context or socket field by itself: the verifier refuses merged loads.
macro_rules! field {
    ($pointer:expr, $($field:tt)+) => {{
        // SAFETY: the verifier checks every access to a context or socket.
        unsafe { core::ptr::read_volatile(core::ptr::addr_of!((*$pointer).$($field)+)) }
    }};
}
/// Writes one context field by itself; merged stores are "dereference of modified ctx ptr".
macro_rules! set_field {
    ($value:expr, $pointer:expr, $($field:tt)+) => {{
        // SAFETY: the verifier checks every access to a context.
        unsafe { core::ptr::write_volatile(core::ptr::addr_of_mut!((*$pointer).$($field)+), $value) }
    }};
}
pub(crate) use {field, set_field};

/// Whether the socket of this socket program lives in the namespace that is steered.
#[inline(always)]
pub fn is_ours(context: *mut c_void) -> bool {
    // SAFETY: `context` is the program's own.
    unsafe { bpf_get_netns_cookie(context) == globals::NETNS_COOKIE.load() }
}

/// The socket of an address program.
#[inline(always)]
pub fn of(context: *mut bpf_sock_addr) -> *mut bpf_sock {
    field!(context, __bindgen_anon_1.sk)
}

/// The cookie of the socket of an address program, which the packets of a socket have too.
#[inline(always)]
pub fn cookie(context: *mut bpf_sock_addr) -> u64 {
    // SAFETY: the program's own context.
    unsafe { bpf_get_socket_cookie(context.cast()) }
}

/// Four words one by one.
#[inline(always)]
pub fn words(pointer: *const [u32; 4]) -> Address {
    // SAFETY: the verifier checks every access to a context or socket.
    unsafe {
        Address([
            read_volatile(addr_of!((*pointer)[0])),
            read_volatile(addr_of!((*pointer)[1])),
            read_volatile(addr_of!((*pointer)[2])),
            read_volatile(addr_of!((*pointer)[3])),
        ])
    }
}

/// The socket's own address as flows to IPv4 and to IPv6 destinations would have it.
///
/// To be called once, for both: the compiler would merge loads in two branches into one at a computed
/// offset ("pointer arithmetic on sock prohibited").
#[inline(always)]
pub fn sources(socket: *mut bpf_sock) -> [Address; 2] {
    let source4 = Address::v4(field!(socket, src_ip4));
    // SAFETY: only the address is taken; `words` reads.
    [source4, words(unsafe { addr_of!((*socket).src_ip6) })]
}

/// Whether that is the address that a connected socket is connected to.
#[inline(always)]
pub fn is_peer(socket: *mut bpf_sock, address: Address) -> bool {
    // Both are read, for the reason that `sources` gives.
    let peer4 = Address::v4(field!(socket, dst_ip4));
    // SAFETY: only the address is taken; `words` reads.
    let peer6 = words(unsafe { addr_of!((*socket).dst_ip6) });
    address.equals(if address.is_v4() { peer4 } else { peer6 })
}

/// Whether that is the port, in host byte order, that a connected socket is connected to.
#[inline(always)]
pub fn is_peer_port(socket: *mut bpf_sock, port: u32) -> bool {
    u32::from(u16::from_be(field!(socket, dst_port))) == port
}

/// Our part of the socket's mark.
#[inline(always)]
pub fn our_mark(socket: *mut bpf_sock) -> u32 {
    field!(socket, mark) & globals::MARK_MASK.load()
}

/// The index of the domain that the socket's mark stands for; 0: none.
#[inline(always)]
pub fn marked_domain(socket: *mut bpf_sock) -> u32 {
    domain_of_mark(field!(socket, mark))
}

/// The index of the domain that a mark stands for; 0: none. A function of its own: its 32 steps take stack
/// that `connect` has not left.
#[inline(never)]
pub fn domain_of_mark(mark: u32) -> u32 {
    match MarkMask::new(globals::MARK_MASK.load()) {
        Ok(mask) => mask.decode(mark).into(),
        Err(_) => 0,
    }
}

/// Puts `bits` into our part of the socket's mark and leaves the rest, with no call if it is there
/// already. False: the kernel refused.
#[inline(always)]
pub fn set_mark(context: *mut bpf_sock_addr, socket: *mut bpf_sock, bits: u32) -> bool {
    let current = field!(socket, mark);
    let mut wanted = current & !globals::MARK_MASK.load() | bits;
    if wanted == current {
        return true;
    }
    // SAFETY: `wanted` outlives the call.
    let result = unsafe {
        bpf_setsockopt(
            context.cast(),
            SOL_SOCKET as i32,
            SO_MARK as i32,
            (&raw mut wanted).cast(),
            4,
        )
    };
    result == 0
}

/// The class that the application gave the socket for packets of a family; 0 where it gave none.
///
/// Also 0 for IPv4 packets of an IPv6 socket where the kernel tells it of IPv4 sockets alone
/// (`sol_ip_sockopt`; 6.18 tells it of both).
#[inline(always)]
pub fn dscp(context: *mut bpf_sock_addr, v4: bool) -> u32 {
    const IPPROTO_IP: i32 = 0;
    const IP_TOS: i32 = 1;
    const IPPROTO_IPV6: i32 = 41;
    const IPV6_TCLASS: i32 = 67;
    let (level, option) = if v4 {
        (IPPROTO_IP, IP_TOS)
    } else {
        (IPPROTO_IPV6, IPV6_TCLASS)
    };
    let mut class = 0_u32;
    // SAFETY: `class` outlives the call and has the length that is told.
    let result =
        unsafe { bpf_getsockopt(context.cast(), level, option, (&raw mut class).cast(), 4) };
    if result == 0 { class >> 2 & 0x3f } else { 0 }
}

#[repr(C)]
struct SockaddrIn6 {
    family: u16,
    port: u16,
    flowinfo: u32,
    address: [u32; 4],
    scope: u32,
}

/// Binds an IPv6 socket to `address` without taking a port.
///
/// `-EINVAL`: it has a port already; `-EADDRNOTAVAIL`: the address is not the host's.
#[inline(always)]
pub fn bind6(context: *mut bpf_sock_addr, address: Address) -> Result<(), i64> {
    let mut name = SockaddrIn6 {
        family: AF_INET6 as u16,
        port: 0,
        flowinfo: 0,
        address: address.0,
        scope: 0,
    };
    // SAFETY: `name` outlives the call and has the length that is told.
    let result = unsafe {
        bpf_bind(
            context,
            (&raw mut name).cast::<sockaddr>(),
            size_of::<SockaddrIn6>() as i32,
        )
    };
    if result == 0 { Ok(()) } else { Err(result) }
}
