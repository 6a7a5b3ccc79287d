//! What connection managers say, as the engine takes it.

use std::collections::BTreeMap;

use steer_core::attached::{Connection, Managed};

use crate::dbus::Told;

/// What was told, by interface.
pub(super) fn managed(told: Told) -> BTreeMap<String, Managed> {
    let mut managed: BTreeMap<String, Managed> = BTreeMap::new();
    for (interface, name) in told.connections {
        managed.entry(interface).or_default().connection = Connection::try_from(name).ok();
    }
    for (interface, name) in told.operators {
        managed.entry(interface).or_default().operator = Connection::try_from(name).ok();
    }
    for (interface, signal) in told.signals {
        managed.entry(interface).or_default().signal = Some(signal);
    }
    managed
}

/// What must have been told, to come to this.
pub(super) fn told(managed: &BTreeMap<String, Managed>) -> Told {
    let mut told = Told::default();
    for (interface, says) in managed {
        if let Some(connection) = &says.connection {
            let name = connection.clone().into();
            told.connections.insert(interface.clone(), name);
        }
        if let Some(operator) = &says.operator {
            let name = operator.clone().into();
            told.operators.insert(interface.clone(), name);
        }
        if let Some(signal) = says.signal {
            told.signals.insert(interface.clone(), signal);
        }
    }
    told
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_told_is_kept_and_told_again() {
        let by =
            |names: &[&str]| -> Vec<String> { names.iter().map(|n| (*n).to_owned()).collect() };
        let [eth0, wwan0, wwan1] =
            <[String; 3]>::try_from(by(&["eth0", "wwan0", "wwan1"])).unwrap();
        let all = Told {
            connections: BTreeMap::from([(eth0, "Wired connection 1".to_owned())]),
            operators: BTreeMap::from([(wwan0.clone(), "Telco".to_owned())]),
            signals: BTreeMap::from([(wwan0, 70), (wwan1, 20)]),
        };
        let kept = managed(all.clone());
        assert_eq!(kept.len(), 3);
        assert_eq!(told(&kept), all);
        let empty = Told {
            connections: BTreeMap::from([("eth0".to_owned(), String::new())]),
            ..Told::default()
        };
        assert_eq!(told(&managed(empty)), Told::default(), "no name");
    }
}
