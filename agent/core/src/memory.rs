//! What outlives the agent so that the next one goes on with the same numbers.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use steer_common::{MAX_CHOICES, MAX_NAMES, MAX_POLICIES, rules::MAX_RULESETS};

use crate::ids::DomainIndex;
use crate::name::Name;
use crate::select::Stage;

/// The numbers given out.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, rename_all = "kebab-case")]
pub struct Memory {
    /// Index of each domain that a policy could choose since boot.
    pub indices: BTreeMap<Name, DomainIndex>,
    /// The index given out last.
    pub last_index: u16,
    /// Kernel policies: a policy's name, then the names of those that hold by
    /// `otherwise = "next"`.
    pub policies: Numbers<Name>,
    /// Choices, by their inputs.
    pub choices: Numbers<Stage>,
    /// Cgroups below which strict policies name others, by the levels of their path.
    pub places: Numbers<String>,
    /// Compiled rules, by the hash of their content: a set never changes once it is published.
    pub rulesets: Numbers<u32>,
}

impl Default for Memory {
    fn default() -> Self {
        Self {
            indices: BTreeMap::new(),
            last_index: 0,
            policies: Numbers::new(MAX_POLICIES),
            choices: Numbers::new(MAX_CHOICES),
            places: Numbers::new(MAX_NAMES),
            rulesets: Numbers::new(MAX_RULESETS),
        }
    }
}

/// Numbers from 1 on for lists of `T`. A freed one is given out again as late as possible, since
/// sockets may remember it.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(
    from = "Saved<T>",
    into = "Saved<T>",
    bound(
        serialize = "T: Ord + Clone + Serialize",
        deserialize = "T: Ord + Clone + Deserialize<'de>"
    )
)]
pub struct Numbers<T: Ord + Clone> {
    by_key: BTreeMap<Arc<[T]>, u32>,
    by_number: BTreeMap<u32, Arc<[T]>>,
    last: u32,
    end: u32,
    /// Grows with every number given out or taken back.
    revision: u64,
}

/// What was given out counts, not how often.
impl<T: Ord + Clone> PartialEq for Numbers<T> {
    fn eq(&self, other: &Self) -> bool {
        (self.last, self.end) == (other.last, other.end) && self.by_key == other.by_key
    }
}

impl<T: Ord + Clone> Eq for Numbers<T> {}

/// [`Numbers`] as they are saved: JSON has no lists as keys.
#[derive(Serialize, Deserialize)]
struct Saved<T> {
    given: Vec<(u32, Vec<T>)>,
    last: u32,
    end: u32,
}

impl Memory {
    /// Whether there are numbers for one more set of rules and one more choice.
    pub(crate) fn has_room_for_rules(&self) -> bool {
        self.rulesets.has_room() && self.choices.has_room()
    }

    /// Grows with every change of the numbers.
    pub fn revision(&self) -> [u64; 4] {
        [
            self.policies.revision,
            self.choices.revision,
            self.places.revision,
            self.rulesets.revision,
        ]
    }
}

impl<T: Ord + Clone> Default for Numbers<T> {
    fn default() -> Self {
        Self::new(MAX_POLICIES)
    }
}

impl<T: Ord + Clone> Numbers<T> {
    /// No number given out yet of those from 1 to below `end`.
    pub fn new(end: u32) -> Self {
        Self {
            by_key: BTreeMap::new(),
            by_number: BTreeMap::new(),
            last: 0,
            end,
            revision: 0,
        }
    }

    /// The number of `key`, if it has one.
    pub fn get(&self, key: &[T]) -> Option<u32> {
        self.by_key.get(key).copied()
    }

    /// What has `number`.
    pub fn key(&self, number: u32) -> Option<&Arc<[T]>> {
        self.by_number.get(&number)
    }

    /// All numbers given out, in order.
    pub fn iter(&self) -> impl Iterator<Item = (u32, &Arc<[T]>)> {
        self.by_number.iter().map(|(number, key)| (*number, key))
    }

    /// All numbers of lists that begin with `first`.
    pub fn starting_with<'a>(&'a self, first: &'a T) -> impl Iterator<Item = (u32, &'a Arc<[T]>)> {
        let from: Arc<[T]> = Arc::from([first.clone()]);
        self.by_key
            .range(from..)
            .take_while(move |(key, _)| key.first() == Some(first))
            .map(|(key, number)| (*number, key))
    }

    fn has_room(&self) -> bool {
        self.by_number.len() + 1 < self.end as usize
    }

    /// The number of `key`, given out now if it has none. `None`: there is none left.
    pub(crate) fn give(&mut self, key: &[T]) -> Option<u32> {
        if let Some(number) = self.get(key) {
            return Some(number);
        }
        if !self.has_room() {
            return None;
        }
        let mut number = self.last;
        loop {
            number = if number + 1 >= self.end {
                1
            } else {
                number + 1
            };
            if !self.by_number.contains_key(&number) {
                break;
            }
        }
        let key: Arc<[T]> = key.into();
        self.by_key.insert(key.clone(), number);
        self.by_number.insert(number, key);
        self.last = number;
        self.revision += 1;
        Some(number)
    }

    /// Takes a number back.
    pub(crate) fn free(&mut self, number: u32) {
        if let Some(key) = self.by_number.remove(&number) {
            self.by_key.remove(&key);
            self.revision += 1;
        }
    }
}

impl<T: Ord + Clone> From<Saved<T>> for Numbers<T> {
    /// Pairs that contradict others are dropped: a damaged file must not stop the agent.
    fn from(saved: Saved<T>) -> Self {
        let end = saved
            .end
            .clamp(2, MAX_POLICIES.max(MAX_CHOICES).max(MAX_NAMES));
        let mut numbers = Self::new(end);
        numbers.last = saved.last.min(end - 1);
        for (number, key) in saved.given {
            let key: Arc<[T]> = key.into();
            let fits = (1..end).contains(&number)
                && !numbers.by_number.contains_key(&number)
                && !numbers.by_key.contains_key(&key);
            if fits {
                numbers.by_key.insert(key.clone(), number);
                numbers.by_number.insert(number, key);
            }
        }
        numbers
    }
}

impl<T: Ord + Clone> From<Numbers<T>> for Saved<T> {
    fn from(numbers: Numbers<T>) -> Self {
        Self {
            given: numbers
                .by_number
                .into_iter()
                .map(|(number, key)| (number, key.to_vec()))
                .collect(),
            last: numbers.last,
            end: numbers.end,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::Numbers;

    #[test]
    fn a_freed_number_comes_back_as_late_as_possible() {
        let mut numbers = Numbers::new(4);
        assert_eq!(numbers.give(&['a']), Some(1));
        assert_eq!(numbers.give(&['b']), Some(2));
        numbers.free(1);
        assert_eq!(numbers.give(&['c']), Some(3));
        assert_eq!(numbers.give(&['d']), Some(1));
        assert_eq!(numbers.give(&['e']), None);
        assert_eq!(numbers.give(&['d']), Some(1));
    }

    #[test]
    fn numbers_survive_being_saved() {
        let mut numbers = Numbers::new(100);
        numbers.give(&['a', 'b']);
        numbers.give(&['c']);
        numbers.free(1);
        let saved = serde_json::to_string(&numbers).unwrap();
        assert_eq!(
            serde_json::from_str::<Numbers<char>>(&saved).unwrap(),
            numbers
        );
    }
}
