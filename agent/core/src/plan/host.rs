//! The host model of interfaces: RFC 1122, section 3.3.4.2.

use std::collections::{BTreeMap, BTreeSet};

use steer_common::ingress_flags;

use super::Plan;
use super::inputs::Inputs;
use crate::config::{Config, HostModel};
use crate::domains::{Domains, never_steered};
use crate::ids::IfIndex;
use crate::network::Network;

/// In [`Plan::hosts`]: at home anywhere.
pub const ANYWHERE: IfIndex = IfIndex(0);

/// The host model of an interface.
///
/// What a domain on it says itself counts before what `[agent]` says. Of domains that share it and say
/// different things the one that drops most counts.
pub fn model_of(config: &Config, domains: &Domains, interface: IfIndex) -> HostModel {
    let on_it = domains.iter().filter(|d| d.interface == Some(interface));
    on_it
        .filter_map(|domain| config.domains.get(&domain.name)?.host_model)
        .max_by_key(|model| drops(*model))
        .unwrap_or(config.agent.host_model)
}

/// How much a model drops, in order.
const fn drops(model: HostModel) -> u8 {
    match model {
        HostModel::Kernel => 0,
        HostModel::Weak => 1,
        HostModel::Count => 2,
        HostModel::Strong => 3,
    }
}

/// Writes what interfaces with a host model do with arrivals and departures, and whose addresses they know.
pub(crate) fn write(inputs: &Inputs<'_>, plan: &mut Plan) {
    let network = inputs.network;
    let asked: BTreeMap<IfIndex, u32> = inputs
        .domains
        .iter()
        .filter_map(|domain| domain.interface)
        .filter_map(
            |interface| match model_of(inputs.config, inputs.domains, interface) {
                HostModel::Strong => Some((interface, ingress_flags::STRONG)),
                HostModel::Count => Some((interface, ingress_flags::COUNT)),
                HostModel::Kernel | HostModel::Weak => None,
            },
        )
        .collect();
    if asked.is_empty() {
        return;
    }
    let homes: BTreeMap<IfIndex, BTreeSet<IfIndex>> = asked
        .keys()
        .map(|interface| (*interface, homes(network, *interface)))
        .collect();
    for (interface, flags) in asked {
        plan.ingress.entry(interface).or_default().flags |= flags;
    }
    for address in network
        .addresses
        .iter()
        .filter(|a| !never_steered(&a.ip.into()))
    {
        plan.hosts.insert((ANYWHERE, address.ip));
        for (interface, homes) in &homes {
            if homes.contains(&address.interface) {
                plan.hosts.insert((*interface, address.ip));
            }
        }
    }
}

/// The interfaces whose addresses are at home at `interface`: itself, those whose frames it carries as its
/// own (macvlan and the like), and the bridge, bond or team that it is a port of.
fn homes(network: &Network, interface: IfIndex) -> BTreeSet<IfIndex> {
    let mut found = BTreeSet::from([interface]);
    let mut open = vec![interface];
    while let Some(lower) = open.pop() {
        let stacked = network
            .links
            .values()
            .filter(|link| link.under == Some(lower));
        let master = network.links.get(&lower).and_then(|link| link.master);
        for upper in stacked.map(|link| link.index).chain(master) {
            if found.insert(upper) {
                open.push(upper);
            }
        }
    }
    found
}
