//! What the kernel says about links, addresses, routes and rules: the mirror of netlink.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::IpAddr;
use std::time::Duration;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use crate::attached::{Managed, Station};
use crate::ids::{IfIndex, TableId};

/// The host's networking as netlink last told it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Network {
    /// Links by interface index.
    pub links: BTreeMap<IfIndex, Link>,
    /// Addresses of all interfaces.
    pub addresses: BTreeSet<Address>,
    /// Unicast routes of every table that is not the agent's own, of the types in [`Route`].
    pub routes: BTreeSet<Route>,
    /// Rules that are not the agent's own.
    pub rules: BTreeSet<ForeignRule>,
    /// Name servers that routers announce (RFC 8106), by interface, each with the time until when it may be
    /// used, since boot.
    pub servers: BTreeMap<IfIndex, BTreeMap<IpAddr, Duration>>,
    /// Where routers say that a portal can be asked (RFC 8910), by interface.
    pub portals: BTreeMap<IfIndex, String>,
    /// Interfaces that are connected to WLANs, by their names.
    pub stations: BTreeMap<String, Station>,
    /// What connection managers say of interfaces, by the interfaces' names.
    pub managed: BTreeMap<String, Managed>,
}

/// One change, as a netlink notification tells it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NetworkChange {
    /// A link appeared or changed; replaces what was known of the index.
    Link(Link),
    /// A link is gone, and with it its addresses and routes.
    LinkGone(IfIndex),
    /// An address appeared or changed; replaces an equal ip on the same interface.
    Address(Address),
    /// An address is gone.
    AddressGone(IfIndex, IpAddr),
    /// A route appeared.
    Route(Route),
    /// A route is gone.
    RouteGone(Route),
    /// A foreign rule appeared.
    Rule(ForeignRule),
    /// A foreign rule is gone.
    RuleGone(ForeignRule),
    /// A router announces name servers, which may be used until a time since boot.
    Servers(IfIndex, Vec<IpAddr>, Duration),
    /// A router says where its portal can be asked; none: there is none.
    Portal(IfIndex, Option<String>),
    /// These are all interfaces that are connected to WLANs.
    Stations(BTreeMap<String, Station>),
    /// This is all that connection managers say.
    Managed(BTreeMap<String, Managed>),
    /// A complete new dump (start, or netlink overrun): replaces everything.
    Dump(Network),
}

/// A network interface.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Link {
    /// Its index.
    pub index: IfIndex,
    /// Its name.
    pub name: String,
    /// What it is.
    pub kind: LinkKind,
    /// Administratively up (`IFF_UP`).
    pub up: bool,
    /// Has carrier (`IFF_LOWER_UP`, and not dormant).
    pub carrier: bool,
    /// Loopback.
    pub loopback: bool,
    /// Index of the bridge, bond or VRF it belongs to.
    pub master: Option<IfIndex>,
    /// The interface whose frames carry its own as they are, without a tag (macvlan, ipvlan).
    pub under: Option<IfIndex>,
    /// A bridge, or a port of one.
    pub bridge: bool,
    /// Hardware address, if it has one.
    pub mac: Option<[u8; 6]>,
    /// Maximum transmission unit, bytes.
    pub mtu: u32,
}

impl Link {
    /// It is up and has carrier.
    pub fn is_running(&self) -> bool {
        self.up && self.carrier
    }
}

/// Kind of an interface, and of the domain on it.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
#[serde(rename_all = "kebab-case")]
pub enum LinkKind {
    /// Ethernet and the like.
    Wired,
    /// IEEE 802.11.
    Wlan,
    /// WWAN modems and PPP.
    Cellular,
    /// tun, WireGuard, IPsec and other tunnels.
    Vpn,
    /// Everything else (veth, dummy, bridges, ...).
    #[default]
    Other,
}

impl fmt::Display for LinkKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Wired => "wired",
            Self::Wlan => "wlan",
            Self::Cellular => "cellular",
            Self::Vpn => "vpn",
            Self::Other => "other",
        })
    }
}

/// An address on an interface.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Address {
    /// The interface.
    pub interface: IfIndex,
    /// The address.
    pub ip: IpAddr,
    /// Length of its on-link prefix, bits. With a peer address (point to point), of the peer's.
    pub prefix_len: u8,
    /// The peer on a point-to-point link, if it differs from `ip`.
    pub peer: Option<IpAddr>,
    /// Global scope (not link, not host).
    pub global: bool,
    /// Usable as a source now: not tentative, not a failed duplicate.
    pub usable: bool,
    /// Past its preferred lifetime.
    pub deprecated: bool,
    /// IPv6 privacy address (RFC 8981).
    pub temporary: bool,
}

/// A unicast route (types: unicast only; `unreachable`, `blackhole` and `prohibit` are left out, as
/// are the local and broadcast routes of the local table, cloned and cached routes).
/// A multipath route is one `Route` per next hop.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Route {
    /// Its table.
    pub table: TableId,
    /// Destination; `0.0.0.0/0` or `::/0` for a default route.
    pub destination: IpNet,
    /// Metric.
    pub metric: u32,
    /// Interface.
    pub interface: IfIndex,
    /// Gateway; `None`: on-link. May be of the other family (RFC 5549).
    pub gateway: Option<IpAddr>,
    /// The kernel may take the gateway for on-link (`RTNH_F_ONLINK`).
    pub onlink: bool,
    /// Preferred source.
    pub prefsrc: Option<IpAddr>,
    /// Path MTU of the route, if set.
    pub mtu: Option<u32>,
    /// IPv6 source-specific route (`from`), if any.
    pub source: Option<IpNet>,
}

/// A policy rule of somebody else, as far as the agent cares.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct ForeignRule {
    /// IPv6, else IPv4.
    pub v6: bool,
    /// Its priority.
    pub priority: u32,
    /// `not` rule.
    pub invert: bool,
    /// Mark and mask it matches, if any.
    pub fwmark: Option<(u32, u32)>,
    /// Source prefix it matches, if any.
    pub from: Option<IpNet>,
    /// Destination prefix it matches, if any.
    pub to: Option<IpNet>,
    /// Any other selector (iif, oif, uid range, ports, protocol, tos): it does not catch everything.
    pub narrow: bool,
    /// Table it looks up; `None` for another action.
    pub table: Option<TableId>,
    /// `suppress_prefixlength`, if set.
    pub suppress_prefix_len: Option<u32>,
}

/// Most announced name servers of an interface: those that may be used for longest.
pub const MAX_SERVERS: usize = 16;

impl Network {
    /// Whether a change has it forget the WLAN of an interface: its link lost carrier, and the next network is another's;
    /// or its name is no interface's or another's.
    pub fn forgets_station(&self, change: &NetworkChange) -> bool {
        let lost = match change {
            NetworkChange::Link(link) => link.kind == LinkKind::Wlan && !link.is_running(),
            _ => false,
        };
        let freed = self.names_freed_by(change);
        lost || freed.iter().any(|name| self.stations.contains_key(name))
    }

    /// Names of interfaces that are no interface's or another's after a change: what was told of them is out of date.
    pub fn names_freed_by(&self, change: &NetworkChange) -> Vec<String> {
        let bearer = |links: &BTreeMap<IfIndex, Link>, name: &str| {
            let mut links = links.values();
            links.find(|link| link.name == name).map(|link| link.index)
        };
        match change {
            NetworkChange::Link(link) => {
                let before = self.links.get(&link.index);
                let renamed = before.filter(|before| before.name != link.name);
                let taken = bearer(&self.links, &link.name).filter(|index| *index != link.index);
                let taken = taken.map(|_| link.name.clone());
                renamed
                    .map(|before| before.name.clone())
                    .into_iter()
                    .chain(taken)
                    .collect()
            }
            NetworkChange::LinkGone(index) => {
                let gone = self.links.get(index);
                gone.map(|link| link.name.clone()).into_iter().collect()
            }
            NetworkChange::Dump(network) => {
                let names = self.links.values().map(|link| (&link.name, link.index));
                let freed =
                    names.filter(|(name, index)| bearer(&network.links, name) != Some(*index));
                freed.map(|(name, _)| name.clone()).collect()
            }
            _ => Vec::new(),
        }
    }

    /// Applies one change. Total: a change about something unknown is taken as it stands.
    pub fn apply(&mut self, change: NetworkChange) {
        for name in self.names_freed_by(&change) {
            self.stations.remove(&name);
            self.managed.remove(&name);
        }
        match change {
            NetworkChange::Link(link) => {
                if !link.is_running() {
                    // What the next network announces is another's.
                    self.servers.remove(&link.index);
                    self.portals.remove(&link.index);
                    self.stations.remove(&link.name);
                }
                self.links.insert(link.index, link);
            }
            NetworkChange::LinkGone(index) => {
                self.links.remove(&index);
                self.servers.remove(&index);
                self.portals.remove(&index);
                self.addresses.retain(|a| a.interface != index);
                self.routes.retain(|r| r.interface != index);
            }
            NetworkChange::Address(address) => {
                self.remove_address(address.interface, address.ip);
                self.addresses.insert(address);
            }
            NetworkChange::AddressGone(interface, ip) => self.remove_address(interface, ip),
            NetworkChange::Route(route) => {
                self.routes.insert(route);
            }
            NetworkChange::RouteGone(route) => {
                self.routes.remove(&route);
            }
            NetworkChange::Rule(rule) => {
                self.rules.insert(rule);
            }
            NetworkChange::RuleGone(rule) => {
                self.rules.remove(&rule);
            }
            NetworkChange::Servers(interface, servers, until) => {
                let known = self.servers.entry(interface).or_default();
                known.extend(servers.into_iter().map(|server| (server, until)));
                while known.len() > MAX_SERVERS {
                    let first = known.iter().min_by_key(|(_, until)| **until);
                    let Some(first) = first.map(|(server, _)| *server) else {
                        break;
                    };
                    known.remove(&first);
                }
            }
            NetworkChange::Portal(interface, Some(api)) => {
                self.portals.insert(interface, api);
            }
            NetworkChange::Portal(interface, None) => {
                self.portals.remove(&interface);
            }
            NetworkChange::Stations(stations) => self.stations = stations,
            NetworkChange::Managed(managed) => self.managed = managed,
            NetworkChange::Dump(network) => self.replace(network),
        }
    }

    /// Takes a new dump. What routers announced is in none: it stays while their interfaces do. Neither is what
    /// others than rtnetlink tell.
    fn replace(&mut self, network: Self) {
        let before = std::mem::replace(self, network);
        self.stations = before.stations;
        self.managed = before.managed;
        let there = |index: &IfIndex| self.links.contains_key(index);
        let servers = before.servers.into_iter();
        self.servers = servers.filter(|(index, _)| there(index)).collect();
        let portals = before.portals.into_iter();
        self.portals = portals.filter(|(index, _)| there(index)).collect();
    }

    fn remove_address(&mut self, interface: IfIndex, ip: IpAddr) {
        self.addresses
            .retain(|a| a.interface != interface || a.ip != ip);
    }
}
