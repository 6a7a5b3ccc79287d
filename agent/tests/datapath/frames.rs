//! Frames, built field by field, so that tables say what is odd about one and nothing else.

use std::net::IpAddr;

/// An IP packet in an Ethernet frame.
#[derive(Clone)]
pub(crate) struct Frame {
    pub(crate) source: IpAddr,
    pub(crate) destination: IpAddr,
    /// Behind the IPv4 header; a multiple of four.
    pub(crate) options: Vec<u8>,
    /// IPv6: kind and content, whose first byte is made to tell the next; IPv4 none.
    pub(crate) extensions: Vec<(u8, Vec<u8>)>,
    /// Identification, offset in bytes, whether more follow.
    pub(crate) fragment: Option<(u16, u16, bool)>,
    pub(crate) body: Body,
    /// A VLAN tag in the frame.
    pub(crate) vlan: bool,
}

/// What is behind the IP header.
#[derive(Clone)]
pub(crate) enum Body {
    /// Ports and payload; with a checksum.
    Udp(u16, u16, Vec<u8>),
    /// Without one.
    UdpUnsummed(u16, u16),
    /// Ports and flags.
    Tcp(u16, u16, u8),
    /// An echo request and its identifier.
    Echo(u16),
    /// An echo reply.
    Reply(u16),
    /// An error about a packet (type of IPv4, of IPv6).
    Error(u8, u8, Vec<u8>),
    /// Another protocol, or something malformed.
    Other(u8, Vec<u8>),
}

impl Frame {
    pub(crate) fn new(source: &str, destination: &str, body: Body) -> Self {
        Self {
            source: source.parse().unwrap(),
            destination: destination.parse().unwrap(),
            options: Vec::new(),
            extensions: Vec::new(),
            fragment: None,
            body,
            vlan: false,
        }
    }

    pub(crate) fn options(mut self, options: &[u8]) -> Self {
        self.options = options.to_vec();
        self
    }

    pub(crate) fn extension(mut self, kind: u8, content: &[u8]) -> Self {
        self.extensions.push((kind, content.to_vec()));
        self
    }

    pub(crate) fn fragment(mut self, id: u16, offset: u16, more: bool) -> Self {
        self.fragment = Some((id, offset, more));
        self
    }

    pub(crate) fn in_vlan(mut self) -> Self {
        self.vlan = true;
        self
    }

    pub(crate) fn from(mut self, source: &str) -> Self {
        self.source = source.parse().unwrap();
        self
    }

    pub(crate) fn to(mut self, destination: &str) -> Self {
        self.destination = destination.parse().unwrap();
        self
    }

    /// With an Ethernet header between these addresses.
    pub(crate) fn bytes(&self, to: [u8; 6], from: [u8; 6]) -> Vec<u8> {
        let mut bytes = [to, from].concat();
        if self.vlan {
            bytes.extend([0x81, 0x00, 0x00, 0x05]);
        }
        let kind: u16 = if self.source.is_ipv4() {
            0x0800
        } else {
            0x86dd
        };
        bytes.extend(kind.to_be_bytes());
        bytes.extend(self.packet());
        bytes
    }

    /// Bytes behind all headers of IP.
    pub(crate) fn body_length(&self) -> usize {
        self.body.bytes(self.source, self.destination).1.len()
    }

    /// The IP packet.
    pub(crate) fn packet(&self) -> Vec<u8> {
        let (protocol, body) = self.body.bytes(self.source, self.destination);
        match (self.source, self.destination) {
            (IpAddr::V4(source), IpAddr::V4(destination)) => {
                let length = 20 + self.options.len();
                let mut header = vec![0x40 | u8::try_from(length / 4).unwrap(), 0];
                header.extend(u16::try_from(length + body.len()).unwrap().to_be_bytes());
                let (id, offset, more) = self.fragment.unwrap_or((7, 0, false));
                header.extend(id.to_be_bytes());
                header.extend(((offset / 8) | (u16::from(more) << 13)).to_be_bytes());
                header.extend([64, protocol, 0, 0]);
                header.extend(source.octets());
                header.extend(destination.octets());
                header.extend(&self.options);
                let sum = checksum(&header, 0);
                header[10..12].copy_from_slice(&sum.to_be_bytes());
                [header, body].concat()
            }
            (IpAddr::V6(source), IpAddr::V6(destination)) => {
                let mut extensions = self.extensions.clone();
                if let Some((id, offset, more)) = self.fragment {
                    let mut content = vec![0, 0];
                    content.extend((offset | u16::from(more)).to_be_bytes());
                    content.extend(u32::from(id).to_be_bytes());
                    extensions.push((44, content));
                }
                let mut behind = Vec::new();
                let mut next = protocol;
                for (kind, content) in extensions.iter().rev() {
                    let mut content = content.clone();
                    content[0] = next;
                    next = *kind;
                    behind = [content, behind].concat();
                }
                behind.extend(body);
                let mut header = vec![0x60, 0, 0, 0];
                header.extend(u16::try_from(behind.len()).unwrap().to_be_bytes());
                header.extend([next, 64]);
                header.extend(source.octets());
                header.extend(destination.octets());
                [header, behind].concat()
            }
            _ => panic!("two families"),
        }
    }
}

impl Body {
    /// Protocol and bytes, between these addresses.
    fn bytes(&self, source: IpAddr, destination: IpAddr) -> (u8, Vec<u8>) {
        let v4 = source.is_ipv4();
        let icmp = |kind: u8, id: u16| {
            let mut bytes = vec![kind, 0, 0, 0];
            bytes.extend(id.to_be_bytes());
            bytes.extend([0, 1, 0xaa, 0xbb]);
            bytes
        };
        let icmp_protocol = if v4 { 1 } else { 58 };
        let (protocol, mut bytes, at) = match self {
            Self::Udp(from, to, payload) => {
                let mut bytes = [from.to_be_bytes(), to.to_be_bytes()].concat();
                bytes.extend(u16::try_from(8 + payload.len()).unwrap().to_be_bytes());
                bytes.extend([0, 0]);
                bytes.extend(payload);
                (17, bytes, Some(6))
            }
            Self::UdpUnsummed(from, to) => {
                let mut bytes = [from.to_be_bytes(), to.to_be_bytes()].concat();
                bytes.extend([0, 12, 0, 0, 1, 2, 3, 4]);
                (17, bytes, None)
            }
            Self::Tcp(from, to, flags) => {
                let mut bytes = [from.to_be_bytes(), to.to_be_bytes()].concat();
                bytes.extend([0, 0, 0, 1, 0, 0, 0, 2, 0x50, *flags, 1, 0, 0, 0, 0, 0]);
                (6, bytes, Some(16))
            }
            Self::Echo(id) => (icmp_protocol, icmp(if v4 { 8 } else { 128 }, *id), Some(2)),
            Self::Reply(id) => (icmp_protocol, icmp(if v4 { 0 } else { 129 }, *id), Some(2)),
            Self::Error(kind4, kind6, borne) => {
                let kind = if v4 { kind4 } else { kind6 };
                let mut bytes = vec![*kind, 1, 0, 0, 0, 0, 0, 0];
                bytes.extend(borne);
                (icmp_protocol, bytes, Some(2))
            }
            Self::Other(protocol, bytes) => (*protocol, bytes.clone(), None),
        };
        if let Some(at) = at {
            let sum = if v4 && protocol == 1 {
                0
            } else {
                pseudo(source, destination, protocol, bytes.len())
            };
            let mut sum = checksum(&bytes, sum);
            if protocol == 17 && sum == 0 {
                sum = 0xffff;
            }
            bytes[at..at + 2].copy_from_slice(&sum.to_be_bytes());
        }
        (protocol, bytes)
    }
}

/// The sum of a transport's pseudo header.
fn pseudo(source: IpAddr, destination: IpAddr, protocol: u8, length: usize) -> u32 {
    let octets = |address| match address {
        IpAddr::V4(address) => address.octets().to_vec(),
        IpAddr::V6(address) => address.octets().to_vec(),
    };
    let length = u32::try_from(length).unwrap();
    let bytes = [octets(source), octets(destination)].concat();
    add(&bytes, u32::from(protocol) + length)
}

/// The Internet checksum of bytes and a sum.
pub(crate) fn checksum(bytes: &[u8], sum: u32) -> u16 {
    let mut sum = add(bytes, sum);
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !u16::try_from(sum).unwrap()
}

fn add(bytes: &[u8], sum: u32) -> u32 {
    bytes.chunks(2).fold(sum, |sum, pair| {
        sum + (u32::from(pair[0]) << 8) + u32::from(pair.get(1).copied().unwrap_or(0))
    })
}
