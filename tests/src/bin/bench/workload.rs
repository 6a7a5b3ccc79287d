//! What is sent, and what one unit of it costs.

use std::net::{IpAddr, SocketAddr, TcpListener};
use std::os::fd::{AsRawFd, OwnedFd};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use nix::libc;
use nix::sys::socket::{
    AddressFamily, MsgFlags, SockFlag, SockType, SockaddrStorage, connect, sendto, setsockopt,
    socket, sockopt,
};
use steer_tests::{SERVER4, SERVER6};

use crate::clock::cpu_time;

/// Bytes of every datagram.
pub(crate) const DATAGRAM: usize = 64;
/// The servers' port for datagrams, which the peers drop on arrival.
const DATAGRAM_PORT: u16 = 9;
/// TCP connections open at the same time.
const BATCH: usize = 32;

/// A thing to do many times.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Workload {
    /// `send` on a connected UDP socket.
    UdpConnected,
    /// `sendto` on an unconnected UDP socket.
    UdpUnconnected,
    /// TCP `socket`, `connect` and `close`.
    Tcp,
    /// The same by IPv6.
    Tcp6,
}

impl Workload {
    /// All of them.
    pub(crate) const ALL: [Self; 4] = [
        Self::UdpConnected,
        Self::UdpUnconnected,
        Self::Tcp,
        Self::Tcp6,
    ];

    /// As the worker's commands name it.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::UdpConnected => "udp-send",
            Self::UdpUnconnected => "udp-sendto",
            Self::Tcp => "tcp",
            Self::Tcp6 => "tcp6",
        }
    }

    /// As readers name it.
    pub(crate) fn title(self) -> &'static str {
        match self {
            Self::UdpConnected => "UDP 64 B, connected `send`",
            Self::UdpUnconnected => "UDP 64 B, unconnected `sendto`",
            Self::Tcp => "TCP connect+close",
            Self::Tcp6 => "TCP connect+close, IPv6",
        }
    }

    /// The workload of that name.
    pub(crate) fn from_name(name: &str) -> Option<Self> {
        Self::ALL
            .into_iter()
            .find(|workload| workload.name() == name)
    }

    /// Units in a burst: about two milliseconds.
    pub(crate) fn burst(self) -> usize {
        match self {
            Self::UdpConnected | Self::UdpUnconnected => 2000,
            Self::Tcp | Self::Tcp6 => 3 * BATCH,
        }
    }

    /// Units that a burst really does, those that warm the caches included.
    pub(crate) fn sent(self) -> usize {
        match self {
            Self::UdpConnected | Self::UdpUnconnected => self.burst() + self.burst() / 10,
            Self::Tcp | Self::Tcp6 => self.burst() + BATCH / 4,
        }
    }

    /// Does `count` units and returns the CPU time of one, in nanoseconds.
    ///
    /// A veth hands packets over in the sender's context, so the thread's CPU time holds everything
    /// that a packet costs on its way, softirq included, and nothing of what else the machine does.
    pub(crate) fn run(self, count: usize, listener: &TcpListener) -> Result<f64> {
        match self {
            Self::UdpConnected => datagrams(count, true),
            Self::UdpUnconnected => datagrams(count, false),
            Self::Tcp => connections(count, SERVER4, listener),
            Self::Tcp6 => connections(count, SERVER6, listener),
        }
    }
}

fn datagrams(count: usize, connected: bool) -> Result<f64> {
    let payload = [0x5a; DATAGRAM];
    let target = SockaddrStorage::from(SocketAddr::new(SERVER4, DATAGRAM_PORT));
    let socket = open(SERVER4, SockType::Datagram)?;
    if connected {
        connect(socket.as_raw_fd(), &target).context("connect a UDP socket")?;
    }
    let send = |count| -> Result<()> {
        for _ in 0..count {
            if connected {
                nix::sys::socket::send(socket.as_raw_fd(), &payload, MsgFlags::empty())
                    .context("send")?;
            } else {
                sendto(socket.as_raw_fd(), &payload, &target, MsgFlags::empty())
                    .context("sendto")?;
            }
        }
        Ok(())
    };
    // The first ones warm the caches that the process before has filled otherwise.
    send(count / 10)?;
    let before = cpu_time()?;
    send(count)?;
    Ok(each(cpu_time()? - before, count))
}

fn connections(count: usize, server: IpAddr, listener: &TcpListener) -> Result<f64> {
    let port = listener.local_addr().context("listener's port")?.port();
    let target = SockaddrStorage::from(SocketAddr::new(server, port));
    let mut spent = Duration::ZERO;
    batch(BATCH / 4, server, &target, listener)?;
    for _ in 0..count / BATCH {
        spent += batch(BATCH, server, &target, listener)?;
    }
    Ok(each(spent, count / BATCH * BATCH))
}

/// Opens, connects and closes `count` sockets; what the server does in between is not counted.
fn batch(
    count: usize,
    server: IpAddr,
    target: &SockaddrStorage,
    listener: &TcpListener,
) -> Result<Duration> {
    let mut clients = Vec::with_capacity(count);
    let mut served = Vec::with_capacity(count);
    let start = cpu_time()?;
    for _ in 0..count {
        let client = open(server, SockType::Stream)?;
        // Closed by RST, so that ports do not run out.
        let at_once = libc::linger {
            l_onoff: 1,
            l_linger: 0,
        };
        setsockopt(&client, sockopt::Linger, &at_once).context("set SO_LINGER")?;
        connect(client.as_raw_fd(), target).context("connect")?;
        clients.push(client);
    }
    let connected = cpu_time()?;
    for _ in 0..count {
        served.push(listener.accept().context("accept")?);
    }
    let closing = cpu_time()?;
    drop(clients);
    let closed = cpu_time()?;
    Ok(connected - start + closed - closing)
}

/// A socket of `address`'s family.
pub(crate) fn open(address: IpAddr, kind: SockType) -> Result<OwnedFd> {
    let family = if address.is_ipv4() {
        AddressFamily::Inet
    } else {
        AddressFamily::Inet6
    };
    socket(family, kind, SockFlag::SOCK_CLOEXEC, None).context("open a socket")
}

/// Nanoseconds for one of `count`.
fn each(spent: Duration, count: usize) -> f64 {
    #[expect(clippy::cast_precision_loss, reason = "small counts")]
    let count = count as f64;
    spent.as_secs_f64() * 1e9 / count
}

/// The source address that a datagram to `server` would have now, as `connect` chooses it; `None`: refused.
pub(crate) fn source_now(server: IpAddr) -> Result<Option<IpAddr>> {
    let socket = std::net::UdpSocket::from(open(server, SockType::Datagram)?);
    match socket.connect((server, DATAGRAM_PORT)) {
        Ok(()) => Ok(Some(
            socket.local_addr().context("ask for the source")?.ip(),
        )),
        Err(error) => match error.raw_os_error() {
            Some(libc::ENETUNREACH | libc::EHOSTUNREACH | libc::ENETDOWN) => Ok(None),
            _ => bail!("connect to {server}: {error}"),
        },
    }
}
