//! What was sent for policies, also for those that are gone.

use std::collections::BTreeMap;

use steer_common::{Traffic, TrafficKey};
use steer_core::ids::{DomainIndex, PolicyId};
use steer_core::plan::Plan;

use crate::datapath::{Datapath, Error, Tables};

/// What was sent.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Sent {
    /// For each policy that is in force, by each domain. No domain: what the host's own routing or the
    /// application itself decided.
    pub of: BTreeMap<(PolicyId, Option<DomainIndex>), Traffic>,
    /// For policies that are gone, by each domain.
    pub gone: BTreeMap<Option<DomainIndex>, Traffic>,
}

/// What was sent until now.
///
/// # Errors
/// The map cannot be read.
pub fn read(maps: &Tables) -> Result<Sent, Error> {
    let mut sent = Sent::default();
    for (key, traffic) in maps.traffic()? {
        if key.policy == TrafficKey::GONE {
            *sent.gone.entry(domain(key)).or_default() += traffic;
        } else {
            let key = (PolicyId(key.policy), domain(key));
            *sent.of.entry(key).or_default() += traffic;
        }
    }
    Ok(sent)
}

/// Takes over what the programs counted for policies that the plan has not, before their numbers are given
/// to others, and forgets what they counted for domains that it has not. The sums stay in the kernel, so
/// that they are the next agent's too.
pub(super) fn close(datapath: &Datapath, plan: &Plan) -> Result<(), Error> {
    for (key, traffic) in datapath.traffic()? {
        let has_domain = domain(key).is_none_or(|index| plan.domains.contains_key(&index));
        let is_open = plan.policies.contains_key(&PolicyId(key.policy))
            || [0, TrafficKey::GONE].contains(&key.policy);
        if is_open && has_domain {
            continue;
        }
        if !has_domain {
            datapath.maps.forget_traffic(&key)?;
            continue;
        }
        let gone = TrafficKey {
            policy: TrafficKey::GONE,
            ..key
        };
        datapath.maps.move_traffic(&key, traffic, &gone)?;
    }
    Ok(())
}

fn domain(key: TrafficKey) -> Option<DomainIndex> {
    let index = u16::try_from(key.domain).ok()?;
    (index != 0).then_some(DomainIndex(index))
}
