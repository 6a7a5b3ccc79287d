//! ICMP and ICMPv6 echo.

use std::net::{IpAddr, SocketAddr};

use etherparse::{
    IcmpEchoHeader, Icmpv4Header, Icmpv4Slice, Icmpv4Type, Icmpv6Header, Icmpv6Slice, Icmpv6Type,
    Ipv4HeaderSlice,
};
use steer_core::plan::Family;
use steer_core::probe::{Host, Outcome};

use super::question::{Asker, Miss, place};
use crate::steered::{Echo, receive};

/// Bytes of an answer that are looked at: IP options, the header and the token fit.
const BUFFER: usize = 256;

/// What tells one echo request from all others.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Ticket {
    header: IcmpEchoHeader,
    /// The payload, which the answer repeats. An answer with it has seen the request.
    token: [u8; 16],
}

/// Whether `host` answers an echo request.
pub(super) async fn ask(asker: &Asker<'_>, host: &Host) -> Outcome {
    asker
        .reach(host, async |ip| {
            let answered = asker.counted(true, echo(asker, ip)).await;
            let at = place(host, ip, None);
            match answered {
                Ok(()) => Outcome::Passed,
                Err(Miss::Late) => Outcome::Failed(format!(
                    "no answer to ICMP echo from {at} within {:?}",
                    asker.probe.timeout
                )),
                Err(miss) => Outcome::Failed(asker.sentence(&format!("ICMP echo to {at}"), miss)),
            }
        })
        .await
}

async fn echo(asker: &Asker<'_>, ip: IpAddr) -> Result<(), Miss> {
    let family = Family::of(ip);
    let Echo { socket, raw } = asker.way.icmp(family)?;
    // From here on it gets what comes from there alone.
    socket.connect(SocketAddr::new(ip, 0)).await?;
    let ticket = Ticket {
        header: IcmpEchoHeader {
            id: rand::random(),
            seq: rand::random(),
        },
        token: rand::random(),
    };
    socket.send(&ticket.request(family)).await?;
    let mut buffer = [0; BUFFER];
    loop {
        let length = receive(&socket, &mut buffer).await?;
        if ticket.is_answered_by(family, raw, &buffer[..length]) {
            return Ok(());
        }
    }
}

impl Ticket {
    fn request(&self, family: Family) -> Vec<u8> {
        // The checksum of ICMPv6 covers the addresses, and the kernel sets it.
        let header = match family {
            Family::Ipv4 => {
                let kind = Icmpv4Type::EchoRequest(self.header);
                Icmpv4Header::with_checksum(kind, &self.token)
                    .to_bytes()
                    .to_vec()
            }
            Family::Ipv6 => {
                let kind = Icmpv6Type::EchoRequest(self.header);
                Icmpv6Header::new(kind).to_bytes().to_vec()
            }
        };
        [header.as_slice(), &self.token].concat()
    }

    /// Whether `message` is the answer. A ping socket chose an identifier of its own, and gets only
    /// what bears it.
    fn is_answered_by(&self, family: Family, raw: bool, message: &[u8]) -> bool {
        let found = match family {
            Family::Ipv4 if raw => behind_header(message).and_then(reply4),
            Family::Ipv4 => reply4(message),
            Family::Ipv6 => reply6(message),
        };
        found.is_some_and(|(header, token)| {
            let same = match raw {
                true => header == self.header,
                false => header.seq == self.header.seq,
            };
            same && token == self.token
        })
    }
}

/// What follows the IPv4 header.
fn behind_header(packet: &[u8]) -> Option<&[u8]> {
    let header = Ipv4HeaderSlice::from_slice(packet).ok()?;
    packet.get(header.slice().len()..)
}

fn reply4(message: &[u8]) -> Option<(IcmpEchoHeader, &[u8])> {
    let message = Icmpv4Slice::from_slice(message).ok()?;
    match message.icmp_type() {
        Icmpv4Type::EchoReply(header) => Some((header, message.payload())),
        _ => None,
    }
}

fn reply6(message: &[u8]) -> Option<(IcmpEchoHeader, &[u8])> {
    let message = Icmpv6Slice::from_slice(message).ok()?;
    match message.icmp_type() {
        Icmpv6Type::EchoReply(header) => Some((header, message.payload())),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use etherparse::IcmpEchoHeader;
    use proptest::prelude::*;
    use steer_core::plan::Family;

    use super::Ticket;

    const TICKET: Ticket = Ticket {
        header: IcmpEchoHeader { id: 7, seq: 9 },
        token: *b"sixteen bytes...",
    };

    /// The answer to the request of `ticket`: another type, all else the same.
    fn answer(ticket: &Ticket, family: Family) -> Vec<u8> {
        let mut message = ticket.request(family);
        message[0] = match family {
            Family::Ipv4 => 0,
            Family::Ipv6 => 129,
        };
        message
    }

    /// An IPv4 header with an option, as raw sockets see it.
    fn with_header(message: &[u8]) -> Vec<u8> {
        let mut packet = vec![0; 24];
        packet[0] = 0x46;
        packet[3] = 24 + u8::try_from(message.len()).expect("a short message");
        packet.extend(message);
        packet
    }

    #[test]
    fn an_answer_bears_type_identifier_sequence_and_token() {
        for family in [Family::Ipv4, Family::Ipv6] {
            let seen = |message: Vec<u8>| match family {
                Family::Ipv4 => with_header(&message),
                Family::Ipv6 => message,
            };
            assert!(TICKET.is_answered_by(family, true, &seen(answer(&TICKET, family))));
            assert!(!TICKET.is_answered_by(family, true, &seen(TICKET.request(family))));
            for other in [
                Ticket {
                    header: IcmpEchoHeader { id: 8, seq: 9 },
                    ..TICKET
                },
                Ticket {
                    header: IcmpEchoHeader { id: 7, seq: 8 },
                    ..TICKET
                },
                Ticket {
                    token: *b"sixteen bytes..!",
                    ..TICKET
                },
            ] {
                let message = answer(&other, family);
                assert!(
                    !TICKET.is_answered_by(family, true, &seen(message.clone())),
                    "{other:?}"
                );
                // The identifier alone is the kernel's to compare.
                assert_eq!(
                    TICKET.is_answered_by(family, false, &message),
                    other.header.id == 8
                );
            }
        }
    }

    proptest! {
        #[test]
        fn any_bytes_are_looked_at_without_panic(bytes: Vec<u8>, raw: bool, v6: bool) {
            let family = if v6 { Family::Ipv6 } else { Family::Ipv4 };
            prop_assert!(!TICKET.is_answered_by(family, raw, &bytes));
        }
    }
}
