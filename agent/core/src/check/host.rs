//! What this host cannot do of what the files want.

use std::collections::BTreeSet;

use super::{Facts, Finding, Kind};
use crate::config::{Parsed, Place, PolicyPlaces};
use crate::name::Name;
use crate::pattern::Walk;
use crate::policy::{Match, Otherwise, Policy};

/// Oldest kernel that the agent runs on.
const OLDEST: (u32, u32) = (6, 1);
/// First kernel that tells of new interfaces while no agent runs.
const NEW_INTERFACES: (u32, u32) = (6, 18);
/// Longest name of a directory, bytes.
const NAME_MAX: usize = 255;

/// Says what cannot be done.
pub(super) fn check(parsed: &Parsed, facts: &Facts, findings: &mut Vec<Finding>) {
    interfaces(parsed, facts, findings);
    marks(parsed, findings);
    strict_repair(parsed, findings);
    names_too_long(parsed, findings);
    mounted(parsed, facts, findings);
    managed(parsed, facts, findings);
    kernel(parsed, facts, findings);
}

fn unenforceable(place: &Place, message: String, label: &str, help: Option<&str>) -> Finding {
    Finding {
        kind: Kind::Unenforceable,
        place: place.clone(),
        message,
        label: Some(label.to_owned()),
        help: help.map(str::to_owned),
    }
}

/// Names that only an interface could bear, and none does.
fn interfaces(parsed: &Parsed, facts: &Facts, findings: &mut Vec<Finding>) {
    let Some(interfaces) = &facts.interfaces else {
        return;
    };
    let of_domains: BTreeSet<&str> = {
        let domains = parsed.config.domains.values();
        domains
            .filter_map(|domain| domain.matches.interface.as_deref())
            .collect()
    };
    let known = |name: &str| interfaces.contains(name) || of_domains.contains(name);
    let awaited = parsed.config.awaited.iter();
    for awaited in awaited.filter(|awaited| !known(awaited.name.as_str())) {
        findings.push(Finding {
            kind: Kind::Unenforceable,
            place: awaited.error.place.clone(),
            message: format!(
                "{}: no interface bears this name now",
                awaited.error.message
            ),
            label: Some("may come later".to_owned()),
            help: awaited.error.help.clone(),
        });
    }
}

/// More domains than there are marks.
fn marks(parsed: &Parsed, findings: &mut Vec<Finding>) {
    let config = &parsed.config;
    let room = usize::from(config.agent.mark_mask.capacity());
    let mut marked: BTreeSet<&Name> = BTreeSet::new();
    for (policy, places) in good(parsed) {
        let of_rules = places.rules.iter().flat_map(|rule| &rule.uses);
        for (name, place) in policy.names().zip(places.uses.iter().chain(of_rules)) {
            let domains = config.groups.get(name);
            marked.extend(domains.map_or(std::slice::from_ref(name), Vec::as_slice));
            if marked.len() > room {
                let message = format!(
                    "policies use more domains than the {room} that `mark-mask` has marks for"
                );
                let help = "widen `mark-mask` in [agent]";
                findings.push(unenforceable(place, message, "one too many", Some(help)));
                return;
            }
        }
    }
}

/// A strict policy that asks for repair.
fn strict_repair(parsed: &Parsed, findings: &mut Vec<Finding>) {
    for (policy, places) in good(parsed) {
        if policy.strict && policy.repair {
            findings.push(unenforceable(
                &places.name,
                format!(
                    "policy `{}` is strict: what `repair` would put right is dropped",
                    policy.name
                ),
                "strict",
                Some("leave `repair` out, or `strict`"),
            ));
        }
    }
}

/// Paths with a level that no directory can have.
fn names_too_long(parsed: &Parsed, findings: &mut Vec<Finding>) {
    for (policy, places) in good(parsed) {
        for (wanted, place) in policy.matches.iter().zip(&places.matches) {
            let Match::Cgroup(pattern) = wanted else {
                continue;
            };
            let letters = |level: &str| level.bytes().filter(|byte| *byte != b'*').count();
            if pattern
                .as_str()
                .split('/')
                .any(|level| letters(level) > NAME_MAX)
            {
                let message = format!(
                    "policy `{}` matches nothing here: no cgroup has a name of more than {NAME_MAX} bytes",
                    policy.name
                );
                findings.push(unenforceable(place, message, "matches nothing", None));
            }
        }
    }
}

/// Paths that begin with the mount point of the hierarchy.
fn mounted(parsed: &Parsed, facts: &Facts, findings: &mut Vec<Finding>) {
    let Some(mount) = facts.mount.as_deref().filter(|mount| !mount.is_empty()) else {
        return;
    };
    for (policy, places) in good(parsed) {
        for (wanted, place) in policy.matches.iter().zip(&places.matches) {
            let Match::Cgroup(pattern) = wanted else {
                continue;
            };
            let below = pattern.as_str().strip_prefix(mount);
            if let Some(path) = below.and_then(|path| path.strip_prefix('/')) {
                let message = format!(
                    "policy `{}` matches nothing here: paths are those of /proc/PID/cgroup, without the \
                     mount point",
                    policy.name
                );
                let help = format!("write `{path}`");
                findings.push(unenforceable(
                    place,
                    message,
                    "matches nothing",
                    Some(&help),
                ));
            }
        }
    }
}

/// Policies for cgroups that are not managed, and a default that nothing is left to.
fn managed(parsed: &Parsed, facts: &Facts, findings: &mut Vec<Finding>) {
    let root = match &facts.managed_root {
        Some(Ok(root)) if !root.is_empty() => root,
        _ => return,
    };
    let managed = Walk::path(root).and_below();
    let levels: Vec<&str> = {
        let ends = root.match_indices('/').map(|(end, _)| end);
        ends.chain([root.len()]).map(|end| &root[..end]).collect()
    };
    for (policy, places) in good(parsed) {
        let walks: Vec<Walk<'_>> = policy.matches.iter().filter_map(Walk::of).collect();
        let outside = |walk: &Walk<'_>| walk.and_below().meet(&managed).is_none();
        if !walks.is_empty() && walks.iter().all(outside) {
            let message = format!(
                "policy `{}` matches nothing that is managed: `cgroup-root` is {root}",
                policy.name
            );
            let help = "write paths as in /proc/PID/cgroup, beginning with that of `cgroup-root`";
            let place = places.matches.first().unwrap_or(&places.name);
            findings.push(unenforceable(place, message, "outside", Some(help)));
        }
        let holds = |walk: &Walk<'_>| levels.iter().any(|level| walk.holds(&Walk::path(level)));
        if policy.otherwise != Otherwise::Next
            && walks.iter().any(holds)
            && let Some(default) = parsed.places.policies.get(Name::DEFAULT_POLICY)
        {
            findings.push(Finding {
                kind: Kind::Unreachable,
                place: default.name.clone(),
                message: format!(
                    "[policy.default] can never be asked: `{}` ({}) matches all that is managed, and \
                     says what else to do",
                    policy.name, places.name
                ),
                label: Some("never asked".to_owned()),
                help: Some(format!(
                    "say `otherwise = \"next\"` in [policy.{}], or remove the default",
                    policy.name
                )),
            });
        }
    }
}

/// What the kernel lacks.
fn kernel(parsed: &Parsed, facts: &Facts, findings: &mut Vec<Finding>) {
    let first = |strict: bool| good(parsed).find(|(policy, _)| policy.strict || !strict);
    if let (Some(false), Some((_, places))) = (facts.btf, first(false)) {
        let message = "this kernel does not describe its types (BTF): the agent does not run on it, \
                       and no policy is in force";
        let help = "use a kernel with CONFIG_DEBUG_INFO_BTF=y, such as every distribution's";
        let finding = unenforceable(&places.name, message.to_owned(), "not in force", Some(help));
        findings.push(finding);
    }
    let Some(kernel) = facts.kernel else {
        return;
    };
    let (major, minor) = kernel;
    if let (true, Some((_, places))) = (kernel < OLDEST, first(false)) {
        let message = format!(
            "this kernel ({major}.{minor}) is older than 6.1: the agent does not run on it, and no \
             policy is in force"
        );
        findings.push(unenforceable(&places.name, message, "not in force", None));
    } else if let (true, Some((policy, places))) = (kernel < NEW_INTERFACES, first(true)) {
        let message = format!(
            "this kernel ({major}.{minor}) is older than 6.18: strict policies as `{}` are not guarded at \
             an interface that appears while no agent runs, until the next one starts",
            policy.name
        );
        findings.push(unenforceable(
            &places.name,
            message,
            "not in all cases",
            None,
        ));
    }
}

/// Policies that are not in quarantine, with their places.
fn good(parsed: &Parsed) -> impl Iterator<Item = (&Policy, &PolicyPlaces)> {
    let config = &parsed.config;
    let policies = config.policies.values();
    policies
        .filter(|policy| !config.quarantined.contains_key(&policy.name))
        .filter_map(|policy| Some((policy, parsed.places.policies.get(&policy.name)?)))
}
