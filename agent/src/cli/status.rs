//! `steer status`: what is in force, and why; also when no agent runs.

use std::path::Path;
use std::process::ExitCode;

use super::output::{Cell, Look, Page, print_json, traffic};
use super::{NOT_REACHABLE, call, clean, domain, elsewhere, list, policy, sessions};
use crate::api::client::Error;
use crate::api::methods::Status;
use crate::api::types::StatusView;
use crate::daemon;

pub(super) fn status(socket: &Path, json: bool) -> anyhow::Result<ExitCode> {
    let answered = call(socket, &Status {});
    let (status, code) = match answered {
        Ok(reply) => (reply.status, ExitCode::SUCCESS),
        Err(Error::NotRunning(asked)) => match daemon::offline_status() {
            Ok(mut status) => {
                status.sort();
                let words = match daemon::running() {
                    Some(running) => elsewhere(&running, &asked),
                    None => Error::NotRunning(asked).to_string(),
                };
                eprintln!("steer: {}", clean(&words));
                (status, NOT_REACHABLE.into())
            }
            Err(e) => {
                let absent = Error::NotRunning(asked);
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
        page(&status, code == ExitCode::SUCCESS).print()?;
    }
    Ok(code)
}

/// `answered`: the agent said so, and it was not read from what the kernel holds.
fn page(status: &StatusView, answered: bool) -> Page {
    let mut page = Page::new();
    let nothing = status.policies.is_empty() && status.domains.is_empty();
    let agent = match (status.agent_running, &status.since) {
        (true, _) if !answered => Cell::new(
            "running, but not reached; what follows was read from the kernel",
            Look::Bad,
        ),
        (true, Some(since)) => Cell::new(
            &format!("running since {since}, version {}", status.version),
            Look::Good,
        ),
        (true, None) => Cell::new(&format!("running, version {}", status.version), Look::Good),
        (false, _) if nothing => Cell::new("not running", Look::Bad),
        (false, _) => Cell::new(
            &match &status.last_seen {
                Some(seen) => format!(
                    "not running since {seen}; what follows was left in force by the last one, and \
                     does not follow the network"
                ),
                None => {
                    "not running; what follows was left in force by the last one, and does not \
                         follow the network"
                        .to_owned()
                }
            },
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
        (
            "live flows",
            sessions::words(status.sessions.as_ref()).into(),
        ),
        ("counters", list(&counters).into()),
    ]);
    for warning in &status.warnings {
        page.line(&format!("warning: {warning}"), Look::Warning);
    }
    if nothing && !answered {
        return page;
    }
    page.gap();
    if status.policies.is_empty() {
        page.line(policy::none(), Look::Plain);
    } else {
        policy::table(&mut page, &status.policies, !answered);
    }
    page.gap();
    // Which domains there are, and how they are, only an agent knows.
    if !answered {
        page.line("domains are not followed without an agent", Look::Plain);
    } else if status.domains.is_empty() {
        page.line(domain::NONE, Look::Plain);
    } else {
        domain::table(&mut page, &status.domains);
    }
    traffic::table(&mut page, status);
    page
}
