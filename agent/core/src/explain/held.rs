//! What the kernel maps hold for a cgroup, and where that is not the plan.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use steer_common::{
    CgroupEntry, ChoiceEntry, DomainEntry, PolicyEntry, ShareEntry, share, verdict,
};

use crate::ids::{CgroupId, ChoiceId, DomainIndex, PolicyId, RulesetId};
use crate::plan::Plan;
use crate::rules::image::ContentHash;

/// What a cgroup's entry leads to, as the programs follow it: policy, rules, choice, domain.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Held {
    /// Its own; `None`: it has none.
    pub cgroup: Option<CgroupEntry>,
    /// Of the policy that the cgroup's entry names.
    pub policy: PolicyEntry,
    /// What the set of rules holds that the policy's names; `None`: there is none.
    pub rules: Option<ContentHash>,
    /// Of the choice that the policy's names: for what no rule fits.
    pub choice: ChoiceEntry,
    /// Slots of that choice, where its flows are shared.
    pub share: Option<Arc<ShareEntry>>,
    /// Of the domain that the choice's names.
    pub domain: DomainEntry,
}

/// A map that does not hold what the plan says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MapDiffers {
    /// The map.
    pub map: &'static str,
    /// What it should hold.
    pub planned: String,
    /// What it holds.
    pub held: String,
}

impl Held {
    /// What the plan says.
    pub fn planned(plan: &Plan, id: CgroupId) -> Self {
        let cgroup = plan.cgroups.get(&id).copied();
        let policy = cgroup.map_or(0, |entry| entry.policy);
        let policy = plan.policies.get(&PolicyId(policy)).copied();
        let policy = policy.unwrap_or_default();
        let rules = plan.rulesets.get(&RulesetId(policy.rules));
        let id = ChoiceId(policy.choice);
        let choice = plan.choices.get(&id).copied().unwrap_or_default();
        let share = plan.shares.get(&id);
        let index = u16::try_from(choice.domain).unwrap_or_default();
        let domain = plan.domains.get(&DomainIndex(index)).copied();
        Self {
            cgroup,
            policy,
            rules: rules.map(|set| set.hash()),
            choice,
            share: share.filter(|_| choice.share != share::NONE).cloned(),
            domain: domain.unwrap_or_default(),
        }
    }

    /// Where the kernel's (`held`) is another, from the cgroup on; behind the first that differs the rest
    /// is another's and not compared.
    pub fn difference(&self, held: &Self) -> Option<MapDiffers> {
        let differs = |map, planned, held| MapDiffers { map, planned, held };
        if self.cgroup != held.cgroup {
            let [planned, held] = [self.cgroup, held.cgroup].map(cgroup);
            Some(differs("CGROUPS", planned, held))
        } else if self.policy != held.policy {
            let [planned, held] = [self.policy, held.policy].map(|entry| {
                let PolicyEntry {
                    choice,
                    flags,
                    rules,
                } = entry;
                format!("choice {choice}, flags {flags:#x}, rules {rules}")
            });
            Some(differs("POLICIES", planned, held))
        } else if self.rules != held.rules {
            let [planned, held] = [self.rules, held.rules].map(|hash| {
                hash.map_or_else(|| "no rules".to_owned(), |hash| format!("rules {hash}"))
            });
            Some(differs("RULESETS", planned, held))
        } else if self.choice != held.choice {
            let [planned, held] = [self.choice, held.choice].map(choice);
            Some(differs("CHOICES", planned, held))
        } else if self.share != held.share {
            let [planned, held] =
                [&self.share, &held.share].map(|slots| slots_in_words(slots.as_deref()));
            Some(differs("SHARES", planned, held))
        } else if self.domain != held.domain {
            let [planned, held] = [self.domain, held.domain].map(domain);
            Some(differs("DOMAINS", planned, held))
        } else {
            None
        }
    }
}

impl fmt::Display for MapDiffers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { map, planned, held } = self;
        write!(
            f,
            "the kernel map {map} holds {held}, and not {planned} as planned: something else wrote it, \
             or the kernel refused it (`steer status` tells); the agent writes it again when it next \
             compares everything, within half a minute"
        )
    }
}

fn cgroup(entry: Option<CgroupEntry>) -> String {
    entry.map_or_else(
        || "no entry".to_owned(),
        |entry| {
            let CgroupEntry {
                policy,
                flags,
                place,
            } = entry;
            format!("policy {policy}, flags {flags:#x}, place {place}")
        },
    )
}

fn choice(entry: ChoiceEntry) -> String {
    let word = match entry.verdict {
        verdict::PASS => "pass",
        verdict::STEER => "steer",
        verdict::BLOCK => "block",
        _ => "an unknown verdict",
    };
    let shared = match entry.share {
        share::NONE => "",
        share::FLOW => ", shared by flow",
        share::DESTINATION => ", shared by destination",
        _ => ", shared in an unknown way",
    };
    format!("{word}, domain {}{shared}", entry.domain)
}

/// How many slots each domain has.
fn slots_in_words(slots: Option<&ShareEntry>) -> String {
    let Some(slots) = slots else {
        return "no slots".to_owned();
    };
    let mut counts = BTreeMap::new();
    for index in slots.ipv4.iter().chain(&slots.ipv6) {
        *counts.entry(index).or_insert(0_u32) += 1;
    }
    let counts = counts.into_iter();
    let counts: Vec<String> = counts
        .map(|(index, count)| format!("{count} slots of domain {index}"))
        .collect();
    counts.join(", ")
}

fn domain(entry: DomainEntry) -> String {
    let source4 = std::net::Ipv4Addr::from(entry.source4);
    let source6 = std::net::Ipv6Addr::from(entry.source6);
    format!(
        "mark {:#010x}, interface {}, flags {:#x}, sources {source4} and {source6}",
        entry.mark, entry.ifindex, entry.flags
    )
}
