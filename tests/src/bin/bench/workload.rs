//! What is sent, and what one unit of it costs.

use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use nix::libc;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{
    AddressFamily, MsgFlags, SockFlag, SockType, SockaddrStorage, connect, sendto, setsockopt,
    socket, sockopt,
};
use steer_tests::{SERVER4, SERVER6};

use crate::clock::cpu_time;
use crate::kept::Kept;

/// Bytes of every datagram.
pub(crate) const DATAGRAM: usize = 64;
/// The servers' port for datagrams, which the peers drop on arrival.
pub(crate) const DATAGRAM_PORT: u16 = 9;
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
    /// `send` on a connected UDP socket that was made before.
    UdpKept,
    /// A transfer to the server on a connection that was begun before.
    Upload,
    /// The same from the server.
    Download,
}

impl Workload {
    /// All of them.
    pub(crate) const ALL: [Self; 7] = [
        Self::UdpConnected,
        Self::UdpUnconnected,
        Self::Tcp,
        Self::Tcp6,
        Self::UdpKept,
        Self::Upload,
        Self::Download,
    ];
    /// Those that make their sockets themselves.
    pub(crate) const FRESH: [Self; 4] = [
        Self::UdpConnected,
        Self::UdpUnconnected,
        Self::Tcp,
        Self::Tcp6,
    ];
    /// Those on the flows that a worker keeps.
    pub(crate) const KEPT: [Self; 3] = [Self::UdpKept, Self::Upload, Self::Download];
    /// Those whose destination is an IPv4 address told at the time.
    pub(crate) const IPV4: [Self; 3] = [Self::UdpConnected, Self::UdpUnconnected, Self::Tcp];
    /// Those whose flows are decided one by one, by the two hooks that decide.
    pub(crate) const DECIDED: [Self; 2] = [Self::UdpUnconnected, Self::Tcp];

    /// As the worker's commands name it.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::UdpConnected => "udp-send",
            Self::UdpUnconnected => "udp-sendto",
            Self::Tcp => "tcp",
            Self::Tcp6 => "tcp6",
            Self::UdpKept => "udp-kept",
            Self::Upload => "upload",
            Self::Download => "download",
        }
    }

    /// As readers name it.
    pub(crate) fn title(self) -> &'static str {
        match self {
            Self::UdpConnected => "UDP 64 B, connected `send`",
            Self::UdpUnconnected => "UDP 64 B, unconnected `sendto`",
            Self::Tcp => "TCP connect+close",
            Self::Tcp6 => "TCP connect+close, IPv6",
            Self::UdpKept => "UDP 64 B, `send` on an older socket",
            Self::Upload => "TCP, 64 KiB sent",
            Self::Download => "TCP, 64 KiB received",
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
            Self::UdpConnected | Self::UdpUnconnected | Self::UdpKept => 2000,
            Self::Tcp | Self::Tcp6 => 3 * BATCH,
            Self::Upload | Self::Download => 100,
        }
    }

    /// Units that a burst really does, those that warm the caches included.
    pub(crate) fn sent(self) -> usize {
        match self {
            Self::Tcp | Self::Tcp6 => self.burst() + BATCH / 4,
            Self::Upload | Self::Download => self.burst() + self.burst() / 2,
            _ => self.burst() + self.burst() / 10,
        }
    }

    /// Does `count` units and returns the CPU time of one, in nanoseconds.
    ///
    /// A veth hands packets over in the sender's context, so the thread's CPU time holds everything
    /// that a packet costs on its way, softirq included, and nothing of what else the machine does.
    pub(crate) fn run(
        self,
        count: usize,
        listeners: &[TcpListener],
        kept: Option<&Kept>,
    ) -> Result<f64> {
        let kept = || kept.context("no flows were begun to be kept");
        match self {
            Self::UdpConnected => udp(count, true),
            Self::UdpUnconnected => udp(count, false),
            Self::Tcp => connections(count, SERVER4, listeners),
            Self::Tcp6 => connections(count, SERVER6, listeners),
            Self::UdpKept => kept()?.send(count),
            Self::Upload => kept()?.transfer(count, false),
            Self::Download => kept()?.transfer(count, true),
        }
    }
}

/// The CPU time of one of `count` units of `work`, in nanoseconds, after `first` ones that warm the caches
/// which the process before has filled otherwise.
pub(crate) fn timed(
    first: usize,
    count: usize,
    mut work: impl FnMut(usize) -> Result<()>,
) -> Result<f64> {
    work(first)?;
    let before = cpu_time()?;
    work(count)?;
    Ok(each(cpu_time()? - before, count))
}

fn udp(count: usize, connected: bool) -> Result<f64> {
    let target = SockaddrStorage::from(SocketAddr::new(SERVER4, DATAGRAM_PORT));
    let socket = open(SERVER4, SockType::Datagram)?;
    if connected {
        connect(socket.as_raw_fd(), &target).context("connect a UDP socket")?;
    }
    let target = (!connected).then_some(&target);
    timed(count / 10, count, |count| datagrams(&socket, target, count))
}

/// Sends `count` datagrams to `target`, or to where `socket` is connected to.
pub(crate) fn datagrams(
    socket: &OwnedFd,
    target: Option<&SockaddrStorage>,
    count: usize,
) -> Result<()> {
    let payload = [0x5a; DATAGRAM];
    for _ in 0..count {
        match target {
            None => nix::sys::socket::send(socket.as_raw_fd(), &payload, MsgFlags::empty())
                .context("send")?,
            Some(target) => {
                sendto(socket.as_raw_fd(), &payload, target, MsgFlags::empty()).context("sendto")?
            }
        };
    }
    Ok(())
}

fn connections(count: usize, server: IpAddr, listeners: &[TcpListener]) -> Result<f64> {
    let target = SockaddrStorage::from(SocketAddr::new(server, port(listeners)?));
    let mut spent = Duration::ZERO;
    batch(BATCH / 4, server, &target, listeners)?;
    for _ in 0..count / BATCH {
        spent += batch(BATCH, server, &target, listeners)?;
    }
    Ok(each(spent, count / BATCH * BATCH))
}

/// Opens, connects and closes `count` sockets; what the server does in between is not counted.
fn batch(
    count: usize,
    server: IpAddr,
    target: &SockaddrStorage,
    listeners: &[TcpListener],
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
        served.push(accept(listeners)?);
    }
    let closing = cpu_time()?;
    drop(clients);
    let closed = cpu_time()?;
    Ok(connected - start + closed - closing)
}

/// The port that all of a worker's servers have.
pub(crate) fn port(listeners: &[TcpListener]) -> Result<u16> {
    let first = listeners.first().context("a worker without a server")?;
    Ok(first.local_addr().context("a server's port")?.port())
}

/// The next connection to one of `listeners`.
pub(crate) fn accept(listeners: &[TcpListener]) -> Result<TcpStream> {
    let mut waiting: Vec<_> = listeners
        .iter()
        .map(|listener| PollFd::new(listener.as_fd(), PollFlags::POLLIN))
        .collect();
    poll(&mut waiting, PollTimeout::NONE).context("wait for a connection")?;
    let ready = waiting.iter().position(|one| one.any() == Some(true));
    let listener = &listeners[ready.context("no server is ready")?];
    Ok(listener.accept().context("accept")?.0)
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
