//! What happens to a flow and why, in the order in which the kernel decides it: the cgroup's entry
//! ([`held`]), the socket programs ([`flow`]), the rules and tables ([`path`]); and where the kernel
//! does not do what the plan says ([`compare`]).
//!
//! All of it is computed from the plan and the state, so that it can be compared with what the kernel
//! itself answers.

pub mod compare;
pub mod flow;
pub mod held;
pub mod path;
mod rule;
pub mod words;

use steer_common::{CgroupEntry, ChoiceEntry, DomainSet, cgroup_flags, share, verdict};

use self::flow::{Chosen, Fate, Owner, fate_of_connect, slot};
use crate::engine::ranking::Ranking;
use crate::engine::{Engine, FlowDecision};
use crate::ids::{CgroupId, ChoiceId, RulesetId};
use crate::policy::{LocalNetworks, Share};
use crate::rules::Flow;
use crate::select::{Decision, Verdict};
use crate::share::{Member, slots};

/// Everything about a cgroup that does not depend on a destination.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Explanation {
    /// Its path as in `/proc/PID/cgroup` without the leading slash; empty for the root.
    pub path: String,
    /// Its id; `None`: there is no such cgroup now, and this is what it would get.
    pub id: Option<CgroupId>,
    /// Whether policies hold there.
    pub reach: Reach,
    /// Which do. Empty where none can.
    pub ranking: Ranking,
}

/// Whether policies hold at a cgroup.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reach {
    /// They do.
    Managed,
    /// No policy does anything but pass.
    NoPolicies,
    /// It is not below the managed root, which is at this path.
    Outside(String),
    /// It is the agent's own.
    Exempt,
    /// It is the root of the tree, whose sockets are the kernel's own: only what is below it can have a
    /// policy.
    Root,
    /// It is closed: the agent could not give it a policy.
    Closed(Closed),
}

/// Why a cgroup is closed for good.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Closed {
    /// Patterns do not reach that deep, and strict ones could be meant.
    TooDeep,
    /// No number was left for its strict policy.
    NoNumber,
}

impl Engine {
    /// Explains the cgroup at `path`, whether it exists or not.
    pub fn explain(&self, path: &str) -> Explanation {
        let state = self.state();
        let path = path.trim_matches('/');
        let id = state.cgroups.find(path);
        let reach = self.reach(path, id);
        let none = Ranking {
            contenders: Vec::new(),
            chain: Vec::new(),
            decision: None,
        };
        Explanation {
            path: path.to_owned(),
            id,
            ranking: match reach {
                Reach::Managed | Reach::Root | Reach::Closed(_) => self.ranking(path),
                Reach::NoPolicies | Reach::Outside(_) | Reach::Exempt => none,
            },
            reach,
        }
    }

    fn reach(&self, path: &str, id: Option<CgroupId>) -> Reach {
        let state = self.state();
        let root = state.cgroups.path(state.cgroup_root).unwrap_or_default();
        let rest = path.strip_prefix(&root);
        let below = rest.is_some_and(|rest| rest.is_empty() || rest.starts_with('/'));
        if !root.is_empty() && !below {
            return Reach::Outside(root);
        }
        if !self.acts() {
            return Reach::NoPolicies;
        }
        let Some(id) = id else { return Reach::Managed };
        if state.exempt.contains(&id) {
            return Reach::Exempt;
        }
        if id == state.cgroups.root() {
            return Reach::Root;
        }
        match self.plan().cgroups.get(&id) {
            Some(entry) if entry.flags & cgroup_flags::UNDECIDED == 0 => Reach::Managed,
            None => Reach::Managed,
            Some(_) if path.split('/').count() > 64 => Reach::Closed(Closed::TooDeep),
            Some(_) => Reach::Closed(Closed::NoNumber),
        }
    }
}

impl Explanation {
    /// The entry that the cgroup should have.
    pub fn entry(&self, engine: &Engine) -> Option<CgroupEntry> {
        engine.plan().cgroups.get(&self.id?).copied()
    }

    /// Whether its flows leave by its policy's domains or not at all, as the kernel programs see it.
    pub fn is_strict(&self, engine: &Engine) -> bool {
        match self.id {
            Some(_) => Owner::of(engine.plan(), self.entry(engine).as_ref())
                .is_some_and(|owner| owner.strict),
            None => {
                let mut chain = self.ranking.chain.iter();
                chain.any(|name| {
                    let policy = engine.state().policy(name.as_str());
                    policy.is_some_and(|policy| policy.strict)
                })
            }
        }
    }

    /// What is decided for a flow, and by which rules; `None`: no policy holds.
    pub fn decision(&self, engine: &Engine, flow: &Flow) -> Option<FlowDecision> {
        self.ranking.decision.as_ref()?;
        Some(engine.decide_flow(&self.ranking.chain, flow))
    }

    /// What becomes of a flow from a socket that is bound to nothing and connects.
    pub fn fate(&self, engine: &Engine, flow: &Flow) -> Fate {
        fate_of_connect(engine.plan(), self.owner(engine, flow).as_ref(), flow)
    }

    /// Who decides about a flow of its, as the kernel programs see it; `None`: nobody.
    pub fn owner(&self, engine: &Engine, flow: &Flow) -> Option<Owner> {
        match self.id {
            Some(_) => Owner::of(engine.plan(), self.entry(engine).as_ref()),
            None => self.owner_when_made(engine, flow),
        }
    }

    /// Who will decide about a flow of a cgroup that does not exist yet.
    fn owner_when_made(&self, engine: &Engine, flow: &Flow) -> Option<Owner> {
        let FlowDecision { rules, decision } = self.decision(engine, flow)?;
        let state = engine.state();
        let policies = || {
            self.ranking
                .chain
                .iter()
                .filter_map(|name| state.policy(name.as_str()))
        };
        let names_destination = rules.iter().any(|at| {
            let policy = state.policy(at.policy.as_str());
            let rule = policy.and_then(|policy| policy.rules.get(at.number - 1));
            rule.is_some_and(|rule| !rule.destination.is_empty())
        });
        Some(Owner {
            strict: policies().any(|policy| policy.strict),
            passes_locals: policies().all(|policy| policy.local_networks == LocalNetworks::Pass),
            closed: false,
            prefers: policies().find_map(|policy| policy.prefer_family),
            choice: ChoiceId(0),
            rules: RulesetId(0),
            made: Some(chosen(engine, &decision, flow, names_destination)),
        })
    }
}

/// What the kernel would have for a decision.
fn chosen(engine: &Engine, decision: &Decision, flow: &Flow, names_destination: bool) -> Chosen {
    let indices = &engine.state().memory.indices;
    let mut set = DomainSet::default();
    let mut choice = ChoiceEntry {
        verdict: match decision.verdict {
            Verdict::Steer(_) => verdict::STEER,
            Verdict::Block => verdict::BLOCK,
            Verdict::Pass => verdict::PASS,
        },
        ..ChoiceEntry::default()
    };
    let members: Vec<Member> = decision
        .members
        .iter()
        .filter_map(|(domain, weight)| {
            Some(Member {
                domain: domain.clone(),
                weight: *weight,
                index: *indices.get(domain)?,
                families: engine.families(domain),
            })
        })
        .collect();
    if decision.share == Some(Share::Flow) {
        choice.share = share::FLOW;
        members.iter().for_each(|member| set.insert(member.index.0));
    } else {
        let alone = decision.domain().and_then(|name| indices.get(name));
        choice.domain = alone.map_or(0, |index| u32::from(index.0));
        if decision.share.is_some() {
            choice.share = share::DESTINATION;
            let destination = flow.destination.to_canonical();
            let slots = slots(&members);
            choice.domain = slots.slots(destination.is_ipv4())[slot(destination)].into();
        }
        u16::try_from(choice.domain)
            .iter()
            .for_each(|index| set.insert(*index));
    }
    Chosen {
        id: ChoiceId(0),
        choice,
        members: set,
        rule: None,
        names_destination,
    }
}
