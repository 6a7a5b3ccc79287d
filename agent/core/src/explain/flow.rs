//! What the kernel programs make of a flow, by its cgroup's entry and its destination: the same
//! questions in the same order as the programs `connect` and `sendmsg` ask them, and then the guard.

use std::net::IpAddr;

use ipnet::IpNet;
use steer_common::{
    CgroupEntry, ChoiceEntry, DomainEntry, cgroup_flags, domain_flags, policy_flags, verdict,
};

use crate::ids::{ChoiceId, DomainIndex, IfIndex, PolicyId};
use crate::plan::{Family, Local, Plan};

/// Who decides about a flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Owner {
    /// Its flows leave by its domains or not at all.
    pub strict: bool,
    /// Destinations on-link at another interface are left to the host's routing.
    pub passes_locals: bool,
    /// The agent has not decided: everything is refused.
    pub closed: bool,
    /// What was chosen.
    pub choice: ChoiceEntry,
}

/// What becomes of a flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fate {
    /// Left alone, since the destination means this host or this link.
    Never(Never),
    /// Left to the host's routing, since the destination is in this prefix, which is on-link at another
    /// interface.
    Local(IpNet),
    /// Left to the host's routing.
    Pass(Pass),
    /// Put on the domain.
    Steer(DomainIndex),
    /// Refused at once with `ENETUNREACH`.
    Refuse(Refuse),
}

/// Destinations that no policy moves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Never {
    /// `0.0.0.0` or `::`.
    Unspecified,
    /// `127.0.0.0/8` or `::1`.
    Loopback,
    /// `169.254.0.0/16` or `fe80::/10`.
    LinkLocal,
    /// `224.0.0.0/4` or `ff00::/8`.
    Multicast,
    /// `255.255.255.255`.
    Broadcast,
    /// An address of the host.
    Host,
}

/// Why a flow is left to the host's routing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pass {
    /// No policy holds.
    NoPolicy,
    /// The policy says so.
    Policy,
}

/// Why a flow is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refuse {
    /// The cgroup is closed: the agent has not decided.
    Closed,
    /// No domain fits, or the policy blocks.
    Blocked,
    /// The domain's interface is gone.
    DomainGone(DomainIndex),
    /// The domain has no source or no route of the destination's family.
    Family(DomainIndex),
}

impl Owner {
    /// Who decides in a cgroup with this entry; `None`: nobody.
    pub fn of(plan: &Plan, entry: Option<&CgroupEntry>) -> Option<Self> {
        let entry = entry?;
        if entry.flags & (cgroup_flags::EXEMPT | cgroup_flags::INHERIT_ONLY) != 0 {
            return None;
        }
        if entry.flags & cgroup_flags::UNDECIDED != 0 {
            return Some(Self {
                strict: true,
                passes_locals: false,
                closed: true,
                choice: BLOCKED,
            });
        }
        let policy = plan.policies.get(&PolicyId(entry.policy))?;
        let strict = policy.flags & policy_flags::STRICT != 0;
        let choice = plan.choices.get(&ChoiceId(policy.choice)).copied();
        if choice.is_none() && !strict {
            return None;
        }
        Some(Self {
            strict,
            passes_locals: policy.flags & policy_flags::LOCAL_PASS != 0,
            closed: false,
            // A strict policy never passes.
            choice: choice
                .filter(|choice| !strict || choice.verdict != verdict::PASS)
                .unwrap_or(BLOCKED),
        })
    }

    /// The domain that its new sockets are marked for, which is that of the flows it steers.
    fn domain(&self) -> Option<DomainIndex> {
        (self.choice.verdict == verdict::STEER)
            .then(|| u16::try_from(self.choice.domain).ok().map(DomainIndex))?
    }
}

const BLOCKED: ChoiceEntry = ChoiceEntry {
    verdict: verdict::BLOCK,
    domain: 0,
    share: 0,
};

impl Never {
    /// Why `ip` is never steered, if it is not; the host's own addresses apart.
    pub fn of(ip: IpAddr) -> Option<Self> {
        let link_local = match ip {
            IpAddr::V4(ip) => ip.is_link_local(),
            IpAddr::V6(ip) => ip.is_unicast_link_local(),
        };
        let broadcast = matches!(ip, IpAddr::V4(ip) if ip.is_broadcast());
        [
            (ip.is_unspecified(), Self::Unspecified),
            (ip.is_loopback(), Self::Loopback),
            (link_local, Self::LinkLocal),
            (ip.is_multicast(), Self::Multicast),
            (broadcast, Self::Broadcast),
        ]
        .into_iter()
        .find_map(|(is, never)| is.then_some(never))
    }
}

/// What becomes of a flow to `destination` from a socket that is bound to nothing.
pub fn fate(plan: &Plan, owner: Option<&Owner>, destination: IpAddr) -> Fate {
    let destination = destination.to_canonical();
    let Some(owner) = owner else {
        return Fate::Pass(Pass::NoPolicy);
    };
    if let Some(never) = Never::of(destination) {
        return Fate::Never(never);
    }
    if let Some((prefix, local)) = local(plan, destination) {
        if local.host {
            return Fate::Never(Never::Host);
        }
        if owner.passes_locals && !contains(local, owner.choice.domain) {
            return Fate::Local(prefix);
        }
    }
    match (owner.choice.verdict, owner.domain()) {
        (verdict::PASS, _) => Fate::Pass(Pass::Policy),
        (verdict::STEER, Some(index)) => {
            let domain = plan
                .domains
                .get(&index)
                .filter(|domain| domain.ifindex != 0);
            match domain {
                None => Fate::Refuse(Refuse::DomainGone(index)),
                Some(domain) if !serves(domain, Family::of(destination)) => {
                    Fate::Refuse(Refuse::Family(index))
                }
                Some(_) => Fate::Steer(index),
            }
        }
        _ if owner.closed => Fate::Refuse(Refuse::Closed),
        _ => Fate::Refuse(Refuse::Blocked),
    }
}

/// Whether the guard lets a packet of the owner's flow leave by an interface other than loopback, with
/// this source.
pub fn guard_lets(
    plan: &Plan,
    owner: &Owner,
    interface: IfIndex,
    source: Option<IpAddr>,
    destination: IpAddr,
) -> bool {
    if !owner.strict || !plan.guards.contains(&interface) {
        return true;
    }
    let index = owner.domain();
    let domain = index.and_then(|index| Some((index, plan.domains.get(&index)?)));
    if let Some((index, domain)) = domain
        && domain.ifindex == interface.0
    {
        return source.is_none_or(|source| {
            source.is_unspecified()
                || source.is_ipv6() && Never::of(source) == Some(Never::LinkLocal)
                || plan.sources.contains(&(index, source))
        });
    }
    let index = index.map_or(0, |index| u32::from(index.0));
    owner.passes_locals
        && local(plan, destination.to_canonical()).is_some_and(|(_, local)| !contains(local, index))
}

/// Whether a domain has a source and a table for the family.
fn serves(domain: &DomainEntry, family: Family) -> bool {
    let flag = match family {
        Family::Ipv4 => domain_flags::IPV4,
        Family::Ipv6 => domain_flags::IPV6,
    };
    domain.flags & flag != 0
}

/// The longest prefix that holds an address.
fn local(plan: &Plan, ip: IpAddr) -> Option<(IpNet, &Local)> {
    let held = plan.locals.iter().filter(|(net, _)| net.contains(&ip));
    held.max_by_key(|(net, _)| net.prefix_len())
        .map(|(net, local)| (*net, local))
}

fn contains(local: &Local, domain: u32) -> bool {
    u16::try_from(domain).is_ok_and(|index| local.domains.contains(index))
}
