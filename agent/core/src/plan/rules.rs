//! Policy rules: which table a packet's route is looked up in.
//!
//! A packet without a mark of the agent jumps over the marked section. What is marked never leaves
//! it but by a table of a domain, by `main` for destinations that are never steered, or by the host's
//! own routing if its source says that it is a server's answer or was passed.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;
use steer_common::MarkMask;

use super::{Family, IfName, Rule, RuleAction};
use crate::domains::MAIN_TABLE;
use crate::ids::TableId;

/// Priorities, counted from `rule-base`.
pub mod offset {
    /// Packets without a mark go on at [`UNMARKED`].
    pub const SPLIT: u32 = 0;
    /// Destinations that are never steered.
    pub const NEVER: u32 = 10;
    /// Sources of one domain.
    pub const SOURCE: u32 = 20;
    /// Sources of one domain for which its table has no route.
    pub const SOURCE_END: u32 = 21;
    /// Other addresses of the host go on at [`UNMARKED`].
    pub const OTHERS: u32 = 25;
    /// Marks.
    pub const MARK: u32 = 30;
    /// Sockets bound to an interface that their mark has no route by: the host's routing knows it.
    pub const DEVICE: u32 = 35;
    /// Marks whose table has no route. Other bits in the mask are somebody else's mark, and go on.
    pub const END: u32 = 40;
    /// Where packets without a mark go on.
    pub const UNMARKED: u32 = 500;
    /// Unmarked packets with the source of a domain: its routes but the default one.
    pub const UNMARKED_NEAR: u32 = 510;
    /// Unmarked packets with the source of a domain: the host's routes but the default one.
    pub const UNMARKED_HOST: u32 = 520;
    /// Unmarked packets with the source of a domain: its default route.
    pub const UNMARKED_FAR: u32 = 530;
    /// Unmarked packets with the source of a domain for which its table has no route.
    pub const UNMARKED_END: u32 = 531;
    /// Priorities that are the agent's.
    pub const COUNT: u32 = 600;
}

const IPPROTO_TCP: u8 = 6;
const IPPROTO_UDP: u8 = 17;

/// What all rules of a family share.
#[derive(Clone, Copy, Debug)]
pub struct Shape {
    /// Family.
    pub family: Family,
    /// Priority of the first rule.
    pub base: u32,
    /// Bits of marks that are the agent's.
    pub mask: MarkMask,
    /// Whether unmarked packets with a domain's source get its routes: not beside a foreign rule
    /// that catches unmarked traffic.
    pub unmarked: bool,
}

/// What rules are about, both families.
#[derive(Clone, Debug, Default)]
pub struct Contents {
    /// Marks of domains and their tables.
    pub marks: Vec<(u32, TableId)>,
    /// Addresses that one domain alone holds.
    pub owned: Vec<Owned>,
    /// Other addresses of the host, of no installed domain.
    pub others: BTreeSet<IpAddr>,
    /// Interfaces with an address.
    pub devices: BTreeSet<IfName>,
}

/// An address that one domain alone holds.
#[derive(Clone, Copy, Debug)]
pub struct Owned {
    /// The address.
    pub address: IpAddr,
    /// The domain's table.
    pub table: TableId,
    /// Whether unmarked packets from it get the table too: not if the interface runs and still has
    /// no route, as an address that the host keeps for itself.
    pub leads: bool,
    /// Whether the table has no default route, so that unmarked packets from it that the table does
    /// not know are refused. (With a default route only sockets bound to another interface get that
    /// far, and the host's routing knows those.)
    pub ends: bool,
}

/// All rules of a family, in order. None without a mark.
pub fn all_rules(shape: Shape, contents: &Contents) -> Vec<Rule> {
    if contents.marks.is_empty() {
        return Vec::new();
    }
    let end = RuleAction::Goto(shape.base + offset::UNMARKED);
    let mut rules = vec![shape.rule(offset::SPLIT, end).fwmark(0, shape.mask)];
    rules.extend(shape.never_steered());
    let own = |ip: &IpAddr| Family::of(*ip) == shape.family;
    for owned in contents.owned.iter().filter(|owned| own(&owned.address)) {
        let from = Some(IpNet::from(owned.address));
        let lookup = |suppress_prefix_len| RuleAction::Lookup {
            table: owned.table,
            suppress_prefix_len,
        };
        let main = RuleAction::Lookup {
            table: MAIN_TABLE,
            suppress_prefix_len: Some(0),
        };
        let mut add = |offset, action| {
            rules.push(Rule {
                from,
                ..shape.rule(offset, action)
            });
        };
        if shape.unmarked && owned.leads {
            add(offset::UNMARKED_NEAR, lookup(Some(0)));
            add(offset::UNMARKED_HOST, main);
            add(offset::UNMARKED_FAR, lookup(None));
            if owned.ends {
                add(offset::UNMARKED_END, RuleAction::Unreachable);
            }
        }
        rules.extend(shape.by_source(owned.address, offset::SOURCE, lookup(None)));
        let unreachable = RuleAction::Unreachable;
        rules.extend(shape.by_source(owned.address, offset::SOURCE_END, unreachable));
    }
    for ip in contents.others.iter().filter(|ip| own(ip)) {
        rules.extend(shape.by_source(*ip, offset::OTHERS, end));
    }
    for device in &contents.devices {
        rules.push(Rule {
            oif: Some(*device),
            ..shape.rule(offset::DEVICE, end)
        });
    }
    for (mark, table) in &contents.marks {
        let action = RuleAction::Lookup {
            table: *table,
            suppress_prefix_len: None,
        };
        let end = shape.rule(offset::END, RuleAction::Unreachable);
        rules.push(shape.rule(offset::MARK, action).fwmark(*mark, shape.mask));
        rules.push(end.fwmark(*mark, shape.mask));
    }
    rules.push(shape.rule(offset::UNMARKED, RuleAction::Nop));
    rules.sort_unstable();
    rules
}

impl Shape {
    fn rule(self, offset: u32, action: RuleAction) -> Rule {
        Rule {
            family: self.family,
            priority: self.base + offset,
            from: None,
            to: None,
            fwmark: None,
            oif: None,
            protocol: None,
            udp_ports: None,
            action,
        }
    }

    /// Rules for marked packets with a source that was chosen.
    ///
    /// IPv6 looks a route up without a source first; where that fails it takes *any* address of the
    /// host and looks again (`ip6_dst_lookup_tail`). A rule by source would then let a socket out that
    /// its mark refuses. Where a source really is chosen, by a hook or by a server's client, the
    /// transport is TCP or UDP; everything else goes by its mark alone.
    fn by_source(self, ip: IpAddr, offset: u32, action: RuleAction) -> impl Iterator<Item = Rule> {
        let protocols: &[Option<u8>] = match self.family {
            Family::Ipv4 => &[None],
            Family::Ipv6 => &[Some(IPPROTO_TCP), Some(IPPROTO_UDP)],
        };
        protocols.iter().map(move |protocol| Rule {
            from: Some(IpNet::from(ip)),
            protocol: *protocol,
            ..self.rule(offset, action)
        })
    }

    /// Link-local, multicast and broadcast destinations and DHCP follow the main table under any
    /// mark, since the mark given at `socket()` knows no destination.
    fn never_steered(self) -> impl Iterator<Item = Rule> {
        let main = RuleAction::Lookup {
            table: MAIN_TABLE,
            suppress_prefix_len: None,
        };
        let rule = self.rule(offset::NEVER, main);
        let v4 = |a, b, c, d, len| (IpAddr::V4(Ipv4Addr::new(a, b, c, d)), len);
        let v6 = |head, len| (IpAddr::V6(Ipv6Addr::new(head, 0, 0, 0, 0, 0, 0, 0)), len);
        let (prefixes, dhcp) = match self.family {
            Family::Ipv4 => (
                vec![
                    v4(169, 254, 0, 0, 16),
                    v4(224, 0, 0, 0, 4),
                    v4(255, 255, 255, 255, 32),
                ],
                (68, 67),
            ),
            Family::Ipv6 => (vec![v6(0xfe80, 10), v6(0xff00, 8)], (546, 547)),
        };
        let to = prefixes.into_iter().filter_map(move |(ip, len)| {
            Some(Rule {
                to: Some(IpNet::new(ip, len).ok()?),
                ..rule
            })
        });
        to.chain([Rule {
            udp_ports: Some(dhcp),
            ..rule
        }])
    }
}

impl Rule {
    fn fwmark(self, mark: u32, mask: MarkMask) -> Self {
        Self {
            fwmark: Some((mark, mask.bits())),
            ..self
        }
    }
}
