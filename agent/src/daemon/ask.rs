//! The questions of `steer run --ask`: which domain? The call waits, its policy blocks and nothing is in
//! its place, until somebody who may answers by `Prefer`.

use steer_core::domains::Domain;
use steer_core::health::Health;
use steer_core::name::Name;
use steer_core::policy::Policy;
use steer_core::state::Event;
use tokio::time::Instant;

use super::Daemon;
use super::access::Authority;
use super::calls::refused;
use super::runs::Runs;
use crate::api::error::ApiError;
use crate::api::types::Choice;

/// What is asked.
#[derive(Clone, Debug)]
pub(super) struct Question {
    /// What there is to choose from; empty: whatever the caller may use.
    pub(super) via: Vec<Name>,
    /// Whether the policy is to be strict.
    pub(super) strict: bool,
    /// Whether the call gives up if what was chosen does not fit.
    pub(super) at_once: bool,
}

/// An answer that was taken, to be taken back.
pub(super) struct Answered {
    question: Question,
    deadline: Option<Instant>,
    /// As it was.
    policy: Policy,
}

impl Runs {
    /// That the policy's command waits for an answer, and how to give one.
    pub(super) fn waits_for_answer(&self, policy: &Name) -> Option<String> {
        self.question(policy)?;
        Some(format!(
            "waits for an answer: `steer domain prefer NAME --policy {policy}`"
        ))
    }

    fn question(&self, policy: &Name) -> Option<&Question> {
        self.waiting.get(policy)?.question.as_ref()
    }
}

impl Daemon {
    /// Whether a question makes sense.
    ///
    /// # Errors
    /// It names what is not there or not permitted, or leaves nothing to choose from.
    pub(super) fn check_question(
        &self,
        authority: &Authority,
        question: &Question,
    ) -> Result<(), ApiError> {
        self.engine
            .check_names(&Name::default_policy(), &question.via)
            .map_err(|rejected| refused(&rejected))?;
        self.permit(authority, &question.via, question.strict, None)?;
        if self.choices(authority, question).is_empty() {
            return Err(ApiError::NoDomainFits {
                policy: None,
                reason: "there is none that you may use".to_owned(),
                candidates: Vec::new(),
            });
        }
        Ok(())
    }

    /// The domains that may be chosen, in the order of the question.
    fn choices(&self, authority: &Authority, question: &Question) -> Vec<Name> {
        if !question.via.is_empty() {
            return self.engine.expand(&question.via);
        }
        let all = self.engine.domains().iter().map(|domain| &domain.name);
        let may = |name: &&Name| {
            self.permit(
                authority,
                std::slice::from_ref(*name),
                question.strict,
                None,
            )
            .is_ok()
        };
        all.filter(may).cloned().collect()
    }

    /// The same for the command that has this policy, if it waits for an answer.
    pub(super) fn choices_of(&self, policy: &Name) -> Option<Vec<Name>> {
        let waiting = self.runs.waiting.get(policy)?;
        let question = waiting.question.as_ref()?;
        Some(self.choices(&waiting.authority, question))
    }

    /// What the caller is shown to choose from.
    pub(super) fn offer(&self, policy: &Name) -> Option<Vec<Choice>> {
        let names = self.choices_of(policy)?;
        let offer = names
            .iter()
            .map(|name| match self.engine.domains().get(name.as_str()) {
                Some(domain) => choice(domain, self.engine.health()),
                None => absent(name),
            });
        Some(offer.collect())
    }

    /// Gives the command that has this policy what was chosen: that domain first, and behind it the others
    /// that it named.
    ///
    /// # Errors
    /// It is not among what there is to choose from.
    pub(super) fn answer_question(
        &mut self,
        policy: &Name,
        domain: Option<&Name>,
    ) -> Result<Answered, ApiError> {
        let wrong = |reason: String| ApiError::InvalidArgument {
            field: "domain".to_owned(),
            reason,
        };
        let state = self.engine.state();
        let (Some(waiting), Some(before), Some(mut choices)) = (
            self.runs.waiting.get(policy),
            state.api_policies.get(policy).cloned(),
            self.choices_of(policy),
        ) else {
            return Err(wrong(format!("policy `{policy}` is no more")));
        };
        let (authority, question) = (&waiting.authority, waiting.question.clone());
        let Some(question) = question else {
            return Err(wrong(format!("policy `{policy}` waits for no answer")));
        };
        let domain = domain
            .ok_or_else(|| wrong(format!("policy `{policy}` waits for an answer: name one")))?;
        let known = self.engine.domains().get(domain.as_str());
        let own = known.map_or(domain, |known| &known.name);
        let Some(at) = choices.iter().position(|choice| choice == own) else {
            let choices: Vec<_> = choices.iter().map(|name| format!("`{name}`")).collect();
            return Err(wrong(format!(
                "policy `{policy}` cannot use `{domain}`, only {}",
                choices.join(", ")
            )));
        };
        let chosen = choices.remove(at);
        if question.via.is_empty() {
            choices.clear();
        }
        choices.insert(0, chosen);
        // The files may have changed since it was asked.
        self.permit(authority, &choices, question.strict, None)?;
        self.event(Event::SetPolicy(Policy {
            use_: choices,
            ..before.clone()
        }))
        .map_err(|rejected| refused(&rejected))?;
        let mut deadline = None;
        if let Some(waiting) = self.runs.waiting.get_mut(policy) {
            deadline = waiting.deadline;
            waiting.question = None;
            if question.at_once {
                waiting.deadline = Some(Instant::now());
            }
        }
        Ok(Answered {
            question,
            deadline,
            policy: before,
        })
    }

    /// Takes an answer back.
    pub(super) fn ask_again(&mut self, answered: Answered) {
        if let Some(waiting) = self.runs.waiting.get_mut(&answered.policy.name) {
            waiting.question = Some(answered.question);
            waiting.deadline = answered.deadline;
        }
        self.fact(Event::PutBack(answered.policy));
    }
}

fn choice(domain: &Domain, health: &Health) -> Choice {
    Choice {
        domain: domain.name.to_string(),
        kind: domain.kind.to_string(),
        state: domain.state_with(health).to_string(),
        reason: domain.reason_with(health),
        cost: domain.cost,
        metered: domain.metered,
    }
}

/// A domain that is named and not there.
fn absent(name: &Name) -> Choice {
    Choice {
        domain: name.to_string(),
        kind: "other".to_owned(),
        state: "absent".to_owned(),
        reason: format!("there is no interface {name}"),
        cost: 0,
        metered: false,
    }
}
