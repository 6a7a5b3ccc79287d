//! Taking an interface down by one system call, so that the moment is known.

use std::os::fd::AsRawFd;
use std::time::Duration;

use anyhow::{Context, Result};
use nix::libc;
use nix::sys::socket::{AddressFamily, SockFlag, SockType, socket};
use steer_tests::Namespace;

use crate::clock::monotonic;

mod request {
    use nix::libc;

    nix::ioctl_write_ptr_bad!(set_interface_flags, libc::SIOCSIFFLAGS, libc::ifreq);
}

/// Sets `peer`, the far end of an uplink, down; returns the moment before.
pub(crate) fn cut(peer: &Namespace) -> Result<Duration> {
    peer.run(|| {
        let socket = socket(
            AddressFamily::Inet,
            SockType::Datagram,
            SockFlag::SOCK_CLOEXEC,
            None,
        )
        .context("open a socket")?;
        // SAFETY: ifreq is plain data for which all zeroes are valid; zero flags mean down.
        let mut asked: libc::ifreq = unsafe { std::mem::zeroed() };
        for (to, from) in asked.ifr_name.iter_mut().zip(b"peer") {
            *to = from.cast_signed();
        }
        let before = monotonic()?;
        // SAFETY: the request is a zero-terminated ifreq that lives through the call.
        unsafe { request::set_interface_flags(socket.as_raw_fd(), &raw const asked) }
            .context("set the peer down")?;
        Ok(before)
    })
}
