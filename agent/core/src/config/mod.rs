//! The configuration: what the files say.

mod checks;
mod criteria;
mod error;
pub mod keys;
mod parse;
mod print;
mod read;
mod rules;
mod sections;

use std::collections::BTreeMap;
use std::time::Duration;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};
use steer_common::MarkMask;

pub use self::error::{ConfigError, MAX_FILE_BYTES, Place};
pub use self::parse::{
    Parsed, Places, PolicyPlaces, Replaced, RulePlaces, parse, parse_with_places,
};
pub use self::print::{NotSavable, policy_to_toml, to_toml};
use crate::attached::{Connection, Ssid};
use crate::criteria::{Bandwidth, Security};
use crate::groups;
use crate::name::Name;
use crate::network::{LinkKind, Network};
use crate::pattern::glob;
use crate::permit::Permit;
use crate::policy::Policy;
use crate::probe::Check;

/// Everything the files say, merged.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Config {
    /// `[agent]`.
    pub agent: AgentConfig,
    /// `[domain.x]`.
    pub domains: BTreeMap<Name, DomainConfig>,
    /// `[group.x]`: its domains in order.
    pub groups: BTreeMap<Name, Vec<Name>>,
    /// `[policy.x]`, with `[policy.default]` under the name `default`.
    pub policies: BTreeMap<Name, Policy>,
    /// `[permit.x]`.
    pub permits: BTreeMap<Name, Permit>,
    /// Policies that are bad in themselves, and are not in force. In place of a strict one there is in
    /// `policies` one that blocks what it matches.
    pub quarantined: BTreeMap<Name, Quarantine>,
    /// Where the keys of `[agent]` are that were given.
    pub agent_places: BTreeMap<&'static str, Place>,
    /// Names that no file defines and that only a discovered interface can bear.
    pub awaited: Vec<Awaited>,
}

/// A policy that is bad in itself in an otherwise good file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Quarantine {
    /// The policy as far as it could be read.
    pub policy: Policy,
    /// What is wrong with it: one mistake or more.
    pub mistakes: Vec<ConfigError>,
}

/// A name in `use` or in a group that no file defines.
///
/// An interface may come later than the agent, so such a name is an error only as long as no
/// interface bears it; the policy is in force all the same, without the domain.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Awaited {
    /// The name.
    pub name: Name,
    /// What to say while no interface bears it, about the first place that names it.
    pub error: ConfigError,
}

/// `[agent]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AgentConfig {
    /// `cgroup-root`: path of the managed cgroup below the mount of the unified hierarchy, or
    /// absolute; none: the mount's root.
    pub cgroup_root: Option<String>,
    /// `mark-mask`: bits of marks that are the agent's.
    pub mark_mask: MarkMask,
    /// `table-base`: the table of the domain with index `n` is this plus `n`.
    pub table_base: u32,
    /// `rule-base`: priority of the agent's first rule.
    pub rule_base: u32,
    /// `discover`: which interfaces are domains without being named in a file.
    pub discover: Discover,
    /// `host-model`: of domains that do not say their own.
    pub host_model: HostModel,
    /// `linger`: of policies that do not say their own.
    pub linger: Duration,
    /// `check`: of domains that do not say their own; none: their gateway is asked for an echo.
    pub check: Option<Check>,
    /// `order`: kinds of domains in the order in which the groups that are always there have them.
    pub order: Vec<LinkKind>,
    /// `primary`: domains that come before all others there.
    pub primary: Vec<Name>,
}

/// Which packets an interface takes and sends as the host's own (RFC 1122, section 3.3.4.2).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum HostModel {
    /// As the kernel is set up.
    #[default]
    Kernel,
    /// Those for any address of the host.
    Weak,
    /// Those for its own addresses alone.
    Strong,
    /// As the kernel is set up, but what `strong` would drop is counted.
    Count,
}

/// Which interfaces are domains of themselves.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Discover {
    /// All that have a default route or a global address.
    All,
    /// None.
    None,
    /// Those whose name matches one of these.
    Globs(Vec<String>),
}

/// `[domain.x]`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DomainConfig {
    /// Which interface it is on. All given keys must fit.
    pub matches: DomainMatch,
    /// `kind`: overrides the interface's.
    pub kind: Option<LinkKind>,
    /// `sources`: addresses or prefixes. Limits the domain to these addresses, in this order, for
    /// each family that occurs.
    pub sources: Vec<IpNet>,
    /// `gateways`: default routes by these, in this order, in place of the interface's own, for each
    /// family that occurs.
    pub gateways: Vec<std::net::IpAddr>,
    /// `cost`: what it costs to use it, as a number without unit, at most [`MAX_COST`].
    pub cost: u32,
    /// `metered`: what is sent by it is paid for or limited.
    pub metered: bool,
    /// `weight`: its part of flows that are shared; none: 1.
    pub weight: Option<u16>,
    /// `host-model`; none: as `[agent]` says.
    pub host_model: Option<HostModel>,
    /// `check`; none: as `[agent]` says.
    pub check: Option<Check>,
    /// `bandwidth`: nominal, of the narrower direction.
    pub bandwidth: Option<Bandwidth>,
    /// `security`: overrides what its kind says.
    pub security: Option<Security>,
    /// `profile`: a name by which policies may require it.
    pub profile: Option<Name>,
    /// `attach-timeout`: how long it may take to become usable.
    pub attach_timeout: Option<Duration>,
    /// `dns.servers`: its name servers; none: those that the network announces.
    pub servers: Vec<std::net::IpAddr>,
}

/// Highest `weight` of a domain.
pub const MAX_WEIGHT: u16 = 1_000;

/// Highest `cost` of a domain.
pub const MAX_COST: u32 = 1_000_000;

/// `match` of a domain. Without any key the interface of the domain's own name.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DomainMatch {
    /// Name of the interface.
    pub interface: Option<String>,
    /// Its hardware address.
    pub mac: Option<[u8; 6]>,
    /// Its kind.
    pub kind: Option<LinkKind>,
    /// The WLAN that it is connected to.
    pub ssid: Option<Ssid>,
    /// The connection manager's connection that is up on it.
    pub connection: Option<Connection>,
}

impl Default for AgentConfig {
    fn default() -> Self {
        Self {
            cgroup_root: None,
            mark_mask: MarkMask::DEFAULT,
            table_base: 40_000,
            rule_base: 4_000,
            discover: Discover::All,
            host_model: HostModel::Kernel,
            linger: Duration::from_secs(30),
            check: None,
            order: vec![LinkKind::Wired, LinkKind::Wlan, LinkKind::Cellular],
            primary: Vec::new(),
        }
    }
}

impl Discover {
    /// Whether an interface of this name may be a domain of itself.
    pub fn covers(&self, interface: &str) -> bool {
        match self {
            Self::All => true,
            Self::None => false,
            Self::Globs(globs) => globs.iter().any(|pattern| glob(pattern, interface)),
        }
    }
}

impl Config {
    /// Whether the files define a policy of this name, good or bad.
    pub fn defines(&self, name: &str) -> bool {
        self.policies.contains_key(name) || self.quarantined.contains_key(name)
    }

    /// What is wrong with single policies.
    pub fn mistakes(&self) -> impl Iterator<Item = &ConfigError> {
        self.quarantined.values().flat_map(|bad| &bad.mistakes)
    }

    /// Whether a name in `use` means something now: a domain or group of the files, or an interface
    /// that may be discovered.
    pub fn knows(&self, name: &Name, network: &Network) -> bool {
        self.domains.contains_key(name)
            || groups::is_group(self, name)
            || network.links.values().any(|link| {
                link.name == name.as_str()
                    && (self.agent.discover.covers(&link.name) || self.is_alias(name))
            })
    }

    /// Errors of names that no file defines and no interface bears now. What `steer check` and
    /// `steer reload` report as errors, and `status` for as long as they last.
    pub fn unknown<'a>(&'a self, network: &'a Network) -> impl Iterator<Item = &'a ConfigError> {
        self.awaited
            .iter()
            .filter(|awaited| !self.knows(&awaited.name, network))
            .map(|awaited| &awaited.error)
    }

    /// Whether `name` is the name of an interface that a domain of the files asks for.
    fn is_alias(&self, name: &Name) -> bool {
        self.domains
            .values()
            .any(|domain| domain.matches.interface.as_deref() == Some(name.as_str()))
    }
}
