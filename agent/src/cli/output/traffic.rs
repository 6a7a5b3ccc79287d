//! How much was sent, as people read it.

use super::units::bytes;
use super::{Cell, Look, Page};
use crate::api::types::{StatusView, TrafficView};

/// In a few words, without the domain.
pub(in crate::cli) fn words(traffic: &TrafficView) -> String {
    let mut words = format!("{} in {} packets", bytes(traffic.bytes), traffic.packets);
    for (count, what) in [(traffic.wrong, "wrong"), (traffic.dropped, "dropped")] {
        if count > 0 {
            words.push_str(&format!(", {count} {what}"));
        }
    }
    if let Some(since) = &traffic.since {
        words.push_str(&format!(", since {since}"));
    }
    words
}

/// What was sent for a policy, a fact for each domain.
pub(in crate::cli) fn of_policy(traffic: &[TrafficView]) -> impl Iterator<Item = (&str, Cell)> {
    traffic.iter().map(|traffic| {
        let by = match &traffic.domain {
            Some(domain) => format!("by {domain}: "),
            None => "by no domain: ".to_owned(),
        };
        ("sent", Cell::new(&(by + &words(traffic)), look(traffic)))
    })
}

fn look(traffic: &TrafficView) -> Look {
    if traffic.wrong + traffic.dropped > 0 {
        Look::Warning
    } else {
        Look::Plain
    }
}

/// All of a status: a row for each policy and domain, and then one for each domain with all that it carried
/// for policies, also for those that are gone. Nothing, where nothing was counted.
pub(in crate::cli) fn table(page: &mut Page, status: &StatusView) {
    let row = |policy: &str, traffic: &TrafficView| {
        vec![
            policy.into(),
            Cell::name(traffic.domain.as_deref().unwrap_or("-")),
            bytes(traffic.bytes).into(),
            traffic.packets.to_string().into(),
            traffic.wrong.to_string().into(),
            Cell::new(&traffic.dropped.to_string(), look(traffic)),
        ]
    };
    let counted = |traffic: &&TrafficView| traffic.packets + traffic.dropped > 0;
    let mut rows = Vec::new();
    let mut since = None;
    for policy in &status.policies {
        for traffic in policy.traffic.iter().flatten().filter(counted) {
            since = since.or(traffic.since.as_deref());
            rows.push(row(&policy.name, traffic));
        }
    }
    for domain in &status.domains {
        if let Some(traffic) = domain.traffic.as_ref().filter(counted) {
            since = since.or(traffic.since.as_deref());
            rows.push(row("(all)", traffic));
        }
    }
    if rows.is_empty() {
        return;
    }
    page.gap();
    if let Some(since) = since {
        page.line(&format!("sent since {since}"), Look::Heading);
    }
    page.table(
        &["POLICY", "DOMAIN", "SENT", "PACKETS", "WRONG", "DROPPED"],
        rows,
    );
}
