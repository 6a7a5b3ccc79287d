//! Reads and writes the rules and routes that bear the agent's protocol number.

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use ipnet::IpNet;
use steer_core::ids::{IfIndex, TableId};
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

    /// Adds routes unless they are there, each beside any other to the same destination with the
    /// same metric. A gateway must be reachable by then: on-link routes first. An outcome per route,
    /// in their order:
    ///
    /// # Errors
    /// The kernel refused it; or it is an IPv6 route with metric 0, which the kernel would make
    /// 1024, so that it would never be found again.
    pub async fn add_routes(&mut self, routes: &[TableRoute]) -> Vec<Result<(), Error>> {
        let mut tables = Tables::default();
        let mut outcomes = Vec::with_capacity(routes.len());
        for route in routes {
            outcomes.push(self.add_route(route, &mut tables).await);
        }
        outcomes
    }

    /// Deletes routes if they are there. An outcome per route, in their order:
    ///
    /// # Errors
    /// The kernel refused, or the routes could not be read.
    pub async fn delete_routes(&mut self, routes: &[TableRoute]) -> Vec<Result<(), Error>> {
        let mut tables = Tables::default();
        let mut outcomes = Vec::with_capacity(routes.len());
        for route in routes {
            outcomes.push(self.delete_route(route, &mut tables).await);
        }
        outcomes
    }

    async fn add_route(&mut self, route: &TableRoute, tables: &mut Tables) -> Result<(), Error> {
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
            Ok(()) => {
                tables.added(route);
                return Ok(());
            }
            Err(refusal) if refusal.errno() == libc::EEXIST => {}
            Err(source) => return Err(failed(source)),
        }
        let present = self.table(route, tables).await?;
        if present.contains(route) {
            return Ok(());
        }
        // IPv6 tells routes apart by destination, metric and next hop alone
        // (`rt6_duplicate_nexthop`): an old one that differs otherwise has to go first.
        let old: Vec<TableRoute> = present.same_next_hop(route).copied().collect();
        for old in &old {
            self.delete_route(old, tables).await?;
        }
        self.change_route(libc::RTM_NEWROUTE, create, route)
            .await
            .map_err(failed)?;
        tables.added(route);
        Ok(())
    }

    async fn delete_route(&mut self, route: &TableRoute, tables: &mut Tables) -> Result<(), Error> {
        // What is not named matches any, such as the path MTU: look before.
        if !self.table(route, tables).await?.contains(route) {
            return Ok(());
        }
        match self.change_route(libc::RTM_DELROUTE, 0, route).await {
            Ok(()) => {}
            Err(refusal) if matches!(refusal.errno(), libc::ESRCH | libc::ENODEV) => {}
            Err(source) => {
                return Err(Error::DeleteRoute {
                    route: Box::new(*route),
                    source,
                });
            }
        }
        tables.deleted(route);
        Ok(())
    }

    /// Our routes in a route's table and family, read the first time that `tables` lacks them.
    async fn table<'t>(
        &mut self,
        route: &TableRoute,
        tables: &'t mut Tables,
    ) -> Result<&'t Table, Error> {
        let read_now = match tables.0.entry(table_key(route)) {
            Entry::Occupied(known) => known.into_mut(),
            Entry::Vacant(unknown) => unknown.insert(self.read_table(route).await),
        };
        read_now
            .as_ref()
            .map_err(|refusal| read("routes")(refusal.clone()))
    }

    async fn read_table(&mut self, route: &TableRoute) -> Result<Table, Refusal> {
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
            Ok(routes) => {
                let mut table = Table::default();
                for other in routes.into_iter().flatten() {
                    if other.table == route.table {
                        table.insert(&other);
                    }
                }
                Ok(table)
            }
            // The table does not exist.
            Err(refusal) if refusal.errno() == libc::ENOENT => Ok(Table::default()),
            Err(refusal) => Err(refusal),
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

/// What a batch has read, by table and whether it is IPv6, and its own changes since. A table that
/// could not be read is not tried again.
#[derive(Default)]
struct Tables(BTreeMap<(TableId, bool), Result<Table, Refusal>>);

impl Tables {
    fn added(&mut self, route: &TableRoute) {
        if let Some(Ok(table)) = self.0.get_mut(&table_key(route)) {
            table.insert(route);
        }
    }

    fn deleted(&mut self, route: &TableRoute) {
        if let Some(Ok(table)) = self.0.get_mut(&table_key(route)) {
            table.remove(route);
        }
    }
}

/// The routes of one table and family, by what IPv6 tells them apart by.
#[derive(Default)]
struct Table(BTreeMap<NextHop, BTreeSet<TableRoute>>);

/// Destination, metric, interface and gateway.
type NextHop = (IpNet, u32, IfIndex, Option<IpAddr>);

impl Table {
    fn contains(&self, route: &TableRoute) -> bool {
        self.0
            .get(&next_hop(route))
            .is_some_and(|routes| routes.contains(route))
    }

    fn same_next_hop(&self, route: &TableRoute) -> impl Iterator<Item = &TableRoute> {
        self.0.get(&next_hop(route)).into_iter().flatten()
    }

    fn insert(&mut self, route: &TableRoute) {
        self.0.entry(next_hop(route)).or_default().insert(*route);
    }

    fn remove(&mut self, route: &TableRoute) {
        if let Some(routes) = self.0.get_mut(&next_hop(route)) {
            routes.remove(route);
        }
    }
}

fn table_key(route: &TableRoute) -> (TableId, bool) {
    (route.table, matches!(route.destination, IpNet::V6(_)))
}

fn next_hop(route: &TableRoute) -> NextHop {
    (
        route.destination,
        route.metric,
        route.interface,
        route.gateway,
    )
}

#[cfg(test)]
mod tests {
    use std::thread;

    use nix::sched::{CloneFlags, unshare};

    use super::*;

    /// Routes over loopback (interface 1), in two tables, of both families.
    fn many(prefsrc: bool) -> Vec<TableRoute> {
        let mut routes = Vec::new();
        for number in 0..200u16 {
            let [high, low] = number.to_be_bytes();
            for (destination, source) in [
                (format!("10.9.{high}.{low}/32"), "127.0.0.1"),
                (format!("fd09::{number:x}/128"), "::1"),
            ] {
                routes.push(TableRoute {
                    table: TableId(8301 + u32::from(number % 2)),
                    destination: destination.parse().unwrap(),
                    metric: 5,
                    interface: IfIndex(1),
                    gateway: None,
                    onlink: false,
                    prefsrc: prefsrc.then(|| source.parse().unwrap()),
                    mtu: None,
                });
            }
        }
        routes
    }

    fn all(outcomes: Vec<Result<(), Error>>) {
        for outcome in outcomes {
            outcome.unwrap();
        }
    }

    #[test]
    fn a_batch_reads_each_table_and_family_once() {
        let test = async {
            let mut routing = Routing::open().await.unwrap();
            let up = std::process::Command::new("ip")
                .args(["link", "set", "lo", "up"])
                .status();
            assert!(up.unwrap().success());
            let [old, new] = [false, true].map(many);
            all(routing.add_routes(&old).await);
            assert_eq!(routing.connection.dumps, 0);
            // Only IPv6 takes the new ones for the old ones.
            all(routing.add_routes(&new).await);
            assert_eq!(routing.connection.dumps, 2);

            let there: BTreeSet<TableRoute> = routing.routes().await.unwrap();
            assert_eq!(there.len(), 600);
            let before = routing.connection.dumps;
            let twice: Vec<TableRoute> = there.iter().chain(&there).copied().collect();
            let outcomes = routing.delete_routes(&twice).await;
            assert_eq!(outcomes.len(), twice.len());
            all(outcomes);
            assert_eq!(routing.connection.dumps, before + 4);
            assert!(routing.routes().await.unwrap().is_empty());
        };
        thread::spawn(|| {
            unshare(CloneFlags::CLONE_NEWNET).expect("a network namespace needs CAP_SYS_ADMIN");
            tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .unwrap()
                .block_on(test);
        })
        .join()
        .unwrap();
    }
}
