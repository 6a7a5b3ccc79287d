//! Selection: which domain the flows of a policy get now, and why. Pure and total.
//!
//! The domains that a policy's `use` stands for are candidates. They are compared by one predicate after
//! the other, never by a weighted sum, so that nothing flaps because of what hardly matters:
//!
//! 1. *There*: it has carrier, an address, a route and a mark, and the kernel took its rules and routes.
//! 2. *Required*: it is what `require` and `family` ask.
//! 3. *Reaches*: it leads where the flows go. The members of a group of the files do by that, and so does what
//!    `use` names itself as long as no rule names destinations. Else it must have a default route; or, for a rule
//!    with destinations, routes that cover them, or a check of its own that passes.
//! 4. *Not behind a portal*, unless a user named it itself, and nothing better is left.
//!
//! Whoever fails one of these is no candidate. Of the others the best comes first:
//!
//! 5. by [`Grade`](crate::health::Grade): what is well, then what was lost too often, then what is to be proven, then what fails
//!    its check;
//! 6. what the user prefers (`steer domain prefer`);
//! 7. by each criterion of `prefer`, where the domain in use counts as better by `margin` in what is measured;
//! 8. the domain in use, if anything that is measured was compared;
//! 9. by the order of `use`.

mod candidates;
mod ranking;
mod require;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use self::candidates::Looked;
use crate::config::Config;
use crate::criteria::Wish;
use crate::domains::Domains;
use crate::groups;
use crate::health::Health;
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
    /// What is asked of the domains.
    #[serde(default, skip_serializing_if = "Wish::is_none")]
    pub wish: Wish,
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
    /// How they are.
    pub health: &'a Health,
    /// Indices that domains have.
    pub indices: &'a BTreeMap<Name, DomainIndex>,
    /// What the kernel refused, with its words.
    pub refused: &'a BTreeMap<Object, String>,
    /// The time, since boot.
    pub now: Duration,
    /// A domain that is taken for gone.
    pub without: Option<&'a Name>,
}

impl Stage {
    /// What `policy` wants, and which domain is preferred for it.
    pub fn of(policy: &Policy, preferred: Option<&Name>) -> Self {
        Self {
            use_: policy.use_.clone(),
            otherwise: policy.otherwise,
            preferred: preferred.cloned(),
            share: policy.share,
            wish: Wish::of(&policy.criteria, policy.origin),
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
        own.filter(|name| seen.insert(name.clone())).collect()
    }

    /// The domains that a name in `use` stands for.
    fn members(&self, name: &Name) -> Vec<Name> {
        groups::members(self.config, self.domains, name)
    }

    /// A domain's part of flows that are shared.
    fn weight(&self, name: &Name) -> u16 {
        let domain = self.config.domains.get(name);
        domain.and_then(|domain| domain.weight).unwrap_or(1)
    }

    /// Where a domain, by its name or alias, is among expanded ones.
    pub fn among(&self, expanded: &[Name], name: &Name) -> Option<usize> {
        let domain = self.domains.get(name.as_str());
        let own = domain.map_or(name, |domain| &domain.name);
        expanded.iter().position(|one| one == own)
    }
}

/// Chooses for `inputs`: the best domain of the first stage that has one, or those that share its flows; else
/// what the stage says. Behind the last `next` is the host's ordinary routing. `in_use`: the domains that were
/// chosen last.
pub fn select(inputs: &[Stage], world: World<'_>, in_use: &[Name]) -> Decision {
    let mut candidates = Vec::new();
    for stage in inputs {
        let looked = world.look(stage, in_use);
        let chosen = match stage.share {
            None => world.best(stage, looked, &mut candidates),
            Some(share) => world.shared(stage, share, looked, &mut candidates),
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
        return Decision::without_domain(verdict, candidates, inputs);
    }
    Decision::without_domain(Verdict::Pass, candidates, inputs)
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
    /// The best domain of a stage.
    fn best(
        &self,
        stage: &Stage,
        looked: Vec<Looked>,
        candidates: &mut Vec<Candidate>,
    ) -> Option<Chosen> {
        let ranked = ranking::ranked(&stage.wish, &looked);
        let best = ranked.first().copied();
        let alone = candidates.is_empty();
        let reason = best.map(|_| ranking::why(&stage.wish, &looked, &ranked, alone));
        let name = best.map(|best| looked[best].name.clone());
        for (at, one) in looked.into_iter().enumerate() {
            let taken = best == Some(at);
            candidates.push(one.candidate(taken, name.as_ref()));
        }
        Some(Chosen::alone(name?, reason?))
    }

    /// Those that share the flows of a stage: of the first name in `use` of which any fits, those that are as
    /// good as its best.
    fn shared(
        &self,
        stage: &Stage,
        share: Share,
        looked: Vec<Looked>,
        candidates: &mut Vec<Candidate>,
    ) -> Option<Chosen> {
        let ranked = ranking::ranked(&stage.wish, &looked);
        let first = *ranked.first()?;
        if looked[first].preferred {
            return self.best(stage, looked, candidates);
        }
        // Grades go before the order of `use`: the best of the best are in the first entry that has one.
        let best: Vec<usize> = ranked
            .iter()
            .copied()
            .filter(|at| looked[*at].grade() == looked[first].grade())
            .collect();
        let entry = best.iter().map(|at| looked[*at].entry).min()?;
        let mut members: Vec<usize> = best
            .into_iter()
            .filter(|at| looked[*at].entry == entry)
            .collect();
        members.sort_unstable();
        let weighty = |at: &usize| self.weight(&looked[*at].name) != 0;
        let idle: BTreeSet<usize> = if members.iter().any(weighty) {
            members.iter().copied().filter(|at| !weighty(at)).collect()
        } else {
            // Of those that are kept for need one is enough.
            members.iter().copied().skip(1).collect()
        };
        let need = !members.iter().any(weighty);
        members.retain(|at| !idle.contains(at));
        let fit: Vec<(Name, u16)> = members
            .iter()
            .map(|at| (looked[*at].name.clone(), self.weight(&looked[*at].name)))
            .collect();
        let first = fit.first()?.0.clone();
        for (at, one) in looked.into_iter().enumerate() {
            let mut candidate = one.candidate(members.contains(&at), Some(&first));
            if idle.contains(&at) {
                candidate.reason = if need {
                    "its weight is 0, as is that of one before it".to_owned()
                } else {
                    "its weight is 0: it has flows only when no other fits".to_owned()
                };
            }
            candidates.push(candidate);
        }
        if fit.len() == 1 {
            let reason = format!("{first} is the only one that fits of those that share");
            return Some(Chosen::alone(first, reason));
        }
        Some(Chosen {
            reason: shared_by(&fit, share),
            domain: first,
            members: fit,
            share: Some(share),
        })
    }
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
    fn without_domain(verdict: Verdict, candidates: Vec<Candidate>, inputs: &[Stage]) -> Self {
        Self {
            reason: without_domain(&candidates, &verdict, inputs),
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

fn without_domain(candidates: &[Candidate], verdict: &Verdict, inputs: &[Stage]) -> String {
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
    let mut names = inputs.iter().flat_map(|stage| &stage.use_).peekable();
    if candidates.is_empty() && names.peek().is_some() {
        // Groups that are always there, and have no member now.
        let names: Vec<&str> = names.map(Name::as_str).collect();
        format!(
            "{outcome}, because no domain fits ({}: no domain is of this kind now)",
            names.join(", ")
        )
    } else if candidates.is_empty() {
        format!("{outcome}, as the policy says")
    } else {
        format!("{outcome}, because no domain fits ({reason})")
    }
}
