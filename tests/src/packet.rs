//! One captured packet, reduced to what scenarios ask about.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use etherparse::{LaxNetSlice, LaxSlicedPacket, TransportSlice};

/// Ethertype of ARP.
pub const ARP: u16 = 0x0806;
/// Bytes of the transport payload that are kept.
const PAYLOAD_KEPT: usize = 2048;

/// Which way a packet went on an uplink's wire.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// The host sent it.
    FromHost,
    /// The host received it.
    ToHost,
}

/// What was seen at the peer's end of an uplink.
#[derive(Clone, Debug)]
pub struct Packet {
    /// Name of the uplink at the host.
    pub uplink: String,
    /// Which way it went.
    pub direction: Direction,
    /// Ethertype, host byte order.
    pub ethertype: u16,
    /// Source address; the sender's protocol address of ARP.
    pub source: Option<IpAddr>,
    /// Destination address; the target's protocol address of ARP.
    pub destination: Option<IpAddr>,
    /// IP protocol number.
    pub protocol: Option<u8>,
    /// TOS, or traffic class.
    pub tos: Option<u8>,
    /// TTL, or hop limit.
    pub ttl: Option<u8>,
    /// Source port of TCP and UDP.
    pub source_port: Option<u16>,
    /// Destination port of TCP and UDP.
    pub destination_port: Option<u16>,
    /// TCP flags: FIN 1, SYN 2, RST 4, PSH 8, ACK 16.
    pub tcp_flags: u8,
    /// Type of ICMP and ICMPv6.
    pub icmp_type: Option<u8>,
    /// Target of a neighbour solicitation.
    pub target: Option<Ipv6Addr>,
    /// Destination hardware address.
    pub destination_mac: [u8; 6],
    /// First two kilobytes of the payload above TCP, UDP or ICMP; of the frame otherwise.
    pub payload: Vec<u8>,
}

impl Packet {
    /// Reads an Ethernet frame; what cannot be parsed stays empty.
    pub(crate) fn parse(uplink: &str, direction: Direction, frame: &[u8]) -> Self {
        let mut packet = Self {
            uplink: uplink.to_owned(),
            direction,
            ethertype: frame
                .get(12..14)
                .map_or(0, |b| u16::from_be_bytes([b[0], b[1]])),
            source: None,
            destination: None,
            protocol: None,
            tos: None,
            ttl: None,
            source_port: None,
            destination_port: None,
            tcp_flags: 0,
            icmp_type: None,
            target: None,
            destination_mac: frame.first_chunk().copied().unwrap_or_default(),
            payload: Vec::new(),
        };
        let mut payload = frame.get(14..).unwrap_or_default();
        if let Ok(sliced) = LaxSlicedPacket::from_ethernet(frame) {
            if let Some(net) = &sliced.net {
                packet.read_net(net);
                if let Some(ip) = net.ip_payload_ref() {
                    packet.protocol = Some(ip.ip_number.0);
                    payload = ip.payload;
                }
            }
            if let Some(transport) = &sliced.transport {
                payload = packet.read_transport(transport);
            }
        }
        packet.payload = payload[..payload.len().min(PAYLOAD_KEPT)].to_vec();
        packet
    }

    fn read_net(&mut self, net: &LaxNetSlice<'_>) {
        match net {
            LaxNetSlice::Ipv4(ip) => {
                self.source = Some(ip.header().source_addr().into());
                self.destination = Some(ip.header().destination_addr().into());
                self.tos = ip.header().slice().get(1).copied();
                self.ttl = Some(ip.header().ttl());
            }
            LaxNetSlice::Ipv6(ip) => {
                self.source = Some(ip.header().source_addr().into());
                self.destination = Some(ip.header().destination_addr().into());
                self.tos = Some(ip.header().traffic_class());
                self.ttl = Some(ip.header().hop_limit());
            }
            LaxNetSlice::Arp(arp) => {
                let arp = arp.to_packet();
                let address = |bytes: &[u8]| {
                    <[u8; 4]>::try_from(bytes)
                        .ok()
                        .map(|b| IpAddr::V4(Ipv4Addr::from(b)))
                };
                self.source = address(arp.sender_protocol_addr());
                self.destination = address(arp.target_protocol_addr());
            }
        }
    }

    fn read_transport<'a>(&mut self, transport: &TransportSlice<'a>) -> &'a [u8] {
        match transport {
            TransportSlice::Udp(udp) => {
                self.source_port = Some(udp.source_port());
                self.destination_port = Some(udp.destination_port());
                udp.payload()
            }
            TransportSlice::Tcp(tcp) => {
                self.source_port = Some(tcp.source_port());
                self.destination_port = Some(tcp.destination_port());
                self.tcp_flags = tcp.header_slice()[13];
                tcp.payload()
            }
            TransportSlice::Icmpv4(icmp) => {
                self.icmp_type = Some(icmp.type_u8());
                icmp.payload()
            }
            TransportSlice::Icmpv6(icmp) => {
                self.icmp_type = Some(icmp.type_u8());
                // Neighbour solicitation, RFC 4861 section 4.3: the target follows four reserved bytes.
                if icmp.type_u8() == 135 {
                    self.target = icmp
                        .slice()
                        .get(8..24)
                        .and_then(|b| <[u8; 16]>::try_from(b).ok())
                        .map(Into::into);
                }
                icmp.payload()
            }
        }
    }

    /// Whether `address` is its source, destination, ARP target or neighbour solicitation target.
    pub fn is_about(&self, address: IpAddr) -> bool {
        self.source == Some(address)
            || self.destination == Some(address)
            || self.target.map(IpAddr::V6) == Some(address)
    }

    /// Whether its payload holds `token`.
    pub fn carries(&self, token: &str) -> bool {
        !token.is_empty()
            && self
                .payload
                .windows(token.len())
                .any(|w| w == token.as_bytes())
    }

    /// Whether it is an IP packet (not ARP or another protocol).
    pub fn is_ip(&self) -> bool {
        matches!(self.ethertype, 0x0800 | 0x86dd)
    }
}

impl fmt::Display for Packet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let arrow = match self.direction {
            Direction::FromHost => "->",
            Direction::ToHost => "<-",
        };
        write!(f, "{:<8} {arrow} ", self.uplink)?;
        let protocol = match (self.ethertype, self.protocol) {
            (ARP, _) => "arp".to_owned(),
            (_, Some(1)) => "icmp".to_owned(),
            (_, Some(6)) => "tcp".to_owned(),
            (_, Some(17)) => "udp".to_owned(),
            (_, Some(58)) => "icmpv6".to_owned(),
            (_, Some(other)) => format!("protocol {other}"),
            (ethertype, None) => format!("ethertype {ethertype:#06x}"),
        };
        write!(f, "{protocol}")?;
        if let (Some(source), Some(destination)) = (self.source, self.destination) {
            write!(f, " {source}")?;
            if let Some(port) = self.source_port {
                write!(f, " port {port}")?;
            }
            write!(f, " > {destination}")?;
            if let Some(port) = self.destination_port {
                write!(f, " port {port}")?;
            }
        }
        if let Some(kind) = self.icmp_type {
            write!(f, " type {kind}")?;
        }
        for (bit, name) in [(2, "SYN"), (16, "ACK"), (1, "FIN"), (4, "RST")] {
            if self.tcp_flags & bit != 0 {
                write!(f, " {name}")?;
            }
        }
        Ok(())
    }
}
