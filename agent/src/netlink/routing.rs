//! Reads and writes the rules and routes that bear the agent's protocol number.

use std::collections::BTreeSet;

use ipnet::IpNet;
use steer_core::ids::TableId;
use steer_core::plan::{Family, Rule, TableRoute};

use super::Error;
use super::connection::{Connection, Refusal};
use super::route::{self, RouteMessage};
use super::rule::{self, RuleMessage};
use super::watcher::{both_families, read};
use super::wire::{AF_INET, AF_INET6, family_of};

/// Reads and writes the rules and routes that bear the agent's protocol number. Every operation may
/// be repeated: what is there already is not added again, what is gone need not be deleted.
pub struct Routing {
    connection: Connection,
}

impl Routing {
    /// Opens a socket, on the calling thread, in its network namespace.
    ///
    /// # Errors
    /// No socket.
    #[expect(
        clippy::unused_async,
        reason = "needs the runtime that its caller awaits it on"
    )]
    pub async fn open() -> Result<Self, Error> {
        Ok(Self {
            connection: Connection::open(libc::NETLINK_ROUTE).map_err(Error::Open)?,
        })
    }

    /// The rules with the agent's protocol number, of both families.
    ///
    /// # Errors
    /// The dump failed.
    pub async fn rules(&mut self) -> Result<BTreeSet<Rule>, Error> {
        both_families(&mut self.connection, rule::dump_request, |message| {
            RuleMessage::parse(message)?.own()
        })
        .await
        .map(BTreeSet::from_iter)
        .map_err(read("rules"))
    }

    /// The routes with the agent's protocol number, of every table and both families.
    ///
    /// # Errors
    /// The dump failed.
    pub async fn routes(&mut self) -> Result<BTreeSet<TableRoute>, Error> {
        both_families(
            &mut self.connection,
            |family| route::dump_request(family, Some(None)),
            |message| Some(RouteMessage::parse(message)?.own()),
        )
        .await
        .map(|routes| routes.into_iter().flatten().collect())
        .map_err(read("routes"))
    }

    /// Adds a rule unless it is there.
    ///
    /// # Errors
    /// The kernel refused it.
    pub async fn add_rule(&mut self, rule: &Rule) -> Result<(), Error> {
        let create = libc::NLM_F_CREATE | libc::NLM_F_EXCL;
        match self.change_rule(libc::RTM_NEWRULE, create, rule).await {
            Ok(()) => Ok(()),
            Err(refusal) if refusal.errno() == libc::EEXIST => {
                // The kernel compares neither the target of a goto nor the suppressed prefix length,
                // and takes a missing selector for any (`rule_exists`): it may mean another rule.
                if self.rules().await?.contains(rule) {
                    return Ok(());
                }
                self.change_rule(libc::RTM_NEWRULE, libc::NLM_F_CREATE, rule)
                    .await
            }
            refused => refused,
        }
        .map_err(|source| Error::AddRule {
            rule: Box::new(*rule),
            source,
        })
    }

    /// Deletes a rule if it is there.
    ///
    /// # Errors
    /// The kernel refused, or the rules could not be read.
    pub async fn delete_rule(&mut self, rule: &Rule) -> Result<(), Error> {
        loop {
            let before = self.rules_of(rule.family).await?;
            if !before.contains(rule) {
                return Ok(());
            }
            // A selector that is not named matches any (`rule_find`): the kernel deletes the first
            // rule of that priority that fits.
            let kin = before
                .iter()
                .filter(|other| *other != rule && other.priority == rule.priority)
                .count();
            match self.change_rule(libc::RTM_DELRULE, 0, rule).await {
                Err(refusal) if refusal.errno() == libc::ENOENT => return Ok(()),
                Err(source) => {
                    return Err(Error::DeleteRule {
                        rule: Box::new(*rule),
                        source,
                    });
                }
                Ok(()) if kin == 0 => return Ok(()),
                Ok(()) => {}
            }
            let after = self.rules_of(rule.family).await?;
            for victim in before.difference(&after).filter(|victim| *victim != rule) {
                // It goes behind the rule that was meant, which the next round deletes.
                self.change_rule(libc::RTM_NEWRULE, libc::NLM_F_CREATE, victim)
                    .await
                    .map_err(|source| Error::AddRule {
                        rule: Box::new(*victim),
                        source,
                    })?;
            }
        }
    }

    async fn rules_of(&mut self, family: Family) -> Result<BTreeSet<Rule>, Error> {
        let family = match family {
            Family::Ipv4 => AF_INET,
            Family::Ipv6 => AF_INET6,
        };
        self.connection
            .dump(&rule::dump_request(family), |message| {
                RuleMessage::parse(message)?.own()
            })
            .await
            .map(BTreeSet::from_iter)
            .map_err(read("rules"))
    }

    async fn change_rule(&mut self, kind: u16, flags: i32, rule: &Rule) -> Result<(), Refusal> {
        self.connection
            .change(rule::request(kind, flags, rule))
            .await
    }

    /// Adds a route unless it is there, beside any other to the same destination with the same
    /// metric. A gateway must be reachable by then: on-link routes first.
    ///
    /// # Errors
    /// The kernel refused it; or it is an IPv6 route with metric 0, which the kernel would make
    /// 1024, so that it would never be found again.
    pub async fn add_route(&mut self, route: &TableRoute) -> Result<(), Error> {
        let failed = |source| Error::AddRoute {
            route: Box::new(*route),
            source,
        };
        if route.metric == 0 && matches!(route.destination, IpNet::V6(_)) {
            return Err(failed(Refusal::invalid("an IPv6 route needs a metric")));
        }
        // Appending is the one way to add that neither replaces another route of the same
        // destination and metric nor is refused because of it.
        let create = libc::NLM_F_CREATE | libc::NLM_F_APPEND;
        match self.change_route(libc::RTM_NEWROUTE, create, route).await {
            Ok(()) => return Ok(()),
            Err(refusal) if refusal.errno() == libc::EEXIST => {}
            Err(source) => return Err(failed(source)),
        }
        let present = self.table(route).await?;
        if present.contains(route) {
            return Ok(());
        }
        // IPv6 tells routes apart by destination, metric and next hop alone
        // (`rt6_duplicate_nexthop`): an old one that differs otherwise has to go first.
        for old in present.iter().filter(|old| same_next_hop(old, route)) {
            self.delete_route(old).await?;
        }
        match self.change_route(libc::RTM_NEWROUTE, create, route).await {
            Ok(()) => Ok(()),
            Err(source) => Err(failed(source)),
        }
    }

    /// Deletes a route if it is there.
    ///
    /// # Errors
    /// The kernel refused, or the routes could not be read.
    pub async fn delete_route(&mut self, route: &TableRoute) -> Result<(), Error> {
        // What is not named matches any, such as the path MTU: look before.
        if !self.table(route).await?.contains(route) {
            return Ok(());
        }
        match self.change_route(libc::RTM_DELROUTE, 0, route).await {
            Ok(()) => Ok(()),
            Err(refusal) if matches!(refusal.errno(), libc::ESRCH | libc::ENODEV) => Ok(()),
            Err(source) => Err(Error::DeleteRoute {
                route: Box::new(*route),
                source,
            }),
        }
    }

    /// Our routes in a route's table and family.
    async fn table(&mut self, route: &TableRoute) -> Result<BTreeSet<TableRoute>, Error> {
        let request = route::dump_request(
            family_of(route.destination.addr()),
            Some(Some(TableId(route.table.0))),
        );
        let answer = self
            .connection
            .dump(&request, |message| {
                Some(RouteMessage::parse(message)?.own())
            })
            .await;
        match answer {
            Ok(routes) => Ok(routes
                .into_iter()
                .flatten()
                .filter(|other| other.table == route.table)
                .collect()),
            // The table does not exist.
            Err(refusal) if refusal.errno() == libc::ENOENT => Ok(BTreeSet::new()),
            Err(refusal) => Err(read("routes")(refusal)),
        }
    }

    async fn change_route(
        &mut self,
        kind: u16,
        flags: i32,
        route: &TableRoute,
    ) -> Result<(), Refusal> {
        self.connection
            .change(route::request(kind, flags, route))
            .await
    }
}

/// Whether two routes have destination, metric and next hop in common.
fn same_next_hop(a: &TableRoute, b: &TableRoute) -> bool {
    let key = |route: &TableRoute| {
        (
            route.destination,
            route.metric,
            route.interface,
            route.gateway,
        )
    };
    key(a) == key(b)
}
