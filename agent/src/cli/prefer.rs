//! `steer domain prefer`: one domain is to come first among those that policies can use.

use std::collections::BTreeMap;
use std::path::Path;

use nix::unistd::{Group, Uid, getgroups};

use super::args::PreferArgs;
use super::menu::{Menu, Picked, Row, in_words};
use super::output::{Look, Page, print_json};
use super::{call, policy, sessions};
use crate::api::methods::{ListDomains, ListPolicies, Prefer, ShowPolicy};
use crate::api::types::{Choice, PolicyView};

/// What an empty line does.
const EMPTY: &str = "empty: no change";

/// The group whose members may change every policy.
const GROUP: &str = "steer";

/// No domain was named, and it could not be asked for.
#[derive(Debug, thiserror::Error)]
pub(super) enum Error {
    #[error(
        "there is no terminal to ask on: name one, `steer domain prefer NAME`; NAME is one of {0}"
    )]
    NoTerminal(String),
    #[error(
        "there is nothing to choose from: no policy of yours has a domain (`steer policy list`)"
    )]
    NoPolicy,
}

pub(super) fn prefer(socket: &Path, args: PreferArgs, json: bool) -> anyhow::Result<()> {
    let domain = match (args.name, args.none) {
        (None, false) => match ask(socket, &args.policy)? {
            Some(domain) => Some(domain),
            None if json => return print_json(&Vec::<PolicyView>::new()),
            None => return say("nothing was changed"),
        },
        (name, _) => name,
    };
    let prefer = Prefer {
        domain,
        policy: args.policy,
    };
    let policies = call(socket, &prefer)?.policies;
    if json {
        return print_json(&policies);
    }
    if policies.is_empty() {
        return say("no policy has a preferred domain");
    }
    let mut page = Page::new();
    policy::table(&mut page, &policies, false);
    for policy in &policies {
        if let Some(words) = sessions::sentence(policy.sessions.as_ref()) {
            page.line(&format!("{}: {words}", policy.name), Look::Plain);
        }
    }
    page.print()
}

fn say(words: &str) -> anyhow::Result<()> {
    let mut page = Page::new();
    page.line(words, Look::Plain);
    page.print()
}

/// Offers what the policies can use. None: nothing is to be changed.
fn ask(socket: &Path, named: &[String]) -> anyhow::Result<Option<String>> {
    let mut policies = Vec::new();
    for name in named {
        let name = name.clone();
        policies.push(call(socket, &ShowPolicy { name })?.policy);
    }
    if named.is_empty() {
        policies = call(socket, &ListPolicies {})?.policies;
        let all = changes_all();
        let user = Uid::effective().as_raw();
        policies.retain(|policy| {
            // A question is answered by who names it.
            policy.question.is_none() && (all || policy.owner == Some(user))
        });
    }
    let domains = call(socket, &ListDomains {})?.domains;
    let mut rows: Vec<Row> = Vec::new();
    let mut known: BTreeMap<String, Choice> = BTreeMap::new();
    for domain in domains {
        let choice = Choice {
            domain: domain.name.clone(),
            kind: domain.kind,
            state: domain.state,
            reason: domain.reason,
            cost: domain.cost,
            metered: domain.metered,
        };
        known.insert(domain.name, choice);
    }
    for policy in &policies {
        for name in &policy.domains {
            let at = rows.iter().position(|row| row.choice.domain == *name);
            let at = at.unwrap_or_else(|| {
                let choice = known.get(name).cloned();
                rows.push(Row {
                    choice: choice.unwrap_or_else(|| absent(name)),
                    taken_by: Vec::new(),
                });
                rows.len() - 1
            });
            if policy.decision.domain.as_ref() == Some(name)
                && let Some(row) = rows.get_mut(at)
            {
                row.taken_by.push(policy.name.clone());
            }
        }
    }
    if rows.is_empty() {
        return Err(Error::NoPolicy.into());
    }
    let Some(mut menu) = Menu::open() else {
        let offer: Vec<Choice> = rows.into_iter().map(|row| row.choice).collect();
        return Err(Error::NoTerminal(in_words(&offer)).into());
    };
    let names: Vec<String> = policies.iter().map(|policy| policy.name.clone()).collect();
    let title = match names.as_slice() {
        [one] => format!("Which domain comes first for the policy {one}?"),
        _ => "Which domain comes first for every policy that can use it?".to_owned(),
    };
    menu.offer(&title, rows, None, EMPTY)?;
    Ok(match menu.pick(None, EMPTY)? {
        Picked::Domain(domain) => Some(domain),
        Picked::Nothing => None,
        Picked::End | Picked::Other => {
            menu.close("");
            None
        }
    })
}

/// Whether the caller may change every policy; the agent has the last word.
fn changes_all() -> bool {
    let group = Group::from_name(GROUP).ok().flatten();
    let member = || {
        let group = group?.gid;
        let effective = nix::unistd::getegid() == group;
        Some(effective || getgroups().ok()?.contains(&group))
    };
    Uid::effective().is_root() || member().unwrap_or(false)
}

/// A domain that a policy names and that is not there.
fn absent(name: &str) -> Choice {
    Choice {
        domain: name.to_owned(),
        kind: "other".to_owned(),
        state: "absent".to_owned(),
        reason: format!("there is no interface {name}"),
        cost: 0,
        metered: false,
    }
}
