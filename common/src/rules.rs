//! The layout of a compiled set of rules: aggregated bit vectors over elementary intervals.
//!
//! A set is an array of pages and never changes once it is published. Each dimension that its rules
//! use has a sorted table of intervals, and each interval leads to a *row*: which rules it fits, one
//! bit each. The first rule that fits a flow is the first bit that the rows of all dimensions share.
//! A row begins with a summary, one bit for each of its 64-bit words that is not zero, and has only
//! those words, so that ten thousand rules cost little more than ten.
//!
//! A place in a set is counted in words of four bytes from its beginning. What is read together lies
//! in one page. Integers are in host byte order.

use bytemuck::{Pod, Zeroable};

/// Words of a page.
pub const PAGE_WORDS: u32 = 2_048;
/// Bytes of a page: the value size of a set's map.
pub const PAGE_BYTES: u32 = PAGE_WORDS * 4;
/// Most pages of a set.
pub const MAX_PAGES: u32 = 8_192;
/// Sets that may be there at one time, index 0 unused (`RULESETS`).
pub const MAX_RULESETS: u32 = 16_384;
/// Most rules of a set: [`MAX_SUMMARIES`] summaries of 64 words of 64 bits.
pub const MAX_RULES: u32 = MAX_SUMMARIES * 64 * 64;
/// Most summary words of a row.
pub const MAX_SUMMARIES: u32 = 4;
/// Most intervals of a leaf of 32-bit keys: their starts, then the places of their rows.
pub const LEAF: u32 = 1_024;
/// Most leaves of a table of 32-bit keys: their first starts are one page.
pub const LEAVES: u32 = 2_048;
/// The same of 128-bit keys, whose starts take four words.
pub const LONG_LEAF: u32 = 400;
/// The same of 128-bit keys.
pub const LONG_LEAVES: u32 = 512;
/// Most words of a row.
pub const ROW_WORDS: u32 = MAX_SUMMARIES * (Summary::WORDS + 64 * 2);

/// A page of a set.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
pub struct RulePage(pub [u32; PAGE_WORDS as usize]);

/// The beginning of a set's first page.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
pub struct RulesHeader {
    /// [`RulesHeader::MAGIC`].
    pub magic: u32,
    /// Pages.
    pub pages: u32,
    /// The set's content, hashed without this field: its first 16 bytes of SHA-256.
    pub hash: [u32; 4],
    /// Rules.
    pub rules: u32,
    /// Summary words of each row.
    pub summaries: u32,
    /// Index into `CHOICES` for what no rule fits.
    pub otherwise: u32,
    /// Place of one word for each rule: index into `CHOICES`, and [`NAMES_DESTINATION`].
    pub choices: u32,
    /// Tables by [`dimension`].
    pub tables: [RuleTable; dimension::COUNT as usize],
}

/// A table of intervals.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
pub struct RuleTable {
    /// Intervals; 0: no rule looks at this, and `place` is that of a row with all rules.
    pub intervals: u32,
    /// Place of the leaf, or of the first starts of the leaves where there are more.
    pub place: u32,
    /// First of the pages that are leaves, if there are several. Each but the last is full.
    pub leaves: u32,
}

/// A summary word of a row. A row begins with all of them.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
pub struct Summary {
    /// Which of 64 words are not zero, and so are there.
    pub bits: u64,
    /// Words of 64 bits that the summaries before this one stand for.
    pub before: u32,
    /// Always zero.
    pub reserved: u32,
}

impl Summary {
    /// Its size.
    pub const WORDS: u32 = 4;
}

impl RulesHeader {
    /// First word of every set.
    pub const MAGIC: u32 = 0x7275_6c01;
}

/// Bit of a rule's choice: it names destinations, so it holds for those at other interfaces too.
pub const NAMES_DESTINATION: u32 = 1 << 31;

/// What rules look at: indices into [`RulesHeader::tables`].
pub mod dimension {
    /// IPv4 source, a 32-bit key.
    pub const SOURCE4: u32 = 0;
    /// IPv4 destination.
    pub const DESTINATION4: u32 = 1;
    /// IPv6 source, a 128-bit key.
    pub const SOURCE6: u32 = 2;
    /// IPv6 destination.
    pub const DESTINATION6: u32 = 3;
    /// Source port; 0: it has none.
    pub const SOURCE_PORT: u32 = 4;
    /// Destination port; 0: it has none.
    pub const PORT: u32 = 5;
    /// Protocol, as the IP header has it.
    pub const PROTOCOL: u32 = 6;
    /// Differentiated services code point.
    pub const DSCP: u32 = 7;
    /// Number of dimensions.
    pub const COUNT: u32 = 8;
}

/// Whether the headers of a protocol have ports.
pub const fn has_ports(protocol: u8) -> bool {
    matches!(protocol, 6 | 17 | 33 | 132 | 136)
}

const _: () = {
    assert!(size_of::<RulePage>() == PAGE_BYTES as usize);
    assert!(size_of::<RulesHeader>() == 136);
    assert!(size_of::<Summary>() == (Summary::WORDS * 4) as usize);
    assert!(LEAF * 2 <= PAGE_WORDS);
    assert!(LONG_LEAF * 5 <= PAGE_WORDS && LONG_LEAVES * 4 <= PAGE_WORDS);
    assert!(ROW_WORDS <= PAGE_WORDS);
    assert!((MAX_PAGES as u64) * (PAGE_WORDS as u64) <= 1 << 31);
};
