//! Requirements that no domain of the policy can meet, whatever comes.

use super::{Finding, Kind};
use crate::config::{Config, DomainConfig, Parsed};
use crate::groups;
use crate::name::Name;
use crate::policy::Policy;
use crate::probe::Check;

/// Says which cannot be met.
pub(super) fn check(parsed: &Parsed, findings: &mut Vec<Finding>) {
    let config = &parsed.config;
    let good = config.policies.values();
    let good = good.filter(|policy| !config.quarantined.contains_key(&policy.name));
    for policy in good {
        let Some(places) = parsed.places.policies.get(&policy.name) else {
            continue;
        };
        for (key, help) in unmet(config, policy) {
            findings.push(Finding {
                kind: Kind::Unenforceable,
                place: places.name.clone(),
                message: format!(
                    "policy `{}` has no domain that can meet `require.{key}`",
                    policy.name
                ),
                label: Some("no domain fits".to_owned()),
                help: Some(help),
            });
        }
    }
}

/// Keys of `require` that none of the policy's domains can meet, with what to do.
fn unmet(config: &Config, policy: &Policy) -> Vec<(&'static str, String)> {
    let require = &policy.criteria.require;
    let mut unmet = Vec::new();
    if let Some(profile) = &require.profile
        && !any(config, policy, |domain| {
            domain.is_some_and(|domain| domain.profile.as_ref() == Some(profile))
        })
    {
        let help = format!("give a domain of the policy `profile = \"{profile}\"`");
        unmet.push(("profile", help));
    }
    let is_measured = |domain: Option<&DomainConfig>| {
        let own = domain.and_then(|domain| domain.check.as_ref());
        own.or(config.agent.check.as_ref()).is_none_or(Check::asks)
    };
    for (key, asked) in [
        ("max-latency", require.max_latency.is_some()),
        ("max-loss", require.max_loss.is_some()),
    ] {
        if asked && !any(config, policy, is_measured) {
            let help = "it is measured by checks: leave `check = \"none\"` out, or ask something";
            unmet.push((key, help.to_owned()));
        }
    }
    unmet
}

/// Whether `fits` is so of a domain that the policy can choose; none: one without a section of the files.
fn any(config: &Config, policy: &Policy, fits: impl Fn(Option<&DomainConfig>) -> bool) -> bool {
    let of = |name: &Name| fits(config.domains.get(name));
    let mut names = policy.names();
    names.any(|name| match config.groups.get(name) {
        Some(members) => members.iter().any(of),
        None if groups::is_group(config, name) => {
            fits(None) || config.domains.values().any(|domain| fits(Some(domain)))
        }
        // An interface may be a domain's by another name.
        None if config.domains.contains_key(name) => of(name),
        None => fits(None) || config.domains.values().any(|domain| fits(Some(domain))),
    })
}
