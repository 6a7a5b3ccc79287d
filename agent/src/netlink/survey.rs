//! A single look at links, addresses, routes and rules, and at what this kernel can have of them.

use std::collections::BTreeSet;
use std::net::IpAddr;

use ipnet::IpNet;
use steer_core::ids::TableId;
use steer_core::network::{Network, NetworkChange};
use steer_core::plan::{Family, IfName, Rule, RuleAction, TableRoute};

use super::connection::Connection;
use super::sockets;
use super::watcher::{Notification, Watcher};
use super::{Error, OwnRange, Routing};

/// The host's networking at one moment.
#[derive(Clone, Debug, Default)]
pub struct Survey {
    /// What is not of the agent's protocol number.
    pub network: Network,
    /// Rules of the agent's protocol number, wherever they are.
    pub rules: Vec<Rule>,
    /// Routes of the agent's protocol number, wherever they are.
    pub routes: Vec<TableRoute>,
}

/// Reads everything once, on the calling thread, in its network namespace. Needs no privilege.
///
/// # Errors
/// A socket or a dump failed.
pub async fn survey() -> Result<Survey, Error> {
    // A rule that bears the protocol number counts as the agent's wherever it is. Tables do not tell whose
    // a route is.
    let range = OwnRange {
        priorities: 0..=u32::MAX,
        #[expect(clippy::reversed_empty_ranges, reason = "no table at all")]
        tables: 1..=0,
    };
    let mut watcher = Watcher::open(range).await?;
    let mut network = Network::default();
    for notification in watcher.next().await? {
        if let Notification::Network(NetworkChange::Dump(dump)) = notification {
            network = dump;
        }
    }
    let mut routing = Routing::open().await?;
    let rules = routing.rules().await?.into_iter().collect();
    let routes: Vec<TableRoute> = routing.routes().await?.into_iter().collect();
    let own: BTreeSet<_> = routes
        .iter()
        .map(|route| {
            (
                route.table,
                route.destination,
                route.metric,
                route.interface,
            )
        })
        .collect();
    network.routes.retain(|route| {
        !own.contains(&(
            route.table,
            route.destination,
            route.metric,
            route.interface,
        ))
    });
    Ok(Survey {
        network,
        rules,
        routes,
    })
}

/// What the kernel refuses of the rules that the agent makes, a line each.
///
/// Adds rules: to be called in a network namespace that nobody else uses.
///
/// # Errors
/// No socket.
pub async fn refused_rules() -> Result<Vec<String>, Error> {
    let mut routing = Routing::open().await?;
    let mut refused = Vec::new();
    for family in Family::BOTH {
        for rule in samples(family) {
            if let Err(error) = routing.add_rule(&rule).await {
                let (Error::AddRule { source: cause, .. } | Error::Read { source: cause, .. }) =
                    error
                else {
                    return Err(error);
                };
                if family == Family::Ipv6
                    && matches!(cause.errno(), libc::EAFNOSUPPORT | libc::EOPNOTSUPP)
                {
                    // Without IPv6 there is nothing to steer.
                    break;
                }
                refused.push(format!("{rule:?}: {cause}"));
            }
        }
    }
    Ok(refused)
}

/// One rule of every shape that the agent makes.
fn samples(family: Family) -> Vec<Rule> {
    let address: IpAddr = match family {
        Family::Ipv4 => [192, 0, 2, 1].into(),
        Family::Ipv6 => [0x2001, 0xdb8, 0, 0, 0, 0, 0, 1].into(),
    };
    let lookup = |suppress_prefix_len| RuleAction::Lookup {
        table: TableId(40_001),
        suppress_prefix_len,
    };
    let plain = Rule {
        family,
        priority: 4000,
        from: None,
        to: None,
        fwmark: None,
        oif: None,
        protocol: None,
        udp_ports: None,
        action: RuleAction::Nop,
    };
    let from = Some(IpNet::from(address));
    vec![
        Rule {
            fwmark: Some((0, 0x7700_0000)),
            action: RuleAction::Goto(4500),
            ..plain
        },
        Rule {
            priority: 4010,
            udp_ports: Some((68, 67)),
            action: lookup(None),
            ..plain
        },
        Rule {
            priority: 4021,
            from,
            protocol: Some(6),
            action: RuleAction::Unreachable,
            ..plain
        },
        Rule {
            priority: 4030,
            fwmark: Some((0x0100_0000, 0x7700_0000)),
            action: lookup(None),
            ..plain
        },
        Rule {
            priority: 4035,
            oif: IfName::new("lo"),
            action: RuleAction::Goto(4500),
            ..plain
        },
        Rule {
            priority: 4500,
            ..plain
        },
        Rule {
            priority: 4510,
            from,
            action: lookup(Some(0)),
            ..plain
        },
    ]
}

/// Whether the kernel closes sockets on request (`CONFIG_INET_DIAG_DESTROY`). Asks for one that is not
/// there: to be called in a network namespace that nobody else uses.
///
/// # Errors
/// The kernel refuses for another reason.
pub async fn closes_sockets() -> Result<bool, Error> {
    let mut connection = Connection::open(libc::NETLINK_SOCK_DIAG).map_err(Error::Open)?;
    match connection.change(sockets::destroy_nothing()).await {
        Ok(()) => Ok(true),
        Err(refusal) if refusal.errno() == libc::ENOENT => Ok(true),
        Err(refusal) if refusal.errno() == libc::EOPNOTSUPP => Ok(false),
        Err(source) => Err(Error::Read {
            what: "answer to closing a socket",
            source,
        }),
    }
}
