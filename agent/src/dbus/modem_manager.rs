//! ModemManager: how well modems hear, and whom.
//!
//! Its interfaces: <https://www.freedesktop.org/software/ModemManager/doc/latest/ModemManager/>.

use std::collections::BTreeMap;

use zbus::zvariant::{ObjectPath, OwnedObjectPath};

use super::Error;
use super::bus::{Peer, Properties, object_changes, property_changes, take};
use super::manager::Manager;
use super::told::{Heard, INTERFACES, Modem, connection, interface};

const PATH: ObjectPath<'static> =
    ObjectPath::from_static_str_unchecked("/org/freedesktop/ModemManager1");
const MODEM: &str = "org.freedesktop.ModemManager1.Modem";
const MODEM_3GPP: &str = "org.freedesktop.ModemManager1.Modem.Modem3gpp";
const BEARER: &str = "org.freedesktop.ModemManager1.Bearer";

/// ModemManager.
pub(super) struct ModemManager;

impl Manager for ModemManager {
    const NAME: &'static str = "org.freedesktop.ModemManager1";
    type Said = BTreeMap<String, Modem>;

    fn signals() -> Vec<String> {
        let interfaces = [MODEM, MODEM_3GPP, BEARER];
        let mut signals: Vec<_> = interfaces.map(|of| property_changes(Self::NAME, of)).into();
        signals.push(object_changes(Self::NAME));
        signals
    }

    async fn read(peer: &Peer<'_>) -> Result<Self::Said, Error> {
        let mut modems = BTreeMap::new();
        let objects = peer.objects(&PATH).await?.unwrap_or_default();
        // In an order, so that the same are left out where there are too many.
        let mut objects: Vec<_> = objects.into_iter().collect();
        objects.sort_unstable_by(|(one, _), (other, _)| one.as_str().cmp(other.as_str()));
        let mut left = INTERFACES;
        for (_, mut object) in objects {
            let Some(properties) = object.remove(MODEM) else {
                continue;
            };
            let (modem, bearers) = heard(properties, object.remove(MODEM_3GPP));
            let bearers = bearers.get(..left).unwrap_or(&bearers);
            left -= bearers.len();
            for bearer in bearers {
                let properties = peer.properties(bearer, BEARER).await?;
                if let Some(interface) = properties.and_then(carries) {
                    modems.entry(interface).or_insert_with(|| modem.clone());
                }
            }
        }
        Ok(modems)
    }

    fn keep(said: Self::Said, heard: &mut Heard) {
        heard.modems = said;
    }
}

/// A modem and its bearers.
fn heard(mut modem: Properties, network: Option<Properties>) -> (Modem, Vec<OwnedObjectPath>) {
    // With it comes whether it was measured just now.
    let signal: Option<(u32, bool)> = take(&mut modem, "SignalQuality");
    let percent = |(percent, _): (u32, bool)| u8::try_from(percent.min(100)).ok();
    let mut network = network.unwrap_or_default();
    let mut operator = |property| connection(take(&mut network, property)?);
    let known = Modem {
        operator: operator("OperatorName").or_else(|| operator("OperatorCode")),
        signal: signal.and_then(percent),
    };
    (known, take(&mut modem, "Bearers").unwrap_or_default())
}

/// The interface that carries a bearer's packets, if it is connected.
fn carries(mut bearer: Properties) -> Option<String> {
    let connected = take(&mut bearer, "Connected").unwrap_or(false);
    interface(take(&mut bearer, "Interface").filter(|_| connected)?)
}
