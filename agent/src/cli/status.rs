//! `steer status`: what is in force, and why; also when no agent runs.

use std::path::Path;
use std::process::ExitCode;

use super::output::{Cell, Look, Page, print_json};
use super::{NOT_REACHABLE, call, clean, domain, list, policy};
use crate::api::client::Error;
use crate::api::methods::Status;
use crate::api::types::StatusView;
use crate::daemon;

pub(super) fn status(socket: &Path, json: bool) -> anyhow::Result<ExitCode> {
    let answered = call(socket, &Status {});
    let (status, code) = match answered {
        Ok(reply) => (reply.status, ExitCode::SUCCESS),
        Err(absent @ Error::NotRunning(_)) => match daemon::offline_status() {
            Ok(mut status) => {
                status.sort();
                eprintln!("steer: {absent}");
                (status, NOT_REACHABLE.into())
            }
            Err(e) => {
                let why = clean(&format!("{e:#}"));
                eprintln!("steer: what the last agent left in force cannot be read: {why}");
                return Err(absent.into());
            }
        },
        Err(e) => return Err(e.into()),
    };
    if json {
        print_json(&status)?;
    } else {
        page(&status).print()?;
    }
    Ok(code)
}

fn page(status: &StatusView) -> Page {
    let mut page = Page::new();
    let nothing = status.policies.is_empty() && status.domains.is_empty();
    let agent = match (status.agent_running, &status.since) {
        (true, Some(since)) => Cell::new(
            &format!("running since {since}, version {}", status.version),
            Look::Good,
        ),
        (true, None) => Cell::new(&format!("running, version {}", status.version), Look::Good),
        (false, _) if nothing => Cell::new("not running", Look::Bad),
        (false, _) => Cell::new(
            "not running; what follows was left in force by the last one, and does not follow \
             the network",
            Look::Bad,
        ),
    };
    let counters: Vec<String> = status
        .counters
        .iter()
        .filter(|&(_, &count)| count > 0)
        .map(|(name, count)| format!("{name} {count}"))
        .collect();
    page.facts(vec![
        ("agent", agent),
        ("cgroups", status.cgroup_root.as_str().into()),
        ("hooks", list(&status.hooks).into()),
        ("guards", list(&status.guards).into()),
        ("counters", list(&counters).into()),
    ]);
    for warning in &status.warnings {
        page.line(&format!("warning: {warning}"), Look::Warning);
    }
    if nothing && !status.agent_running {
        return page;
    }
    page.gap();
    if status.policies.is_empty() {
        page.line(policy::NONE, Look::Plain);
    } else {
        policy::table(&mut page, &status.policies);
    }
    // Which domains there are, and how they are, only an agent knows.
    if !status.agent_running && status.domains.is_empty() {
        return page;
    }
    page.gap();
    if status.domains.is_empty() {
        page.line(domain::NONE, Look::Plain);
    } else {
        domain::table(&mut page, &status.domains);
    }
    page
}
