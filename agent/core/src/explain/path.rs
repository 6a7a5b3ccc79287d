//! Which rule and which route of the plan a packet takes.

use std::cmp::Reverse;
use std::net::IpAddr;

use steer_common::domain_flags;

use super::rule::matches;
use crate::ids::{DomainIndex, TableId};
use crate::plan::{Family, Plan, Rule, RuleAction, TableRoute};

/// `IPPROTO_TCP`
pub const TCP: u8 = 6;

/// What rules look at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Packet {
    /// Where it goes.
    pub destination: IpAddr,
    /// Its source; `None`: the route gives it one.
    pub source: Option<IpAddr>,
    /// The mark of its socket.
    pub mark: u32,
    /// Its transport protocol (`IPPROTO_*`).
    pub protocol: u8,
}

/// How a packet leaves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// By this route of a domain's table, because of this rule.
    Route(Rule, TableRoute),
    /// A rule refuses it.
    Refused(Rule),
    /// As the host's own rules and tables say: by this rule of ours into a table that is not ours, or
    /// past all of ours.
    Host(Option<Rule>),
}

/// How a flow that is put on a domain should leave.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Planned {
    /// So.
    Leaves(Leaves),
    /// The domain has no route to the destination: this rule refuses it with `ENETUNREACH`.
    NoRoute(Option<Rule>),
}

/// How a flow leaves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Leaves {
    /// Mark of its socket.
    pub mark: u32,
    /// Its source.
    pub source: Option<IpAddr>,
    /// The rule that its packets match.
    pub rule: Rule,
    /// The route that they take.
    pub route: TableRoute,
}

/// How a packet of the host leaves by the rules and routes of the plan.
pub fn way(plan: &Plan, packet: &Packet) -> Way {
    let family = Family::of(packet.destination);
    let rules = plan.rules.iter().filter(|rule| rule.family == family);
    let mut from = 0;
    for rule in rules {
        if rule.priority < from || !matches(rule, packet) {
            continue;
        }
        match rule.action {
            RuleAction::Goto(target) => from = target,
            RuleAction::Nop => {}
            RuleAction::Unreachable => return Way::Refused(*rule),
            RuleAction::Lookup {
                table,
                suppress_prefix_len,
            } => {
                if !plan.routes.iter().any(|route| route.table == table)
                    && !plan.rules.iter().any(|rule| is_mark_of(rule, table))
                {
                    // Not a domain's. Whether it knows the destination is the host's matter.
                    if suppress_prefix_len.is_none() {
                        return Way::Host(Some(*rule));
                    }
                    continue;
                }
                let route = best(plan, table, packet.destination);
                let counts = |route: &TableRoute| {
                    suppress_prefix_len
                        .is_none_or(|len| u32::from(route.destination.prefix_len()) > len)
                };
                if let Some(route) = route.filter(counts) {
                    return Way::Route(*rule, route);
                }
            }
        }
    }
    Way::Host(None)
}

/// Whether a rule gives packets with a mark this table, which is then a domain's.
fn is_mark_of(rule: &Rule, table: TableId) -> bool {
    rule.fwmark.is_some_and(|(mark, _)| mark != 0)
        && matches!(rule.action, RuleAction::Lookup { table: own, .. } if own == table)
}

/// The route that the kernel takes: the longest prefix, then the lowest metric.
fn best(plan: &Plan, table: TableId, destination: IpAddr) -> Option<TableRoute> {
    let routes = plan.routes.iter().filter(|route| route.table == table);
    routes
        .filter(|route| route.destination.contains(&destination))
        .min_by_key(|route| (Reverse(route.destination.prefix_len()), route.metric))
        .copied()
}

/// How a connected flow of a protocol that is put on `index` should leave. IPv6 gets its source from the
/// hook; IPv4 from the route that its mark leads to, and is then looked up once more with it.
pub fn planned(plan: &Plan, index: DomainIndex, destination: IpAddr, protocol: u8) -> Planned {
    let Some(domain) = plan.domains.get(&index) else {
        return Planned::NoRoute(None);
    };
    let source = match destination {
        IpAddr::V6(_) if domain.flags & domain_flags::IPV6 != 0 => {
            Some(IpAddr::from(domain.source6))
        }
        _ => None,
    };
    let mut packet = Packet {
        destination,
        source,
        mark: domain.mark,
        protocol,
    };
    let mut found = way(plan, &packet);
    if let (Way::Route(_, route), None) = (found, source) {
        packet.source = route.prefsrc;
        found = way(plan, &packet);
    }
    match found {
        Way::Route(rule, route) => Planned::Leaves(Leaves {
            mark: domain.mark,
            source: packet.source,
            rule,
            route,
        }),
        Way::Refused(rule) => Planned::NoRoute(Some(rule)),
        Way::Host(rule) => Planned::NoRoute(rule),
    }
}

/// The rule that leads a domain's flows of a family to its table.
pub fn rule_of(plan: &Plan, index: DomainIndex, family: Family) -> Option<&Rule> {
    let mark = plan.domains.get(&index)?.mark;
    plan.rules.iter().find(|rule| {
        rule.family == family
            && rule.fwmark.is_some_and(|(value, _)| value == mark)
            && matches!(rule.action, RuleAction::Lookup { .. })
    })
}
