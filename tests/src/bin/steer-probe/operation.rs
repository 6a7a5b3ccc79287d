//! The words of an operation, checked.

use std::net::{IpAddr, SocketAddr, SocketAddrV6};

use anyhow::{Context, Result, bail};
use nix::net::if_::if_nametoindex;

/// Kind of socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Tcp,
    Mptcp,
    Sctp,
    Udp,
    Ping,
    Raw,
    RawUdp,
    Header,
    Packet,
}

impl Kind {
    /// Whether it sends a stream of lines.
    pub(crate) fn is_stream(self) -> bool {
        matches!(self, Self::Tcp | Self::Mptcp | Self::Sctp)
    }
}

/// Family of the socket and of the addresses given to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Family {
    V4,
    V6,
    Mapped,
}

/// What a datagram carries beside its payload.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Extras {
    pub(crate) interface: u32,
    pub(crate) source: Option<IpAddr>,
    pub(crate) mark: Option<u32>,
}

/// A datagram to send.
#[derive(Clone, Debug)]
pub(crate) struct Message {
    pub(crate) token: String,
    pub(crate) to: Option<SocketAddr>,
    pub(crate) extras: Extras,
}

/// One operation.
#[derive(Clone, Debug)]
pub(crate) enum Operation {
    Open(Kind, Family),
    Set(String, String),
    Bind(SocketAddr),
    Connect(SocketAddr),
    Listen,
    Send(Message),
    Post(Message),
    Serve,
    Fast(Message),
    Ring(Message),
    Flood(Message),
    Churn(Message),
    Sprout(Message),
    Persist(Message),
    Many(usize, SocketAddr),
    Ended,
    Hold,
    Release,
    Wait,
    Accept,
    Pump(u64),
    Gulp(u64),
    Give(String),
    Take(String),
    Enter(String),
    Close,
}

impl Operation {
    /// Reads a line. Addresses are those of `family`.
    pub(crate) fn parse(line: &str, family: Family) -> Result<Self> {
        let mut words = line.split_whitespace();
        let verb = words.next().context("an empty line is no operation")?;
        let rest: Vec<&str> = words.collect();
        let one = || {
            rest.first()
                .copied()
                .with_context(|| format!("{verb} needs an argument"))
        };
        Ok(match verb {
            "open" => {
                let [kind, family] = rest[..] else {
                    bail!("open needs a kind and a family")
                };
                Self::Open(parse_kind(kind)?, parse_family(family)?)
            }
            "set" => {
                let (key, value) = one()?.split_once('=').context("set needs KEY=VALUE")?;
                Self::Set(key.to_owned(), value.to_owned())
            }
            "bind" => Self::Bind(parse_address(one()?, family)?),
            "connect" => Self::Connect(parse_address(one()?, family)?),
            "listen" => Self::Listen,
            "send" => Self::Send(parse_message(&rest, family)?),
            "post" => Self::Post(parse_message(&rest, family)?),
            "serve" => Self::Serve,
            "fast" => Self::Fast(parse_message(&rest, family)?),
            "ring" => Self::Ring(parse_message(&rest, family)?),
            "flood" => Self::Flood(parse_message(&rest, family)?),
            "churn" => Self::Churn(parse_message(&rest, family)?),
            "sprout" => Self::Sprout(parse_message(&rest, family)?),
            "persist" => Self::Persist(parse_message(&rest, family)?),
            "many" => {
                let [count, to] = rest[..] else {
                    bail!("many needs a number and an address")
                };
                let count = count.parse().context("read a number")?;
                Self::Many(count, parse_address(to, family)?)
            }
            "ended" => Self::Ended,
            "hold" => Self::Hold,
            "release" => Self::Release,
            "wait" => Self::Wait,
            "accept" => Self::Accept,
            "pump" => Self::Pump(one()?.parse().context("read a number of bytes")?),
            "gulp" => Self::Gulp(one()?.parse().context("read a number of bytes")?),
            "give" => Self::Give(one()?.to_owned()),
            "take" => Self::Take(one()?.to_owned()),
            "enter" => Self::Enter(one()?.to_owned()),
            "close" => Self::Close,
            other => bail!("unknown operation {other}"),
        })
    }
}

fn parse_kind(word: &str) -> Result<Kind> {
    Ok(match word {
        "tcp" => Kind::Tcp,
        "mptcp" => Kind::Mptcp,
        "sctp" => Kind::Sctp,
        "udp" => Kind::Udp,
        "ping" => Kind::Ping,
        "raw" => Kind::Raw,
        "raw-udp" => Kind::RawUdp,
        "header" => Kind::Header,
        "packet" => Kind::Packet,
        other => bail!("unknown kind {other}"),
    })
}

fn parse_family(word: &str) -> Result<Family> {
    Ok(match word {
        "4" => Family::V4,
        "6" => Family::V6,
        "mapped" => Family::Mapped,
        other => bail!("unknown family {other}"),
    })
}

fn parse_message(words: &[&str], family: Family) -> Result<Message> {
    let (token, rest) = words.split_first().context("a token is missing")?;
    let mut message = Message {
        token: (*token).to_owned(),
        to: None,
        extras: Extras::default(),
    };
    for word in rest {
        match word.split_once('=') {
            None => message.to = Some(parse_address(word, family)?),
            Some(("mark", value)) => message.extras.mark = Some(parse_number(value)?),
            Some(("pktinfo", value)) => match value.parse() {
                Ok(address) => message.extras.source = Some(address),
                Err(_) => message.extras.interface = interface(value)?,
            },
            Some((key, _)) => bail!("unknown extra {key}"),
        }
    }
    Ok(message)
}

/// `ADDRESS`, `ADDRESS:PORT` or `[ADDRESS%INTERFACE]:PORT`, v4-mapped where the family asks for it.
pub(crate) fn parse_address(word: &str, family: Family) -> Result<SocketAddr> {
    let (host, port) = match word.strip_prefix('[').and_then(|w| w.split_once(']')) {
        Some((host, port)) => (host, port.strip_prefix(':').unwrap_or("0")),
        None if word.matches(':').count() == 1 => word.split_once(':').context("one colon")?,
        None => (word, "0"),
    };
    let port = port.parse().with_context(|| format!("port in {word}"))?;
    let (host, scope) = match host.split_once('%') {
        Some((host, name)) => (host, interface(name)?),
        None => (host, 0),
    };
    let address: IpAddr = host.parse().with_context(|| format!("address in {word}"))?;
    Ok(match (address, family) {
        (IpAddr::V4(address), Family::Mapped) => {
            SocketAddrV6::new(address.to_ipv6_mapped(), port, 0, 0).into()
        }
        (IpAddr::V6(address), _) => SocketAddrV6::new(address, port, 0, scope).into(),
        (IpAddr::V4(address), _) => (address, port).into(),
    })
}

/// A number in decimal or, after `0x`, in hexadecimal.
pub(crate) fn parse_number(word: &str) -> Result<u32> {
    let parsed = match word.strip_prefix("0x") {
        Some(digits) => u32::from_str_radix(digits, 16),
        None => word.parse(),
    };
    parsed.with_context(|| format!("{word} is no number"))
}

/// Index of an interface.
pub(crate) fn interface(name: &str) -> Result<u32> {
    if_nametoindex(name).with_context(|| format!("no interface {name}"))
}
