//! What the kernel programs make of a flow, by its cgroup's entry and what rules look at: the same
//! questions in the same order as the programs `connect` and `sendmsg` ask them, and then the guard.

use std::net::IpAddr;

use ipnet::IpNet;
use steer_common::{
    CgroupEntry, ChoiceEntry, DomainEntry, DomainSet, cgroup_flags, domain_flags, policy_flags,
    share, share_slot, verdict,
};

use crate::ids::{ChoiceId, DomainIndex, IfIndex, PolicyId, RulesetId};
use crate::plan::{Family, Local, Plan};
use crate::rules::Flow;

/// Who decides about a flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Owner {
    /// Its flows leave by its domains or not at all.
    pub strict: bool,
    /// Destinations on-link at another interface are left to the host's routing.
    pub passes_locals: bool,
    /// The agent has not decided: everything is refused.
    pub closed: bool,
    /// The family that datagram sockets are to connect to, on domains that have both.
    pub prefers: Option<Family>,
    /// What was chosen for what no rule fits.
    pub choice: ChoiceId,
    /// Its rules, which come before that; 0: none.
    pub rules: RulesetId,
    /// What is chosen for the one flow that is asked about, where the plan has no entry yet.
    pub made: Option<Chosen>,
}

/// What was chosen for a flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Chosen {
    /// The choice; 0: none.
    pub id: ChoiceId,
    /// Its entry, with the domain of this very flow.
    pub choice: ChoiceEntry,
    /// The domains, of which each flow has one by itself: several only with [`share::FLOW`].
    pub members: DomainSet,
    /// The rule of the compiled set that fits, from 0; none: no rule does.
    pub rule: Option<usize>,
    /// The rule names destinations, so it holds for those at other interfaces too.
    pub names_destination: bool,
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
    /// Put on one of these domains, which share flows one by one.
    Shared(DomainSet),
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
    /// The domain has both families, and the policy prefers this one for datagram sockets that connect.
    Prefers(Family),
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
                prefers: None,
                choice: ChoiceId(0),
                rules: RulesetId(0),
                made: None,
            });
        }
        let policy = plan.policies.get(&PolicyId(entry.policy))?;
        let strict = policy.flags & policy_flags::STRICT != 0;
        let choice = ChoiceId(policy.choice);
        if !plan.choices.contains_key(&choice) && !strict {
            return None;
        }
        Some(Self {
            strict,
            passes_locals: policy.flags & policy_flags::LOCAL_PASS != 0,
            closed: false,
            prefers: if policy.flags & policy_flags::PREFER_IPV4 != 0 {
                Some(Family::Ipv4)
            } else {
                (policy.flags & policy_flags::PREFER_IPV6 != 0).then_some(Family::Ipv6)
            },
            choice,
            rules: RulesetId(policy.rules),
            made: None,
        })
    }

    /// What was chosen for a flow: by the first rule that fits, or for what none fits.
    pub fn choose(&self, plan: &Plan, flow: &Flow) -> Chosen {
        if let Some(made) = self.made {
            return made;
        }
        let mut id = self.choice;
        let (mut rule, mut names_destination) = (None, false);
        if let Some(set) = plan.rulesets.get(&self.rules) {
            let found = set.find(flow);
            id = ChoiceId(found.choice);
            (rule, names_destination) = (found.rule, found.names_destination);
        }
        // A strict policy never passes.
        let mut choice = plan
            .choices
            .get(&id)
            .copied()
            .filter(|choice| !self.strict || choice.verdict != verdict::PASS)
            .unwrap_or(if self.strict { BLOCKED } else { PASSED });
        let mut members = DomainSet::default();
        if choice.verdict == verdict::STEER {
            let family = flow.destination.to_canonical().is_ipv4();
            let slots = plan.shares.get(&id).map(|slots| slots.slots(family));
            match slots.filter(|_| choice.share != share::NONE) {
                Some(slots) if choice.share == share::FLOW => {
                    slots
                        .iter()
                        .for_each(|index| members.insert(u16::from(*index)));
                }
                slots => {
                    if let Some(slots) = slots {
                        choice.domain = slots[slot(flow.destination)].into();
                    }
                    u16::try_from(choice.domain)
                        .iter()
                        .for_each(|index| members.insert(*index));
                }
            }
        }
        Chosen {
            id,
            choice,
            members,
            rule,
            names_destination,
        }
    }
}

/// The slot of a destination that all flows to it have.
pub(crate) fn slot(destination: IpAddr) -> usize {
    let bytes = match destination {
        IpAddr::V4(ip) => ip.to_ipv6_mapped().octets(),
        IpAddr::V6(ip) => ip.octets(),
    };
    let word = |at: usize| {
        let [a, b, c, d] = [0, 1, 2, 3].map(|byte| bytes[at * 4 + byte]);
        u32::from_ne_bytes([a, b, c, d])
    };
    share_slot(&[word(0), word(1), word(2), word(3)], 0)
}

impl Chosen {
    /// Its domains, in the order of their indices.
    pub fn domains(&self) -> impl Iterator<Item = DomainIndex> + use<> {
        members(self.members)
    }
}

/// The domains of a set, in the order of their indices.
pub fn members(set: DomainSet) -> impl Iterator<Item = DomainIndex> {
    let indices = 1..u16::try_from(steer_common::MAX_DOMAINS).unwrap_or(u16::MAX);
    indices
        .filter(move |index| set.contains(*index))
        .map(DomainIndex)
}

const BLOCKED: ChoiceEntry = ChoiceEntry {
    verdict: verdict::BLOCK,
    domain: 0,
    share: 0,
};

const PASSED: ChoiceEntry = ChoiceEntry {
    verdict: verdict::PASS,
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

/// What becomes of a flow from a socket that is bound to nothing.
pub fn fate(plan: &Plan, owner: Option<&Owner>, flow: &Flow) -> Fate {
    let flow = &flow.canonical();
    let destination = flow.destination;
    let Some(owner) = owner else {
        return Fate::Pass(Pass::NoPolicy);
    };
    if let Some(never) = Never::of(destination) {
        return Fate::Never(never);
    }
    let chosen = owner.choose(plan, flow);
    if let Some((prefix, local)) = local(plan, destination) {
        if local.host {
            return Fate::Never(Never::Host);
        }
        if owner.passes_locals && !chosen.names_destination && !near(&chosen, local) {
            return Fate::Local(prefix);
        }
    }
    let choice = chosen.choice;
    match choice.verdict {
        verdict::PASS => Fate::Pass(Pass::Policy),
        verdict::STEER if choice.share == share::FLOW && chosen.domains().nth(1).is_some() => {
            Fate::Shared(chosen.members)
        }
        verdict::STEER => match chosen.domains().next() {
            Some(index) => on(plan, index, destination),
            None => Fate::Refuse(Refuse::Blocked),
        },
        _ if owner.closed => Fate::Refuse(Refuse::Closed),
        _ => Fate::Refuse(Refuse::Blocked),
    }
}

/// Protocols whose sockets are datagram sockets: ICMP, UDP, ICMPv6 and UDP-Lite.
const DATAGRAMS: [u8; 4] = [1, 17, 58, 136];
/// Port of DNS.
const DNS: u16 = 53;

/// What becomes of a flow from a socket that is bound to nothing and connects: as [`fate`], but that datagrams go to
/// the family that the policy prefers.
pub fn fate_of_connect(plan: &Plan, owner: Option<&Owner>, flow: &Flow) -> Fate {
    let fate = fate(plan, owner, flow);
    let to = Family::of(flow.destination.to_canonical());
    let prefers = owner.and_then(|owner| owner.prefers);
    let Some(prefers) = prefers.filter(|family| *family != to) else {
        return fate;
    };
    let has = |index: DomainIndex| {
        let domain = plan.domains.get(&index);
        domain.is_some_and(|domain| serves(domain, prefers))
    };
    let has_it = match fate {
        Fate::Steer(index) => has(index),
        Fate::Shared(set) => members(set).all(has),
        _ => false,
    };
    if has_it && DATAGRAMS.contains(&flow.protocol) && flow.port != DNS {
        return Fate::Refuse(Refuse::Prefers(prefers));
    }
    fate
}

/// What becomes of a flow that is to be put on a domain.
fn on(plan: &Plan, index: DomainIndex, destination: IpAddr) -> Fate {
    let domain = plan.domains.get(&index);
    match domain.filter(|domain| domain.ifindex != 0) {
        None => Fate::Refuse(Refuse::DomainGone(index)),
        Some(domain) if !serves(domain, Family::of(destination)) => {
            Fate::Refuse(Refuse::Family(index))
        }
        Some(_) => Fate::Steer(index),
    }
}

/// Whether a prefix is on the link of a domain that was chosen.
fn near(chosen: &Chosen, local: &Local) -> bool {
    let mut domains = chosen.domains();
    domains.any(|index| local.domains.contains(index.0))
}

/// Whether the guard lets a packet of the owner's flow leave by an interface other than loopback, with
/// the flow's source, if it has one yet.
pub fn guard_lets(plan: &Plan, owner: &Owner, flow: &Flow, interface: IfIndex) -> bool {
    if !owner.strict || !plan.guards.contains(&interface) {
        return true;
    }
    let flow = &flow.canonical();
    let destination = flow.destination;
    let chosen = owner.choose(plan, flow);
    let here = |index: &DomainIndex| {
        let domain = plan.domains.get(index);
        domain.is_some_and(|domain| domain.ifindex == interface.0)
    };
    let mut here = chosen.domains().filter(here).peekable();
    if here.peek().is_some() {
        return flow.source.is_none_or(|source| {
            source.is_unspecified()
                || source.is_ipv6() && Never::of(source) == Some(Never::LinkLocal)
                || here.any(|index| plan.sources.contains(&(index, source)))
        });
    }
    let local = local(plan, destination);
    owner.passes_locals
        && !chosen.names_destination
        && local.is_some_and(|(_, local)| !near(&chosen, local))
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
