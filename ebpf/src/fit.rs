//! Whether a packet is at its domain's interface, with its domain's source.

use core::ptr::from_ref;

use aya_ebpf::bindings::__sk_buff;
use steer_common::{DomainEntry, DomainSlots, domain_flags};

use crate::{address::Address, maps::DOMAINS, sock::field};

/// How a packet fits a domain.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Fit {
    /// Its interface and its source are the domain's.
    Right,
    /// Its interface is the domain's; its source is not.
    Source,
    /// Its interface is another.
    Interface,
    /// The domain has no interface.
    Gone,
}

/// How `skb` fits domain `index`, if it bears `source`; `None`: it is no IP packet.
///
/// Reads the few words that it needs in place, instead of [`crate::decision::Domain::get`]'s copy.
#[inline(always)]
pub fn fit(index: u32, skb: *mut __sk_buff, source: Option<Address>) -> Fit {
    if index == 0 {
        return Fit::Gone;
    }
    let Some(slots) = DOMAINS.get(index) else {
        return Fit::Gone;
    };
    let begun = word(&slots.changes);
    let Some(entry) = slots.entries.get(DomainSlots::slot(begun)) else {
        return Fit::Gone;
    };
    let interface = word(&entry.ifindex);
    let preferred = source.is_none_or(|source| is_preferred(entry, source));
    // Written again meanwhile: as in `decision::entry_in_use`.
    if interface == 0 || word(&slots.changes).wrapping_sub(begun) >= DomainSlots::COUNT as u32 - 1 {
        return Fit::Gone;
    }
    if interface != field!(skb, ifindex) {
        return Fit::Interface;
    }
    if preferred || source.is_none_or(|source| source.belongs_to(index)) {
        Fit::Right
    } else {
        Fit::Source
    }
}

/// Whether domain `index` has an interface, and a source and a table for the family.
#[inline(always)]
pub fn serves(index: u32, v4: bool) -> bool {
    let flag = if v4 {
        domain_flags::IPV4
    } else {
        domain_flags::IPV6
    };
    entry(index).is_some_and(|entry| word(&entry.ifindex) != 0 && word(&entry.flags) & flag != 0)
}

/// Whether the interface of domain `index` is a tunnel.
#[inline(always)]
pub fn is_tunnel(index: u32) -> bool {
    entry(index).is_some_and(|entry| word(&entry.flags) & domain_flags::TUNNEL != 0)
}

/// The interface of domain `index`; 0: it has none.
#[inline(always)]
pub fn interface(index: u32) -> u32 {
    entry(index).map_or(0, |entry| word(&entry.ifindex))
}

/// The mark of domain `index`; 0: it has none.
#[inline(always)]
pub fn mark(index: u32) -> u32 {
    entry(index).map_or(0, |entry| word(&entry.mark))
}

/// Whether packets with these bits of the mark go by the table of domain `index`.
#[inline(always)]
pub fn bears_mark_of(index: u32, bits: u32) -> bool {
    entry(index).is_some_and(|entry| word(&entry.mark) == bits)
}

/// The entry of domain `index` that is in use now; index 0 has one that is never written.
#[inline(always)]
fn entry(index: u32) -> Option<&'static DomainEntry> {
    let slots = DOMAINS.get(index)?;
    slots.entries.get(DomainSlots::slot(word(&slots.changes)))
}

#[inline(always)]
fn is_preferred(entry: &DomainEntry, source: Address) -> bool {
    if source.is_v4() {
        let preferred: *const [u8; 4] = &raw const entry.source4;
        // SAFETY: same size; the field is aligned to four bytes.
        return source.0[3] == word(unsafe { &*preferred.cast::<u32>() });
    }
    // SAFETY: as above.
    let preferred = unsafe { &*(&raw const entry.source6).cast::<[u32; 4]>() };
    source.0[3] == word(&preferred[3])
        && source.0[2] == word(&preferred[2])
        && source.0[1] == word(&preferred[1])
        && source.0[0] == word(&preferred[0])
}

/// A word that may change while it is read.
#[inline(always)]
fn word(place: &u32) -> u32 {
    // SAFETY: a valid, aligned word.
    unsafe { from_ref(place).read_volatile() }
}
