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

use steer_common::{CgroupEntry, ChoiceEntry, cgroup_flags, verdict};

use self::flow::Owner;
use crate::engine::Engine;
use crate::engine::ranking::Ranking;
use crate::ids::CgroupId;
use crate::policy::LocalNetworks;
use crate::select::Verdict;

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

    /// Who decides about its flows, as the kernel programs see it; `None`: nobody.
    pub fn owner(&self, engine: &Engine) -> Option<Owner> {
        match self.id {
            Some(_) => Owner::of(engine.plan(), self.entry(engine).as_ref()),
            None => self.owner_when_made(engine),
        }
    }

    /// Who will decide about the flows of a cgroup that does not exist yet.
    fn owner_when_made(&self, engine: &Engine) -> Option<Owner> {
        let decision = self.ranking.decision.as_ref()?;
        let state = engine.state();
        let policies = || {
            self.ranking
                .chain
                .iter()
                .filter_map(|name| state.policy(name.as_str()))
        };
        let index = decision
            .domain()
            .and_then(|name| state.memory.indices.get(name));
        Some(Owner {
            strict: policies().any(|policy| policy.strict),
            passes_locals: policies().all(|policy| policy.local_networks == LocalNetworks::Pass),
            closed: false,
            choice: ChoiceEntry {
                verdict: match decision.verdict {
                    Verdict::Steer(_) => verdict::STEER,
                    Verdict::Block => verdict::BLOCK,
                    Verdict::Pass => verdict::PASS,
                },
                domain: index.map_or(0, |index| u32::from(index.0)),
                share: 0,
            },
        })
    }
}
