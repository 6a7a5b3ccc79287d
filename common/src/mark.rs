//! A domain index spread over the bits of the configured mark mask.

/// The bits of a packet's or socket's mark that belong to steer.
///
/// Bits outside the mask are never read or written. An index is deposited into the mask's bits from
/// the lowest up (as x86 `pdep` does), so any mask with enough bits will do. Index 0 is "no domain".
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct MarkMask(u32);

/// Why a mark mask was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MarkMaskError {
    /// The mask has no bit set, so no domain can be marked.
    Empty,
    /// The mask has more than eight bits set; indices above 255 do not exist.
    TooWide,
}

impl core::fmt::Display for MarkMaskError {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.write_str(match self {
            Self::Empty => "a mark mask needs at least one bit",
            Self::TooWide => "a mark mask has at most eight bits (255 domains)",
        })
    }
}

impl core::error::Error for MarkMaskError {}

impl MarkMask {
    /// Six bits, 63 domains, clear of the masks of Tailscale, mwan3, pbr, Mullvad's and dae's.
    pub const DEFAULT: Self = Self(0x7700_0000);

    /// A mask of one to eight bits.
    pub const fn new(bits: u32) -> Result<Self, MarkMaskError> {
        match bits.count_ones() {
            0 => Err(MarkMaskError::Empty),
            1..=8 => Ok(Self(bits)),
            _ => Err(MarkMaskError::TooWide),
        }
    }

    /// The mask itself.
    pub const fn bits(self) -> u32 {
        self.0
    }

    /// The highest index that fits the mask: 63 for six bits.
    pub const fn capacity(self) -> u16 {
        (1 << self.0.count_ones()) - 1
    }

    /// The mark of `index`, or `None` if the mask has too few bits for it.
    pub const fn encode(self, index: u16) -> Option<u32> {
        if index > self.capacity() {
            return None;
        }
        let mut rest = self.0;
        let mut mark = 0;
        let mut bit = 0;
        while rest != 0 {
            let lowest = rest & rest.wrapping_neg();
            if index >> bit & 1 == 1 {
                mark |= lowest;
            }
            rest &= rest - 1;
            bit += 1;
        }
        Some(mark)
    }

    /// The index in `mark`; bits outside the mask are ignored.
    ///
    /// Without a branch for a bit: the kernel's verifier would follow each of the 256 values by itself, and
    /// give up.
    #[expect(
        clippy::cast_possible_truncation,
        reason = "a mask has at most eight bits"
    )]
    pub const fn decode(self, mark: u32) -> u16 {
        let mut index = 0;
        let mut bit = 0;
        let mut place = 0;
        while place < u32::BITS {
            let ours = self.0 >> place & 1;
            index |= (mark >> place & ours) << bit;
            bit += ours;
            place += 1;
        }
        index as u16
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::{MarkMask, MarkMaskError};

    #[test]
    fn default_mask_holds_sixty_three_domains() {
        assert_eq!(MarkMask::DEFAULT.capacity(), 63);
        assert_eq!(MarkMask::DEFAULT.encode(0), Some(0));
        assert_eq!(MarkMask::DEFAULT.encode(1), Some(0x0100_0000));
        assert_eq!(MarkMask::DEFAULT.encode(8), Some(0x1000_0000));
        assert_eq!(MarkMask::DEFAULT.encode(63), Some(0x7700_0000));
        assert_eq!(MarkMask::DEFAULT.encode(64), None);
    }

    #[test]
    fn a_mask_without_bits_or_with_nine_is_refused() {
        assert_eq!(MarkMask::new(0), Err(MarkMaskError::Empty));
        assert_eq!(MarkMask::new(0x1ff), Err(MarkMaskError::TooWide));
    }

    proptest! {
        #[test]
        fn every_index_survives_the_mask_and_leaves_foreign_bits(bits: u32, index: u16, foreign: u32) {
            let Ok(mask) = MarkMask::new(bits) else { return Ok(()) };
            match mask.encode(index) {
                None => prop_assert!(index > mask.capacity()),
                Some(mark) => {
                    prop_assert_eq!(mark & !bits, 0);
                    prop_assert_eq!(mask.decode(mark | foreign & !bits), index);
                }
            }
        }
    }
}
