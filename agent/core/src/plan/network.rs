//! The part of the plan that follows the network: everything but cgroups, policies and choices.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use steer_common::domain_flags;

use steer_common::ingress_flags;

use super::inputs::{Inputs, Installed};
use super::{Family, Hook, IfName, Plan, rules, tables};
use crate::domains::DomainOrigin;
use crate::ids::IfIndex;
use crate::plan::{foreign, host, maps};

/// Hooks that every policy needs.
const HOOKS: [Hook; 11] = [
    Hook::SockCreate,
    Hook::Connect4,
    Hook::Connect6,
    Hook::Sendmsg4,
    Hook::Sendmsg6,
    Hook::PostBind4,
    Hook::PostBind6,
    Hook::Bind4,
    Hook::Bind6,
    Hook::CgroupMkdir,
    Hook::CgroupRmdir,
];

/// Writes the network part into `new`, where it is empty.
pub(crate) fn write(inputs: &Inputs<'_>, new: &mut Plan) {
    let installed = inputs.installed();
    if inputs.acts {
        new.hooks.extend(HOOKS);
        // Those of interfaces without a domain see what leaves by them although it should not.
        let guarded = inputs.network.links.values().filter(|link| !link.loopback);
        new.guards = guarded.map(|link| link.index).collect();
        if inputs.strict {
            new.hooks.extend([Hook::Setsockopt, Hook::Egress]);
        }
        if inputs.repairs {
            // Where answers to repaired flows arrive.
            for interface in installed.iter().filter_map(|d| d.domain?.interface) {
                let mut flags = ingress_flags::RETURNS;
                let link = inputs.network.links.get(&interface);
                if link.is_some_and(|link| link.mac.is_some()) {
                    flags |= ingress_flags::ETHERNET;
                }
                new.ingress.entry(interface).or_default().flags |= flags;
            }
        }
        maps::domains(inputs, &installed, new);
        maps::locals(inputs, &installed, new);
    }
    host::write(inputs, new);
    // Flows outlive the policies that marked them, also the last one.
    let marked = [installed.as_slice(), &inputs.lingering()].concat();
    if marked.is_empty() {
        return;
    }
    let owners = Owners::new(&marked);
    let contents = rule_inputs(inputs, &marked, &owners);
    for family in Family::BOTH {
        tables::write(&marked, family, &mut new.routes);
        let shape = rules::Shape {
            family,
            base: inputs.config.agent.rule_base,
            mask: inputs.mask(),
            unmarked: foreign::catching(inputs.network, family).next().is_none(),
        };
        new.rules.extend(rules::all_rules(shape, &contents));
    }
    overlaps(&owners, new);
}

/// Whether two plans have the same network part.
pub(crate) fn same(a: &Plan, b: &Plan) -> bool {
    a.hooks == b.hooks
        && a.guards == b.guards
        && a.ingress == b.ingress
        && a.hosts == b.hosts
        && a.domains == b.domains
        && a.sources == b.sources
        && a.locals == b.locals
        && a.rules == b.rules
        && a.routes == b.routes
        && a.sysctls == b.sysctls
}

/// Which installed domains hold an address.
pub(crate) struct Owners<'a>(BTreeMap<IpAddr, Vec<Installed<'a>>>);

impl<'a> Owners<'a> {
    pub(crate) fn new(installed: &[Installed<'a>]) -> Self {
        let mut owners: BTreeMap<IpAddr, Vec<Installed<'a>>> = BTreeMap::new();
        for domain in installed {
            let addresses = domain.domain.map_or(&[][..], |domain| &domain.addresses);
            for address in addresses {
                owners.entry(address.ip).or_default().push(*domain);
            }
        }
        Self(owners)
    }

    /// Addresses of several domains, with those.
    pub(crate) fn shared(&self) -> impl Iterator<Item = (IpAddr, &[Installed<'a>])> {
        let shared = self.0.iter().filter(|(_, owners)| owners.len() > 1);
        shared.map(|(ip, owners)| (*ip, owners.as_slice()))
    }
}

fn rule_inputs<'a>(
    inputs: &Inputs<'_>,
    marked: &[Installed<'a>],
    owners: &Owners<'a>,
) -> rules::Contents {
    // An address on two interfaces of the host belongs to nobody alone, even if one of them is no
    // installed domain.
    let mut holders: BTreeMap<IpAddr, BTreeSet<IfIndex>> = BTreeMap::new();
    for address in inputs
        .network
        .addresses
        .iter()
        .filter(|address| address.global)
    {
        holders
            .entry(address.ip)
            .or_default()
            .insert(address.interface);
    }
    let mut contents = rules::Contents::default();
    for domain in marked {
        contents.marks.push((domain.mark, domain.table));
    }
    for (ip, owners) in &owners.0 {
        let alone = holders
            .get(ip)
            .is_none_or(|interfaces| interfaces.len() == 1);
        if let ([owner], true) = (owners.as_slice(), alone) {
            let leads = owner.domain.is_some_and(|domain| {
                inputs.installed.contains_key(&domain.name)
                    && (!domain.running || domain.has(Family::of(*ip)))
            });
            contents.owned.push(rules::Owned {
                address: *ip,
                table: owner.table,
                leads,
                ends: !owner
                    .domain
                    .is_some_and(|domain| domain.has_default(Family::of(*ip))),
            });
        }
    }
    contents.others = inputs
        .network
        .addresses
        .iter()
        .filter(|address| address.global && address.usable)
        .map(|address| address.ip)
        .filter(|ip| !owners.0.contains_key(ip))
        .collect();
    let addresses = inputs.network.addresses.iter();
    contents.devices = addresses
        .filter_map(|address| inputs.network.links.get(&address.interface))
        .filter(|link| !link.loopback)
        .filter_map(|link| IfName::new(&link.name))
        .collect();
    contents
}

/// The same IPv4 address on two domains whose `sources` both name it: asked for, so incoming packets
/// are told apart by mark.
fn overlaps(owners: &Owners<'_>, plan: &mut Plan) {
    for (ip, owners) in owners.shared().filter(|(ip, _)| ip.is_ipv4()) {
        let asked = |owner: &&Installed<'_>| {
            owner.domain.is_some_and(|domain| {
                domain.origin == DomainOrigin::File && domain.named_sources.contains(&ip)
            })
        };
        let asking: Vec<&Installed<'_>> = owners.iter().filter(asked).collect();
        let interfaces: BTreeSet<_> = asking
            .iter()
            .filter_map(|owner| owner.domain?.interface)
            .collect();
        if interfaces.len() < 2 {
            continue;
        }
        for owner in asking {
            let Some(domain) = owner.domain else { continue };
            let (Some(interface), Some(ifname)) = (domain.interface, &domain.ifname) else {
                continue;
            };
            // Two domains on one interface cannot be told apart by interface: the first has it.
            let arriving = plan.ingress.entry(interface).or_default();
            if arriving.mark == 0 {
                arriving.mark = owner.mark;
            }
            if let Some(entry) = plan.domains.get_mut(&owner.index) {
                entry.flags |= domain_flags::SHARED;
            }
            let path = format!("net/ipv4/conf/{ifname}/src_valid_mark");
            plan.sysctls.insert(path, "1".to_owned());
        }
        for key in ["net/ipv4/tcp_fwmark_accept", "net/ipv4/fwmark_reflect"] {
            plan.sysctls.insert(key.to_owned(), "1".to_owned());
        }
    }
}
