//! Rules of policies: which can never apply, and shares of which nothing comes.

use super::{Finding, Kind};
use crate::config::{Parsed, PolicyPlaces};
use crate::groups::built_in;
use crate::name::Name;
use crate::policy::Policy;
use crate::rules::Rule;

/// Most pairs of items that are compared for one policy.
const MOST_PAIRS: usize = 4_000_000;

/// Says which rules never apply, and which policies share with nobody; and whether all rules were compared.
pub(super) fn check(parsed: &Parsed, findings: &mut Vec<Finding>) -> bool {
    let mut complete = true;
    for (name, places) in &parsed.places.policies {
        let config = &parsed.config;
        let good = !config.quarantined.contains_key(name);
        let Some(policy) = config.policies.get(name).filter(|_| good) else {
            continue;
        };
        complete &= covered(policy, places, findings);
        lonely(parsed, policy, places, findings);
    }
    complete
}

/// Rules all of whose flows an earlier one has.
fn covered(policy: &Policy, places: &PolicyPlaces, findings: &mut Vec<Finding>) -> bool {
    let mut pairs = 0;
    for (at, (rule, place)) in policy.rules.iter().zip(&places.rules).enumerate() {
        let mut covering = None;
        for (number, earlier) in (1..).zip(&policy.rules[..at]) {
            pairs += effort(earlier, rule);
            if pairs > MOST_PAIRS {
                return false;
            }
            if earlier.holds(rule) {
                covering = Some(number);
                break;
            }
        }
        let Some(earlier) = covering else { continue };
        findings.push(Finding {
            kind: Kind::Unreachable,
            place: place.place.clone(),
            message: format!(
                "rule {} of policy `{}` never applies: rule {earlier} fits everything that it fits",
                at + 1,
                policy.name
            ),
            label: Some("never applies".to_owned()),
            help: Some(format!("remove it, or put it before rule {earlier}")),
        });
    }
    true
}

/// Most pairs end at the first list.
fn effort(earlier: &Rule, rule: &Rule) -> usize {
    if earlier.items() == 0 || rule.items() == 0 {
        1
    } else {
        earlier.effort(rule)
    }
}

/// A share among one.
fn lonely(parsed: &Parsed, policy: &Policy, places: &PolicyPlaces, findings: &mut Vec<Finding>) {
    let Some(place) = &places.share else { return };
    let groups = &parsed.config.groups;
    let several = |name: &Name| {
        built_in(name.as_str()).is_some()
            || groups.get(name).is_some_and(|domains| domains.len() > 1)
    };
    if !policy.names().any(several) {
        findings.push(Finding {
            kind: Kind::Unreachable,
            place: place.clone(),
            message: format!(
                "policy `{}` has nothing to share: each name in its `use` is one domain",
                policy.name
            ),
            label: Some("nothing to share".to_owned()),
            help: Some(
                "name a group: the members of the first entry of `use` that has one which fits share the flows"
                    .to_owned(),
            ),
        });
    }
}
