//! Flows that a worker begins once and sends on in every burst: a policy that comes after their beginning
//! finds them older than itself, which is what repair is for.

use std::io;
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{
    MsgFlags, SockType, SockaddrStorage, connect, recv, send, setsockopt, sockopt,
};
use steer_tests::SERVER4;

use crate::workload::{DATAGRAM_PORT, accept, datagrams, open, timed};

/// Bytes of a unit of a transfer: the largest packet that is cut into segments late (GSO).
const UNIT: usize = 1 << 16;
/// Units on their way at most: more would leave packets to the kernel's own thread (ksoftirqd), whose time is
/// not counted.
const UNDER_WAY: usize = 4;
/// Bytes of each buffer of a connection.
const BUFFER: usize = 16 * UNIT;
/// Longer than a lost SYN is sent again.
const PATIENCE: Duration = Duration::from_secs(30);

/// A connected UDP socket, and a TCP connection with both its ends.
#[derive(Debug)]
pub(crate) struct Kept {
    datagrams: OwnedFd,
    client: TcpStream,
    server: Option<TcpStream>,
}

impl Kept {
    /// Begins both. Whether somebody answers the connection's SYN does not matter yet.
    pub(crate) fn begin(port: u16) -> Result<Self> {
        let datagrams = open(SERVER4, SockType::Datagram)?;
        let target = SockaddrStorage::from(SocketAddr::new(SERVER4, DATAGRAM_PORT));
        connect(datagrams.as_raw_fd(), &target).context("connect a UDP socket")?;
        let client = TcpStream::from(open(SERVER4, SockType::Stream)?);
        client
            .set_nonblocking(true)
            .context("let a socket not block")?;
        let target = SockaddrStorage::from(SocketAddr::new(SERVER4, port));
        match connect(client.as_raw_fd(), &target) {
            Ok(()) | Err(Errno::EINPROGRESS) => {}
            Err(error) => return Err(error).context("begin a connection"),
        }
        Ok(Self {
            datagrams,
            client,
            server: None,
        })
    }

    /// Waits until the connection is there; returns the source that its server sees.
    pub(crate) fn finish(&mut self, listeners: &[TcpListener]) -> Result<IpAddr> {
        let mut waiting = [PollFd::new(self.client.as_fd(), PollFlags::POLLOUT)];
        let timeout = PollTimeout::try_from(PATIENCE).context("a time to wait")?;
        let ready = poll(&mut waiting, timeout).context("wait for a connection")?;
        ensure!(
            ready > 0,
            "nobody answered a connection within {PATIENCE:?}"
        );
        if let Some(error) = self.client.take_error().context("ask for an error")? {
            return Err(error).context("finish a connection");
        }
        let server = accept(listeners)?;
        for end in [&self.client, &server] {
            // Buffers that grow with use would tell connections apart by their past.
            setsockopt(end, sockopt::SndBufForce, &BUFFER).context("set SO_SNDBUFFORCE")?;
            setsockopt(end, sockopt::RcvBufForce, &BUFFER).context("set SO_RCVBUFFORCE")?;
            end.set_nodelay(true).context("set TCP_NODELAY")?;
        }
        let source = server.peer_addr().context("ask for the client")?;
        self.server = Some(server);
        Ok(source.ip().to_canonical())
    }

    /// Sends datagrams; the CPU time of one.
    pub(crate) fn send(&self, count: usize) -> Result<f64> {
        timed(count / 10, count, |count| {
            datagrams(&self.datagrams, None, count)
        })
    }

    /// Carries units to the server, or `back` from it; the CPU time of one, at both ends.
    pub(crate) fn transfer(&self, count: usize, back: bool) -> Result<f64> {
        let server = self
            .server
            .as_ref()
            .context("the connection is not finished")?;
        let (from, to) = if back {
            (server, &self.client)
        } else {
            (&self.client, server)
        };
        let mut buffer = vec![0x5a; UNIT];
        // A connection that was idle starts slowly (`tcp_slow_start_after_idle`).
        timed(count / 2, count, |count| {
            carry(from, to, count * UNIT, &mut buffer)
        })
    }
}

/// Writes a few units, reads what has come, and again until all `bytes` are through. One thread does both, so
/// that its CPU time holds all that a transfer costs.
fn carry(from: &TcpStream, to: &TcpStream, bytes: usize, buffer: &mut [u8]) -> Result<()> {
    let flags = MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL;
    let end = Instant::now() + PATIENCE;
    let (mut sent, mut got) = (0, 0);
    while got < bytes {
        let limit = bytes.min(got + UNDER_WAY * UNIT);
        while sent < limit {
            let next = &buffer[..UNIT.min(limit - sent)];
            match send(from.as_raw_fd(), next, flags) {
                Ok(length) => sent += length,
                Err(Errno::EAGAIN) => break,
                Err(error) => return Err(io::Error::from(error)).context("send"),
            }
        }
        loop {
            match recv(to.as_raw_fd(), buffer, flags) {
                Ok(0) => bail!("a connection ended"),
                Ok(length) => got += length,
                Err(Errno::EAGAIN) => break,
                Err(error) => return Err(io::Error::from(error)).context("receive"),
            }
        }
        ensure!(
            Instant::now() < end,
            "{got} of {bytes} bytes arrived within {PATIENCE:?}"
        );
    }
    Ok(())
}
