//! What is in force when no agent runs: read from the pins and the state file, changing nothing.

use std::path::Path;

use anyhow::Context;
use steer_common::{PolicyEntry, policy_flags, verdict};
use steer_core::ids::PolicyId;

use super::views::counters_view;
use super::{Saved, state_file};
use crate::api::types::{
    DecisionView, LocalNetworks, Origin, Otherwise, PolicyView, StatusView, Verdict,
};
use crate::datapath::{PIN_ROOT, Pinned, read_pinned};

/// The decisions that a dead agent left in force.
///
/// # Errors
/// The pins or the state file cannot be read (root can).
pub fn offline_status() -> anyhow::Result<StatusView> {
    let pinned = read_pinned(Path::new(PIN_ROOT)).context("read what is pinned")?;
    let saved: Saved = state_file().read()?.unwrap_or_default();
    let mut view = StatusView {
        version: env!("CARGO_PKG_VERSION").to_owned(),
        agent_running: false,
        since: None,
        cgroup_root: saved.cgroup_root.display().to_string(),
        hooks: Vec::new(),
        guards: Vec::new(),
        policies: Vec::new(),
        domains: Vec::new(),
        counters: std::collections::BTreeMap::new(),
        warnings: Vec::new(),
    };
    let Some(pinned) = pinned else {
        view.warnings
            .push("no agent runs, and none left anything in force".to_owned());
        return Ok(view);
    };
    view.warnings
        .push("no agent runs: these are the last one's decisions, still in force".to_owned());
    view.hooks = pinned.hooks.iter().map(ToString::to_string).collect();
    view.guards = pinned
        .guards
        .iter()
        .map(|index| format!("index {index}"))
        .collect();
    view.counters = counters_view(&pinned.maps.counters()?);
    let cgroups = pinned.maps.cgroups.entries()?;
    for (number, chain) in saved.memory.policies.iter() {
        let Some(name) = chain.first() else { continue };
        let entry = pinned.maps.policies.get(number)?;
        let count = cgroups
            .iter()
            .filter(|(_, c)| PolicyId(c.policy) == PolicyId(number))
            .count();
        let written = saved.policies.iter().find(|policy| policy.name == *name);
        view.policies.push(PolicyView {
            name: name.to_string(),
            origin: if written.is_some() {
                Origin::User
            } else {
                Origin::Admin
            },
            cgroup: Vec::new(),
            unit: Vec::new(),
            use_: written
                .map(|policy| policy.use_.iter().map(ToString::to_string).collect())
                .unwrap_or_default(),
            strict: entry.flags & policy_flags::STRICT != 0,
            otherwise: Otherwise::Block,
            local_networks: if entry.flags & policy_flags::LOCAL_PASS != 0 {
                LocalNetworks::Pass
            } else {
                LocalNetworks::Steer
            },
            priority: written.map_or(0, |policy| i64::from(policy.priority)),
            saved: written.is_none(),
            cgroups: count as u64,
            decision: decision(&pinned, &saved, entry)?,
            quarantined: None,
        });
    }
    view.sort();
    Ok(view)
}

fn decision(pinned: &Pinned, saved: &Saved, entry: PolicyEntry) -> anyhow::Result<DecisionView> {
    let choice = pinned.maps.choices.get(entry.choice)?;
    let mut view = DecisionView {
        verdict: match choice.verdict {
            verdict::STEER => Verdict::Steer,
            verdict::PASS => Verdict::Pass,
            _ => Verdict::Block,
        },
        domain: None,
        interface: None,
        source4: None,
        source6: None,
        reason: "the last decision of an agent that no longer runs".to_owned(),
        candidates: Vec::new(),
    };
    if view.verdict != Verdict::Steer {
        return Ok(view);
    }
    let domain = pinned.maps.domains.get(choice.domain)?;
    view.domain = saved
        .memory
        .indices
        .iter()
        .find(|(_, index)| u32::from(index.0) == choice.domain)
        .map(|(name, _)| name.to_string());
    let name: Vec<u8> = domain
        .ifname
        .iter()
        .copied()
        .take_while(|byte| *byte != 0)
        .collect();
    view.interface = Some(String::from_utf8_lossy(&name).into_owned());
    if domain.flags & steer_common::domain_flags::IPV4 != 0 {
        view.source4 = Some(std::net::Ipv4Addr::from(domain.source4).to_string());
    }
    if domain.flags & steer_common::domain_flags::IPV6 != 0 {
        view.source6 = Some(std::net::Ipv6Addr::from(domain.source6).to_string());
    }
    Ok(view)
}
