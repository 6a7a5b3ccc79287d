//! What the API shows of the engine's state.

use std::collections::BTreeMap;
use std::net::IpAddr;

use steer_core::engine::RuleDecision;
use steer_core::ids::{CgroupId, ChoiceId, IfIndex, PolicyId};
use steer_core::name::Name;
use steer_core::plan::Family;
use steer_core::policy::{self, Match, Policy};
use steer_core::select::{self, Decision};
use steer_core::steps::Step;

use super::Daemon;
use super::access::Authority;
use super::decided::timestamp;
use crate::api::server::Caller;
use crate::api::types::{
    Candidate, DecisionView, LocalNetworks, Member, Origin, Otherwise, PolicyRuleView, PolicyView,
    Share, StatusView, Verdict,
};
use crate::datapath::Counters;
use crate::reconcile::chain;

impl Daemon {
    pub(super) fn policy_view(&self, policy: &Policy) -> PolicyView {
        let engine = &self.engine;
        let name = policy.name.as_str();
        let (cgroup, unit) = matches(policy, |id| engine.state().cgroups.path(id));
        let decision = engine.decision(name);
        let numbers = engine.numbers(&policy.name);
        let refused = self.refused_of(&policy.name, &numbers);
        let mistakes = self.mistakes_of(name);
        let mut decision = self.decision_view(decision.as_ref());
        if mistakes.is_some() && decision.verdict == Verdict::Block {
            decision.reason = "blocked as long as the policy is in quarantine".to_owned();
        }
        if let Some(waits) = self.runs.waits_for_answer(&policy.name) {
            decision.reason = waits;
        }
        PolicyView {
            name: name.to_owned(),
            origin: origin(policy.origin),
            owner: policy.owner,
            cgroup,
            unit,
            use_: policy.use_.iter().map(ToString::to_string).collect(),
            domains: self
                .usable(policy)
                .iter()
                .map(ToString::to_string)
                .collect(),
            preferred: self.preferred(policy).map(ToString::to_string),
            strict: policy.strict,
            otherwise: Some(otherwise(policy.otherwise)),
            local_networks: local_networks(policy.local_networks),
            share: policy.share.map(share),
            rules: Some(policy.rules.len() as u64),
            rule_decisions: None,
            priority: Some(i64::from(policy.priority)),
            saved: engine.state().config.defines(name),
            cgroups: self.cgroups_in_force(policy, &numbers) as u64,
            decision: DecisionView {
                since: self.decided_since(&numbers),
                ..decision
            },
            quarantined: mistakes
                .or_else(|| Some(engine.conflicts_of(&policy.name).next()?.to_string()))
                .or(refused),
            sessions: Some(self.sessions.of(&policy.name)),
            question: self.offer(&policy.name),
            traffic: None,
            note: None,
        }
    }

    /// What is wrong with a policy of the files.
    pub(super) fn mistakes_of(&self, name: &str) -> Option<String> {
        let bad = self.engine.state().config.quarantined.get(name)?;
        let mistakes: Vec<String> = bad.mistakes.iter().map(ToString::to_string).collect();
        Some(mistakes.join("; "))
    }

    /// [`Daemon::policy_view`] with what takes a look at every cgroup.
    pub(super) fn full_policy_view(&self, policy: &Policy) -> PolicyView {
        let mut view = self.policy_view(policy);
        if view.quarantined.is_none() && policy.name.as_str() != Name::DEFAULT_POLICY {
            view.note = self.overruled(policy);
        }
        view.rule_decisions = Some(self.rule_views(policy));
        view
    }

    /// What the rules of a policy, and of those behind it, decide now.
    fn rule_views(&self, policy: &Policy) -> Vec<PolicyRuleView> {
        /// Enough to look at, and far from the size that an answer may have.
        const SHOWN: usize = 1_000;
        let state = self.engine.state();
        let chain = self.engine.chain_of(&policy.name);
        let decisions = self.engine.rule_decisions(&chain, SHOWN);
        let view = |RuleDecision { at, decision, .. }: RuleDecision| {
            let policy = state.policy(at.policy.as_str())?;
            let rule = policy.rules.get(at.number.checked_sub(1)?)?;
            Some(PolicyRuleView {
                policy: at.policy.to_string(),
                number: at.number as u64,
                text: rule.to_string(),
                verdict: verdict(&decision.verdict),
                domain: decision.domain().map(ToString::to_string),
                members: members(&decision),
                reason: decision.reason,
            })
        };
        decisions.into_iter().filter_map(view).collect()
    }

    /// Where a policy is not in force although it matches.
    fn overruled(&self, policy: &Policy) -> Option<String> {
        let state = self.engine.state();
        let tree = &state.cgroups;
        let mut matched = false;
        let mut overruled = Vec::new();
        let by_id = policy.matches.iter().map(|m| match m {
            Match::CgroupId(id) => Some(*id),
            Match::Cgroup(_) | Match::Unit(_) => None,
        });
        // What is named by its id is looked at alone: a plain user's policies are, and it may ask often.
        let looked_at: Vec<CgroupId> = match by_id.collect() {
            Some(ids) => ids,
            None => tree.subtree(state.cgroup_root).collect(),
        };
        for id in looked_at {
            let Some(path) = tree.path(id).filter(|path| names(policy, id, path)) else {
                continue;
            };
            matched = true;
            let entry = self.engine.plan().cgroups.get(&id);
            let chain = entry.and_then(|entry| state.memory.policies.key(entry.policy));
            match chain.and_then(|chain| chain.first()) {
                Some(holds) if *holds != policy.name => overruled.push((holds, path)),
                _ => {}
            }
        }
        if !matched {
            return Some("matches no cgroup now; it holds as soon as one is made".to_owned());
        }
        let count = overruled.len();
        let (by, path) = overruled.into_iter().next()?;
        Some(match count {
            1 => format!("policy `{by}` overrules it on the cgroup {path}"),
            _ => format!("policies overrule it on {count} cgroups: `{by}` on {path}, for instance"),
        })
    }

    /// Cgroups that a policy is in force for, as far as the kernel took it.
    fn cgroups_in_force(&self, policy: &Policy, numbers: &[PolicyId]) -> usize {
        let mut count = self.engine.cgroup_count(&policy.name);
        let refused = self.reconciler.refused().iter();
        for (step, _) in refused.filter(|(step, _)| self.rests_on(&policy.name, numbers, step)) {
            count = match step {
                Step::SetCgroup(_, entry) if numbers.contains(&PolicyId(entry.policy)) => {
                    count.saturating_sub(1)
                }
                Step::Attach(_) | Step::SetPolicy(..) => 0,
                _ => count,
            };
        }
        count
    }

    /// Since when a policy's choice is what it is.
    pub(super) fn decided_since(&self, numbers: &[PolicyId]) -> Option<String> {
        let plan = self.engine.plan();
        let policy = plan.policies.get(numbers.first()?)?;
        let choice = plan.choices.get(&ChoiceId(policy.choice))?;
        self.decided.since(policy.choice, *choice)
    }

    pub(super) fn decision_view(&self, decision: Option<&Decision>) -> DecisionView {
        let Some(decision) = decision else {
            return nowhere();
        };
        let domain = decision
            .domain()
            .and_then(|name| self.engine.domains().get(name.as_str()));
        let source = |family| {
            let ip: Option<IpAddr> = domain.and_then(|d| d.source(family));
            ip.map(|ip| ip.to_string())
        };
        DecisionView {
            verdict: verdict(&decision.verdict),
            domain: decision.domain().map(ToString::to_string),
            interface: domain.and_then(|d| d.ifname.clone()),
            source4: source(Family::Ipv4),
            source6: source(Family::Ipv6),
            members: members(decision),
            reason: decision.reason.clone(),
            since: None,
            candidates: candidates(decision),
        }
    }

    /// The policies that a caller is told of, those in quarantine too.
    pub(super) fn seen(&self, caller: &Caller, authority: &Authority) -> Vec<&Policy> {
        let state = self.engine.state();
        if authority.owner().is_some() {
            let own = state.api_policies.values().filter(|p| authority.owns(p));
            let holding = self.holding(caller);
            let holding = holding
                .iter()
                .filter_map(|name| self.find_policy(name.as_str()));
            let holding = holding.filter(|policy| !authority.owns(policy));
            return own.chain(holding).collect();
        }
        let bad = state.config.quarantined.keys();
        let elsewhere = bad.filter(|name| state.policy(name.as_str()).is_none());
        let names = state.policies().map(|policy| &policy.name).chain(elsewhere);
        names
            .filter_map(|name| self.find_policy(name.as_str()))
            .collect()
    }

    pub(super) fn policy_views(&self, seen: &[&Policy]) -> Vec<PolicyView> {
        seen.iter().map(|policy| self.policy_view(policy)).collect()
    }

    /// `all`: also what is of others, the counters and warnings.
    pub(super) fn status_view(&self, seen: &[&Policy], all: bool) -> StatusView {
        let is = self.reconciler.is();
        let (counters, warnings) = if all {
            self.counters_and_warnings()
        } else {
            Default::default()
        };
        let mut view = StatusView {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            agent_running: true,
            since: Some(timestamp(self.started)),
            last_seen: None,
            cgroup_root: self.tree.root().display().to_string(),
            hooks: is.hooks.iter().map(ToString::to_string).collect(),
            guards: is
                .guards
                .iter()
                .map(|index| self.interface(*index))
                .collect(),
            policies: self.policy_views(seen),
            domains: self.domain_views(),
            sessions: all.then(|| self.sessions.all()),
            counters,
            warnings,
        };
        view.sort();
        view
    }

    fn counters_and_warnings(&self) -> (BTreeMap<String, u64>, Vec<String>) {
        let mut warnings: Vec<String> = self
            .engine
            .warnings()
            .iter()
            .map(ToString::to_string)
            .collect();
        if let Some(words) = &self.bad_files {
            warnings.push(format!(
                "the files were changed and could not be taken, so what they said before is in force: \
                 {words} (`steer check` shows more)"
            ));
        }
        for (step, words) in self.reconciler.refused() {
            warnings.push(format!("the kernel refused {step}: {words}"));
        }
        warnings.extend(self.sessions.trouble().map(str::to_owned));
        for hook in self.reconciler.missing(self.engine.plan()) {
            warnings.push(format!(
                "this kernel cannot have the hook {hook} (before Linux 6.18): strict policies are not \
                 guarded at an interface that appears while no agent runs, until the next one starts"
            ));
        }
        let counters = match self.reconciler.counters() {
            Ok(counters) => counters_view(&counters),
            Err(error) => {
                warnings.push(chain(&error));
                BTreeMap::new()
            }
        };
        (counters, warnings)
    }

    /// Name of an interface; its index if it is gone.
    pub(super) fn interface(&self, index: IfIndex) -> String {
        let link = self.engine.state().network.links.get(&index);
        link.map_or_else(
            || format!("(index {index}, gone)"),
            |link| link.name.clone(),
        )
    }

    /// A policy by its name; one that is in quarantine as it is written, unless one that was set by
    /// command is in force.
    pub(super) fn find_policy(&self, name: &str) -> Option<&Policy> {
        let state = self.engine.state();
        let bad = state.config.quarantined.get(name).map(|bad| &bad.policy);
        let policy = state.policy(name);
        if state.config.policies.contains_key(name) {
            bad.or(policy)
        } else {
            policy.or(bad)
        }
    }

    pub(super) fn is_from_file(&self, name: &Name) -> bool {
        self.engine.state().config.defines(name.as_str())
    }
}

/// Whether a policy names a cgroup itself, and not one above it.
fn names(policy: &Policy, id: CgroupId, path: &str) -> bool {
    policy.matches.iter().any(|m| match m {
        Match::Cgroup(pattern) => pattern.matches(path),
        Match::Unit(unit) => path.rsplit('/').next() == Some(unit.as_str()),
        Match::CgroupId(wanted) => *wanted == id,
    })
}

/// What a policy matches: cgroups, then units.
pub(super) fn matches(
    policy: &Policy,
    path: impl Fn(CgroupId) -> Option<String>,
) -> (Vec<String>, Vec<String>) {
    let (mut cgroup, mut unit) = (Vec::new(), Vec::new());
    for m in &policy.matches {
        match m {
            Match::Cgroup(pattern) => cgroup.push(pattern.as_str().to_owned()),
            Match::Unit(name) => unit.push(name.as_str().to_owned()),
            Match::CgroupId(id) => {
                cgroup.push(path(*id).unwrap_or_else(|| format!("(id {id}, gone)")));
            }
        }
    }
    (cgroup, unit)
}

/// The decision for a policy that no cgroup has.
pub(super) fn nowhere() -> DecisionView {
    DecisionView {
        verdict: Verdict::Pass,
        domain: None,
        interface: None,
        source4: None,
        source6: None,
        members: Vec::new(),
        reason: "it is in force for no cgroup".to_owned(),
        since: None,
        candidates: Vec::new(),
    }
}

pub(super) fn otherwise(otherwise: policy::Otherwise) -> Otherwise {
    match otherwise {
        policy::Otherwise::Block => Otherwise::Block,
        policy::Otherwise::Pass => Otherwise::Pass,
        policy::Otherwise::Next => Otherwise::Next,
    }
}

pub(super) fn share(share: policy::Share) -> Share {
    match share {
        policy::Share::Flow => Share::Flow,
        policy::Share::Destination => Share::Destination,
    }
}

fn verdict(verdict: &select::Verdict) -> Verdict {
    match verdict {
        select::Verdict::Steer(_) => Verdict::Steer,
        select::Verdict::Block => Verdict::Block,
        select::Verdict::Pass => Verdict::Pass,
    }
}

fn members(decision: &Decision) -> Vec<Member> {
    let members = decision.members.iter();
    members
        .map(|(domain, weight)| Member {
            domain: domain.to_string(),
            weight: (*weight).into(),
        })
        .collect()
}

pub(super) fn local_networks(local: policy::LocalNetworks) -> LocalNetworks {
    match local {
        policy::LocalNetworks::Pass => LocalNetworks::Pass,
        policy::LocalNetworks::Steer => LocalNetworks::Steer,
    }
}

pub(super) fn candidates(decision: &Decision) -> Vec<Candidate> {
    let view = |c: &select::Candidate| Candidate {
        domain: c.domain.to_string(),
        taken: c.taken,
        reason: c.reason.clone(),
    };
    decision.candidates.iter().map(view).collect()
}

pub(super) fn counters_view(counters: &Counters) -> BTreeMap<String, u64> {
    [
        ("cgroups-full", counters.cgroups_full),
        ("connect-steered", counters.connect_steered),
        ("events-lost", counters.events_lost),
        ("guard-dropped", counters.guard_dropped),
        ("guard-passed", counters.guard_passed),
        ("guard-wrong", counters.guard_wrong),
        ("not-allowed", counters.not_allowed),
        ("refused", counters.refused),
        ("repair-refused", counters.repair_refused),
        ("repair-too-big", counters.repair_too_big),
        ("repaired", counters.repaired),
        ("source-failed", counters.source_failed),
        ("storage-failed", counters.storage_failed),
        ("traffic-lost", counters.traffic_lost),
    ]
    .map(|(name, count)| (name.to_owned(), count))
    .into()
}

pub(super) fn origin(origin: policy::Origin) -> Origin {
    match origin {
        policy::Origin::App => Origin::App,
        policy::Origin::User => Origin::User,
        policy::Origin::Admin => Origin::Admin,
        policy::Origin::Operator => Origin::Operator,
        policy::Origin::Default => Origin::Default,
    }
}
