//! What was sent for policies, also for those that are gone.

use std::collections::BTreeMap;

use steer_common::{Traffic, TrafficKey};
use steer_core::ids::{DomainIndex, PolicyId};
use steer_core::plan::Plan;

use crate::datapath::{Datapath, Error};

/// What was sent.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Sent {
    /// For each policy that is in force, by each domain. No domain: what the host's own routing or the
    /// application itself decided.
    pub of: BTreeMap<(PolicyId, Option<DomainIndex>), Traffic>,
    /// For policies that are gone, by each domain.
    pub gone: BTreeMap<Option<DomainIndex>, Traffic>,
}

/// Takes over what the programs counted for policies before their numbers are given to others.
#[derive(Debug, Default)]
pub(super) struct Ledger {
    gone: BTreeMap<Option<DomainIndex>, Traffic>,
}

impl Ledger {
    /// What was sent until now.
    pub(super) fn read(&self, datapath: &Datapath) -> Result<Sent, Error> {
        let mut sent = Sent {
            of: BTreeMap::new(),
            gone: self.gone.clone(),
        };
        for (key, traffic) in datapath.traffic()? {
            let key = (PolicyId(key.policy), domain(key));
            *sent.of.entry(key).or_default() += traffic;
        }
        Ok(sent)
    }

    /// Removes the entries of policies and domains that the plan has not.
    pub(super) fn close(&mut self, datapath: &Datapath, plan: &Plan) -> Result<(), Error> {
        for (key, traffic) in datapath.traffic()? {
            let domain = domain(key);
            let has_domain = domain.is_none_or(|index| plan.domains.contains_key(&index));
            let is_open = plan.policies.contains_key(&PolicyId(key.policy)) || key.policy == 0;
            if is_open && has_domain {
                continue;
            }
            datapath.maps.forget_traffic(&key)?;
            if has_domain {
                *self.gone.entry(domain).or_default() += traffic;
            }
        }
        // The index may be given to another domain.
        self.gone
            .retain(|domain, _| domain.is_none_or(|index| plan.domains.contains_key(&index)));
        Ok(())
    }
}

fn domain(key: TrafficKey) -> Option<DomainIndex> {
    let index = u16::try_from(key.domain).ok()?;
    (index != 0).then_some(DomainIndex(index))
}
