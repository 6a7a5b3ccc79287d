//! The agent's copy of what the kernel holds: notifications go in, exact changes come out.
//!
//! The kernel does not tell all it does. What it leaves out is read again:
//!
//! - IPv4 routes over a link that goes down vanish without `RTM_DELROUTE` (`fib_sync_down_dev`), and
//!   on kernels before 6.7 those with a preferred source that is deleted (`fib_sync_down_addr`). So
//!   do IPv6 routes where `net.ipv6.route.skip_notify_on_dev_down` is set, and an IPv6 route loses
//!   its preferred source in silence (`fib6_remove_prefsrc`).
//! - `RTM_NEWROUTE` with `NLM_F_REPLACE` does not name what it replaced; an IPv6 route may have
//!   become a next hop of another.
//! - A nexthop object may change or vanish under its routes.
//! - Two rules may look alike to the agent, and one address may be there with two prefix lengths.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use steer_core::ids::IfIndex;
use steer_core::network::{Address, ForeignRule, Link, Network, NetworkChange, Route};

use super::OwnRange;
use super::address;
use super::link::{LinkMessage, Media};
use super::route::{RouteKey, RouteMessage, RouteObject};
use super::router::{self, RouterOption};
use super::rule::RuleMessage;
use super::wire::Message;

/// `RTM_NEWNEXTHOP` and `RTM_DELNEXTHOP`.
const NEXT_HOP_OBJECTS: std::ops::RangeInclusive<u16> = 104..=105;

/// What has to be read again, because a notification did not tell all.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Stale {
    /// Everything.
    pub(super) all: bool,
    /// Addresses.
    pub(super) addresses: bool,
    /// Routes.
    pub(super) routes: bool,
    /// Rules.
    pub(super) rules: bool,
}

impl Stale {
    /// Whether anything is.
    pub(super) fn any(self) -> bool {
        self != Self::default()
    }
}

/// What a number of notifications amount to.
#[derive(Debug, Default)]
pub(super) struct Batch {
    /// Changes of what is not the agent's own, in order.
    pub(super) changes: Vec<NetworkChange>,
    /// A rule of the agent may be gone.
    pub(super) own_rule: bool,
    /// A route of the agent may be gone.
    pub(super) own_route: bool,
    /// What routers advertised, in order.
    pub(super) advertised: Vec<(IfIndex, RouterOption)>,
    /// What the changes leave out.
    pub(super) stale: Stale,
}

/// Routes by key; an object for each that the kernel holds.
pub(super) type RouteTable = BTreeMap<RouteKey, Vec<RouteObject>>;

/// The copy.
#[derive(Debug)]
pub(super) struct Mirror {
    own: OwnRange,
    media: Media,
    links: BTreeMap<IfIndex, Link>,
    addresses: BTreeMap<(IfIndex, IpAddr), Address>,
    routes: RouteTable,
    rules: BTreeSet<ForeignRule>,
}

impl Mirror {
    /// An empty copy.
    pub(super) fn new(own: OwnRange) -> Self {
        Self {
            own,
            media: Media::default(),
            links: BTreeMap::new(),
            addresses: BTreeMap::new(),
            routes: RouteTable::new(),
            rules: BTreeSet::new(),
        }
    }

    /// Takes a notification in.
    pub(super) fn apply(&mut self, message: &Message<'_>, batch: &mut Batch) {
        match message.kind {
            libc::RTM_NEWLINK => self.link(message, batch),
            libc::RTM_DELLINK => self.link_gone(message, batch),
            libc::RTM_NEWADDR => self.address(message, batch),
            libc::RTM_DELADDR => self.address_gone(message, batch),
            libc::RTM_NEWROUTE => self.route(message, batch),
            libc::RTM_DELROUTE => self.route_gone(message, batch),
            libc::RTM_NEWRULE | libc::RTM_DELRULE => self.rule(message, batch),
            router::NEW => router::take_in(message, &mut batch.advertised),
            kind if NEXT_HOP_OBJECTS.contains(&kind) => batch.stale.routes = true,
            _ => {}
        }
    }

    /// A link of a dump or notification.
    pub(super) fn read_link(&mut self, message: &Message<'_>) -> Option<Link> {
        Some(LinkMessage::parse(message)?.into_link(&mut self.media))
    }

    fn link(&mut self, message: &Message<'_>, batch: &mut Batch) {
        let Some(link) = self.read_link(message) else {
            return;
        };
        let old = self.links.insert(link.index, link.clone());
        if old.as_ref() == Some(&link) {
            return;
        }
        // Below 1280 bytes IPv6 leaves a link; a new master takes its routes to another table.
        let routing = |link: &Link| (link.up, link.master, link.mtu);
        if old.is_some_and(|old| routing(&old) != routing(&link)) {
            batch.stale.routes = true;
            batch.own_route = true;
        }
        batch.changes.push(NetworkChange::Link(link));
    }

    fn link_gone(&mut self, message: &Message<'_>, batch: &mut Batch) {
        let Some(index) = LinkMessage::parse(message).map(|link| link.index()) else {
            return;
        };
        self.media.forget(index);
        if self.links.remove(&index).is_none() {
            return;
        }
        self.addresses
            .retain(|(interface, _), _| *interface != index);
        self.routes.retain(|_, objects| {
            objects.retain_mut(|object| {
                let before = object.routes.len();
                object.routes.retain(|route| route.interface != index);
                before == 0 || !object.routes.is_empty()
            });
            !objects.is_empty()
        });
        batch.changes.push(NetworkChange::LinkGone(index));
        batch.stale.routes = true;
        batch.own_route = true;
    }

    fn address(&mut self, message: &Message<'_>, batch: &mut Batch) {
        let Some(address) = address::parse(message) else {
            return;
        };
        let subnet = |address: &Address| (address.prefix_len, address.peer);
        match self.addresses.get(&(address.interface, address.ip)) {
            Some(old) if *old == address => {}
            Some(old) if subnet(old) != subnet(&address) => batch.stale.addresses = true,
            _ => {
                self.addresses
                    .insert((address.interface, address.ip), address);
                batch.changes.push(NetworkChange::Address(address));
            }
        }
    }

    fn address_gone(&mut self, message: &Message<'_>, batch: &mut Batch) {
        let Some(address) = address::parse(message) else {
            return;
        };
        // Its routes go in silence, and another of the same ip may have been behind it.
        batch.stale.addresses = true;
        batch.stale.routes = true;
        batch.own_route = true;
        let key = (address.interface, address.ip);
        if self
            .addresses
            .get(&key)
            .is_some_and(|known| known.prefix_len == address.prefix_len)
        {
            self.addresses.remove(&key);
            batch
                .changes
                .push(NetworkChange::AddressGone(address.interface, address.ip));
        }
    }

    /// Whether routes of this table are in the copy: not the agent's own, nor the host's own
    /// addresses.
    fn has_table(&self, route: &RouteMessage) -> bool {
        route.table.0 != u32::from(libc::RT_TABLE_LOCAL) && !self.is_own_table(route)
    }

    fn is_own_table(&self, route: &RouteMessage) -> bool {
        self.own.tables.contains(&route.table.0)
    }

    fn route(&mut self, message: &Message<'_>, batch: &mut Batch) {
        let Some(route) = RouteMessage::parse(message) else {
            return;
        };
        let replaces = message.has(libc::NLM_F_REPLACE);
        if self.is_own_table(&route) {
            batch.own_route |= replaces && !route.is_ours();
            return;
        }
        if !self.has_table(&route) {
            return;
        }
        let object = route.object();
        let known = self.routes.get(&route.key()).map_or(&[][..], Vec::as_slice);
        let alike = |other: &&RouteObject| other.tos == object.tos;
        let rivals = known.iter().filter(alike).count();
        if (replaces && rivals > 1)
            || (route.is_ipv6() && !replaces && !known.contains(&object) && rivals > 0)
        {
            batch.stale.routes = true;
        } else if !known.contains(&object) {
            self.at_key(route.key(), batch, |objects| {
                if replaces {
                    objects.retain(|other| other.tos != object.tos);
                }
                objects.push(object);
            });
        }
    }

    fn route_gone(&mut self, message: &Message<'_>, batch: &mut Batch) {
        let Some(route) = RouteMessage::parse(message) else {
            return;
        };
        if self.is_own_table(&route) {
            batch.own_route |= route.is_ours();
            return;
        }
        let object = route.object();
        match self.routes.get(&route.key()) {
            None => {}
            Some(known) if known.contains(&object) => {
                self.at_key(route.key(), batch, |objects| {
                    objects.retain(|other| *other != object);
                });
            }
            Some(_) => batch.stale.routes = true,
        }
    }

    /// Changes the routes of one key and tells what that makes visible or invisible.
    fn at_key(
        &mut self,
        key: RouteKey,
        batch: &mut Batch,
        change: impl FnOnce(&mut Vec<RouteObject>),
    ) {
        let objects = self.routes.entry(key).or_default();
        let before = visible(objects.iter());
        change(objects);
        let after = visible(objects.iter());
        if objects.is_empty() {
            self.routes.remove(&key);
        }
        difference(
            &before,
            &after,
            batch,
            NetworkChange::Route,
            NetworkChange::RouteGone,
        );
    }

    fn rule(&mut self, message: &Message<'_>, batch: &mut Batch) {
        let Some(rule) = RuleMessage::parse(message) else {
            return;
        };
        if self.is_foreign(&rule) {
            batch.stale.rules = true;
        } else {
            batch.own_rule |= message.kind == libc::RTM_DELRULE;
        }
    }

    fn is_foreign(&self, rule: &RuleMessage) -> bool {
        !rule.own().is_some_and(|rule| self.own.has_rule(&rule))
    }

    /// A foreign rule of a dump.
    pub(super) fn read_rule(&self, message: &Message<'_>) -> Option<ForeignRule> {
        let rule = RuleMessage::parse(message)?;
        self.is_foreign(&rule).then(|| rule.foreign())
    }

    /// A foreign route of a dump.
    pub(super) fn read_route(&self, message: &Message<'_>) -> Option<(RouteKey, RouteObject)> {
        let route = RouteMessage::parse(message)?;
        self.has_table(&route)
            .then(|| (route.key(), route.object()))
    }

    /// Takes a dump of everything.
    pub(super) fn replace_all(
        &mut self,
        links: Vec<Link>,
        addresses: Vec<Address>,
        routes: Vec<(RouteKey, RouteObject)>,
        rules: Vec<ForeignRule>,
    ) {
        self.links = links.into_iter().map(|link| (link.index, link)).collect();
        self.media.keep(|index| self.links.contains_key(&index));
        self.addresses = by_ip(addresses);
        self.routes = by_key(routes);
        self.rules = rules.into_iter().collect();
    }

    /// Takes a dump of the addresses.
    pub(super) fn replace_addresses(&mut self, addresses: Vec<Address>, batch: &mut Batch) {
        let new = by_ip(addresses);
        let old = std::mem::replace(&mut self.addresses, new);
        for (interface, ip) in old.keys() {
            if !self.addresses.contains_key(&(*interface, *ip)) {
                batch
                    .changes
                    .push(NetworkChange::AddressGone(*interface, *ip));
            }
        }
        for (key, address) in &self.addresses {
            if old.get(key) != Some(address) {
                batch.changes.push(NetworkChange::Address(*address));
            }
        }
    }

    /// Takes a dump of the routes.
    pub(super) fn replace_routes(
        &mut self,
        routes: Vec<(RouteKey, RouteObject)>,
        batch: &mut Batch,
    ) {
        let before = visible(self.routes.values().flatten());
        self.routes = by_key(routes);
        let after = visible(self.routes.values().flatten());
        difference(
            &before,
            &after,
            batch,
            NetworkChange::Route,
            NetworkChange::RouteGone,
        );
    }

    /// Takes a dump of the rules.
    pub(super) fn replace_rules(&mut self, rules: Vec<ForeignRule>, batch: &mut Batch) {
        let after = rules.into_iter().collect();
        difference(
            &self.rules,
            &after,
            batch,
            NetworkChange::Rule,
            NetworkChange::RuleGone,
        );
        self.rules = after;
    }

    /// The whole copy.
    pub(super) fn network(&self) -> Network {
        Network {
            links: self.links.clone(),
            addresses: self.addresses.values().copied().collect(),
            routes: visible(self.routes.values().flatten()),
            rules: self.rules.clone(),
            ..Network::default()
        }
    }
}

/// Of two equal ips on one interface the one with the longer prefix is taken.
fn by_ip(mut addresses: Vec<Address>) -> BTreeMap<(IfIndex, IpAddr), Address> {
    addresses.sort_unstable();
    addresses
        .into_iter()
        .map(|address| ((address.interface, address.ip), address))
        .collect()
}

fn by_key(routes: Vec<(RouteKey, RouteObject)>) -> RouteTable {
    let mut table = RouteTable::new();
    for (key, object) in routes {
        table.entry(key).or_default().push(object);
    }
    table
}

fn visible<'a>(objects: impl Iterator<Item = &'a RouteObject>) -> BTreeSet<Route> {
    objects
        .flat_map(|object| object.routes.iter().copied())
        .collect()
}

/// What is new comes before what is gone, so that a replaced route is never missing in between.
fn difference<T: Ord + Clone>(
    before: &BTreeSet<T>,
    after: &BTreeSet<T>,
    batch: &mut Batch,
    new: impl Fn(T) -> NetworkChange,
    gone: impl Fn(T) -> NetworkChange,
) {
    batch
        .changes
        .extend(after.difference(before).cloned().map(new));
    batch
        .changes
        .extend(before.difference(after).cloned().map(gone));
}
