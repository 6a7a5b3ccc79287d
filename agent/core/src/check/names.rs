//! Names of domains and groups: which nothing uses, and which come too late in a list.

use std::collections::{BTreeMap, BTreeSet};

use super::{Finding, Kind};
use crate::config::{Config, Parsed, Place};
use crate::groups::built_in;
use crate::name::Name;

/// Says which domains and groups nothing uses, and which names in a list add nothing.
pub(super) fn check(parsed: &Parsed, findings: &mut Vec<Finding>) {
    let config = &parsed.config;
    let aliases = aliases(config);
    let own = |name: &Name| {
        aliases
            .get(name.as_str())
            .map_or_else(|| name.clone(), |n| (*n).clone())
    };
    for (group, (_, places)) in &parsed.places.groups {
        let domains = config.groups.get(group).into_iter().flatten();
        let lists = domains.map(|name| (name, vec![own(name)]));
        late(&format!("[group.{group}]"), lists, places, findings);
    }
    for (policy, places) in &parsed.places.policies {
        let Some(says) = config.policies.get(policy) else {
            continue;
        };
        let list = |name| match config.groups.get(name) {
            Some(domains) => (name, domains.iter().map(&own).collect()),
            None => (name, vec![own(name)]),
        };
        let lists = says.use_.iter().map(list);
        late(&format!("[policy.{policy}]"), lists, &places.uses, findings);
        for (number, (rule, places)) in (1..).zip(says.rules.iter().zip(&places.rules)) {
            let title = format!("rule {number} of [policy.{policy}]");
            let lists = rule.use_.iter().map(list);
            late(&title, lists, &places.uses, findings);
        }
    }
    unused(parsed, &own, findings);
}

/// Interfaces' names that lead to a domain of another name.
fn aliases(config: &Config) -> BTreeMap<&str, &Name> {
    let mut aliases = BTreeMap::new();
    for (name, domain) in &config.domains {
        if let Some(interface) = domain.matches.interface.as_deref()
            && !config.domains.contains_key(interface)
            && !config.groups.contains_key(interface)
        {
            aliases.entry(interface).or_insert(name);
        }
    }
    aliases
}

/// Names of a list whose domains all come before them.
fn late<'a>(
    title: &str,
    lists: impl Iterator<Item = (&'a Name, Vec<Name>)>,
    places: &[Place],
    findings: &mut Vec<Finding>,
) {
    let mut seen: BTreeMap<Name, &Name> = BTreeMap::new();
    for ((name, domains), place) in lists.zip(places) {
        let earlier: BTreeSet<&Name> = domains
            .iter()
            .filter_map(|d| seen.get(d).copied())
            .collect();
        if domains.iter().all(|domain| seen.contains_key(domain)) {
            let earlier: Vec<String> = earlier.iter().map(|name| format!("`{name}`")).collect();
            findings.push(Finding {
                kind: Kind::Unreachable,
                place: place.clone(),
                message: format!(
                    "`{name}` is never reached here in {title}: what it stands for comes before, as {}",
                    earlier.join(" and ")
                ),
                label: Some("comes too late".to_owned()),
                help: Some("remove it, or put it first".to_owned()),
            });
        }
        for domain in domains {
            seen.entry(domain).or_insert(name);
        }
    }
}

/// Domains and groups that no policy, group or permit names.
fn unused(parsed: &Parsed, own: &impl Fn(&Name) -> Name, findings: &mut Vec<Finding>) {
    let config = &parsed.config;
    let policies = config.policies.values();
    // What a policy in quarantine names is to be used.
    let bad = config.quarantined.values().map(|bad| &bad.policy);
    let by_policies = policies.chain(bad).flat_map(|policy| policy.names());
    let permits = config.permits.values().map(|permit| &permit.domains);
    let by_lists = permits.chain(config.groups.values()).flatten();
    let used: BTreeSet<Name> = by_policies.chain(by_lists).map(own).collect();
    let domains = parsed
        .places
        .domains
        .iter()
        .map(|(n, place)| ("domain", n, place));
    let groups = parsed
        .places
        .groups
        .iter()
        .map(|(n, (place, _))| ("group", n, place));
    // Those stand for every domain.
    let all = used.iter().any(|name| built_in(name.as_str()).is_some());
    for (what, name, place) in domains.chain(groups) {
        let stood_for = all && what == "domain";
        if !stood_for && !used.contains(name) {
            findings.push(Finding {
                kind: Kind::Unreachable,
                place: place.clone(),
                message: format!("nothing in the files uses the {what} `{name}`"),
                label: Some("not used".to_owned()),
                help: None,
            });
        }
    }
}
