//! How much was sent for policies and by domains, in names.

use std::collections::{BTreeMap, HashMap};
use std::time::SystemTime;

use steer_common::Traffic;
use steer_core::ids::{DomainIndex, PolicyId};
use steer_core::memory::Memory;
use steer_core::name::Name;

use super::Daemon;
use super::access::Authority;
use super::decided::timestamp;
use crate::api::methods::Reply;
use crate::api::types::{DomainView, PolicyView, TrafficView};
use crate::reconcile::{Sent, chain};

/// What was sent, by name.
#[derive(Debug, Default)]
pub(super) struct Accounts {
    policies: HashMap<String, BTreeMap<Option<String>, Traffic>>,
    domains: HashMap<String, Traffic>,
    since: Option<String>,
}

impl Accounts {
    /// Of what the kernel counted since then; numbers by the memory that gave them out.
    pub(super) fn new(sent: &Sent, memory: &Memory, since: Option<SystemTime>) -> Self {
        let names: HashMap<DomainIndex, &Name> = memory
            .indices
            .iter()
            .map(|(name, index)| (*index, name))
            .collect();
        let name = |index: DomainIndex| names.get(&index).map(ToString::to_string);
        let mut accounts = Self {
            since: since.map(timestamp),
            ..Self::default()
        };
        for ((PolicyId(policy), domain), traffic) in &sent.of {
            let domain = domain.and_then(name);
            accounts.add(domain.as_deref(), *traffic);
            let chain = memory.policies.key(*policy);
            if let Some(policy) = chain.and_then(|chain| chain.first()) {
                let of = accounts.policies.entry(policy.to_string()).or_default();
                *of.entry(domain).or_default() += *traffic;
            }
        }
        for (domain, traffic) in &sent.gone {
            accounts.add(domain.and_then(name).as_deref(), *traffic);
        }
        accounts
    }

    fn add(&mut self, domain: Option<&str>, traffic: Traffic) {
        if let Some(domain) = domain {
            *self.domains.entry(domain.to_owned()).or_default() += traffic;
        }
    }

    fn view(&self, domain: Option<&str>, traffic: Traffic) -> TrafficView {
        TrafficView {
            domain: domain.map(str::to_owned),
            packets: traffic.packets,
            bytes: traffic.bytes,
            wrong: traffic.wrong,
            dropped: traffic.dropped,
            since: self.since.clone(),
        }
    }

    pub(super) fn of_policy(&self, name: &str) -> Vec<TrafficView> {
        let by_domain = self.policies.get(name).into_iter().flatten();
        let mut views: Vec<TrafficView> = by_domain
            .map(|(domain, traffic)| self.view(domain.as_deref(), *traffic))
            .collect();
        // What no domain has comes last.
        views.sort_by(|a, b| (a.domain.is_none(), &a.domain).cmp(&(b.domain.is_none(), &b.domain)));
        views
    }

    fn of_domain(&self, name: &str) -> TrafficView {
        let traffic = self.domains.get(name).copied();
        self.view(Some(name), traffic.unwrap_or_default())
    }
}

impl Daemon {
    /// Adds to an answer how much was sent. A plain user is told so of its own policies alone: what others
    /// send is not its business, also where a policy of theirs holds for it.
    pub(super) fn add_accounts(&self, authority: &Authority, reply: &mut Reply) {
        let (mut policies, mut domains): (Vec<&mut PolicyView>, Vec<&mut DomainView>) = match reply
        {
            Reply::Policy(policy) => (vec![&mut **policy], Vec::new()),
            Reply::Policies(policies) => (policies.iter_mut().collect(), Vec::new()),
            Reply::Domain(domain) => (Vec::new(), vec![&mut **domain]),
            Reply::Domains(domains) => (Vec::new(), domains.iter_mut().collect()),
            Reply::Status(status) => (
                status.policies.iter_mut().collect(),
                status.domains.iter_mut().collect(),
            ),
            _ => return,
        };
        if let Some(uid) = authority.owner() {
            policies.retain(|policy| policy.owner == Some(uid));
            domains.clear();
        }
        if policies.is_empty() && domains.is_empty() {
            return;
        }
        let sent = match self.reconciler.sent() {
            Ok(sent) => sent,
            Err(error) => {
                tracing::warn!("{}", chain(&error));
                return;
            }
        };
        let since = self.reconciler.sent_since();
        let accounts = Accounts::new(&sent, &self.engine.state().memory, since);
        for policy in policies {
            policy.traffic = Some(accounts.of_policy(&policy.name));
        }
        // One that no policy can choose has no number that something could be counted for.
        for domain in domains.into_iter().filter(|domain| domain.index.is_some()) {
            domain.traffic = Some(accounts.of_domain(&domain.name));
        }
    }
}
