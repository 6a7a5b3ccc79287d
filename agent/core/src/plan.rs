//! Everything that should be: the *level* that reconcile brings the kernel to.
//!
//! A plan says what should be, never what to do. It is plain data that compares and prints, so that
//! tests compare values and a dry run shows it.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;
use serde::Serialize;
use steer_common::{
    CgroupEntry, ChoiceEntry, DomainEntry, DomainSet, IFNAME_LEN, IngressEntry, PolicyEntry,
    ShareEntry,
};

pub mod foreign;
pub mod host;
pub(crate) mod inputs;
pub(crate) mod maps;
pub(crate) mod network;
pub mod rules;
pub(crate) mod tables;

use crate::ids::{CgroupId, ChoiceId, DomainIndex, IfIndex, PlaceId, PolicyId, RulesetId, TableId};
use crate::name::Name;
use crate::rules::image::Image;

/// What should be.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Plan {
    /// Programs that should be attached.
    pub hooks: BTreeSet<Hook>,
    /// Interfaces that should have the guard.
    pub guards: BTreeSet<IfIndex>,
    /// Interfaces where something is done with what arrives, and what.
    pub ingress: BTreeMap<IfIndex, IngressEntry>,
    /// Addresses of the host with the interfaces where they are at home, for interfaces with a host
    /// model; each also with [`host::ANYWHERE`].
    pub hosts: BTreeSet<(IfIndex, IpAddr)>,
    /// Policy in force for each cgroup.
    pub cgroups: BTreeMap<CgroupId, CgroupEntry>,
    /// Entries of cgroups that strict policies name, whether they exist or not.
    pub names: BTreeMap<Named, CgroupEntry>,
    /// Kernel policies.
    pub policies: BTreeMap<PolicyId, PolicyEntry>,
    /// Compiled rules that policies lead to, and that lead to choices.
    pub rulesets: BTreeMap<RulesetId, Image>,
    /// Choices.
    pub choices: BTreeMap<ChoiceId, ChoiceEntry>,
    /// Slots of the choices whose flows are shared.
    pub shares: BTreeMap<ChoiceId, Arc<ShareEntry>>,
    /// Domains.
    pub domains: BTreeMap<DomainIndex, DomainEntry>,
    /// Addresses of each domain.
    pub sources: BTreeSet<(DomainIndex, IpAddr)>,
    /// On-link prefixes and own addresses of the host.
    pub locals: BTreeMap<IpNet, Local>,
    /// Rules, in the kernel's order.
    pub rules: BTreeSet<Rule>,
    /// Routes of the domains' tables.
    pub routes: BTreeSet<TableRoute>,
    /// Settings under /proc/sys that the configuration asks for, by path below it
    /// (`net/ipv4/tcp_fwmark_accept`).
    pub sysctls: BTreeMap<String, String>,
}

impl Plan {
    /// Tells of policies whether they lead to one of these choices, by themselves or by a rule. Each set of
    /// rules is searched once, however many policies have it.
    pub fn leading_to<'a>(
        &'a self,
        choices: &'a BTreeSet<ChoiceId>,
    ) -> impl FnMut(PolicyId) -> bool + 'a {
        let mut known: BTreeMap<RulesetId, bool> = BTreeMap::new();
        move |policy| {
            let Some(policy) = self.policies.get(&policy) else {
                return false;
            };
            let rules = RulesetId(policy.rules);
            choices.contains(&ChoiceId(policy.choice))
                || *known.entry(rules).or_insert_with(|| {
                    let set = self.rulesets.get(&rules);
                    let mut leads = set.into_iter().flat_map(Image::choices);
                    leads.any(|choice| choices.contains(&ChoiceId(choice)))
                })
        }
    }
}

/// A cgroup by its parent's number and its name.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Named {
    /// The parent; 0: anywhere.
    pub place: PlaceId,
    /// Name of its directory.
    pub name: Box<str>,
}

/// A kernel program that is attached once.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Hook {
    /// `cgroup/sock_create`.
    SockCreate,
    /// `cgroup/connect4`.
    Connect4,
    /// `cgroup/connect6`.
    Connect6,
    /// `cgroup/sendmsg4`.
    Sendmsg4,
    /// `cgroup/sendmsg6`.
    Sendmsg6,
    /// `cgroup/post_bind4`.
    PostBind4,
    /// `cgroup/post_bind6`.
    PostBind6,
    /// `cgroup/bind4`.
    Bind4,
    /// `cgroup/bind6`.
    Bind6,
    /// `cgroup/setsockopt`.
    Setsockopt,
    /// `cgroup_skb/egress`: the guard's backstop at interfaces without a guard. Not on every kernel.
    Egress,
    /// `tp_btf/cgroup_mkdir`.
    CgroupMkdir,
    /// `tp_btf/cgroup_rmdir`.
    CgroupRmdir,
}

impl Hook {
    /// Every hook, in the order in which they are attached.
    pub const ALL: [Self; 13] = [
        Self::SockCreate,
        Self::Connect4,
        Self::Connect6,
        Self::Sendmsg4,
        Self::Sendmsg6,
        Self::PostBind4,
        Self::PostBind6,
        Self::Bind4,
        Self::Bind6,
        Self::Setsockopt,
        Self::Egress,
        Self::CgroupMkdir,
        Self::CgroupRmdir,
    ];

    /// Its name in messages and pins.
    pub const fn name(self) -> &'static str {
        match self {
            Self::SockCreate => "sock-create",
            Self::Connect4 => "connect4",
            Self::Connect6 => "connect6",
            Self::Sendmsg4 => "sendmsg4",
            Self::Sendmsg6 => "sendmsg6",
            Self::PostBind4 => "post-bind4",
            Self::PostBind6 => "post-bind6",
            Self::Bind4 => "bind4",
            Self::Bind6 => "bind6",
            Self::Setsockopt => "setsockopt",
            Self::Egress => "egress",
            Self::CgroupMkdir => "cgroup-mkdir",
            Self::CgroupRmdir => "cgroup-rmdir",
        }
    }

    /// The hook of that name.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|hook| hook.name() == name)
    }
}

impl fmt::Display for Hook {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// Something that the kernel can refuse.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Object {
    /// Rules and routes of a domain.
    Domain(Name),
    /// A program.
    Hook(Hook),
    /// The guard, anywhere.
    Guard,
}

/// An on-link prefix, or an address of the host itself.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Local {
    /// An address of the host: never steered.
    pub host: bool,
    /// Domains on whose own link the prefix is.
    pub domains: DomainSet,
    /// Address of the interface that holds the prefix: source of passed datagrams.
    pub source: Option<IpAddr>,
}

/// Address family of a rule or route.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, serde::Deserialize,
)]
#[serde(rename_all = "kebab-case")]
pub enum Family {
    /// IPv4.
    Ipv4,
    /// IPv6.
    Ipv6,
}

/// Name of an interface, as rules have it: zero-terminated.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct IfName([u8; IFNAME_LEN]);

impl IfName {
    /// `None`: not a name that the kernel would give.
    pub fn new(name: &str) -> Option<Self> {
        let fits = !name.is_empty() && name.len() < IFNAME_LEN && !name.contains('\0');
        fits.then(|| {
            let mut bytes = [0; IFNAME_LEN];
            bytes[..name.len()].copy_from_slice(name.as_bytes());
            Self(bytes)
        })
    }

    /// The name without its terminator.
    pub fn as_str(&self) -> &str {
        let end = self.0.iter().position(|byte| *byte == 0);
        std::str::from_utf8(&self.0[..end.unwrap_or(IFNAME_LEN)]).unwrap_or_default()
    }
}

impl fmt::Debug for IfName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.as_str().fmt(f)
    }
}

impl Serialize for IfName {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.as_str())
    }
}

/// A policy rule of ours (`RTM_NEWRULE`, protocol [`ROUTE_PROTOCOL`]). Its order in a set is its
/// order in the kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
pub struct Rule {
    /// Family.
    pub family: Family,
    /// Priority.
    pub priority: u32,
    /// Source prefix it matches.
    pub from: Option<IpNet>,
    /// Destination prefix it matches.
    pub to: Option<IpNet>,
    /// Mark and mask it matches.
    pub fwmark: Option<(u32, u32)>,
    /// Interface that the socket is bound to.
    pub oif: Option<IfName>,
    /// Transport protocol it matches (`IPPROTO_*`).
    pub protocol: Option<u8>,
    /// UDP source and destination port it matches (DHCP); goes without `protocol`.
    pub udp_ports: Option<(u16, u16)>,
    /// What it does.
    pub action: RuleAction,
}

/// What a rule of ours does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum RuleAction {
    /// Looks a table up.
    Lookup {
        /// The table.
        table: TableId,
        /// Results with a prefix this short or shorter do not count (`suppress_prefixlength`).
        suppress_prefix_len: Option<u32>,
    },
    /// Goes on at a later priority.
    Goto(u32),
    /// Does nothing: a target for [`RuleAction::Goto`].
    Nop,
    /// Refuses with `ENETUNREACH`.
    Unreachable,
}

/// A route in a domain's table (protocol [`ROUTE_PROTOCOL`]).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
pub struct TableRoute {
    /// The domain's table.
    pub table: TableId,
    /// Destination.
    pub destination: IpNet,
    /// Metric.
    pub metric: u32,
    /// The interface it leads out of.
    pub interface: IfIndex,
    /// Gateway; none: on-link.
    pub gateway: Option<IpAddr>,
    /// Take the gateway for on-link.
    pub onlink: bool,
    /// Preferred source.
    pub prefsrc: Option<IpAddr>,
    /// Path MTU, if set.
    pub mtu: Option<u32>,
}

/// Routing protocol number that marks the agent's own rules and routes (`RTA_PROTOCOL`,
/// `FRA_PROTOCOL`): free in iproute2's `rt_protos`.
pub const ROUTE_PROTOCOL: u8 = 83;

#[cfg(test)]
mod tests {
    use super::Hook;

    #[test]
    fn names_lead_back_to_their_hooks() {
        for hook in Hook::ALL {
            assert_eq!(Hook::from_name(hook.name()), Some(hook));
        }
        assert_eq!(Hook::from_name("connect5"), None);
    }
}
