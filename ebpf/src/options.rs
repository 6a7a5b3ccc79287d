//! What an application chose by socket options that no program is shown: the interface of its datagrams, and
//! which of a domain's IPv6 addresses it prefers (RFC 5014).
//!
//! Read from the kernel's own structures, behind the context (`struct bpf_sock_addr_kern`): the socket that
//! programs see can only be read as far as its description goes. An offset of 0 says that this kernel's is not
//! known; the verifier then leaves out what would read there.

use core::ffi::c_void;

use aya_ebpf::{bindings::bpf_sock_addr, helpers::generated::bpf_skc_to_udp6_sock};

use crate::{
    address::Address,
    decision::Domain,
    fit, globals,
    kernel::read,
    owner::Owner,
    sock::{self, SOCK_STREAM, field},
};

/// Whether the application chose another interface than that of `domain` for its datagrams, and its policy
/// lets it: one that is strict refuses the option.
///
/// `v4`: of the packets, which may be of an IPv6 socket. An interface that the socket is bound to goes before.
#[inline(always)]
pub fn lead_elsewhere(ctx: *mut bpf_sock_addr, owner: &Owner, v4: bool, domain: u32) -> bool {
    if owner.is_strict()
        // The kernel looks at the option for datagrams alone.
        || field!(ctx, type_) == SOCK_STREAM
        || field!(sock::of(ctx), bound_dev_if) != 0
    {
        return false;
    }
    let chosen = if v4 { interface4(ctx) } else { interface6(ctx) };
    chosen != 0 && chosen != fit::interface(domain)
}

/// `IP_UNICAST_IF`: an index; 0: none.
#[inline(never)]
fn interface4(ctx: *mut bpf_sock_addr) -> u32 {
    let offset = globals::INET_UNICAST_IF.load();
    if offset == 0 {
        return 0;
    }
    socket(ctx)
        .and_then(|socket| read(socket, offset))
        .unwrap_or(0)
}

/// `IPV6_UNICAST_IF`: an index; 0: none.
#[inline(never)]
fn interface6(ctx: *mut bpf_sock_addr) -> u32 {
    member6(ctx, globals::INET6_UNICAST_IF.load()).unwrap_or(0)
}

/// The IPv6 address of `domain` that the application prefers.
#[inline(always)]
pub fn source6(ctx: *mut bpf_sock_addr, domain: &Domain) -> Address {
    if prefer_public(ctx) {
        domain.public6()
    } else {
        domain.source6()
    }
}

/// `IPV6_ADDR_PREFERENCES`: whether public addresses are preferred to temporary ones.
#[inline(never)]
fn prefer_public(ctx: *mut bpf_sock_addr) -> bool {
    let preferences: u8 = member6(ctx, globals::INET6_PREFERENCES.load()).unwrap_or(0);
    u32::from(preferences) & globals::INET6_PREFERS_PUBLIC.load() != 0
}

/// A member of the kernel's `struct ipv6_pinfo` of an IPv6 socket.
#[inline(always)]
fn member6<T: Copy>(ctx: *mut bpf_sock_addr, offset: u32) -> Option<T> {
    if offset == 0 {
        return None;
    }
    // Each datagram of an unconnected UDP socket is asked about, and the kernel's reader costs as much as half
    // of what else is done for one. This socket's type is known to the verifier, which has it read directly.
    // SAFETY: the socket of an address program.
    let udp = unsafe { bpf_skc_to_udp6_sock(sock::of(ctx).cast()) };
    if !udp.is_null() {
        let offset = globals::UDP6_INET6.load() + offset;
        // SAFETY: the verifier checks the access.
        return Some(unsafe {
            udp.wrapping_byte_add(offset as usize)
                .cast::<T>()
                .read_volatile()
        });
    }
    let place: *const c_void = read(socket(ctx)?, globals::INET6.load())?;
    read(place, offset)
}

/// The kernel's `struct inet_sock`.
#[inline(always)]
fn socket(ctx: *mut bpf_sock_addr) -> Option<*const c_void> {
    read(ctx.cast_const().cast(), globals::SOCK_ADDR_SK.load())
}
