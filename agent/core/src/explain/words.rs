//! Reasons as sentences without a full stop.

use super::flow::{Fate, Never, Pass, Refuse};
use super::{Closed, Explanation, Reach};
use crate::engine::Engine;
use crate::engine::ranking::{By, Contender, Precedence, Standing};
use crate::ids::DomainIndex;
use crate::policy::{Match, Origin, Policy, Share};
use crate::rules::Flow;
use crate::rules::flatten::RuleAt;

/// Why no policy holds at a cgroup; `None`: policies can hold there.
pub fn unmanaged(explanation: &Explanation) -> Option<String> {
    let path = &explanation.path;
    Some(match &explanation.reach {
        Reach::Managed | Reach::Closed(_) => return None,
        Reach::NoPolicies => {
            "nothing steers it, because there is no policy that does more than pass".to_owned()
        }
        Reach::Outside(root) => format!(
            "not managed: nothing steers it, because the cgroup /{path} is not below the managed root \
             /{root} (`cgroup-root` in [agent])"
        ),
        Reach::Exempt => {
            "not managed: nothing steers it, because it is the agent's own cgroup".to_owned()
        }
        Reach::Root => {
            "not managed: nothing steers it, because it is in the root of the cgroup tree, \
                        whose sockets are the kernel's own; start it with `steer run`, or as a unit"
                .to_owned()
        }
    })
}

/// Why a cgroup is closed.
pub fn closed(closed: Closed) -> &'static str {
    match closed {
        Closed::TooDeep => {
            "the cgroup is deeper than 64 levels, where patterns of strict policies cannot be told to \
             match: it is closed"
        }
        Closed::NoNumber => {
            "the kernel map has no room for its strict policy: it is closed; unset policies that are \
             not needed"
        }
    }
}

/// Why a policy stands where it does.
pub fn standing(engine: &Engine, contender: &Contender) -> String {
    let own = engine.state().policy(contender.policy.as_str());
    let policy = |name: &crate::name::Name| engine.state().policy(name.as_str());
    let Some(own) = own else {
        return String::new();
    };
    match &contender.standing {
        Standing::InForce(None) if own.origin == Origin::Default => {
            "the default, since no other matches".to_owned()
        }
        Standing::InForce(None) => "no other matches".to_owned(),
        Standing::InForce(Some(Precedence { by, other })) => match (by, policy(other)) {
            (By::Default, _) => "it matches, and the default holds only where none does".to_owned(),
            (By::Depth, _) => format!("it matches deeper than `{other}`"),
            (By::Origin, Some(other)) => format!(
                "`{}` matches the same cgroup, and policies from {} go before those from {}",
                other.name,
                origin(own.origin),
                origin(other.origin)
            ),
            (By::Owner, _) => format!(
                "`{other}` matches the same cgroup, and is a plain user's, not the administrators'"
            ),
            (By::Priority, Some(other)) => format!(
                "its priority {} is higher than {} of `{}`",
                own.priority, other.priority, other.name
            ),
            (By::Exactness, _) => {
                format!("it names the cgroup, where `{other}` matches by pattern or unit")
            }
            (By::Origin | By::Priority, None) => String::new(),
        },
        Standing::Behind(Precedence { by, other }) => match (by, policy(other)) {
            (By::Default, _) => {
                format!("the default holds only where none matches, and `{other}` does")
            }
            (By::Depth, _) if *other == contender.policy => {
                "the same policy matches deeper".to_owned()
            }
            (By::Depth, _) => format!("`{other}` matches deeper"),
            (By::Origin, Some(other)) => format!(
                "`{}` matches the same cgroup, and policies from {} go before those from {}",
                other.name,
                origin(other.origin),
                origin(own.origin)
            ),
            (By::Owner, _) => format!(
                "`{other}` matches the same cgroup, and is the administrators', not a plain user's"
            ),
            (By::Priority, Some(other)) => format!(
                "its priority {} is lower than {} of `{}`",
                own.priority, other.priority, other.name
            ),
            (By::Exactness, _) => {
                format!("it matches by pattern or unit, where `{other}` names the cgroup")
            }
            (By::Origin | By::Priority, None) => String::new(),
        },
        Standing::Equal(applies) => format!(
            "refused here: it has the origin and priority of `{applies}`, which applies; give one of \
             them another priority"
        ),
        Standing::ShutOut(by) => match policy(by) {
            Some(by) if by.origin == own.origin => format!(
                "shut out: `{}` is strict and the administrators', and this is a plain user's",
                by.name
            ),
            Some(by) => format!(
                "shut out: `{}` is strict, and policies from {} go before those from {}",
                by.name,
                origin(by.origin),
                origin(own.origin)
            ),
            None => String::new(),
        },
    }
}

/// Who wrote a policy.
pub fn origin(origin: Origin) -> &'static str {
    match origin {
        Origin::Default => "the default",
        Origin::App => "an application",
        Origin::User => "a user",
        Origin::Operator => "the operator",
        Origin::Admin => "the files",
    }
}

/// Which of a policy's matches fit a cgroup, as they are written.
pub fn matched(engine: &Engine, policy: &Policy, path: &str) -> Vec<String> {
    let id = engine.state().cgroups.find(path);
    let fits = policy.matches.iter().filter_map(|wanted| match wanted {
        Match::Cgroup(pattern) => pattern
            .matches(path)
            .then(|| format!("cgroup {}", pattern.as_str())),
        Match::Unit(unit) => {
            let last = path.rsplit('/').next();
            (last == Some(unit.as_str())).then(|| format!("unit {}", unit.as_str()))
        }
        Match::CgroupId(wanted) => (id == Some(*wanted)).then(|| format!("id {wanted}")),
    });
    fits.collect()
}

/// The rules that decide about a flow: the first that fits, and what is asked behind it. `None`: no rule
/// fits.
pub fn rules(engine: &Engine, asked: &[RuleAt]) -> Option<String> {
    let words = asked.iter().map(|at| {
        let policy = engine.state().policy(at.policy.as_str());
        let rule = policy.and_then(|policy| policy.rules.get(at.number.checked_sub(1)?));
        let says = rule.map_or_else(String::new, |rule| format!(": {rule}"));
        format!("rule {} of `{}`{says}", at.number, at.policy)
    });
    let words: Vec<String> = words.collect();
    (!words.is_empty()).then(|| words.join("; then "))
}

/// Why a flow fares so.
pub fn fate(engine: &Engine, explanation: &Explanation, flow: &Flow, fate: &Fate) -> String {
    let policy = explanation.ranking.chain.first();
    let decision = explanation.decision(engine, flow);
    let rules = decision
        .as_ref()
        .and_then(|decision| rules(engine, &decision.rules));
    let because = match (policy, rules) {
        (Some(policy), Some(rules)) => format!("policy `{policy}` holds ({rules})"),
        (Some(policy), None) => format!("policy `{policy}` holds"),
        (None, _) => String::new(),
    };
    let domain = |index: DomainIndex| {
        let mut indices = engine.state().memory.indices.iter();
        let name = indices.find(|(_, i)| **i == index);
        name.map_or_else(|| format!("domain {index}"), |(name, _)| name.to_string())
    };
    let decided = || {
        let decision = decision.as_ref();
        decision.map_or_else(String::new, |decided| decided.decision.reason.clone())
    };
    let by_destination = decision
        .as_ref()
        .is_some_and(|decided| decided.decision.share == Some(Share::Destination));
    match fate {
        Fate::Never(never) => never_words(*never).to_owned(),
        Fate::Local(prefix) => format!(
            "{prefix} is a network of another interface, and {because} with `local-networks = \
             \"pass\"`"
        ),
        Fate::Pass(Pass::NoPolicy) => {
            unmanaged(explanation).unwrap_or_else(|| "no policy matches".to_owned())
        }
        Fate::Pass(Pass::Policy) => format!("{because}: {}", decided()),
        Fate::Steer(index) if by_destination => format!(
            "{because}: {}, and this one is {}'s",
            decided(),
            domain(*index)
        ),
        Fate::Steer(_) | Fate::Shared(_) => format!("{because}: {}", decided()),
        Fate::Refuse(Refuse::Closed) => match explanation.reach {
            Reach::Closed(why) => closed(why).to_owned(),
            _ => "the cgroup is closed until the agent has decided".to_owned(),
        },
        Fate::Refuse(Refuse::Blocked) => format!("{because}: {}", decided()),
        Fate::Refuse(Refuse::DomainGone(index)) => {
            format!("{because}: the interface of {} is gone", domain(*index))
        }
        Fate::Refuse(Refuse::Family(index)) => format!(
            "{because}: {} was chosen, and has no address or no route of this family",
            domain(*index)
        ),
        Fate::Refuse(Refuse::Prefers(family)) => format!(
            "{because} with `prefer-family = \"{family}\"`: datagram sockets do not connect to the other one where \
             the domain has both (connections, DNS, and datagrams without `connect` go there)"
        ),
    }
}

fn never_words(never: Never) -> &'static str {
    match never {
        Never::Unspecified => "no policy moves flows to the unspecified address: that is this host",
        Never::Loopback => "no policy moves flows to loopback",
        Never::LinkLocal => "no policy moves flows to link-local addresses",
        Never::Multicast => "no policy moves flows to multicast groups",
        Never::Broadcast => "no policy moves broadcasts",
        Never::Host => "no policy moves flows to the host's own addresses",
    }
}
