//! nl80211 and the controller of generic netlink: what their messages say of WLANs.
//!
//! The names of WLANs and what access points say of themselves come off the air: it is walked in place, and not
//! believed beyond what it is.

use steer_core::attached::Ssid;

use super::wire::{Attributes, Message, attributes, text, u16_at, u32_at};

/// Family and multicast group of the generic netlink controller (`GENL_ID_CTRL`).
pub(super) const CONTROL: u16 = 16;
/// `CTRL_CMD_GETFAMILY`.
pub(super) const GET_FAMILY: u8 = 3;
/// `CTRL_ATTR_FAMILY_ID`.
const FAMILY_ID: u16 = 1;
/// `CTRL_ATTR_FAMILY_NAME`.
const FAMILY_NAME: u16 = 2;
/// `CTRL_ATTR_MCAST_GROUPS`.
const GROUPS: u16 = 7;
/// `CTRL_ATTR_MCAST_GRP_NAME`.
const GROUP_NAME: u16 = 1;
/// `CTRL_ATTR_MCAST_GRP_ID`.
const GROUP_ID: u16 = 2;

/// The family's name.
const NL80211: &str = "nl80211";
/// Groups that tell what interfaces there are, and what they are connected to.
const WANTED_GROUPS: [&str; 2] = ["config", "mlme"];

/// `NL80211_CMD_GET_INTERFACE`.
pub(super) const GET_INTERFACE: u8 = 5;
/// `NL80211_CMD_GET_STATION`.
pub(super) const GET_STATION: u8 = 17;
/// `NL80211_CMD_GET_SCAN`.
pub(super) const GET_SCAN: u8 = 32;
/// `NL80211_CMD_CONNECT`, `_ROAM` and `_DISCONNECT`: what was known of the interface's network is out of date.
const REPLACES: [u8; 3] = [46, 47, 48];
/// `NL80211_CMD_{SET,NEW,DEL}_INTERFACE`: there may be others.
const INTERFACES: [u8; 3] = [6, 7, 8];

/// `NL80211_ATTR_IFINDEX`.
pub(super) const IFINDEX: u16 = 3;
/// `NL80211_ATTR_IFNAME`.
const IFNAME: u16 = 4;
/// `NL80211_ATTR_IFTYPE`.
const IFTYPE: u16 = 5;
/// `NL80211_ATTR_STA_INFO`.
const STATION_INFO: u16 = 21;
/// `NL80211_ATTR_BSS`.
const BSS: u16 = 47;
/// `NL80211_ATTR_SSID`.
const SSID: u16 = 52;
/// `NL80211_IFTYPE_STATION` and `NL80211_IFTYPE_P2P_CLIENT`.
const STATIONS: [u32; 2] = [2, 8];

/// `NL80211_STA_INFO_SIGNAL`.
const SIGNAL: u16 = 7;
/// `NL80211_STA_INFO_TX_BITRATE`.
const BITRATE: u16 = 8;
/// `NL80211_STA_INFO_SIGNAL_AVG`.
const SIGNAL_AVERAGE: u16 = 13;
/// `NL80211_RATE_INFO_BITRATE`, of 16 bits, and `NL80211_RATE_INFO_BITRATE32`: 100 kbit/s.
const RATES: [u16; 2] = [1, 5];

/// `NL80211_BSS_INFORMATION_ELEMENTS`, and `NL80211_BSS_BEACON_IES`.
const ELEMENTS: [u16; 2] = [6, 11];
/// `NL80211_BSS_CAPABILITY`.
const CAPABILITY: u16 = 5;
/// `WLAN_CAPABILITY_PRIVACY`: what is sent is encrypted (IEEE 802.11-2020, section 9.4.1.4).
const PRIVACY: u16 = 1 << 4;
/// `NL80211_BSS_STATUS`.
const STATUS: u16 = 9;
/// `NL80211_BSS_STATUS_ASSOCIATED`.
const ASSOCIATED: u32 = 1;

/// Element of the network's name (IEEE 802.11-2020, section 9.4.2.2).
const NAME: u8 = 0;
/// Element of a robust security network (IEEE 802.11-2020, section 9.4.2.24).
const RSN: u8 = 48;
/// Element of a vendor.
const VENDOR: u8 = 221;
/// Vendor and type of WPA's element, which came before RSN's.
const WPA: [u8; 4] = [0x00, 0x50, 0xf2, 0x01];

/// `struct genlmsghdr` of a request: command, version, two reserved.
pub(super) fn header(command: u8) -> [u8; 4] {
    [command, 0, 0, 0]
}

/// The command of a message, and its attributes.
fn split<'a>(message: &Message<'a>) -> Option<(u8, Attributes<'a>)> {
    let ([command, ..], rest) = message.split::<4>()?;
    Some((*command, rest))
}

/// What a notification says is out of date.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Change {
    /// Which families there are.
    Families,
    /// Which interfaces there are.
    Interfaces,
    /// To which network this interface is connected.
    Network(u32),
}

pub(super) fn change(message: &Message<'_>) -> Option<Change> {
    if message.kind == CONTROL {
        return Some(Change::Families);
    }
    let (command, mut rest) = split(message)?;
    if INTERFACES.contains(&command) {
        return Some(Change::Interfaces);
    }
    let (_, index) = rest.find(|(kind, _)| *kind == IFINDEX)?;
    let index = u32_at(index, 0).filter(|_| REPLACES.contains(&command))?;
    Some(Change::Network(index))
}

/// nl80211.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Family {
    pub(super) number: u16,
    pub(super) groups: Vec<u32>,
}

pub(super) fn family(message: &Message<'_>) -> Option<Family> {
    let (_, rest) = split(message)?;
    let (mut named, mut number, mut groups) = (false, None, Vec::new());
    for (kind, value) in rest {
        match kind {
            FAMILY_ID => number = u16_at(value, 0),
            FAMILY_NAME => named = text(value) == NL80211,
            GROUPS => groups.extend(attributes(value).filter_map(|(_, group)| wanted_group(group))),
            _ => {}
        }
    }
    let number = number.filter(|_| named)?;
    Some(Family { number, groups })
}

/// A multicast group's number, if it is wanted.
fn wanted_group(group: &[u8]) -> Option<u32> {
    let (mut wanted, mut number) = (false, None);
    for (kind, value) in attributes(group) {
        match kind {
            GROUP_NAME => wanted = WANTED_GROUPS.contains(&text(value).as_str()),
            GROUP_ID => number = u32_at(value, 0),
            _ => {}
        }
    }
    number.filter(|_| wanted)
}

/// An interface that may be connected to a WLAN.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Interface {
    pub(super) index: u32,
    pub(super) name: String,
    /// To which, if the kernel was the one to connect it.
    pub(super) ssid: Option<Ssid>,
}

pub(super) fn interface(message: &Message<'_>, family: u16) -> Option<Interface> {
    let (mut index, mut name, mut station, mut ssid) = (None, None, false, None);
    for (kind, value) in body(message, family)? {
        match kind {
            IFINDEX => index = u32_at(value, 0),
            IFNAME => name = Some(text(value)),
            IFTYPE => station = u32_at(value, 0).is_some_and(|kind| STATIONS.contains(&kind)),
            SSID => ssid = Ssid::new(value),
            _ => {}
        }
    }
    Some(Interface {
        index: index.filter(|_| station)?,
        name: name?,
        ssid,
    })
}

/// The attributes of an answer of nl80211.
pub(super) fn body<'a>(message: &Message<'a>, family: u16) -> Option<Attributes<'a>> {
    let (_, rest) = split(message).filter(|_| message.kind == family)?;
    Some(rest)
}

/// How well an access point is heard.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Heard {
    pub(super) signal: Option<i8>,
    pub(super) bitrate: Option<u64>,
}

pub(super) fn heard(mut rest: Attributes<'_>) -> Option<Heard> {
    let (_, info) = rest.find(|(kind, _)| *kind == STATION_INFO)?;
    let (mut last, mut average, mut bitrate) = (None, None, None);
    let dbm = |value: &[u8]| value.first().map(|byte| byte.cast_signed());
    for (kind, value) in attributes(info) {
        match kind {
            SIGNAL => last = dbm(value),
            SIGNAL_AVERAGE => average = dbm(value),
            BITRATE => bitrate = rate(value),
            _ => {}
        }
    }
    Some(Heard {
        signal: average.or(last),
        bitrate,
    })
}

fn rate(value: &[u8]) -> Option<u64> {
    let rates = attributes(value).filter(|(kind, _)| RATES.contains(kind));
    let rates = rates.filter_map(|(_, rate)| match rate.len() {
        4 => u32_at(rate, 0),
        _ => u16_at(rate, 0).map(u32::from),
    });
    let units = rates.max().filter(|units| *units > 0)?;
    Some(u64::from(units) * 100_000)
}

/// What a scan found of the network that an interface is connected to. It is what the access point says of itself.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Associated {
    /// Its name; a hidden one's is in answers to who knows it alone.
    pub(super) ssid: Option<Ssid>,
    pub(super) protected: bool,
}

pub(super) fn associated(mut rest: Attributes<'_>) -> Option<Associated> {
    let (_, bss) = rest.find(|(kind, _)| *kind == BSS)?;
    let (mut is_it, mut private, mut encrypted) = (false, false, None);
    let mut ssid = None;
    for (kind, value) in attributes(bss) {
        match kind {
            STATUS => is_it = u32_at(value, 0) == Some(ASSOCIATED),
            CAPABILITY => private = u16_at(value, 0).is_some_and(|bits| bits & PRIVACY != 0),
            kind if ELEMENTS.contains(&kind) => {
                // Beacons and answers to probes are to agree.
                let says = elements(value)
                    .any(|(id, body)| id == RSN || id == VENDOR && body.starts_with(&WPA));
                encrypted = Some(says && encrypted.unwrap_or(true));
                let mut names = elements(value).filter(|(id, _)| *id == NAME);
                ssid = ssid.or_else(|| Ssid::new(names.next()?.1));
            }
            _ => {}
        }
    }
    is_it.then_some(Associated {
        ssid,
        protected: private && encrypted.unwrap_or(false),
    })
}

/// The information elements in `bytes`, each with its number; ends at the first that is malformed.
fn elements(bytes: &[u8]) -> impl Iterator<Item = (u8, &[u8])> {
    let mut rest = bytes;
    std::iter::from_fn(move || {
        let (&[id, len], after) = rest.split_first_chunk::<2>()?;
        let (body, after) = after.split_at_checked(usize::from(len))?;
        rest = after;
        Some((id, body))
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::wire::{Request, messages};
    use super::*;

    const FAMILY: u16 = 28;

    fn answer(command: u8, fill: impl FnOnce(&mut Request)) -> Vec<u8> {
        let mut request = Request::new(FAMILY, 0, &header(command));
        fill(&mut request);
        request.finish(1)
    }

    fn first(bytes: &[u8]) -> Message<'_> {
        messages(bytes).next().expect("one message")
    }

    #[test]
    fn stations_are_told_from_access_points_and_devices_without_an_interface() {
        let of = |kind: u32, fill: fn(&mut Request)| {
            answer(7, |r| {
                r.put_u32(IFTYPE, kind);
                fill(r);
            })
        };
        let named = |r: &mut Request| {
            r.put_u32(IFINDEX, 3);
            r.put(IFNAME, b"wlan0\0");
        };
        let station = Interface {
            index: 3,
            name: "wlan0".to_owned(),
            ssid: None,
        };
        assert_eq!(interface(&first(&of(2, named)), FAMILY), Some(station));
        assert_eq!(interface(&first(&of(2, named)), FAMILY + 1), None);
        assert_eq!(
            interface(&first(&of(3, named)), FAMILY),
            None,
            "an access point"
        );
        assert_eq!(interface(&first(&of(10, |_| {})), FAMILY), None, "P2P");
    }

    #[test]
    fn what_is_out_of_date_is_told_by_command_and_interface() {
        let of = |command| answer(command, |r| r.put_u32(IFINDEX, 3));
        for command in REPLACES {
            assert_eq!(change(&first(&of(command))), Some(Change::Network(3)));
        }
        assert_eq!(change(&first(&of(8))), Some(Change::Interfaces));
        // An access point that is heard, and one that others ask.
        for command in [19, 34, 37, 64] {
            assert_eq!(change(&first(&of(command))), None, "{command}");
        }
    }

    #[test]
    fn an_average_says_more_than_the_last_signal_and_rates_are_bits_a_second() {
        let of = |fill: fn(&mut Request)| answer(19, |r| r.nest(STATION_INFO, fill));
        let heard_of = |bytes: &[u8]| body(&first(bytes), FAMILY).and_then(heard);
        let both = of(|r| {
            r.put(SIGNAL, &[(-70_i8).cast_unsigned()]);
            r.put(SIGNAL_AVERAGE, &[(-65_i8).cast_unsigned()]);
            r.nest(BITRATE, |r| {
                r.put(1, &540_u16.to_ne_bytes());
                r.put_u32(5, 8_667);
            });
        });
        let expected = Heard {
            signal: Some(-65),
            bitrate: Some(866_700_000),
        };
        assert_eq!(heard_of(&both), Some(expected));
        let last = of(|r| r.put(SIGNAL, &[(-70_i8).cast_unsigned()]));
        assert_eq!(heard_of(&last).expect("something").signal, Some(-70));
        assert_eq!(heard_of(&of(|_| {})), Some(Heard::default()));
        assert_eq!(heard_of(&answer(19, |_| {})), None);
    }

    #[test]
    fn a_network_is_what_the_elements_of_the_associated_one_say() {
        let with = |status: Option<u32>, capability: u16, elements: [&'static [u8]; 2]| {
            answer(34, |r| {
                r.nest(BSS, |r| {
                    r.put(CAPABILITY, &capability.to_ne_bytes());
                    for (kind, elements) in ELEMENTS.into_iter().zip(elements) {
                        r.put(kind, elements);
                    }
                    if let Some(status) = status {
                        r.put_u32(STATUS, status);
                    }
                });
            })
        };
        let of = |status, elements| with(status, PRIVACY, elements);
        let is = |bytes: &[u8]| body(&first(bytes), FAMILY).and_then(associated);
        let silent = answer(34, |r| {
            r.nest(BSS, |r| {
                r.put(CAPABILITY, &PRIVACY.to_ne_bytes());
                r.put_u32(STATUS, ASSOCIATED);
            });
        });
        assert_eq!(is(&silent), Some(Associated::default()), "no element");
        let cafe = |protected| {
            let ssid = Ssid::new(b"cafe");
            Some(Associated { ssid, protected })
        };
        let open = b"\x00\x04cafe\x01\x01\x82";
        let rsn = b"\x00\x04cafe\x30\x02\x01\x00";
        let wpa = b"\x00\x04cafe\xdd\x05\x00\x50\xf2\x01\x01";
        let wmm = b"\x00\x04cafe\xdd\x05\x00\x50\xf2\x02\x01";
        let hidden = b"\x00\x04\x00\x00\x00\x00";
        assert_eq!(is(&of(Some(1), [open, open])), cafe(false));
        assert_eq!(is(&of(Some(1), [rsn, rsn])), cafe(true));
        assert_eq!(is(&of(Some(1), [wpa, rsn])), cafe(true));
        assert_eq!(is(&of(Some(1), [wmm, wmm])), cafe(false));
        for half in [[&open[..], rsn], [&rsn[..], open]] {
            assert_eq!(is(&of(Some(1), half)), cafe(false), "said to some alone");
        }
        assert_eq!(is(&with(Some(1), 0, [rsn, rsn])), cafe(false));
        assert_eq!(is(&of(Some(1), [open, hidden])), cafe(false));
        assert_eq!(is(&of(Some(1), [hidden, open])), cafe(false));
        assert_eq!(is(&of(None, [rsn, rsn])), None, "one in reach");
        assert_eq!(is(&of(Some(0), [rsn, rsn])), None, "not associated");
        // An element that is longer than what there is.
        let cut = Some(Associated::default());
        assert_eq!(is(&of(Some(1), [b"\x00\xffca", b"\x30"])), cut);
    }

    #[test]
    fn the_family_is_found_by_its_name_with_its_groups() {
        let of = |name: &str| {
            let mut request = Request::new(CONTROL, 0, &header(1));
            request.put(FAMILY_ID, &FAMILY.to_ne_bytes());
            request.put(FAMILY_NAME, format!("{name}\0").as_bytes());
            request.nest(GROUPS, |r| {
                for (at, (group, id)) in
                    [("config", 7), ("scan", 8), ("mlme", 9)].iter().enumerate()
                {
                    r.nest(u16::try_from(at).expect("few"), |r| {
                        r.put(GROUP_NAME, format!("{group}\0").as_bytes());
                        r.put_u32(GROUP_ID, *id);
                    });
                }
            });
            request.finish(1)
        };
        let expected = Family {
            number: FAMILY,
            groups: vec![7, 9],
        };
        assert_eq!(family(&first(&of("nl80211"))), Some(expected));
        assert_eq!(family(&first(&of("nl80211x"))), None);
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_without_panic(bytes: Vec<u8>) {
            prop_assert!(elements(&bytes).count() <= bytes.len());
            let _rate = rate(&bytes);
            let wrapped = answer(7, |r| r.put(BSS, bytes.get(..4096).unwrap_or(&bytes)));
            let message = first(&wrapped);
            let _any = (interface(&message, FAMILY), family(&message), change(&message));
            let _any = body(&message, FAMILY).map(|rest| (heard(rest.clone()), associated(rest)));
        }
    }
}
