//! What has to stay because the kernel refused what should have come in its place.

use std::collections::{BTreeMap, BTreeSet};

use steer_common::{ChoiceEntry, policy_flags, share, verdict};

use super::Step;
use crate::ids::{DomainIndex, PolicyId, RulesetId, TableId};
use crate::plan::{Hook, Plan, Rule, RuleAction};
use crate::rules::image::Image;

/// Which of `removals`, all of one kind, have to wait, given what is now and the steps that the kernel
/// refused:
///
/// 1. What something that is still there leads to. Cgroups and names lead to policies and need the
///    programs, policies to compiled rules and choices, strict ones to the guards too, compiled rules to
///    choices, choices to shares and domains, shares to domains, and a domain that is not what it should
///    be to its addresses, rules and routes.
/// 2. What a refused step was to replace: the old route to a destination stays until the table has the
///    new one, an old rule until the new ones about the same packets are there.
///
/// Nothing else waits. So a domain of which the kernel refuses something for good keeps back nothing of
/// another domain, and what is refused for want of room (an entry for a cgroup) never keeps back what
/// makes room.
pub fn held(is: &Plan, wanted: &Plan, refused: &[&Step], removals: &[Step]) -> Vec<bool> {
    let each = |waits: &dyn Fn(&Step) -> bool| removals.iter().map(waits).collect();
    match removals.first() {
        Some(Step::Detach(_) | Step::Unguard(_)) => {
            let policies = policies_in_force(is);
            let entry = |policy| is.policies.get(&PolicyId(policy));
            let strict = policies
                .iter()
                .filter_map(|policy| entry(*policy))
                .any(|policy| policy.flags & policy_flags::STRICT != 0);
            each(&|step| match step {
                Step::Detach(Hook::Setsockopt | Hook::Egress) => strict,
                Step::Detach(_) => !policies.is_empty(),
                // Where strict policies are wanted, it goes because its interface did.
                Step::Unguard(_) => strict && !wanted.hooks.contains(&Hook::Setsockopt),
                _ => false,
            })
        }
        Some(Step::ClearPolicy(_)) => {
            let policies = policies_in_force(is);
            each(&|step| matches!(step, Step::ClearPolicy(id) if policies.contains(&id.0)))
        }
        Some(Step::ClearChoice(_)) => {
            let sets = rulesets_in_force(is, wanted);
            // Of a set that an earlier agent made nobody may know where it leads.
            if sets.values().any(|set| !set.is_readable()) {
                return vec![true; removals.len()];
            }
            let of_rules = sets.values().flat_map(|set| set.choices());
            let of_policies = is.policies.values().map(|policy| policy.choice);
            let choices: BTreeSet<u32> = of_policies.chain(of_rules).collect();
            each(&|step| matches!(step, Step::ClearChoice(id) if choices.contains(&id.0)))
        }
        Some(Step::ClearRuleset(_)) => {
            let sets = rulesets_in_force(is, wanted);
            each(&|step| matches!(step, Step::ClearRuleset(id) if sets.contains_key(id)))
        }
        Some(Step::ClearShare(_)) => each(
            &|step| matches!(step, Step::ClearShare(id) if is.choices.get(id).is_some_and(shares)),
        ),
        Some(Step::SetDomain(..) | Step::ClearDomain(_)) => {
            let steering = is.choices.values();
            let chosen = steering
                .filter(|choice| choice.verdict == verdict::STEER)
                .map(|choice| choice.domain);
            let shared = is.shares.iter();
            let shared = shared
                .filter(|(id, _)| is.choices.get(id).is_some_and(shares))
                .flat_map(|(_, slots)| slots.ipv4.iter().chain(&slots.ipv6))
                .map(|index| u32::from(*index));
            let chosen: BTreeSet<u32> = chosen.chain(shared).collect();
            each(&|step| match step {
                Step::SetDomain(index, _) | Step::ClearDomain(index) => {
                    chosen.contains(&u32::from(index.0))
                }
                _ => false,
            })
        }
        Some(Step::RemoveSource(..)) => {
            let stale = Stale::new(is, wanted);
            each(
                &|step| matches!(step, Step::RemoveSource(index, _) if stale.domains.contains(index)),
            )
        }
        Some(Step::DeleteRule(_)) => {
            let stale = Stale::new(is, wanted);
            let awaited: Vec<&Rule> = refused
                .iter()
                .filter_map(|step| match step {
                    Step::AddRule(rule) if wanted.rules.contains(rule) => Some(rule),
                    _ => None,
                })
                .collect();
            each(&|step| match step {
                Step::DeleteRule(rule) => {
                    stale.need_rule(is, rule) || awaited.iter().any(|new| same_packets(rule, new))
                }
                _ => false,
            })
        }
        Some(Step::DeleteRoute(_)) => {
            let stale = Stale::new(is, wanted);
            let awaited: BTreeSet<_> = refused
                .iter()
                .filter_map(|step| match step {
                    Step::AddRoute(route) if wanted.routes.contains(route) => {
                        Some((route.table, route.destination))
                    }
                    _ => None,
                })
                .collect();
            each(&|step| match step {
                Step::DeleteRoute(route) => {
                    stale.tables.contains(&route.table)
                        || awaited.contains(&(route.table, route.destination))
                }
                _ => false,
            })
        }
        _ => vec![false; removals.len()],
    }
}

/// Numbers of the policies that a cgroup or a name leads to.
fn policies_in_force(is: &Plan) -> BTreeSet<u32> {
    let entries = is.cgroups.values().chain(is.names.values());
    entries
        .map(|entry| entry.policy)
        .filter(|policy| *policy != 0)
        .collect()
}

/// Sets that a policy leads to.
fn rulesets_in_force<'a>(is: &'a Plan, wanted: &'a Plan) -> BTreeMap<RulesetId, &'a Image> {
    let policies = is.policies.values();
    policies
        .filter_map(|policy| {
            let id = RulesetId(policy.rules);
            let set = is.rulesets.get(&id)?;
            // What was read back is only a hash, but the plan may know what it stands for.
            let known = wanted.rulesets.get(&id).filter(|known| *known == set);
            Some((id, known.unwrap_or(set)))
        })
        .collect()
}

/// Whether a choice's flows are found by its slots.
fn shares(choice: &ChoiceEntry) -> bool {
    choice.share != share::NONE
}

/// Domains that are not what they should be, and what they lead to.
struct Stale {
    domains: BTreeSet<DomainIndex>,
    marks: BTreeSet<u32>,
    tables: BTreeSet<TableId>,
}

impl Stale {
    fn new(is: &Plan, wanted: &Plan) -> Self {
        let stale = is
            .domains
            .iter()
            .filter(|(index, entry)| wanted.domains.get(index) != Some(entry));
        let domains = stale.clone().map(|(index, _)| *index).collect();
        let marks: BTreeSet<u32> = stale.map(|(_, entry)| entry.mark).collect();
        let tables = is
            .rules
            .iter()
            .filter(|rule| rule.fwmark.is_some_and(|(mark, _)| marks.contains(&mark)))
            .filter_map(|rule| match rule.action {
                RuleAction::Lookup { table, .. } => Some(table),
                _ => None,
            })
            .collect();
        Self {
            domains,
            marks,
            tables,
        }
    }

    fn need_rule(&self, is: &Plan, rule: &Rule) -> bool {
        let source = |ip| {
            let mut sources = self.domains.iter().map(|index| (*index, ip));
            sources.any(|source| is.sources.contains(&source))
        };
        rule.fwmark
            .is_some_and(|(mark, _)| self.marks.contains(&mark))
            || rule.from.is_some_and(|from| source(from.addr()))
    }
}

/// Whether two rules are about the same packets, whatever they do with them.
fn same_packets(old: &Rule, new: &Rule) -> bool {
    let selector = |rule: &Rule| (rule.family, rule.from, rule.to, rule.fwmark, rule.oif);
    selector(old) == selector(new)
}
