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
use crate::policy::{Otherwise, Policy};

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
    pub fn expand(&self, use_: &[Name]) -> Vec<Name> {
        let mut seen = BTreeSet::new();
        use_.iter()
            .flat_map(|name| {
                self.config
                    .groups
                    .get(name)
                    .map_or(std::slice::from_ref(name), Vec::as_slice)
            })
            .map(|name| {
                self.domains
                    .get(name.as_str())
                    .map_or(name, |domain| &domain.name)
            })
            .filter(|name| seen.insert(*name))
            .cloned()
            .collect()
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
/// is preferred comes before the others of its stage),
/// else what the stage says. Behind the last `next` is the host's ordinary routing.
pub fn select(inputs: &[Stage], world: World<'_>) -> Decision {
    let mut candidates = Vec::new();
    for stage in inputs {
        let (order, preferred) = world.order(stage);
        for (at, name) in order.into_iter().enumerate() {
            let unfit = world.unfit(&name);
            let taken = unfit.is_none();
            let reason = unfit.unwrap_or_else(|| match world.domains.get(name.as_str()) {
                Some(domain) => domain.reason.clone(),
                None => String::new(),
            });
            candidates.push(Candidate {
                domain: name.clone(),
                taken,
                reason,
            });
            if taken {
                let reason = if preferred && at == 0 {
                    format!("{name} is preferred (steer domain prefer) and fits")
                } else if candidates.len() == 1 {
                    format!("{name} is the first choice and fits")
                } else {
                    format!("{name} is the first that fits")
                };
                return Decision {
                    verdict: Verdict::Steer(name),
                    reason,
                    candidates,
                };
            }
        }
        let verdict = match stage.otherwise {
            Otherwise::Next => continue,
            Otherwise::Block => Verdict::Block,
            Otherwise::Pass => Verdict::Pass,
        };
        let reason = without_domain(&candidates, &verdict);
        return Decision {
            verdict,
            reason,
            candidates,
        };
    }
    Decision {
        verdict: Verdict::Pass,
        reason: without_domain(&candidates, &Verdict::Pass),
        candidates,
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
