//! When each choice became what it is: kept in a file of its own, for the next agent and for who asks
//! while none runs.
//!
//! Not in the state file: that is read in full and written only when policies or numbers change, but a
//! decision may change with every cable.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};
use steer_common::ChoiceEntry;
use steer_core::ids::ChoiceId;
use steer_core::memory::Memory;
use steer_core::name::Name;
use tracing::warn;

use crate::reconcile::chain;
use crate::statefile::{self, RUN_DIRECTORY, StateFile};

/// When choices were made, by number.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Decided {
    choices: BTreeMap<u32, Made>,
}

/// What the file holds.
#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(default)]
struct Kept {
    choices: Vec<Made>,
}

/// A choice, and when it was made.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Made {
    choice: u32,
    verdict: u32,
    domain: u32,
    #[serde(default)]
    share: u32,
    /// Seconds since 1970.
    at: u64,
}

impl Made {
    fn entry(&self) -> ChoiceEntry {
        ChoiceEntry {
            verdict: self.verdict,
            domain: self.domain,
            share: self.share,
        }
    }
}

impl Decided {
    /// What the last agent kept; nothing if it did not, or if that cannot be read.
    pub(super) fn read() -> Self {
        let kept = file().read::<Kept>().unwrap_or_else(|error| {
            warn!("{}", chain(&error));
            None
        });
        let made = kept.unwrap_or_default().choices.into_iter();
        Self {
            choices: made.map(|made| (made.choice, made)).collect(),
        }
    }

    /// The domain that each choice led to, by the indices that names have; of several that share its flows the
    /// first.
    pub(super) fn chosen(&self, memory: &Memory) -> BTreeMap<ChoiceId, Vec<Name>> {
        let names: BTreeMap<u32, &Name> = memory
            .indices
            .iter()
            .map(|(name, index)| (u32::from(index.0), name))
            .collect();
        let choices = self.choices.values();
        choices
            .filter(|made| made.verdict == steer_common::verdict::STEER)
            .filter_map(|made| {
                let name = names.get(&made.domain)?;
                Some((ChoiceId(made.choice), vec![(*name).clone()]))
            })
            .collect()
    }

    /// Notes the choices that changed, and keeps them if any did. `changed`: where to look; none:
    /// everywhere.
    pub(super) fn note(
        &mut self,
        choices: &BTreeMap<ChoiceId, ChoiceEntry>,
        changed: Option<&BTreeSet<ChoiceId>>,
        now: SystemTime,
    ) {
        let before = self.choices.len();
        let differing = match changed {
            Some(changed) => {
                let differs = |id: &&ChoiceId| self.compare(**id, choices.get(*id), now);
                changed.iter().filter(differs).count()
            }
            None => {
                self.choices
                    .retain(|id, _| choices.contains_key(&ChoiceId(*id)));
                let gone = before - self.choices.len();
                let differs =
                    |(id, entry): &(&ChoiceId, &ChoiceEntry)| self.compare(**id, Some(*entry), now);
                gone + choices.iter().filter(differs).count()
            }
        };
        if differing == 0 {
            return;
        }
        let kept = Kept {
            choices: self.choices.values().copied().collect(),
        };
        if let Err(error) = file().write(&kept) {
            // What is in force does not rest on it.
            warn!("{}", chain(&error));
        }
    }

    /// Whether a choice is not what it was.
    fn compare(
        &mut self,
        ChoiceId(id): ChoiceId,
        is: Option<&ChoiceEntry>,
        now: SystemTime,
    ) -> bool {
        let Some(entry) = is.copied() else {
            return self.choices.remove(&id).is_some();
        };
        let known = self.choices.get(&id);
        if known.is_some_and(|known| known.entry() == entry) {
            return false;
        }
        let at = now
            .duration_since(UNIX_EPOCH)
            .map_or(0, |since| since.as_secs());
        let made = Made {
            choice: id,
            verdict: entry.verdict,
            domain: entry.domain,
            share: entry.share,
            at,
        };
        self.choices.insert(id, made);
        true
    }

    /// Since when a choice is what it is: RFC 3339, UTC. Not known if it is another than was noted.
    pub(super) fn since(&self, id: u32, is: ChoiceEntry) -> Option<String> {
        let made = self.choices.get(&id)?;
        (made.entry() == is).then(|| timestamp(UNIX_EPOCH + Duration::from_secs(made.at)))
    }
}

/// Removes what is kept.
///
/// # Errors
/// The file system refuses.
pub(super) fn remove() -> Result<(), statefile::Error> {
    file().remove()
}

/// A time as the API shows it: RFC 3339, UTC.
pub(super) fn timestamp(time: SystemTime) -> String {
    humantime::format_rfc3339_seconds(time).to_string()
}

fn file() -> StateFile {
    StateFile::named(Path::new(RUN_DIRECTORY), "decided.json")
}
