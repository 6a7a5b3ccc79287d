//! Interfaces of the calling thread's namespace: their state, and frames sent by them.

use std::os::fd::{AsRawFd, OwnedFd};

use anyhow::{Context, Result, bail};
use nix::errno::Errno;
use nix::sys::socket::{AddressFamily, SockFlag, SockType, socket};

mod request {
    nix::ioctl_read_bad!(interface_flags, libc::SIOCGIFFLAGS, libc::ifreq);
}

/// Whether `interface` exists, is up and has carrier (`IFF_RUNNING`).
///
/// # Errors
/// If the kernel cannot be asked.
pub(crate) fn is_running(interface: &str) -> Result<bool> {
    let socket = socket(
        AddressFamily::Inet,
        SockType::Datagram,
        SockFlag::SOCK_CLOEXEC,
        None,
    )
    .context("open socket")?;
    // SAFETY: ifreq is plain data for which all zeroes are valid.
    let mut asked: libc::ifreq = unsafe { std::mem::zeroed() };
    if interface.len() >= asked.ifr_name.len() {
        bail!("interface name {interface} is too long");
    }
    for (to, from) in asked.ifr_name.iter_mut().zip(interface.bytes()) {
        *to = from.cast_signed();
    }
    // SAFETY: the request is a zero-terminated ifreq that lives through the call.
    match unsafe { request::interface_flags(socket.as_raw_fd(), &raw mut asked) } {
        Ok(_) => {}
        Err(Errno::ENODEV) => return Ok(false),
        Err(error) => return Err(error).with_context(|| format!("read flags of {interface}")),
    }
    // SAFETY: SIOCGIFFLAGS filled this member of the union.
    let flags = i32::from(unsafe { asked.ifr_ifru.ifru_flags });
    let wanted = libc::IFF_UP | libc::IFF_RUNNING;
    Ok(flags & wanted == wanted)
}

/// `AF_PACKET` as socket addresses have it.
#[expect(clippy::cast_possible_truncation, reason = "17 fits")]
const PACKET_FAMILY: libc::sa_family_t = libc::AF_PACKET as libc::sa_family_t;

/// Length of a packet socket's address.
#[expect(clippy::cast_possible_truncation, reason = "20 bytes")]
const PACKET_ADDRESS_LENGTH: libc::socklen_t = size_of::<libc::sockaddr_ll>() as libc::socklen_t;

/// Sends a whole Ethernet frame by the interface `index`, through a packet socket.
///
/// # Errors
/// The kernel's.
pub fn send_frame(socket: &OwnedFd, index: i32, frame: &[u8]) -> Result<(), Errno> {
    // SAFETY: sockaddr_ll is plain data for which all zeroes are valid.
    let mut to: libc::sockaddr_ll = unsafe { std::mem::zeroed() };
    to.sll_family = PACKET_FAMILY;
    to.sll_ifindex = index;
    to.sll_halen = 6;
    to.sll_addr[..6].fill(0xff);
    // SAFETY: the frame and the address live through the call, and their true lengths are given.
    let sent = unsafe {
        libc::sendto(
            socket.as_raw_fd(),
            frame.as_ptr().cast(),
            frame.len(),
            0,
            (&raw const to).cast(),
            PACKET_ADDRESS_LENGTH,
        )
    };
    Errno::result(sent).map(drop)
}
