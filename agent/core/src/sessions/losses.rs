//! Since when flows are kept on what is lost: what must outlive the agent, so that none stays for longer.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::name::Name;

/// What flows have lost.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Loss {
    /// Their policy.
    pub policy: Option<Name>,
    /// Their domain.
    pub domain: Option<Name>,
    /// Their own address.
    pub address: IpAddr,
}

/// What is lost, and since when.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "Vec<Since>", into = "Vec<Since>")]
pub struct Losses {
    since: BTreeMap<Loss, Duration>,
    seen: BTreeSet<Loss>,
}

/// A loss as it is kept.
#[derive(Serialize, Deserialize)]
struct Since {
    loss: Loss,
    since: Duration,
}

impl Losses {
    /// Since when this is lost: `now`, if it was not before.
    pub(super) fn since(&mut self, loss: Loss, now: Duration) -> Duration {
        if !self.seen.contains(&loss) {
            self.seen.insert(loss.clone());
        }
        *self.since.entry(loss).or_insert(now)
    }

    /// Every flow has been judged since the last time: what none had lost is not lost any more.
    pub fn forget_others(&mut self) {
        let seen = std::mem::take(&mut self.seen);
        self.since.retain(|loss, _| seen.contains(loss));
    }

    /// Since when what is lost, for who keeps it.
    pub fn known(&self) -> &BTreeMap<Loss, Duration> {
        &self.since
    }
}

impl From<Vec<Since>> for Losses {
    fn from(kept: Vec<Since>) -> Self {
        let kept = kept.into_iter();
        Self {
            since: kept.map(|kept| (kept.loss, kept.since)).collect(),
            seen: BTreeSet::new(),
        }
    }
}

impl From<Losses> for Vec<Since> {
    fn from(losses: Losses) -> Self {
        let since = losses.since.into_iter();
        since.map(|(loss, since)| Since { loss, since }).collect()
    }
}
