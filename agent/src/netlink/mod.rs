//! The one module that knows netlink: what the kernel says of links, addresses, routes and rules,
//! and routers of name servers and portals ([`Watcher`]), the WLANs that interfaces are connected to ([`Stations`]),
//! the rules and routes that are the agent's own ([`Routing`]), which sockets bear a mark ([`sockets_with_mark`]),
//! live flows ([`live_flows`], [`reset_flows`]), and packet filters on kernels without tcx ([`filter`]).
//!
//! Every socket is opened on the calling thread, in that thread's network namespace.

mod address;
mod connection;
mod diag;
pub mod filter;
mod flows;
mod link;
mod lookup;
mod mirror;
mod neighbour;
mod nl80211;
mod route;
mod router;
mod routing;
mod rule;
mod sockets;
mod stations;
mod survey;
mod watcher;
mod wire;

use std::io;
use std::ops::RangeInclusive;

use steer_core::plan::{Rule, TableRoute};

pub use connection::Refusal;
pub use diag::Condition;
pub use flows::{Carried, FlowPhase, LiveFlow, Transport, Wanted, live_flows, reset_flows};
pub use lookup::{Question, route_to};
pub use neighbour::neighbour;
pub use router::RouterOption;
pub use routing::Routing;
pub use sockets::{closed_sources, netns_cookie, sockets_with_mark};
pub use stations::Stations;
pub use survey::{Survey, closes_sockets, refused_rules, survey};
pub use watcher::{Notification, Watcher};

/// What went wrong, with the operation and its object; the source has the kernel's words.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A socket could not be had.
    #[error("open a netlink socket")]
    Open(#[source] io::Error),
    /// The kernel's notifications could not be had.
    #[error("subscribe to netlink group {group}")]
    Subscribe {
        /// `RTNLGRP_*`.
        group: u32,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The kernel's notifications could not be read.
    #[error("read netlink notifications")]
    Receive(#[source] io::Error),
    /// A dump failed.
    #[error("read the kernel's {what}")]
    Read {
        /// What was asked for.
        what: &'static str,
        /// Why.
        #[source]
        source: Refusal,
    },
    /// A rule was not added.
    #[error("add rule {rule:?}")]
    AddRule {
        /// The rule.
        rule: Box<Rule>,
        /// Why.
        #[source]
        source: Refusal,
    },
    /// A rule was not deleted.
    #[error("delete rule {rule:?}")]
    DeleteRule {
        /// The rule.
        rule: Box<Rule>,
        /// Why.
        #[source]
        source: Refusal,
    },
    /// A route was not added.
    #[error("add route {route:?}")]
    AddRoute {
        /// The route.
        route: Box<TableRoute>,
        /// Why.
        #[source]
        source: Refusal,
    },
    /// A route was not deleted.
    #[error("delete route {route:?}")]
    DeleteRoute {
        /// The route.
        route: Box<TableRoute>,
        /// Why.
        #[source]
        source: Refusal,
    },
}

/// What is the agent's own among the objects that bear its protocol number.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OwnRange {
    /// Priorities of its rules.
    pub priorities: RangeInclusive<u32>,
    /// Its tables.
    pub tables: RangeInclusive<u32>,
}

impl OwnRange {
    /// Whether `rule` (of the agent's protocol) is its own.
    pub fn has_rule(&self, rule: &Rule) -> bool {
        self.priorities.contains(&rule.priority)
    }

    /// Whether `route` (of the agent's protocol) is its own.
    pub fn has_route(&self, route: &TableRoute) -> bool {
        self.tables.contains(&route.table.0)
    }
}
