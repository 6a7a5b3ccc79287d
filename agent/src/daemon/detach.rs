//! Undoes everything, without an agent.

use std::collections::BTreeSet;
use std::path::Path;

use schemars::JsonSchema;
use serde::Serialize;
use steer_core::plan::TableRoute;

use super::runs::is_run;
use super::{Saved, checks, decided, running, scan, sessions, state_file};
use crate::cgroup::{self, OwnCgroup, Placement, Tree, process};
use crate::datapath::{self, PIN_ROOT};
use crate::netlink::Routing;
use crate::reconcile::{Sysctls, chain};
use crate::statefile;

/// What [`detach`] removed, and what it had to leave.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, JsonSchema)]
pub struct DetachReport {
    /// What was removed, one object a line.
    pub removed: Vec<String>,
    /// What was left, and why.
    pub left: Vec<String>,
    /// What to know of it.
    pub notes: Vec<String>,
}

/// Removes programs, maps, rules, tables, changed settings, empty cgroups and the state, in that order:
/// flows lose their decisions before they lose their ways.
///
/// No agent can start meanwhile. Rules and routes are known by the agent's protocol number, places of
/// commands by their mark. A call that was cut short is finished by the next one.
///
/// # Errors
/// An agent runs, or the kernel refuses.
pub async fn detach() -> anyhow::Result<DetachReport> {
    let mut report = DetachReport::default();
    let state_file = state_file();
    let mut damaged = false;
    let saved: Saved = match state_file.read() {
        Ok(saved) => saved.unwrap_or_default(),
        Err(error @ (statefile::Error::Read(..) | statefile::Error::Write(..))) => {
            return Err(error.into());
        }
        Err(error @ statefile::Error::Damaged(..)) => {
            damaged = true;
            report.left.push(format!(
                "what it kept (changed settings and cgroups), for want of a record: {}",
                chain(&error)
            ));
            Saved::default()
        }
    };

    let detached = datapath::detach(Path::new(PIN_ROOT))?;
    let pins = detached.removed;
    let pins_empty = pins.directories == 0;
    if pins.directories > 0 {
        report.removed.push(format!(
            "{} attached programs, {} maps (pinned at {PIN_ROOT})",
            pins.links, pins.maps
        ));
    }

    let mut routing = Routing::open().await?;
    let rules = routing.rules().await?;
    // Those that refuse stand behind those that lead to tables, and go first: nobody is to be refused meanwhile.
    for rule in rules.iter().rev() {
        routing.delete_rule(rule).await?;
    }
    if let (Some(first), Some(last)) = (
        rules.iter().map(|rule| rule.priority).min(),
        rules.iter().map(|rule| rule.priority).max(),
    ) {
        let count = rules.len();
        report
            .removed
            .push(format!("{count} rules, priorities {first} to {last}"));
    }
    let routes = routing.routes().await?;
    let gone: Vec<TableRoute> = routes.iter().copied().collect();
    for outcome in routing.delete_routes(&gone).await {
        outcome?;
    }
    let tables: BTreeSet<String> = routes.iter().map(|route| route.table.to_string()).collect();
    if !tables.is_empty() {
        let tables: Vec<String> = tables.into_iter().collect();
        report.removed.push(format!(
            "{} routes, tables {}",
            routes.len(),
            tables.join(", ")
        ));
    }

    let mut sysctls = Sysctls::adopt(saved.sysctls.clone());
    for (path, value) in &saved.sysctls {
        sysctls.restore(path)?;
        report
            .removed
            .push(format!("setting {path}, again {value}"));
    }

    let forgotten = saved.policies.iter();
    let forgotten = forgotten.filter(|policy| !is_run(&policy.name)).count();
    if forgotten > 0 {
        let policies = counted(forgotten, "policy", "policies");
        report.removed.push(format!("{policies} set by command"));
    }
    if !pins_empty {
        let note = "policies in files are in force again when the next agent starts";
        report.notes.push(note.to_owned());
    }

    // Without a record there are none of this agent's: another's, as in a container, look the same.
    let root = Some(saved.cgroup_root.as_path()).filter(|root| !root.as_os_str().is_empty());
    let tree = root.map(|root| Tree::open(Some(root)));
    if let Some(Err(error)) = &tree {
        let words = chain(error);
        let left = format!("the cgroups of commands, which could not be looked for: {words}");
        report.left.push(left);
    }
    if let Some(Ok(tree)) = tree {
        let mut placement = OwnCgroup::new(&tree);
        for place in placement.existing(&scan(&tree)?) {
            let directory = place.directory();
            match placement.remove(directory) {
                Ok(()) => report
                    .removed
                    .push(format!("cgroup {}", directory.display())),
                Err(error) => report.left.push(left_place(directory, &error)),
            }
        }
        placement.withdraw()?;
    }
    if report.left.is_empty() || damaged {
        state_file.remove()?;
    } else {
        // Where the rest is, for the next call; no policy, for the next agent.
        state_file.write(&Saved {
            cgroup_root: saved.cgroup_root,
            ..Saved::default()
        })?;
    }
    decided::remove()?;
    sessions::remove()?;
    checks::remove()?;
    running::remove_leftover()?;
    // Only now an agent may start: it would have taken over half of what was there.
    detached.finish()?;
    Ok(report)
}

/// What is left of the place of a command, and why.
fn left_place(directory: &Path, error: &cgroup::Error) -> String {
    let pids = process::below(directory);
    if pids.is_empty() {
        return chain(error);
    }
    let shown: Vec<String> = pids.iter().take(SHOWN).map(ToString::to_string).collect();
    let more = if pids.len() > SHOWN { ", .." } else { "" };
    format!(
        "cgroup {} ({}: pid {}{more}), its processes run on without a policy",
        directory.display(),
        counted(pids.len(), "process", "processes"),
        shown.join(", ")
    )
}

/// Most processes that are named of one place.
const SHOWN: usize = 10;

fn counted(count: usize, one: &str, more: &str) -> String {
    format!("{count} {}", if count == 1 { one } else { more })
}
