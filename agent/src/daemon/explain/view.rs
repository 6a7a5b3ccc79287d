//! An explanation as the API shows it.

use std::ffi::CStr;
use std::net::{Ipv4Addr, Ipv6Addr};

use steer_common::{cgroup_flags, domain_flags, policy_flags, verdict};
use steer_core::engine::ranking::{Contender, Standing as CoreStanding};
use steer_core::explain::Explanation;
use steer_core::explain::Reach;
use steer_core::explain::held::Held;
use steer_core::explain::path::rule_of;
use steer_core::explain::words;
use steer_core::ids::{DomainIndex, PolicyId};
use steer_core::plan::{Family, Rule};
use steer_core::select;

use super::super::Daemon;
use super::super::views::origin;
use super::flow::hexadecimal;
use super::subject::Subject;
use crate::api::explain::{
    AddressFamily, ContenderView, ExplanationView, FamilyPathView, MapEntriesView, RuleView,
    Standing,
};
use crate::api::types::{DecisionView, Verdict};

/// What was found on the way.
#[derive(Debug, Default)]
pub(super) struct Findings {
    pub(super) notes: Vec<String>,
    pub(super) warnings: Vec<String>,
    /// The kernel does not send the flow as planned.
    pub(super) differs: bool,
}

/// What the kernel refuses to a strict policy's sockets (the programs `setsockopt` and `bind`).
const FORBIDDEN: [&str; 4] = [
    "set a mark (SO_MARK)",
    "choose another interface (SO_BINDTODEVICE, SO_BINDTOIFINDEX, IP_UNICAST_IF, IPV6_UNICAST_IF)",
    "fix a source (IPV6_PKTINFO), or bind an address that is not its domain's",
    "go round the guard (PACKET_QDISC_BYPASS)",
];

impl Daemon {
    /// All but what depends on a destination or the kernel.
    pub(super) fn explanation_view(
        &self,
        summary: String,
        subject: Subject,
        explanation: &Explanation,
        families: &[Family],
    ) -> ExplanationView {
        let ranking = &explanation.ranking;
        let strict = explanation.is_strict(&self.engine);
        let decision = ranking.decision.as_ref();
        let number = explanation.entry(&self.engine);
        let number = number.map(|entry| PolicyId(entry.policy));
        let domain = decision
            .and_then(select::Decision::domain)
            .and_then(|name| self.engine.domains().get(name.as_str()));
        let index = domain.and_then(|domain| {
            let indices = &self.engine.state().memory.indices;
            indices.get(&domain.name).copied()
        });
        let paths = families
            .iter()
            .filter_map(|family| Some(self.family_path(index?, *family)));
        // The root's own sockets have none of it, and what is below it has.
        let holds = explanation.reach != Reach::Root;
        ExplanationView {
            summary,
            subject: subject.view,
            cgroup: format!("/{}", explanation.path),
            cgroup_id: explanation.id.map(|id| id.0),
            unmanaged: words::unmanaged(explanation),
            policy: ranking
                .chain
                .first()
                .filter(|_| holds)
                .map(ToString::to_string),
            contenders: self.contenders(explanation),
            chain: ranking.chain.iter().map(ToString::to_string).collect(),
            decision: decision.map(|decision| DecisionView {
                since: number.and_then(|number| self.decided_since(&[number])),
                ..self.decision_view(Some(decision))
            }),
            domain: domain.map(|domain| self.domain_view(domain)),
            paths: paths.collect(),
            strict,
            forbids: FORBIDDEN
                .iter()
                .filter(|_| strict)
                .map(|words| (*words).to_owned())
                .collect(),
            flow: None,
            without: None,
            maps: None,
            notes: Vec::new(),
            warnings: Vec::new(),
        }
    }

    fn contenders(&self, explanation: &Explanation) -> Vec<ContenderView> {
        let chain = &explanation.ranking.chain;
        let mut views = Vec::new();
        for contender in &explanation.ranking.contenders {
            let Some(policy) = self.find_policy(contender.policy.as_str()) else {
                continue;
            };
            let Contender {
                cgroup, standing, ..
            } = contender;
            views.push(ContenderView {
                policy: policy.name.to_string(),
                origin: origin(policy.origin),
                priority: i64::from(policy.priority),
                strict: policy.strict,
                cgroup: (!cgroup.is_empty()).then(|| format!("/{cgroup}")),
                matches: words::matched(&self.engine, policy, cgroup),
                standing: match standing {
                    CoreStanding::InForce(_) => Standing::InForce,
                    CoreStanding::Behind(_) if chain.contains(&policy.name) => Standing::Next,
                    CoreStanding::Behind(_) => Standing::Behind,
                    CoreStanding::Equal(_) => Standing::Equal,
                    CoreStanding::ShutOut(_) => Standing::ShutOut,
                },
                reason: words::standing(&self.engine, contender),
            });
        }
        views
    }

    fn family_path(&self, index: DomainIndex, family: Family) -> FamilyPathView {
        let plan = self.engine.plan();
        let domain = plan.domains.get(&index);
        let (flag, name) = match family {
            Family::Ipv4 => (domain_flags::IPV4, AddressFamily::Ipv4),
            Family::Ipv6 => (domain_flags::IPV6, AddressFamily::Ipv6),
        };
        let source = domain.filter(|domain| domain.flags & flag != 0);
        FamilyPathView {
            family: name,
            source: source.map(|domain| match family {
                Family::Ipv4 => Ipv4Addr::from(domain.source4).to_string(),
                Family::Ipv6 => Ipv6Addr::from(domain.source6).to_string(),
            }),
            rule: rule_of(plan, index, family).map(rule_view),
        }
    }

    pub(super) fn map_entries(&self, held: &Held, agrees: bool) -> MapEntriesView {
        let flags = held.cgroup.map_or(0, |entry| entry.flags);
        let names = [
            (cgroup_flags::UNDECIDED, "undecided"),
            (cgroup_flags::CHILDREN_UNDECIDED, "children-undecided"),
            (cgroup_flags::DESCENDANTS_UNDECIDED, "descendants-undecided"),
            (cgroup_flags::EXEMPT, "exempt"),
            (cgroup_flags::INHERIT_ONLY, "inherit-only"),
            (cgroup_flags::UNITS_UNDECIDED, "units-undecided"),
        ];
        let domain = &held.domain;
        let interface = CStr::from_bytes_until_nul(&domain.ifname).unwrap_or_default();
        MapEntriesView {
            agrees,
            entry: held.cgroup.is_some(),
            flags: names
                .iter()
                .filter(|(flag, _)| flags & flag != 0)
                .map(|(_, name)| (*name).to_owned())
                .collect(),
            policy: held.cgroup.map_or(0, |entry| entry.policy),
            strict: held.policy.flags & policy_flags::STRICT != 0,
            choice: held.policy.choice,
            verdict: (held.policy.choice != 0).then_some(match held.choice.verdict {
                verdict::PASS => Verdict::Pass,
                verdict::STEER => Verdict::Steer,
                _ => Verdict::Block,
            }),
            domain: held.choice.domain,
            mark: (domain.mark != 0).then(|| hexadecimal(domain.mark)),
            interface: (!interface.is_empty()).then(|| interface.to_string_lossy().into_owned()),
        }
    }

    /// What becomes of flows in general.
    pub(super) fn verdict_words(&self, explanation: &Explanation) -> String {
        if let Some(words) = words::unmanaged(explanation) {
            return words;
        }
        if let Reach::Closed(why) = explanation.reach {
            return format!("refused, because {}", words::closed(why));
        }
        let ranking = &explanation.ranking;
        let (Some(policy), Some(decision)) = (ranking.chain.first(), &ranking.decision) else {
            return "left to the host's routing, because no policy matches".to_owned();
        };
        let outcome = match &decision.verdict {
            select::Verdict::Steer(name) => {
                let domain = self.engine.domains().get(name.as_str());
                match domain.and_then(|domain| domain.ifname.as_deref()) {
                    Some(ifname) if ifname != name.as_str() => format!("by {name} ({ifname})"),
                    _ => format!("by {name}"),
                }
            }
            select::Verdict::Block => "refused".to_owned(),
            select::Verdict::Pass => "left to the host's routing".to_owned(),
        };
        format!(
            "{outcome}, because policy `{policy}` holds: {}",
            decision.reason
        )
    }
}

/// A rule as `ip rule` prints it.
pub(super) fn rule_view(rule: &Rule) -> RuleView {
    RuleView {
        priority: rule.priority,
        text: rule.to_string(),
    }
}
