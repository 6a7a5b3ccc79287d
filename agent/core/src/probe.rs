//! What is asked over one domain alone, to know whether it leads anywhere: plain data, which the engine
//! tells and the agent carries out.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::ids::IfIndex;
use crate::name::{Name, Shown};

/// How a domain is checked: `check` of `[domain.x]` or `[agent]`. Of each kind that is given one target
/// must answer, and every kind must. Nothing given: it is not checked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Check {
    /// `http`: plain HTTP addresses. A redirection, or another answer than [`Check::expect`], is a portal's.
    pub http: Vec<HttpTarget>,
    /// `dns`: names that the domain's own servers are asked for.
    pub dns: Vec<DnsTarget>,
    /// `tcp`: where a connection must come about.
    pub tcp: Vec<(Host, u16)>,
    /// `icmp`: who must answer an echo request.
    pub icmp: Vec<Host>,
    /// `expect`: what proves that an answer to `http` is the target's own.
    pub expect: Expect,
    /// `interval`: time between checks of a domain that is well.
    pub interval: Duration,
    /// `fall`: a domain is given up after this many failures in a row.
    pub fall: u32,
    /// `rise`: and trusted again after this many successes in a row.
    pub rise: u32,
    /// Nobody asked for it: as long as it never passed, that it fails says nothing.
    pub implied: bool,
}

/// Who is asked.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Host {
    /// An address.
    Ip(IpAddr),
    /// A name, which the domain's own servers are asked for.
    Name(String),
    /// The gateway of the domain.
    Gateway,
}

/// An address like `http://host[:port]/path`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct HttpTarget {
    /// The host.
    pub host: Host,
    /// The port.
    pub port: u16,
    /// Path and query, beginning with `/`.
    pub path: String,
}

/// A name like `host.example`, or `host.example=192.0.2.1` where the address is known.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct DnsTarget {
    /// The name.
    pub name: String,
    /// The address that must be in the answer. Another answer is a portal's.
    pub address: Option<IpAddr>,
}

/// What proves an answer to HTTP.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Expect {
    /// This status.
    Status(u16),
    /// Status 200, and a body that begins with this text.
    Body(String),
}

/// One check of one domain that is due.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Probe {
    /// The domain.
    pub domain: Name,
    /// Which attachment of the domain it is about: an answer for another one is out of date.
    pub epoch: u64,
    /// When it is due, since boot.
    pub due: Duration,
    /// Mark of the domain's flows.
    pub mark: u32,
    /// Bits of marks that are the agent's.
    pub mask: u32,
    /// Its interface.
    pub interface: IfIndex,
    /// Its interface's name.
    pub ifname: String,
    /// Its IPv4 source.
    pub source4: Option<Ipv4Addr>,
    /// Its IPv6 source.
    pub source6: Option<Ipv6Addr>,
    /// Its gateways, preferred first.
    pub gateways: Vec<IpAddr>,
    /// Its name servers, preferred first.
    pub servers: Vec<SocketAddr>,
    /// Where the network says who its portal is (RFC 8910): an address of the API of RFC 8908.
    pub portal_api: Option<String>,
    /// What is asked.
    pub check: Check,
    /// After this time nothing is waited for any more.
    pub timeout: Duration,
}

/// What came of a [`Probe`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Report {
    /// The outcome.
    pub outcome: Outcome,
    /// Time of the quickest exchange with one packet each way: echo, handshake, or DNS.
    pub rtt: Option<Duration>,
    /// Questions that were asked.
    pub asked: u32,
    /// Of these, without any answer in time.
    pub lost: u32,
}

/// The outcome of a check.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Outcome {
    /// Everything answered as it should.
    Passed,
    /// A portal answers in place of others. The address of its page, if it said one.
    Portal(Option<String>),
    /// Something did not answer; what, as a sentence without a full stop.
    Failed(String),
}

impl Default for Check {
    fn default() -> Self {
        Self {
            http: Vec::new(),
            dns: Vec::new(),
            tcp: Vec::new(),
            icmp: Vec::new(),
            expect: Expect::Status(204),
            interval: Duration::from_secs(5),
            fall: 3,
            rise: 2,
            implied: false,
        }
    }
}

/// Longest host name, without the dot at its end (RFC 1035 section 2.3.4).
const MAX_HOST: usize = 253;

/// A host name in small letters, without a dot at its end.
///
/// # Errors
/// It is none.
pub fn host_name(text: &str) -> Result<String, String> {
    let label = |label: &str| {
        (1..=63).contains(&label.len())
            && label
                .bytes()
                .all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_'))
    };
    let bare = text.strip_suffix('.').unwrap_or(text);
    if bare.len() <= MAX_HOST && bare.split('.').all(label) {
        Ok(bare.to_ascii_lowercase())
    } else {
        Err(format!("{} is not a host", Shown::new(text)))
    }
}

impl Check {
    /// Whether anything is asked.
    pub fn asks(&self) -> bool {
        !(self.http.is_empty()
            && self.dns.is_empty()
            && self.tcp.is_empty()
            && self.icmp.is_empty())
    }

    /// What is asked, one target after the other.
    pub fn targets(&self) -> Vec<String> {
        let http = self.http.iter().map(ToString::to_string);
        let dns = self.dns.iter().map(|target| format!("dns {target}"));
        let tcp = self.tcp.iter();
        let tcp = tcp.map(|(host, port)| format!("tcp {host}:{port}"));
        let icmp = self.icmp.iter().map(|host| format!("icmp {host}"));
        http.chain(dns).chain(tcp).chain(icmp).collect()
    }

    /// After this time a question counts as lost. With [`Check::repeat`] in between, `fall` failures that begin an
    /// interval (and an eighth) after the path died fit into three intervals, as long as nothing is asked faster
    /// than every 50 ms.
    pub fn timeout(&self) -> Duration {
        let fall = self.fall.max(1);
        let part = self.interval * 3 / (2 * fall);
        part.clamp(Duration::from_millis(50), Duration::from_secs(10))
            .min(self.interval)
    }

    /// After a failure that is not the last one a question is asked again in this time.
    pub fn repeat(&self) -> Duration {
        let part = self.interval / (4 * self.fall.max(1));
        part.clamp(Duration::from_millis(10), Duration::from_secs(1))
    }
}

impl fmt::Display for Host {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Ip(ip) => ip.fmt(f),
            Self::Name(name) => f.write_str(name),
            Self::Gateway => f.write_str("gateway"),
        }
    }
}

impl fmt::Display for HttpTarget {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.host {
            Host::Ip(IpAddr::V6(ip)) => write!(f, "http://[{ip}]")?,
            host => write!(f, "http://{host}")?,
        }
        if self.port != 80 {
            write!(f, ":{}", self.port)?;
        }
        f.write_str(&self.path)
    }
}

impl fmt::Display for DnsTarget {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.name)?;
        self.address.map_or(Ok(()), |ip| write!(f, "={ip}"))
    }
}
