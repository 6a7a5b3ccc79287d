//! Domains: what the configuration and the network make of each interface.

mod seen;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use serde::{Deserialize, Serialize};

use self::seen::Seen;
use crate::attached::{Connection, Wlan};
use crate::config::{Config, DomainConfig, DomainMatch};
use crate::criteria::{Bandwidth, Security};
use crate::ids::{IfIndex, TableId};
use crate::name::Name;
use crate::network::{Address, Link, LinkKind, Network, Route};
use crate::plan::Family;

/// The kernel's main table.
pub const MAIN_TABLE: TableId = TableId(254);

/// All domains, by name.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Domains {
    by_name: BTreeMap<Name, Domain>,
    aliases: BTreeMap<Name, Name>,
}

/// A provisioning domain as it is now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Domain {
    /// Its name.
    pub name: Name,
    /// Its interface's name, where that leads to it too.
    pub alias: Option<Name>,
    /// Whether a file names it.
    pub origin: DomainOrigin,
    /// Its interface.
    pub interface: Option<IfIndex>,
    /// Its interface's name.
    pub ifname: Option<String>,
    /// Its kind.
    pub kind: LinkKind,
    /// The WLAN that it is connected to.
    pub wlan: Option<Wlan>,
    /// The connection manager's connection that is up on it.
    pub connection: Option<Connection>,
    /// What it costs to use it: the lower, the cheaper.
    pub cost: u32,
    /// What is sent by it is paid for or limited.
    pub metered: bool,
    /// How far what is sent over it is protected.
    pub security: Security,
    /// What it carries, as far as that is said.
    pub bandwidth: Option<Bandwidth>,
    /// A name by which policies may require it.
    pub profile: Option<Name>,
    /// What it can do now, as far as its interface goes.
    pub state: DomainState,
    /// Why, as a sentence without a full stop.
    pub reason: String,
    /// Its interface is up and has carrier.
    pub running: bool,
    /// Usable IPv4 sources, preferred first.
    pub sources4: Vec<Ipv4Addr>,
    /// Usable IPv6 sources, preferred first. Empty: the domain has no IPv6.
    pub sources6: Vec<Ipv6Addr>,
    /// Of these, the first of who prefers public addresses to temporary ones (RFC 5014). The file's order, and
    /// that global ones go before unique local ones, count for more.
    pub public6: Option<Ipv6Addr>,
    /// All its global addresses, also those past their preferred lifetime.
    pub addresses: Vec<Address>,
    /// Its gateways, preferred first.
    pub gateways: Vec<IpAddr>,
    /// Its routes, without link-local and multicast ones.
    pub routes: Vec<Route>,
    /// Addresses that its `sources` names one by one.
    pub named_sources: BTreeSet<IpAddr>,
}

/// Where a domain comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum DomainOrigin {
    /// A file names it.
    File,
    /// An interface that was found.
    Discovered,
}

/// What a domain can do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum DomainState {
    /// Its interface does not exist.
    Absent,
    /// Its interface is down or has no carrier.
    Down,
    /// It has carrier, but no address or no route yet.
    Configuring,
    /// It has carrier, an address and a route.
    Up,
    /// And its check passes.
    Validated,
    /// But a portal answers in place of others.
    Portal,
    /// But its check fails.
    Limited,
}

impl fmt::Display for DomainState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Absent => "absent",
            Self::Down => "down",
            Self::Configuring => "configuring",
            Self::Up => "up",
            Self::Validated => "validated",
            Self::Portal => "portal",
            Self::Limited => "limited",
        })
    }
}

impl Domains {
    /// What `config` and `network` make.
    pub fn new(config: &Config, network: &Network) -> Self {
        let seen = Seen::new(network);
        let mut domains = Self::default();
        let mut claimed = BTreeSet::new();
        for (name, file) in &config.domains {
            let link = seen.find(name, file);
            claimed.extend(link.map(|link| link.index));
            let domain = Domain::new(name.clone(), DomainOrigin::File, Some(file), link, &seen);
            domains.by_name.insert(name.clone(), domain);
        }
        for link in network.links.values() {
            if claimed.contains(&link.index)
                || !config.agent.discover.covers(&link.name)
                || !seen.is_domain(link)
            {
                continue;
            }
            // An interface whose name cannot be a domain's is reached by a domain of the files.
            let Ok(name) = Name::new(&link.name) else {
                continue;
            };
            if domains.by_name.contains_key(&name) || config.groups.contains_key(&name) {
                continue;
            }
            let discovered = DomainOrigin::Discovered;
            let domain = Domain::new(name.clone(), discovered, None, Some(link), &seen);
            domains.by_name.insert(name, domain);
        }
        domains.name_aliases(config);
        domains
    }

    /// Gives each domain of the files its interface's name as alias, where nothing else bears it.
    fn name_aliases(&mut self, config: &Config) {
        let mut aliases = BTreeMap::new();
        for domain in self.by_name.values() {
            let alias = domain
                .ifname
                .as_deref()
                .and_then(|name| Name::new(name).ok());
            let Some(alias) = alias else { continue };
            if !self.by_name.contains_key(&alias) && !config.groups.contains_key(&alias) {
                aliases.entry(alias).or_insert_with(|| domain.name.clone());
            }
        }
        for (alias, name) in &aliases {
            if let Some(domain) = self.by_name.get_mut(name) {
                domain.alias = Some(alias.clone());
            }
        }
        self.aliases = aliases;
    }

    /// A domain by its name or alias.
    pub fn get(&self, name: &str) -> Option<&Domain> {
        self.by_name
            .get(name)
            .or_else(|| self.by_name.get(self.aliases.get(name)?))
    }

    /// All domains in the order of their names.
    pub fn iter(&self) -> impl Iterator<Item = &Domain> {
        self.by_name.values()
    }

    /// Names and aliases of domains that are not the same in `self` and `other`.
    pub fn changed(&self, other: &Self) -> BTreeSet<Name> {
        let differs =
            |name: &Name, theirs: &Self| self.by_name.get(name) != theirs.by_name.get(name);
        self.by_name
            .values()
            .chain(other.by_name.values())
            .filter(|domain| differs(&domain.name, other))
            .flat_map(|domain| [Some(domain.name.clone()), domain.alias.clone()])
            .flatten()
            .collect()
    }
}

impl Domain {
    fn new(
        name: Name,
        origin: DomainOrigin,
        file: Option<&DomainConfig>,
        link: Option<&Link>,
        seen: &Seen<'_>,
    ) -> Self {
        let mut domain = Self {
            name,
            alias: None,
            origin,
            interface: link.map(|link| link.index),
            ifname: link.map(|link| link.name.clone()),
            kind: LinkKind::default(),
            wlan: None,
            connection: None,
            cost: file.map_or(0, |file| file.cost),
            metered: file.is_some_and(|file| file.metered),
            security: Security::Open,
            bandwidth: file.and_then(|file| file.bandwidth),
            profile: file.and_then(|file| file.profile.clone()),
            state: DomainState::Absent,
            reason: String::new(),
            running: link.is_some_and(Link::is_running),
            sources4: Vec::new(),
            sources6: Vec::new(),
            public6: None,
            addresses: Vec::new(),
            gateways: Vec::new(),
            routes: Vec::new(),
            named_sources: BTreeSet::new(),
        };
        let none = DomainConfig::default();
        let file = file.unwrap_or(&none);
        if let Some(link) = link {
            domain.kind = file.kind.unwrap_or(link.kind);
            domain.wlan = seen.wlan(link).cloned();
            domain.connection = seen.connection(link).cloned();
            domain.addresses = limit(seen.addresses(link.index), &file.sources);
            domain.routes = seen.routes_of(link.index, &domain.addresses, &file.gateways);
            domain.gateways = gateways(&domain.routes);
            domain.order_sources(&file.sources);
        } else {
            domain.kind = file.kind.or(file.matches.kind).unwrap_or_default();
        }
        domain.security = file.security.unwrap_or(match domain.kind {
            LinkKind::Wired | LinkKind::Cellular => Security::Protected,
            LinkKind::Vpn => Security::Encrypted,
            LinkKind::Wlan if domain.wlan.as_ref().is_some_and(|wlan| wlan.protected) => {
                Security::Protected
            }
            LinkKind::Wlan | LinkKind::Other => Security::Open,
        });
        domain.named_sources = file
            .sources
            .iter()
            .filter(|net| net.prefix_len() == net.max_prefix_len())
            .map(IpNet::addr)
            .collect();
        (domain.state, domain.reason) = domain.judge(file, link, seen);
        domain
    }

    /// Whether it has a source and a route of a family.
    pub fn has(&self, family: Family) -> bool {
        self.running
            && self.source(family).is_some()
            && self
                .routes
                .iter()
                .any(|route| Family::of_net(&route.destination) == family)
    }

    /// Whether it has a default route of the family.
    pub fn has_default(&self, family: Family) -> bool {
        let any = family.any();
        self.has(family) && self.routes.iter().any(|route| route.destination == any)
    }

    /// Its preferred source of a family.
    pub fn source(&self, family: Family) -> Option<IpAddr> {
        match family {
            Family::Ipv4 => self.sources4.first().copied().map(IpAddr::V4),
            Family::Ipv6 => self.sources6.first().copied().map(IpAddr::V6),
        }
    }

    /// Its own on-link prefixes, with an address in each.
    pub fn on_link(&self) -> impl Iterator<Item = (IpNet, IpAddr)> + '_ {
        on_link(&self.addresses, &self.routes)
    }

    /// Orders its usable addresses. The file's order comes first; then, for IPv4, the address that
    /// the default route prefers or in whose prefix its gateway is; for IPv6, globally routable
    /// ones before unique local ones and temporary ones before stable ones (RFC 8981 section 3.6).
    fn order_sources(&mut self, order: &[IpNet]) {
        let place = |ip: IpAddr| order.iter().position(|net| net.contains(&ip));
        let default = self
            .routes
            .iter()
            .filter(|route| Family::of_net(&route.destination) == Family::Ipv4)
            .filter(|route| route.destination.prefix_len() == 0)
            .min_by_key(|route| route.metric);
        let mut v4 = Vec::new();
        let mut v6 = Vec::new();
        for address in &self.addresses {
            let at = place(address.ip).unwrap_or(usize::MAX);
            match address.ip {
                IpAddr::V4(ip) => {
                    let preferred = default.is_some_and(|d| d.prefsrc == Some(address.ip));
                    let near = default.and_then(|d| d.gateway).is_some_and(|gateway| {
                        prefix(address).is_some_and(|p| p.contains(&gateway))
                    });
                    v4.push(((at, address.deprecated, !preferred, !near, ip), ip));
                }
                IpAddr::V6(ip) if !address.deprecated => {
                    let unique_local = ip.segments()[0] & 0xfe00 == 0xfc00;
                    v6.push(((at, unique_local, !address.temporary, ip), ip));
                }
                IpAddr::V6(_) => {}
            }
        }
        v4.sort_unstable();
        v6.sort_unstable();
        self.sources4 = v4.into_iter().map(|(_, ip)| ip).collect();
        let public = |((at, unique_local, public, _), ip): &(_, Ipv6Addr)| {
            let ((first_at, first_unique_local, ..), _) = v6.first()?;
            (*public && at == first_at && unique_local == first_unique_local).then_some(*ip)
        };
        self.public6 = v6.iter().find_map(public).or(v6.first().map(|(_, ip)| *ip));
        self.sources6 = v6.into_iter().map(|(_, ip)| ip).collect();
    }

    /// Why it is on no interface.
    fn absence(&self, wanted: &DomainMatch, seen: &Seen<'_>) -> String {
        let DomainMatch {
            interface,
            mac,
            kind,
            ssid,
            connection,
        } = wanted;
        if let Some(ssid) = ssid.as_ref().filter(|ssid| !seen.has_wlan(ssid)) {
            return format!("no interface is connected to the WLAN {ssid}");
        }
        if let Some(connection) = connection
            .as_ref()
            .filter(|name| !seen.has_connection(name))
        {
            return format!(
                "no interface has the connection {connection}, as far as NetworkManager and ModemManager tell"
            );
        }
        let alone = mac.is_none() && kind.is_none() && ssid.is_none() && connection.is_none();
        match interface {
            Some(name) if alone => format!("there is no interface {name}"),
            None if alone => format!("there is no interface {}", self.name),
            _ => "no interface fits all of its match".to_owned(),
        }
    }

    fn judge(
        &self,
        file: &DomainConfig,
        link: Option<&Link>,
        seen: &Seen<'_>,
    ) -> (DomainState, String) {
        let Some(link) = link else {
            let wanted = &file.matches;
            return (DomainState::Absent, self.absence(wanted, seen));
        };
        let name = &link.name;
        if !link.up {
            (DomainState::Down, format!("{name} is down"))
        } else if !link.carrier {
            (DomainState::Down, format!("no carrier on {name}"))
        } else if self.sources4.is_empty() && self.sources6.is_empty() {
            (
                DomainState::Configuring,
                format!("no usable address on {name}"),
            )
        } else if !self.has(Family::Ipv4) && !self.has(Family::Ipv6) {
            (DomainState::Configuring, format!("no route by {name}"))
        } else {
            let reason = format!("{name} has carrier, an address and a route");
            (DomainState::Up, reason)
        }
    }
}

impl fmt::Display for Family {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Ipv4 => "ipv4",
            Self::Ipv6 => "ipv6",
        })
    }
}

impl Family {
    /// Family of an address.
    pub fn of(ip: IpAddr) -> Self {
        if ip.is_ipv4() { Self::Ipv4 } else { Self::Ipv6 }
    }

    /// Family of a prefix.
    pub fn of_net(net: &IpNet) -> Self {
        Self::of(net.addr())
    }

    /// Both.
    pub const BOTH: [Self; 2] = [Self::Ipv4, Self::Ipv6];

    /// The prefix of everything.
    pub fn any(self) -> IpNet {
        match self {
            Self::Ipv4 => IpNet::V4(Ipv4Net::default()),
            Self::Ipv6 => IpNet::V6(Ipv6Net::default()),
        }
    }
}

/// On-link prefix of an address: the peer's on a point-to-point link. None for a single address.
pub(crate) fn prefix(address: &Address) -> Option<IpNet> {
    let net = IpNet::new(address.peer.unwrap_or(address.ip), address.prefix_len).ok()?;
    (address.peer.is_some() || net.prefix_len() < net.max_prefix_len()).then(|| net.trunc())
}

/// Prefixes of `addresses` that `routes` say are on-link. An address whose prefix has no such route
/// (RFC 5942 section 4, `noprefixroute`) has no on-link prefix.
pub(crate) fn on_link<'a>(
    addresses: &'a [Address],
    routes: &'a [Route],
) -> impl Iterator<Item = (IpNet, IpAddr)> + 'a {
    addresses.iter().filter_map(|address| {
        let prefix = prefix(address)?;
        routes
            .iter()
            .any(|route| {
                route.gateway.is_none()
                    && route.interface == address.interface
                    && route.destination == prefix
            })
            .then_some((prefix, address.ip))
    })
}

/// Link-local, multicast and broadcast destinations, which no domain's table carries.
pub(crate) fn never_steered(net: &IpNet) -> bool {
    match net.addr() {
        IpAddr::V4(ip) => ip.is_link_local() || ip.is_multicast() || ip.is_broadcast(),
        IpAddr::V6(ip) => ip.is_unicast_link_local() || ip.is_multicast(),
    }
}

/// `addresses` that are in `sources`, family by family; all where it names none of the family.
fn limit(addresses: &[Address], sources: &[IpNet]) -> Vec<Address> {
    addresses
        .iter()
        .filter(|address| address.global && address.usable)
        .filter(|address| {
            let mut same = sources
                .iter()
                .filter(|net| Family::of_net(net) == Family::of(address.ip))
                .peekable();
            same.peek().is_none() || same.any(|net| net.contains(&address.ip))
        })
        .copied()
        .collect()
}

/// Gateways of the default routes, by metric.
fn gateways(routes: &[Route]) -> Vec<IpAddr> {
    let mut defaults: Vec<_> = routes
        .iter()
        .filter(|route| route.destination.prefix_len() == 0)
        .filter_map(|route| Some((route.metric, route.gateway?)))
        .collect();
    defaults.sort_unstable();
    let mut seen = BTreeSet::new();
    defaults
        .into_iter()
        .map(|(_, gateway)| gateway)
        .filter(|gateway| seen.insert(*gateway))
        .collect()
}
