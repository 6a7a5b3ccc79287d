//! What a rule names, as files and people write it: ports, protocols and code points.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

use crate::name::Shown;

/// A port, or a range of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Ports {
    first: u16,
    last: u16,
}

/// An IP protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Protocol(pub u8);

/// A differentiated services code point (RFC 2474): 0 to 63.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Dscp(u8);

/// Why a word was refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum WordError {
    /// Not a port or range.
    #[error("{0} is neither a port nor a range of ports like 8000-8100: ports are 1 to 65535")]
    Ports(Shown),
    /// A range that ends before it begins.
    #[error("the range of ports {first}-{last} ends before it begins: write {last}-{first}")]
    Backwards {
        /// Its first port.
        first: u16,
        /// Its last.
        last: u16,
    },
    /// Not a protocol.
    #[error(
        "{0} is no protocol: give a number from 0 to 255, or a name such as tcp, udp, icmp, icmpv6, sctp"
    )]
    Protocol(Shown),
    /// Not a code point.
    #[error(
        "{0} is no DSCP: give a number from 0 to 63, or a name such as EF, CS0 to CS7, AF11 to AF43"
    )]
    Dscp(Shown),
}

impl Ports {
    /// `first` to `last`. `None`: it is empty, or has port 0.
    pub const fn new(first: u16, last: u16) -> Option<Self> {
        if first == 0 || last < first {
            None
        } else {
            Some(Self { first, last })
        }
    }

    /// Its first port.
    pub const fn first(self) -> u16 {
        self.first
    }

    /// Its last port.
    pub const fn last(self) -> u16 {
        self.last
    }

    /// Whether `port` is one of them.
    pub const fn contains(self, port: u16) -> bool {
        self.first <= port && port <= self.last
    }
}

impl FromStr for Ports {
    type Err = WordError;

    fn from_str(text: &str) -> Result<Self, WordError> {
        let wrong = || WordError::Ports(Shown::new(text));
        let port = |text: &str| {
            let digits = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
            let port = text.parse::<u16>().ok().filter(|port| *port != 0);
            port.filter(|_| digits).ok_or_else(wrong)
        };
        let (first, last) = match text.split_once('-') {
            Some((first, last)) => (port(first.trim())?, port(last.trim())?),
            None => (port(text)?, port(text)?),
        };
        Self::new(first, last).ok_or(WordError::Backwards { first, last })
    }
}

impl fmt::Display for Ports {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.first == self.last {
            self.first.fmt(f)
        } else {
            write!(f, "{}-{}", self.first, self.last)
        }
    }
}

/// Names of protocols as /etc/protocols has them; of several for one number the first is shown.
const PROTOCOLS: [(&str, u8); 16] = [
    ("icmp", 1),
    ("igmp", 2),
    ("ipip", 4),
    ("tcp", 6),
    ("udp", 17),
    ("dccp", 33),
    ("ipv6", 41),
    ("gre", 47),
    ("esp", 50),
    ("ah", 51),
    ("icmpv6", 58),
    ("ipv6-icmp", 58),
    ("ospf", 89),
    ("pim", 103),
    ("sctp", 132),
    ("udplite", 136),
];

impl Protocol {
    /// Whether its headers have ports.
    pub const fn has_ports(self) -> bool {
        steer_common::rules::has_ports(self.0)
    }
}

impl FromStr for Protocol {
    type Err = WordError;

    fn from_str(text: &str) -> Result<Self, WordError> {
        let named = PROTOCOLS
            .iter()
            .find(|(name, _)| name.eq_ignore_ascii_case(text));
        if let Some((_, number)) = named {
            return Ok(Self(*number));
        }
        number(text)
            .map(Self)
            .ok_or_else(|| WordError::Protocol(Shown::new(text)))
    }
}

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match PROTOCOLS.iter().find(|(_, number)| *number == self.0) {
            Some((name, _)) => f.write_str(name),
            None => self.0.fmt(f),
        }
    }
}

/// Names of code points: RFC 2474, 2597, 3246, 5865, 8622. Of several for one the first is shown.
const CODE_POINTS: [(&str, u8); 25] = [
    ("CS0", 0),
    ("DF", 0),
    ("BE", 0),
    ("LE", 1),
    ("CS1", 8),
    ("AF11", 10),
    ("AF12", 12),
    ("AF13", 14),
    ("CS2", 16),
    ("AF21", 18),
    ("AF22", 20),
    ("AF23", 22),
    ("CS3", 24),
    ("AF31", 26),
    ("AF32", 28),
    ("AF33", 30),
    ("CS4", 32),
    ("AF41", 34),
    ("AF42", 36),
    ("AF43", 38),
    ("CS5", 40),
    ("VA", 44),
    ("EF", 46),
    ("CS6", 48),
    ("CS7", 56),
];

impl Dscp {
    /// `None`: more than 63.
    pub const fn new(value: u8) -> Option<Self> {
        if value < 64 { Some(Self(value)) } else { None }
    }

    /// As in the upper six bits of the type of service.
    pub const fn get(self) -> u8 {
        self.0
    }
}

impl FromStr for Dscp {
    type Err = WordError;

    fn from_str(text: &str) -> Result<Self, WordError> {
        let named = CODE_POINTS
            .iter()
            .find(|(name, _)| name.eq_ignore_ascii_case(text));
        if let Some((_, value)) = named {
            return Ok(Self(*value));
        }
        number(text)
            .and_then(Self::new)
            .ok_or_else(|| WordError::Dscp(Shown::new(text)))
    }
}

impl fmt::Display for Dscp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match CODE_POINTS.iter().find(|(_, value)| *value == self.0) {
            Some((name, _)) => f.write_str(name),
            None => self.0.fmt(f),
        }
    }
}

/// A number of digits alone: no sign.
fn number(text: &str) -> Option<u8> {
    let digits = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    text.parse().ok().filter(|_| digits)
}

macro_rules! as_text {
    ($($name:ty),*) => {$(
        impl Serialize for $name {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.collect_str(self)
            }
        }

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                let text = String::deserialize(deserializer)?;
                text.parse().map_err(de::Error::custom)
            }
        }
    )*};
}

as_text!(Ports, Protocol, Dscp);

#[cfg(test)]
mod tests {
    use super::{Dscp, Ports, Protocol};

    #[test]
    fn words_are_read_as_they_are_shown() {
        for number in 0..=u8::MAX {
            let protocol = Protocol(number);
            assert_eq!(protocol.to_string().parse(), Ok(protocol));
        }
        for value in 0..64 {
            let dscp = Dscp::new(value).unwrap();
            assert_eq!(dscp.to_string().parse(), Ok(dscp));
        }
        for ports in [(1, 1), (443, 443), (8000, 8100), (1, 65535)] {
            let ports = Ports::new(ports.0, ports.1).unwrap();
            assert_eq!(ports.to_string().parse(), Ok(ports));
        }
    }

    #[test]
    fn names_of_code_points_are_those_of_the_rfcs() {
        let value = |name: &str| name.parse::<Dscp>().unwrap().get();
        for class in 0..8 {
            assert_eq!(value(&format!("CS{class}")), class * 8);
        }
        for class in 1..=4 {
            for drop in 1..=3 {
                assert_eq!(value(&format!("AF{class}{drop}")), class * 8 + drop * 2);
            }
        }
        assert_eq!(
            (value("EF"), value("ef"), value("VA"), value("LE")),
            (46, 46, 44, 1)
        );
    }

    #[test]
    fn words_that_mean_nothing_are_refused_with_what_to_write() {
        let ports = |text: &str| text.parse::<Ports>().unwrap_err().to_string();
        assert!(ports("0").contains("1 to 65535"));
        assert!(ports("65536").contains("1 to 65535"));
        assert!(ports("+80").contains("`+80`"));
        assert!(ports("1-2-3").contains("`1-2-3`"));
        assert!(ports("90-80").contains("write 80-90"));
        let dscp = |text: &str| text.parse::<Dscp>().unwrap_err().to_string();
        assert!(dscp("64").contains("0 to 63"));
        assert!(dscp("AF44").contains("AF11 to AF43"));
        let protocol = |text: &str| text.parse::<Protocol>().unwrap_err().to_string();
        assert!(protocol("tpc").contains("tcp, udp"));
        assert!(protocol("256").contains("0 to 255"));
    }
}
