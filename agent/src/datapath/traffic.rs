//! What the programs count for policies, by domain.

use std::{collections::BTreeMap, os::fd::AsFd as _};

use steer_common::{Traffic, TrafficKey};

use super::{
    error::{Error, Result},
    maps::{TRAFFIC, Tables, cpus, for_each},
    sys,
};

impl Tables {
    /// What was sent for each policy by each domain since its entry was made, over all CPUs, in the
    /// order of policies and domains.
    pub fn traffic(&self) -> Result<BTreeMap<TrafficKey, Traffic>> {
        let mut all = BTreeMap::new();
        for_each(
            &self.traffic,
            TRAFFIC.name,
            cpus()?,
            |key, counts: &[Traffic]| {
                let sum: &mut Traffic = all.entry(key).or_default();
                for count in counts {
                    *sum += *count;
                }
            },
        )?;
        Ok(all)
    }

    /// Adds to an entry that no program writes.
    fn add_traffic(&self, key: &TrafficKey, more: Traffic) -> Result<()> {
        let mut values = vec![Traffic::default(); cpus()?];
        let failed = Error::kernel("read map", TRAFFIC.name);
        let bytes = bytemuck::cast_slice_mut(&mut values);
        sys::lookup(self.traffic.as_fd(), bytemuck::bytes_of(key), bytes).map_err(failed)?;
        if let Some(first) = values.first_mut() {
            *first += more;
        }
        let bytes = bytemuck::cast_slice(&values);
        sys::update(self.traffic.as_fd(), bytemuck::bytes_of(key), bytes)
            .map_err(Error::kernel("write map", TRAFFIC.name))
    }

    /// Moves an entry's counts, as they were read, to another that no program writes, and what was counted
    /// since. Where the agent is killed in between, no sum becomes less.
    pub fn move_traffic(&self, key: &TrafficKey, counted: Traffic, to: &TrafficKey) -> Result<()> {
        self.add_traffic(to, counted)?;
        let Some(last) = self.take_traffic(key)? else {
            return Ok(());
        };
        let more = difference(last, counted);
        if more == Traffic::default() {
            return Ok(());
        }
        self.add_traffic(to, more)
    }

    /// Forgets what was sent for a policy by a domain.
    pub(crate) fn forget_traffic(&self, key: &TrafficKey) -> Result<()> {
        self.take_traffic(key).map(drop)
    }

    /// Removes an entry. What it held last, if there was one.
    fn take_traffic(&self, key: &TrafficKey) -> Result<Option<Traffic>> {
        let mut values = vec![Traffic::default(); cpus()?];
        let bytes = bytemuck::cast_slice_mut(&mut values);
        let found = sys::take(self.traffic.as_fd(), bytemuck::bytes_of(key), bytes)
            .map_err(Error::kernel("delete from map", TRAFFIC.name))?;
        let mut sum = Traffic::default();
        for value in values {
            sum += value;
        }
        Ok(found.then_some(sum))
    }
}

/// What came to `before` until `after`.
fn difference(after: Traffic, before: Traffic) -> Traffic {
    Traffic {
        packets: after.packets.wrapping_sub(before.packets),
        bytes: after.bytes.wrapping_sub(before.bytes),
        wrong: after.wrong.wrapping_sub(before.wrong),
        dropped: after.dropped.wrapping_sub(before.dropped),
    }
}
