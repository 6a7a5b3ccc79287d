//! What becomes of a flow: as planned, and as the kernel says.

use std::net::IpAddr;

use steer_core::explain::compare::{Answer, Differs, KernelRoute};
use steer_core::explain::flow::{Fate, Owner, fate_of_connect, guard_lets, members};
use steer_core::explain::path::{Leaves, Planned, planned};
use steer_core::explain::{Explanation, words};
use steer_core::ids::{DomainIndex, IfIndex};
use steer_core::plan::{Rule, TableRoute};
use steer_core::rules::{Flow, Protocol};

use super::super::Daemon;
use super::Destination;
use super::subject::Subject;
use super::view::{Findings, rule_view};
use crate::api::error::ApiError;
use crate::api::explain::{FlowOutcome, FlowView, KernelView};
use crate::netlink::{self, Question};
use crate::reconcile::chain;

/// What a refused flow sees (`steer_common::ERRNO_NO_DOMAIN`).
const REFUSED: &str = "ENETUNREACH";

impl Daemon {
    pub(super) async fn flow(
        &self,
        subject: &Subject,
        explanation: &Explanation,
        destination: &Destination,
        findings: &mut Findings,
    ) -> Result<FlowView, ApiError> {
        let plan = self.engine.plan();
        let asked = destination.flow();
        let owner = explanation.owner(&self.engine, &asked);
        let fate = fate_of_connect(plan, owner.as_ref(), &asked);
        let mut view = FlowView {
            destination: destination.ip.to_string(),
            port: destination.port.map(u32::from),
            protocol: destination.protocol.to_string(),
            outcome: outcome(&fate),
            reason: words::fate(&self.engine, explanation, &asked, &fate),
            decided_by: self.deciding(explanation, &asked, &fate),
            error: None,
            domain: None,
            interface: None,
            source: None,
            gateway: None,
            table: None,
            mark: None,
            rule: None,
            kernel: None,
        };
        let question = Question {
            destination: destination.ip,
            source: None,
            mark: 0,
            uid: subject.view.uid,
            protocol: destination.protocol.0,
            port: destination.port,
            interface: destination.interface,
        };
        match fate {
            Fate::Refuse(_) => view.error = Some(REFUSED.to_owned()),
            Fate::Steer(index) => self.steered(index, &question, &mut view, findings).await?,
            // The way of one of them: a flow has its own.
            Fate::Shared(set) => {
                if let Some(index) = members(set).next() {
                    self.steered(index, &question, &mut view, findings).await?;
                }
            }
            Fate::Never(_) | Fate::Local(_) | Fate::Pass(_) => {
                let answer = ask(&question).await?;
                view.kernel = Some(self.kernel_view(&question, &answer, None));
                match &answer {
                    Answer::Route(route) => {
                        self.passed(&asked, route, owner.as_ref(), &mut view);
                    }
                    Answer::Refused { errno, words } => {
                        view.outcome = FlowOutcome::Refused;
                        view.error = Some(errno_name(*errno));
                        view.reason = format!(
                            "it is left to the host's routing, which has no route ({words}): {}",
                            view.reason
                        );
                    }
                }
                if let (Fate::Local(prefix), Answer::Route(route)) = (fate, &answer) {
                    self.warn_of_stray(prefix, route, findings);
                }
            }
        }
        Ok(view)
    }

    async fn steered(
        &self,
        index: DomainIndex,
        question: &Question,
        view: &mut FlowView,
        findings: &mut Findings,
    ) -> Result<(), ApiError> {
        let plan = self.engine.plan();
        let Some(domain) = plan.domains.get(&index) else {
            return Ok(());
        };
        view.mark = Some(hexadecimal(domain.mark));
        let mut indices = self.engine.state().memory.indices.iter();
        let name = indices.find(|(_, number)| **number == index);
        view.domain = name.map(|(name, _)| name.to_string());
        let fixed = question.destination.is_ipv6();
        let leaves = match planned(plan, index, question.destination, question.protocol) {
            Planned::Leaves(leaves) => leaves,
            Planned::NoRoute(rule) => {
                view.outcome = FlowOutcome::Refused;
                view.error = Some(REFUSED.to_owned());
                view.rule = rule.as_ref().map(rule_view);
                view.reason = format!("its domain has no route to it ({})", view.reason);
                return Ok(());
            }
        };
        let question = Question {
            mark: domain.mark,
            source: leaves.source.filter(|_| fixed),
            ..*question
        };
        self.view_leaves(&leaves, view);
        let answer = ask(&question).await?;
        let network = &self.engine.state().network;
        let differs = Differs::find(&leaves, &answer, network);
        view.kernel = Some(self.kernel_view(&question, &answer, Some(differs.is_none())));
        findings.differs = differs.is_some();
        findings
            .warnings
            .extend(differs.map(|differs| differs.to_string()));
        Ok(())
    }

    /// The rules that decide a flow, as they are written.
    fn deciding(&self, explanation: &Explanation, asked: &Flow, fate: &Fate) -> Vec<String> {
        if matches!(fate, Fate::Never(_) | Fate::Local(_)) {
            return Vec::new();
        }
        let decision = explanation.decision(&self.engine, asked);
        let rules = decision.into_iter().flat_map(|decision| decision.rules);
        rules
            .filter_map(|at| {
                let policy = self.engine.state().policy(at.policy.as_str())?;
                let rule = policy.rules.get(at.number.checked_sub(1)?)?;
                Some(format!("{} rule {}: {rule}", at.policy, at.number))
            })
            .collect()
    }

    fn view_leaves(&self, leaves: &Leaves, view: &mut FlowView) {
        let Leaves {
            source,
            rule,
            route:
                TableRoute {
                    table,
                    interface,
                    gateway,
                    ..
                },
            ..
        } = leaves;
        view.interface = Some(self.interface(*interface));
        view.source = source.map(|source| source.to_string());
        view.gateway = gateway.map(|gateway| gateway.to_string());
        view.table = Some(table.0);
        view.rule = Some(rule_view(rule as &Rule));
    }

    /// A flow that the host's routing leads, which the guard may stop.
    fn passed(
        &self,
        asked: &Flow,
        route: &KernelRoute,
        owner: Option<&Owner>,
        view: &mut FlowView,
    ) {
        view.interface = Some(self.interface(route.interface));
        view.source = route.source.map(|source| source.to_string());
        view.gateway = route.gateway.map(|gateway| gateway.to_string());
        view.table = Some(route.table.0);
        let plan = self.engine.plan();
        let flow = Flow {
            source: route.source,
            ..*asked
        };
        let lets = owner.is_none_or(|owner| guard_lets(plan, owner, &flow, route.interface));
        if !lets {
            view.outcome = FlowOutcome::Dropped;
            view.reason = format!(
                "{}, and the host's routing leads it to {}{}, where the guard drops what a strict policy \
                 sends",
                view.reason,
                self.interface(route.interface),
                from(route.source),
            );
        }
    }

    /// Tells if a flow to another interface's network does not leave by an interface of that network.
    fn warn_of_stray(&self, prefix: ipnet::IpNet, route: &KernelRoute, findings: &mut Findings) {
        let network = &self.engine.state().network;
        let mut routes = network.routes.iter();
        let mut holds = |interface: IfIndex| {
            routes.any(|route| {
                route.interface == interface
                    && route.destination == prefix
                    && route.gateway.is_none()
            })
        };
        if !holds(route.interface) {
            findings.differs = true;
            findings.warnings.push(format!(
                "{prefix} is a network that an interface is attached to, and the kernel sends there by {} \
                 (table {}): a rule or route of others leads it away (`ip rule show`)",
                self.interface(route.interface),
                route.table
            ));
        }
    }

    fn kernel_view(
        &self,
        question: &Question,
        answer: &Answer,
        agrees: Option<bool>,
    ) -> KernelView {
        let asked = self.command(question);
        match answer {
            Answer::Route(route) => KernelView {
                asked,
                agrees,
                error: None,
                interface: Some(self.interface(route.interface)),
                source: route.source.map(|source| source.to_string()),
                gateway: route.gateway.map(|gateway| gateway.to_string()),
                table: Some(route.table.0),
            },
            Answer::Refused { words, .. } => KernelView {
                asked,
                agrees,
                error: Some(words.clone()),
                interface: None,
                source: None,
                gateway: None,
                table: None,
            },
        }
    }

    /// The question as `ip` takes it.
    fn command(&self, question: &Question) -> String {
        let mut words = format!("ip route get {}", question.destination);
        if let Some(source) = question.source {
            words.push_str(&format!(" from {source}"));
        }
        if let Some(interface) = question.interface {
            words.push_str(&format!(" oif {}", self.interface(interface)));
        }
        if question.mark != 0 {
            words.push_str(&format!(" mark {}", hexadecimal(question.mark)));
        }
        if let Some(uid) = question.uid {
            words.push_str(&format!(" uid {uid}"));
        }
        words.push_str(&format!(" ipproto {}", Protocol(question.protocol)));
        if let Some(port) = question.port {
            words.push_str(&format!(" dport {port}"));
        }
        words
    }
}

async fn ask(question: &Question) -> Result<Answer, ApiError> {
    let answer = netlink::route_to(question).await;
    answer.map_err(|error| ApiError::Failed {
        reason: chain(&error),
    })
}

fn outcome(fate: &Fate) -> FlowOutcome {
    match fate {
        Fate::Never(_) => FlowOutcome::Never,
        Fate::Local(_) => FlowOutcome::Local,
        Fate::Pass(_) => FlowOutcome::Passed,
        Fate::Steer(_) | Fate::Shared(_) => FlowOutcome::Steered,
        Fate::Refuse(_) => FlowOutcome::Refused,
    }
}

/// The answer in one sentence.
pub(super) fn sentence(who: &str, flow: &FlowView, differs: bool) -> String {
    let to = match flow.port {
        Some(port) if flow.destination.contains(':') => format!("[{}]:{port}", flow.destination),
        Some(port) => format!("{}:{port}", flow.destination),
        None => flow.destination.clone(),
    };
    let interface = flow.interface.as_deref().unwrap_or("no interface");
    let source = flow.source.as_ref();
    let source = source.map_or_else(String::new, |source| format!(" from {source}"));
    let reason = &flow.reason;
    let error = flow.error.as_deref().unwrap_or("an error");
    let answer = match flow.outcome {
        FlowOutcome::Steered => {
            let by = match &flow.domain {
                Some(domain) if domain != interface => format!("{domain} ({interface})"),
                _ => interface.to_owned(),
            };
            if differs {
                format!(
                    "should leave by {by}{source}, because {reason}; but the kernel does otherwise (see \
                     the warning)"
                )
            } else {
                format!("by {by}{source}, because {reason}")
            }
        }
        FlowOutcome::Refused => format!("refused with {error}, because {reason}"),
        FlowOutcome::Dropped => format!("dropped without a word, because {reason}"),
        FlowOutcome::Passed => {
            format!("left to the host's routing: by {interface}{source}, because {reason}")
        }
        FlowOutcome::Local | FlowOutcome::Never => {
            format!("not steered: by {interface}{source}, because {reason}")
        }
    };
    format!("{who} to {to}: {answer}")
}

pub(super) fn hexadecimal(mark: u32) -> String {
    format!("{mark:#010x}")
}

fn from(source: Option<IpAddr>) -> String {
    source.map_or_else(String::new, |source| format!(" from {source}"))
}

/// Name of an error as `errno.h` has it.
fn errno_name(errno: i32) -> String {
    match nix::errno::Errno::from_raw(errno) {
        nix::errno::Errno::UnknownErrno => format!("error {errno}"),
        known => format!("{known:?}"),
    }
}
