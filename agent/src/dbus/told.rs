//! What is told of interfaces, and which change of it is worth telling.

use std::collections::BTreeMap;

/// Interfaces that are kept at most. Whoever may add more has the host's networking in hand anyway.
pub(super) const INTERFACES: usize = 256;
/// Bytes of an interface's name at most (`IFNAMSIZ` without its terminator).
const INTERFACE: usize = 15;
/// Bytes of a connection's name at most.
const CONNECTION: usize = 255;
/// A signal's change that is worth telling by itself, percent. Modems' signals flutter.
const SIGNAL_STEP: u8 = 5;

/// What connection managers say of interfaces, by the interfaces' names.
///
/// Interfaces have names that the kernel could give. A connection's name is what its user, or the network that
/// it was made for, calls it: at most 255 bytes, of any characters.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Told {
    /// The connection that is up on an interface: NetworkManager's `Id`.
    pub connections: BTreeMap<String, String>,
    /// The operator of a modem, by its name or else its code (MCC and MNC): ModemManager's.
    pub operators: BTreeMap<String, String>,
    /// How well a modem hears its network, percent (ModemManager's `SignalQuality`).
    pub signals: BTreeMap<String, u8>,
}

impl Told {
    /// Whether it is worth telling to who was told `given`.
    pub(super) fn is_news(&self, given: &Self) -> bool {
        let step = |(now, before): (&u8, &u8)| now.abs_diff(*before) >= SIGNAL_STEP;
        self.connections != given.connections
            || self.operators != given.operators
            || !self.signals.keys().eq(given.signals.keys())
            || self.signals.values().zip(given.signals.values()).any(step)
    }
}

/// What ModemManager says of an interface.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Modem {
    /// The operator's name or code, if the modem knows one.
    pub(super) operator: Option<String>,
    /// The signal, percent, if the modem measures it.
    pub(super) signal: Option<u8>,
}

/// What each manager said last.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Heard {
    /// NetworkManager's connections by their interfaces.
    pub(super) connections: BTreeMap<String, String>,
    /// ModemManager's modems by their interfaces.
    pub(super) modems: BTreeMap<String, Modem>,
}

impl Heard {
    /// What was said, to come to this.
    pub(super) fn after(told: &Told) -> Self {
        let interfaces = told.operators.keys().chain(told.signals.keys());
        let modem = |interface: &String| {
            let modem = Modem {
                operator: told.operators.get(interface).cloned(),
                signal: told.signals.get(interface).copied(),
            };
            (interface.clone(), modem)
        };
        Self {
            connections: told.connections.clone(),
            modems: interfaces.map(modem).collect(),
        }
    }

    /// Both together.
    pub(super) fn told(&self) -> Told {
        let modems = || self.modems.iter();
        let operator = |(interface, modem): (&String, &Modem)| {
            Some((interface.clone(), modem.operator.clone()?))
        };
        let signal =
            |(interface, modem): (&String, &Modem)| Some((interface.clone(), modem.signal?));
        Told {
            connections: self.connections.clone(),
            operators: modems().filter_map(operator).collect(),
            signals: modems().filter_map(signal).collect(),
        }
    }
}

/// `name`, if the kernel could give it to an interface (`dev_valid_name`).
pub(super) fn interface(name: String) -> Option<String> {
    let foreign = |c: char| matches!(c, '/' | ':') || c.is_whitespace() || c.is_control();
    let fits = !name.is_empty() && name.len() <= INTERFACE && !name.contains(foreign);
    (fits && name != "." && name != "..").then_some(name)
}

/// `name` of a connection, cut where it is too long; `None`, if it has none.
pub(super) fn connection(mut name: String) -> Option<String> {
    name.truncate(name.floor_char_boundary(CONNECTION));
    name.shrink_to_fit();
    (!name.is_empty()).then_some(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn signals(percent: &[(&str, u8)]) -> Told {
        let signals = percent.iter();
        Told {
            signals: signals
                .map(|(name, percent)| ((*name).to_owned(), *percent))
                .collect(),
            ..Told::default()
        }
    }

    #[test]
    fn a_signal_alone_is_news_from_five_points() {
        let given = signals(&[("wwan0", 50), ("wwan1", 0)]);
        assert!(!given.is_news(&given));
        assert!(!signals(&[("wwan0", 54), ("wwan1", 4)]).is_news(&given));
        assert!(signals(&[("wwan0", 45), ("wwan1", 0)]).is_news(&given));
        assert!(signals(&[("wwan0", 50), ("wwan1", 5)]).is_news(&given));
        assert!(signals(&[("wwan0", 50)]).is_news(&given));
        assert!(signals(&[("wwan0", 50), ("wwan2", 0)]).is_news(&given));
    }

    #[test]
    fn a_connection_is_always_news() {
        let mut told = signals(&[("wwan0", 50)]);
        let given = told.clone();
        told.connections.insert("eth0".to_owned(), "x".to_owned());
        assert!(told.is_news(&given) && given.is_news(&told));
    }

    #[test]
    fn what_each_said_is_told_apart_and_known_again() {
        let modem = |operator: Option<&str>, signal| Modem {
            operator: operator.map(str::to_owned),
            signal,
        };
        let modems = [
            ("wwan0", modem(Some("Alpha"), Some(70))),
            ("wwan1", modem(Some("Beta"), None)),
            ("wwan2", modem(None, Some(9))),
        ];
        let heard = Heard {
            connections: BTreeMap::from([("wwan0".to_owned(), "Work SIM".to_owned())]),
            modems: modems.map(|(name, modem)| (name.to_owned(), modem)).into(),
        };
        let told = heard.told();
        assert_eq!(told.connections, heard.connections);
        assert!(told.operators.keys().eq(["wwan0", "wwan1"]));
        assert!(told.signals.keys().eq(["wwan0", "wwan2"]));
        assert_eq!(Heard::after(&told), heard);
    }

    #[test]
    fn names_are_such_as_the_kernel_gives() {
        let kept = |name: &str| interface(name.to_owned()).is_some();
        assert!(kept("eth0") && kept("123456789012345") && kept("wlån0"));
        for name in [
            "",
            ".",
            "..",
            "1234567890123456",
            "a/b",
            "a:1",
            "a b",
            "a\nb",
            "a\0",
            "\u{9b}1m",
        ] {
            assert!(!kept(name), "{name:?}");
        }
    }

    #[test]
    fn long_names_of_connections_are_cut_between_characters() {
        assert_eq!(connection(String::new()), None);
        assert_eq!(connection("x".repeat(255)), Some("x".repeat(255)));
        assert_eq!(connection("x".repeat(4096)), Some("x".repeat(255)));
        assert_eq!(connection("é".repeat(200)), Some("é".repeat(127)));
    }
}
