//! Sockets of every kind, and the options that programs set on them.

use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::time::Duration;

use anyhow::{Context, Result};
use nix::errno::Errno;
use nix::sys::socket::{
    AddressFamily, SockFlag, SockProtocol, SockType, SockaddrStorage, getsockname, getsockopt,
    socket, sockopt,
};
use nix::sys::time::{TimeVal, TimeValLike};

use crate::operation::{Family, Kind, interface, parse_number};

/// Opens a socket.
pub(crate) fn open(kind: Kind, family: Family) -> Result<OwnedFd, Errno> {
    let is_ipv6 = family != Family::V4;
    let domain = match kind {
        Kind::Packet => AddressFamily::Packet,
        _ if is_ipv6 => AddressFamily::Inet6,
        _ => AddressFamily::Inet,
    };
    let icmp = if is_ipv6 {
        SockProtocol::IcmpV6
    } else {
        SockProtocol::Icmp
    };
    let (style, protocol) = match kind {
        Kind::Tcp => (SockType::Stream, None),
        Kind::Mptcp => return numbered(domain, libc::IPPROTO_MPTCP),
        Kind::Sctp => return numbered(domain, libc::IPPROTO_SCTP),
        Kind::Udp => (SockType::Datagram, None),
        Kind::Ping => (SockType::Datagram, Some(icmp)),
        Kind::Raw => (SockType::Raw, Some(icmp)),
        Kind::RawUdp => (SockType::Raw, Some(SockProtocol::Udp)),
        // IPPROTO_RAW implies IP_HDRINCL, for both families.
        Kind::Header => (SockType::Raw, Some(SockProtocol::Raw)),
        Kind::Packet => (SockType::Raw, None),
    };
    let socket = socket(domain, style, SockFlag::SOCK_CLOEXEC, protocol)?;
    set_timeout(&socket, Duration::from_secs(2))?;
    if family == Family::Mapped {
        nix::sys::socket::setsockopt(&socket, sockopt::Ipv6V6Only, &false)?;
    }
    Ok(socket)
}

/// A stream socket of a protocol that `nix` does not name.
fn numbered(domain: AddressFamily, protocol: i32) -> Result<OwnedFd, Errno> {
    // SAFETY: takes numbers.
    let fd = unsafe {
        libc::socket(
            domain as i32,
            libc::SOCK_STREAM | libc::SOCK_CLOEXEC,
            protocol,
        )
    };
    let fd = Errno::result(fd)?;
    // SAFETY: the kernel just returned this descriptor, which nothing else owns.
    let socket = unsafe { OwnedFd::from_raw_fd(fd) };
    set_timeout(&socket, Duration::from_secs(2))?;
    Ok(socket)
}

/// Limits `connect`, sending and receiving.
pub(crate) fn set_timeout(socket: &OwnedFd, limit: Duration) -> Result<(), Errno> {
    let limit = TimeVal::microseconds(i64::try_from(limit.as_micros()).map_err(|_| Errno::EINVAL)?);
    nix::sys::socket::setsockopt(socket, sockopt::SendTimeout, &limit)?;
    nix::sys::socket::setsockopt(socket, sockopt::ReceiveTimeout, &limit)
}

/// Sets an option by its name in the probe's language; the inner result is the kernel's.
pub(crate) fn set(socket: &OwnedFd, key: &str, value: &str) -> Result<Result<(), Errno>> {
    Ok(match key {
        "mark" => integer(
            socket,
            libc::SOL_SOCKET,
            libc::SO_MARK,
            parse_number(value)?,
        ),
        "device" => {
            let name = [value.as_bytes(), &[0]].concat();
            option(socket, libc::SOL_SOCKET, libc::SO_BINDTODEVICE, &name)
        }
        "ifindex" => integer(
            socket,
            libc::SOL_SOCKET,
            libc::SO_BINDTOIFINDEX,
            interface(value)?,
        ),
        "broadcast" => integer(
            socket,
            libc::SOL_SOCKET,
            libc::SO_BROADCAST,
            parse_number(value)?,
        ),
        "qdisc-bypass" => integer(
            socket,
            libc::SOL_PACKET,
            libc::PACKET_QDISC_BYPASS,
            parse_number(value)?,
        ),
        "freebind" => integer(
            socket,
            libc::IPPROTO_IP,
            libc::IP_FREEBIND,
            parse_number(value)?,
        ),
        "no-port" => integer(
            socket,
            libc::IPPROTO_IP,
            libc::IP_BIND_ADDRESS_NO_PORT,
            parse_number(value)?,
        ),
        "tos" if is_ipv6(socket) => integer(
            socket,
            libc::IPPROTO_IPV6,
            libc::IPV6_TCLASS,
            parse_number(value)?,
        ),
        // IPv4 packets of an IPv6 socket have a class of their own.
        "tos" | "tos4" => integer(socket, libc::IPPROTO_IP, libc::IP_TOS, parse_number(value)?),
        // RFC 5014, section 7.
        "prefer" => integer(
            socket,
            libc::IPPROTO_IPV6,
            libc::IPV6_ADDR_PREFERENCES,
            match value {
                "temporary" => 1,
                "public" => 2,
                other => anyhow::bail!("unknown preference {other}"),
            },
        ),
        "segment" => integer(
            socket,
            libc::SOL_UDP,
            libc::UDP_SEGMENT,
            parse_number(value)?,
        ),
        // The index is in network byte order, unlike any other: ip(7).
        "unicast-if" if is_ipv6(socket) => integer(
            socket,
            libc::IPPROTO_IPV6,
            libc::IPV6_UNICAST_IF,
            interface(value)?.to_be(),
        ),
        "unicast-if" => integer(
            socket,
            libc::IPPROTO_IP,
            libc::IP_UNICAST_IF,
            interface(value)?.to_be(),
        ),
        "multicast-if" if is_ipv6(socket) => integer(
            socket,
            libc::IPPROTO_IPV6,
            libc::IPV6_MULTICAST_IF,
            interface(value)?,
        ),
        "multicast-if" => {
            // struct ip_mreqn: group, address, index.
            let request = [[0; 4], [0; 4], interface(value)?.to_ne_bytes()].concat();
            option(socket, libc::IPPROTO_IP, libc::IP_MULTICAST_IF, &request)
        }
        "pktinfo6" => {
            let (source, index) = match value.parse() {
                Ok(IpAddr::V6(address)) => (address.octets(), 0),
                Ok(IpAddr::V4(address)) => (address.to_ipv6_mapped().octets(), 0),
                Err(_) => ([0; 16], interface(value)?),
            };
            let info = [source.as_slice(), &index.to_ne_bytes()].concat();
            option(socket, libc::IPPROTO_IPV6, libc::IPV6_PKTINFO, &info)
        }
        other => anyhow::bail!("unknown option {other}"),
    })
}

fn integer(socket: &OwnedFd, level: i32, name: i32, value: u32) -> Result<(), Errno> {
    option(socket, level, name, &value.to_ne_bytes())
}

fn option(socket: &OwnedFd, level: i32, name: i32, value: &[u8]) -> Result<(), Errno> {
    let length = libc::socklen_t::try_from(value.len()).map_err(|_| Errno::EINVAL)?;
    // SAFETY: the value lives through the call and has the length given.
    let result = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            level,
            name,
            value.as_ptr().cast(),
            length,
        )
    };
    Errno::result(result).map(drop)
}

fn is_ipv6(socket: &OwnedFd) -> bool {
    getsockname::<SockaddrStorage>(socket.as_raw_fd())
        .is_ok_and(|address| address.as_sockaddr_in6().is_some())
}

/// The socket's own address, if it is an internet socket.
pub(crate) fn local(socket: &OwnedFd) -> Option<SocketAddr> {
    address(&getsockname::<SockaddrStorage>(socket.as_raw_fd()).ok()?)
}

/// The socket's mark.
pub(crate) fn mark(socket: &OwnedFd) -> Option<u32> {
    getsockopt(socket, sockopt::Mark).ok()
}

/// An internet address as the standard library has it.
pub(crate) fn address(storage: &SockaddrStorage) -> Option<SocketAddr> {
    if let Some(v4) = storage.as_sockaddr_in() {
        return Some(SocketAddr::V4((*v4).into()));
    }
    storage
        .as_sockaddr_in6()
        .map(|v6| SocketAddr::V6((*v6).into()))
}

/// Waits until `socket` can be read, at most `limit`.
pub(crate) fn wait_readable(socket: &OwnedFd, limit: Duration) -> Result<(), Errno> {
    use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
    use std::os::fd::AsFd;
    let timeout = PollTimeout::try_from(limit).map_err(|_| Errno::EINVAL)?;
    match poll(
        &mut [PollFd::new(socket.as_fd(), PollFlags::POLLIN)],
        timeout,
    )? {
        0 => Err(Errno::ETIMEDOUT),
        _ => Ok(()),
    }
}

/// Whether a connected socket has an error, or its peer hung up.
pub(crate) fn has_ended(socket: &OwnedFd) -> bool {
    use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
    use std::os::fd::AsFd;
    let mut asked = [PollFd::new(socket.as_fd(), PollFlags::empty())];
    poll(&mut asked, PollTimeout::ZERO).is_ok_and(|ready| ready > 0)
}

/// The interface index of `name` as a packet socket's address wants it.
pub(crate) fn packet_index(name: &str) -> Result<i32> {
    i32::try_from(interface(name)?).context("interface index")
}
