//! Packets made by hand for raw and packet sockets.

use std::net::IpAddr;

/// Type of an echo request, IPv4 and IPv6.
const ECHO4: u8 = 8;
const ECHO6: u8 = 128;

/// An ICMP or ICMPv6 echo request. The kernel fills in ICMPv6's checksum.
pub(crate) fn echo(is_ipv6: bool, id: u16, payload: &[u8]) -> Vec<u8> {
    let mut packet = vec![if is_ipv6 { ECHO6 } else { ECHO4 }, 0, 0, 0];
    packet.extend(id.to_be_bytes());
    packet.extend(1_u16.to_be_bytes());
    packet.extend(payload);
    if !is_ipv6 {
        let sum = checksum(&packet);
        packet[2..4].copy_from_slice(&sum.to_be_bytes());
    }
    packet
}

/// A UDP datagram with a checksum of zero, which IPv4 allows and the laboratory's servers need not check.
pub(crate) fn udp(source_port: u16, destination_port: u16, payload: &[u8]) -> Vec<u8> {
    let length = u16::try_from(8 + payload.len()).unwrap_or(u16::MAX);
    let mut packet = Vec::new();
    for word in [source_port, destination_port, length, 0] {
        packet.extend(word.to_be_bytes());
    }
    packet.extend(payload);
    packet
}

/// An IP packet that carries UDP.
pub(crate) fn ip(source: IpAddr, destination: IpAddr, udp: &[u8]) -> Option<Vec<u8>> {
    let length = u16::try_from(udp.len()).ok()?;
    let mut packet = Vec::new();
    match (source, destination) {
        (IpAddr::V4(source), IpAddr::V4(destination)) => {
            packet.extend([0x45, 0]);
            packet.extend((length + 20).to_be_bytes());
            packet.extend([0, 0, 0x40, 0, 64, 17, 0, 0]);
            packet.extend(source.octets());
            packet.extend(destination.octets());
            let sum = checksum(&packet);
            packet[10..12].copy_from_slice(&sum.to_be_bytes());
        }
        (IpAddr::V6(source), IpAddr::V6(destination)) => {
            packet.extend([0x60, 0, 0, 0]);
            packet.extend(length.to_be_bytes());
            packet.extend([17, 64]);
            packet.extend(source.octets());
            packet.extend(destination.octets());
        }
        _ => return None,
    }
    packet.extend(udp);
    Some(packet)
}

/// An Ethernet frame to everyone with an IP packet inside.
pub(crate) fn frame(ip: &[u8]) -> Vec<u8> {
    let ethertype: u16 = if ip.first().is_some_and(|byte| byte >> 4 == 6) {
        0x86dd
    } else {
        0x0800
    };
    let mut frame = vec![0xff; 6];
    frame.extend([0x02, 0x5e, 0, 0, 0, 0xfe]);
    frame.extend(ethertype.to_be_bytes());
    frame.extend(ip);
    frame
}

/// The Internet checksum, RFC 1071.
fn checksum(bytes: &[u8]) -> u16 {
    let mut sum: u32 = bytes
        .chunks(2)
        .map(|pair| u32::from(pair[0]) << 8 | u32::from(pair.get(1).copied().unwrap_or(0)))
        .sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    #[expect(
        clippy::cast_possible_truncation,
        reason = "folded to sixteen bits above"
    )]
    let folded = sum as u16;
    !folded
}
