//! Which sockets bear a mark (`SOCK_DIAG`), and which network namespace this is.

use std::collections::BTreeSet;
use std::io;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::os::fd::AsRawFd;

use nix::sys::socket::{AddressFamily, SockFlag, SockType, socket};

use super::Error;
use super::connection::{Connection, Refusal};
use super::diag::{self, ALL_STATES, ANSWER, Condition};
use super::watcher::read;
use super::wire::{AF_INET, AF_INET6, Message, Request};

/// TCP_FIN_WAIT2 and TCP_TIME_WAIT.
const CLOSED_STATES: u32 = 1 << 5 | 1 << 6;

/// A protocol that the kernel lists sockets of.
struct Protocol {
    number: u8,
    /// Kernels are built without it, and then none of its sockets can be seen.
    optional: bool,
}

const PROTOCOLS: [Protocol; 5] = [
    Protocol {
        number: 6,
        optional: false,
    },
    Protocol {
        number: 17,
        optional: false,
    },
    // UDP-Lite; gone from newer kernels.
    Protocol {
        number: 136,
        optional: true,
    },
    // SCTP.
    Protocol {
        number: 132,
        optional: true,
    },
    // Raw sockets of every protocol; CONFIG_INET_RAW_DIAG.
    Protocol {
        number: 255,
        optional: true,
    },
];

/// How many sockets of the calling thread's network namespace have `mark` in the bits of `mask`:
/// TCP in every state, UDP, and, where the kernel can list them, UDP-Lite, SCTP and raw sockets; IPv4
/// and IPv6.
///
/// Not seen, because the kernel does not list them: ping (ICMP) sockets, and sockets that have
/// neither a port nor a peer yet.
///
/// # Errors
/// TCP or UDP sockets could not be listed. The kernel wants `CAP_NET_ADMIN` to filter by mark.
pub async fn sockets_with_mark(mark: u32, mask: u32) -> Result<usize, Error> {
    let mut connection = Connection::open(libc::NETLINK_SOCK_DIAG).map_err(Error::Open)?;
    let mut count = 0;
    for Protocol { number, .. } in PROTOCOLS {
        for family in [AF_INET, AF_INET6] {
            let mut request = diag::list(family, number, ALL_STATES, 0);
            diag::only(&mut request, &[Condition::Mark { mark, mask }]);
            match connection.dump(&request, |_| Some(())).await {
                Ok(found) => count += found.len(),
                Err(refusal) if is_not_listed(&refusal, number, family) => {}
                Err(refusal) => return Err(read("sockets")(refusal)),
            }
        }
    }
    Ok(count)
}

/// Whether a dump failed because this kernel lists no sockets of the protocol or family, and may do so.
pub(super) fn is_not_listed(refusal: &Refusal, protocol: u8, family: u8) -> bool {
    let mut protocols = PROTOCOLS.iter();
    let optional = protocols.any(|known| known.number == protocol && known.optional);
    refusal.errno() == libc::ENOENT && (optional || family == AF_INET6)
}

/// Own addresses of TCP connections of the calling thread's network namespace that are closed but may
/// still send (TIME-WAIT and FIN-WAIT-2 without a socket): they have a mark, but do not tell it.
///
/// # Errors
/// TCP sockets could not be listed.
pub async fn closed_sources() -> Result<BTreeSet<IpAddr>, Error> {
    let mut connection = Connection::open(libc::NETLINK_SOCK_DIAG).map_err(Error::Open)?;
    let mut sources = BTreeSet::new();
    for family in [AF_INET, AF_INET6] {
        let request = diag::list(family, PROTOCOLS[0].number, CLOSED_STATES, 0);
        match connection.dump(&request, source).await {
            Ok(found) => sources.extend(found),
            // The kernel has no such family.
            Err(refusal) if refusal.errno() == libc::ENOENT && family == AF_INET6 => {}
            Err(refusal) => return Err(read("sockets")(refusal)),
        }
    }
    Ok(sources)
}

/// The socket's own address in `inet_diag_msg`: after family, state, timer, retransmissions and ports.
fn source(message: &Message<'_>) -> Option<IpAddr> {
    let (fixed, _) = message.split::<ANSWER>()?;
    match fixed[0] {
        AF_INET => Some(IpAddr::from(<[u8; 4]>::try_from(&fixed[8..12]).ok()?)),
        AF_INET6 => {
            let address = Ipv6Addr::from(<[u8; 16]>::try_from(&fixed[8..24]).ok()?);
            Some(address.to_canonical())
        }
        _ => None,
    }
}

/// Asks to close the TCP socket of an address that nobody has, which the kernel answers as it can.
pub(super) fn destroy_nothing() -> Request {
    let nobody = SocketAddr::from(([0; 4], 0));
    // Any cookie (INET_DIAG_NOCOOKIE).
    diag::destroy(PROTOCOLS[0].number, nobody, nobody, 0, u64::MAX)
}

/// The cookie of the calling thread's network namespace, as kernel programs see it.
///
/// # Errors
/// The kernel refused (before 5.14).
pub fn netns_cookie() -> io::Result<u64> {
    let socket = socket(
        AddressFamily::Inet,
        SockType::Datagram,
        SockFlag::SOCK_CLOEXEC,
        None,
    )?;
    let mut cookie = 0_u64;
    let mut len = libc::socklen_t::try_from(size_of_val(&cookie)).map_err(io::Error::other)?;
    // SAFETY: the value and its length are valid for writes of the size that the length names.
    let result = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_NETNS_COOKIE,
            (&raw mut cookie).cast(),
            &raw mut len,
        )
    };
    match result {
        0 => Ok(cookie),
        _ => Err(io::Error::last_os_error()),
    }
}
