//! Questions about an interface of the calling thread's namespace.

use std::os::fd::AsRawFd;

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
    let socket = socket(AddressFamily::Inet, SockType::Datagram, SockFlag::SOCK_CLOEXEC, None)
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
