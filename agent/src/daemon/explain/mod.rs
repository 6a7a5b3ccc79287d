//! Answers `Explain`: asks the engine what should happen, the kernel what does, and compares.

mod flow;
mod subject;
mod view;

use std::net::IpAddr;

use steer_core::explain::Explanation;
use steer_core::explain::held::Held;
use steer_core::explain::path::TCP;
use steer_core::explain::words;
use steer_core::ids::IfIndex;
use steer_core::plan::Family;
use steer_core::policy::{Match, Policy};
use steer_core::rules::{Dscp, Flow, Protocol, WordError};

use self::subject::Subject;
use self::view::Findings;
use super::{Daemon, Look};
use crate::api::error::ApiError;
use crate::api::explain::{AddressFamily, Explain, ExplanationView, FlowView, WithoutView};
use crate::api::methods::Reply;
use crate::api::server::Caller;
use crate::reconcile::chain;

/// Where a flow goes.
#[derive(Clone, Copy, Debug)]
struct Destination {
    ip: IpAddr,
    port: Option<u16>,
    protocol: Protocol,
    dscp: Dscp,
    /// The interface that a link-local address is meant at.
    interface: Option<IfIndex>,
}

impl Destination {
    /// A flow that goes there.
    fn flow(&self) -> Flow {
        Flow {
            protocol: self.protocol.0,
            port: self.port.unwrap_or_default(),
            dscp: self.dscp.get(),
            ..Flow::to(self.ip)
        }
    }
}

impl Daemon {
    pub(super) async fn explain(
        &mut self,
        caller: &Caller,
        asked: Explain,
    ) -> Result<Reply, ApiError> {
        let destination = self.destination(&asked)?;
        let subject = self.subject(caller, &asked)?;
        if self.dirty {
            // What was asked about may have been made just now.
            self.converge_and_log(Look::Nothing).await;
        }
        let explanation = self.engine.explain(&subject.path);
        let mut findings = Findings::default();
        findings.notes.extend(subject.note.clone());
        let maps = match explanation.id {
            Some(id) => match self.reconciler.held(id) {
                Ok(held) => {
                    let planned = Held::planned(self.engine.plan(), id);
                    let difference = planned.difference(&held);
                    findings.warnings.extend(difference.map(|d| d.to_string()));
                    let same = held == planned;
                    Some((held, same))
                }
                Err(error) => {
                    findings.warnings.push(chain(&error));
                    None
                }
            },
            None => None,
        };
        let flow = match &destination {
            Some(destination) => Some(
                self.flow(&subject, &explanation, destination, &mut findings)
                    .await?,
            ),
            None => None,
        };
        let families = match asked.family {
            Some(AddressFamily::Ipv4) => &[Family::Ipv4][..],
            Some(AddressFamily::Ipv6) => &[Family::Ipv6],
            None => &Family::BOTH,
        };
        self.note(&explanation, destination.as_ref(), &mut findings);
        let summary = self.summary(&subject, &explanation, flow.as_ref(), &findings);
        let without = match &asked.without {
            Some(name) => Some(self.without(name, &explanation, destination.as_ref())?),
            None => None,
        };
        let view = ExplanationView {
            without,
            maps: maps.map(|(held, agrees)| self.map_entries(&held, agrees)),
            flow,
            notes: findings.notes,
            warnings: findings.warnings,
            ..self.explanation_view(summary, subject, &explanation, families)
        };
        Ok(Reply::Explanation(Box::new(view)))
    }

    /// What would be chosen without a domain.
    fn without(
        &self,
        name: &str,
        explanation: &Explanation,
        destination: Option<&Destination>,
    ) -> Result<WithoutView, ApiError> {
        let gone = &self.find_domain(name)?.name;
        let flow = destination.map(Destination::flow);
        let chain = &explanation.ranking.chain;
        let decision = self.engine.decide_without(chain, flow.as_ref(), gone);
        Ok(WithoutView {
            domain: gone.to_string(),
            decision: self.decision_view(Some(&decision)),
        })
    }

    fn destination(&self, asked: &Explain) -> Result<Option<Destination>, ApiError> {
        let invalid = |field: &str, reason: String| ApiError::InvalidArgument {
            field: field.to_owned(),
            reason,
        };
        let port = asked.port.map(u16::try_from).transpose();
        let port = port.map_err(|_| invalid("port", "a port is at most 65535".to_owned()))?;
        let Some(text) = &asked.destination else {
            for (field, given) in [
                ("port", port.is_some()),
                ("protocol", asked.protocol.is_some()),
                ("dscp", asked.dscp.is_some()),
            ] {
                if given {
                    let reason = format!("name the destination that the {field} is of");
                    return Err(invalid(field, reason));
                }
            }
            return Ok(None);
        };
        let protocol = match asked.protocol.as_deref().map(str::parse) {
            Some(protocol) => {
                protocol.map_err(|error: WordError| invalid("protocol", error.to_string()))?
            }
            None => Protocol(TCP),
        };
        if port.is_some() && !protocol.has_ports() {
            let reason = format!("{protocol} has no ports");
            return Err(invalid("port", reason));
        }
        let dscp = match asked.dscp.as_deref().map(str::parse) {
            Some(dscp) => dscp.map_err(|error: WordError| invalid("dscp", error.to_string()))?,
            None => Dscp::default(),
        };
        let (address, zone) = match text.split_once('%') {
            Some((address, zone)) => (address, Some(zone)),
            None => (text.as_str(), None),
        };
        let ip: IpAddr = address.parse().map_err(|_| {
            invalid(
                "destination",
                format!(
                    "`{text}` is no address: have the name looked up first (`Resolve`), and name one of its \
                     addresses"
                ),
            )
        })?;
        let ip = ip.to_canonical();
        let family = asked.family.map(|family| match family {
            AddressFamily::Ipv4 => Family::Ipv4,
            AddressFamily::Ipv6 => Family::Ipv6,
        });
        if family.is_some_and(|family| family != Family::of(ip)) {
            let reason = format!("{ip} is not of the family that was asked for");
            return Err(invalid("family", reason));
        }
        let interface = zone.map(|zone| {
            let mut links = self.engine.state().network.links.values();
            let link = links.find(|link| link.name == zone);
            let link = link.map(|link| link.index);
            link.ok_or_else(|| invalid("destination", format!("there is no interface {zone}")))
        });
        Ok(Some(Destination {
            ip,
            port,
            protocol,
            dscp,
            interface: interface.transpose()?,
        }))
    }

    /// What is worth knowing besides.
    fn note(
        &self,
        explanation: &Explanation,
        destination: Option<&Destination>,
        findings: &mut Findings,
    ) {
        let notes = &mut findings.notes;
        if explanation.id.is_none() && words::unmanaged(explanation).is_none() {
            notes.push(format!(
                "there is no cgroup {} now: this is what holds as soon as it is made",
                explanation.path
            ));
        }
        for bad in self.engine.state().config.quarantined.values() {
            if matches(&bad.policy, &explanation.path) {
                let closed = if bad.policy.strict {
                    ", and blocks"
                } else {
                    ""
                };
                notes.push(format!(
                    "policy `{}` of the files matches here and is in quarantine{closed}: `steer policy show {}`",
                    bad.policy.name, bad.policy.name
                ));
            }
        }
        let Some(policy) = explanation.ranking.chain.first() else {
            return;
        };
        let numbers = self.engine.numbers(policy);
        findings.warnings.extend(self.refused_of(policy, &numbers));
        let strict = explanation.is_strict(&self.engine);
        notes.push(
            if strict {
                "sockets that were open before the policy or its decision came: the guard drops what they \
                 send by another interface or from another address"
            } else {
                "sockets that were open before the policy or its decision came go on as they began; new \
                 ones follow it"
            }
            .to_owned(),
        );
        let mask = self.engine.state().config.agent.mark_mask.bits();
        notes.push(if strict {
            format!(
                "bits of a socket's mark outside {mask:#010x} are not steer's; a rule of others that looks \
                 at them can only lead its packets to where the guard drops them"
            )
        } else {
            format!(
                "a program that binds an address or an interface has its way; bits of its sockets' marks \
                 outside {mask:#010x} are not steer's, and a rule of others that looks at them may lead \
                 elsewhere"
            )
        });
        let dhcp = destination.is_some_and(|to| {
            matches!(
                (to.ip, to.port),
                (IpAddr::V4(_), Some(67)) | (IpAddr::V6(_), Some(547))
            )
        });
        if dhcp {
            notes.push(
                "what a DHCP client sends (UDP, from its own port) is never steered: the main table leads \
                 it"
                .to_owned(),
            );
        }
    }

    /// The answer in one sentence.
    fn summary(
        &self,
        subject: &Subject,
        explanation: &Explanation,
        flow: Option<&FlowView>,
        findings: &Findings,
    ) -> String {
        let who = subject.words();
        match flow {
            Some(flow) => flow::sentence(&who, flow, findings.differs),
            None => format!("{who}: {}", self.verdict_words(explanation)),
        }
    }
}

/// Whether a policy names a cgroup or one above it.
fn matches(policy: &Policy, path: &str) -> bool {
    let ends = path.match_indices('/').map(|(end, _)| end);
    let mut levels = ends.chain([path.len()]).map(|end| &path[..end]);
    levels.any(|level| {
        policy.matches.iter().any(|wanted| match wanted {
            Match::Cgroup(pattern) => pattern.matches(level),
            Match::Unit(unit) => level.rsplit('/').next() == Some(unit.as_str()),
            Match::CgroupId(_) => false,
        })
    })
}
