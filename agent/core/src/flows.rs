//! Where a live flow is, and where it should be: the guard's question, asked of a socket in place of a
//! packet.

use std::net::IpAddr;

use steer_common::{FlowState, MarkMask, flow_flags, policy_flags};

use crate::explain::flow::{Fate, Never, Owner, fate, members};
use crate::ids::{CgroupId, DomainIndex, IfIndex, PolicyId};
use crate::plan::Plan;
use crate::rules::Flow;

/// What is known of a flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Seen {
    /// What its socket remembers.
    pub state: Option<FlowState>,
    /// The cgroup that made the socket.
    pub cgroup: CgroupId,
    /// The socket's mark.
    pub mark: u32,
    /// Its own address, if it has one.
    pub source: Option<IpAddr>,
    /// The source of what it sent last, as far as that was seen.
    pub sent_from: Option<IpAddr>,
    /// Its peer's, if it has one.
    pub destination: Option<IpAddr>,
    /// `IPPROTO_*`.
    pub protocol: u8,
    /// Its own port.
    pub source_port: u16,
    /// Its peer's; 0: none.
    pub port: u16,
    /// The peer asked.
    pub accepted: bool,
    /// It is made of datagrams, which can be repaired at any time.
    pub datagrams: bool,
    /// Its socket has no peer: each datagram is put on its domain by itself.
    pub unconnected: bool,
    /// The interface that it left by last, as far as that was seen.
    pub left_by: Option<IfIndex>,
}

/// Where a flow is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    /// The kernel policy whose it is.
    pub policy: Option<PolicyId>,
    /// Where that has it.
    pub at: At,
}

/// Where a flow is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum At {
    /// On the domain.
    Domain(DomainIndex),
    /// Left to the host's routing.
    Host,
    /// Not where it should be.
    Wrong(Wrong),
}

/// What is wrong with a flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wrong {
    /// It leaves by another interface than its domain's.
    Interface {
        /// Its domain.
        domain: DomainIndex,
        /// The one that it leaves by.
        leaves_by: IfIndex,
    },
    /// Its source is not its domain's.
    Source {
        /// Its domain.
        domain: DomainIndex,
        /// The source.
        source: IpAddr,
    },
    /// Its policy is strict, and no domain is chosen for it.
    NoDomain,
}

impl Wrong {
    /// The domain that it should leave by.
    pub fn domain(&self) -> Option<DomainIndex> {
        match self {
            Self::Interface { domain, .. } | Self::Source { domain, .. } => Some(*domain),
            Self::NoDomain => None,
        }
    }
}

/// Where a flow is, by the plan and what is known of it.
pub fn place(plan: &Plan, mask: MarkMask, seen: &Seen) -> Place {
    let Some((policy, owner)) = owner(plan, seen) else {
        // A policy that is gone leaves its flows where they are.
        let at = marked(plan, mask, seen).map_or(At::Host, At::Domain);
        return Place { policy: None, at };
    };
    Place {
        policy,
        at: at(plan, mask, seen, &owner),
    }
}

/// Whose it is, as the guard asks: what its socket remembers, else its cgroup.
fn owner(plan: &Plan, seen: &Seen) -> Option<(Option<PolicyId>, Owner)> {
    let of_policy = |number: u32| {
        let entry = steer_common::CgroupEntry {
            policy: number,
            ..Default::default()
        };
        let owner = Owner::of(plan, Some(&entry))?;
        Some((Some(PolicyId(number)), owner))
    };
    if let Some(state) = seen.state {
        if state.flags & flow_flags::FOREIGN != 0 {
            return None;
        }
        if state.flags & flow_flags::DECIDED != 0 {
            return of_policy(state.policy);
        }
        if state.creator != 0 {
            return of_policy(state.creator);
        }
    }
    let entry = plan.cgroups.get(&seen.cgroup)?;
    let owner = Owner::of(plan, Some(entry))?;
    let policy = (entry.policy != 0).then_some(PolicyId(entry.policy));
    Some((policy, owner))
}

/// The domain whose mark the socket bears, if its flow was put there by that.
fn marked(plan: &Plan, mask: MarkMask, seen: &Seen) -> Option<DomainIndex> {
    let index = DomainIndex(mask.decode(seen.mark));
    let bears = plan.domains.get(&index)?.mark == seen.mark & mask.bits();
    (bears && index.0 != 0 && !seen.accepted).then_some(index)
}

fn at(plan: &Plan, mask: MarkMask, seen: &Seen, owner: &Owner) -> At {
    if seen.accepted && !owner.strict {
        // It answers by the way it was asked.
        return by_source(plan, seen);
    }
    let decided = seen
        .state
        .filter(|state| state.flags & flow_flags::DECIDED != 0);
    let decided = decided.map(|state| u16::try_from(state.domain).unwrap_or_default());
    let should = match decided {
        Some(index) if index != 0 => DomainIndex(index),
        // It was left to the host, or goes by a source that the application chose.
        Some(_) if !owner.strict => return by_source(plan, seen),
        _ => match (marked(plan, mask, seen), seen.destination) {
            // The mark of an unconnected socket is what the policy chose for what no rule fits, when the
            // socket was made.
            (Some(index), Some(to)) if !seen.unconnected && Never::of(to).is_none() => index,
            (marked, None) => match marked {
                Some(index) => index,
                None => return At::Host,
            },
            (_, Some(to)) => match fate(plan, Some(owner), &asked(seen, to)) {
                Fate::Steer(index) => index,
                // Which of them is nowhere written.
                Fate::Shared(set) => {
                    let here = |one: &DomainIndex| wrong(plan, seen, *one).is_none();
                    match members(set).find(here).or_else(|| members(set).next()) {
                        Some(index) => index,
                        None => return At::Host,
                    }
                }
                Fate::Never(_) | Fate::Local(_) | Fate::Pass(_) => return At::Host,
                Fate::Refuse(_) if owner.strict => return At::Wrong(Wrong::NoDomain),
                Fate::Refuse(_) => return by_source(plan, seen),
            },
        },
    };
    match wrong(plan, seen, should) {
        None => At::Domain(should),
        // Who bound an address goes by that.
        Some(_) if !owner.strict && app_bound(seen) => by_source(plan, seen),
        // What it sends is on its way to the right interface, with the right source.
        Some(_) if repairs(plan, seen) => At::Domain(should),
        Some(wrong) => At::Wrong(wrong),
    }
}

/// What rules look at, as it most likely was when the flow began. Of an unconnected socket a datagram is the
/// flow: whatever the socket has was there before.
fn asked(seen: &Seen, destination: IpAddr) -> Flow {
    let flow = Flow {
        source: own_source(seen),
        destination,
        protocol: seen.protocol,
        source_port: seen.source_port,
        port: seen.port,
        dscp: 0,
    };
    if seen.unconnected {
        flow
    } else {
        when_it_began(flow, seen.accepted, seen.state.as_ref())
    }
}

/// What rules most likely saw of a flow when it began: its source and port were not chosen yet, unless the
/// application or the peer did.
pub(crate) fn when_it_began(flow: Flow, accepted: bool, memory: Option<&FlowState>) -> Flow {
    if accepted || memory.is_some_and(|memory| memory.flags & flow_flags::APP_BOUND != 0) {
        return flow;
    }
    Flow {
        source: None,
        source_port: 0,
        ..flow
    }
}

/// Whether the application bound an address.
fn app_bound(seen: &Seen) -> bool {
    let state = seen.state;
    seen.unconnected && own_source(seen).is_some()
        || state.is_some_and(|state| state.flags & flow_flags::APP_BOUND != 0)
}

fn own_source(seen: &Seen) -> Option<IpAddr> {
    seen.source.filter(|ip| !ip.is_unspecified())
}

/// The source of what it sends.
fn source(seen: &Seen) -> Option<IpAddr> {
    own_source(seen).or(seen.sent_from)
}

fn repairs(plan: &Plan, seen: &Seen) -> bool {
    let policy = owner(plan, seen).and_then(|(policy, _)| plan.policies.get(&policy?));
    seen.datagrams && policy.is_some_and(|entry| entry.flags & policy_flags::REPAIR != 0)
}

/// Where a flow goes that goes by its source.
fn by_source(plan: &Plan, seen: &Seen) -> At {
    let mut domains = plan.domains.keys().copied().filter(|index| index.0 != 0);
    let has = |index: &DomainIndex| {
        let has = source(seen).is_some_and(|ip| plan.sources.contains(&(*index, ip)));
        has && wrong(plan, seen, *index).is_none()
    };
    domains.find(has).map_or(At::Host, At::Domain)
}

/// What is wrong with a flow that should be on a domain.
fn wrong(plan: &Plan, seen: &Seen, domain: DomainIndex) -> Option<Wrong> {
    let interface = plan.domains.get(&domain).map(|entry| entry.ifindex);
    if let Some(leaves_by) = seen.left_by
        && interface != Some(leaves_by.0)
    {
        return Some(Wrong::Interface { domain, leaves_by });
    }
    let source = source(seen)?;
    let own = source.is_ipv6() && Never::of(source) == Some(Never::LinkLocal)
        || plan.sources.contains(&(domain, source));
    (!own).then_some(Wrong::Source { domain, source })
}
