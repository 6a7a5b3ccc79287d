//! The table of domains, each entry of which is replaced as a whole while programs read it.

use std::sync::atomic::{Ordering, fence};

use bytemuck::Zeroable as _;
use steer_common::{DomainEntry, DomainSlots};

use super::{error::Result, maps::Array};

/// Domain -> mark, interface, sources.
pub struct Domains {
    slots: Array<DomainSlots>,
}

impl Domains {
    pub(super) const fn new(slots: Array<DomainSlots>) -> Self {
        Self { slots }
    }

    /// The entry of domain `index`. An index beyond the end is an error.
    pub fn get(&self, index: u32) -> Result<DomainEntry> {
        self.slots.get(index).map(|slots| *slots.entry())
    }

    /// Replaces the entry of domain `index`: a program sees the old one or the new. An index beyond the
    /// end is an error.
    pub fn set(&self, index: u32, entry: &DomainEntry) -> Result<()> {
        let mut slots = self.slots.get(index)?;
        if slots.entry() == entry {
            return Ok(());
        }
        let changes = slots.changes.wrapping_add(1);
        slots.entries[DomainSlots::slot(changes)] = *entry;
        self.slots.set(index, &slots)?;
        // No reader may see the count before the entry. Its own two reads of the count and the copy
        // between them stay in order on x86; elsewhere a copy is wrong only if four changes are reordered.
        fence(Ordering::SeqCst);
        slots.changes = changes;
        self.slots.set(index, &slots)
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
