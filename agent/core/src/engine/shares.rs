//! Choices: which domain each has, and the slots of those whose flows are shared.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use steer_common::{ChoiceEntry, MAX_SHARES, ShareEntry, share, verdict};

use super::{Changes, Engine};
use crate::domains::DomainState;
use crate::ids::ChoiceId;
use crate::name::Name;
use crate::plan::Family;
use crate::policy::Share;
use crate::select::{Inputs, Verdict};
use crate::share::{Member, slots};

/// Choices whose flows are shared.
#[derive(Debug, Default)]
pub(super) struct Shares {
    /// How, and by which slots; also of those for which there is no room.
    wanted: BTreeMap<ChoiceId, (u32, Arc<ShareEntry>)>,
    /// Slots that were made: choices with the same members have the same.
    made: BTreeMap<Vec<Member>, Arc<ShareEntry>>,
}

impl Shares {
    pub(super) fn remove(&mut self, id: ChoiceId) {
        self.wanted.remove(&id);
    }

    /// How many there is no room for.
    pub(super) fn left_out(&self) -> usize {
        self.wanted.len().saturating_sub(MAX_SHARES as usize)
    }

    /// The last choice that there is room for, if not for all.
    fn last(&self) -> Option<ChoiceId> {
        let last = self.wanted.keys().nth(MAX_SHARES as usize - 1)?;
        (self.left_out() > 0).then_some(*last)
    }

    fn slots(&mut self, members: Vec<Member>) -> Arc<ShareEntry> {
        if self.made.len() >= MAX_SHARES as usize {
            self.made.clear();
        }
        let made = self.made.entry(members);
        let made = made.or_insert_with_key(|members| Arc::new(slots(members)));
        Arc::clone(made)
    }
}

impl Engine {
    /// The families whose flows a domain has.
    pub(crate) fn families(&self, domain: &Name) -> BTreeSet<Family> {
        let domain = self.domains.get(domain.as_str());
        let families = Family::BOTH.into_iter();
        families
            .filter(|family| domain.is_some_and(|domain| domain.has(*family)))
            .collect()
    }

    /// Decides a choice; whether there is room for its slots is for [`Self::settle_shares`] to say.
    pub(super) fn decide_choice(&mut self, id: ChoiceId, inputs: &Inputs) -> ChoiceEntry {
        let decision = self.select(inputs);
        match decision.domain() {
            Some(domain) => {
                let members = decision.members.iter().map(|(member, _)| member);
                let others = members.filter(|member| *member != domain);
                let chosen = std::iter::once(domain).chain(others).cloned().collect();
                self.state.chosen.insert(id, chosen)
            }
            None => self.state.chosen.remove(&id),
        };
        let index = |name| self.installed.get(name).copied();
        let number = |name| index(name).map_or(0, |index| u32::from(index.0));
        self.shares.remove(id);
        match &decision.verdict {
            Verdict::Steer(name) => {
                let share = match decision.share {
                    None => share::NONE,
                    Some(Share::Flow) => share::FLOW,
                    Some(Share::Destination) => share::DESTINATION,
                };
                let entry = ChoiceEntry {
                    verdict: verdict::STEER,
                    domain: number(name),
                    share,
                };
                if share != share::NONE {
                    let members = decision.members.iter().filter_map(|(domain, weight)| {
                        Some(Member {
                            domain: domain.clone(),
                            weight: *weight,
                            index: index(domain)?,
                            families: self.families(domain),
                        })
                    });
                    let members = members.collect();
                    let slots = self.shares.slots(members);
                    self.shares.wanted.insert(id, (share, slots));
                }
                entry
            }
            Verdict::Pass => ChoiceEntry {
                verdict: verdict::PASS,
                ..ChoiceEntry::default()
            },
            // What no program decides of its own bears this domain's mark, whose table leads nowhere: so it is none
            // that is up.
            Verdict::Block => ChoiceEntry {
                verdict: verdict::BLOCK,
                domain: decision
                    .candidates
                    .iter()
                    .filter(|candidate| !self.is_up(&candidate.domain))
                    .map(|candidate| number(&candidate.domain))
                    .find(|index| *index != 0)
                    .unwrap_or(0),
                ..ChoiceEntry::default()
            },
        }
    }

    /// Whether a domain's table leads anywhere.
    fn is_up(&self, domain: &Name) -> bool {
        let domain = self.domains.get(domain.as_str());
        domain.is_some_and(|domain| domain.state == DomainState::Up)
    }

    /// Gives these choices their slots; those with the highest numbers go without where there is no room.
    pub(super) fn settle_shares(&mut self, mut choices: BTreeSet<ChoiceId>, changes: &mut Changes) {
        let last = self.shares.last();
        if last.is_some() || self.shares_are_short {
            choices.extend(self.shares.wanted.keys());
        }
        self.shares_are_short = last.is_some();
        for id in choices {
            let wanted = self.shares.wanted.get(&id);
            let wanted = wanted.filter(|_| last.is_none_or(|last| id <= last));
            if let Some(entry) = self.plan.choices.get_mut(&id) {
                let how = wanted.map_or(share::NONE, |(how, _)| *how);
                if entry.share != how {
                    entry.share = how;
                    changes.choices.insert(id);
                }
            }
            let new = wanted.map(|(_, slots)| Arc::clone(slots));
            let old = match new.clone() {
                Some(slots) => self.plan.shares.insert(id, slots),
                None => self.plan.shares.remove(&id),
            };
            if new != old {
                changes.shares.insert(id);
            }
        }
    }
}
