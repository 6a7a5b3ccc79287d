//! From a chain of policies to one list of rules: looking up the first that fits a flow, and choosing by
//! its inputs, is what the policies say one after the other.
//!
//! A policy's first rule that fits is asked first. When none of its domains fits, and it says so, what
//! would have been asked without it is asked next: the policy itself, or the next policy with *its* rules.
//! There, other rules may fit the flow too, so that behind such a rule stands the intersection with each
//! of them.

use std::borrow::Cow;

use ipnet::IpNet;

use super::compile::TooLarge;
use super::{Flow, Rule};
use crate::criteria::Wish;
use crate::name::Name;
use crate::policy::{Otherwise, Policy};
use crate::select::{Inputs, Stage};

/// A policy of a chain, and the domain that is preferred for it.
#[derive(Clone, Copy, Debug)]
pub struct Link<'a> {
    /// The policy.
    pub policy: &'a Policy,
    /// The domain that is to come first among its own.
    pub preferred: Option<&'a Name>,
}

/// A rule, by its policy.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct RuleAt {
    /// The policy.
    pub policy: Name,
    /// Its place among the policy's rules, from 1.
    pub number: usize,
}

/// A chain as one list of rules.
#[derive(Clone, Debug)]
pub struct Flat<'a> {
    /// What each rule leads to: the first that fits decides.
    pub rules: Vec<FlatRule<'a>>,
    /// Inputs to selection where none fits.
    pub otherwise: Inputs,
}

/// A rule of a [`Flat`].
#[derive(Clone, Debug)]
pub struct FlatRule<'a> {
    /// What it fits; what it does is in `inputs`. It names destinations if any of `origins` does.
    pub condition: Cow<'a, Rule>,
    /// Inputs to selection.
    pub inputs: Inputs,
    /// The rules that it is made of, in the order in which they are asked.
    pub origins: Vec<RuleAt>,
}

/// What is asked for a flow.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Asked {
    /// Inputs to selection.
    pub inputs: Inputs,
    /// The rules that fit, in the order in which they are asked; none: no rule fits.
    pub rules: Vec<RuleAt>,
}

/// Rules of a policy, and destinations of a rule, up to which its domains are asked whether they have routes
/// there.
const MOST_RULES_WITH_REACH: usize = 64;
const MOST_DESTINATIONS: usize = 16;

/// Most pairs of items that are looked at to make one list: a fraction of a second, and some dozens of
/// megabytes.
const MOST_PAIRS: usize = 1 << 22;

/// Makes one list of a chain's rules.
///
/// # Errors
/// There would be too many, or too much to look at.
pub fn flatten<'a>(chain: &[Link<'a>]) -> Result<Flat<'a>, TooLarge> {
    let part = Part::of(chain, &mut 0)?;
    Ok(Flat {
        rules: part
            .rules
            .into_iter()
            .map(|rule| FlatRule {
                condition: rule.condition,
                inputs: inputs(rule.stages),
                origins: rule.origins,
            })
            .collect(),
        otherwise: inputs(part.otherwise),
    })
}

/// What the chain asks for one flow: the same as the first rule of [`flatten`] that fits, without making
/// the list.
pub fn ask(chain: &[Link<'_>], flow: &Flow) -> Asked {
    let mut stages = Vec::new();
    let mut rules = Vec::new();
    for link in chain {
        let mut behind = After::Own;
        if let Some((at, rule)) = link.policy.rules.first(flow) {
            behind = After::of(rule, link.policy);
            rules.push(link.at(at));
            stages.extend(link.stage_of(rule));
        }
        if let After::Own = behind {
            stages.push(Stage::of(link.policy, link.preferred));
            behind = After::own(link.policy);
        }
        if let After::Ends = behind {
            break;
        }
    }
    Asked {
        inputs: inputs(stages),
        rules,
    }
}

/// Inputs of a chain for what no rule fits.
pub fn base(chain: &[Link<'_>]) -> Inputs {
    let stages = chain.iter();
    inputs(
        stages
            .map(|link| Stage::of(link.policy, link.preferred))
            .collect(),
    )
}

/// Behind the last `next` is the host's routing: the same input as `pass`.
fn inputs(mut stages: Vec<Stage>) -> Inputs {
    if let Some(last) = stages
        .last_mut()
        .filter(|last| last.otherwise == Otherwise::Next)
    {
        last.otherwise = Otherwise::Pass;
    }
    stages.into()
}

/// What is asked when no domain of a rule or policy fits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum After {
    /// Nothing more.
    Ends,
    /// What the policy itself wants.
    Own,
    /// The next policy of the chain.
    Behind,
}

impl After {
    fn of(rule: &Rule, policy: &Policy) -> Self {
        match rule.otherwise {
            Some(Otherwise::Next) => Self::Own,
            Some(Otherwise::Block | Otherwise::Pass) => Self::Ends,
            None => Self::own(policy),
        }
    }

    fn own(policy: &Policy) -> Self {
        match policy.otherwise {
            Otherwise::Next => Self::Behind,
            Otherwise::Block | Otherwise::Pass => Self::Ends,
        }
    }
}

impl Link<'_> {
    fn at(&self, at: usize) -> RuleAt {
        RuleAt {
            policy: self.policy.name.clone(),
            number: at + 1,
        }
    }

    /// What a rule of the policy wants. One without domains that has something behind it wants nothing.
    fn stage_of(&self, rule: &Rule) -> Option<Stage> {
        let otherwise = rule.otherwise.unwrap_or(self.policy.otherwise);
        let nothing = rule.use_.is_empty() && otherwise == Otherwise::Next;
        (!nothing).then(|| Stage {
            use_: rule.use_.clone(),
            otherwise,
            wish: Wish {
                to: self.destinations_of(rule),
                ..Wish::of(&self.policy.criteria, self.policy.origin)
            },
            ..Stage::of(self.policy, self.preferred)
        })
    }
}

impl Link<'_> {
    /// Where flows of a rule go, which its domains must have routes to. Of long lists every rule would be a
    /// choice of its own, so there it is not asked.
    fn destinations_of(&self, rule: &Rule) -> Vec<IpNet> {
        let short = self.policy.rules.len() <= MOST_RULES_WITH_REACH
            && rule.destination.len() <= MOST_DESTINATIONS;
        if short {
            rule.destination.clone()
        } else {
            Vec::new()
        }
    }
}

/// A chain, or its end, on the way to a [`Flat`].
#[derive(Clone, Debug, Default)]
struct Part<'a> {
    rules: Vec<PartRule<'a>>,
    otherwise: Vec<Stage>,
}

#[derive(Clone, Debug)]
struct PartRule<'a> {
    condition: Cow<'a, Rule>,
    stages: Vec<Stage>,
    origins: Vec<RuleAt>,
}

impl<'a> Part<'a> {
    fn of(chain: &[Link<'a>], pairs: &mut usize) -> Result<Self, TooLarge> {
        let Some((link, rest)) = chain.split_first() else {
            return Ok(Self::default());
        };
        let policy = link.policy;
        let behind = match After::own(policy) {
            After::Behind => Self::of(rest, pairs)?,
            After::Ends | After::Own => Self::default(),
        };
        // What holds where no rule of this policy fits.
        let mut own = Self::default();
        let stage = Stage::of(policy, link.preferred);
        own.put_before(None, std::slice::from_ref(&stage), &behind, pairs)?;
        own.otherwise = [std::slice::from_ref(&stage), &behind.otherwise].concat();

        let mut part = Self::default();
        for (at, rule) in policy.rules.iter().enumerate() {
            let stages: Vec<Stage> = link.stage_of(rule).into_iter().collect();
            let nothing = Self::default();
            let behind = match After::of(rule, policy) {
                After::Ends => &nothing,
                After::Own => &own,
                After::Behind => &behind,
            };
            let at = link.at(at);
            part.put_before(Some((rule, &at)), &stages, behind, pairs)?;
            part.put(PartRule {
                condition: Cow::Borrowed(rule),
                stages: [&stages[..], &behind.otherwise].concat(),
                origins: vec![at],
            })?;
        }
        for rule in own.rules {
            part.put(rule)?;
        }
        part.otherwise = own.otherwise;
        Ok(part)
    }

    /// Adds the rules that are asked behind `stages`, each limited to what `rule` fits.
    fn put_before(
        &mut self,
        rule: Option<(&'a Rule, &RuleAt)>,
        stages: &[Stage],
        behind: &Self,
        pairs: &mut usize,
    ) -> Result<(), TooLarge> {
        for next in &behind.rules {
            let (condition, origins) = match rule {
                None => (Some(next.condition.clone()), next.origins.clone()),
                Some((rule, at)) => {
                    *pairs += rule.effort(&next.condition);
                    if *pairs > MOST_PAIRS {
                        return Err(TooLarge::Pairs);
                    }
                    let both = rule.both(&next.condition).map(Cow::Owned);
                    let at = std::slice::from_ref(at);
                    (both, [at, &next.origins].concat())
                }
            };
            if let Some(condition) = condition {
                self.put(PartRule {
                    condition,
                    stages: [stages, &next.stages].concat(),
                    origins,
                })?;
            }
        }
        Ok(())
    }

    fn put(&mut self, rule: PartRule<'a>) -> Result<(), TooLarge> {
        self.rules.push(rule);
        if self.rules.len() > steer_common::rules::MAX_RULES as usize {
            return Err(TooLarge::Rules(self.rules.len()));
        }
        Ok(())
    }
}
