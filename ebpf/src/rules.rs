//! What a policy's rules say about a flow: the first one that fits it, by the tables of a compiled set
//! ([`steer_common::rules`]). The method is that of `Image::find` in `steer-core`.
//!
//! Nothing is copied: words are read where they lie in the map. A page that is missing and an index that
//! leads out of a page make the set a damaged one, which says nothing.
//!
//! The bound, however many rules there are. Lookups: the set and its first page, for each of the six tables of
//! a family the set and its first page again and 2 pages, for each of the 4 summaries of a row the set, its
//! first page and 6 pages, and for the choice 3: 61 in all. Words: 11 starts in each page of a table, and for each summary 64 times 6 words, and as
//! many summaries: some 3,300. A set of a few dozen rules is one page: 6 lookups, and in each table as many
//! starts as its size has binary digits.
//!
//! The functions that end in `_of_rules` are global ones to the verifier, which looks at each of them once and
//! for itself (`btf_prepare_func_args`), whatever calls them. That keeps programs small for it.

use aya_ebpf::helpers::generated::bpf_map_lookup_elem;
use steer_common::rules::{
    LEAF, LONG_LEAF, MAX_SUMMARIES, PAGE_WORDS, RulePage, RuleTable, RulesHeader, Summary,
    dimension, has_ports,
};

use crate::{
    address::Address,
    maps::{RULESETS, RuleSet},
    tuple::Tuple,
};

/// What a set says about a flow.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Said {
    /// Index into `CHOICES`, with [`steer_common::rules::NAMES_DESTINATION`] if the rule does.
    Choice(u32),
    /// It looks at ports, and those of the flow are not known.
    PortsUnknown,
    /// It is not there, or damaged.
    Nothing,
}

/// What set number `set` says about a flow.
#[inline(always)]
pub fn find(set: u32, tuple: &Tuple) -> Said {
    let mut rows = Rows([0; ROWS]);
    let summaries = match rows_of_rules(set, core::ptr::from_ref(tuple), &raw mut rows) {
        PORTS_UNKNOWN => return Said::PortsUnknown,
        DAMAGED => return Said::Nothing,
        summaries => summaries,
    };
    let mut at = 0;
    let mut rule = NONE;
    while at < MAX_SUMMARIES && at < summaries && rule == NONE {
        rule = common_of_rules(set, &raw const rows, at);
        at += 1;
    }
    let said = choice_of_rules(set, rule);
    if said == 0 {
        Said::Nothing
    } else {
        Said::Choice(said as u32)
    }
}

/// Whether set number `set` looks at the class of flows, which is not to be had for nothing everywhere.
#[inline(always)]
pub fn looks_at_dscp(set: u32) -> bool {
    match Set::get(set) {
        Some(set) => set.table(dimension::DSCP).intervals != 0,
        None => false,
    }
}

/// Half of an IPv6 address, from word `at` on, as a number in host byte order.
#[inline(always)]
fn half(address: &Address, at: usize) -> u64 {
    let [high, low] = [address.0[at], address.0[at + 1]].map(|word| u64::from(u32::from_be(word)));
    high << 32 | low
}

/// An IPv4 address as a number in host byte order.
#[inline(always)]
fn short(address: &Address) -> u64 {
    u32::from_be(address.0[3]).into()
}

/// A set and its first page.
#[derive(Clone, Copy)]
struct Set {
    map: *const RuleSet,
    first: &'static RulePage,
}

impl Set {
    #[inline(always)]
    fn get(index: u32) -> Option<Self> {
        if index == 0 {
            return None;
        }
        let map = core::ptr::from_ref(RULESETS.get(index)?);
        let first = page_of(map, 0)?;
        let set = Self { map, first };
        (set.word(0) == RulesHeader::MAGIC).then_some(set)
    }

    /// The header. What it says is not trusted.
    #[inline(always)]
    fn header(self) -> &'static RulesHeader {
        // SAFETY: the first page begins with it, and all bit patterns are valid.
        unsafe { &*self.first.0.as_ptr().cast() }
    }

    #[inline(always)]
    fn table(self, dimension: u32) -> RuleTable {
        self.header().tables[(dimension & (dimension::COUNT - 1)) as usize]
    }

    /// A word of the first page.
    #[inline(always)]
    fn word(self, at: u32) -> u32 {
        word(self.first, at)
    }

    /// The page that holds a place.
    #[inline(always)]
    fn page(self, place: u32) -> Option<&'static RulePage> {
        match place / PAGE_WORDS {
            0 => Some(self.first),
            page => page_of(self.map, page),
        }
    }
}

#[inline(always)]
fn page_of(map: *const RuleSet, page: u32) -> Option<&'static RulePage> {
    // SAFETY: the map is one of a set, whose elements stay while the program runs.
    unsafe {
        bpf_map_lookup_elem(map.cast_mut().cast(), (&raw const page).cast())
            .cast::<RulePage>()
            .as_ref()
    }
}

/// A word of a page; what is behind its end is taken from its beginning.
#[inline(always)]
fn word(page: &RulePage, at: u32) -> u32 {
    page.0[(at & (PAGE_WORDS - 1)) as usize]
}

/// Two words as one of 64 bits, at an even place.
#[inline(always)]
fn long_word(page: &RulePage, at: u32) -> u64 {
    const LONG_WORDS: usize = PAGE_WORDS as usize / 2;
    // SAFETY: same size; the kernel aligns elements to eight bytes.
    let words = unsafe { &*core::ptr::from_ref(page).cast::<[u64; LONG_WORDS]>() };
    words[(at / 2) as usize & (LONG_WORDS - 1)]
}

/// Places of the rows of a flow, one of each table that its family has.
#[repr(C, align(8))]
struct Rows([u32; ROWS]);

const ROWS: usize = 6;

/// Places of the rows of a flow. How many summary words each has, [`PORTS_UNKNOWN`] or [`DAMAGED`].
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn rows_of_rules(set: u32, tuple: *const Tuple, rows: *mut Rows) -> u32 {
    // SAFETY: null, or a flow.
    let Some(tuple) = (unsafe { tuple.as_ref() }) else {
        return DAMAGED;
    };
    // SAFETY: null, or room for them that nobody else uses.
    let Some(rows) = (unsafe { rows.as_mut() }) else {
        return DAMAGED;
    };
    let number = set;
    let Some(set) = Set::get(number) else {
        return DAMAGED;
    };
    let ports = has_ports(tuple.protocol as u8);
    if ports
        && tuple.without_ports != 0
        && set.table(dimension::SOURCE_PORT).intervals | set.table(dimension::PORT).intervals != 0
    {
        return PORTS_UNKNOWN;
    }
    if tuple.destination.is_v4() {
        rows.0[0] = row(number, set, dimension::SOURCE4, short(&tuple.source));
        rows.0[1] = row(
            number,
            set,
            dimension::DESTINATION4,
            short(&tuple.destination),
        );
    } else {
        let (high, low) = (half(&tuple.source, 0), half(&tuple.source, 2));
        rows.0[0] = long_row(number, set, dimension::SOURCE6, high, low);
        let (high, low) = (half(&tuple.destination, 0), half(&tuple.destination, 2));
        rows.0[1] = long_row(number, set, dimension::DESTINATION6, high, low);
    }
    let (from, to) = if ports {
        (tuple.source_port, tuple.destination_port)
    } else {
        (0, 0)
    };
    rows.0[2] = row(number, set, dimension::SOURCE_PORT, from.into());
    rows.0[3] = row(number, set, dimension::PORT, to.into());
    rows.0[4] = row(number, set, dimension::PROTOCOL, tuple.protocol.into());
    rows.0[5] = row(number, set, dimension::DSCP, tuple.dscp.into());
    set.header().summaries
}

/// No place of a row, no rule, no number of summaries: a page is missing.
const DAMAGED: u32 = u32::MAX;
/// No rule.
const NONE: u32 = u32::MAX - 1;
/// No number of summaries.
const PORTS_UNKNOWN: u32 = u32::MAX - 1;

/// The choice of a rule, or of [`NONE`], with a bit above it; 0: there is none.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn choice_of_rules(set: u32, rule: u32) -> u64 {
    const THERE: u64 = 1 << 32;
    let Some(set) = Set::get(set) else {
        return 0;
    };
    let header = set.header();
    if rule == NONE {
        return THERE | u64::from(header.otherwise);
    }
    if rule >= header.rules {
        return 0;
    }
    let place = header.choices.wrapping_add(rule);
    match set.page(place) {
        Some(page) => THERE | u64::from(word(page, place)),
        None => 0,
    }
}

/// Place of the row that a table has for a key of 32 bits.
#[inline(always)]
fn row(number: u32, set: Set, dimension: u32, key: u64) -> u32 {
    let table = set.table(dimension);
    if table.intervals == 0 {
        return table.place;
    }
    row_of_rules(number, dimension, key)
}

/// Likewise for one of 128 bits.
#[inline(always)]
fn long_row(number: u32, set: Set, dimension: u32, high: u64, low: u64) -> u32 {
    let table = set.table(dimension);
    if table.intervals == 0 {
        return table.place;
    }
    long_row_of_rules(number, dimension, high, low)
}

/// Place of the row of the interval that holds a key of 32 bits.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn row_of_rules(set: u32, dimension: u32, key: u64) -> u32 {
    let Some(set) = Set::get(set) else {
        return DAMAGED;
    };
    let table = set.table(dimension);
    let (mut place, mut count) = (table.place, table.intervals);
    if count > LEAF {
        let Some(page) = set.page(place) else {
            return DAMAGED;
        };
        let at = search_of_rules(page, place, count.div_ceil(LEAF), key);
        place = table.leaves.wrapping_add(at).wrapping_mul(PAGE_WORDS);
        count = (count - at.wrapping_mul(LEAF)).min(LEAF);
    }
    let Some(page) = set.page(place) else {
        return DAMAGED;
    };
    let at = search_of_rules(page, place, count, key);
    word(page, place.wrapping_add(count).wrapping_add(at))
}

/// Place of the row of the interval that holds a key of 128 bits.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn long_row_of_rules(set: u32, dimension: u32, high: u64, low: u64) -> u32 {
    let Some(set) = Set::get(set) else {
        return DAMAGED;
    };
    let table = set.table(dimension);
    let (mut place, mut count) = (table.place, table.intervals);
    if count > LONG_LEAF {
        let Some(page) = set.page(place) else {
            return DAMAGED;
        };
        let at = long_search_of_rules(page, place, count.div_ceil(LONG_LEAF), high, low);
        place = table.leaves.wrapping_add(at).wrapping_mul(PAGE_WORDS);
        count = (count - at.wrapping_mul(LONG_LEAF)).min(LONG_LEAF);
    }
    let Some(page) = set.page(place) else {
        return DAMAGED;
    };
    let at = long_search_of_rules(page, place, count, high, low);
    word(
        page,
        place.wrapping_add(count.wrapping_mul(4)).wrapping_add(at),
    )
}

/// Steps of a search: 2,048 starts are the most.
const STEPS: u32 = 11;

/// The last of `count` starts from `place` on that is not above `key`. The first is always 0.
///
/// Without a branch on what is found: the verifier would follow each way that a search can go.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn search_of_rules(page: *const RulePage, place: u32, count: u32, key: u64) -> u32 {
    // SAFETY: null, or a page.
    let Some(page) = (unsafe { page.as_ref() }) else {
        return 0;
    };
    let (mut at, mut exponent, mut step) = (0_u64, digits(count.wrapping_sub(1)), 0);
    while step < STEPS && exponent != 0 {
        exponent -= 1;
        let next = at + (1 << (exponent & 31));
        let start = u64::from(word(page, place.wrapping_add(next as u32)));
        // The sign tells that the start is above the key, or that there is no such start.
        let above = key.wrapping_sub(start);
        let within = next.wrapping_sub(count.into());
        at += ((!above & within) >> 63) << (exponent & 31);
        step += 1;
    }
    at as u32
}

/// As [`search_of_rules`] for a key of 128 bits.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn long_search_of_rules(
    page: *const RulePage,
    place: u32,
    count: u32,
    high: u64,
    low: u64,
) -> u32 {
    // SAFETY: null, or a page.
    let Some(page) = (unsafe { page.as_ref() }) else {
        return 0;
    };
    let (mut at, mut exponent, mut step) = (0_u64, digits(count.wrapping_sub(1)), 0);
    while step < STEPS && exponent != 0 {
        exponent -= 1;
        let next = at + (1 << (exponent & 31));
        let word = place.wrapping_add(next as u32 * 4);
        let (start_high, start_low) = (long_word(page, word), long_word(page, word + 2));
        let carried = borrow(low, start_low, 0);
        let above = borrow(high, start_high, carried);
        let within = next.wrapping_sub(count.into()) >> 63;
        at += ((1 ^ above) & within) << (exponent & 31);
        step += 1;
    }
    at as u32
}

/// Whether one number less another, and less one if `carried`, is below zero: 1 if so.
#[inline(always)]
fn borrow(number: u64, less: u64, carried: u64) -> u64 {
    let difference = number.wrapping_sub(less).wrapping_sub(carried);
    (!number & less | (!number | less) & difference) >> 63
}

/// Binary digits of a number.
#[inline(always)]
fn digits(number: u32) -> u32 {
    u32::BITS - number.leading_zeros()
}

/// The first rule that all rows have in the words of summary `at`; [`NONE`] or [`DAMAGED`].
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn common_of_rules(set: u32, rows: *const Rows, at: u32) -> u32 {
    // SAFETY: null, or rows.
    let Some(rows) = (unsafe { rows.as_ref() }) else {
        return DAMAGED;
    };
    let Some(set) = Set::get(set) else {
        return DAMAGED;
    };
    let Some(pages) = pages(set, rows) else {
        return DAMAGED;
    };
    let behind = set.header().summaries.wrapping_mul(Summary::WORDS);
    let at = at & (MAX_SUMMARIES - 1);
    // Read again each time: what is kept for six rows would take the stack that callers need.
    // SAFETY: a valid, aligned word.
    let start = |row: usize| unsafe { (&raw const rows.0[row]).read_volatile() };
    let place = |row: usize| start(row).wrapping_add(at * Summary::WORDS);
    let mut bits = u64::MAX;
    let mut row = 0;
    while row < ROWS {
        bits &= long_word(pages[row], place(row));
        row += 1;
    }
    let mut looked = 0;
    while looked < 64 && bits != 0 {
        let lowest = bits & bits.wrapping_neg();
        let mut common = u64::MAX;
        let mut row = 0;
        while row < ROWS {
            let (page, place) = (pages[row], place(row));
            let earlier = (long_word(page, place) & (lowest - 1)).count_ones();
            let index = word(page, place.wrapping_add(2)).wrapping_add(earlier);
            let words = start(row).wrapping_add(behind);
            common &= long_word(page, words.wrapping_add(index.wrapping_mul(2)));
            row += 1;
        }
        if common != 0 {
            return (at * 64 + lowest.trailing_zeros()) * 64 + common.trailing_zeros();
        }
        bits &= bits - 1;
        looked += 1;
    }
    NONE
}

#[inline(always)]
fn pages(set: Set, rows: &Rows) -> Option<[&'static RulePage; ROWS]> {
    let [a, b, c, d, e, f] = rows.0;
    Some([
        set.page(a)?,
        set.page(b)?,
        set.page(c)?,
        set.page(d)?,
        set.page(e)?,
        set.page(f)?,
    ])
}
