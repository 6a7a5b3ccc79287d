//! The table of domains, each entry of which is replaced as a whole while programs read it.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use bytemuck::Zeroable as _;
use steer_common::{DomainEntry, DomainSlots};

use super::{
    error::{Error, Result},
    maps::Array,
    sys,
};

/// Longer than any program runs that began before an entry was written: none sleeps, and a task that is
/// preempted in one has its turn long before.
const OUT_OF_USE: Duration = Duration::from_secs(1);

/// Domain -> mark, interface, sources.
pub struct Domains {
    slots: Array<DomainSlots>,
    /// When each entry that this agent replaced went out of use.
    replaced: BTreeMap<(u32, usize), Instant>,
    /// No program is left that began before.
    ended: Option<Instant>,
}

impl Domains {
    pub(super) const fn new(slots: Array<DomainSlots>) -> Self {
        Self {
            slots,
            replaced: BTreeMap::new(),
            ended: None,
        }
    }

    /// The entry of domain `index`. An index beyond the end is an error.
    pub fn get(&self, index: u32) -> Result<DomainEntry> {
        self.slots.get(index).map(|slots| *slots.entry())
    }

    /// Replaces the entry of domain `index`: a program sees the old one or the new. An index beyond the
    /// end is an error.
    pub fn set(&mut self, index: u32, entry: &DomainEntry) -> Result<()> {
        let mut slots = self.slots.get(index)?;
        if slots.entry() == entry {
            return Ok(());
        }
        let next = DomainSlots::slot(slots.current.wrapping_add(1));
        self.wait_for_readers(index, next)?;
        slots.entries[next] = *entry;
        self.slots.set(index, &slots)?;
        let last = DomainSlots::slot(slots.current);
        slots.current = u32::try_from(next).expect("a few entries");
        self.slots.set(index, &slots)?;
        self.replaced.insert((index, last), Instant::now());
        Ok(())
    }

    /// Waits until no program is left that may read an entry that is not in use any more.
    fn wait_for_readers(&mut self, index: u32, slot: usize) -> Result<()> {
        let Some(replaced) = self.replaced.remove(&(index, slot)) else {
            return Ok(());
        };
        if replaced.elapsed() > OUT_OF_USE || self.ended > Some(replaced) {
            return Ok(());
        }
        let begun = Instant::now();
        // Where the kernel cannot wait, what lies between so many changes of a domain has to do.
        let _waited = sys::wait_for_programs()
            .map_err(Error::kernel("wait for the readers of", "DOMAINS"))?;
        self.ended = Some(begun);
        Ok(())
    }

    /// All that are not zero.
    pub fn entries(&self) -> Result<Vec<(u32, DomainEntry)>> {
        let slots = self.slots.entries()?.into_iter();
        Ok(slots
            .map(|(index, slots)| (index, *slots.entry()))
            .filter(|(_, entry)| *entry != DomainEntry::zeroed())
            .collect())
    }
}
