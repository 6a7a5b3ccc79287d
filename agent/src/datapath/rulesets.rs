//! The compiled sets of rules: a map for each, which a map of maps leads to.

use std::{
    io,
    os::fd::{AsFd as _, OwnedFd},
    path::Path,
};

use bytemuck::Zeroable as _;
use steer_common::rules::{MAX_RULESETS, PAGE_BYTES, PAGE_WORDS, RulesHeader};

use super::{
    error::{Error, Result},
    maps::RULESETS,
    sys,
};

/// Sets that are published or removed by one call: for a publication, so many maps are open at the same time.
const BATCH: usize = 256;
/// The number that no policy's rules have.
const UNUSED: u32 = 0;

/// Number of a policy's rules -> its set.
pub struct Rulesets {
    map: OwnedFd,
}

impl Rulesets {
    /// Opens the map that is pinned in `directory`.
    pub(super) fn open(directory: &Path) -> Result<Self> {
        Ok(Self {
            map: RULESETS.open_existing(directory)?,
        })
    }

    /// Puts a set at `index` in place of what is there: programs see the one or the other. When this returns,
    /// none sees the old one any more.
    ///
    /// # Errors
    /// There is no such index, a page has another size than [`PAGE_WORDS`] words, or the kernel has no memory.
    pub fn set<'a>(
        &self,
        index: u32,
        pages: impl ExactSizeIterator<Item = &'a [u32]>,
    ) -> Result<()> {
        let set = make(index, pages)?;
        // The kernel waits here until every program that began before has ended (`maybe_wait_bpf_programs`).
        sys::update(
            self.map.as_fd(),
            bytemuck::bytes_of(&index),
            bytemuck::bytes_of(&sys::number(set.as_fd())),
        )
        .map_err(Error::kernel("publish", set_name(index)))
    }

    /// As [`Self::set`], many at once: the kernel waits once for some hundreds.
    ///
    /// # Errors
    /// As those of [`Self::set`]; which sets are there then is for [`Self::hashes`] to say.
    pub fn set_all<'a, P: ExactSizeIterator<Item = &'a [u32]>>(
        &self,
        sets: impl IntoIterator<Item = (u32, P)>,
    ) -> Result<()> {
        let mut sets = sets.into_iter().peekable();
        while sets.peek().is_some() {
            let made = sets.by_ref().take(BATCH);
            let made: Vec<(u32, OwnedFd)> = made
                .map(|(index, pages)| Ok((index, make(index, pages)?)))
                .collect::<Result<_>>()?;
            let indices: Vec<u32> = made.iter().map(|(index, _)| *index).collect();
            let maps: Vec<u32> = made
                .iter()
                .map(|(_, set)| sys::number(set.as_fd()))
                .collect();
            sys::update_batch(
                self.map.as_fd(),
                bytemuck::cast_slice(&indices),
                bytemuck::cast_slice(&maps),
                u32::try_from(made.len()).expect("at most a batch"),
            )
            .map_err(Error::kernel("publish", "sets of rules"))?;
        }
        Ok(())
    }

    /// Removes sets, and their memory with them, once no program is under way that may have read a policy which led
    /// to them. The kernel waits twice for some hundreds: each removal by itself would wait too.
    ///
    /// # Errors
    /// There is no such index, or the kernel has no memory.
    pub fn clear(&self, indices: &[u32]) -> Result<()> {
        let failed = |error| Error::kernel("remove", "sets of rules")(error);
        // A set without header is none to the programs.
        let none = make(UNUSED, [[0; PAGE_WORDS as usize].as_slice()].into_iter())?;
        let number = sys::number(none.as_fd());
        for indices in indices.chunks(BATCH) {
            // What waits is that a map of maps is written at all.
            let key = bytemuck::bytes_of(&UNUSED);
            sys::update(self.map.as_fd(), key, bytemuck::bytes_of(&number)).map_err(failed)?;
            let numbers = vec![number; indices.len()];
            let count = u32::try_from(indices.len()).expect("at most a batch");
            let (keys, values) = (
                bytemuck::cast_slice(indices),
                bytemuck::cast_slice(&numbers),
            );
            sys::update_batch(self.map.as_fd(), keys, values, count).map_err(failed)?;
        }
        Ok(())
    }

    /// Every index that is taken, ascending, with the hash in its set's header
    /// ([`RulesHeader::hash`]); all zero if the header is damaged.
    ///
    /// # Errors
    /// The kernel refuses to tell.
    pub fn hashes(&self) -> Result<Vec<(u32, [u32; 4])>> {
        self.taken()?
            .into_iter()
            .filter_map(|(index, id)| {
                let hash = hash_of(id).map_err(Error::kernel("read", set_name(index)));
                hash.map(|hash| hash.map(|hash| (index, hash))).transpose()
            })
            .collect()
    }

    /// The hash in the header of one set, as [`Self::hashes`] has it. `None`: there is no set.
    ///
    /// # Errors
    /// The kernel refuses to tell.
    pub fn hash(&self, index: u32) -> Result<Option<[u32; 4]>> {
        let failed = || Error::kernel("read", set_name(index));
        let mut id = 0_u32;
        let key = bytemuck::bytes_of(&index);
        let found = sys::lookup(self.map.as_fd(), key, bytemuck::bytes_of_mut(&mut id));
        if !found.map_err(failed())? {
            return Ok(None);
        }
        hash_of(id).map_err(failed())
    }

    /// The indices that are taken, and the ids of their maps.
    fn taken(&self) -> Result<Vec<(u32, u32)>> {
        let failed = |error| Error::kernel("read map", RULESETS.name)(error);
        let room = MAX_RULESETS as usize;
        let (mut keys, mut ids) = (vec![0_u32; room], vec![0_u32; room]);
        let found = sys::lookup_batch(
            self.map.as_fd(),
            None,
            bytemuck::cast_slice_mut(&mut keys),
            bytemuck::cast_slice_mut(&mut ids),
            MAX_RULESETS,
        );
        match found {
            Ok(found) => {
                let taken = keys.into_iter().zip(ids);
                Ok(taken.take(found.count as usize).collect())
            }
            // Before Linux 6.14 (5644c6b50ffe) the kernel stopped at the first that is free.
            Err(error) if error.kind() == io::ErrorKind::Interrupted => (0..MAX_RULESETS)
                .filter_map(|index| {
                    let mut id = 0_u32;
                    let key = bytemuck::bytes_of(&index);
                    sys::lookup(self.map.as_fd(), key, bytemuck::bytes_of_mut(&mut id))
                        .map(|found| found.then_some((index, id)))
                        .transpose()
                })
                .collect::<io::Result<_>>()
                .map_err(failed),
            Err(error) => Err(failed(error)),
        }
    }
}

/// Makes the map of a set, filled, which is never written again.
fn make<'a>(index: u32, pages: impl ExactSizeIterator<Item = &'a [u32]>) -> Result<OwnedFd> {
    let failed = |operation| Error::kernel(operation, set_name(index));
    let wrong = || io::Error::from_raw_os_error(libc::EINVAL);
    let count = u32::try_from(pages.len()).map_err(|_| failed("make")(wrong()))?;
    let set = sys::make_inner_array(c"RULES", PAGE_BYTES, count).map_err(failed("make"))?;
    for (at, page) in (0_u32..).zip(pages) {
        if page.len() != PAGE_WORDS as usize {
            return Err(failed("write")(wrong()));
        }
        sys::update(
            set.as_fd(),
            bytemuck::bytes_of(&at),
            bytemuck::cast_slice(page),
        )
        .map_err(failed("write"))?;
    }
    sys::freeze(set.as_fd()).map_err(failed("freeze"))?;
    Ok(set)
}

fn set_name(index: u32) -> String {
    format!("set {index} of rules")
}

/// The hash in the set that is the map with an id. `None`: it was replaced meanwhile, or is no set.
fn hash_of(id: u32) -> io::Result<Option<[u32; 4]>> {
    let map = match sys::map_by_id(id) {
        Ok(map) => map,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error),
    };
    let mut page = vec![0_u32; PAGE_WORDS as usize];
    let bytes = bytemuck::cast_slice_mut(&mut page);
    sys::lookup(map.as_fd(), bytemuck::bytes_of(&0_u32), bytes)?;
    if page[0] == 0 {
        // What was put in the place of one that was removed.
        return Ok(None);
    }
    let mut header = RulesHeader::zeroed();
    let words = size_of::<RulesHeader>() / 4;
    bytemuck::bytes_of_mut(&mut header).copy_from_slice(bytemuck::cast_slice(&page[..words]));
    Ok(Some(if header.magic == RulesHeader::MAGIC {
        header.hash
    } else {
        [0; 4]
    }))
}
