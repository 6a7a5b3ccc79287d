//! Rules and routes of others, where they meet steer's marks, priorities and tables.

use std::collections::{BTreeMap, BTreeSet};

use steer_core::config::AgentConfig;
use steer_core::network::{ForeignRule, Network};
use steer_core::plan::rules::offset;
use steer_core::plan::{Family, foreign};

use super::cgroups::listed;
use super::code::Code;
use super::finding::{Finding, Seen, Unchecked};
use super::tools;
use crate::netlink::{self, Survey};
use crate::reconcile::chain;

/// Looks.
pub(super) async fn gather() -> Seen<Survey> {
    netlink::survey()
        .await
        .map_err(|error| Unchecked::failed("rules, routes and interfaces", chain(&error)))
}

/// Judges.
pub(super) fn judge(network: &Network, config: &AgentConfig, findings: &mut Vec<Finding>) {
    let mask = config.mark_mask.bits();
    for rule in &network.rules {
        if let Some((value, compared)) = rule.fwmark
            && compared & mask != 0
        {
            let described = describe(rule);
            findings.push(if value & mask != 0 {
                let text = format!("{described} looks for mark bits in {mask:#x} (`mark-mask`)");
                Finding::new(Code::R01, text).usual_mend()
            } else {
                let text = format!(
                    "{described} compares mark bits in {mask:#x} (`mark-mask`) and expects none"
                );
                Finding::new(Code::R02, text)
            });
        }
        let own = config.rule_base..config.rule_base.saturating_add(offset::COUNT);
        if own.contains(&rule.priority) {
            let text = format!(
                "{} lies among steer's priorities ({} to {})",
                describe(rule),
                own.start,
                own.end - 1
            );
            findings.push(Finding::new(Code::R03, text).usual_mend());
        }
    }
    let tables = tables(config);
    let taken: BTreeSet<u32> = network.routes.iter().map(|route| route.table.0).collect();
    let taken: Vec<String> = taken
        .into_iter()
        .filter(|table| tables.contains(table))
        .map(|table| table.to_string())
        .collect();
    if !taken.is_empty() {
        let text = format!(
            "routes of others are in table {}, of steer's range {} to {}",
            listed(taken),
            tables.start(),
            tables.end()
        );
        findings.push(Finding::new(Code::R04, text).usual_mend());
    }
    for family in Family::BOTH {
        for rule in foreign::catching(network, family) {
            let text = format!("{} catches what has no policy", describe(rule));
            findings.push(Finding::new(Code::R05, text));
        }
    }
}

/// The tables that are steer's.
pub(super) fn tables(config: &AgentConfig) -> std::ops::RangeInclusive<u32> {
    let last = u32::from(config.mark_mask.capacity());
    config.table_base.saturating_add(1)..=config.table_base.saturating_add(last)
}

/// A rule as `ip rule` writes it, and whose it is where that is known.
pub(super) fn describe(rule: &ForeignRule) -> String {
    let mut text = format!(
        "{} rule {}:",
        if rule.v6 { "IPv6" } else { "IPv4" },
        rule.priority
    );
    if rule.invert {
        text += " not";
    }
    if let Some(from) = rule.from {
        text += &format!(" from {from}");
    }
    if let Some(to) = rule.to {
        text += &format!(" to {to}");
    }
    match rule.fwmark {
        Some((value, u32::MAX)) => text += &format!(" fwmark {value:#x}"),
        Some((value, mask)) => text += &format!(" fwmark {value:#x}/{mask:#x}"),
        None => {}
    }
    if rule.narrow {
        text += " ..";
    }
    match rule.table {
        Some(table) => text += &format!(" lookup {table}"),
        None => text += " (no lookup)",
    }
    if let Some(length) = rule.suppress_prefix_len {
        text += &format!(" suppress_prefixlength {length}");
    }
    match tools::owner_of(rule) {
        Some(tool) => format!("{text} ({tool})"),
        None => text,
    }
}

/// The lowest and the highest priority of some rules.
pub(super) fn priorities<'a>(rules: impl IntoIterator<Item = &'a ForeignRule>) -> String {
    let mut families: BTreeMap<bool, (u32, u32)> = BTreeMap::new();
    for rule in rules {
        let range = families
            .entry(rule.v6)
            .or_insert((rule.priority, rule.priority));
        *range = (range.0.min(rule.priority), range.1.max(rule.priority));
    }
    listed(families.into_iter().map(|(v6, (first, last))| {
        let family = if v6 { "IPv6" } else { "IPv4" };
        if first == last {
            format!("{family} {first}")
        } else {
            format!("{family} {first} to {last}")
        }
    }))
}
