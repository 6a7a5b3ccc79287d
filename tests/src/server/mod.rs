//! Servers in a peer's namespace that answer with the address they saw and the uplink they stand behind.
//!
//! They serve every local address of the namespace, and answer from the one that was asked.
//! TCP: a JSON line for every line, or HTTP. UDP: a JSON line for every datagram. What comes to the discard
//! port, by either, is read and not answered. What HTTP and DNS answer can be told (see [`crate::checks`]).

mod dns;
mod http;

use std::io::{ErrorKind, IoSlice, IoSliceMut, Read, Write};
use std::net::{IpAddr, Ipv6Addr, SocketAddr, TcpListener, TcpStream};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::thread::JoinHandle;

use anyhow::{Context, Result};
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{
    AddressFamily, Backlog, ControlMessage, ControlMessageOwned, MsgFlags, SockFlag, SockType,
    SockaddrIn6, SockaddrStorage, bind, listen, recvmsg, sendmsg, setsockopt, socket, sockopt,
};

use crate::checks::{Answers, DNS_PORT};
use crate::namespace::Namespace;
use crate::report::{Answer, DISCARD_PORT, ECHO_PORT, HTTP_PORT};

/// Servers of one peer; they end when this is dropped.
#[derive(Debug)]
pub(crate) struct Server {
    answers: Arc<Answers>,
    stop: Option<OwnedFd>,
    thread: Option<JoinHandle<()>>,
}

impl Server {
    /// Starts the servers of `uplink` in its peer's `namespace`.
    pub(crate) fn start(uplink: &str, namespace: &Namespace) -> Result<Self> {
        let answers = Arc::new(Answers::default());
        let service = namespace.run(|| Service::open(uplink, Arc::clone(&answers)))?;
        let (stopped, stop) =
            nix::unistd::pipe2(nix::fcntl::OFlag::O_CLOEXEC).context("make a pipe")?;
        let thread = std::thread::spawn(move || {
            let uplink = service.uplink.clone();
            if let Err(error) = service.serve(&stopped) {
                eprintln!("laboratory: servers of {uplink} ended: {error:#}");
            }
        });
        Ok(Self {
            answers,
            stop: Some(stop),
            thread: Some(thread),
        })
    }

    /// How they answer.
    pub(crate) fn answers(&self) -> &Answers {
        &self.answers
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            eprintln!("laboratory: a server's thread panicked");
        }
    }
}

struct Service {
    uplink: String,
    answers: Arc<Answers>,
    echo: OwnedFd,
    names: OwnedFd,
    discard: OwnedFd,
    listeners: Vec<TcpListener>,
    connections: Vec<Connection>,
}

struct Connection {
    stream: TcpStream,
    peer: SocketAddr,
    asked: SocketAddr,
    pending: Vec<u8>,
}

impl Service {
    fn open(uplink: &str, answers: Arc<Answers>) -> Result<Self> {
        Ok(Self {
            uplink: uplink.to_owned(),
            answers,
            echo: datagram_socket(ECHO_PORT)?,
            names: datagram_socket(DNS_PORT)?,
            discard: datagram_socket(DISCARD_PORT)?,
            listeners: vec![
                listener(ECHO_PORT)?,
                listener(HTTP_PORT)?,
                listener(DNS_PORT)?,
                listener(DISCARD_PORT)?,
            ],
            connections: Vec::new(),
        })
    }

    fn serve(mut self, stopped: &OwnedFd) -> Result<()> {
        loop {
            let mut waiting: Vec<BorrowedFd<'_>> = vec![
                stopped.as_fd(),
                self.echo.as_fd(),
                self.names.as_fd(),
                self.discard.as_fd(),
            ];
            waiting.extend(self.listeners.iter().map(AsFd::as_fd));
            waiting.extend(self.connections.iter().map(|c| c.stream.as_fd()));
            let mut waiting: Vec<PollFd<'_>> = waiting
                .into_iter()
                .map(|fd| PollFd::new(fd, PollFlags::POLLIN))
                .collect();
            match poll(&mut waiting, PollTimeout::NONE) {
                Err(Errno::EINTR) => continue,
                result => result.context("poll sockets")?,
            };
            if waiting[0].any().unwrap_or(true) {
                return Ok(());
            }
            answer_datagrams(&self.echo, |from, token| {
                Some(answer_line(&self.uplink, from, token))
            })?;
            answer_datagrams(&self.names, |_, question| {
                dns::answer(question, self.answers.now().1)
            })?;
            self.discard_datagrams();
            self.accept();
            let (uplink, answers) = (&self.uplink, &self.answers);
            self.connections
                .retain_mut(|connection| connection.serve(uplink, answers));
        }
    }

    fn discard_datagrams(&self) {
        let mut buffer = [0; 4096];
        while !matches!(
            nix::unistd::read(&self.discard, &mut buffer),
            Err(Errno::EAGAIN)
        ) {}
    }

    fn accept(&mut self) {
        for listener in &self.listeners {
            while let Ok((stream, peer)) = listener.accept() {
                if let Ok(asked) = stream.local_addr()
                    && stream.set_nonblocking(true).is_ok()
                {
                    self.connections.push(Connection {
                        stream,
                        peer,
                        asked,
                        pending: Vec::new(),
                    });
                }
            }
        }
    }
}

impl Connection {
    /// Answers what has come in; `false` when the connection is over.
    fn serve(&mut self, uplink: &str, answers: &Answers) -> bool {
        let mut buffer = [0; 4096];
        loop {
            match self.stream.read(&mut buffer) {
                Ok(0) => return false,
                Ok(_) if self.asked.port() == DISCARD_PORT => {}
                Ok(length) => self.pending.extend_from_slice(&buffer[..length]),
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                Err(_) => return false,
            }
        }
        if self.asked.port() == DNS_PORT {
            return self.serve_dns(answers);
        }
        if http::is_request(&self.pending) {
            return self.serve_http(uplink, answers);
        }
        while let Some(end) = self.pending.iter().position(|&byte| byte == b'\n') {
            let line: Vec<u8> = self.pending.drain(..=end).collect();
            let answer = answer_line(uplink, self.peer, &line[..end]);
            if self.stream.write_all(&answer).is_err() {
                return false;
            }
        }
        true
    }

    /// Each message after its length (RFC 1035 section 4.2.2).
    fn serve_dns(&mut self, answers: &Answers) -> bool {
        while let Some((length, rest)) = self.pending.split_first_chunk::<2>() {
            let length = usize::from(u16::from_be_bytes(*length));
            let Some(question) = rest.get(..length) else {
                return true;
            };
            let answer = dns::answer(question, answers.now().1);
            self.pending.drain(..2 + length);
            let Some(answer) = answer else { continue };
            let Ok(length) = u16::try_from(answer.len()) else {
                return false;
            };
            let message = [&length.to_be_bytes(), answer.as_slice()].concat();
            if self.stream.write_all(&message).is_err() {
                return false;
            }
        }
        true
    }

    fn serve_http(&mut self, uplink: &str, answers: &Answers) -> bool {
        let asked: IpAddr = self.asked.ip().to_canonical();
        let own = answer_line(uplink, self.peer, b"http");
        match http::answer(&self.pending, asked, answers, &own) {
            http::Reply::NotYet | http::Reply::Nothing => true,
            http::Reply::Bytes(bytes) => {
                // The client may have gone; either way the connection is over.
                drop(self.stream.write_all(&bytes));
                false
            }
        }
    }
}

/// Answers what waits at `socket`, from the address that was asked.
fn answer_datagrams(
    socket: &OwnedFd,
    answer: impl Fn(SocketAddr, &[u8]) -> Option<Vec<u8>>,
) -> Result<()> {
    let mut buffer = [0; 4096];
    let mut space = nix::cmsg_space!(libc::in6_pktinfo);
    loop {
        let mut parts = [IoSliceMut::new(&mut buffer)];
        let received = match recvmsg::<SockaddrIn6>(
            socket.as_raw_fd(),
            &mut parts,
            Some(&mut space),
            MsgFlags::empty(),
        ) {
            Ok(received) => received,
            Err(Errno::EAGAIN) => return Ok(()),
            // An answer that could not be delivered is reported here; the next datagram counts.
            Err(_) => continue,
        };
        let Some(from) = received.address else {
            continue;
        };
        let asked = received
            .cmsgs()
            .context("read control messages")?
            .find_map(|m| match m {
                ControlMessageOwned::Ipv6PacketInfo(info) => Some(info),
                _ => None,
            });
        let length = received.bytes;
        let Some(answer) = answer(from.into(), &buffer[..length]) else {
            continue;
        };
        let mut control = Vec::new();
        // Only the source is given back: which way the answer goes is for the peer's routes.
        let asked = asked.map(|info| libc::in6_pktinfo {
            ipi6_ifindex: 0,
            ..info
        });
        if let Some(info) = &asked {
            control.push(ControlMessage::Ipv6PacketInfo(info));
        }
        // A client that is gone, or a source that cannot be answered, is the scenario's affair.
        let _: nix::Result<usize> = sendmsg(
            socket.as_raw_fd(),
            &[IoSlice::new(&answer)],
            &control,
            MsgFlags::MSG_DONTWAIT,
            Some(&from),
        );
    }
}

fn answer_line(uplink: &str, from: SocketAddr, token: &[u8]) -> Vec<u8> {
    let answer = Answer {
        uplink: uplink.to_owned(),
        seen: SocketAddr::new(from.ip().to_canonical(), from.port()),
        token: String::from_utf8_lossy(token).trim_end().to_owned(),
    };
    let mut line = serde_json::to_vec(&answer).unwrap_or_default();
    line.push(b'\n');
    line
}

/// A socket for both families on every local address.
fn datagram_socket(port: u16) -> Result<OwnedFd> {
    let socket = dual_stack(SockType::Datagram, port)?;
    setsockopt(&socket, sockopt::Ipv6RecvPacketInfo, &true)
        .context("ask for packet information")?;
    Ok(socket)
}

fn listener(port: u16) -> Result<TcpListener> {
    let socket = dual_stack(SockType::Stream, port)?;
    listen(&socket, Backlog::MAXCONN).with_context(|| format!("listen on port {port}"))?;
    Ok(socket.into())
}

fn dual_stack(kind: SockType, port: u16) -> Result<OwnedFd> {
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let socket = socket(AddressFamily::Inet6, kind, flags, None).context("open server socket")?;
    setsockopt(&socket, sockopt::Ipv6V6Only, &false).context("serve both families")?;
    setsockopt(&socket, sockopt::ReuseAddr, &true).context("reuse the address")?;
    let any: SocketAddr = (Ipv6Addr::UNSPECIFIED, port).into();
    bind(socket.as_raw_fd(), &SockaddrStorage::from(any))
        .with_context(|| format!("bind server port {port}"))?;
    Ok(socket)
}
