//! Rules of a policy: finer than the application. The first one that fits a flow says what becomes of
//! it; what none fits gets what the policy itself says.

mod both;
pub mod compile;
pub mod flatten;
pub mod image;
mod words;

use std::fmt;
use std::net::IpAddr;
use std::ops::Deref;
use std::sync::Arc;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

pub use self::words::{Dscp, Ports, Protocol, WordError};
use crate::name::{Name, Shown};
use crate::policy::{Otherwise, Policy};

/// One rule. A key that is left out fits everything, a list fits what any of its items does.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(default, rename_all = "kebab-case", deny_unknown_fields)]
pub struct Rule {
    /// Source addresses. A flow whose source is not chosen yet has none, and no item fits it.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub source: Vec<IpNet>,
    /// Source ports. A flow whose port is not chosen yet has none, and no item fits it.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub source_ports: Vec<Ports>,
    /// Destination addresses.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub destination: Vec<IpNet>,
    /// Destination ports.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub ports: Vec<Ports>,
    /// Protocols.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub protocol: Vec<Protocol>,
    /// Code points that the application asked for.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub dscp: Vec<Dscp>,
    /// Domains and groups, first choice first. Empty: `otherwise` says all.
    #[serde(rename = "use", skip_serializing_if = "Vec::is_empty")]
    pub use_: Vec<Name>,
    /// What to do when no domain fits; [`Otherwise::Next`]: what the policy itself wants, as if no rule
    /// had fitted. None: as the policy.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub otherwise: Option<Otherwise>,
}

/// The rules of a policy in their order. Cheap to clone.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(from = "Vec<Rule>", into = "Vec<Rule>")]
pub struct Rules(Arc<[Rule]>);

/// What rules look at in a flow, or in a packet of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Flow {
    /// Its source; none: not chosen yet.
    pub source: Option<IpAddr>,
    /// Its destination.
    pub destination: IpAddr,
    /// Protocol.
    pub protocol: u8,
    /// Source port; 0: none, or not chosen yet.
    pub source_port: u16,
    /// Destination port; 0: none.
    pub port: u16,
    /// Differentiated services code point.
    pub dscp: u8,
}

impl Flow {
    /// A flow of which no more is known than where it goes: TCP, and no port.
    pub const fn to(destination: IpAddr) -> Self {
        Self {
            source: None,
            destination,
            protocol: 6,
            source_port: 0,
            port: 0,
            dscp: 0,
        }
    }

    /// With addresses of IPv4 as such, where they are written as addresses of IPv6.
    #[must_use]
    pub fn canonical(&self) -> Self {
        Self {
            source: self.source.map(|source| source.to_canonical()),
            destination: self.destination.to_canonical(),
            ..*self
        }
    }
}

/// Why a rule contradicts itself or its policy.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RuleError {
    /// It says nothing.
    #[error("names no domain in `use` and says no `otherwise`: it does nothing")]
    Nothing,
    /// Ports of protocols that have none.
    #[error(
        "has ports, which {0} does not have: leave the protocol out, or name tcp, udp, sctp, dccp or udplite"
    )]
    NoPorts(Protocol),
    /// A rule of a strict policy lets flows go elsewhere.
    #[error(
        "is of a strict policy, so its flows are blocked when no domain fits: `otherwise` cannot be anything else"
    )]
    StrictOtherwise,
    /// A list is too long.
    #[error("has {len} items in `{key}`, more than the limit of {limit}", limit = Rule::MAX_LIST)]
    TooLong {
        /// The key.
        key: &'static str,
        /// How many.
        len: usize,
    },
    /// Too many domains.
    #[error("has {0} names in `use`, more than the limit of {limit}", limit = Policy::MAX_USE)]
    TooManyUses(usize),
}

/// Why the rules of a policy are refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RulesError {
    /// One of them contradicts itself or the policy.
    #[error("rule {number} {error}")]
    Rule {
        /// Which, from 1.
        number: usize,
        /// What is wrong with it.
        error: RuleError,
    },
    /// There are too many.
    #[error("has {0} rules, more than the limit of {limit}", limit = Rules::MAX)]
    TooMany(usize),
    /// Their lists are too long together.
    #[error("has {0} items in the lists of its rules, more than the limit of {limit}", limit = Rules::MAX_ITEMS)]
    TooManyItems(usize),
    /// They do not fit the kernel's map.
    #[error("has {0}")]
    TooLarge(#[from] compile::TooLarge),
}

impl Rule {
    /// Most items in a list.
    pub const MAX_LIST: usize = 10_000;

    /// Whether it fits a flow.
    pub fn fits(&self, flow: &Flow) -> bool {
        let within = |nets: &[IpNet], ip: Option<IpAddr>| {
            nets.is_empty() || ip.is_some_and(|ip| nets.iter().any(|net| net.contains(&ip)))
        };
        let among = |ports: &[Ports], port: u16| {
            ports.is_empty() || ports.iter().any(|ports| ports.contains(port))
        };
        within(&self.source, flow.source)
            && within(&self.destination, Some(flow.destination))
            && among(&self.source_ports, flow.source_port)
            && among(&self.ports, flow.port)
            && (self.protocol.is_empty() || self.protocol.contains(&Protocol(flow.protocol)))
            && (self.dscp.is_empty() || self.dscp.iter().any(|dscp| dscp.get() == flow.dscp))
    }

    /// How many items its lists have.
    pub fn items(&self) -> usize {
        self.lists().iter().map(|(_, len)| len).sum()
    }

    fn lists(&self) -> [(&'static str, usize); 6] {
        [
            ("source", self.source.len()),
            ("source-ports", self.source_ports.len()),
            ("destination", self.destination.len()),
            ("ports", self.ports.len()),
            ("protocol", self.protocol.len()),
            ("dscp", self.dscp.len()),
        ]
    }

    /// Checks that it contradicts neither itself nor a policy that is `strict` or not.
    ///
    /// # Errors
    /// It does.
    pub fn check(&self, strict: bool) -> Result<(), RuleError> {
        if self.use_.is_empty() && self.otherwise.is_none() {
            return Err(RuleError::Nothing);
        }
        if strict && self.otherwise.is_some_and(|what| what != Otherwise::Block) {
            return Err(RuleError::StrictOtherwise);
        }
        let ports = !self.ports.is_empty() || !self.source_ports.is_empty();
        if let Some(without) = self.protocol.iter().find(|one| ports && !one.has_ports()) {
            return Err(RuleError::NoPorts(*without));
        }
        if let Some((key, len)) = self
            .lists()
            .into_iter()
            .find(|(_, len)| *len > Self::MAX_LIST)
        {
            return Err(RuleError::TooLong { key, len });
        }
        if self.use_.len() > Policy::MAX_USE {
            return Err(RuleError::TooManyUses(self.use_.len()));
        }
        Ok(())
    }
}

/// As a file has it in one line: what it fits, then what it does.
impl fmt::Display for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fn part<T: fmt::Display>(
            f: &mut fmt::Formatter<'_>,
            key: &str,
            items: &[T],
        ) -> Result<bool, fmt::Error> {
            for (at, item) in items.iter().take(SHOWN).enumerate() {
                match at {
                    0 => write!(f, "{key} {item}")?,
                    _ => write!(f, ",{item}")?,
                }
            }
            if items.len() > SHOWN {
                write!(f, ",... ({} in all)", items.len())?;
            }
            if !items.is_empty() {
                f.write_str(" ")?;
            }
            Ok(!items.is_empty())
        }
        let mut any = part(f, "source", &self.source)?;
        any |= part(f, "source-ports", &self.source_ports)?;
        any |= part(f, "destination", &self.destination)?;
        any |= part(f, "ports", &self.ports)?;
        any |= part(f, "protocol", &self.protocol)?;
        any |= part(f, "dscp", &self.dscp)?;
        if !any {
            f.write_str("everything ")?;
        }
        f.write_str("->")?;
        for (at, name) in self.use_.iter().enumerate() {
            write!(f, "{}{name}", if at == 0 { " " } else { "," })?;
        }
        let otherwise = match self.otherwise {
            None => return Ok(()),
            Some(Otherwise::Block) => "block",
            Some(Otherwise::Pass) => "pass",
            Some(Otherwise::Next) => "next",
        };
        let before = if self.use_.is_empty() { "" } else { ", else" };
        write!(f, "{before} {otherwise}")
    }
}

/// Items of a list that are shown.
const SHOWN: usize = 4;

impl Rules {
    /// Most rules of a policy.
    pub const MAX: usize = 10_000;
    /// Most items in all lists of a policy's rules.
    pub const MAX_ITEMS: usize = 65_536;

    /// The first rule that fits a flow, and its place.
    pub fn first(&self, flow: &Flow) -> Option<(usize, &Rule)> {
        self.iter().enumerate().find(|(_, rule)| rule.fits(flow))
    }

    /// Checks that they are not too many, and that each contradicts neither itself nor a policy that is
    /// `strict` or not.
    ///
    /// # Errors
    /// The first mistake.
    pub fn check(&self, strict: bool) -> Result<(), RulesError> {
        if self.len() > Self::MAX {
            return Err(RulesError::TooMany(self.len()));
        }
        for (number, rule) in (1..).zip(self.iter()) {
            rule.check(strict)
                .map_err(|error| RulesError::Rule { number, error })?;
        }
        let items: usize = self.iter().map(Rule::items).sum();
        if items > Self::MAX_ITEMS {
            return Err(RulesError::TooManyItems(items));
        }
        // Which choice is which does not matter to the size.
        let rules: Vec<(&Rule, u32)> = self.iter().map(|rule| (rule, 0)).collect();
        if !rules.is_empty() {
            compile::compile(&rules, 0)?;
        }
        Ok(())
    }

    /// Whether there is none.
    pub fn is_none(&self) -> bool {
        self.0.is_empty()
    }

    /// Whether both are one list in memory: a cheap way to see that nothing changed.
    pub fn same(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }
}

impl Deref for Rules {
    type Target = [Rule];

    fn deref(&self) -> &[Rule] {
        &self.0
    }
}

impl From<Vec<Rule>> for Rules {
    fn from(rules: Vec<Rule>) -> Self {
        // All that are empty are one list.
        if rules.is_empty() {
            return Self::default();
        }
        Self(rules.into())
    }
}

impl From<Rules> for Vec<Rule> {
    fn from(rules: Rules) -> Self {
        rules.to_vec()
    }
}

/// Why an address or prefix in a rule was refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PrefixError {
    /// Neither.
    #[error("{0} is neither an address nor a prefix")]
    Unreadable(Shown),
    /// Bits behind the prefix are set.
    #[error("{given} has bits set behind its prefix: write {meant}")]
    HostBits {
        /// What was given.
        given: IpNet,
        /// What is meant by it.
        meant: IpNet,
    },
    /// IPv4 in the clothes of IPv6: such flows are IPv4.
    #[error("{given} stands for IPv4 addresses: write {meant}")]
    Mapped {
        /// What was given.
        given: IpNet,
        /// The same in IPv4.
        meant: IpNet,
    },
}

/// Reads an address or a prefix of a rule.
///
/// # Errors
/// It is neither, or written so that it seems to say something else.
pub fn prefix(text: &str) -> Result<IpNet, PrefixError> {
    let ip = text.parse::<IpAddr>().map(IpNet::from);
    let net = ip
        .or_else(|_| text.parse::<IpNet>())
        .map_err(|_| PrefixError::Unreadable(Shown::new(text)))?;
    if let IpNet::V6(v6) = net
        && v6.prefix_len() >= 96
        && let Some(v4) = v6.network().to_ipv4_mapped()
        && let Ok(meant) = IpNet::new(v4.into(), v6.prefix_len() - 96)
    {
        return Err(PrefixError::Mapped { given: net, meant });
    }
    let meant = net.trunc();
    if meant == net {
        Ok(net)
    } else {
        Err(PrefixError::HostBits { given: net, meant })
    }
}
