//! Rules of others that catch traffic without a mark.

use super::Family;
use crate::network::{ForeignRule, Network};

/// Tables that every host has: `default`, `main`, `local`.
const USUAL_TABLES: [u32; 3] = [253, 254, 255];

/// Rules of others that send unmarked traffic of all kinds to a table of their own (wg-quick,
/// Tailscale, Mullvad). Beside one, `from` rules for unmarked traffic would take flows out of the
/// tunnel that it is for.
pub fn catching(network: &Network, family: Family) -> impl Iterator<Item = &ForeignRule> {
    network
        .rules
        .iter()
        .filter(move |rule| rule.v6 == (family == Family::Ipv6))
        .filter(|rule| {
            rule.table
                .is_some_and(|table| !USUAL_TABLES.contains(&table.0))
        })
        .filter(|rule| catches_unmarked(rule))
}

/// Whether a rule fits unmarked packets whatever their source and destination. `not` turns the
/// selectors round as a whole, so that one which ordinary packets do not fit makes it fit them.
fn catches_unmarked(rule: &ForeignRule) -> bool {
    let unmarked_fits = rule.fwmark.is_none_or(|(mark, _)| mark == 0);
    let selective = rule.from.is_some() || rule.to.is_some() || rule.narrow;
    (unmarked_fits && !selective) != rule.invert
}
