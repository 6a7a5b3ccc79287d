//! What the kernel answers when it is asked for the route of a flow, against what the plan says.

use std::fmt;
use std::net::IpAddr;

use super::path::Leaves;
use crate::ids::{IfIndex, TableId};
use crate::network::{ForeignRule, Network};
use crate::plan::Family;

/// The kernel's answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    /// This route.
    Route(KernelRoute),
    /// None, with the error that a program would see.
    Refused {
        /// As in `errno.h`.
        errno: i32,
        /// The kernel's words.
        words: String,
    },
}

/// A route as the kernel finds it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KernelRoute {
    /// The interface.
    pub interface: IfIndex,
    /// The source that it takes.
    pub source: Option<IpAddr>,
    /// The gateway; `None`: on-link.
    pub gateway: Option<IpAddr>,
    /// The table that it was found in.
    pub table: TableId,
}

/// Where the kernel's answer is not as planned.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Differs {
    /// What the plan says.
    pub planned: Leaves,
    /// What the kernel says.
    pub answer: Answer,
    /// Names of both interfaces, the planned one first.
    pub interfaces: [String; 2],
    /// Why.
    pub cause: Cause,
}

/// What makes the kernel go another way.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Cause {
    /// A rule of somebody else comes before the one that should match.
    Rule(ForeignRule),
    /// The domain's own table has another route.
    Route,
    /// It took another source.
    Source,
    /// The domain's table or rule is not there.
    Missing,
}

impl Differs {
    /// Compares. `None`: as planned.
    pub fn find(planned: &Leaves, answer: &Answer, network: &Network) -> Option<Self> {
        let table = planned.route.table;
        let foreign = || before(planned, network, answer);
        let cause = match answer {
            Answer::Route(route) if route.table != table => {
                foreign().map_or(Cause::Missing, Cause::Rule)
            }
            Answer::Route(route)
                if route.interface != planned.route.interface
                    || route.gateway != planned.route.gateway =>
            {
                Cause::Route
            }
            Answer::Route(route) if route.source != planned.source => Cause::Source,
            Answer::Route(_) => return None,
            Answer::Refused { .. } => foreign().map_or(Cause::Missing, Cause::Rule),
        };
        let name = |index: IfIndex| {
            let link = network.links.get(&index);
            link.map_or_else(|| format!("interface {index}"), |link| link.name.clone())
        };
        let other = match answer {
            Answer::Route(route) => name(route.interface),
            Answer::Refused { .. } => String::new(),
        };
        Some(Self {
            planned: *planned,
            answer: answer.clone(),
            interfaces: [name(planned.route.interface), other],
            cause,
        })
    }
}

/// The first rule of somebody else before the planned one that could give this answer.
fn before(planned: &Leaves, network: &Network, answer: &Answer) -> Option<ForeignRule> {
    let v6 = planned.rule.family == Family::Ipv6;
    let mut rules: Vec<&ForeignRule> = network
        .rules
        .iter()
        .filter(|rule| rule.v6 == v6 && rule.priority < planned.rule.priority)
        // The kernel's own, which knows nothing but the host's addresses.
        .filter(|rule| rule.table != Some(TableId(255)))
        // One for other marks than the packet's is none of it.
        .filter(|rule| match (planned.rule.fwmark, rule.fwmark) {
            (Some((mark, _)), Some((value, mask))) => (mark & mask == value) != rule.invert,
            _ => true,
        })
        .filter(|rule| match answer {
            Answer::Route(route) => rule.table == Some(route.table),
            Answer::Refused { .. } => true,
        })
        .collect();
    rules.sort_by_key(|rule| rule.priority);
    rules.first().map(|rule| (*rule).clone())
}

impl fmt::Display for Differs {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Leaves {
            source,
            rule,
            route,
            ..
        } = &self.planned;
        let [planned, other] = &self.interfaces;
        let from = |source: Option<IpAddr>| {
            source.map_or_else(String::new, |source| format!(" from {source}"))
        };
        let table = route.table;
        match &self.answer {
            Answer::Route(found) => write!(
                f,
                "the kernel sends it by {other}{} (table {}), and not by {planned}{} (table {table}) as \
                 planned: ",
                from(found.source),
                found.table,
                from(*source)
            )?,
            Answer::Refused { words, .. } => write!(
                f,
                "the kernel refuses it ({words}), and does not send it by {planned}{} (table {table}) as \
                 planned: ",
                from(*source)
            )?,
        }
        let version = match rule.family {
            Family::Ipv4 => "-4",
            Family::Ipv6 => "-6",
        };
        match &self.cause {
            Cause::Rule(foreign) => write!(
                f,
                "the rule with priority {} is not steer's and comes before steer's rule {}; remove it \
                 (`ip {version} rule show`), give it a priority above that, or set `rule-base` in \
                 [agent] below it",
                foreign.priority, rule.priority
            ),
            Cause::Route => write!(
                f,
                "table {table} holds another route than the plan: see `ip {version} route show table \
                 {table}` and remove what is not steer's (proto 83)"
            ),
            Cause::Source => write!(
                f,
                "see `ip {version} route show table {table}` and the addresses of {planned}"
            ),
            Cause::Missing => write!(
                f,
                "steer's rule {} or its table {table} is not as it should be: see `ip {version} rule \
                 show` and `ip {version} route show table {table}`; the agent mends what it made as soon \
                 as the kernel tells that it changed",
                rule.priority
            ),
        }
    }
}
