//! Where a flow is: the domain that its packets leave by, and whether they still can.

use std::net::IpAddr;

use super::{Flow, Why};
use crate::domains::Domain;
use crate::engine::Engine;
use crate::explain::path::{Packet, Way, way};
use crate::ids::DomainIndex;
use crate::name::Name;

/// Where a flow is.
pub(super) struct Place<'a> {
    /// The domain; none: the host's routing, by an interface that is no domain.
    pub(super) domain: Option<&'a Name>,
    /// The domain that its mark stands for.
    pub(super) marked: Option<DomainIndex>,
    /// Why its packets go nowhere any more.
    pub(super) lost: Option<Why>,
}

impl Engine {
    /// The name of the domain with an index.
    pub(super) fn name_of(&self, index: DomainIndex) -> Option<&Name> {
        let mut indices = self.state().memory.indices.iter();
        indices
            .find(|(_, own)| **own == index)
            .map(|(name, _)| name)
    }

    /// The index of a domain.
    pub(super) fn index_of(&self, domain: &Name) -> Option<DomainIndex> {
        self.state().memory.indices.get(domain).copied()
    }

    /// Whether a flow's mark is as the socket programs set it: a domain's, and nothing else.
    pub(super) fn bears_mark(&self, flow: &Flow) -> bool {
        let mask = self.state().config.agent.mark_mask;
        flow.mark != 0 && mask.encode(mask.decode(flow.mark)) == Some(flow.mark)
    }

    /// Domains that have an address.
    pub(super) fn holders(&self, ip: IpAddr) -> impl Iterator<Item = &Domain> {
        let has = move |domain: &&Domain| domain.addresses.iter().any(|own| own.ip == ip);
        self.domains().iter().filter(has)
    }

    /// Where a flow is. A source that one domain alone has goes before a mark, as it does in the rules.
    pub(super) fn place_of(&self, flow: &Flow) -> Place<'_> {
        let mask = self.state().config.agent.mark_mask;
        let marked = Some(DomainIndex(mask.decode(flow.mark)));
        let marked = marked.filter(|index| self.name_of(*index).is_some());
        let mut holders = self.holders(flow.local.ip());
        let by_source = match (holders.next(), holders.next()) {
            (Some(holder), None) => Some(&holder.name),
            _ => None,
        };
        let domain = by_source.or_else(|| self.name_of(marked?));
        Place {
            domain,
            marked,
            lost: self.lost(flow, domain, marked.is_some()),
        }
    }

    fn lost(&self, flow: &Flow, domain: Option<&Name>, marked: bool) -> Option<Why> {
        let domain = match domain {
            None => None,
            Some(name) => match self.domains().get(name.as_str()) {
                Some(domain) if domain.running => Some(domain),
                _ => return Some(Why::Carrier),
            },
        };
        let mut addresses = self.state().network.addresses.iter();
        if !addresses.any(|address| address.ip == flow.local.ip()) {
            return Some(Why::Address);
        }
        domain?;
        let refused = marked && flow.bound.is_none() && matches!(self.way(flow), Way::Refused(_));
        refused.then_some(Why::Route)
    }

    /// Whether a flow's packets leave by an interface because of a domain's table.
    pub(super) fn leads(&self, flow: &Flow, interface: u32) -> bool {
        matches!(self.way(flow), Way::Route(_, route) if route.interface.0 == interface)
    }

    fn way(&self, flow: &Flow) -> Way {
        let packet = Packet {
            destination: flow.peer.ip(),
            source: Some(flow.local.ip()),
            mark: flow.mark,
            protocol: flow.protocol,
        };
        way(self.plan(), &packet)
    }
}
