//! What the engine tells about itself: decisions with their reasons, and warnings.

use std::collections::BTreeMap;
use std::fmt;

use super::{Conflict, Engine, Unruled};
use crate::config::ConfigError;
use crate::domains::Domain;
use crate::ids::{CgroupId, PolicyId};
use crate::name::Name;
use crate::network::ForeignRule;
use crate::plan::Object;
use crate::plan::{Family, foreign};
use crate::select::Decision;

/// What holds for a cgroup.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Effective {
    /// The policy in force, then those that hold by `otherwise = "next"`.
    pub chain: Vec<Name>,
    /// Its number.
    pub policy: Option<PolicyId>,
    /// What was chosen.
    pub decision: Decision,
}

/// Something that a user should know of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Warning {
    /// A rule of somebody else catches unmarked traffic.
    ForeignRule(ForeignRule),
    /// Two policies of one origin and priority on one cgroup.
    Conflict {
        /// The cgroup's path.
        path: String,
        /// The two.
        conflict: Conflict,
    },
    /// The mask has no index left for a domain.
    NoMark(Name),
    /// The kernel map has no room for this many cgroups that strict policies name.
    NoRoom(usize),
    /// No number was left for policies of this many cgroups.
    NoNumber(usize),
    /// The rules of a policy, and of those behind it by `otherwise = "next"`, cannot be in force.
    Unruled {
        /// The policy.
        policy: Name,
        /// What it matches is blocked.
        closed: bool,
        /// Why.
        why: Unruled,
    },
    /// The kernel map has no room for the slots of this many choices whose flows are to be shared.
    NoShare(usize),
    /// A name in the files means nothing for now.
    Unknown(ConfigError),
    /// A policy of the files is bad in itself, and not in force.
    Quarantined {
        /// The policy.
        name: Name,
        /// What it matches is blocked.
        closed: bool,
        /// What is wrong with it.
        error: ConfigError,
    },
    /// Two domains hold one address.
    Overlap {
        /// The address.
        address: std::net::IpAddr,
        /// The domains.
        domains: Vec<Name>,
    },
    /// The kernel refused something, in these words.
    Refused(Object, String),
}

impl Engine {
    /// What holds for a cgroup; `None`: no policy.
    pub fn effective(&self, id: CgroupId) -> Option<Effective> {
        let entry = self.plan.cgroups.get(&id)?;
        let chain = self.state.memory.policies.key(entry.policy)?;
        Some(Effective {
            chain: chain.to_vec(),
            policy: Some(PolicyId(entry.policy)),
            decision: self.decide(chain),
        })
    }

    /// What is chosen for a policy now, by its [`Engine::chain_of`].
    pub fn decision(&self, name: &str) -> Option<Decision> {
        let policy = self.state.policy(name)?;
        Some(self.decide(&self.chain_of(&policy.name)))
    }

    /// A policy and those behind it. Where it is in force with several others behind it by `next`, the first
    /// of those chains; where nowhere, with the default policy behind it.
    pub fn chain_of(&self, policy: &Name) -> Vec<Name> {
        let mut in_force = self.state.memory.policies.starting_with(policy);
        if let Some((_, chain)) = in_force.next() {
            return chain.to_vec();
        }
        let default = self
            .state
            .policy(Name::DEFAULT_POLICY)
            .filter(|default| default.acts() && default.name != *policy);
        let behind = default.map(|default| default.name.clone());
        self.chain([policy.clone()].into_iter().chain(behind).collect())
    }

    /// Kernel policies that begin with a policy: one for each chain behind it.
    pub fn numbers(&self, name: &Name) -> Vec<PolicyId> {
        let chains = self.state.memory.policies.starting_with(name);
        chains.map(|(number, _)| PolicyId(number)).collect()
    }

    /// Number of cgroups in which a policy is in force.
    pub fn cgroup_count(&self, name: &Name) -> usize {
        let numbers = self.state.memory.policies.starting_with(name);
        numbers
            .filter_map(|(number, _)| self.policy_uses.get(&PolicyId(number)))
            .map(|uses| uses.cgroups as usize)
            .sum()
    }

    /// Conflicts in which a policy does not apply, with the path of the cgroup.
    pub fn conflicts_of(&self, name: &Name) -> impl Iterator<Item = Warning> {
        let conflicts = self.conflicts.iter();
        conflicts.flat_map(move |(id, conflicts)| {
            let lost = conflicts
                .iter()
                .filter(move |conflict| conflict.refused == *name);
            lost.map(|conflict| Warning::Conflict {
                path: self.state.cgroups.path(*id).unwrap_or_default(),
                conflict: conflict.clone(),
            })
        })
    }

    /// Whether a domain waits for an index: ask the kernel which indices sockets bear, and say so by
    /// [`Event::IndicesInUse`](crate::state::Event::IndicesInUse).
    pub fn needs_indices(&self) -> bool {
        !self.unmarked.is_empty() && self.state.memory.indices.len() > self.installed.len()
    }

    /// Domains that no policy can choose, but whose marks sockets may bear.
    pub fn lingering(&self) -> impl Iterator<Item = &Name> {
        let names = self.state.memory.indices.keys();
        names.filter(|name| !self.installed.contains_key(*name))
    }

    /// What a user should know of.
    pub fn warnings(&self) -> Vec<Warning> {
        let state = &self.state;
        let mut warnings = Vec::new();
        if !self.installed.is_empty() {
            let rules = Family::BOTH.map(|family| foreign::catching(&state.network, family));
            warnings.extend(
                rules
                    .into_iter()
                    .flatten()
                    .cloned()
                    .map(Warning::ForeignRule),
            );
        }
        for (id, conflicts) in &self.conflicts {
            let path = state.cgroups.path(*id).unwrap_or_default();
            warnings.extend(conflicts.iter().cloned().map(|conflict| Warning::Conflict {
                path: path.clone(),
                conflict,
            }));
        }
        warnings.extend(self.unmarked.iter().cloned().map(Warning::NoMark));
        if !self.unnumbered.is_empty() {
            warnings.push(Warning::NoNumber(self.unnumbered.len()));
        }
        for (id, compiled) in &self.compiled {
            let chain = state.memory.policies.key(id.0);
            if let (Err(why), Some(chain)) = (compiled.ruleset(), chain)
                && let Some(policy) = chain.first()
            {
                warnings.push(Warning::Unruled {
                    policy: policy.clone(),
                    closed: chain.iter().any(|name| self.is_strict(name)),
                    why,
                });
            }
        }
        let unshared = self.shares.left_out();
        if unshared > 0 {
            warnings.push(Warning::NoShare(unshared));
        }
        if !self.unplaced.is_empty() {
            warnings.push(Warning::NoRoom(self.unplaced.len()));
        }
        warnings.extend(
            state
                .config
                .unknown(&state.network)
                .cloned()
                .map(Warning::Unknown),
        );
        for (name, bad) in &state.config.quarantined {
            let each = bad.mistakes.iter().cloned();
            warnings.extend(each.map(|error| Warning::Quarantined {
                name: name.clone(),
                closed: bad.policy.strict,
                error,
            }));
        }
        warnings.extend(self.overlaps());
        let refused = state.refused.iter();
        warnings
            .extend(refused.map(|(object, words)| Warning::Refused(object.clone(), words.clone())));
        warnings
    }

    /// Addresses that several installed domains hold, unless the files ask for it.
    fn overlaps(&self) -> impl Iterator<Item = Warning> {
        let mut holders = BTreeMap::<_, Vec<&Domain>>::new();
        let installed = self.installed.keys();
        for domain in installed.filter_map(|name| self.domains.get(name.as_str())) {
            for address in &domain.addresses {
                if !domain.named_sources.contains(&address.ip) {
                    holders.entry(address.ip).or_default().push(domain);
                }
            }
        }
        holders
            .into_iter()
            // Domains on one interface may well share addresses.
            .filter(|(_, domains)| domains.iter().any(|d| d.interface != domains[0].interface))
            .map(|(address, domains)| Warning::Overlap {
                address,
                domains: domains
                    .into_iter()
                    .map(|domain| domain.name.clone())
                    .collect(),
            })
    }

    /// What is chosen for what no rule of a chain fits.
    pub(super) fn decide(&self, chain: &[Name]) -> Decision {
        self.overruled(chain)
            .unwrap_or_else(|| self.select(&self.inputs(chain)))
    }

    /// What a chain gets that cannot have what it wants.
    pub(super) fn overruled(&self, chain: &[Name]) -> Option<Decision> {
        let strict = || chain.iter().any(|name| self.is_strict(name));
        if let Some((object, words)) = self.unenforceable()
            && strict()
        {
            return Some(Decision::blocked(format!(
                "blocked, because a strict policy cannot be enforced: the kernel refused {object}: {words}"
            )));
        }
        let why = self.unruled(chain)?;
        Some(if strict() {
            Decision::blocked(format!(
                "blocked, because its rules cannot be in force: {why}"
            ))
        } else {
            Decision::passed(format!(
                "left to the host's routing, because its rules cannot be in force: {why}"
            ))
        })
    }
}

impl fmt::Display for Object {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Domain(name) => write!(f, "the rules and routes of {name}"),
            Self::Hook(hook) => write!(f, "the program {hook:?}"),
            Self::Guard => f.write_str("the guard"),
        }
    }
}

impl fmt::Display for Warning {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::ForeignRule(rule) => {
                let family = if rule.v6 { "IPv6" } else { "IPv4" };
                write!(
                    f,
                    "the {family} rule with priority {} catches unmarked traffic",
                    rule.priority
                )?;
                if let Some(table) = rule.table {
                    write!(f, " (table {table})")?;
                }
                f.write_str(
                    ": unmarked flows from a domain's address are left to it, so servers on several \
                     domains may answer by the wrong one",
                )
            }
            Self::Conflict { path, conflict } => write!(
                f,
                "policies `{}` and `{}` have the same origin and priority on the cgroup {path}: there \
                 `{}` does not apply; give one of them another priority",
                conflict.applies, conflict.refused, conflict.refused
            ),
            Self::NoMark(name) => {
                write!(
                    f,
                    "no mark is left for the domain {name}: widen `mark-mask` in [agent]"
                )
            }
            Self::NoNumber(cgroups) => write!(
                f,
                "the kernel map has no room for the policies of {cgroups} cgroups: strict ones are \
                 closed, others do not apply"
            ),
            Self::NoRoom(names) => write!(
                f,
                "the kernel map has no room for {names} cgroups that strict policies name: new cgroups beside \
                 them are closed until the agent has decided"
            ),
            Self::Unruled {
                policy,
                closed,
                why,
            } => {
                let what = if *closed {
                    "what it matches is blocked"
                } else {
                    "it does not apply"
                };
                write!(
                    f,
                    "the rules of policy `{policy}` cannot be in force together with those behind it, and {what}: \
                     {why}"
                )
            }
            Self::NoShare(choices) => write!(
                f,
                "the kernel map has no room for {choices} choices whose flows are to be shared: the first \
                 domain that fits has them all"
            ),
            Self::Unknown(error) => error.fmt(f),
            Self::Quarantined {
                name,
                closed,
                error,
            } => {
                let what = if *closed {
                    "what it matches is blocked"
                } else {
                    "it does not apply"
                };
                write!(f, "policy `{name}` is in quarantine, and {what}: {error}")
            }
            Self::Overlap { address, domains } => {
                write!(f, "the domains")?;
                for (i, name) in domains.iter().enumerate() {
                    write!(f, "{} {name}", if i == 0 { "" } else { " and" })?;
                }
                write!(
                    f,
                    " have the same address {address}: incoming flows cannot be told apart; name the \
                     address in `sources` of both to have them marked"
                )
            }
            Self::Refused(object, words) => write!(f, "the kernel refused {object}: {words}"),
        }
    }
}
