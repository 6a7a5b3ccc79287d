//! Netlink messages as bytes: built and read, nothing more.
//!
//! The agent reads a dozen attributes out of messages that carry a hundred, and a message must not
//! be lost because a newer kernel lengthened an attribute that nobody here looks at. So attributes
//! are walked in place, and what is not asked for is not parsed.

use std::net::IpAddr;

use ipnet::IpNet;

/// Length of `struct nlmsghdr`.
const HEADER: usize = 16;
/// The bits of an attribute's type that are not flags (`NLA_TYPE_MASK`).
const TYPE_MASK: u16 = 0x3fff;
/// `NLA_F_NESTED`.
const NESTED: u16 = 0x8000;

/// A message under construction.
#[derive(Clone)]
pub(super) struct Request {
    bytes: Vec<u8>,
}

impl Request {
    /// A request of `kind` with `flags` besides `NLM_F_REQUEST` and the family's fixed `header`.
    pub(super) fn new(kind: u16, flags: i32, header: &[u8]) -> Self {
        let flags = u16::try_from(flags | libc::NLM_F_REQUEST).unwrap_or(u16::MAX);
        let mut bytes = vec![0; HEADER];
        bytes[4..6].copy_from_slice(&kind.to_ne_bytes());
        bytes[6..8].copy_from_slice(&flags.to_ne_bytes());
        bytes.extend_from_slice(header);
        pad(&mut bytes);
        Self { bytes }
    }

    /// Appends an attribute.
    pub(super) fn put(&mut self, kind: u16, payload: &[u8]) {
        self.bytes
            .extend_from_slice(&length(payload.len() + 4).to_ne_bytes());
        self.bytes.extend_from_slice(&kind.to_ne_bytes());
        self.bytes.extend_from_slice(payload);
        pad(&mut self.bytes);
    }

    /// Appends an attribute that holds a number in host byte order.
    pub(super) fn put_u32(&mut self, kind: u16, value: u32) {
        self.put(kind, &value.to_ne_bytes());
    }

    /// Appends an attribute that holds an address.
    pub(super) fn put_ip(&mut self, kind: u16, ip: IpAddr) {
        self.put(kind, &octets(ip));
    }

    /// Appends an attribute that holds attributes.
    pub(super) fn nest(&mut self, kind: u16, fill: impl FnOnce(&mut Self)) {
        let start = self.bytes.len();
        self.put(kind | NESTED, &[]);
        fill(self);
        let len = length(self.bytes.len() - start);
        self.bytes[start..start + 2].copy_from_slice(&len.to_ne_bytes());
    }

    /// The finished message.
    pub(super) fn finish(mut self, sequence: u32) -> Vec<u8> {
        let len = u32::try_from(self.bytes.len()).unwrap_or(u32::MAX);
        self.bytes[0..4].copy_from_slice(&len.to_ne_bytes());
        self.bytes[8..12].copy_from_slice(&sequence.to_ne_bytes());
        self.bytes
    }
}

/// Attribute lengths have sixteen bits; what the agent writes is far below that.
fn length(len: usize) -> u16 {
    u16::try_from(len).unwrap_or(u16::MAX)
}

fn pad(bytes: &mut Vec<u8>) {
    bytes.resize(bytes.len().next_multiple_of(4), 0);
}

/// A received message.
#[derive(Clone, Copy, Debug)]
pub(super) struct Message<'a> {
    /// `nlmsg_type`.
    pub(super) kind: u16,
    /// `nlmsg_flags`.
    pub(super) flags: u16,
    /// `nlmsg_seq`.
    pub(super) sequence: u32,
    /// What follows the header.
    pub(super) payload: &'a [u8],
}

impl<'a> Message<'a> {
    /// Whether one of `flags` is set.
    pub(super) fn has(&self, flags: i32) -> bool {
        i32::from(self.flags) & flags != 0
    }

    /// The fixed header of `N` bytes and the attributes after it, if the message is that long.
    pub(super) fn split<const N: usize>(&self) -> Option<(&'a [u8; N], Attributes<'a>)> {
        let (fixed, rest) = self.payload.split_first_chunk::<N>()?;
        Some((fixed, attributes(rest)))
    }
}

/// The messages in one datagram; ends at the first that is malformed.
pub(super) fn messages(datagram: &[u8]) -> impl Iterator<Item = Message<'_>> {
    let mut rest = datagram;
    std::iter::from_fn(move || {
        let len = usize::try_from(u32_at(rest, 0)?).ok()?;
        let message = Message {
            kind: u16_at(rest, 4)?,
            flags: u16_at(rest, 6)?,
            sequence: u32_at(rest, 8)?,
            payload: rest.get(HEADER..len)?,
        };
        rest = rest.get(len.next_multiple_of(4)..).unwrap_or_default();
        Some(message)
    })
}

/// Walks attributes: type without its flag bits, and payload.
#[derive(Clone, Debug)]
pub(super) struct Attributes<'a> {
    rest: &'a [u8],
}

/// The attributes in `bytes`; ends at the first that is malformed.
pub(super) fn attributes(bytes: &[u8]) -> Attributes<'_> {
    Attributes { rest: bytes }
}

impl<'a> Iterator for Attributes<'a> {
    type Item = (u16, &'a [u8]);

    fn next(&mut self) -> Option<Self::Item> {
        let len = usize::from(u16_at(self.rest, 0)?);
        let kind = u16_at(self.rest, 2)? & TYPE_MASK;
        let payload = self.rest.get(4..len)?;
        self.rest = self.rest.get(len.next_multiple_of(4)..).unwrap_or_default();
        Some((kind, payload))
    }
}

/// The number at `offset`, host byte order.
pub(super) fn u16_at(bytes: &[u8], offset: usize) -> Option<u16> {
    let bytes = bytes.get(offset..)?.first_chunk()?;
    Some(u16::from_ne_bytes(*bytes))
}

/// The number at `offset`, host byte order.
pub(super) fn u32_at(bytes: &[u8], offset: usize) -> Option<u32> {
    let bytes = bytes.get(offset..)?.first_chunk()?;
    Some(u32::from_ne_bytes(*bytes))
}

/// A string without its terminating zero.
pub(super) fn text(bytes: &[u8]) -> String {
    let end = bytes.iter().position(|&b| b == 0).unwrap_or(bytes.len());
    String::from_utf8_lossy(&bytes[..end]).into_owned()
}

/// An address, its family told by its length.
pub(super) fn ip(bytes: &[u8]) -> Option<IpAddr> {
    match bytes.len() {
        4 => Some(IpAddr::from(*bytes.first_chunk::<4>()?)),
        16 => Some(IpAddr::from(*bytes.first_chunk::<16>()?)),
        _ => None,
    }
}

/// An address as bytes in network order.
pub(super) fn octets(ip: IpAddr) -> Vec<u8> {
    match ip {
        IpAddr::V4(ip) => ip.octets().to_vec(),
        IpAddr::V6(ip) => ip.octets().to_vec(),
    }
}

/// `AF_INET` or `AF_INET6` of an address, as the headers carry it.
pub(super) fn family_of(ip: IpAddr) -> u8 {
    match ip {
        IpAddr::V4(_) => AF_INET,
        IpAddr::V6(_) => AF_INET6,
    }
}

/// The prefix of `len` bits; without an address, the unspecified one of `family`.
pub(super) fn prefix(family: u8, address: Option<IpAddr>, len: u8) -> Option<IpNet> {
    let address = match (address, family) {
        (Some(address), _) => address,
        (None, AF_INET) => IpAddr::from([0; 4]),
        (None, AF_INET6) => IpAddr::from([0; 16]),
        _ => return None,
    };
    IpNet::new(address, len).ok()
}

/// `AF_UNSPEC` as headers carry it.
pub(super) const AF_UNSPEC: u8 = 0;
/// `AF_INET` as headers carry it.
pub(super) const AF_INET: u8 = 2;
/// `AF_INET6` as headers carry it.
pub(super) const AF_INET6: u8 = 10;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::{Request, attributes, messages, u32_at};

    #[test]
    fn what_is_written_is_read_back() {
        let mut request = Request::new(24, libc::NLM_F_ACK, &[7; 12]);
        request.put(1, b"abc");
        request.nest(2, |r| r.put_u32(3, 0xdead_beef));
        let bytes = request.finish(99);
        let message = messages(&bytes).next().expect("one message");
        assert_eq!((message.kind, message.sequence), (24, 99));
        assert!(message.has(libc::NLM_F_ACK));
        let (fixed, mut rest) = message.split::<12>().expect("a header");
        assert_eq!(fixed, &[7; 12]);
        assert_eq!(rest.next(), Some((1, b"abc".as_slice())));
        let (kind, nested) = rest.next().expect("a nest");
        assert_eq!(kind, 2);
        let inner: Vec<_> = attributes(nested).map(|(k, v)| (k, u32_at(v, 0))).collect();
        assert_eq!(inner, [(3, Some(0xdead_beef))]);
        assert_eq!(rest.next(), None);
        assert_eq!(messages(&bytes).count(), 1);
    }

    proptest! {
        #[test]
        fn any_bytes_are_walked_without_panic(bytes: Vec<u8>) {
            for message in messages(&bytes) {
                prop_assert!(attributes(message.payload).count() <= bytes.len());
            }
            prop_assert!(attributes(&bytes).count() <= bytes.len());
        }
    }
}
