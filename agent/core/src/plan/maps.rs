//! Kernel maps that follow the network: domains, their addresses, and the host's on-link prefixes.

use std::collections::BTreeMap;
use std::net::IpAddr;

use ipnet::IpNet;
use steer_common::{DomainEntry, DomainSet, IFNAME_LEN, domain_flags};

use super::inputs::{Inputs, Installed};
use super::{Family, Local, Plan};
use crate::domains::{never_steered, on_link};
use crate::network::{Address, LinkKind, Route};

/// Writes `domains` and `sources`.
pub(crate) fn domains(inputs: &Inputs<'_>, installed: &[Installed<'_>], plan: &mut Plan) {
    for installed in installed {
        let mut entry = DomainEntry {
            mark: installed.mark,
            ..DomainEntry::default()
        };
        if let Some(domain) = installed.domain {
            entry.ifindex = domain.interface.map_or(0, |interface| interface.0);
            let link = domain.interface.and_then(|i| inputs.network.links.get(&i));
            // What the file calls its kind says nothing about the interface.
            if link.is_some_and(|link| link.kind == LinkKind::Vpn) {
                entry.flags |= domain_flags::TUNNEL;
            }
            for (to, from) in entry
                .ifname
                .iter_mut()
                .take(IFNAME_LEN - 1)
                .zip(domain.ifname.as_deref().unwrap_or_default().bytes())
            {
                *to = from;
            }
            if let (true, Some(source)) = (domain.has(Family::Ipv4), domain.sources4.first()) {
                entry.flags |= domain_flags::IPV4;
                entry.source4 = source.octets();
            }
            if let (true, Some(source)) = (domain.has(Family::Ipv6), domain.sources6.first()) {
                entry.flags |= domain_flags::IPV6;
                entry.source6 = source.octets();
                entry.public6 = domain.public6.unwrap_or(*source).octets();
            }
            let addresses = domain.addresses.iter();
            plan.sources
                .extend(addresses.map(|address| (installed.index, address.ip)));
        }
        plan.domains.insert(installed.index, entry);
    }
}

/// Writes `locals`: on-link prefixes of all interfaces that are up, and all addresses of the host.
pub(crate) fn locals(inputs: &Inputs<'_>, installed: &[Installed<'_>], plan: &mut Plan) {
    let network = inputs.network;
    let mut by_interface: BTreeMap<_, (Vec<Address>, Vec<Route>)> = BTreeMap::new();
    for address in network.addresses.iter().filter(|address| address.usable) {
        by_interface
            .entry(address.interface)
            .or_default()
            .0
            .push(*address);
    }
    for route in &network.routes {
        by_interface
            .entry(route.interface)
            .or_default()
            .1
            .push(*route);
    }
    for (interface, (addresses, routes)) in &by_interface {
        let link = network.links.get(interface);
        if !link.is_some_and(|link| link.up && !link.loopback) {
            continue;
        }
        for (prefix, source) in on_link(addresses, routes) {
            if never_steered(&prefix) || prefix.prefix_len() == 0 {
                continue;
            }
            // Of two holders of one prefix, the first interface's address is the source.
            plan.locals.entry(prefix).or_insert_with(|| Local {
                host: false,
                domains: covering(installed, &prefix),
                source: Some(source),
            });
        }
    }
    for address in &network.addresses {
        let local = Local {
            host: true,
            domains: DomainSet::default(),
            source: None,
        };
        plan.locals.insert(IpNet::from(address.ip), local);
    }
}

/// Installed domains on whose own link `prefix` is.
fn covering(installed: &[Installed<'_>], prefix: &IpNet) -> DomainSet {
    let mut domains = DomainSet::default();
    for installed in installed {
        let covers = installed.domain.is_some_and(|domain| {
            domain
                .on_link()
                .any(|(own, _): (IpNet, IpAddr)| own.contains(prefix))
        });
        if covers {
            domains.insert(installed.index.0);
        }
    }
    domains
}
