//! Offsets of members of kernel structures, from the kernel's own type information (BTF).
//!
//! aya reads BTF too but shows no members. Format: Documentation/bpf/btf.rst.

use std::io;

/// Where the kernel keeps its types.
pub(super) const VMLINUX: &str = "/sys/kernel/btf/vmlinux";

/// Why an offset could not be had.
#[derive(Debug, thiserror::Error)]
pub enum BtfError {
    /// The file is not there: the kernel was built without `CONFIG_DEBUG_INFO_BTF`.
    #[error("read it (the kernel needs CONFIG_DEBUG_INFO_BTF)")]
    Read(#[source] io::Error),
    /// It ends early or is no BTF.
    #[error("it is malformed at byte {at}")]
    Malformed {
        /// Where reading stopped.
        at: usize,
    },
    /// A member is not there.
    #[error("there is no member `{member}` in `struct {structure}`")]
    Missing {
        /// The structure.
        structure: String,
        /// The member.
        member: String,
    },
    /// A member does not start at a byte.
    #[error("member `{member}` of `struct {structure}` is a bit field")]
    BitField {
        /// The structure.
        structure: String,
        /// The member.
        member: String,
    },
}

const HEADER_LENGTH: usize = 24;
const MAGIC: u32 = 0xeb9f;
const KIND_STRUCT: u32 = 4;

/// Where a member of a structure is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Place {
    /// Its offset in bits.
    pub(super) bit: u32,
    /// Bits of a bit field; `None`: it is none.
    pub(super) width: Option<u32>,
}

/// The types of a kernel.
pub(super) struct Types<'a> {
    types: Reader<'a>,
    strings: &'a [u8],
}

impl<'a> Types<'a> {
    /// Reads the header of `data`, in the machine's byte order.
    pub(super) fn parse(data: &'a [u8]) -> Result<Self, BtfError> {
        let mut header = Reader { data, at: 0 };
        let first = header.word()?;
        if first & 0xffff != MAGIC && first >> 16 != MAGIC {
            return Err(BtfError::Malformed { at: 0 });
        }
        let header_length = header.size()?;
        let [type_offset, type_length] = [header.size()?, header.size()?];
        let [string_offset, string_length] = [header.size()?, header.size()?];
        debug_assert_eq!(header.at, HEADER_LENGTH);
        let section = |offset: usize, length: usize| {
            let start = header_length.checked_add(offset)?;
            data.get(start..start.checked_add(length)?)
        };
        let malformed = || BtfError::Malformed { at: header.at };
        Ok(Self {
            types: Reader {
                data: section(type_offset, type_length).ok_or_else(malformed)?,
                at: 0,
            },
            strings: section(string_offset, string_length).ok_or_else(malformed)?,
        })
    }

    /// The offset of `structure.member` in bytes.
    pub(super) fn offset(&self, structure: &str, member: &str) -> Result<u32, BtfError> {
        let place = self.place(structure, member)?;
        if place.bit.is_multiple_of(8) {
            Ok(place.bit / 8)
        } else {
            Err(BtfError::BitField {
                structure: structure.to_owned(),
                member: member.to_owned(),
            })
        }
    }

    /// Where `structure.member` is.
    pub(super) fn place(&self, structure: &str, member: &str) -> Result<Place, BtfError> {
        let mut types = Reader { ..self.types };
        while types.at < types.data.len() {
            let name = types.word()?;
            let info = types.word()?;
            let _size_or_type = types.word()?;
            let count = (info & 0xffff) as usize;
            let kind = info >> 24 & 0x1f;
            if kind == KIND_STRUCT && self.string_is(name, structure) {
                if let Some(place) = self.member(&mut types, count, info >> 31 == 1, member)? {
                    return Ok(place);
                }
            } else {
                types.skip(trailer(kind, count).ok_or(BtfError::Malformed { at: types.at })?)?;
            }
        }
        Err(BtfError::Missing {
            structure: structure.to_owned(),
            member: member.to_owned(),
        })
    }

    /// Where `member` is, among the `count` members that follow.
    fn member(
        &self,
        types: &mut Reader<'_>,
        count: usize,
        has_bit_fields: bool,
        member: &str,
    ) -> Result<Option<Place>, BtfError> {
        let mut found = None;
        for _ in 0..count {
            let name = types.word()?;
            let _type = types.word()?;
            let offset = types.word()?;
            if self.string_is(name, member) {
                // With bit fields in the structure, the upper byte is the field's width.
                found = Some(if has_bit_fields {
                    Place {
                        bit: offset & 0x00ff_ffff,
                        width: Some(offset >> 24).filter(|width| *width != 0),
                    }
                } else {
                    Place {
                        bit: offset,
                        width: None,
                    }
                });
            }
        }
        Ok(found)
    }

    fn string_is(&self, offset: u32, expected: &str) -> bool {
        self.strings
            .get(offset as usize..)
            .and_then(|rest| rest.strip_prefix(expected.as_bytes()))
            .is_some_and(|rest| rest.first() == Some(&0))
    }
}

/// Bytes that follow a type of `kind` with `count` parts; `None`: unknown kind.
fn trailer(kind: u32, count: usize) -> Option<usize> {
    Some(match kind {
        // int, var, declaration tag
        1 | 14 | 17 => 4,
        // array
        3 => 12,
        // struct, union, data section, 64-bit enum
        4 | 5 | 15 | 19 => count * 12,
        // enum, function prototype
        6 | 13 => count * 8,
        // pointer, forward, typedef, volatile, const, restrict, function, float, type tag
        2 | 7..=12 | 16 | 18 => 0,
        _ => return None,
    })
}

struct Reader<'a> {
    data: &'a [u8],
    at: usize,
}

impl Reader<'_> {
    fn word(&mut self) -> Result<u32, BtfError> {
        let malformed = BtfError::Malformed { at: self.at };
        let Some((word, _)) = self.data.get(self.at..).and_then(<[u8]>::split_first_chunk) else {
            return Err(malformed);
        };
        self.at += 4;
        Ok(u32::from_ne_bytes(*word))
    }

    fn size(&mut self) -> Result<usize, BtfError> {
        Ok(self.word()? as usize)
    }

    fn skip(&mut self, bytes: usize) -> Result<(), BtfError> {
        self.at = self
            .at
            .checked_add(bytes)
            .filter(|at| *at <= self.data.len())
            .ok_or(BtfError::Malformed { at: self.at })?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::{BtfError, KIND_STRUCT, MAGIC, Place, Types};

    /// A forward and `struct pair { left: 1 at 0; right: 1 at 64 bits; flag: 3 bits at 97 }`.
    fn sample() -> Vec<u8> {
        let strings = b"\0pair\0left\0right\0flag\0";
        let types = [
            [1, 7 << 24, 0].as_slice(),
            [1, 1 << 31 | KIND_STRUCT << 24 | 3, 16].as_slice(),
            [6, 1, 0, 11, 1, 64, 17, 1, 3 << 24 | 97].as_slice(),
        ]
        .concat();
        let type_bytes = u32::try_from(types.len() * 4).unwrap();
        let string_bytes = u32::try_from(strings.len()).unwrap();
        [MAGIC | 1 << 16, 24, 0, type_bytes, type_bytes, string_bytes]
            .into_iter()
            .chain(types)
            .flat_map(u32::to_ne_bytes)
            .chain(strings.iter().copied())
            .collect()
    }

    #[test]
    fn members_are_found_by_name() {
        let data = sample();
        let types = Types::parse(&data).unwrap();
        assert_eq!(types.offset("pair", "left").unwrap(), 0);
        assert_eq!(types.offset("pair", "right").unwrap(), 8);
        assert!(matches!(
            types.offset("pair", "flag"),
            Err(BtfError::BitField { .. })
        ));
        let place = |bit, width| Place { bit, width };
        assert_eq!(types.place("pair", "right").unwrap(), place(64, None));
        assert_eq!(types.place("pair", "flag").unwrap(), place(97, Some(3)));
        assert!(matches!(
            types.offset("pair", "none"),
            Err(BtfError::Missing { .. })
        ));
        assert!(matches!(
            types.offset("pai", "left"),
            Err(BtfError::Missing { .. })
        ));
    }

    #[test]
    fn no_cut_of_it_panics() {
        let data = sample();
        for length in 0..data.len() {
            if let Ok(types) = Types::parse(&data[..length]) {
                drop(types.offset("pair", "right"));
            }
        }
    }
}
