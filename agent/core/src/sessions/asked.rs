//! What a policy's rules say of a live flow, by all that the rules may have known of it when it began.

use steer_common::{DomainSet, rules::dimension, share};

use super::Flow;
use crate::explain::flow::{Fate, Owner, Pass, fate, members};
use crate::flows::when_it_began;
use crate::ids::DomainIndex;
use crate::plan::Plan;
use crate::rules;

/// What would become of a new flow like this one.
pub(super) struct Asked {
    /// What rules look at, as it most likely was when the flow began.
    pub(super) flow: rules::Flow,
    /// What becomes of that.
    pub(super) fate: Fate,
    /// The domain that a new one would get.
    pub(super) wanted: Option<DomainIndex>,
    /// It may be right where nobody steers it.
    pub(super) may_pass: bool,
    homes: DomainSet,
    members: DomainSet,
}

/// What rules look at, as it most likely was when the flow began.
pub(super) fn asked(flow: &Flow) -> rules::Flow {
    let now = rules::Flow {
        source: Some(flow.local.ip()),
        destination: flow.peer.ip(),
        protocol: flow.protocol,
        source_port: flow.local.port(),
        port: flow.peer.port(),
        dscp: 0,
    };
    when_it_began(now, flow.accepted, flow.memory.as_ref())
}

impl Asked {
    pub(super) fn new(plan: &Plan, owner: Option<&Owner>, flow: &Flow) -> Self {
        let first = asked(flow);
        let mut asked = Self {
            flow: first,
            fate: fate(plan, owner, &first),
            wanted: None,
            may_pass: false,
            homes: DomainSet::default(),
            members: DomainSet::default(),
        };
        asked.wanted = match asked.fate {
            Fate::Steer(index) => Some(index),
            Fate::Shared(set) => {
                let chosen = owner.map(|owner| owner.choose(plan, &first).choice.domain);
                let chosen = chosen.and_then(|index| u16::try_from(index).ok());
                chosen.map(DomainIndex).or_else(|| members(set).next())
            }
            Fate::Never(_) | Fate::Local(_) | Fate::Pass(_) | Fate::Refuse(_) => None,
        };
        if let Some(owner) = owner.filter(|owner| shares(plan, owner, &first)) {
            for index in homes(plan, owner, &first) {
                asked.members.insert(index.0);
            }
        }
        for like in all_like(plan, owner, flow, first) {
            match fate(plan, owner, &like) {
                Fate::Steer(_) | Fate::Shared(_) => {
                    let homes = owner.map(|owner| homes(plan, owner, &like));
                    homes.into_iter().flatten().for_each(|index| {
                        asked.homes.insert(index.0);
                    });
                }
                Fate::Pass(Pass::Policy) | Fate::Local(_) => asked.may_pass = true,
                Fate::Never(_) | Fate::Pass(Pass::NoPolicy) | Fate::Refuse(_) => {}
            }
        }
        asked
    }

    /// Whether a flow like this may have begun on a domain, as things are now.
    pub(super) fn is_home(&self, index: DomainIndex) -> bool {
        self.homes.contains(index.0)
    }

    /// Whether it is shared, and a domain is one of those that share it.
    pub(super) fn is_member(&self, index: DomainIndex) -> bool {
        self.members.contains(index.0)
    }

    /// The domains on which it may have begun, as things are now.
    pub(super) fn homes(&self) -> impl Iterator<Item = DomainIndex> + use<> {
        members(self.homes)
    }
}

/// Whether a flow is one that domains share.
fn shares(plan: &Plan, owner: &Owner, like: &rules::Flow) -> bool {
    let chosen = owner.choose(plan, like);
    chosen.choice.share != share::NONE && plan.shares.contains_key(&chosen.id)
}

/// The domains where a flow that is decided so may be: every member, where flows are shared.
fn homes(plan: &Plan, owner: &Owner, like: &rules::Flow) -> Vec<DomainIndex> {
    let chosen = owner.choose(plan, like);
    let slots = plan.shares.get(&chosen.id);
    match slots.filter(|_| chosen.choice.share != share::NONE) {
        Some(slots) => {
            let mut all = DomainSet::default();
            let family = like.destination.to_canonical().is_ipv4();
            slots
                .slots(family)
                .iter()
                .for_each(|index| all.insert(u16::from(*index)));
            members(all).collect()
        }
        None => chosen.domains().collect(),
    }
}

/// All that the rules may have seen when the flow began.
fn all_like(
    plan: &Plan,
    owner: Option<&Owner>,
    flow: &Flow,
    first: rules::Flow,
) -> Vec<rules::Flow> {
    let mut all = vec![first];
    let Some(set) = owner.and_then(|owner| plan.rulesets.get(&owner.rules)) else {
        return all;
    };
    if set.looks_at(dimension::SOURCE4) || set.looks_at(dimension::SOURCE6) {
        widen(&mut all, |like, wide| {
            wide.extend([None, Some(flow.local.ip())].map(|source| rules::Flow { source, ..like }));
        });
    }
    if set.looks_at(dimension::SOURCE_PORT) {
        widen(&mut all, |like, wide| {
            wide.extend([0, flow.local.port()].map(|source_port| rules::Flow {
                source_port,
                ..like
            }));
        });
    }
    let points = set.code_points();
    widen(&mut all, |like, wide| {
        wide.extend(points.iter().map(|dscp| rules::Flow {
            dscp: *dscp,
            ..like
        }));
    });
    all
}

fn widen(all: &mut Vec<rules::Flow>, each: impl Fn(rules::Flow, &mut Vec<rules::Flow>)) {
    let mut wide = Vec::new();
    for like in std::mem::take(all) {
        each(like, &mut wide);
    }
    *all = wide;
}
