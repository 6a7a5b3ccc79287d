//! Selection: which domain the flows of a policy get now, and why. Pure and total.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::config::Config;
use crate::domains::{DomainState, Domains};
use crate::ids::DomainIndex;
use crate::name::Name;
use crate::network::Network;
use crate::plan::Object;
use crate::policy::{Otherwise, Policy, Share};

/// Inputs to selection: what a policy wants, then what those want that hold if it does not. Policies
/// with equal inputs share a choice.
pub type Inputs = Arc<[Stage]>;

/// What one policy wants.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Stage {
    /// Domains and groups in order.
    #[serde(rename = "use")]
    pub use_: Vec<Name>,
    /// What else.
    pub otherwise: Otherwise,
    /// The domain that is to come first, if it is one of these.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub preferred: Option<Name>,
    /// Flows are spread over the members of the first of these that has one which fits.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub share: Option<Share>,
}

/// What was chosen for a policy now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Decision {
    /// The outcome.
    pub verdict: Verdict,
    /// Why, as a sentence without a full stop.
    pub reason: String,
    /// Every domain that was looked at, in order.
    pub candidates: Vec<Candidate>,
    /// Domains that share the flows, with their weights, the chosen one first. Empty: it has them all.
    pub members: Vec<(Name, u16)>,
    /// How they share them.
    pub share: Option<Share>,
}

/// Outcome of a decision.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Flows are put on this domain.
    Steer(Name),
    /// Flows are refused at once.
    Block,
    /// Flows are left to the host's ordinary routing.
    Pass,
}

/// A domain that was looked at.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Candidate {
    /// Its name.
    pub domain: Name,
    /// Whether it was taken.
    pub taken: bool,
    /// Why, or why not, as a sentence without a full stop.
    pub reason: String,
}

/// What selection looks at.
#[derive(Clone, Copy, Debug)]
pub struct World<'a> {
    /// The files.
    pub config: &'a Config,
    /// The network.
    pub network: &'a Network,
    /// The domains made of both.
    pub domains: &'a Domains,
    /// Indices that domains have.
    pub indices: &'a BTreeMap<Name, DomainIndex>,
    /// What the kernel refused, with its words.
    pub refused: &'a BTreeMap<Object, String>,
}

impl Stage {
    /// What `policy` wants, and which domain is preferred for it.
    pub fn of(policy: &Policy, preferred: Option<&Name>) -> Self {
        Self {
            use_: policy.use_.clone(),
            otherwise: policy.otherwise,
            preferred: preferred.cloned(),
            share: policy.share,
        }
    }
}

impl Decision {
    /// The chosen domain.
    pub fn domain(&self) -> Option<&Name> {
        match &self.verdict {
            Verdict::Steer(name) => Some(name),
            Verdict::Block | Verdict::Pass => None,
        }
    }
}

impl World<'_> {
    /// `use` with groups replaced by their domains and aliases by the domains' own names, each once.
    pub fn expand<'n>(&self, use_: impl IntoIterator<Item = &'n Name>) -> Vec<Name> {
        let mut seen = BTreeSet::new();
        let own = use_.into_iter().flat_map(|name| self.members(name));
        own.filter(|name| seen.insert(*name)).cloned().collect()
    }

    /// The domains that a name in `use` stands for.
    fn members<'n>(&'n self, name: &'n Name) -> impl Iterator<Item = &'n Name> {
        let members = self.config.groups.get(name);
        let members = members.map_or(std::slice::from_ref(name), Vec::as_slice);
        members.iter().map(|name| {
            let domain = self.domains.get(name.as_str());
            domain.map_or(name, |domain| &domain.name)
        })
    }

    /// A domain's part of flows that are shared.
    fn weight(&self, name: &Name) -> u16 {
        let domain = self.config.domains.get(name);
        domain.and_then(|domain| domain.weight).unwrap_or(1)
    }

    /// The domains of a stage in order, and whether the first is there because it is preferred. What is
    /// preferred comes first only if it is one of them: a preference adds nothing.
    fn order(&self, stage: &Stage) -> (Vec<Name>, bool) {
        let mut order = self.expand(&stage.use_);
        let preferred = stage.preferred.as_ref();
        let preferred = preferred.and_then(|preferred| self.among(&order, preferred));
        if let Some(at) = preferred {
            order[..=at].rotate_right(1);
        }
        (order, preferred.is_some())
    }

    /// Where a domain, by its name or alias, is among expanded ones.
    pub fn among(&self, expanded: &[Name], name: &Name) -> Option<usize> {
        let domain = self.domains.get(name.as_str());
        let own = domain.map_or(name, |domain| &domain.name);
        expanded.iter().position(|one| one == own)
    }

    /// Why a domain cannot be taken; `None`: it can.
    pub(crate) fn unfit(&self, name: &Name) -> Option<String> {
        let Some(domain) = self.domains.get(name.as_str()) else {
            return Some(self.missing(name));
        };
        if domain.state != DomainState::Up {
            return Some(domain.reason.clone());
        }
        if !self.indices.contains_key(name) {
            return Some("no mark is left for it: widen `mark-mask` in [agent]".to_owned());
        }
        self.refused
            .get(&Object::Domain(name.clone()))
            .map(|words| format!("the kernel refused it: {words}"))
    }

    /// Why there is no domain of this name.
    fn missing(&self, name: &Name) -> String {
        let link = self
            .network
            .links
            .values()
            .find(|l| l.name == name.as_str());
        match link {
            None => "there is no domain, group or interface of this name".to_owned(),
            Some(link) if link.loopback => format!("{name} is the loopback interface"),
            Some(link) if link.bridge => format!("{name} is a bridge or a port of one"),
            Some(_) if !self.config.agent.discover.covers(name.as_str()) => {
                format!("{name} is no domain: `discover` in [agent] leaves it out")
            }
            Some(link) if !link.up => format!("{name} is down"),
            Some(link) if !link.carrier => format!("no carrier on {name}"),
            Some(_) => format!("no usable address and no default route on {name}"),
        }
    }
}

/// Chooses for `inputs`: the first domain of each stage that has carrier, an address and a route (one that
/// is preferred comes before the others of its stage), or those that share its flows; else what the stage
/// says. Behind the last `next` is the host's ordinary routing.
pub fn select(inputs: &[Stage], world: World<'_>) -> Decision {
    let mut candidates = Vec::new();
    for stage in inputs {
        let chosen = match stage.share {
            None => world.first(stage, &mut candidates),
            Some(share) => world.shared(stage, share, &mut candidates),
        };
        if let Some(chosen) = chosen {
            return Decision {
                verdict: Verdict::Steer(chosen.domain),
                reason: chosen.reason,
                candidates,
                members: chosen.members,
                share: chosen.share,
            };
        }
        let verdict = match stage.otherwise {
            Otherwise::Next => continue,
            Otherwise::Block => Verdict::Block,
            Otherwise::Pass => Verdict::Pass,
        };
        return Decision::without_domain(verdict, candidates);
    }
    Decision::without_domain(Verdict::Pass, candidates)
}

/// What a stage gave.
struct Chosen {
    domain: Name,
    reason: String,
    members: Vec<(Name, u16)>,
    share: Option<Share>,
}

impl Chosen {
    /// All flows are on one domain.
    fn alone(domain: Name, reason: String) -> Self {
        Self {
            domain,
            reason,
            members: Vec::new(),
            share: None,
        }
    }
}

impl World<'_> {
    /// Looks at a domain and notes it; says whether it fits.
    fn look(&self, name: &Name, candidates: &mut Vec<Candidate>) -> bool {
        let unfit = self.unfit(name);
        let taken = unfit.is_none();
        let reason = unfit.unwrap_or_else(|| match self.domains.get(name.as_str()) {
            Some(domain) => domain.reason.clone(),
            None => String::new(),
        });
        candidates.push(Candidate {
            domain: name.clone(),
            taken,
            reason,
        });
        taken
    }

    /// The first domain of a stage that fits.
    fn first(&self, stage: &Stage, candidates: &mut Vec<Candidate>) -> Option<Chosen> {
        let (order, preferred) = self.order(stage);
        let at = order.iter().position(|name| self.look(name, candidates))?;
        let name = &order[at];
        let reason = if preferred && at == 0 {
            preferred_fits(name)
        } else if candidates.len() == 1 {
            format!("{name} is the first choice and fits")
        } else {
            format!("{name} is the first that fits")
        };
        Some(Chosen::alone(name.clone(), reason))
    }

    /// Those that share the flows of a stage: what fits of the first name in `use` of which anything does.
    fn shared(
        &self,
        stage: &Stage,
        share: Share,
        candidates: &mut Vec<Candidate>,
    ) -> Option<Chosen> {
        let (order, preferred) = self.order(stage);
        let mut seen = BTreeSet::new();
        if preferred && let Some(name) = order.first() {
            if self.look(name, candidates) {
                return Some(Chosen::alone(name.clone(), preferred_fits(name)));
            }
            seen.insert(name);
        }
        for name in &stage.use_ {
            let begin = candidates.len();
            let mut fit = Vec::new();
            for member in self.members(name) {
                if seen.insert(member) && self.look(member, candidates) {
                    fit.push((member.clone(), self.weight(member)));
                }
            }
            let weighty = fit.iter().any(|(_, weight)| *weight != 0);
            if weighty {
                for (idle, _) in fit.iter().filter(|(_, weight)| *weight == 0) {
                    let mut looked = candidates[begin..].iter_mut();
                    if let Some(candidate) = looked.find(|one| one.domain == *idle) {
                        candidate.taken = false;
                        candidate.reason =
                            "its weight is 0: it has flows only when no other fits".to_owned();
                    }
                }
                fit.retain(|(_, weight)| *weight != 0);
            } else {
                // Of those that are kept for need one is enough.
                fit.truncate(1);
                let first = fit.first().map(|(name, _)| name);
                let idle = |one: &&mut Candidate| one.taken && Some(&one.domain) != first;
                for candidate in candidates[begin..].iter_mut().filter(idle) {
                    candidate.taken = false;
                    candidate.reason = "its weight is 0, as is that of one before it".to_owned();
                }
            }
            let Some((first, _)) = fit.first() else {
                continue;
            };
            let first = first.clone();
            if fit.len() == 1 {
                let reason = format!("{first} is the only one that fits of those that share");
                return Some(Chosen::alone(first, reason));
            }
            return Some(Chosen {
                reason: shared_by(&fit, share),
                domain: first,
                members: fit,
                share: Some(share),
            });
        }
        None
    }
}

fn preferred_fits(name: &Name) -> String {
    format!("{name} is preferred (steer domain prefer) and fits")
}

fn shared_by(members: &[(Name, u16)], share: Share) -> String {
    let mut reason = match share {
        Share::Flow => "flows are shared by ".to_owned(),
        Share::Destination => "destinations are shared by ".to_owned(),
    };
    for (at, (name, weight)) in members.iter().enumerate() {
        let separator = match at {
            0 => "",
            at if at + 1 == members.len() => " and ",
            _ => ", ",
        };
        // Writing to a string does not fail.
        let _ = write!(reason, "{separator}{name} (weight {weight})");
    }
    reason
}

impl Decision {
    fn without_domain(verdict: Verdict, candidates: Vec<Candidate>) -> Self {
        Self {
            reason: without_domain(&candidates, &verdict),
            verdict,
            candidates,
            members: Vec::new(),
            share: None,
        }
    }

    /// Flows are refused, whatever domains there are.
    pub(crate) fn blocked(reason: String) -> Self {
        Self {
            verdict: Verdict::Block,
            reason,
            candidates: Vec::new(),
            members: Vec::new(),
            share: None,
        }
    }

    /// Flows are left to the host's routing, whatever domains there are.
    pub(crate) fn passed(reason: String) -> Self {
        Self {
            verdict: Verdict::Pass,
            ..Self::blocked(reason)
        }
    }
}

fn without_domain(candidates: &[Candidate], verdict: &Verdict) -> String {
    let outcome = match verdict {
        Verdict::Block => "blocked",
        Verdict::Pass | Verdict::Steer(_) => "left to the host's routing",
    };
    let mut reason = String::new();
    for (i, candidate) in candidates.iter().take(3).enumerate() {
        let separator = if i == 0 { "" } else { "; " };
        // Writing to a string does not fail.
        let _ = write!(
            reason,
            "{separator}{}: {}",
            candidate.domain, candidate.reason
        );
    }
    if candidates.is_empty() {
        format!("{outcome}, as the policy says")
    } else {
        format!("{outcome}, because no domain fits ({reason})")
    }
}
