//! The sets of rules that the kernel holds, told by the ids of their maps.

use std::collections::BTreeMap;
use std::ffi::CString;
use std::fs;

use anyhow::{Context, Result};
use nix::errno::Errno;

use crate::foreign::{MAP_LOOKUP, bpf, bpf_call, number};
use crate::lab::Lab;

/// `BPF_OBJ_GET` of `include/uapi/linux/bpf.h`.
const OBJECT_GET: i32 = 7;
/// How many numbers of sets are looked at: scenarios have few.
const LOOKED_AT: u32 = 64;

impl Lab {
    /// The sets of rules that are in force: the id of the map of each, which no other map has had since the
    /// machine was started, by its number.
    ///
    /// # Errors
    /// If the agent's maps cannot be read.
    pub fn rulesets(&self) -> Result<BTreeMap<u32, u32>> {
        self.host().run(|| {
            let pins = "/sys/fs/bpf/steer";
            let versions = fs::read_dir(pins).with_context(|| format!("list {pins}"))?;
            let map = versions
                .flatten()
                .map(|version| version.path().join("maps/RULESETS"))
                .find(|path| path.exists())
                .with_context(|| format!("no maps/RULESETS below {pins}"))?;
            let path = CString::new(map.display().to_string()).context("a path")?;
            let mut argument = [path.as_ptr().expose_provenance() as u64, 0, 0];
            let map = bpf(OBJECT_GET, &mut argument).context("open RULESETS")?;
            let mut found = BTreeMap::new();
            for set in 0..LOOKED_AT {
                let mut id = 0_u32;
                let mut argument = [
                    number(&map),
                    (&raw const set).expose_provenance() as u64,
                    (&raw mut id).expose_provenance() as u64,
                    0,
                ];
                match bpf_call(MAP_LOOKUP, &mut argument) {
                    Ok(_) => drop(found.insert(set, id)),
                    Err(error) if error.downcast_ref() == Some(&Errno::ENOENT) => {}
                    Err(error) => return Err(error).context("read RULESETS"),
                }
            }
            // One without rules is in the places of those that were removed, and in that which none has.
            if let Some(none) = found.remove(&0) {
                found.retain(|_, id| *id != none);
            }
            Ok(found)
        })
    }
}
