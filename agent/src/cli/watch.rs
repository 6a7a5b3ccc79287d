//! `steer watch`: every change of a domain's state and of a decision, as they come.

use std::path::Path;

use anyhow::Context;

use super::output::stream::{ended, write_out};
use super::{PERSISTENCE, clean};
use crate::api::client::{Client, PATIENCE};
use crate::api::methods::Watch;
use crate::api::types::ChangeView;

/// Shows what comes until the agent or the reader goes.
pub(super) fn watch(socket: &Path, json: bool) -> anyhow::Result<()> {
    let watched = Client::persist(socket, PERSISTENCE, |client| {
        let mut parts = client.parts(&Watch {}, Some(PATIENCE))?;
        loop {
            let (reply, continues) = parts.receive()?;
            // The first comes at once.
            parts.wait_for_ever()?;
            let shown = reply.changes.iter().try_for_each(|change| {
                if json {
                    let value = serde_json::to_value(change).context("put the change into JSON")?;
                    write_out(&format!("{value}\n"))
                } else {
                    write_out(&format!("{}\n", line(change)))
                }
            });
            match shown {
                Ok(()) if continues => {}
                other => return Ok(other),
            }
        }
    });
    ended(watched)
}

/// A change in one line.
fn line(change: &ChangeView) -> String {
    let ChangeView {
        time,
        policy,
        rule,
        domain,
        state,
        was,
        reason,
        more,
    } = change;
    let policy = policy.as_ref().map(|policy| match rule {
        Some(number) => format!("policy {policy} rule {number}"),
        None => format!("policy {policy}"),
    });
    let was = was.as_ref().map(|was| format!(" (was {was})"));
    let was = was.unwrap_or_default();
    let what = match (policy, domain) {
        (Some(policy), Some(domain)) => format!("{policy} leaves by {domain}{was}"),
        (Some(policy), None) if state == "ended" => format!("{policy} has ended{was}"),
        (Some(policy), None) if state == "quarantined" => {
            format!("{policy} is in quarantine{was}")
        }
        (Some(policy), None) if state == "block" => format!("{policy} is blocked{was}"),
        (Some(policy), None) => format!("{policy} is left to the host's routing{was}"),
        (None, Some(domain)) => format!("domain {domain} is {state}{was}"),
        (None, None) => state.clone(),
    };
    let more = more.map(|more| format!(" (and {more} more policies)"));
    let more = more.unwrap_or_default();
    clean(&format!("{time} {what}: {reason}{more}"))
}

#[cfg(test)]
mod tests {
    use super::line;
    use crate::api::types::ChangeView;

    #[test]
    fn a_change_is_one_line() {
        let domain = ChangeView {
            time: "2026-01-02T03:04:05.678Z".to_owned(),
            domain: Some("wlan0".to_owned()),
            state: "limited".to_owned(),
            was: Some("validated".to_owned()),
            reason: "no answer".to_owned(),
            ..ChangeView::default()
        };
        assert_eq!(
            line(&domain),
            "2026-01-02T03:04:05.678Z domain wlan0 is limited (was validated): no answer"
        );
        let policy = ChangeView {
            policy: Some("web".to_owned()),
            domain: Some("wwan0".to_owned()),
            state: "steer".to_owned(),
            was: Some("wlan0".to_owned()),
            more: Some(2),
            ..domain
        };
        assert_eq!(
            line(&policy),
            "2026-01-02T03:04:05.678Z policy web leaves by wwan0 (was wlan0): no answer (and 2 more \
             policies)"
        );
    }
}
