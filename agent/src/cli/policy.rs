//! `steer policy`: what is wanted, and what came of it.

use std::path::Path;

use schemars::JsonSchema;
use serde::Serialize;

use super::args::PolicySetArgs;
use super::output::{Cell, Look, Page, print_json, traffic};
use super::{call, list as joined, sessions};
use crate::api::methods::{ListPolicies, SetPolicy, ShowPolicy, UnsetPolicy};
use crate::api::types::{DecisionView, Member, PolicyView, SessionsView, Verdict};

/// What `policy unset` did.
#[derive(Serialize, JsonSchema)]
pub(super) struct Removed {
    /// Name of the policy that was removed.
    removed: String,
    /// What became of live flows, by the policies that hold for them now.
    sessions: Option<SessionsView>,
}

pub(super) fn list(socket: &Path, json: bool) -> anyhow::Result<()> {
    let policies = call(socket, &ListPolicies {})?.policies;
    if json {
        return print_json(&policies);
    }
    let mut page = Page::new();
    if policies.is_empty() {
        page.line(none(), Look::Plain);
    } else {
        table(&mut page, &policies, false);
    }
    page.print()
}

pub(super) fn show(socket: &Path, name: String, json: bool) -> anyhow::Result<()> {
    print(&call(socket, &ShowPolicy { name })?.policy, json)
}

pub(super) fn set(socket: &Path, args: PolicySetArgs, json: bool) -> anyhow::Result<()> {
    let set = SetPolicy {
        name: args.name,
        cgroup: args.cgroup.iter().map(|path| without_slash(path)).collect(),
        unit: args.unit,
        pid: args.pid,
        use_: args.via,
        strict: args.strict.then_some(true),
        otherwise: args.otherwise.map(Into::into),
        local_networks: args.local_networks.map(Into::into),
        priority: args.priority,
        save: args.save.then_some(true),
    };
    print(&call(socket, &set)?.policy, json)
}

pub(super) fn unset(socket: &Path, name: String, save: bool, json: bool) -> anyhow::Result<()> {
    let unset = UnsetPolicy {
        name,
        save: save.then_some(true),
    };
    let sessions = call(socket, &unset)?.sessions;
    if json {
        return print_json(&Removed {
            removed: unset.name,
            sessions,
        });
    }
    let mut page = Page::new();
    page.line(&format!("policy {} removed", unset.name), Look::Plain);
    if let Some(words) = sessions::sentence(sessions.as_ref()) {
        page.line(&words, Look::Plain);
    }
    page.print()
}

/// A path as in /proc/PID/cgroup begins with a slash; patterns do not need it.
fn without_slash(path: &str) -> String {
    match path.strip_prefix('/') {
        Some("") | None => path.to_owned(),
        Some(rest) => rest.to_owned(),
    }
}

/// What is said when there are none.
pub(super) fn none() -> &'static str {
    if nix::unistd::geteuid().is_root() {
        "no policies: every flow is left to the host's ordinary routing"
    } else {
        "no policy of yours, and none that holds for this process (root sees all)"
    }
}

/// All policies, one a line. `since`: with the time of the decision in place of what is wanted, for when nobody
/// decides any more.
pub(super) fn table(page: &mut Page, policies: &[PolicyView], since: bool) {
    let rows = policies.iter().map(|policy| {
        vec![
            policy.name.as_str().into(),
            Cell::name(&decision(policy)).look(look(policy)),
            if since {
                let since = policy.decision.since.as_deref();
                Cell::name(since.unwrap_or("-"))
            } else {
                wish(policy).into()
            },
            policy.cgroups.to_string().into(),
            matches(policy).into(),
        ]
    });
    let third = if since { "SINCE" } else { "USE" };
    page.table(
        &["POLICY", "DECISION", third, "CGROUPS", "MATCHES"],
        rows.collect(),
    );
}

fn print(policy: &PolicyView, json: bool) -> anyhow::Result<()> {
    if json {
        return print_json(policy);
    }
    let mut page = Page::new();
    let DecisionView {
        source4,
        source6,
        reason,
        since,
        candidates,
        ..
    } = &policy.decision;
    let sources: Vec<String> = source4.iter().chain(source6).cloned().collect();
    let priority = policy.priority.filter(|priority| *priority != 0);
    let priority = priority.map(|priority| priority.to_string());
    let owner = policy.owner.map(|uid| format!("user {uid}"));
    let owner = owner.unwrap_or_default();
    let otherwise = policy.otherwise.as_ref().map(word);
    let kept = if policy.saved {
        "in a file"
    } else {
        "until the host restarts"
    };
    let (not_there, look_of_it) = match (&policy.quarantined, &policy.note) {
        (Some(why), _) => (why.as_str(), Look::Bad),
        (None, Some(why)) => (why.as_str(), Look::Warning),
        (None, None) => ("", Look::Plain),
    };
    let mut facts = vec![
        ("policy", policy.name.as_str().into()),
        ("decision", Cell::new(&decision(policy), look(policy))),
        ("reason", reason.as_str().into()),
        ("since", since.as_deref().unwrap_or_default().into()),
        (
            if policy.cgroups == 0 {
                "not in force"
            } else {
                "not everywhere"
            },
            Cell::new(not_there, look_of_it),
        ),
        ("sources", joined(&sources).into()),
        ("use", uses(policy).into()),
        (
            "preferred",
            policy.preferred.as_deref().unwrap_or_default().into(),
        ),
        ("otherwise", otherwise.unwrap_or_default().into()),
        ("local networks", word(&policy.local_networks).into()),
        (
            "share",
            policy.share.as_ref().map(word).unwrap_or_default().into(),
        ),
        (
            "live flows",
            sessions::words(policy.sessions.as_ref()).into(),
        ),
        ("matches", matches(policy).into()),
        ("cgroups", policy.cgroups.to_string().into()),
        ("priority", priority.unwrap_or_default().into()),
        ("origin", word(&policy.origin).into()),
        ("owner", owner.into()),
        ("kept", kept.into()),
    ];
    facts.extend(traffic::of_policy(
        policy.traffic.as_deref().unwrap_or_default(),
    ));
    page.facts(facts);
    if !candidates.is_empty() {
        page.gap();
        let rows = candidates.iter().map(|candidate| {
            let taken = if candidate.taken {
                Cell::new("taken", Look::Good)
            } else {
                "not taken".into()
            };
            vec![
                candidate.domain.as_str().into(),
                taken,
                candidate.reason.as_str().into(),
            ]
        });
        page.table(&["CANDIDATE", "", "REASON"], rows.collect());
    }
    rules(&mut page, policy);
    page.print()
}

/// What the policy's rules, and those behind it, decide.
fn rules(page: &mut Page, policy: &PolicyView) {
    /// Rules that are shown.
    const SHOWN: usize = 30;
    let decisions = policy.rule_decisions.as_deref().unwrap_or_default();
    if decisions.is_empty() {
        return;
    }
    page.gap();
    let rows = decisions.iter().take(SHOWN).map(|rule| {
        let number = if rule.policy == policy.name {
            rule.number.to_string()
        } else {
            format!("{} of {}", rule.number, rule.policy)
        };
        let (decision, look) = match (rule.verdict, &rule.domain) {
            (Verdict::Steer, Some(domain)) => (shared(domain, &rule.members), Look::Good),
            (Verdict::Steer, None) => ("steer".to_owned(), Look::Good),
            (Verdict::Block, _) => ("block".to_owned(), Look::Bad),
            (Verdict::Pass, _) => ("pass".to_owned(), Look::Warning),
        };
        vec![
            number.into(),
            rule.text.as_str().into(),
            Cell::new(&decision, look),
            rule.reason.as_str().into(),
        ]
    });
    page.table(&["RULE", "FITS", "DECISION", "REASON"], rows.collect());
    if decisions.len() > SHOWN {
        page.line(
            "more rules: steer policy show --json has up to 1,000, with what each decides",
            Look::Plain,
        );
    }
}

/// One domain, or all that flows are spread over.
fn shared(domain: &str, members: &[Member]) -> String {
    match members {
        [] | [_] => domain.to_owned(),
        several => {
            let names: Vec<&str> = several
                .iter()
                .map(|member| member.domain.as_str())
                .collect();
            names.join("+")
        }
    }
}

/// The decision in a few words.
fn decision(policy: &PolicyView) -> String {
    let not_everywhere = policy.quarantined.is_some();
    if (not_everywhere || policy.note.is_some()) && policy.cgroups == 0 {
        return "not in force".to_owned();
    }
    if policy.question.is_some() {
        return "waits for an answer".to_owned();
    }
    let DecisionView {
        verdict,
        domain,
        interface,
        members,
        ..
    } = &policy.decision;
    let mut words = match (verdict, domain, interface) {
        (Verdict::Steer, Some(domain), _) if members.len() > 1 => {
            format!("steer by {}", shared(domain, members))
        }
        (Verdict::Steer, Some(domain), Some(interface)) if domain != interface => {
            format!("steer by {domain} ({interface})")
        }
        (Verdict::Steer, Some(domain), _) => format!("steer by {domain}"),
        (Verdict::Steer, None, _) => "steer".to_owned(),
        (Verdict::Block, ..) => "block".to_owned(),
        (Verdict::Pass, ..) => "pass".to_owned(),
    };
    if not_everywhere {
        words.push_str(", not everywhere");
    }
    words
}

fn look(policy: &PolicyView) -> Look {
    match policy.decision.verdict {
        _ if policy.quarantined.is_some() => Look::Bad,
        _ if policy.question.is_some() => Look::Warning,
        Verdict::Steer => Look::Good,
        Verdict::Block => Look::Bad,
        Verdict::Pass => Look::Warning,
    }
}

/// What the policy wants, in a few words, with what is wished beside.
fn wish(policy: &PolicyView) -> String {
    let wish = uses(policy);
    match &policy.preferred {
        // In front, where a narrow terminal leaves it.
        Some(domain) => format!("{domain} first: {wish}"),
        None => wish,
    }
}

/// What the policy says of domains.
fn uses(policy: &PolicyView) -> String {
    let mut wish = policy.use_.join(",");
    if policy.strict {
        wish.push_str(if wish.is_empty() { "strict" } else { " strict" });
    }
    match policy.rules {
        Some(0) | None => {}
        Some(1) => wish.push_str(" 1 rule"),
        Some(rules) => wish.push_str(&format!(" {rules} rules")),
    }
    wish.trim_start().to_owned()
}

fn matches(policy: &PolicyView) -> String {
    let all: Vec<String> = policy.cgroup.iter().chain(&policy.unit).cloned().collect();
    joined(&all)
}

/// The word that stands for a value on the wire.
fn word(value: &impl std::fmt::Debug) -> String {
    format!("{value:?}").to_lowercase()
}

#[cfg(test)]
mod tests {
    use super::without_slash;

    #[test]
    fn a_leading_slash_is_tolerated() {
        assert_eq!(without_slash("/app.slice/x"), "app.slice/x");
        assert_eq!(without_slash("app.slice/x"), "app.slice/x");
        assert_eq!(without_slash("/"), "/");
    }
}
