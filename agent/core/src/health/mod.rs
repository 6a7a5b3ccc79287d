//! How domains are: what their checks say of them, since when, and how they have been lately. What the
//! kernel says of a domain's interface is in [`Domain`]; this is what is found out beyond that.
//!
//! Two thresholds keep a domain from being given up and taken again all the time: `fall` failures in a row
//! give it up, `rise` successes in a row bring it back. One that is lost often is taken again only after it
//! has been there for a while (see [`hold`]).

mod condition;
mod history;
mod measured;

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use serde::{Deserialize, Serialize};

pub use self::condition::{Condition, Standing, hold};
pub use self::history::{History, MAX_AGE, MAX_NETWORKS, NetworkId, Record};
pub use self::measured::Measured;
use crate::config::Config;
use crate::domains::{Domain, DomainState, Domains};
use crate::name::Name;
use crate::probe::{Check, Host, Report};

/// How all domains are.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Health {
    conditions: BTreeMap<Name, Condition>,
}

/// How good a domain is as far as its checks go, best first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Grade {
    /// Nothing is wrong with it.
    Well,
    /// It was lost several times lately, and is there again for a short time only.
    Settling,
    /// It is to be checked, and was not yet since it is attached; or its network failed last time.
    Unproven,
    /// Its check fails.
    Limited,
    /// A portal answers in place of others.
    Portal,
}

/// What came of a check, and where it was made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Probed {
    /// The domain.
    pub domain: Name,
    /// The attachment that was checked ([`Probe::epoch`](crate::probe::Probe)).
    pub epoch: u64,
    /// When it began, since boot.
    pub began: Duration,
    /// What came of it.
    pub report: Report,
    /// Hardware address of the domain's gateway, if it has one and it is known.
    pub gateway: Option<[u8; 6]>,
    /// What went over its interface, if that is known.
    pub counted: Option<Counted>,
}

/// What came of a check for selection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Learned {
    /// Nothing: it says nothing about the domain as it is now.
    Nothing,
    /// What is measured: that matters to who compares it.
    Measured,
    /// How the domain stands, which matters to all.
    Standing,
}

/// What went over an interface since it is there, bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Counted {
    /// Received.
    pub received: u64,
    /// Sent.
    pub sent: u64,
}

/// The time.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Now {
    /// Since boot.
    pub boot: Duration,
    /// Seconds since 1970.
    pub wall: u64,
}

/// How a domain is checked: as its section of the files says, or `[agent]`; where neither does, its
/// gateway is asked for an echo, if it has one.
pub fn check_of(config: &Config, domain: &Domain) -> Check {
    let own = config.domains.get(&domain.name);
    let own = own.and_then(|own| own.check.as_ref());
    match own.or(config.agent.check.as_ref()) {
        Some(check) => check.clone(),
        None if domain.gateways.is_empty() => Check::default(),
        None => Check {
            icmp: vec![Host::Gateway],
            implied: true,
            ..Check::default()
        },
    }
}

impl Health {
    /// How a domain is; `None`: it is not known of.
    pub fn get(&self, name: &Name) -> Option<&Condition> {
        self.conditions.get(name)
    }

    /// Without what cannot be of this boot, which is `now` old: a file may be damaged, or left by another.
    #[must_use]
    pub fn until(mut self, now: Duration) -> Self {
        self.conditions
            .retain(|_, condition| condition.is_until(now));
        self
    }

    /// Takes in what the kernel says now; returns the domains that are different by it.
    pub fn observe(
        &mut self,
        config: &Config,
        domains: &Domains,
        history: &History,
        now: Now,
    ) -> BTreeSet<Name> {
        self.conditions
            .retain(|name, _| domains.get(name.as_str()).is_some_and(|d| d.name == *name));
        let mut changed = BTreeSet::new();
        for domain in domains.iter() {
            let condition = self.conditions.entry(domain.name.clone()).or_default();
            if condition.observe(domain, &check_of(config, domain), history, now.boot) {
                changed.insert(domain.name.clone());
            }
        }
        changed
    }

    /// Takes in what came of a check, and says what is different by it.
    pub fn report(
        &mut self,
        config: &Config,
        domains: &Domains,
        history: &mut History,
        probed: &Probed,
        now: Now,
    ) -> Learned {
        let Some(domain) = domains.get(probed.domain.as_str()) else {
            return Learned::Nothing;
        };
        let Some(condition) = self.conditions.get_mut(&domain.name) else {
            return Learned::Nothing;
        };
        if condition.epoch() != probed.epoch {
            return Learned::Nothing;
        }
        let before = condition.standing_for_all();
        if let (Some(gateway), false) = (probed.gateway, condition.is_named()) {
            condition.attached_to(NetworkId::at_gateway(domain, gateway), history);
        }
        if let Some(counted) = probed.counted {
            condition.count(counted, now.boot);
        }
        let check = check_of(config, domain);
        condition.report(
            &domain.name,
            &check,
            &probed.report,
            probed.began,
            history,
            now,
        );
        if before == condition.standing_for_all() {
            Learned::Measured
        } else {
            Learned::Standing
        }
    }

    /// What was seen of a domain's own packets: that none come back. It is checked at once, and one failure is
    /// enough.
    pub fn stalled(&mut self, name: &Name, check: &Check, now: Now) {
        if let Some(condition) = self.conditions.get_mut(name) {
            condition.stalled(check, now.boot);
        }
    }

    /// A domain is checked at once.
    pub fn recheck(&mut self, name: &Name, check: &Check, now: Now) {
        if let Some(condition) = self.conditions.get_mut(name) {
            condition.recheck(check, now.boot);
        }
    }

    /// Takes in that time has passed; returns the domains that are different by it.
    pub fn tick(
        &mut self,
        config: &Config,
        domains: &Domains,
        history: &mut History,
        now: Now,
    ) -> BTreeSet<Name> {
        let mut changed = BTreeSet::new();
        for (name, condition) in &mut self.conditions {
            let Some(domain) = domains.get(name.as_str()) else {
                continue;
            };
            let timeout = attach_timeout(config, name);
            let check = check_of(config, domain);
            if condition.tick(&check, timeout, history, now) {
                changed.insert(name.clone());
            }
        }
        changed
    }

    /// When [`Health::tick`] finds something next.
    pub fn deadline(&self, config: &Config, domains: &Domains) -> Option<Duration> {
        let conditions = self.conditions.iter();
        let deadlines = conditions.filter_map(|(name, condition)| {
            let check = check_of(config, domains.get(name.as_str())?);
            condition.deadline(attach_timeout(config, name), &check)
        });
        deadlines.min()
    }
}

/// How long a domain may take to become usable.
fn attach_timeout(config: &Config, name: &Name) -> Duration {
    let own = config.domains.get(name).and_then(|d| d.attach_timeout);
    own.unwrap_or(DEFAULT_ATTACH_TIMEOUT)
}

/// `attach-timeout` where nothing is said.
pub const DEFAULT_ATTACH_TIMEOUT: Duration = Duration::from_secs(20);

impl Domain {
    /// What it can do, by its interface and by its checks.
    pub fn state_with(&self, health: &Health) -> DomainState {
        let standing = health.get(&self.name).map(Condition::standing);
        match (self.state, standing) {
            (DomainState::Up, Some(Standing::Validated)) => DomainState::Validated,
            (DomainState::Up, Some(Standing::Portal(_))) => DomainState::Portal,
            (DomainState::Up, Some(Standing::Limited(_))) => DomainState::Limited,
            (state, _) => state,
        }
    }

    /// Why, as a sentence without a full stop.
    pub fn reason_with(&self, health: &Health) -> String {
        let condition = health.get(&self.name);
        match (self.state, condition) {
            (DomainState::Up, Some(condition)) => condition
                .reason(&self.name)
                .unwrap_or_else(|| self.reason.clone()),
            (DomainState::Configuring, Some(condition)) if condition.timed_out() => {
                format!("{}, for longer than its `attach-timeout`", self.reason)
            }
            _ => self.reason.clone(),
        }
    }
}
