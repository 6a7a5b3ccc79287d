//! Routes: `RTM_NEWROUTE` read and written.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::Once;

use ipnet::IpNet;
use steer_core::ids::{IfIndex, TableId};
use steer_core::network::Route;
use steer_core::plan::{ROUTE_PROTOCOL, TableRoute};

use super::wire::{
    AF_INET, AF_INET6, Attributes, Message, Request, attributes, family_of, ip, octets, prefix,
    u16_at, u32_at,
};

/// `RTAX_MTU`.
const RTAX_MTU: u16 = 2;
/// `RTA_NH_ID`.
const RTA_NH_ID: u16 = 30;
/// `RTNH_F_DEAD`: the next hop's link is down, and no packet goes there.
const DEAD: u8 = 1;
/// `RTNH_F_ONLINK`.
const ONLINK: u8 = 4;
/// Length of `struct rtnexthop`.
const NEXT_HOP: usize = 8;

/// What a route message says: one route as the kernel holds it, with one next hop or several.
#[derive(Debug)]
pub(super) struct RouteMessage {
    pub(super) table: TableId,
    protocol: u8,
    tos: u8,
    scope: u8,
    kind: u8,
    destination: IpNet,
    source: Option<IpNet>,
    metric: u32,
    prefsrc: Option<IpAddr>,
    mtu: Option<u32>,
    hops: Vec<Hop>,
}

#[derive(Clone, Copy, Debug, Default)]
struct Hop {
    interface: Option<IfIndex>,
    gateway: Option<IpAddr>,
    flags: u8,
}

impl Hop {
    fn read(&mut self, kind: u16, value: &[u8]) {
        match kind {
            libc::RTA_OIF => self.interface = u32_at(value, 0).map(IfIndex),
            libc::RTA_GATEWAY => self.gateway = ip(value),
            // struct rtvia: a family, then the address (RFC 5549 gateways).
            libc::RTA_VIA => self.gateway = value.get(2..).and_then(ip),
            _ => {}
        }
    }
}

/// What a route replaces when it comes with `NLM_F_REPLACE`: the key by which routes are seen.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct RouteKey {
    pub(super) table: TableId,
    pub(super) destination: IpNet,
    pub(super) source: Option<IpNet>,
    pub(super) metric: u32,
}

/// A route as the kernel holds it. Two of them may look alike to the agent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct RouteObject {
    pub(super) tos: u8,
    protocol: u8,
    scope: u8,
    kind: u8,
    /// One for each live next hop; none if the route is not unicast.
    pub(super) routes: BTreeSet<Route>,
}

impl RouteMessage {
    /// Reads `RTM_NEWROUTE` or `RTM_DELROUTE`; `None` for what is no route of a table: other
    /// families, and routes cached or cloned from another.
    pub(super) fn parse(message: &Message<'_>) -> Option<Self> {
        let (fixed, rest) = message.split::<12>()?;
        let [
            family,
            to_len,
            from_len,
            tos,
            table,
            protocol,
            scope,
            kind,
            ..,
        ] = *fixed;
        let flags = u32_at(fixed, 8)?;
        if (family != AF_INET && family != AF_INET6) || flags & libc::RTM_F_CLONED != 0 {
            return None;
        }
        let mut table = TableId(u32::from(table));
        let (mut to, mut from, mut metric, mut prefsrc, mut mtu) = (None, None, 0, None, None);
        let (mut next_hop_object, mut hops) = (false, Vec::new());
        let mut hop = Hop {
            flags: flags.to_ne_bytes()[if cfg!(target_endian = "little") { 0 } else { 3 }],
            ..Hop::default()
        };
        for (kind, value) in rest {
            match kind {
                libc::RTA_TABLE => table = TableId(u32_at(value, 0)?),
                libc::RTA_DST => to = ip(value),
                libc::RTA_SRC => from = ip(value),
                libc::RTA_PRIORITY => metric = u32_at(value, 0)?,
                libc::RTA_PREFSRC => prefsrc = ip(value),
                libc::RTA_METRICS => mtu = path_mtu(attributes(value)),
                libc::RTA_MULTIPATH => hops = next_hops(value),
                RTA_NH_ID => next_hop_object = true,
                kind => hop.read(kind, value),
            }
        }
        if hops.is_empty() {
            if next_hop_object && hop.interface.is_none() && kind == libc::RTN_UNICAST {
                static TOLD: Once = Once::new();
                TOLD.call_once(|| {
                    tracing::warn!(
                        "a route names a nexthop object only (net.ipv4.nexthop_compat_mode is 0); \
                         routes of this sort are not seen"
                    );
                });
            }
            hops.push(hop);
        }
        Some(Self {
            table,
            protocol,
            tos,
            scope,
            kind,
            destination: prefix(family, to, to_len)?,
            source: match from_len {
                0 => None,
                len => Some(prefix(family, from, len)?),
            },
            metric,
            prefsrc,
            mtu,
            hops,
        })
    }

    /// Whether it is an IPv6 route.
    pub(super) fn is_ipv6(&self) -> bool {
        matches!(self.destination, IpNet::V6(_))
    }

    /// Whether it bears our protocol.
    pub(super) fn is_ours(&self) -> bool {
        self.protocol == ROUTE_PROTOCOL
    }

    /// Its key.
    pub(super) fn key(&self) -> RouteKey {
        RouteKey {
            table: self.table,
            destination: self.destination,
            source: self.source,
            metric: self.metric,
        }
    }

    /// The route of somebody else, as the mirror holds it.
    ///
    /// A next hop whose link is down (`RTNH_F_DEAD`) is absent; one whose link has lost carrier
    /// (`RTNH_F_LINKDOWN`) is there, because the kernel says so by the link alone and goes on using
    /// it.
    pub(super) fn object(&self) -> RouteObject {
        let routes = match self.kind {
            libc::RTN_UNICAST => self.visible().collect(),
            _ => BTreeSet::new(),
        };
        RouteObject {
            tos: self.tos,
            protocol: self.protocol,
            scope: self.scope,
            kind: self.kind,
            routes,
        }
    }

    fn visible(&self) -> impl Iterator<Item = Route> {
        self.hops.iter().filter_map(|hop| {
            (hop.flags & DEAD == 0).then_some(Route {
                table: self.table,
                destination: self.destination,
                metric: self.metric,
                interface: hop.interface?,
                gateway: hop.gateway,
                onlink: hop.flags & ONLINK != 0,
                prefsrc: self.prefsrc,
                mtu: self.mtu,
                source: self.source,
            })
        })
    }

    /// The routes as a plan would state them, if they bear our protocol and a plan can state them.
    /// IPv6 shows routes that differ in their next hop alone as one with several.
    pub(super) fn own(&self) -> Vec<TableRoute> {
        let statable = self.protocol == ROUTE_PROTOCOL
            && self.kind == libc::RTN_UNICAST
            && self.tos == 0
            && self.source.is_none();
        let hops = self.hops.iter().filter(|_| statable);
        hops.filter_map(|hop| {
            Some(TableRoute {
                table: self.table,
                destination: self.destination,
                metric: self.metric,
                interface: hop.interface?,
                gateway: hop.gateway,
                onlink: hop.flags & ONLINK != 0,
                prefsrc: self.prefsrc,
                mtu: self.mtu,
            })
        })
        .collect()
    }
}

fn path_mtu(metrics: Attributes<'_>) -> Option<u32> {
    metrics
        .filter(|(kind, _)| *kind == RTAX_MTU)
        .find_map(|(_, value)| u32_at(value, 0))
}

fn next_hops(mut rest: &[u8]) -> Vec<Hop> {
    let mut hops = Vec::new();
    while let (Some(len), Some(&[_, _, flags, ..])) =
        (u16_at(rest, 0), rest.first_chunk::<NEXT_HOP>())
    {
        let len = usize::from(len);
        let Some(body) = rest.get(NEXT_HOP..len) else {
            break;
        };
        let mut hop = Hop {
            interface: u32_at(rest, 4).map(IfIndex),
            gateway: None,
            flags,
        };
        for (kind, value) in attributes(body) {
            hop.read(kind, value);
        }
        hops.push(hop);
        rest = rest.get(len.next_multiple_of(4)..).unwrap_or_default();
    }
    hops
}

/// Asks for all routes of a family; with `own`, those of our protocol (and that table) alone.
pub(super) fn dump_request(family: u8, own: Option<Option<TableId>>) -> Request {
    let mut fixed = [0; 12];
    fixed[0] = family;
    if own.is_some() {
        fixed[5] = ROUTE_PROTOCOL;
    }
    let mut request = Request::new(libc::RTM_GETROUTE, libc::NLM_F_DUMP, &fixed);
    if let Some(Some(table)) = own {
        request.put_u32(libc::RTA_TABLE, table.0);
    }
    request
}

/// A request of `kind` (`RTM_NEWROUTE`, `RTM_DELROUTE`) that states `route` in full.
pub(super) fn request(kind: u16, flags: i32, route: &TableRoute) -> Request {
    let family = family_of(route.destination.addr());
    let mut fixed = [0; 12];
    fixed[0] = family;
    fixed[1] = route.destination.prefix_len();
    // Tables above 255 are in RTA_TABLE alone.
    fixed[4] = u8::try_from(route.table.0).unwrap_or(libc::RT_TABLE_UNSPEC);
    fixed[5] = ROUTE_PROTOCOL;
    // IPv4 refuses a gateway on a route of link scope, and takes an on-link route of universe scope
    // for no way to a gateway.
    fixed[6] = if route.gateway.is_none() && family == AF_INET {
        libc::RT_SCOPE_LINK
    } else {
        libc::RT_SCOPE_UNIVERSE
    };
    fixed[7] = libc::RTN_UNICAST;
    let flags_of_hop = if route.onlink { ONLINK } else { 0 };
    fixed[8..12].copy_from_slice(&u32::from(flags_of_hop).to_ne_bytes());
    let mut request = Request::new(kind, flags | libc::NLM_F_ACK, &fixed);
    request.put_u32(libc::RTA_TABLE, route.table.0);
    request.put(libc::RTA_DST, &octets(route.destination.addr()));
    request.put_u32(libc::RTA_PRIORITY, route.metric);
    request.put_u32(libc::RTA_OIF, route.interface.0);
    match route.gateway {
        Some(gateway) if family_of(gateway) == family => {
            request.put_ip(libc::RTA_GATEWAY, gateway);
        }
        Some(gateway) => {
            let mut via = u16::from(family_of(gateway)).to_ne_bytes().to_vec();
            via.extend(octets(gateway));
            request.put(libc::RTA_VIA, &via);
        }
        None => {}
    }
    if let Some(prefsrc) = route.prefsrc {
        request.put_ip(libc::RTA_PREFSRC, prefsrc);
    }
    if let Some(mtu) = route.mtu {
        request.nest(libc::RTA_METRICS, |metrics| metrics.put_u32(RTAX_MTU, mtu));
    }
    request
}
