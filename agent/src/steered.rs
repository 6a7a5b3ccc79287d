//! The agent's own sockets: one function makes them, marked and bound so that nothing they send
//! leaves by another domain than the one they are for.
//!
//! What still comes for a connection that is closed the kernel answers without a socket. The last
//! acknowledgement (`TIME_WAIT`) has the mark, but of IPv6 the interface does not bind its route; a reset
//! has the domain's source alone. So both leave by the domain where its rules are in force, and else by
//! the host's own routes.

use std::fmt;
use std::io::{self, Read as _};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use socket2::{Domain, Protocol, SockRef, Socket, Type};
use steer_core::plan::Family;
use tokio::io::Interest;
use tokio::net::{TcpSocket, UdpSocket};

/// What a socket has to have so that its packets take one domain.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Way {
    /// The domain's mark.
    pub mark: u32,
    /// Bits of marks that are the agent's.
    pub mask: u32,
    /// Name of the domain's interface.
    pub ifname: String,
    /// The domain's IPv4 source.
    pub source4: Option<Ipv4Addr>,
    /// The domain's IPv6 source.
    pub source6: Option<Ipv6Addr>,
}

/// What a socket speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Datagrams.
    Udp,
    /// Connections.
    Tcp,
    /// Echo requests: see [`Echo`].
    Icmp,
}

/// A socket for ICMP (IPv4) or ICMPv6 echo requests. It sends and receives what `UdpSocket` has calls
/// for: messages.
#[derive(Debug)]
pub struct Echo {
    /// The socket.
    pub socket: UdpSocket,
    /// It gets every ICMP message to its address, for IPv4 behind the IP header. Else it is a ping
    /// socket: the kernel chooses the identifier and gives it what answers that alone.
    pub raw: bool,
}

/// Why there is no socket.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The domain has no address of this family.
    #[error("{ifname} has no {} address to send from", Words(*family))]
    NoSource {
        /// The interface.
        ifname: String,
        /// The family.
        family: Family,
    },
    /// The kernel gave none.
    #[error("open a socket of kind {kind:?}")]
    Open {
        /// What it was to speak.
        kind: Kind,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// It could not be marked.
    #[error("set mark {mark:#x}")]
    Mark {
        /// The mark.
        mark: u32,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// It could not be bound to its interface.
    #[error("bind to interface {ifname}")]
    Interface {
        /// The interface.
        ifname: String,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// It could not be bound to its source.
    #[error("bind to {address}")]
    Source {
        /// The source.
        address: IpAddr,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The runtime did not take it.
    #[error("register a socket")]
    Register(#[source] io::Error),
}

impl From<Error> for io::Error {
    /// For those who know errors of input and output alone: the same words, with the cause.
    fn from(error: Error) -> Self {
        match std::error::Error::source(&error) {
            Some(cause) => Self::other(format!("{error}: {cause}")),
            None => Self::other(error.to_string()),
        }
    }
}

/// A family as messages say it.
struct Words(Family);

impl fmt::Display for Words {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self.0 {
            Family::Ipv4 => "IPv4",
            Family::Ipv6 => "IPv6",
        })
    }
}

impl Way {
    /// The domain's source of a family.
    pub fn source(&self, family: Family) -> Option<IpAddr> {
        match family {
            Family::Ipv4 => self.source4.map(IpAddr::V4),
            Family::Ipv6 => self.source6.map(IpAddr::V6),
        }
    }

    /// A socket for datagrams.
    ///
    /// # Errors
    /// As [`Error`] says. It needs `CAP_NET_ADMIN`, for the mark.
    pub fn udp(&self, family: Family) -> Result<UdpSocket, Error> {
        let made = socket(self, Kind::Udp, family)?;
        UdpSocket::from_std(made.into()).map_err(Error::Register)
    }

    /// A socket that is not connected yet.
    ///
    /// # Errors
    /// As [`Way::udp`].
    pub fn tcp(&self, family: Family) -> Result<TcpSocket, Error> {
        let made = socket(self, Kind::Tcp, family)?;
        Ok(TcpSocket::from_std_stream(made.into()))
    }

    /// A socket for echo requests.
    ///
    /// # Errors
    /// As [`Way::udp`].
    pub fn icmp(&self, family: Family) -> Result<Echo, Error> {
        let made = socket(self, Kind::Icmp, family)?;
        let kind = made.r#type().map_err(Error::Register)?;
        let socket = UdpSocket::from_std(made.into()).map_err(Error::Register)?;
        let raw = kind == Type::RAW;
        Ok(Echo { socket, raw })
    }
}

/// Receives as `recv` of a connected socket does, and hears of errors too, like a port that is closed:
/// what the runtime's own `recv` waits for is data alone.
///
/// # Errors
/// The socket's.
pub async fn receive(socket: &UdpSocket, buffer: &mut [u8]) -> io::Result<usize> {
    let wanted = Interest::READABLE | Interest::ERROR;
    socket
        .async_io(wanted, || (&*SockRef::from(socket)).read(buffer))
        .await
}

/// The function that makes the agent's sockets. What it gives does not block. Link-local addresses are
/// those of its interface, without a scope.
fn socket(way: &Way, kind: Kind, family: Family) -> Result<Socket, Error> {
    let source = way.source(family).ok_or_else(|| Error::NoSource {
        ifname: way.ifname.clone(),
        family,
    })?;
    let socket = open(kind, family).map_err(|source| Error::Open { kind, source })?;
    // Not a bit of others, although nobody but a program at `sock_create` can have set one.
    socket
        .mark()
        .and_then(|old| socket.set_mark((old & !way.mask) | (way.mark & way.mask)))
        .map_err(|source| Error::Mark {
            mark: way.mark,
            source,
        })?;
    socket
        .bind_device(Some(way.ifname.as_bytes()))
        .map_err(|source| Error::Interface {
            ifname: way.ifname.clone(),
            source,
        })?;
    socket
        .bind(&SocketAddr::new(source, 0).into())
        .map_err(|error| Error::Source {
            address: source,
            source: error,
        })?;
    Ok(socket)
}

fn open(kind: Kind, family: Family) -> io::Result<Socket> {
    let (domain, icmp) = match family {
        Family::Ipv4 => (Domain::IPV4, Protocol::ICMPV4),
        Family::Ipv6 => (Domain::IPV6, Protocol::ICMPV6),
    };
    let socket = match kind {
        Kind::Udp => Socket::new(domain, Type::DGRAM, Some(Protocol::UDP)),
        Kind::Tcp => Socket::new(domain, Type::STREAM, Some(Protocol::TCP)),
        // Ping sockets are for the groups in net.ipv4.ping_group_range, which root's need not be.
        Kind::Icmp => Socket::new(domain, Type::DGRAM, Some(icmp))
            .or_else(|_| Socket::new(domain, Type::RAW, Some(icmp))),
    }?;
    socket.set_nonblocking(true)?;
    Ok(socket)
}
