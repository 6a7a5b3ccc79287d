//! What is in force when no agent runs: read from the pins and the state file, changing nothing.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::path::Path;

use anyhow::Context;
use steer_common::{PolicyEntry, policy_flags, verdict};
use steer_core::ids::CgroupId;
use steer_core::name::Name;
use steer_core::policy;

use super::accounts::Accounts;
use super::decided::{Decided, timestamp};
use super::running::last_seen;
use super::views::{counters_view, local_networks, matches, nowhere, origin, otherwise, share};
use super::{Saved, running, scan, state_file};
use crate::api::types::{DecisionView, Origin, PolicyView, StatusView, Verdict};
use crate::cgroup::Tree;
use crate::datapath::{PIN_ROOT, Tables, read_pinned};
use crate::reconcile::read_sent;

/// The decisions that a dead agent left in force.
///
/// # Errors
/// The pins or the state file cannot be read (root can).
pub fn offline_status() -> anyhow::Result<StatusView> {
    let pinned = read_pinned(Path::new(PIN_ROOT)).context("read what is pinned")?;
    let saved: Saved = state_file().read()?.unwrap_or_default();
    let decided = Decided::read();
    let running = running();
    let mut view = StatusView {
        version: env!("CARGO_PKG_VERSION").to_owned(),
        agent_running: running.is_some(),
        since: None,
        last_seen: None,
        cgroup_root: saved.cgroup_root.display().to_string(),
        hooks: Vec::new(),
        guards: Vec::new(),
        policies: Vec::new(),
        domains: Vec::new(),
        sessions: None,
        counters: BTreeMap::new(),
        warnings: Vec::new(),
    };
    let Some(pinned) = pinned else {
        view.warnings.push(match &running {
            Some(running) => format!("{running}, and did not answer; nothing is in force"),
            None => "no agent runs, and none left anything in force".to_owned(),
        });
        return Ok(view);
    };
    if running.is_none() {
        view.last_seen = last_seen().map(timestamp);
    }
    view.warnings.push(match &running {
        Some(running) => format!("{running}, and did not answer: this is what the kernel holds"),
        None => "no agent runs: these are the last one's decisions, still in force".to_owned(),
    });
    view.hooks = pinned.hooks.iter().map(ToString::to_string).collect();
    view.guards = pinned
        .guards
        .iter()
        .map(|&index| {
            let name = nix::net::if_::if_indextoname(index);
            let name = name.ok().and_then(|name| name.into_string().ok());
            name.unwrap_or_else(|| format!("(index {index}, gone)"))
        })
        .collect();
    let Some(maps) = pinned.maps else {
        view.warnings.push(
            "another version of steer put them in force: its own `steer status` can read them, and \
             the next agent takes them over"
                .to_owned(),
        );
        return Ok(view);
    };
    view.counters = counters_view(&maps.counters()?);
    let mut uses = HashMap::<u32, u64>::new();
    for (_, entry) in maps.cgroups.entries()? {
        *uses.entry(entry.policy).or_default() += 1;
    }
    let accounts = Accounts::new(&read_sent(&maps)?, &saved.memory, None);
    let tree = Tree::open(Some(&saved.cgroup_root)).and_then(|tree| scan(&tree));
    let path = |id: CgroupId| match &tree {
        Ok(tree) => tree.path(id),
        Err(_) => Some(format!("(id {id})")),
    };
    let set = saved.policies.iter().map(|policy| (&policy.name, policy));
    let set: BTreeMap<_, _> = set.collect();
    let numbered = saved.memory.policies.iter();
    let numbered = numbered.filter_map(|(_, chain)| chain.first());
    for name in numbered.chain(set.keys().copied()).collect::<BTreeSet<_>>() {
        // One for each chain of policies behind it.
        let numbers: Vec<u32> = saved
            .memory
            .policies
            .starting_with(name)
            .map(|(number, _)| number)
            .collect();
        let entry = match numbers.first() {
            Some(number) => maps.policies.get(*number)?,
            None => PolicyEntry::default(),
        };
        let written = set.get(name).copied();
        // What a choice was made of is kept with its number.
        let wish = saved.memory.choices.key(entry.choice);
        let wish = wish.and_then(|inputs| inputs.first());
        let (cgroup, unit) = written.map_or_else(Default::default, |w| matches(w, path));
        view.policies.push(PolicyView {
            name: name.to_string(),
            origin: match written {
                Some(policy) => origin(policy.origin),
                None if name.as_str() == Name::DEFAULT_POLICY => Origin::Default,
                None => Origin::Admin,
            },
            owner: written.and_then(|policy| policy.owner),
            cgroup,
            unit,
            use_: written
                .map(|policy| &policy.use_)
                .or(wish.map(|stage| &stage.use_))
                .map(|names| names.iter().map(ToString::to_string).collect())
                .unwrap_or_default(),
            domains: Vec::new(),
            preferred: saved.preferred.get(name).map(ToString::to_string),
            strict: written.map_or(entry.flags & policy_flags::STRICT != 0, |p| p.strict),
            otherwise: written
                .map(|policy| policy.otherwise)
                .or(wish.map(|stage| stage.otherwise))
                .map(otherwise),
            local_networks: local_networks(match written {
                Some(policy) => policy.local_networks,
                None if entry.flags & policy_flags::LOCAL_PASS != 0 => policy::LocalNetworks::Pass,
                None => policy::LocalNetworks::Steer,
            }),
            share: written
                .map_or(wish.and_then(|stage| stage.share), |policy| policy.share)
                .map(share),
            // A file's are counted in what is compiled of them, together with those of others.
            rules: written
                .map(|policy| policy.rules.len() as u64)
                .or((!numbers.is_empty() && entry.rules == 0).then_some(0)),
            rule_decisions: None,
            priority: written.map(|policy| i64::from(policy.priority)),
            saved: written.is_none(),
            cgroups: numbers.iter().filter_map(|number| uses.get(number)).sum(),
            decision: if numbers.is_empty() {
                nowhere()
            } else {
                decision(&maps, &saved, &decided, entry)?
            },
            sessions: None,
            quarantined: None,
            traffic: Some(accounts.of_policy(name.as_str())),
            question: None,
            note: numbers
                .is_empty()
                .then(|| "matched no cgroup when the last agent ran".to_owned()),
        });
    }
    view.sort();
    Ok(view)
}

fn decision(
    maps: &Tables,
    saved: &Saved,
    decided: &Decided,
    entry: PolicyEntry,
) -> anyhow::Result<DecisionView> {
    let choice = maps.choices.get(entry.choice)?;
    let mut view = DecisionView {
        verdict: match choice.verdict {
            verdict::STEER => Verdict::Steer,
            // Without a choice a strict policy is closed.
            verdict::PASS if entry.choice != 0 || entry.flags & policy_flags::STRICT == 0 => {
                Verdict::Pass
            }
            _ => Verdict::Block,
        },
        domain: None,
        interface: None,
        source4: None,
        source6: None,
        members: Vec::new(),
        reason: "the last decision of an agent that no longer runs".to_owned(),
        since: decided.since(entry.choice, choice),
        candidates: Vec::new(),
    };
    if view.verdict != Verdict::Steer {
        return Ok(view);
    }
    let domain = maps.domains.get(choice.domain)?;
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
