//! Routing tables of domains: what the main table says about their interfaces.

use std::collections::BTreeSet;
use std::net::IpAddr;

use ipnet::IpNet;

use super::inputs::Installed;
use super::{Family, TableRoute};
use crate::domains::Domain;
use crate::network::Route;

/// Writes the tables of a family. A domain without a usable source has none: the rules behind its own
/// refuse what its table does not know, with `ENETUNREACH` (an `unreachable` route would give
/// `EHOSTUNREACH`).
pub(crate) fn write(
    installed: &[Installed<'_>],
    family: Family,
    routes: &mut BTreeSet<TableRoute>,
) {
    for installed in installed {
        let Some(domain) = installed.domain.filter(|domain| domain.has(family)) else {
            continue;
        };
        let mut taken = BTreeSet::new();
        let mut own: Vec<&Route> = domain
            .routes
            .iter()
            .filter(|route| Family::of_net(&route.destination) == family)
            .collect();
        own.sort_unstable_by_key(|route| (route.metric, **route));
        for route in own {
            let destination = route.destination.trunc();
            // Next hops of a multipath route, and routes of several tables, may be equal in what the
            // kernel tells routes of a table apart by.
            let metric = (route.metric..=u32::MAX)
                .chain((0..route.metric).rev())
                .find(|metric| taken.insert((destination, *metric)));
            let Some(metric) = metric else { continue };
            routes.insert(TableRoute {
                table: installed.table,
                destination,
                metric,
                interface: route.interface,
                gateway: route.gateway,
                onlink: route.onlink,
                prefsrc: source(domain, route, family),
                mtu: route.mtu,
            });
        }
    }
}

/// Preferred source of a route: its own if that is the domain's; on-link, the domain's address in it;
/// else the domain's first.
fn source(domain: &Domain, route: &Route, family: Family) -> Option<IpAddr> {
    let usable: Vec<IpAddr> = match family {
        Family::Ipv4 => domain.sources4.iter().copied().map(IpAddr::V4).collect(),
        Family::Ipv6 => domain.sources6.iter().copied().map(IpAddr::V6).collect(),
    };
    let own = route.prefsrc.filter(|source| usable.contains(source));
    let near = || {
        let of_prefix = |ip: &IpAddr| in_prefix(domain, &route.destination, *ip);
        route
            .gateway
            .is_none()
            .then(|| usable.iter().copied().find(of_prefix))?
    };
    own.or_else(near).or_else(|| usable.first().copied())
}

fn in_prefix(domain: &Domain, prefix: &IpNet, ip: IpAddr) -> bool {
    domain
        .on_link()
        .any(|(on_link, address)| on_link == *prefix && address == ip)
}
