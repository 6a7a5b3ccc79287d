//! Traffic of every kind at once, numbered, from one cgroup: what goes on while a scenario changes things.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::ops::RangeBounds;

use anyhow::{Result, ensure};

use crate::cgroup::LabCgroup;
use crate::lab::Lab;
use crate::packet::{Direction, Packet};
use crate::probe::{Family, Kind, Probe, Session};
use crate::report::{DISCARD_PORT, ECHO_PORT, Report};
use crate::wait;

/// A way of sending.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// New TCP connections, each with an exchange.
    Connections,
    /// One established TCP connection, and a new one when it ends.
    Connection,
    /// One connected UDP socket, and a new one when it ends.
    Connected,
    /// One unconnected UDP socket.
    Unconnected,
    /// New unconnected UDP sockets.
    Datagrams,
    /// One ping socket.
    Ping,
    /// New ping sockets.
    Pings,
    /// One raw socket that asks for echoes.
    Raw,
    /// New raw sockets.
    Raws,
}

impl Way {
    /// All of them.
    pub const ALL: [Self; 9] = [
        Self::Connections,
        Self::Connection,
        Self::Connected,
        Self::Unconnected,
        Self::Datagrams,
        Self::Ping,
        Self::Pings,
        Self::Raw,
        Self::Raws,
    ];

    /// Whether a new decision shows in what it sends next: by a new socket, or for each datagram.
    fn follows(self) -> bool {
        !matches!(self, Self::Ping | Self::Raw)
    }

    /// Whether every number is seen once, if nothing is lost: TCP may send again, and an exchange that
    /// fails is another number.
    fn is_counted(self) -> bool {
        !matches!(self, Self::Connections | Self::Connection)
    }

    fn kind(self) -> Kind {
        match self {
            Self::Connections | Self::Connection => Kind::Tcp,
            Self::Connected => Kind::UdpConnected,
            Self::Unconnected | Self::Datagrams => Kind::UdpUnconnected,
            Self::Ping | Self::Pings => Kind::Ping,
            Self::Raw | Self::Raws => Kind::Raw,
        }
    }

    /// The probe's word for it.
    fn operation(self) -> &'static str {
        match self {
            Self::Connections => "churn",
            Self::Connection | Self::Connected => "persist",
            Self::Unconnected | Self::Ping | Self::Raw => "flood",
            Self::Datagrams | Self::Pings | Self::Raws => "sprout",
        }
    }

    /// An answer that nobody reads would end a TCP connection, and is in the way of datagrams.
    fn port(self) -> u16 {
        match self {
            Self::Connections => ECHO_PORT,
            _ => DISCARD_PORT,
        }
    }
}

/// One way of sending by one family, to a destination that nothing else has.
#[derive(Debug)]
struct Stream {
    way: Way,
    family: Family,
    token: String,
    target: IpAddr,
    session: Session,
}

/// Running traffic. It ends when this is dropped.
#[derive(Debug)]
pub struct Load {
    streams: Vec<Stream>,
}

impl Load {
    /// Starts sending from `cgroup` in all `ways`, by both families, and waits until each has sent.
    ///
    /// # Errors
    /// If one cannot.
    pub fn start(lab: &Lab, cgroup: &LabCgroup, ways: &[Way]) -> Result<Self> {
        let mut streams = Vec::new();
        for &way in ways {
            for family in [Family::V4, Family::V6] {
                let target = family.target(lab);
                let token = format!("{way:?}-{target}");
                let to = SocketAddr::new(target, way.port());
                let mut session = Probe::new(way.kind(), family).start(lab, cgroup)?;
                session.succeed("set timeout=300")?;
                session.succeed("set pause=4")?;
                session.ask(&format!("{} {token} {to}", way.operation()))?;
                streams.push(Stream {
                    way,
                    family,
                    token,
                    target,
                    session,
                });
            }
        }
        let load = Self { streams };
        load.wait_until(
            "to send",
            |_| true,
            |stream| lab.capture().has(0, |p| stream.sent(p)),
        )?;
        Ok(load)
    }

    /// Waits until all that follows a new decision has sent by `uplink` after `position`.
    ///
    /// # Errors
    /// If one has not in time.
    pub fn wait_for(&self, lab: &Lab, uplink: &str, position: usize) -> Result<()> {
        let follow: Vec<Way> = Way::ALL.into_iter().filter(|way| way.follows()).collect();
        self.wait_for_ways(lab, uplink, position, &follow)
    }

    /// [`Load::wait_for`] for these ways.
    ///
    /// # Errors
    /// If one has not in time.
    pub fn wait_for_ways(
        &self,
        lab: &Lab,
        uplink: &str,
        position: usize,
        ways: &[Way],
    ) -> Result<()> {
        let what = format!("to send by {uplink}");
        self.wait_until(
            &what,
            |way| ways.contains(&way),
            |stream| {
                lab.capture()
                    .has(position, |p| p.uplink == uplink && stream.sent(p))
            },
        )
    }

    fn wait_until(
        &self,
        what: &str,
        wanted: impl Fn(Way) -> bool,
        done: impl Fn(&Stream) -> bool,
    ) -> Result<()> {
        for stream in self.streams.iter().filter(|stream| wanted(stream.way)) {
            let name = format!("{:?} {:?} {what}", stream.way, stream.family);
            wait::until(&name, || Ok(done(stream).then_some(())))?;
        }
        Ok(())
    }

    /// Asserts that what was sent in `positions` of the capture crossed only uplinks that `allowed` names, and
    /// bears one of the addresses given there.
    ///
    /// What is sent is each packet that bears the application's payload, or begins a connection, or is
    /// no TCP. The rest (a reset, the acknowledgement of a connection that is over) is the kernel's, which
    /// knows no application any more when it answers.
    ///
    /// # Errors
    /// If not, with the packets.
    pub fn assert_only_by(
        &self,
        lab: &Lab,
        positions: impl RangeBounds<usize>,
        allowed: &BTreeMap<String, BTreeSet<IpAddr>>,
    ) -> Result<()> {
        let targets: BTreeSet<IpAddr> = self.streams.iter().map(|s| s.target).collect();
        let is_wrong = |p: &Packet| {
            let ours = p.direction == Direction::FromHost
                && p.is_ip()
                && p.destination.is_some_and(|to| targets.contains(&to));
            let is_sent =
                p.protocol != Some(TCP) || p.tcp_flags & SYN != 0 || !p.payload.is_empty();
            let has_source = |own: &BTreeSet<IpAddr>| p.source.is_some_and(|s| own.contains(&s));
            ours && is_sent && !allowed.get(&p.uplink).is_some_and(has_source)
        };
        let wrong = lab.capture().between(positions, is_wrong);
        let list: Vec<_> = wrong.iter().take(20).map(ToString::to_string).collect();
        ensure!(
            wrong.is_empty(),
            "{} packets by another way than {allowed:?}:\n{}",
            wrong.len(),
            list.join("\n")
        );
        Ok(())
    }

    /// Ends it, and tells what each stream reports, with its way.
    ///
    /// # Errors
    /// If a probe has ended before.
    pub fn finish(self) -> Result<Vec<(Way, Report)>> {
        let mut reports = Vec::new();
        for mut stream in self.streams {
            stream.session.ask("close")?;
            reports.push((stream.way, stream.session.read()?));
        }
        Ok(reports)
    }

    /// Ends it and asserts that nothing was lost or refused: of what is counted every number was seen
    /// once, by `uplink`, and the rest never failed.
    ///
    /// # Errors
    /// If something was, with its number.
    pub fn finish_complete(self, lab: &Lab, uplink: &str) -> Result<()> {
        for mut stream in self.streams {
            stream.session.ask("close")?;
            let report = stream.session.read()?;
            let name = &stream.token;
            ensure!(report.tried > 0 && report.failed == 0, "{name}: {report:?}");
            if !stream.way.is_counted() {
                continue;
            }
            lab.drain()?;
            let seen = numbers(lab, &stream.token);
            for number in 1..=report.tried {
                let uplinks = seen.get(&number).map(Vec::as_slice).unwrap_or_default();
                ensure!(
                    uplinks == [uplink],
                    "{name}: number {number} of {} was seen on {uplinks:?}",
                    report.tried
                );
            }
        }
        Ok(())
    }
}

impl Stream {
    fn sent(&self, packet: &Packet) -> bool {
        packet.direction == Direction::FromHost
            && packet.destination == Some(self.target)
            && packet.carries(&self.token)
    }
}

const TCP: u8 = 6;
const SYN: u8 = 2;

/// Numbers after `token` in datagrams that the host sent, with the uplinks that each was seen on.
pub fn numbers(lab: &Lab, token: &str) -> BTreeMap<u64, Vec<String>> {
    let prefix = format!("{token}-");
    let mut seen: BTreeMap<u64, Vec<String>> = BTreeMap::new();
    for packet in lab
        .capture()
        .packets(|p| p.direction == Direction::FromHost && p.protocol != Some(TCP))
    {
        let text = String::from_utf8_lossy(&packet.payload);
        let number = text
            .strip_prefix(&prefix)
            .and_then(|rest| rest.split_once(';'))
            .and_then(|(number, _)| number.parse().ok());
        if let Some(number) = number {
            seen.entry(number).or_default().push(packet.uplink);
        }
    }
    seen
}
