//! Per-CPU counters.

use crate::maps::COUNTERS;

/// Adds one to slot `index` of `COUNTERS`.
#[inline(always)]
pub fn count(index: u32) {
    if let Some(slot) = COUNTERS.get_ptr_mut(index) {
        // SAFETY: the slot is this CPU's own; an interrupt in between may lose one count.
        unsafe { *slot += 1 };
    }
}
