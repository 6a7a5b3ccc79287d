//! What is logged of flows.

use steer_core::engine::Engine;
use steer_core::name::Name;
use steer_core::sessions::Judged;
use tracing::{debug, info};

use super::count::Sum;

/// Flows that are told of together.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Told {
    policy: Option<Name>,
    from: Option<Name>,
    to: Option<Name>,
    why: String,
}

impl Told {
    pub(super) fn of(judged: &Judged) -> Self {
        Self {
            policy: judged.policy.clone(),
            from: judged.from.clone(),
            to: judged.to.clone(),
            why: judged.why.map(|why| why.to_string()).unwrap_or_default(),
        }
    }

    pub(super) fn tell(&self, engine: &Engine, sum: &Sum) {
        let (kept, failed) = (sum.stay.kept, sum.stay.failed);
        let (moved, reset) = (sum.done.moved, sum.done.reset);
        if moved + reset + failed == 0 {
            return;
        }
        let name = |name: &Option<Name>| name.as_ref().map_or("none", Name::as_str).to_owned();
        let (policy, from, to) = (name(&self.policy), name(&self.from), name(&self.to));
        let why = &self.why;
        let mut own = self.policy.iter();
        let own = own.find_map(|policy| engine.state().policy(policy.as_str()));
        // A plain user cannot fill the log.
        if own.is_some_and(|policy| policy.owner.is_some()) {
            debug!(
                policy,
                from, to, kept, moved, reset, failed, "live flows: {why}"
            );
        } else {
            info!(
                policy,
                from, to, kept, moved, reset, failed, "live flows: {why}"
            );
        }
    }
}
