//! The network seen interface by interface.

use std::collections::{BTreeSet, HashMap};
use std::net::IpAddr;

use ipnet::IpNet;

use super::{MAIN_TABLE, never_steered, on_link};
use crate::attached::{Connection, Ssid, Wlan};
use crate::config::{DomainConfig, DomainMatch};
use crate::ids::{IfIndex, TableId};
use crate::name::Name;
use crate::network::{Address, Link, Network, Route};
use crate::plan::Family;

/// The network, sorted by interface once.
pub(super) struct Seen<'a> {
    network: &'a Network,
    addresses: HashMap<IfIndex, Vec<Address>>,
    routes: HashMap<IfIndex, Vec<Route>>,
}

impl<'a> Seen<'a> {
    pub(super) fn new(network: &'a Network) -> Self {
        let mut seen = Self {
            network,
            addresses: HashMap::new(),
            routes: HashMap::new(),
        };
        for address in &network.addresses {
            seen.addresses
                .entry(address.interface)
                .or_default()
                .push(*address);
        }
        for route in &network.routes {
            seen.routes.entry(route.interface).or_default().push(*route);
        }
        seen
    }

    pub(super) fn addresses(&self, interface: IfIndex) -> &[Address] {
        self.addresses.get(&interface).map_or(&[], Vec::as_slice)
    }

    fn routes(&self, interface: IfIndex) -> &[Route] {
        self.routes.get(&interface).map_or(&[], Vec::as_slice)
    }

    /// The interface that a domain of the files is on. Of several that fit: one with carrier, then
    /// the one with the lowest index.
    pub(super) fn find(&self, name: &Name, file: &DomainConfig) -> Option<&'a Link> {
        let wanted = &file.matches;
        let any = *wanted == DomainMatch::default();
        let interface = match &wanted.interface {
            Some(interface) => Some(interface.as_str()),
            None => any.then_some(name.as_str()),
        };
        self.network
            .links
            .values()
            .filter(|link| interface.is_none_or(|interface| link.name == interface))
            .filter(|link| wanted.mac.is_none_or(|mac| link.mac == Some(mac)))
            .filter(|link| wanted.kind.is_none_or(|kind| link.kind == kind))
            .filter(|link| {
                let is = |ssid: &Ssid| self.wlan(link).is_some_and(|wlan| wlan.ssid == *ssid);
                wanted.ssid.as_ref().is_none_or(is)
            })
            .filter(|link| {
                let is = |connection: &Connection| self.connection(link) == Some(connection);
                wanted.connection.as_ref().is_none_or(is)
            })
            .filter(|link| !link.loopback)
            .min_by_key(|link| (!link.is_running(), link.index))
    }

    /// The WLAN that an interface is connected to.
    pub(super) fn wlan(&self, link: &Link) -> Option<&'a Wlan> {
        Some(&self.network.stations.get(&link.name)?.wlan)
    }

    /// The connection manager's connection that is up on an interface.
    pub(super) fn connection(&self, link: &Link) -> Option<&'a Connection> {
        self.network.managed.get(&link.name)?.named()
    }

    /// Whether an interface is connected to a WLAN.
    pub(super) fn has_wlan(&self, ssid: &Ssid) -> bool {
        let mut links = self.network.links.values();
        links.any(|link| self.wlan(link).is_some_and(|wlan| wlan.ssid == *ssid))
    }

    /// Whether a connection is up on an interface.
    pub(super) fn has_connection(&self, connection: &Connection) -> bool {
        let mut links = self.network.links.values();
        links.any(|link| self.connection(link) == Some(connection))
    }

    /// Whether an interface is a domain of itself.
    pub(super) fn is_domain(&self, link: &Link) -> bool {
        let master_is_bridge = link
            .master
            .and_then(|master| self.network.links.get(&master))
            .is_some_and(|master| master.bridge);
        let usable = |address: &Address| address.global && address.usable;
        !link.loopback
            && !link.bridge
            && !master_is_bridge
            && (self.addresses(link.index).iter().any(usable)
                || self
                    .routes(link.index)
                    .iter()
                    .any(|r| r.destination.prefix_len() == 0 && r.table == MAIN_TABLE))
    }

    /// Routes of a domain: those of the main table; for a family without a default route there, also
    /// those of another table that has one (a manager's `RouteTable=`, a VRF).
    pub(super) fn routes_of(
        &self,
        interface: IfIndex,
        own: &[Address],
        gateways: &[IpAddr],
    ) -> Vec<Route> {
        let all = self.routes(interface);
        let mut taken = Vec::new();
        for family in Family::BOTH {
            let ours: Vec<&Route> = all
                .iter()
                .filter(|route| Family::of_net(&route.destination) == family)
                .filter(|route| !never_steered(&route.destination))
                .filter(|route| {
                    route
                        .source
                        .is_none_or(|from| own.iter().any(|address| from.contains(&address.ip)))
                })
                .collect();
            let default = |route: &&&Route| route.destination.prefix_len() == 0;
            let in_main = |route: &&&Route| route.table == MAIN_TABLE;
            let tables: BTreeSet<TableId> = if ours.iter().filter(in_main).any(|r| default(&r)) {
                BTreeSet::from([MAIN_TABLE])
            } else {
                let others = ours.iter().filter(default).map(|route| route.table);
                others.chain([MAIN_TABLE]).collect()
            };
            let named: Vec<IpAddr> = gateways
                .iter()
                .copied()
                .filter(|gateway| Family::of(*gateway) == family)
                .collect();
            taken.extend(
                ours.into_iter()
                    .filter(|route| tables.contains(&route.table))
                    .filter(|route| named.is_empty() || route.destination.prefix_len() > 0),
            );
            for (gateway, metric) in named.into_iter().zip(NAMED_GATEWAY_METRIC..) {
                let near = on_link(own, all).any(|(prefix, _)| prefix.contains(&gateway));
                taken.push(Route {
                    table: MAIN_TABLE,
                    destination: family.any(),
                    metric,
                    interface,
                    gateway: Some(gateway),
                    onlink: !near && !never_steered(&IpNet::from(gateway)),
                    prefsrc: None,
                    mtu: None,
                    source: None,
                });
            }
        }
        taken
    }
}

/// Metric of the first default route that `gateways` makes: the kernel's own default for IPv6.
const NAMED_GATEWAY_METRIC: u32 = 1024;
