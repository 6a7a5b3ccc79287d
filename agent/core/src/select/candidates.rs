//! Looking at the candidates of a stage: which are any, and how good each is.

use std::collections::BTreeSet;

use super::{Candidate, Stage, World, require};
use crate::criteria::{Criterion, Wish, covers};
use crate::domains::{Domain, DomainState};
use crate::groups;
use crate::health::{Condition, Grade, Standing, check_of};
use crate::name::Name;
use crate::plan::{Family, Object};
use crate::probe::Check;

/// A candidate that was looked at.
#[derive(Debug)]
pub(super) struct Looked {
    /// Its name.
    pub(super) name: Name,
    /// Which entry of `use` it is there by, from 0.
    pub(super) entry: usize,
    /// The user prefers it.
    pub(super) preferred: bool,
    /// It was chosen last.
    pub(super) in_use: bool,
    /// How good it is, or why it is none.
    pub(super) fit: Result<Fit, String>,
}

/// How good a candidate is.
#[derive(Debug)]
pub(super) struct Fit {
    /// As far as its checks go.
    pub(super) grade: Grade,
    /// By each criterion of the policy, in its order.
    pub(super) values: Vec<Value>,
    /// How it is, as a sentence without a full stop.
    reason: String,
}

/// How good a domain is by one criterion: the lower, the better.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Value {
    /// As a number; unknown: the highest.
    pub(super) number: u64,
    /// The same, where the domain is in use: better by the policy's margin if it is measured.
    pub(super) favoured: u64,
    /// In words.
    pub(super) words: String,
}

impl Looked {
    /// How good it is; the worst, if it is no candidate.
    pub(super) fn grade(&self) -> Grade {
        self.fit.as_ref().map_or(Grade::Portal, |fit| fit.grade)
    }

    /// As it is told. `best`: the one that was chosen instead.
    pub(super) fn candidate(self, taken: bool, best: Option<&Name>) -> Candidate {
        let reason = match (self.fit, best) {
            (Err(why), _) => why,
            (Ok(fit), _) if taken => fit.reason,
            (Ok(fit), Some(best)) => match fit.grade {
                Grade::Well => format!("{}, but {best} comes first", fit.reason),
                _ => format!("{}: it is used only if nothing better fits", fit.reason),
            },
            (Ok(fit), None) => fit.reason,
        };
        Candidate {
            domain: self.name,
            taken,
            reason,
        }
    }
}

impl World<'_> {
    /// Looks at every domain of a stage, in the order of `use`.
    pub(super) fn look(&self, stage: &Stage, in_use: &[Name]) -> Vec<Looked> {
        let mut seen = BTreeSet::new();
        let mut looked = Vec::new();
        for (entry, used) in stage.use_.iter().enumerate() {
            for name in self.members(used) {
                if !seen.insert(name.clone()) {
                    continue;
                }
                let in_use = in_use.contains(&name);
                looked.push(Looked {
                    entry,
                    preferred: false,
                    in_use,
                    fit: self.fit(used, &name, &stage.wish, in_use),
                    name,
                });
            }
        }
        // What is preferred comes first only if it is one of them: a preference adds nothing.
        if let Some(preferred) = &stage.preferred {
            let domain = self.domains.get(preferred.as_str());
            let own = domain.map_or(preferred, |domain| &domain.name);
            if let Some(at) = looked.iter().position(|one| one.name == *own) {
                looked[at].preferred = true;
                looked[..=at].rotate_right(1);
            }
        }
        looked
    }

    /// How good a domain is that is there by the entry `used`, or why it is no candidate.
    fn fit(&self, used: &Name, name: &Name, wish: &Wish, in_use: bool) -> Result<Fit, String> {
        if let Some(why) = self.unfit(name) {
            return Err(why);
        }
        let Some(domain) = self.domains.get(name.as_str()) else {
            return Err(self.missing(name));
        };
        let condition = self.health.get(&domain.name);
        require::check(&wish.criteria, domain, condition, in_use)?;
        self.reaches(used, domain, wish)?;
        let check = check_of(self.config, domain);
        let grade = condition.map_or(Grade::Well, |condition| {
            condition.grade(&check, in_use, self.now)
        });
        let named_by_user = wish.by_user && !groups::is_group(self.config, used);
        if grade == Grade::Portal && !named_by_user {
            return Err(domain.reason_with(self.health));
        }
        let reason = match grade {
            Grade::Settling => format!(
                "{name} was lost {} times within ten minutes, and counts again once it has been there for a while",
                condition.map_or(0, Condition::losses)
            ),
            Grade::Unproven if condition.is_some_and(|known| known.before().failed()) => {
                format!(
                    "{name} is not proven: its network failed last time, and its check has not passed since"
                )
            }
            Grade::Unproven => {
                format!("{name} is not proven: its check has not passed since it is attached")
            }
            Grade::Well | Grade::Limited | Grade::Portal => domain.reason_with(self.health),
        };
        let values = wish.criteria.prefer.iter();
        let values = values.map(|criterion| value(*criterion, wish, domain, condition));
        Ok(Fit {
            grade,
            values: values.collect(),
            reason,
        })
    }

    /// Whether a domain is known to lead where the flows go.
    fn reaches(&self, used: &Name, domain: &Domain, wish: &Wish) -> Result<(), String> {
        if self.config.groups.contains_key(used) {
            return Ok(());
        }
        let named = !groups::is_group(self.config, used);
        if named && wish.to.is_empty() {
            return Ok(());
        }
        let routes = || domain.routes.iter().map(|route| route.destination);
        if wish.to.is_empty() {
            let default = Family::BOTH
                .into_iter()
                .any(|family| domain.has_default(family));
            return if default {
                Ok(())
            } else {
                Err(format!("{} has no default route", domain.name))
            };
        }
        match wish.to.iter().find(|net| !covers(routes(), net)) {
            None => Ok(()),
            Some(_) if self.passes_own_check(domain) => Ok(()),
            Some(net) => Err(format!("{} has no route to {net}", domain.name)),
        }
    }

    fn passes_own_check(&self, domain: &Domain) -> bool {
        let own = self.config.domains.get(&domain.name);
        let condition = self.health.get(&domain.name);
        own.and_then(|own| own.check.as_ref())
            .is_some_and(Check::asks)
            && condition.is_some_and(|condition| *condition.standing() == Standing::Validated)
    }

    /// Why a domain cannot be taken by any policy; `None`: it can.
    pub(crate) fn unfit(&self, name: &Name) -> Option<String> {
        let Some(domain) = self.domains.get(name.as_str()) else {
            return Some(self.missing(name));
        };
        if self.without.is_some_and(|gone| *gone == domain.name) {
            return Some(format!("{name} is taken for gone"));
        }
        if domain.state != DomainState::Up {
            return Some(domain.reason_with(self.health));
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

/// How good a domain is by a criterion.
fn value(
    criterion: Criterion,
    wish: &Wish,
    domain: &Domain,
    condition: Option<&Condition>,
) -> Value {
    let margin = u64::from(wish.criteria.margin.0);
    let fixed = |number: u64, words: String| Value {
        number,
        favoured: number,
        words,
    };
    let measured = |number: Option<u64>, words: Option<String>| {
        let number = number.unwrap_or(u64::MAX);
        let part = u128::from(number) * u128::from(100 - margin) / 100;
        Value {
            number,
            favoured: if number == u64::MAX {
                number
            } else {
                u64::try_from(part).unwrap_or(number)
            },
            words: words.unwrap_or_else(|| "not known".to_owned()),
        }
    };
    let before = condition.map(Condition::before);
    match criterion {
        Criterion::Cost => fixed(
            u64::from(domain.cost) * 2 + u64::from(domain.metered),
            match domain.metered {
                true => format!("{}, metered", domain.cost),
                false => domain.cost.to_string(),
            },
        ),
        Criterion::Latency => {
            let latency = condition.and_then(|condition| condition.measured().latency());
            let micros = latency.and_then(|rtt| u64::try_from(rtt.as_micros()).ok());
            measured(micros, latency.map(require::milliseconds))
        }
        Criterion::Loss => {
            let loss = condition.and_then(|condition| condition.measured().loss());
            measured(
                loss.map(|loss| u64::from(loss.0) * 1_000),
                loss.map(|loss| loss.to_string()),
            )
        }
        Criterion::Bandwidth => {
            // The time for a bit, so that the lower is the better.
            let bits = condition.map_or(domain.bandwidth, |known| known.bandwidth(domain));
            let time = bits.and_then(|bits| (1_u64 << 50).checked_div(bits.0));
            measured(time, bits.map(|bits| bits.to_string()))
        }
        Criterion::Stability => {
            let losses = condition.map_or(0, Condition::losses);
            let number = u64::try_from(losses).unwrap_or(u64::MAX / 1_000);
            measured(Some(number * 1_000), Some(format!("lost {losses} times")))
        }
        Criterion::Security => fixed(
            u64::MAX - domain.security as u64,
            domain.security.to_string(),
        ),
        Criterion::Metric => {
            let metric = groups::metric(domain);
            fixed(metric.into(), metric.to_string())
        }
        Criterion::LastGood => {
            let last = before.and_then(|before| before.last_good);
            fixed(
                last.map_or(u64::MAX, |last| u64::MAX - 1 - last),
                last.map_or_else(|| "never".to_owned(), |last| format!("at {last}")),
            )
        }
        Criterion::FirstGood => {
            let first = before.and_then(|before| before.first_good);
            fixed(
                first.unwrap_or(u64::MAX),
                first.map_or_else(|| "never".to_owned(), |first| format!("at {first}")),
            )
        }
    }
}
