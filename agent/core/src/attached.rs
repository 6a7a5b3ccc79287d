//! What an interface is attached to, as its radio and connection managers tell it.

use std::fmt::{self, Write as _};
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::name::Shown;

/// Name of a WLAN: 1 to [`Ssid::MAX_LEN`] bytes of any kind (IEEE 802.11-2020, section 9.4.2.2). Shown as text,
/// with what is no visible character, and the backslash, as `\xNN`.
///
/// Whoever runs an access point chooses it: it tells networks apart and proves nothing.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Ssid(Vec<u8>);

/// A WLAN.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Wlan {
    /// Its name.
    pub ssid: Ssid,
    /// What is sent over it is encrypted on the air (WPA and its successors).
    pub protected: bool,
}

/// An interface that is connected to a WLAN (a station, as IEEE 802.11 has it).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Station {
    /// The WLAN.
    pub wlan: Wlan,
    /// How strong its access point is heard, dBm.
    pub signal: Option<i8>,
    /// At which rate was sent last, bit/s.
    pub bitrate: Option<u64>,
}

/// What a connection manager says of an interface.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Managed {
    /// Which of its connections is up on it.
    pub connection: Option<Connection>,
    /// The operator that a modem is registered with.
    pub operator: Option<Connection>,
    /// How well a modem hears its network, percent.
    pub signal: Option<u8>,
}

/// Name of a connection of a connection manager, or of an operator: 1 to [`Connection::MAX_LEN`] bytes. Shown as an
/// [`Ssid`] is, from which it may be made.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Connection(String);

impl Ssid {
    /// Longest name, bytes.
    pub const MAX_LEN: usize = 32;

    /// A name of these bytes; `None`: there are none, or too many, or they are all zero, as a hidden network's are.
    pub fn new(bytes: &[u8]) -> Option<Self> {
        let fits = bytes.len() <= Self::MAX_LEN && bytes.iter().any(|byte| *byte != 0);
        fits.then(|| Self(bytes.to_vec()))
    }
}

impl fmt::Display for Ssid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        show(f, &self.0)
    }
}

/// Writes bytes as text that a terminal only shows.
fn show(f: &mut fmt::Formatter<'_>, bytes: &[u8]) -> fmt::Result {
    for chunk in bytes.utf8_chunks() {
        for character in chunk.valid().chars() {
            if is_visible(character) && character != '\\' {
                f.write_char(character)?;
            } else {
                let mut bytes = [0; 4];
                escape(f, character.encode_utf8(&mut bytes).as_bytes())?;
            }
        }
        escape(f, chunk.invalid())?;
    }
    Ok(())
}

fn escape(f: &mut fmt::Formatter<'_>, bytes: &[u8]) -> fmt::Result {
    bytes.iter().try_for_each(|byte| write!(f, "\\x{byte:02x}"))
}

/// Whether a character shows as itself: what turns the direction of writing or has no width does not.
fn is_visible(character: char) -> bool {
    !character.is_control()
        && !matches!(
            character,
            '\u{ad}'
                | '\u{34f}'
                | '\u{61c}'
                | '\u{115f}'..='\u{1160}'
                | '\u{3164}'
                | '\u{fe00}'..='\u{fe0f}'
                | '\u{ffa0}'
                | '\u{180e}'
                | '\u{200b}'..='\u{200f}'
                | '\u{2028}'..='\u{202e}'
                | '\u{2060}'..='\u{206f}'
                | '\u{feff}'
                | '\u{fff9}'..='\u{fffb}'
                | '\u{e0000}'..='\u{e007f}'
        )
}

/// As it is shown: `\xNN` is a byte.
impl FromStr for Ssid {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        Self::new(&bytes_of(text)?).ok_or_else(|| {
            format!(
                "{} is not the name of a WLAN: that has 1 to {} bytes",
                Shown::new(text),
                Self::MAX_LEN
            )
        })
    }
}

/// What [`show`] wrote.
fn bytes_of(text: &str) -> Result<Vec<u8>, String> {
    let mut bytes = Vec::new();
    let mut rest = text.split('\\');
    bytes.extend(rest.next().unwrap_or_default().bytes());
    for part in rest {
        let digits = part.strip_prefix('x').and_then(|part| part.get(..2));
        let digits = digits.filter(|digits| digits.bytes().all(|d| d.is_ascii_hexdigit()));
        let byte = digits.and_then(|digits| u8::from_str_radix(digits, 16).ok());
        let byte = byte.ok_or_else(|| {
            format!(
                "{} has a backslash that is not one of `\\xNN`; write the backslash itself as `\\x5c`",
                Shown::new(text)
            )
        })?;
        bytes.push(byte);
        bytes.extend(part.bytes().skip(3));
    }
    Ok(bytes)
}

impl Managed {
    /// What it is connected to: its connection, else its operator.
    pub fn named(&self) -> Option<&Connection> {
        self.connection.as_ref().or(self.operator.as_ref())
    }
}

impl Connection {
    /// Longest name, bytes.
    pub const MAX_LEN: usize = 255;
}

impl fmt::Display for Connection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        show(f, self.0.as_bytes())
    }
}

/// As it is shown: `\xNN` is a byte.
impl FromStr for Connection {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let name = String::from_utf8(bytes_of(text)?).ok();
        let connection = name.and_then(|name| Self::try_from(name).ok());
        connection.ok_or_else(|| {
            format!(
                "{} is not the name of a connection: that is text of 1 to {} bytes",
                Shown::new(text),
                Self::MAX_LEN
            )
        })
    }
}

/// As it is.
impl TryFrom<String> for Connection {
    type Error = &'static str;

    fn try_from(name: String) -> Result<Self, Self::Error> {
        match name.len() {
            0 => Err("the name of a connection is empty"),
            1..=Self::MAX_LEN => Ok(Self(name)),
            _ => Err("the name of a connection is too long"),
        }
    }
}

impl From<Connection> for String {
    fn from(connection: Connection) -> Self {
        connection.0
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::{Connection, Ssid};

    #[test]
    fn a_name_is_shown_so_that_a_terminal_only_shows_it() {
        let shown = |bytes: &[u8]| Ssid::new(bytes).map(|ssid| ssid.to_string());
        assert_eq!(shown(b"caf\xc3\xa9 1").as_deref(), Some("caf\u{e9} 1"));
        assert_eq!(
            shown(b"\x1b[31m\\\xff").as_deref(),
            Some(r"\x1b[31m\x5c\xff")
        );
        assert_eq!(
            shown("a\u{202e}b".as_bytes()).as_deref(),
            Some(r"a\xe2\x80\xaeb")
        );
        assert_eq!(shown(b""), None);
        assert_eq!(shown(&[0; 8]), None);
        assert_eq!(shown(&[b'a'; 33]), None);
    }

    #[test]
    fn wrong_names_are_refused_with_what_to_write() {
        for wrong in ["", r"a\b", r"a\x5", r"\x", r"\x+1", &"a".repeat(33)] {
            assert!(wrong.parse::<Ssid>().is_err(), "{wrong}");
        }
        for wrong in ["", r"a\xff", r"a\b", &"a".repeat(256)] {
            assert!(wrong.parse::<Connection>().is_err(), "{wrong}");
        }
        let name = Connection::try_from("Wired\u{1b}[31m 1".to_owned()).unwrap();
        assert_eq!(name.to_string(), r"Wired\x1b[31m 1");
        assert_eq!(name.to_string().parse(), Ok(name));
    }

    proptest! {
        #[test]
        fn a_name_is_read_as_it_is_shown(bytes in prop::collection::vec(any::<u8>(), 1..=32)) {
            prop_assume!(bytes.iter().any(|byte| *byte != 0));
            let ssid = Ssid::new(&bytes).unwrap();
            let shown = ssid.to_string();
            prop_assert!(shown.chars().all(super::is_visible));
            prop_assert_eq!(shown.parse(), Ok(ssid));
        }

        #[test]
        fn any_text_is_read_without_panic(text: String) {
            if let Ok(ssid) = text.parse::<Ssid>() {
                prop_assert_eq!(ssid.to_string().parse(), Ok(ssid));
            }
        }
    }
}
