//! Performs operations on one socket and reports them.

use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::sync::mpsc::Receiver;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use nix::errno::Errno;
use nix::sys::socket::{
    Backlog, MsgFlags, SockaddrStorage, accept, bind, connect, listen, recv, recvfrom, send, sendto,
};
use steer_tests::report::{Answer, Report};

use crate::control::{self, Prepared};
use crate::hold::{self, Held};
use crate::operation::{Family, Kind, Message, Operation};
use crate::{hand, ring, socket, transfer, wire};

/// A socket, and what the probe remembers about it.
pub(crate) struct Probe {
    pub(crate) lines: Receiver<String>,
    pub(crate) waiting: Option<String>,
    pub(crate) socket: Option<OwnedFd>,
    pub(crate) kind: Kind,
    pub(crate) family: Family,
    pub(crate) connected: Option<SocketAddr>,
    device: Option<String>,
    source: Option<IpAddr>,
    timeout: Duration,
    /// Between two of a row of operations.
    pub(crate) pause: Duration,
    /// Further sockets that are connected.
    many: Vec<OwnedFd>,
    held: Option<Held>,
}

/// Outcome of an operation that the kernel may refuse; the outer error is a mistake in the line.
pub(crate) type Attempt = Result<Result<(), Errno>>;

impl Probe {
    pub(crate) fn new(lines: Receiver<String>) -> Self {
        Self {
            lines,
            waiting: None,
            socket: None,
            kind: Kind::Tcp,
            family: Family::V4,
            connected: None,
            device: None,
            source: None,
            timeout: Duration::from_secs(2),
            pause: Duration::from_millis(1),
            many: Vec::new(),
            held: None,
        }
    }

    /// The next line of standard input; `None` at its end.
    pub(crate) fn next_line(&mut self) -> Option<String> {
        self.waiting.take().or_else(|| self.lines.recv().ok())
    }

    /// Performs one operation and prints its report.
    pub(crate) fn perform(&mut self, line: &str) -> Result<()> {
        let operation = Operation::parse(line, self.family)?;
        let mut report = Report {
            op: line
                .split_whitespace()
                .next()
                .unwrap_or_default()
                .to_owned(),
            ..Report::default()
        };
        let result = self.attempt(operation, &mut report)?;
        report.ok = result.is_ok();
        if let Err(errno) = result {
            report.errno = errno as i32;
            report.errno_name = format!("{errno:?}");
        }
        if let Some(socket) = &self.socket {
            report.local = socket::local(socket);
            report.mark = socket::mark(socket);
        }
        println!(
            "{}",
            serde_json::to_string(&report).context("write a report")?
        );
        Ok(())
    }

    fn attempt(&mut self, operation: Operation, report: &mut Report) -> Attempt {
        Ok(match operation {
            Operation::Open(kind, family) => self.open(kind, family),
            Operation::Set(key, value) => self.set(&key, &value)?,
            Operation::Bind(address) => {
                bind(self.socket()?.as_raw_fd(), &SockaddrStorage::from(address))
            }
            Operation::Connect(to) => {
                report.peer = Some(to);
                self.connect(to)?
            }
            Operation::Listen => listen(self.socket()?, Backlog::MAXCONN),
            Operation::Send(message) => {
                report.peer = message.to.or(self.connected);
                self.exchange(&message, report)?
            }
            Operation::Post(message) => {
                report.peer = message.to.or(self.connected);
                self.post(&message)?
            }
            Operation::Fast(message) => {
                report.peer = message.to;
                self.fast(&message, report)?
            }
            Operation::Ring(message) => {
                report.peer = message.to.or(self.connected);
                let (payload, to) = self.payload(&message)?;
                let is_ipv6 = self.family != Family::V4;
                let message = Prepared::new(&payload, to, is_ipv6, message.extras);
                ring::send(self.socket()?, &message)?
            }
            Operation::Serve => self.serve(report)?,
            Operation::Flood(message) => self.flood(&message, report)?,
            Operation::Churn(message) => self.churn(&message, report)?,
            Operation::Sprout(message) => self.sprout(&message, report)?,
            Operation::Persist(message) => self.persist(&message, report)?,
            Operation::Many(count, to) => self.many(count, to, report)?,
            Operation::Ended => {
                report.tried = u64::try_from(self.many.len())?;
                let ended = self.many.iter().filter(|one| socket::has_ended(one));
                report.failed = u64::try_from(ended.count())?;
                Ok(())
            }
            Operation::Hold => {
                let socket = self.socket.take().context("there is no socket")?;
                hold::hold(socket)?.map(|held| self.held = Some(held))
            }
            Operation::Release => {
                self.held = None;
                Ok(())
            }
            Operation::Wait => self.wait()?,
            Operation::Accept => {
                let taken = transfer::accept(self.socket()?, self.kind.is_stream(), report);
                taken.map(|connection| {
                    if let Some(connection) = connection {
                        self.socket = Some(connection);
                    }
                })
            }
            Operation::Pump(bytes) => {
                transfer::pump(self.socket()?, self.kind.is_stream(), bytes, report)?
            }
            Operation::Gulp(bytes) => {
                transfer::gulp(self.socket()?, self.kind.is_stream(), bytes, report)?
            }
            Operation::Give(name) => hand::give(self.socket()?, &name)?,
            Operation::Take(name) => {
                self.socket = None;
                hand::take(&name)?.map(|socket| self.socket = Some(socket))
            }
            Operation::Enter(path) => {
                let procs = format!("{path}/cgroup.procs");
                std::fs::write(&procs, "0")
                    .map_err(|error| Errno::from_raw(error.raw_os_error().unwrap_or(libc::EIO)))
            }
            Operation::Close => {
                self.socket = None;
                Ok(())
            }
        })
    }

    fn socket(&self) -> Result<&OwnedFd> {
        self.socket.as_ref().context("no socket is open")
    }

    pub(crate) fn open(&mut self, kind: Kind, family: Family) -> Result<(), Errno> {
        self.socket = None;
        (self.kind, self.family, self.connected) = (kind, family, None);
        let opened = socket::open(kind, family)?;
        socket::set_timeout(&opened, self.timeout)?;
        self.socket = Some(opened);
        Ok(())
    }

    fn set(&mut self, key: &str, value: &str) -> Attempt {
        match key {
            "source" => self.source = Some(value.parse().context("read a source address")?),
            "device" if self.kind == Kind::Packet => self.device = Some(value.to_owned()),
            "timeout" => {
                self.timeout = Duration::from_millis(value.parse().context("read milliseconds")?);
                return Ok(socket::set_timeout(self.socket()?, self.timeout));
            }
            "pause" => {
                self.pause = Duration::from_millis(value.parse().context("read milliseconds")?);
            }
            _ => return socket::set(self.socket()?, key, value),
        }
        Ok(Ok(()))
    }

    pub(crate) fn connect(&mut self, to: SocketAddr) -> Attempt {
        let result = connect(self.socket()?.as_raw_fd(), &SockaddrStorage::from(to));
        if result.is_ok() {
            self.connected = Some(to);
        }
        // A connect that outlasts SO_SNDTIMEO ends with EINPROGRESS: socket(7).
        Ok(result.map_err(|e| {
            if e == Errno::EINPROGRESS {
                Errno::ETIMEDOUT
            } else {
                e
            }
        }))
    }

    pub(crate) fn post(&self, message: &Message) -> Attempt {
        let (payload, to) = self.payload(message)?;
        if self.kind == Kind::Packet {
            return self.post_frame(&payload);
        }
        let is_ipv6 = self.family != Family::V4;
        let message = Prepared::new(&payload, to, is_ipv6, message.extras);
        Ok(control::send(self.socket()?, &message, 0))
    }

    fn fast(&self, message: &Message, report: &mut Report) -> Attempt {
        let (payload, to) = self.payload(message)?;
        let is_ipv6 = self.family != Family::V4;
        let prepared = Prepared::new(&payload, to, is_ipv6, message.extras);
        match control::send(self.socket()?, &prepared, libc::MSG_FASTOPEN) {
            Ok(()) => self.answer_to(message, report),
            Err(errno) => Ok(Err(errno)),
        }
    }

    /// What a message is on this kind of socket, and where it goes.
    fn payload(&self, message: &Message) -> Result<(Vec<u8>, Option<SocketAddr>)> {
        let Message { token, to, .. } = message;
        let is_ipv6 = self.family != Family::V4;
        let payload = match self.kind {
            Kind::Tcp | Kind::Mptcp | Kind::Sctp => format!("{token}\n").into_bytes(),
            Kind::Udp => token.clone().into_bytes(),
            Kind::Ping | Kind::Raw => wire::echo(is_ipv6, self.echo_id(), token.as_bytes()),
            Kind::RawUdp => {
                let port = to
                    .or(self.connected)
                    .context("raw-udp needs a destination")?
                    .port();
                wire::udp(40_000, port, token.as_bytes())
            }
            Kind::Header | Kind::Packet => self.whole_packet(message)?,
        };
        // A raw socket's destination has no port; IPv6 refuses one that is not the protocol's.
        let to = match self.kind {
            Kind::Raw | Kind::RawUdp | Kind::Header => to.map(|mut to| {
                to.set_port(0);
                to
            }),
            _ => *to,
        };
        Ok((payload, to))
    }

    fn echo_id(&self) -> u16 {
        let [low, high, ..] = std::process::id().to_le_bytes();
        u16::from_le_bytes([low, high])
    }

    fn whole_packet(&self, message: &Message) -> Result<Vec<u8>> {
        let to = message.to.context("this kind needs a destination")?;
        let source = self.source.context("this kind needs: set source=ADDRESS")?;
        let udp = wire::udp(40_000, to.port(), message.token.as_bytes());
        wire::ip(source, to.ip(), &udp).context("source and destination of one family")
    }

    fn post_frame(&self, ip: &[u8]) -> Attempt {
        let device = self
            .device
            .as_deref()
            .context("packet needs: set device=IF")?;
        let frame = wire::frame(ip);
        let index = socket::packet_index(device)?;
        Ok(steer_tests::send_frame(self.socket()?, index, &frame))
    }

    pub(crate) fn exchange(&self, message: &Message, report: &mut Report) -> Attempt {
        match self.post(message)? {
            Ok(()) => self.answer_to(message, report),
            Err(errno) => Ok(Err(errno)),
        }
    }

    /// Waits for the answer to what was just sent.
    fn answer_to(&self, message: &Message, report: &mut Report) -> Attempt {
        let end = Instant::now() + self.timeout;
        let mut buffer = [0; 8192];
        let mut pending = Vec::new();
        loop {
            let left = end.saturating_duration_since(Instant::now());
            if let Err(errno) = socket::wait_readable(self.socket()?, left) {
                return Ok(Err(errno));
            }
            let length = match recv(self.socket()?.as_raw_fd(), &mut buffer, MsgFlags::empty()) {
                Ok(0) if self.kind.is_stream() => return Ok(Err(Errno::EPIPE)),
                Ok(length) => length,
                Err(errno) => return Ok(Err(errno)),
            };
            match self.kind {
                kind if kind.is_stream() => pending.extend_from_slice(&buffer[..length]),
                _ => pending = buffer[..length].to_vec(),
            }
            if self.is_answer(&pending, &message.token, report) {
                return Ok(Ok(()));
            }
        }
    }

    fn is_answer(&self, received: &[u8], token: &str, report: &mut Report) -> bool {
        if matches!(self.kind, Kind::Ping | Kind::Raw) {
            // A raw socket also sees echo requests (to itself) and others' answers: RFC 792, RFC 4443.
            let reply = if self.family == Family::V4 { 0 } else { 129 };
            let icmp = match (self.kind, self.family) {
                (Kind::Raw, Family::V4) => received.get(20..).unwrap_or_default(),
                _ => received,
            };
            return icmp.first() == Some(&reply) && icmp.get(8..) == Some(token.as_bytes());
        }
        let Ok(answer) = serde_json::from_slice::<Answer>(received) else {
            return false;
        };
        if answer.token != token {
            return false;
        }
        report.seen_by = Some(answer.seen);
        report.uplink = Some(answer.uplink);
        true
    }

    fn serve(&self, report: &mut Report) -> Attempt {
        if let Err(errno) = socket::wait_readable(self.socket()?, Duration::from_secs(10)) {
            return Ok(Err(errno));
        }
        let mut buffer = [0; 4096];
        let listening = self.socket()?.as_raw_fd();
        if !self.kind.is_stream() {
            let (length, from) = match recvfrom::<SockaddrStorage>(listening, &mut buffer) {
                Ok((length, Some(from))) => (length, from),
                Ok(_) => return Ok(Err(Errno::EDESTADDRREQ)),
                Err(errno) => return Ok(Err(errno)),
            };
            report.peer = socket::address(&from);
            let answer = answer(report.peer, &buffer[..length])?;
            return Ok(sendto(listening, &answer, &from, MsgFlags::empty()).map(drop));
        }
        let connection = match accept(listening) {
            // SAFETY: accept just returned this descriptor, which nothing else owns.
            Ok(fd) => unsafe { OwnedFd::from_raw_fd(fd) },
            Err(errno) => return Ok(Err(errno)),
        };
        let peer = nix::sys::socket::getpeername::<SockaddrStorage>(connection.as_raw_fd());
        report.peer = peer.ok().as_ref().and_then(socket::address);
        let length = match recv(connection.as_raw_fd(), &mut buffer, MsgFlags::empty()) {
            Ok(length) => length,
            Err(errno) => return Ok(Err(errno)),
        };
        let answer = answer(report.peer, buffer[..length].trim_ascii_end())?;
        Ok(send(connection.as_raw_fd(), &answer, MsgFlags::MSG_NOSIGNAL).map(drop))
    }

    /// Connects many more sockets, and keeps them.
    fn many(&mut self, count: usize, to: SocketAddr, report: &mut Report) -> Attempt {
        report.peer = Some(to);
        for _ in 0..count {
            report.tried += 1;
            let one = match socket::open(self.kind, self.family) {
                Ok(one) => one,
                Err(errno) => return Ok(Err(errno)),
            };
            if let Err(errno) = connect(one.as_raw_fd(), &SockaddrStorage::from(to)) {
                return Ok(Err(errno));
            }
            self.many.push(one);
        }
        Ok(Ok(()))
    }

    /// Waits until something comes, and gives the error that comes.
    fn wait(&self) -> Attempt {
        let socket = self.socket()?;
        if let Err(errno) = socket::wait_readable(socket, self.timeout) {
            return Ok(Err(errno));
        }
        Ok(recv(socket.as_raw_fd(), &mut [0; 8192], MsgFlags::empty()).map(drop))
    }
}

fn answer(peer: Option<SocketAddr>, token: &[u8]) -> Result<Vec<u8>> {
    let Some(seen) = peer else {
        bail!("a peer without an address")
    };
    let answer = Answer {
        uplink: "host".to_owned(),
        seen: SocketAddr::new(seen.ip().to_canonical(), seen.port()),
        token: String::from_utf8_lossy(token).into_owned(),
    };
    let mut line = serde_json::to_vec(&answer).context("write an answer")?;
    line.push(b'\n');
    Ok(line)
}
