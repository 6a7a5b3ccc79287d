//! `Prefer`: one domain is to come first among those that policies can use, or answers the question of a
//! command that waits.

use steer_core::name::Name;
use steer_core::policy::Policy;
use steer_core::state::Event;
use steer_core::suggest::nearest;
use tracing::{debug, info};

use super::access::{Authority, not_permitted};
use super::ask::Answered;
use super::calls::{name, refused};
use super::{Daemon, Look};
use crate::api::error::ApiError;
use crate::api::methods::{Prefer, Reply};
use crate::api::server::Caller;
use crate::reconcile::chain;

/// What takes one wish back.
enum Undo {
    Preference(Event),
    Answer(Answered),
}

impl Daemon {
    pub(super) async fn prefer(
        &mut self,
        caller: &Caller,
        authority: &Authority,
        asked: Prefer,
    ) -> Result<Reply, ApiError> {
        let domain = asked.domain.as_deref();
        let domain = domain.map(|text| name("domain", text)).transpose()?;
        let policies = if asked.policy.is_empty() {
            self.that_can_use(authority, domain.as_ref())?
        } else {
            let named = asked.policy.iter();
            named
                .map(|policy| self.own_policy(caller, authority, policy))
                .collect::<Result<_, _>>()?
        };
        let mut done = Vec::new();
        for policy in &policies {
            self.sessions.forget(policy);
            match self.prefer_one(policy, domain.as_ref()) {
                Ok(undo) => done.push(undo),
                Err(error) => {
                    self.take_back(done);
                    return Err(error);
                }
            }
        }
        if let Err(error) = self.converge(Look::Nothing).await {
            self.take_back(done);
            self.converge_and_log(Look::Nothing).await;
            return Err(ApiError::Failed {
                reason: chain(&error),
            });
        }
        let shown = domain.as_ref().map_or("none", Name::as_str);
        match authority.owner() {
            None => info!(domain = shown, policies = policies.len(), "preferred"),
            Some(uid) => debug!(domain = shown, policies = policies.len(), uid, "preferred"),
        }
        let views = policies
            .iter()
            // A command may have ended at once, and its policy with it.
            .filter_map(|policy| self.find_policy(policy.as_str()))
            .map(|policy| self.policy_view(policy))
            .collect();
        // A command whose answer does not fit does not wait, unless it said so.
        self.expire_runs();
        for policy in &policies {
            if let Some(words) = self.refused_of(policy, &self.engine.numbers(policy)) {
                return Err(ApiError::Failed {
                    reason: format!("{words}; it is tried again"),
                });
            }
        }
        Ok(Reply::Policies(views))
    }

    /// The domains that a policy can use, in its own order.
    pub(super) fn usable(&self, policy: &Policy) -> Vec<Name> {
        let asked = self.choices_of(&policy.name);
        asked.unwrap_or_else(|| self.engine.expand(policy.names()))
    }

    /// The domain that comes first because it is preferred.
    pub(super) fn preferred(&self, policy: &Policy) -> Option<&Name> {
        let preferred = self.engine.state().preferred.get(&policy.name)?;
        let domain = self.engine.domains().get(preferred.as_str());
        let own = domain.map_or(preferred, |domain| &domain.name);
        self.engine
            .expand(policy.names())
            .contains(own)
            .then_some(own)
    }

    /// A policy that the caller may change.
    fn own_policy(
        &self,
        caller: &Caller,
        authority: &Authority,
        policy: &str,
    ) -> Result<Name, ApiError> {
        match self.find_policy(policy) {
            Some(policy) if authority.owns(policy) => Ok(policy.name.clone()),
            Some(policy) if self.sees(caller, authority, policy) => Err(not_permitted(format!(
                "policy `{}` is another's: it takes root or the group `steer` to change it",
                policy.name
            ))),
            _ => Err(self.no_policy(authority, policy.to_owned())),
        }
    }

    /// The policies that a wish without names is for; for no domain, those that have a wish.
    fn that_can_use(
        &self,
        authority: &Authority,
        domain: Option<&Name>,
    ) -> Result<Vec<Name>, ApiError> {
        let state = self.engine.state();
        let own = state.policies().filter(|policy| authority.owns(policy));
        let Some(domain) = domain else {
            let preferring = own.filter(|policy| state.preferred.contains_key(&policy.name));
            return Ok(preferring.map(|policy| policy.name.clone()).collect());
        };
        let known = self.engine.domains().get(domain.as_str());
        let named = known.map_or(domain, |domain| &domain.name);
        // A question is answered by who speaks of it.
        let own = own.filter(|policy| self.runs.waits_for_answer(&policy.name).is_none());
        let can: Vec<Name> = own
            .filter(|policy| self.engine.expand(policy.names()).contains(named))
            .map(|policy| policy.name.clone())
            .collect();
        if !can.is_empty() {
            return Ok(can);
        }
        if known.is_none() {
            let known = self.engine.domains().iter();
            let meant = nearest(domain.as_str(), known.map(|domain| domain.name.as_str()));
            return Err(ApiError::NoSuchDomain {
                meant: meant.map(str::to_owned),
                name: domain.to_string(),
            });
        }
        Err(ApiError::InvalidArgument {
            field: "domain".to_owned(),
            reason: format!(
                "{} can use `{domain}`, and a preference adds nothing to what they use (`steer policy \
                 list`)",
                match authority {
                    Authority::Administrator => "no policy",
                    Authority::User(_) => "no policy of yours",
                }
            ),
        })
    }

    fn prefer_one(&mut self, policy: &Name, domain: Option<&Name>) -> Result<Undo, ApiError> {
        if self.runs.waits_for_answer(policy).is_some() {
            return self.answer_question(policy, domain).map(Undo::Answer);
        }
        let before = Event::Prefer {
            policy: policy.clone(),
            domain: self.engine.state().preferred.get(policy).cloned(),
        };
        // The domain's own name means the same when its interface has gone.
        let known = domain.and_then(|domain| self.engine.domains().get(domain.as_str()));
        let domain = known.map(|known| &known.name).or(domain);
        self.event(Event::Prefer {
            policy: policy.clone(),
            domain: domain.cloned(),
        })
        .map_err(|rejected| refused(&rejected))?;
        Ok(Undo::Preference(before))
    }

    fn take_back(&mut self, done: Vec<Undo>) {
        for undo in done {
            match undo {
                // What was preferred may be out of its policy's reach by now, and then means nothing.
                Undo::Preference(before) => drop(self.event(before)),
                Undo::Answer(answered) => self.ask_again(answered),
            }
        }
    }
}
