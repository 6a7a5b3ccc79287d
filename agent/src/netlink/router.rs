//! What routers advertise for applications, and the kernel hands on unread: `RTM_NEWNDUSEROPT`.
//!
//! The kernel keeps none of it, so there is nothing to dump: what was advertised before anybody listened,
//! or is lost, comes again with the next advertisement.

use std::net::Ipv6Addr;
use std::time::Duration;

use steer_core::ids::IfIndex;

use super::wire::{AF_INET6, Message, u16_at, u32_at};

/// `RTM_NEWNDUSEROPT`.
pub(super) const NEW: u16 = libc::RTM_NEWNDUSEROPT;

/// Options in one batch of notifications at most.
const BATCH: usize = 256;
/// Length of `struct nduseroptmsg`.
const HEADER: usize = 16;
/// Router advertisement (RFC 4861, section 4.2).
const ADVERTISEMENT: u8 = 134;
/// Recursive DNS server (RFC 8106, section 5.1).
const SERVERS: u8 = 25;
/// Captive portal (RFC 8910, section 2.3).
const PORTAL: u8 = 37;
/// What a network without a portal says in place of an address (RFC 8910, section 2).
const UNRESTRICTED: &str = "urn:ietf:params:capport:unrestricted";

/// An option of a router advertisement.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RouterOption {
    /// Name servers (RFC 8106).
    Servers {
        /// Their addresses, in the router's order. Link-local ones are of the interface.
        addresses: Vec<Ipv6Addr>,
        /// How long they may be used, from now on; zero: no longer.
        lifetime: Duration,
    },
    /// Where the network says whether it holds its guests captive (RFC 8910): an address as it came,
    /// but without control characters. `None`: the network says that it does not.
    Portal(Option<String>),
}

/// Adds what `message` tells to `advertised`, once. Anybody on a link can advertise anything as often as
/// the link allows; what is left out of a batch that is full comes again.
pub(super) fn take_in(message: &Message<'_>, advertised: &mut Vec<(IfIndex, RouterOption)>) {
    let Some((interface, options)) = parse(message) else {
        return;
    };
    for option in options {
        let told = (interface, option);
        if advertised.len() < BATCH && !advertised.contains(&told) {
            advertised.push(told);
        }
    }
}

/// Reads `RTM_NEWNDUSEROPT`: the interface that an advertisement came by, and what of it the agent
/// knows.
fn parse(message: &Message<'_>) -> Option<(IfIndex, Vec<RouterOption>)> {
    let (fixed, rest) = message.payload.split_first_chunk::<HEADER>()?;
    let [family, _, _, _, _, _, _, _, kind, ..] = *fixed;
    if family != AF_INET6 || kind != ADVERTISEMENT {
        return None;
    }
    let length = usize::from(u16_at(fixed, 2)?);
    let interface = IfIndex(u32_at(fixed, 4)?);
    Some((interface, options(rest.get(..length)?)))
}

/// The options in `bytes` that are known and sound (RFC 4861, section 4.6); ends at the first without
/// a length.
fn options(bytes: &[u8]) -> Vec<RouterOption> {
    let mut rest = bytes;
    let mut found = Vec::new();
    while let [kind, length, ..] = *rest {
        let length = usize::from(length) * 8;
        let Some((option, behind)) = rest.split_at_checked(length) else {
            break;
        };
        let Some(body) = option.get(2..) else {
            break;
        };
        found.extend(match kind {
            SERVERS => servers(body),
            PORTAL => portal(body),
            _ => None,
        });
        rest = behind;
    }
    found
}

fn servers(body: &[u8]) -> Option<RouterOption> {
    let (_reserved, body) = body.split_first_chunk::<2>()?;
    let (lifetime, body) = body.split_first_chunk::<4>()?;
    let (addresses, []) = body.as_chunks::<16>() else {
        return None;
    };
    let usable = |ip: &Ipv6Addr| !(ip.is_unspecified() || ip.is_loopback() || ip.is_multicast());
    let addresses = addresses.iter().copied().map(Ipv6Addr::from);
    let addresses: Vec<_> = addresses.filter(usable).collect();
    let lifetime = u32::from_be_bytes(*lifetime);
    (!addresses.is_empty()).then(|| RouterOption::Servers {
        addresses,
        lifetime: Duration::from_secs(lifetime.into()),
    })
}

/// The address is padded with zeroes.
fn portal(body: &[u8]) -> Option<RouterOption> {
    let address = std::str::from_utf8(body).ok()?.trim_end_matches('\0');
    if address.is_empty() || address.chars().any(char::is_control) {
        return None;
    }
    let captive = address != UNRESTRICTED;
    Some(RouterOption::Portal(captive.then(|| address.to_owned())))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::wire::{Request, messages};
    use super::*;

    fn option(kind: u8, body: &[u8]) -> Vec<u8> {
        let length = (body.len() + 2).next_multiple_of(8);
        let mut bytes = vec![kind, u8::try_from(length / 8).expect("a short option")];
        bytes.extend(body);
        bytes.resize(length, 0);
        bytes
    }

    /// The body of an option with servers.
    fn body(lifetime: u32, servers: &[&str]) -> Vec<u8> {
        let mut bytes = vec![0, 0];
        bytes.extend(lifetime.to_be_bytes());
        for server in servers {
            bytes.extend(server.parse::<Ipv6Addr>().expect("an address").octets());
        }
        bytes
    }

    fn told(family: u8, kind: u8, length: usize, rest: &[u8]) -> Vec<u8> {
        let mut header = [0; HEADER];
        header[0] = family;
        header[2..4].copy_from_slice(&u16::try_from(length).expect("short").to_ne_bytes());
        header[4..8].copy_from_slice(&7_u32.to_ne_bytes());
        header[8] = kind;
        Request::new(NEW, 0, &[&header, rest].concat()).finish(0)
    }

    fn read(bytes: &[u8]) -> Option<(IfIndex, Vec<RouterOption>)> {
        parse(&messages(bytes).next().expect("a message"))
    }

    fn address(text: &str) -> Option<RouterOption> {
        Some(RouterOption::Portal(Some(text.to_owned())))
    }

    #[test]
    fn servers_come_with_their_lifetime() {
        let servers = option(SERVERS, &body(600, &["2001:db8::53", "fe80::1"]));
        let expected = RouterOption::Servers {
            addresses: ["2001:db8::53", "fe80::1"]
                .map(|ip| ip.parse().expect("an address"))
                .to_vec(),
            lifetime: Duration::from_secs(600),
        };
        let message = told(AF_INET6, ADVERTISEMENT, servers.len(), &servers);
        assert_eq!(read(&message), Some((IfIndex(7), vec![expected])));
    }

    #[test]
    fn a_portal_is_an_address_or_that_there_is_none() {
        let read = |text: &[u8]| options(&option(PORTAL, text)).pop();
        let api = "https://portal.example/api";
        assert_eq!(read(api.as_bytes()), address(api));
        assert_eq!(
            read(UNRESTRICTED.as_bytes()),
            Some(RouterOption::Portal(None))
        );
        assert_eq!(read(b""), None);
        assert_eq!(read(b"https://a\0b"), None);
        assert_eq!(read(b"https://a\x1b[2J"), None);
        assert_eq!(read(b"https://a\xff"), None);
    }

    #[test]
    fn unsound_and_unknown_options_are_left_out_alone() {
        let good = option(PORTAL, b"https://a");
        let bytes = [
            option(99, b"unknown"),
            option(SERVERS, &body(1, &[])),
            option(SERVERS, &[&body(1, &["2001:db8::1"])[..], &[1; 8]].concat()),
            option(SERVERS, &body(1, &["::", "::1", "ff02::1"])),
            good.clone(),
            vec![PORTAL, 0, 1, 2, 3, 4, 5, 6],
            good.clone(),
        ];
        assert_eq!(
            options(&bytes.concat()),
            address("https://a").into_iter().collect::<Vec<_>>()
        );
        assert_eq!(options(&good[..good.len() - 1]), []);
    }

    #[test]
    fn other_messages_and_lengths_that_lie_are_left_out() {
        let bytes = option(PORTAL, b"https://a");
        let length = bytes.len();
        assert!(read(&told(AF_INET6, ADVERTISEMENT, length, &bytes)).is_some());
        assert_eq!(read(&told(2, ADVERTISEMENT, length, &bytes)), None);
        assert_eq!(read(&told(AF_INET6, 137, length, &bytes)), None);
        assert_eq!(
            read(&told(AF_INET6, ADVERTISEMENT, length + 64, &bytes)),
            None
        );
        // What follows the options are attributes.
        let message = told(AF_INET6, ADVERTISEMENT, 0, &bytes);
        assert_eq!(read(&message), Some((IfIndex(7), vec![])));
    }

    #[test]
    fn a_batch_has_each_option_once_and_not_more_than_it_may() {
        let mut advertised = Vec::new();
        for number in 0..BATCH + 10 {
            let bytes = option(PORTAL, format!("https://{number}").as_bytes());
            let message = told(AF_INET6, ADVERTISEMENT, bytes.len(), &bytes);
            for _ in 0..2 {
                take_in(
                    &messages(&message).next().expect("a message"),
                    &mut advertised,
                );
            }
            assert_eq!(advertised.len(), (number + 1).min(BATCH));
        }
    }

    proptest! {
        #[test]
        fn any_options_are_read_without_panic_and_without_control_characters(
            kind in prop_oneof![Just(SERVERS), Just(PORTAL), any::<u8>()],
            length in 0..5_u8,
            body: Vec<u8>,
        ) {
            for found in options(&[&[kind, length], body.as_slice()].concat()) {
                if let RouterOption::Portal(Some(address)) = found {
                    prop_assert!(!address.chars().any(char::is_control));
                }
            }
        }
    }
}
