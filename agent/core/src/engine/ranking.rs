//! Which policy holds at a cgroup and why that one: the order in which the index of policies decides,
//! told with its reasons.

use super::Engine;
use super::awaited::levels;
use super::index::{self, Contender as Found};
use crate::ids::CgroupId;
use crate::name::Name;
use crate::select::Decision;

/// What holds at a cgroup, and what would if it did not.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ranking {
    /// Every policy that matches the cgroup or one above it, in the order of precedence: the deepest
    /// first. One that matches at several levels is there for each.
    pub contenders: Vec<Contender>,
    /// The policy in force, then those that hold by `otherwise = "next"`. Empty: none.
    pub chain: Vec<Name>,
    /// What was chosen; `None`: no policy.
    pub decision: Option<Decision>,
}

/// A policy that matches a cgroup or one above it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Contender {
    /// The policy.
    pub policy: Name,
    /// Path of the cgroup that it matches; empty for the default policy, which matches none.
    pub cgroup: String,
    /// Whether it holds.
    pub standing: Standing,
}

/// Whether a policy holds, and why.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Standing {
    /// It is in force. Before the next one by this; `None`: there is no other.
    InForce(Option<Precedence>),
    /// It gives way to the one in force by this.
    Behind(Precedence),
    /// It and this one are equal, which is a mistake, and this one applies.
    Equal(Name),
    /// This strict policy of a higher rank at or above its cgroup leaves it no room.
    ShutOut(Name),
}

/// What sets two policies apart.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Precedence {
    /// What.
    pub by: By,
    /// The other policy.
    pub other: Name,
}

/// What can set two policies apart, in the order in which it is asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum By {
    /// Any policy goes before the default one.
    Default,
    /// The deeper cgroup.
    Depth,
    /// At one cgroup: the higher origin.
    Origin,
    /// Of one origin: the administrators' before a plain user's.
    Owner,
    /// Of one rank: the higher priority.
    Priority,
    /// Of one priority: a path or id before a pattern or unit.
    Exactness,
}

impl Engine {
    /// What holds for the cgroup at `path`, whether it exists or not, as if no cgroup were outside the
    /// managed root.
    pub fn ranking(&self, path: &str) -> Ranking {
        let tree = &self.state.cgroups;
        let below = levels(path).filter(|(_, here)| !here.is_empty());
        let mut nodes: Vec<Option<CgroupId>> = vec![Some(tree.root())];
        nodes.extend(below.map(|(_, here)| tree.find(here)));
        let mut reaches = Vec::new();
        let found = self
            .index
            .contest(path, &nodes, &self.state.exempt, &mut reaches);
        let holding: Vec<&Found<'_>> = found
            .iter()
            .filter(|contender| contender.standing == index::Standing::Holds)
            .collect();
        let chain = self.chain(holding.iter().map(|c| c.name.clone()).collect());
        let first = holding.first().copied();
        // A policy is told apart from others, not from itself at a cgroup above.
        let second = first.and_then(|first| holding.iter().find(|c| c.name != first.name));
        let at = |depth: usize| {
            let level = levels(path).nth(depth.saturating_sub(1));
            level.filter(|_| depth > 0).map_or("", |(_, here)| here)
        };
        let precedence = |by, other: &Found<'_>| Precedence {
            by,
            other: other.name.clone(),
        };
        let contenders = found.iter().map(|contender| Contender {
            policy: contender.name.clone(),
            cgroup: at(contender.depth).to_owned(),
            standing: match (contender.standing, first) {
                (index::Standing::Equal(applies), _) => Standing::Equal(applies.clone()),
                (index::Standing::ShutOut(by), _) => Standing::ShutOut(by.clone()),
                (index::Standing::Holds, Some(first)) if !std::ptr::eq(first, contender) => {
                    Standing::Behind(precedence(apart(first, contender), first))
                }
                (index::Standing::Holds, _) => Standing::InForce(
                    second.map(|second| precedence(apart(contender, second), second)),
                ),
            },
        });
        Ranking {
            contenders: contenders.collect(),
            decision: (!chain.is_empty()).then(|| self.decide(&chain)),
            chain,
        }
    }

    /// Whether any policy does more than leave flows to the host's routing.
    pub fn acts(&self) -> bool {
        self.index.acts()
    }
}

/// What puts `before` before `behind`.
fn apart(before: &Found<'_>, behind: &Found<'_>) -> By {
    let ((rank, priority, _), (other_rank, other_priority, _)) = (before.key, behind.key);
    if behind.depth == 0 {
        By::Default
    } else if before.depth != behind.depth {
        By::Depth
    } else if rank.0.origin != other_rank.0.origin {
        By::Origin
    } else if rank != other_rank {
        By::Owner
    } else if priority != other_priority {
        By::Priority
    } else {
        By::Exactness
    }
}
