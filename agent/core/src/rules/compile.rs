//! Makes an image of rules: see [`steer_common::rules`] for what it looks like.

use std::collections::{BTreeMap, HashMap};

use ipnet::IpNet;
use sha2::{Digest as _, Sha256};
use steer_common::rules::{
    LEAF, LEAVES, LONG_LEAF, LONG_LEAVES, MAX_PAGES, MAX_RULES, NAMES_DESTINATION, PAGE_WORDS,
    ROW_WORDS, RuleTable, RulesHeader, Summary, dimension,
};

use super::Rule;
use super::image::{ContentHash, Image};

/// Rules that do not fit the kernel's map.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TooLarge {
    /// Too many rules, those of the policies behind `otherwise = "next"` among them.
    #[error(
        "{0} rules or more, and one cgroup can have {MAX_RULES} with all policies that count there"
    )]
    Rules(usize),
    /// Too many addresses or ports.
    #[error("too many different addresses or ports in the rules of one cgroup")]
    Intervals,
    /// Rules with `otherwise = "next"` and those behind them.
    #[error(
        "too many combinations of rules that go on by `next` with those behind them: use fewer or simpler ones"
    )]
    Pairs,
    /// They overlap so much that they need too much memory.
    #[error(
        "rules that overlap so much that they need more than {} MB of kernel memory: use fewer or simpler ones",
        (MAX_PAGES as u64 * PAGE_WORDS as u64 * 4) >> 20
    )]
    Memory,
}

/// Compiles rules, each with its index into `CHOICES`; `otherwise` is the index for what none fits.
///
/// # Errors
/// They do not fit.
pub fn compile(rules: &[(&Rule, u32)], otherwise: u32) -> Result<Image, TooLarge> {
    let count = u32::try_from(rules.len()).unwrap_or(u32::MAX);
    if count > MAX_RULES {
        return Err(TooLarge::Rules(rules.len()));
    }
    let summaries = count.div_ceil(64 * 64).max(1);
    let mut builder = Builder {
        words: vec![0; size_of::<RulesHeader>() / 4],
        rows: HashMap::new(),
        summaries,
    };
    let choice = |(rule, choice): &(&Rule, u32)| {
        let names = !rule.destination.is_empty();
        choice & !NAMES_DESTINATION | if names { NAMES_DESTINATION } else { 0 }
    };
    let choices = builder.place();
    builder.words.extend(rules.iter().map(choice));
    let mut tables = [RuleTable::default(); dimension::COUNT as usize];
    for (at, table) in (0..).zip(&mut tables) {
        *table = builder.table(at, rules)?;
    }
    builder.finish(RulesHeader {
        magic: RulesHeader::MAGIC,
        rules: count,
        summaries,
        otherwise,
        choices,
        tables,
        ..RulesHeader::default()
    })
}

/// What a rule names in a dimension, from first to last, ascending and apart. `None`: it does not look
/// at it.
fn ranges(rule: &Rule, dimension: u32) -> Option<Vec<(u128, u128)>> {
    let nets = |nets: &[IpNet], v6: bool| {
        let of_family = nets.iter().filter(|net| matches!(net, IpNet::V6(_)) == v6);
        let range = |net: &IpNet| match net {
            IpNet::V4(net) => (
                net.network().to_bits().into(),
                net.broadcast().to_bits().into(),
            ),
            IpNet::V6(net) => (net.network().to_bits(), net.broadcast().to_bits()),
        };
        let mut ranges: Vec<(u128, u128)> = of_family.map(range).collect();
        // The unspecified address is that of a flow which has none yet: nothing names it.
        for (first, _) in &mut ranges {
            *first = (*first).max(1);
        }
        ranges.retain(|(first, last)| first <= last);
        ranges
    };
    let ports = |ports: &[super::Ports]| {
        let range = |ports: &super::Ports| (ports.first().into(), ports.last().into());
        ports.iter().map(range).collect()
    };
    let one = |value: u8| (u128::from(value), u128::from(value));
    let (given, mut ranges): (bool, Vec<(u128, u128)>) = match dimension {
        dimension::SOURCE4 => (!rule.source.is_empty(), nets(&rule.source, false)),
        dimension::SOURCE6 => (!rule.source.is_empty(), nets(&rule.source, true)),
        dimension::DESTINATION4 => (!rule.destination.is_empty(), nets(&rule.destination, false)),
        dimension::DESTINATION6 => (!rule.destination.is_empty(), nets(&rule.destination, true)),
        dimension::SOURCE_PORT => (!rule.source_ports.is_empty(), ports(&rule.source_ports)),
        dimension::PORT => (!rule.ports.is_empty(), ports(&rule.ports)),
        dimension::PROTOCOL => {
            let protocols = rule.protocol.iter().map(|protocol| one(protocol.0));
            (!rule.protocol.is_empty(), protocols.collect())
        }
        _ => {
            let points = rule.dscp.iter().map(|dscp| one(dscp.get()));
            (!rule.dscp.is_empty(), points.collect())
        }
    };
    if !given {
        return None;
    }
    ranges.sort_unstable();
    let mut apart: Vec<(u128, u128)> = Vec::with_capacity(ranges.len());
    for (first, last) in ranges {
        match apart.last_mut() {
            Some(before) if first <= before.1.saturating_add(1) => before.1 = before.1.max(last),
            _ => apart.push((first, last)),
        }
    }
    Some(apart)
}

/// An image that grows.
struct Builder {
    words: Vec<u32>,
    /// Place of each row that there is.
    rows: HashMap<Box<[u32]>, u32>,
    summaries: u32,
}

impl Builder {
    /// Where the next word comes. Images never get near the end of the numbers.
    fn place(&self) -> u32 {
        u32::try_from(self.words.len()).unwrap_or(u32::MAX)
    }

    /// Adds words that are read together, at an even place.
    fn add(&mut self, words: &[u32]) -> Result<u32, TooLarge> {
        if !self.words.len().is_multiple_of(2) {
            self.words.push(0);
        }
        let page = PAGE_WORDS as usize;
        let left = page - self.words.len() % page;
        if words.len() > left {
            self.next_page();
        }
        let place = self.place();
        self.words.extend_from_slice(words);
        self.within()?;
        Ok(place)
    }

    fn next_page(&mut self) {
        let page = PAGE_WORDS as usize;
        self.words
            .resize(self.words.len().next_multiple_of(page), 0);
    }

    fn within(&self) -> Result<(), TooLarge> {
        let most = u64::from(MAX_PAGES) * u64::from(PAGE_WORDS);
        if self.words.len() as u64 > most {
            return Err(TooLarge::Memory);
        }
        Ok(())
    }

    fn table(&mut self, dimension: u32, rules: &[(&Rule, u32)]) -> Result<RuleTable, TooLarge> {
        let mut fits = Bits::new(rules.len());
        // Where rules begin and cease to fit.
        let mut changes: BTreeMap<u128, Vec<(usize, bool)>> = BTreeMap::new();
        let mut used = false;
        for (at, (rule, _)) in rules.iter().enumerate() {
            match ranges(rule, dimension) {
                None => fits.set(at, true),
                Some(ranges) => {
                    used = true;
                    for (first, last) in ranges {
                        changes.entry(first).or_default().push((at, true));
                        if let Some(behind) = last.checked_add(1) {
                            changes.entry(behind).or_default().push((at, false));
                        }
                    }
                }
            }
        }
        if !used {
            return Ok(RuleTable {
                place: self.row(&fits)?,
                ..RuleTable::default()
            });
        }
        let long = matches!(dimension, dimension::SOURCE6 | dimension::DESTINATION6);
        let end: u128 = if long { u128::MAX } else { u32::MAX.into() };
        let mut intervals: Vec<(u128, u32)> = Vec::new();
        changes.entry(0).or_default();
        for (start, toggles) in changes.range(..=end) {
            for (rule, begins) in toggles {
                fits.set(*rule, *begins);
            }
            let row = self.row(&fits)?;
            if intervals.last().is_none_or(|(_, before)| *before != row) {
                intervals.push((*start, row));
            }
        }
        self.tree(&intervals, long)
    }

    fn row(&mut self, fits: &Bits) -> Result<u32, TooLarge> {
        let row = fits.row(self.summaries);
        debug_assert!(row.len() <= ROW_WORDS as usize);
        if let Some(place) = self.rows.get(row.as_slice()) {
            return Ok(*place);
        }
        let place = self.add(&row)?;
        self.rows.insert(row.into(), place);
        Ok(place)
    }

    fn tree(&mut self, intervals: &[(u128, u32)], long: bool) -> Result<RuleTable, TooLarge> {
        let (leaf, leaves) = if long {
            (LONG_LEAF, LONG_LEAVES)
        } else {
            (LEAF, LEAVES)
        };
        let count = u32::try_from(intervals.len()).map_err(|_| TooLarge::Intervals)?;
        if count > leaf * leaves {
            return Err(TooLarge::Intervals);
        }
        let words = |intervals: &[(u128, u32)]| {
            let mut words = starts(intervals.iter().map(|(start, _)| *start), long);
            words.extend(intervals.iter().map(|(_, row)| *row));
            words
        };
        if count <= leaf {
            return Ok(RuleTable {
                intervals: count,
                place: self.add(&words(intervals))?,
                leaves: 0,
            });
        }
        let each = leaf as usize;
        let first = intervals.chunks(each).map(|leaf| leaf[0].0);
        let place = self.add(&starts(first, long))?;
        self.next_page();
        let first_page = self.place() / PAGE_WORDS;
        for leaf in intervals.chunks(each) {
            self.next_page();
            self.add(&words(leaf))?;
        }
        Ok(RuleTable {
            intervals: count,
            place,
            leaves: first_page,
        })
    }

    fn finish(mut self, mut header: RulesHeader) -> Result<Image, TooLarge> {
        self.next_page();
        self.within()?;
        header.pages = self.place() / PAGE_WORDS;
        self.put(&header);
        let digest = Sha256::digest(bytemuck::cast_slice::<u32, u8>(&self.words));
        let mut hash = [0; 4];
        for (word, bytes) in hash.iter_mut().zip(digest.chunks_exact(4)) {
            *word = bytes
                .iter()
                .fold(0, |word, byte| word << 8 | u32::from(*byte));
        }
        header.hash = hash;
        self.put(&header);
        Ok(Image::new(self.words, ContentHash(hash)))
    }

    fn put(&mut self, header: &RulesHeader) {
        let words: &[u32] = bytemuck::cast_slice(std::slice::from_ref(header));
        self.words[..words.len()].copy_from_slice(words);
    }
}

fn starts(starts: impl Iterator<Item = u128>, long: bool) -> Vec<u32> {
    let mut words = Vec::new();
    for start in starts {
        let [high, low] = [start >> 64, start & u128::from(u64::MAX)].map(halves);
        if long {
            words.extend(high);
            words.extend(low);
        } else {
            words.push(u32::try_from(start).unwrap_or(u32::MAX));
        }
    }
    words
}

/// A number of 64 bits as two words in the host's order.
fn halves(number: u128) -> [u32; 2] {
    bytemuck::cast(u64::try_from(number).unwrap_or(u64::MAX))
}

/// A bit for each rule.
struct Bits(Vec<u64>);

impl Bits {
    fn new(rules: usize) -> Self {
        Self(vec![0; rules.div_ceil(64).max(1)])
    }

    fn set(&mut self, at: usize, value: bool) {
        let bit = 1 << (at % 64);
        if value {
            self.0[at / 64] |= bit;
        } else {
            self.0[at / 64] &= !bit;
        }
    }

    /// The words of a row: summaries, then what is not zero.
    fn row(&self, summaries: u32) -> Vec<u32> {
        let mut row = Vec::new();
        let mut before = 0;
        let mut groups = self.0.chunks(64);
        for _ in 0..summaries {
            let group = groups.next().unwrap_or_default();
            let mut bits = 0_u64;
            for (at, _) in group.iter().enumerate().filter(|(_, word)| **word != 0) {
                bits |= 1 << at;
            }
            row.extend(bytemuck::cast::<u64, [u32; 2]>(bits));
            row.extend([before, 0]);
            before += bits.count_ones();
        }
        debug_assert_eq!(row.len(), (summaries * Summary::WORDS) as usize);
        for word in self.0.iter().filter(|word| **word != 0) {
            row.extend(bytemuck::cast::<u64, [u32; 2]>(*word));
        }
        row
    }
}
