//! The netlink module against the real kernel: every test in a network namespace of its own, with
//! `ip` as the third party.

mod flows;
mod router;

use std::collections::BTreeSet;
use std::io::Write as _;
use std::net::{IpAddr, TcpListener, UdpSocket};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use nix::sched::{CloneFlags, unshare};
use nix::sys::socket::{setsockopt, sockopt};
use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};
use steer::netlink::{
    Error, Notification, OwnRange, RouterOption, Routing, Watcher, netns_cookie, sockets_with_mark,
};
use steer_core::ids::{IfIndex, TableId};
use steer_core::network::{LinkKind, Network, NetworkChange, Route};
use steer_core::plan::{Family, IfName, Rule, RuleAction, TableRoute};

/// How long the kernel may take to do what it does on its own (carrier, duplicate detection).
const DEADLINE: Duration = Duration::from_secs(20);

const RANGE: OwnRange = OwnRange {
    priorities: 5000..=5099,
    tables: 8300..=8399,
};

/// Runs `test` on a thread of its own in a network namespace of its own, with loopback up.
fn in_namespace<T: Send + 'static, F: Future<Output = T>>(
    test: impl FnOnce() -> F + Send + 'static,
) -> T {
    let thread = std::thread::spawn(|| {
        unshare(CloneFlags::CLONE_NEWNET).expect("a network namespace needs root (CAP_SYS_ADMIN)");
        ip("link set lo up");
        tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .expect("a runtime")
            .block_on(test())
    });
    match thread.join() {
        Ok(value) => value,
        Err(panic) => std::panic::resume_unwind(panic),
    }
}

/// Runs `ip` in the namespace of the calling thread; it has to work.
fn ip(arguments: &str) {
    assert!(try_ip(arguments), "ip {arguments}");
}

fn try_ip(arguments: &str) -> bool {
    Command::new("ip")
        .args(arguments.split_whitespace())
        .stderr(Stdio::null())
        .status()
        .expect("ip (iproute2) is needed")
        .success()
}

/// Many `ip` commands by one process.
fn ip_batch(commands: &str) {
    let mut child = Command::new("ip")
        .args(["-batch", "-"])
        .stdin(Stdio::piped())
        .spawn()
        .expect("ip (iproute2) is needed");
    child
        .stdin
        .take()
        .expect("a pipe")
        .write_all(commands.as_bytes())
        .expect("ip reads");
    assert!(child.wait().expect("ip ends").success());
}

/// A veth pair, both ends up, with addresses of both families on the near one.
fn uplink(name: &str, number: u8) {
    ip(&format!("link add name {name} type veth peer name {name}p"));
    ip(&format!("link set {name} up"));
    ip(&format!("link set {name}p up"));
    ip(&format!("addr add 10.{number}.0.1/24 dev {name}"));
    ip(&format!("addr add fd00:{number}::1/64 dev {name} nodad"));
}

fn index(name: &str) -> IfIndex {
    IfIndex(nix::net::if_::if_nametoindex(name).expect("the interface is there"))
}

fn net<T: std::str::FromStr>(text: &str) -> T
where
    T::Err: std::fmt::Debug,
{
    text.parse().expect("an address or prefix")
}

async fn add(routing: &mut Routing, route: &TableRoute) -> Result<(), Error> {
    let outcomes = routing.add_routes(std::slice::from_ref(route)).await;
    outcomes.into_iter().collect()
}

async fn delete(routing: &mut Routing, route: &TableRoute) -> Result<(), Error> {
    let outcomes = routing.delete_routes(std::slice::from_ref(route)).await;
    outcomes.into_iter().collect()
}

async fn fresh() -> Network {
    let mut watcher = Watcher::open(RANGE).await.expect("a watcher");
    match watcher.next().await.expect("a dump").into_iter().next() {
        Some(Notification::Network(NetworkChange::Dump(network))) => network,
        other => panic!("the first notification is {other:?}"),
    }
}

/// A watcher and what its changes amount to.
struct Mirror {
    watcher: Watcher,
    network: Network,
    dumps: usize,
    own_rule: usize,
    own_route: usize,
    changes: usize,
    advertised: Vec<(IfIndex, RouterOption)>,
}

impl Mirror {
    async fn open() -> Self {
        Self::of(Watcher::open(RANGE).await.expect("a watcher")).await
    }

    async fn of(watcher: Watcher) -> Self {
        let mut mirror = Self {
            watcher,
            network: Network::default(),
            dumps: 0,
            own_rule: 0,
            own_route: 0,
            changes: 0,
            advertised: Vec::new(),
        };
        assert!(mirror.read(DEADLINE).await, "no dump");
        assert_eq!(mirror.dumps, 1);
        mirror
    }

    /// Takes one batch in; says whether there was one in time.
    async fn read(&mut self, wait: Duration) -> bool {
        let Ok(batch) = tokio::time::timeout(wait, self.watcher.next()).await else {
            return false;
        };
        self.take(batch.expect("a batch"));
        true
    }

    fn take(&mut self, batch: Vec<Notification>) {
        assert!(!batch.is_empty());
        for notification in batch {
            match notification {
                Notification::Network(change) => {
                    self.changes += 1;
                    self.dumps += usize::from(matches!(change, NetworkChange::Dump(_)));
                    self.network.apply(change);
                }
                Notification::OwnRule => self.own_rule += 1,
                Notification::OwnRoute => self.own_route += 1,
                Notification::RouterOption { interface, option } => {
                    self.advertised.push((interface, option));
                }
            }
        }
    }

    async fn until(&mut self, what: &str, condition: impl Fn(&Self) -> bool) {
        let end = Instant::now() + DEADLINE;
        while !condition(self) {
            assert!(
                self.read(end.saturating_duration_since(Instant::now()))
                    .await,
                "not in time: {what}: {:#?}",
                self.network
            );
        }
    }

    /// Until the copy is what a fresh dump says; fails with the difference.
    async fn agrees(&mut self) -> Result<(), TestCaseError> {
        let end = Instant::now() + DEADLINE;
        loop {
            while self.read(Duration::from_millis(1)).await {}
            let truth = fresh().await;
            if self.network == truth {
                return Ok(());
            }
            if Instant::now() > end {
                prop_assert_eq!(&self.network, &truth);
            }
            self.read(Duration::from_millis(50)).await;
        }
    }
}

fn route_to(network: &Network, destination: &str) -> Vec<Route> {
    network
        .routes
        .iter()
        .filter(|route| route.destination == net(destination))
        .copied()
        .collect()
}

#[test]
fn the_first_dump_tells_links_addresses_routes_and_foreign_rules() {
    in_namespace(|| async {
        uplink("up0", 1);
        ip("link add br0 type bridge");
        ip("link set up0p master br0");
        ip("tuntap add tun0 mode tun");
        ip("addr add 10.9.0.1 peer 10.9.0.2/32 dev tun0");
        ip("route add default via 10.1.0.2 dev up0 metric 50 mtu 1400 src 10.1.0.1");
        ip("-6 route add 2001:db8::/32 from fd00:1::/64 via fd00:1::2 dev up0 metric 7");
        ip("route add unreachable 192.0.2.0/24");
        ip("route add 198.51.100.0/24 nexthop via 10.1.0.3 dev up0 nexthop via 10.1.0.4 dev up0");
        ip("rule add not fwmark 0xca6c table 51820 pref 100");
        ip(
            "rule add iif up0 from 10.0.0.0/8 table 77 suppress_prefixlength 0 pref 101 protocol 83",
        );
        let network = fresh().await;
        let up = index("up0");

        let link = &network.links[&up];
        assert_eq!((link.name.as_str(), link.kind), ("up0", LinkKind::Other));
        assert!(link.up && !link.bridge && !link.loopback);
        assert_eq!(link.mtu, 1500);
        assert!(link.mac.is_some());
        assert!(network.links[&index("lo")].loopback);
        assert_eq!(network.links[&index("lo")].mac, None);
        assert_eq!(network.links[&index("tun0")].kind, LinkKind::Vpn);
        let port = &network.links[&index("up0p")];
        assert!(port.bridge && port.master == Some(index("br0")));
        assert!(network.links[&index("br0")].bridge);

        let of = |ip: &str| {
            *network
                .addresses
                .iter()
                .find(|address| address.ip == net::<IpAddr>(ip))
                .expect("the address")
        };
        let v4 = of("10.1.0.1");
        assert_eq!((v4.interface, v4.prefix_len, v4.peer), (up, 24, None));
        assert!(v4.global && v4.usable && !v4.deprecated && !v4.temporary);
        assert_eq!(of("10.9.0.1").peer, Some(net("10.9.0.2")));
        assert!(!of("127.0.0.1").global);
        assert!(of("fd00:1::1").usable);

        let default = route_to(&network, "0.0.0.0/0");
        assert_eq!(
            default,
            [Route {
                table: TableId(254),
                destination: net("0.0.0.0/0"),
                metric: 50,
                interface: up,
                gateway: Some(net("10.1.0.2")),
                onlink: false,
                prefsrc: Some(net("10.1.0.1")),
                mtu: Some(1400),
                source: None,
            }]
        );
        let specific = route_to(&network, "2001:db8::/32");
        assert_eq!(specific[0].source, Some(net("fd00:1::/64")));
        assert_eq!(specific[0].metric, 7);
        assert_eq!(route_to(&network, "192.0.2.0/24"), []);
        assert_eq!(route_to(&network, "198.51.100.0/24").len(), 2);
        assert!(
            network
                .routes
                .iter()
                .all(|route| route.table != TableId(255))
        );

        let rule = |priority| {
            network
                .rules
                .iter()
                .find(|rule| rule.priority == priority && !rule.v6)
                .expect("the rule")
        };
        let wireguard = rule(100);
        assert!(wireguard.invert && !wireguard.narrow);
        assert_eq!(wireguard.fwmark, Some((0xca6c, u32::MAX)));
        assert_eq!(wireguard.table, Some(TableId(51820)));
        // Our protocol number outside our priorities does not make a rule ours.
        let narrow = rule(101);
        assert!(narrow.narrow);
        assert_eq!(narrow.from, Some(net("10.0.0.0/8")));
        assert_eq!(narrow.suppress_prefix_len, Some(0));
        assert_eq!(rule(32766).table, Some(TableId(254)));
        assert!(network.rules.iter().any(|rule| rule.v6));
    });
}

#[test]
fn addresses_names_and_new_indices_are_followed() {
    in_namespace(|| async {
        uplink("up0", 1);
        let mut mirror = Mirror::open().await;
        let old = index("up0");

        ip("addr add 10.1.0.77/24 dev up0");
        mirror
            .until("the new address", |m| {
                m.network
                    .addresses
                    .iter()
                    .any(|a| a.ip == net::<IpAddr>("10.1.0.77"))
            })
            .await;
        ip("addr del 10.1.0.77/24 dev up0");
        mirror
            .until("the address is gone", |m| {
                m.network
                    .addresses
                    .iter()
                    .all(|a| a.ip != net::<IpAddr>("10.1.0.77"))
            })
            .await;
        ip("link set up0 name renamed");
        mirror
            .until("the new name", |m| m.network.links[&old].name == "renamed")
            .await;
        ip("link del renamed");
        mirror
            .until("the link is gone", |m| {
                !m.network.links.contains_key(&old)
                    && m.network.routes.iter().all(|r| r.interface != old)
                    && m.network.addresses.iter().all(|a| a.interface != old)
            })
            .await;
        uplink("up0", 1);
        let new = index("up0");
        assert_ne!(old, new);
        mirror
            .until("the link is back", |m| {
                m.network.links.get(&new).is_some_and(|link| link.carrier)
                    && route_to(&m.network, "10.1.0.0/24")
                        .iter()
                        .any(|r| r.interface == new)
            })
            .await;
        mirror.agrees().await.expect("the copy is exact");
        assert_eq!(mirror.dumps, 1, "changes, not dumps");
    });
}

#[test]
fn carrier_follows_the_other_end() {
    in_namespace(|| async {
        uplink("up0", 1);
        let mut mirror = Mirror::open().await;
        let up = index("up0");
        mirror
            .until("carrier", |m| m.network.links[&up].carrier)
            .await;
        ip("link set up0p down");
        mirror
            .until("carrier lost", |m| {
                !m.network.links[&up].carrier && m.network.links[&up].up
            })
            .await;
    });
}

#[test]
fn a_replaced_route_leaves_nothing_behind() {
    in_namespace(|| async {
        uplink("up0", 1);
        uplink("up1", 2);
        ip("route add default via 10.1.0.2 metric 5");
        ip("-6 route add default via fd00:1::2 metric 5");
        let mut mirror = Mirror::open().await;
        for (family, destination, gateway) in
            [("-4", "0.0.0.0/0", "10.2.0.9"), ("-6", "::/0", "fd00:2::9")]
        {
            ip(&format!(
                "{family} route replace default via {gateway} metric 5"
            ));
            let gateway: IpAddr = net(gateway);
            mirror
                .until("the new route alone", |m| {
                    let routes = route_to(&m.network, destination);
                    routes.len() == 1 && routes[0].gateway == Some(gateway)
                })
                .await;
        }
        assert_eq!(mirror.dumps, 1);
    });
}

#[test]
fn one_of_several_routes_with_the_same_key_may_be_replaced_or_deleted() {
    in_namespace(|| async {
        uplink("up0", 1);
        let mut mirror = Mirror::open().await;
        for (commands, left) in [
            (
                // Which of them was replaced, the kernel does not say.
                [
                    "route add default via 10.1.0.2 metric 5",
                    "route append default via 10.1.0.3 metric 5",
                    "route append default via 10.1.0.4 metric 5",
                    "route replace default via 10.1.0.5 metric 5",
                ],
                ("0.0.0.0/0", ["10.1.0.3", "10.1.0.4", "10.1.0.5"].as_slice()),
            ),
            (
                // IPv6 makes one route of several next hops of these.
                [
                    "-6 route add default via fd00:1::2 metric 5",
                    "-6 route append default via fd00:1::3 metric 5",
                    "-6 route append default via fd00:1::4 metric 5",
                    "-6 route del default via fd00:1::2 metric 5",
                ],
                ("::/0", ["fd00:1::3", "fd00:1::4"].as_slice()),
            ),
        ] {
            for command in commands {
                ip(command);
                mirror.agrees().await.expect("the copy is exact");
            }
            let gateways: BTreeSet<_> = route_to(&mirror.network, left.0)
                .iter()
                .filter_map(|route| route.gateway)
                .collect();
            assert_eq!(
                gateways,
                left.1.iter().map(|gateway| net(gateway)).collect()
            );
        }
        assert_eq!(mirror.dumps, 1);
    });
}

#[test]
fn an_address_with_two_prefix_lengths_goes_when_both_are_gone() {
    in_namespace(|| async {
        uplink("up0", 1);
        let mut mirror = Mirror::open().await;
        let prefix_lens = |m: &Mirror| -> Vec<u8> {
            m.network
                .addresses
                .iter()
                .filter(|address| address.ip == net::<IpAddr>("10.5.0.1"))
                .map(|address| address.prefix_len)
                .collect()
        };
        for (command, left) in [
            ("addr add 10.5.0.1/24 dev up0", [24].as_slice()),
            ("addr add 10.5.0.1/16 dev up0", &[24]),
            ("addr del 10.5.0.1/24 dev up0", &[16]),
            ("addr del 10.5.0.1/16 dev up0", &[]),
        ] {
            ip(command);
            mirror.until(command, |m| prefix_lens(m) == left).await;
            mirror.agrees().await.expect("the copy is exact");
        }
        assert_eq!(mirror.dumps, 1);
    });
}

#[test]
fn routes_over_a_link_without_ipv6_go_down_with_it() {
    in_namespace(|| async {
        // Without IPv6 addresses, whose removal would be told.
        ip("link add name up0 type veth peer name up0p");
        ip("link set up0 addrgenmode none");
        ip("link set up0p up");
        ip("link set up0 up");
        ip("addr add 10.1.0.1/24 dev up0");
        ip("route add default via 10.1.0.2");
        let mut mirror = Mirror::open().await;
        for _ in 0..20 {
            ip("link set up0 down");
            mirror
                .until("the link's routes are gone", |m| {
                    route_to(&m.network, "10.1.0.0/24").is_empty()
                        && route_to(&m.network, "0.0.0.0/0").is_empty()
                })
                .await;
            ip("link set up0 up");
            ip("route add default via 10.1.0.2");
            mirror
                .until("the routes are back", |m| {
                    route_to(&m.network, "10.1.0.0/24").len() == 1
                        && route_to(&m.network, "0.0.0.0/0").len() == 1
                })
                .await;
        }
        assert_eq!(mirror.dumps, 1);
    });
}

#[test]
fn routes_that_the_kernel_drops_in_silence_are_noticed() {
    in_namespace(|| async {
        uplink("up0", 1);
        uplink("up1", 2);
        ip("addr add 10.1.0.8/24 dev up0");
        ip("route add 192.0.2.0/24 via 10.1.0.2 src 10.1.0.8");
        ip("route add default via 10.1.0.2");
        ip("route add default via 10.1.0.3 table 8301 protocol 83");
        ip("addr add fd00:1::8/64 dev up0 nodad");
        ip("-6 route add 2001:db8::/32 via fd00:1::2 src fd00:1::8");
        ip("nexthop add id 7 via 10.1.0.6 dev up0");
        ip("route add 203.0.113.0/24 nhid 7");
        ip("route add 198.51.100.0/24 nexthop via 10.1.0.3 dev up0 nexthop via 10.2.0.4 dev up1");
        let mut mirror = Mirror::open().await;
        let own = mirror.own_route;
        assert_eq!(
            route_to(&mirror.network, "203.0.113.0/24")[0].gateway,
            Some(net("10.1.0.6"))
        );

        ip("nexthop replace id 7 via 10.1.0.5 dev up0");
        mirror
            .until("the new next hop", |m| {
                route_to(&m.network, "203.0.113.0/24")[0].gateway == Some(net("10.1.0.5"))
            })
            .await;
        ip("nexthop del id 7");
        mirror
            .until("the next hop's route is gone", |m| {
                route_to(&m.network, "203.0.113.0/24").is_empty()
            })
            .await;
        assert_eq!(mirror.own_route, own);
        ip("addr del 10.1.0.8/24 dev up0");
        mirror
            .until("the address's route is gone", |m| {
                route_to(&m.network, "192.0.2.0/24").is_empty() && m.own_route > own
            })
            .await;
        ip("addr del fd00:1::8/64 dev up0");
        mirror
            .until("the IPv6 route without its source", |m| {
                let routes = route_to(&m.network, "2001:db8::/32");
                routes.len() == 1 && routes[0].prefsrc.is_none()
            })
            .await;
        let own = mirror.own_route;
        ip("link set up0 down");
        mirror
            .until("the link's routes are gone", |m| {
                route_to(&m.network, "0.0.0.0/0").is_empty()
                    && route_to(&m.network, "198.51.100.0/24").len() == 1
                    && m.own_route > own
            })
            .await;
        ip("link set up0 up");
        mirror
            .until("the live next hop is back", |m| {
                route_to(&m.network, "198.51.100.0/24").len() == 2
            })
            .await;
        mirror.agrees().await.expect("the copy is exact");
        assert_eq!(mirror.dumps, 1);
    });
}

#[test]
fn an_overrun_ends_in_a_new_dump() {
    in_namespace(|| async {
        uplink("up0", 1);
        let watcher = Watcher::open_with_receive_buffer(RANGE, 4096)
            .await
            .expect("a watcher");
        let mut mirror = Mirror::of(watcher).await;
        let mut commands = String::new();
        for n in 0..2000 {
            let (a, b) = (n / 250, n % 250);
            commands += &format!("route add 172.16.{a}.{b}/32 via 10.1.0.2\n");
        }
        ip_batch(&commands);
        mirror.until("a second dump", |m| m.dumps > 1).await;
        assert!(mirror.own_rule > 0 && mirror.own_route > 0);
        mirror.agrees().await.expect("the copy is exact");
        assert!(mirror.network.routes.len() >= 2000);
        // And it goes on by changes.
        let dumps = mirror.dumps;
        ip("route del 172.16.0.7/32");
        mirror
            .until("the change", |m| {
                route_to(&m.network, "172.16.0.7/32").is_empty()
            })
            .await;
        assert_eq!(mirror.dumps, dumps);
    });
}

#[test]
fn a_burst_that_fits_the_buffer_is_told_without_a_dump() {
    in_namespace(|| async {
        uplink("up0", 1);
        let mut mirror = Mirror::open().await;
        let mut commands = String::new();
        for n in 0..2000 {
            let (a, b) = (n / 250, n % 250);
            commands += &format!("route add 172.16.{a}.{b}/32 via 10.1.0.2\n");
        }
        ip_batch(&commands);
        mirror
            .until("all routes", |m| m.network.routes.len() >= 2000)
            .await;
        mirror.agrees().await.expect("the copy is exact");
        assert_eq!(mirror.dumps, 1);
    });
}

#[test]
fn what_changes_nothing_says_nothing() {
    in_namespace(|| async {
        uplink("up0", 1);
        let up = index("up0");
        let mut mirror = Mirror::open().await;
        mirror
            .until("carrier", |m| m.network.links[&up].carrier)
            .await;
        mirror.agrees().await.expect("the copy is exact");
        let changes = mirror.changes;
        ip("link set up0 alias something");
        ip("link set up0 mtu 1400");
        mirror
            .until("the mtu", |m| m.network.links[&up].mtu == 1400)
            .await;
        assert_eq!(mirror.changes, changes + 1);
    });
}

fn rules() -> Vec<Rule> {
    let mut rules = Vec::new();
    for (family, from, to) in [
        (Family::Ipv4, "10.1.0.1/32", "169.254.0.0/16"),
        (Family::Ipv6, "fd00:1::1/128", "fe80::/10"),
    ] {
        let rule = |priority, action| Rule {
            family,
            priority,
            from: None,
            to: None,
            fwmark: None,
            oif: None,
            protocol: None,
            udp_ports: None,
            action,
        };
        let lookup = |table, suppress_prefix_len| RuleAction::Lookup {
            table: TableId(table),
            suppress_prefix_len,
        };
        rules.extend([
            Rule {
                fwmark: Some((0, 0x7700_0000)),
                ..rule(5000, RuleAction::Goto(5090))
            },
            Rule {
                to: Some(net(to)),
                ..rule(5001, lookup(254, None))
            },
            Rule {
                udp_ports: Some((68, 67)),
                ..rule(5002, lookup(254, None))
            },
            Rule {
                from: Some(net(from)),
                ..rule(5003, lookup(8301, None))
            },
            Rule {
                from: Some(net(from)),
                ..rule(5004, RuleAction::Unreachable)
            },
            Rule {
                fwmark: Some((0x0100_0000, 0x7700_0000)),
                ..rule(5005, lookup(8301, None))
            },
            rule(5006, RuleAction::Unreachable),
            Rule {
                oif: IfName::new("not-there-yet"),
                ..rule(5007, lookup(8301, None))
            },
            Rule {
                protocol: Some(if family == Family::Ipv4 { 1 } else { 58 }),
                ..rule(5008, lookup(8301, None))
            },
            Rule {
                protocol: Some(17),
                ..rule(5009, RuleAction::Unreachable)
            },
            rule(5090, RuleAction::Nop),
            Rule {
                from: Some(net(from)),
                ..rule(5091, lookup(8301, Some(0)))
            },
            Rule {
                from: Some(net(from)),
                ..rule(5091, lookup(100, Some(0)))
            },
            rule(5092, lookup(254, Some(8))),
        ]);
    }
    rules
}

#[test]
fn rules_are_read_as_they_were_written_and_may_be_written_twice() {
    in_namespace(|| async {
        let before = fresh().await;
        let mut routing = Routing::open().await.expect("a socket");
        assert_eq!(routing.rules().await.expect("rules"), BTreeSet::new());
        for _ in 0..2 {
            for rule in rules() {
                routing.add_rule(&rule).await.expect("the rule is added");
            }
            assert_eq!(
                routing.rules().await.expect("rules"),
                rules().into_iter().collect()
            );
        }
        assert_eq!(fresh().await, before, "own rules are not of the network");
        for _ in 0..2 {
            for rule in rules() {
                routing
                    .delete_rule(&rule)
                    .await
                    .expect("the rule is deleted");
            }
        }
        assert_eq!(routing.rules().await.expect("rules"), BTreeSet::new());
        assert_eq!(fresh().await, before);
    });
}

#[test]
fn rules_that_the_kernel_takes_for_one_another_stay_apart() {
    in_namespace(|| async {
        let mut routing = Routing::open().await.expect("a socket");
        let plain = Rule {
            family: Family::Ipv4,
            priority: 5010,
            from: None,
            to: None,
            fwmark: None,
            oif: None,
            protocol: None,
            udp_ports: None,
            action: RuleAction::Lookup {
                table: TableId(8301),
                suppress_prefix_len: None,
            },
        };
        let suppressing = Rule {
            action: RuleAction::Lookup {
                table: TableId(8301),
                suppress_prefix_len: Some(0),
            },
            ..plain
        };
        let goto = |target| Rule {
            action: RuleAction::Goto(target),
            ..plain
        };
        let from = Rule {
            from: Some(net("10.1.0.1/32")),
            ..plain
        };
        let bound = Rule {
            oif: IfName::new("lo"),
            ..plain
        };
        let tcp = Rule {
            protocol: Some(6),
            ..plain
        };
        let kin = [from, bound, tcp, suppressing, plain, goto(5020), goto(5030)];
        for victim in kin {
            for rule in kin {
                routing.add_rule(&rule).await.expect("the rule is added");
            }
            assert_eq!(routing.rules().await.expect("rules"), BTreeSet::from(kin));
            routing
                .delete_rule(&victim)
                .await
                .expect("the rule is deleted");
            let left: BTreeSet<_> = kin.into_iter().filter(|rule| *rule != victim).collect();
            assert_eq!(routing.rules().await.expect("rules"), left);
        }
    });
}

fn routes(up: IfIndex, second: IfIndex) -> Vec<TableRoute> {
    let unicast = |destination: &str, metric, interface, gateway: Option<&str>| TableRoute {
        table: TableId(8301),
        destination: net(destination),
        metric,
        interface,
        gateway: gateway.map(net),
        onlink: false,
        prefsrc: None,
        mtu: None,
    };
    let with = |route, source: Option<&str>, mtu, onlink| TableRoute {
        prefsrc: source.map(net),
        mtu,
        onlink,
        ..route
    };
    // Tables up to 255 have a field of their own in messages.
    let small_table = |route| TableRoute {
        table: TableId(55),
        ..route
    };
    vec![
        unicast("10.1.0.0/24", 0, up, None),
        with(
            unicast("0.0.0.0/0", 0, up, Some("10.1.0.2")),
            Some("10.1.0.1"),
            Some(1400),
            false,
        ),
        unicast("0.0.0.0/0", 100, up, Some("10.1.0.2")),
        unicast("0.0.0.0/0", 100, up, Some("10.1.0.3")),
        unicast("0.0.0.0/0", 100, second, Some("10.2.0.3")),
        with(
            unicast("192.0.2.0/24", 3, up, Some("203.0.113.1")),
            None,
            None,
            true,
        ),
        unicast("198.51.100.0/24", 3, up, Some("fd00:1::2")),
        small_table(unicast("10.1.0.0/24", 0, up, None)),
        unicast("fd00:1::/64", 256, up, None),
        with(
            unicast("::/0", 10, up, Some("fd00:1::2")),
            Some("fd00:1::1"),
            Some(1400),
            false,
        ),
        unicast("::/0", 100, up, Some("fd00:1::2")),
        unicast("::/0", 100, up, Some("fd00:1::3")),
        unicast("::/0", 100, second, Some("fd00:2::3")),
        with(
            unicast("2001:db8::/32", 3, up, Some("2001:db8:1::1")),
            None,
            None,
            true,
        ),
        small_table(unicast("fd00:1::/64", 256, up, None)),
    ]
}

#[test]
fn routes_are_read_as_they_were_written_and_may_be_written_twice() {
    in_namespace(|| async {
        uplink("up0", 1);
        uplink("up1", 2);
        let mut mirror = Mirror::open().await;
        let mut routing = Routing::open().await.expect("a socket");
        let routes = routes(index("up0"), index("up1"));
        for _ in 0..2 {
            for route in &routes {
                add(&mut routing, route).await.expect("the route is added");
            }
            assert_eq!(
                routing.routes().await.expect("routes"),
                routes.iter().copied().collect()
            );
        }
        mirror.agrees().await.expect("the copy is exact");
        assert!(
            mirror
                .network
                .routes
                .iter()
                .all(|r| r.table != TableId(8301))
        );
        for gone in 0..routes.len() {
            for _ in 0..2 {
                delete(&mut routing, &routes[gone])
                    .await
                    .expect("the route is deleted");
            }
            assert_eq!(
                routing.routes().await.expect("routes"),
                routes[gone + 1..].iter().copied().collect(),
            );
        }
    });
}

#[test]
fn thousands_of_routes_go_in_one_batch_and_what_others_made_stays() {
    in_namespace(|| async {
        uplink("up0", 1);
        let interface = index("up0");
        let route = |number: u16, gateway: &str| {
            let [high, low] = number.to_be_bytes();
            TableRoute {
                table: TableId(8301 + u32::from(number % 2)),
                destination: net(&format!("10.200.{high}.{low}/32")),
                metric: 5,
                interface,
                gateway: Some(net(gateway)),
                onlink: true,
                prefsrc: None,
                mtu: None,
            }
        };
        let mut routing = Routing::open().await.expect("a socket");
        let routes: Vec<TableRoute> = (0..3000).map(|n| route(n, "10.1.0.2")).collect();
        for outcome in routing.add_routes(&routes).await {
            outcome.expect("the route is added");
        }
        let kept = route(4000, "10.1.0.3");
        add(&mut routing, &kept).await.expect("the route is added");
        ip("route add 10.200.99.0/24 dev up0 table 8301 proto static");
        // One of them goes by another hand.
        ip("route del 10.200.0.7/32 table 8302");
        for outcome in routing.delete_routes(&routes).await {
            outcome.expect("the route is deleted");
        }
        assert_eq!(
            routing.routes().await.expect("routes"),
            BTreeSet::from([kept])
        );
        assert!(
            try_ip("route del 10.200.99.0/24 table 8301 proto static"),
            "another's route is gone"
        );
    });
}

#[test]
fn a_route_that_differs_in_source_or_mtu_alone_takes_the_place_of_the_old() {
    in_namespace(|| async {
        uplink("up0", 1);
        ip("addr add 10.1.0.8/24 dev up0");
        ip("addr add fd00:1::8/64 dev up0 nodad");
        let mut routing = Routing::open().await.expect("a socket");
        for (destination, gateway, source) in [
            ("0.0.0.0/0", "10.1.0.2", "10.1.0.8"),
            ("::/0", "fd00:1::2", "fd00:1::8"),
        ] {
            let route = |prefsrc: Option<&str>, mtu| TableRoute {
                table: TableId(8301),
                destination: net(destination),
                metric: 5,
                interface: index("up0"),
                gateway: Some(net(gateway)),
                onlink: false,
                prefsrc: prefsrc.map(net),
                mtu,
            };
            let steps = [
                route(None, None),
                route(Some(source), None),
                route(Some(source), Some(1300)),
                route(None, Some(1300)),
                route(None, None),
            ];
            for pair in steps.windows(2) {
                add(&mut routing, &pair[0])
                    .await
                    .expect("the old route is added");
                add(&mut routing, &pair[1])
                    .await
                    .expect("the new route is added");
                delete(&mut routing, &pair[0])
                    .await
                    .expect("the old route is deleted");
                assert_eq!(
                    routing.routes().await.expect("routes"),
                    BTreeSet::from([pair[1]])
                );
            }
            delete(&mut routing, &steps[4])
                .await
                .expect("the route is deleted");
        }
    });
}

#[test]
fn a_refusal_carries_the_kernels_words_and_the_object() {
    in_namespace(|| async {
        uplink("up0", 1);
        let mut routing = Routing::open().await.expect("a socket");
        let mut route = routes(index("up0"), index("up0"))[1];
        route.destination = net("10.99.0.0/16");
        route.gateway = Some(net("203.0.113.9"));
        let error = add(&mut routing, &route)
            .await
            .expect_err("no way to the gateway");
        let cause = std::error::Error::source(&error)
            .expect("a cause")
            .to_string();
        assert!(error.to_string().contains("10.99.0.0/16"), "{error}");
        assert!(cause.contains("Nexthop has invalid gateway"), "{cause}");
        route.destination = net("fd00:99::/64");
        route.metric = 0;
        add(&mut routing, &route)
            .await
            .expect_err("an IPv6 route without metric");
    });
}

#[test]
fn deletions_of_own_objects_by_others_are_told() {
    in_namespace(|| async {
        uplink("up0", 1);
        let mut mirror = Mirror::open().await;
        let mut routing = Routing::open().await.expect("a socket");
        for rule in rules() {
            routing.add_rule(&rule).await.expect("the rule is added");
        }
        for route in &routes(index("up0"), index("up0"))[..2] {
            add(&mut routing, route).await.expect("the route is added");
        }
        mirror.agrees().await.expect("the copy is exact");
        (mirror.own_rule, mirror.own_route) = (0, 0);
        ip("-6 rule del pref 5005");
        mirror.until("the deleted rule", |m| m.own_rule == 1).await;
        ip("route del default table 8301");
        mirror
            .until("the deleted route", |m| m.own_route == 1)
            .await;
        ip("route replace 10.1.0.0/24 dev lo table 8301");
        mirror
            .until("the replaced route", |m| m.own_route == 2)
            .await;
        ip("rule flush");
        mirror.until("the flushed rules", |m| m.own_rule > 1).await;
        mirror.agrees().await.expect("the copy is exact");
    });
}

#[test]
fn a_dropped_wait_loses_nothing() {
    in_namespace(|| async {
        uplink("up0", 1);
        let mut mirror = Mirror::open().await;
        let mut dropped = 0;
        for n in 2..60 {
            ip(&format!("addr add 10.1.0.{n}/32 dev up0"));
            ip(&format!(
                "route add 192.0.2.{n}/32 via 10.1.0.99 src 10.1.0.{n}"
            ));
            ip(&format!("addr del 10.1.0.{n}/32 dev up0"));
            let polled = once(mirror.watcher.next()).await;
            match polled {
                Some(batch) => mirror.take(batch.expect("a batch")),
                None => dropped += 1,
            }
        }
        assert!(dropped > 0, "no wait was dropped");
        mirror.agrees().await.expect("the copy is exact");
        assert_eq!(mirror.dumps, 1);
    });
}

#[test]
fn a_dump_is_made_on_request() {
    in_namespace(|| async {
        let mut mirror = Mirror::open().await;
        mirror.watcher.request_dump();
        mirror.until("a new dump", |m| m.dumps == 2).await;
    });
}

/// Polls a future once and drops it.
async fn once<F: Future>(future: F) -> Option<F::Output> {
    let mut future = std::pin::pin!(future);
    std::future::poll_fn(|context| {
        std::task::Poll::Ready(match future.as_mut().poll(context) {
            std::task::Poll::Ready(output) => Some(output),
            std::task::Poll::Pending => None,
        })
    })
    .await
}

#[test]
fn sockets_are_found_by_their_mark() {
    in_namespace(|| async {
        let (mark, mask) = (0x0100_0000, 0x7700_0000);
        let count = || async { sockets_with_mark(mark, mask).await.expect("a list") };
        assert_eq!(count().await, 0);
        let udp = UdpSocket::bind("127.0.0.1:0").expect("a socket");
        setsockopt(&udp, sockopt::Mark, &0x0200_0000).expect("a mark");
        let unmarked = TcpListener::bind("[::1]:0").expect("a socket");
        assert_eq!(count().await, 0);
        setsockopt(&udp, sockopt::Mark, &(mark | 0x55)).expect("a mark");
        assert_eq!(count().await, 1, "foreign bits do not matter");
        setsockopt(&unmarked, sockopt::Mark, &mark).expect("a mark");
        assert_eq!(count().await, 2);
        let six = UdpSocket::bind("[::1]:0").expect("a socket");
        setsockopt(&six, sockopt::Mark, &mark).expect("a mark");
        six.connect(six.local_addr().expect("an address"))
            .expect("a peer");
        assert_eq!(count().await, 3);
        assert_eq!(
            sockets_with_mark(0x0200_0000, mask).await.expect("a list"),
            0
        );
        drop((udp, unmarked, six));
        assert_eq!(count().await, 0);
    });
}

#[test]
fn every_namespace_has_its_cookie() {
    let cookie = || in_namespace(|| async { netns_cookie().expect("a cookie") });
    let (one, other) = (cookie(), cookie());
    assert_ne!(one, 0);
    assert_ne!(one, other);
}

/// What others do to a host, as `ip` commands; some fail, as they do in life.
fn command() -> impl Strategy<Value = String> {
    let link = prop::sample::select(vec!["aa0", "bb0", "aa0p", "bb0p"]);
    let number = 1..4_u8;
    let table = prop::sample::select(vec!["254", "77", "8301"]);
    let verb = prop::sample::select(vec!["add", "append", "replace", "del", "change"]);
    let toggle = prop::sample::select(vec!["add", "del"]);
    prop_oneof![
        3 => (link.clone(), prop::sample::select(vec![
            "up", "down", "master br0", "nomaster", "mtu 1200", "mtu 1500", "mtu 1400",
            "name zz0", "addrgenmode none",
        ])).prop_map(|(link, what)| format!("link set {link} {what}")),
        1 => Just("link set zz0 name aa0".to_owned()),
        1 => prop::sample::select(vec!["aa0", "bb0"]).prop_map(|link| format!("link del {link}")),
        2 => prop::sample::select(vec!["aa0", "bb0"])
            .prop_map(|link| format!("link add name {link} type veth peer name {link}p")),
        3 => (toggle.clone(), number.clone(), number.clone(), prop::sample::select(vec![16, 24]), link.clone())
            .prop_map(|(verb, a, b, len, link)| format!("addr {verb} 10.{a}.0.{b}/{len} dev {link}")),
        3 => (toggle.clone(), number.clone(), number.clone(), link.clone())
            .prop_map(|(verb, a, b, link)| format!("addr {verb} fd00:{a}::{b}/64 dev {link} nodad")),
        4 => (verb.clone(), number.clone(), number.clone(), table.clone(), any::<bool>(), number.clone())
            .prop_map(|(verb, a, b, table, source, metric)| {
                let source = if source { format!("src 10.{a}.0.{b}") } else { String::new() };
                format!("route {verb} default via 10.{a}.0.9{b} table {table} metric {metric} {source}")
            }),
        3 => (verb.clone(), number.clone(), number.clone(), table.clone(), number.clone())
            .prop_map(|(verb, a, b, table, metric)| {
                format!("-6 route {verb} default via fd00:{a}::9{b} table {table} metric {metric}")
            }),
        2 => (verb.clone(), link.clone(), table.clone())
            .prop_map(|(verb, link, table)| format!("route {verb} 192.0.2.0/24 dev {link} table {table}")),
        1 => (verb.clone(), number.clone(), table.clone())
            .prop_map(|(verb, a, table)| format!("route {verb} unreachable default metric {a} table {table}")),
        1 => (verb.clone(), number.clone(), number.clone()).prop_map(|(verb, a, b)| format!(
            "route {verb} 198.51.100.0/24 nexthop via 10.{a}.0.91 nexthop via 10.{b}.0.92"
        )),
        1 => (verb.clone(), number.clone(), number.clone()).prop_map(|(verb, a, b)| format!(
            "-6 route {verb} 2001:db8::/64 nexthop via fd00:{a}::91 nexthop via fd00:{b}::92"
        )),
        1 => (verb, number.clone(), link.clone())
            .prop_map(|(verb, a, link)| format!("nexthop {verb} id 5 via 10.{a}.0.9 dev {link}")),
        1 => toggle.clone().prop_map(|verb| format!("route {verb} 203.0.113.0/24 nhid 5")),
        2 => (toggle.clone(), number.clone(), table.clone())
            .prop_map(|(verb, a, table)| format!("rule {verb} pref 10{a} fwmark {a} table {table}")),
        1 => (toggle, number, link, table)
            .prop_map(|(verb, a, link, table)| format!("-6 rule {verb} pref 10{a} iif {link} table {table}")),
        1 => Just("rule flush".to_owned()),
        1 => Just("route flush table 77".to_owned()),
    ]
}

#[test]
fn whatever_others_do_the_copy_is_what_a_fresh_dump_says() {
    let sequences = prop::collection::vec((command(), any::<bool>()), 1..40);
    let mut runner = TestRunner::new(Config {
        cases: 32,
        failure_persistence: None,
        max_shrink_iters: 40,
        ..Config::default()
    });
    runner
        .run(&sequences, |commands| {
            in_namespace(move || async move {
                uplink("aa0", 1);
                uplink("bb0", 2);
                ip("link add name br0 type bridge");
                let mut mirror = Mirror::open().await;
                for (command, read) in commands {
                    try_ip(&command);
                    if read {
                        mirror.read(Duration::from_millis(1)).await;
                    }
                }
                mirror.agrees().await?;
                prop_assert_eq!(mirror.dumps, 1);
                Ok(())
            })
        })
        .expect("the copy is exact");
}
