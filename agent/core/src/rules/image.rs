//! A compiled set of rules, and how it is read: as the kernel programs read it, page by page.

use std::fmt;
use std::hash::{Hash, Hasher};
use std::net::IpAddr;
use std::sync::Arc;

use steer_common::rules::{
    LEAF, LONG_LEAF, NAMES_DESTINATION, PAGE_WORDS, RuleTable, RulesHeader, Summary, dimension,
};

use super::Flow;

/// What a set holds, as a hash: sets with equal content are one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ContentHash(pub [u32; 4]);

/// A compiled set: whole pages of words. Compares by its hash.
#[derive(Clone)]
pub struct Image {
    words: Arc<[u32]>,
    hash: ContentHash,
}

/// What a set says about a flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Found {
    /// The rule, counted from 0; none: none fits.
    pub rule: Option<usize>,
    /// Index into `CHOICES`.
    pub choice: u32,
    /// Whether the rule names destinations.
    pub names_destination: bool,
}

impl Image {
    /// Of whole pages with a header.
    pub(super) fn new(words: Vec<u32>, hash: ContentHash) -> Self {
        Self {
            words: words.into(),
            hash,
        }
    }

    /// A set of which only the hash is known: what is read back from the kernel.
    pub fn known(hash: ContentHash) -> Self {
        Self {
            words: Arc::new([]),
            hash,
        }
    }

    /// Whether more than its hash is known.
    pub fn is_readable(&self) -> bool {
        !self.words.is_empty()
    }

    /// Whether any rule of it looks at a dimension ([`steer_common::rules::dimension`]).
    pub fn looks_at(&self, dimension: u32) -> bool {
        let tables = self.header().tables;
        let table = tables.get(dimension as usize);
        table.is_some_and(|table| table.intervals != 0)
    }

    /// One code point of each kind that its rules tell apart.
    pub fn code_points(&self) -> Vec<u8> {
        let table = self.header().tables[dimension::DSCP as usize];
        let starts = (0..table.intervals).map(|at| self.word(table.place + at));
        let mut points: Vec<u8> = starts
            .filter_map(|start| u8::try_from(start).ok())
            .collect();
        if points.is_empty() {
            points.push(0);
        }
        points
    }

    /// Its content's hash.
    pub fn hash(&self) -> ContentHash {
        self.hash
    }

    /// Its pages in order.
    pub fn pages(&self) -> impl ExactSizeIterator<Item = &[u32]> {
        self.words.chunks_exact(PAGE_WORDS as usize)
    }

    /// Bytes that it takes in the kernel.
    pub fn bytes(&self) -> usize {
        self.words.len() * 4
    }

    /// The header.
    pub fn header(&self) -> RulesHeader {
        let words = size_of::<RulesHeader>() / 4;
        self.words
            .get(..words)
            .map_or_else(RulesHeader::default, |words| {
                bytemuck::pod_read_unaligned(bytemuck::cast_slice(words))
            })
    }

    /// Every index into `CHOICES` that it has; none of a set of which only the hash is known.
    pub fn choices(&self) -> impl Iterator<Item = u32> {
        let header = self.header();
        let of_rules = header.choices..header.choices + header.rules;
        let of_rules = of_rules.map(|place| self.word(place) & !NAMES_DESTINATION);
        let otherwise = (header.magic == RulesHeader::MAGIC).then_some(header.otherwise);
        of_rules.chain(otherwise)
    }

    /// What it says about a flow; no choice, if only its hash is known.
    pub fn find(&self, flow: &Flow) -> Found {
        let header = self.header();
        if !self.is_readable() {
            return Found {
                rule: None,
                choice: 0,
                names_destination: false,
            };
        }
        let rule = self.first(&header, flow);
        match rule {
            Some(rule) => {
                let word = self.word(header.choices + u32::try_from(rule).unwrap_or(u32::MAX));
                Found {
                    rule: Some(rule),
                    choice: word & !NAMES_DESTINATION,
                    names_destination: word & NAMES_DESTINATION != 0,
                }
            }
            None => Found {
                rule: None,
                choice: header.otherwise,
                names_destination: false,
            },
        }
    }

    fn first(&self, header: &RulesHeader, flow: &Flow) -> Option<usize> {
        let (source, destination) = match flow.destination {
            IpAddr::V4(_) => (dimension::SOURCE4, dimension::DESTINATION4),
            IpAddr::V6(_) => (dimension::SOURCE6, dimension::DESTINATION6),
        };
        let key = |ip: IpAddr| match ip {
            IpAddr::V4(ip) => u128::from(ip.to_bits()),
            IpAddr::V6(ip) => ip.to_bits(),
        };
        let keys = [
            (source, flow.source.map_or(0, key)),
            (destination, key(flow.destination)),
            (dimension::SOURCE_PORT, flow.source_port.into()),
            (dimension::PORT, flow.port.into()),
            (dimension::PROTOCOL, flow.protocol.into()),
            (dimension::DSCP, flow.dscp.into()),
        ];
        let rows: Vec<u32> = keys
            .into_iter()
            .map(|(dimension, key)| {
                let table = header.tables[dimension as usize];
                let long = matches!(dimension, dimension::SOURCE6 | dimension::DESTINATION6);
                self.row(table, long, key)
            })
            .collect();
        for at in 0..header.summaries {
            let summaries: Vec<Summary> =
                rows.iter().map(|row| self.summary(row + at * 4)).collect();
            let mut shared = summaries.iter().fold(u64::MAX, |all, one| all & one.bits);
            while shared != 0 {
                let bit = shared.trailing_zeros();
                shared &= shared - 1;
                let mut word = u64::MAX;
                for (row, summary) in rows.iter().zip(&summaries) {
                    let before = (summary.bits & ((1 << bit) - 1)).count_ones();
                    let index = summary.before + before;
                    word &= self.long_word(row + header.summaries * Summary::WORDS + index * 2);
                }
                if word != 0 {
                    let rule = (at * 64 + bit) * 64 + word.trailing_zeros();
                    return Some(rule as usize);
                }
            }
        }
        None
    }

    /// Place of the row of the interval that holds `key`.
    fn row(&self, table: RuleTable, long: bool, key: u128) -> u32 {
        if table.intervals == 0 {
            return table.place;
        }
        let leaf = if long { LONG_LEAF } else { LEAF };
        let (place, count) = if table.intervals <= leaf {
            (table.place, table.intervals)
        } else {
            let leaves = table.intervals.div_ceil(leaf);
            let at = self.search(table.place, leaves, long, key);
            let place = (table.leaves + at) * PAGE_WORDS;
            (place, leaf.min(table.intervals - at * leaf))
        };
        let at = self.search(place, count, long, key);
        let starts = if long { count * 4 } else { count };
        self.word(place + starts + at)
    }

    /// The last of `count` starts that is not above `key`. The first is always 0.
    fn search(&self, place: u32, count: u32, long: bool, key: u128) -> u32 {
        let mut at = 0;
        let mut step = 1_024;
        while step != 0 {
            if at + step < count && self.start(place, at + step, long) <= key {
                at += step;
            }
            step /= 2;
        }
        at
    }

    fn start(&self, place: u32, at: u32, long: bool) -> u128 {
        if long {
            let high = u128::from(self.long_word(place + at * 4));
            high << 64 | u128::from(self.long_word(place + at * 4 + 2))
        } else {
            self.word(place + at).into()
        }
    }

    fn summary(&self, place: u32) -> Summary {
        Summary {
            bits: self.long_word(place),
            before: self.word(place + 2),
            reserved: 0,
        }
    }

    fn word(&self, place: u32) -> u32 {
        self.words[place as usize]
    }

    fn long_word(&self, place: u32) -> u64 {
        bytemuck::cast([self.word(place), self.word(place + 1)])
    }
}

impl PartialEq for Image {
    fn eq(&self, other: &Self) -> bool {
        self.hash == other.hash
    }
}

impl Eq for Image {}

impl Hash for Image {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.hash.hash(state);
    }
}

impl fmt::Debug for Image {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Image({}, {} bytes)", self.hash, self.bytes())
    }
}

impl fmt::Display for ContentHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|word| write!(f, "{word:08x}"))
    }
}
