//! Interfaces of the calling thread's namespace: their state, and frames sent by them.

use std::fs::File;
use std::os::fd::{AsRawFd, OwnedFd};

use anyhow::{Context, Result, bail};
use nix::errno::Errno;
use nix::sys::socket::{AddressFamily, SockFlag, SockType, socket};

mod request {
    nix::ioctl_read_bad!(interface_flags, libc::SIOCGIFFLAGS, libc::ifreq);
    nix::ioctl_write_ptr_bad!(set_tap, libc::TUNSETIFF, libc::ifreq);
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
    let mut asked = named(interface)?;
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

/// A packet socket for all that arrives at `interface`, with the header of virtio before each frame. Frames that
/// are written to it leave by the interface.
///
/// # Errors
/// If there is no such interface, or the kernel refuses.
pub(crate) fn open_cable(interface: &str) -> Result<OwnedFd> {
    // Without a protocol nothing arrives before it is bound: it would come from every interface.
    let cable = socket(
        AddressFamily::Packet,
        SockType::Raw,
        SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK,
        None,
    )
    .context("open packet socket")?;
    set_packet_option(&cable, libc::PACKET_VNET_HDR).context("ask for the header of virtio")?;
    set_packet_option(&cable, libc::PACKET_IGNORE_OUTGOING).context("ignore what is sent")?;
    let index = nix::net::if_::if_nametoindex(interface)
        .with_context(|| format!("index of {interface}"))?;
    // SAFETY: sockaddr_ll is plain data for which all zeroes are valid.
    let mut all: libc::sockaddr_ll = unsafe { std::mem::zeroed() };
    all.sll_family = PACKET_FAMILY;
    all.sll_protocol = ALL_PROTOCOLS.to_be();
    all.sll_ifindex = i32::try_from(index).context("interface index")?;
    // SAFETY: the address lives through the call, and its true length is given.
    let bound = unsafe {
        libc::bind(
            cable.as_raw_fd(),
            (&raw const all).cast(),
            PACKET_ADDRESS_LENGTH,
        )
    };
    Errno::result(bound).with_context(|| format!("bind packet socket to {interface}"))?;
    Ok(cable)
}

/// `ETH_P_ALL` as socket addresses have it.
#[expect(clippy::cast_possible_truncation, reason = "3 fits")]
const ALL_PROTOCOLS: u16 = libc::ETH_P_ALL as u16;

fn set_packet_option(socket: &OwnedFd, option: i32) -> Result<(), Errno> {
    let on = 1_i32;
    // SAFETY: the value is an int that lives through the call.
    let result = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::SOL_PACKET,
            option,
            (&raw const on).cast(),
            4,
        )
    };
    Errno::result(result).map(drop)
}

/// Makes an open `/dev/net/tun` the tap device `name`, with the header of virtio before each frame.
///
/// # Errors
/// If the kernel refuses.
pub(crate) fn make_tap(tun: &File, name: &str) -> Result<()> {
    let mut wanted = named(name)?;
    let flags = libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR;
    wanted.ifr_ifru.ifru_flags = libc::c_short::try_from(flags).context("flags of a tap")?;
    // SAFETY: the request is a zero-terminated ifreq that lives through the call.
    unsafe { request::set_tap(tun.as_raw_fd(), &raw const wanted) }
        .with_context(|| format!("make the tap device {name}"))?;
    Ok(())
}

/// A request about `interface`.
fn named(interface: &str) -> Result<libc::ifreq> {
    // SAFETY: ifreq is plain data for which all zeroes are valid.
    let mut asked: libc::ifreq = unsafe { std::mem::zeroed() };
    if interface.len() >= asked.ifr_name.len() {
        bail!("interface name {interface} is too long");
    }
    for (to, from) in asked.ifr_name.iter_mut().zip(interface.bytes()) {
        *to = from.cast_signed();
    }
    Ok(asked)
}
