//! NetworkManager: the names of connections that are up.
//!
//! Its interfaces: <https://networkmanager.dev/docs/api/latest/spec.html>.

use std::collections::BTreeMap;

use zbus::zvariant::{ObjectPath, OwnedObjectPath};

use super::Error;
use super::bus::{Peer, Properties, property_changes, take};
use super::manager::Manager;
use super::told::{Heard, INTERFACES, connection, interface};

const PATH: ObjectPath<'static> =
    ObjectPath::from_static_str_unchecked("/org/freedesktop/NetworkManager");
const ACTIVE: &str = "org.freedesktop.NetworkManager.Connection.Active";
const DEVICE: &str = "org.freedesktop.NetworkManager.Device";

/// `NM_ACTIVE_CONNECTION_STATE_ACTIVATED`
const ACTIVATED: u32 = 2;
/// `NM_ACTIVATION_STATE_FLAG_EXTERNAL`: made up for what another has configured.
const EXTERNAL: u32 = 0x80;

/// NetworkManager.
pub(super) struct NetworkManager;

impl Manager for NetworkManager {
    const NAME: &'static str = "org.freedesktop.NetworkManager";
    type Said = BTreeMap<String, String>;

    fn signals() -> Vec<String> {
        // Not those of access points, which change all the time, or of counters.
        let interfaces = [Self::NAME, ACTIVE, DEVICE];
        interfaces.map(|of| property_changes(Self::NAME, of)).into()
    }

    async fn read(peer: &Peer<'_>) -> Result<Self::Said, Error> {
        let mut names = BTreeMap::new();
        let Some(mut manager) = peer.properties(&PATH, Self::NAME).await? else {
            return Ok(names);
        };
        let active: Vec<OwnedObjectPath> =
            take(&mut manager, "ActiveConnections").unwrap_or_default();
        let mut left = INTERFACES;
        for path in active.iter().take(INTERFACES) {
            let properties = peer.properties(path, ACTIVE).await?;
            let Some((name, devices)) = properties.and_then(named) else {
                continue;
            };
            let devices = devices.get(..left).unwrap_or(&devices);
            left -= devices.len();
            for device in devices {
                let properties = peer.properties(device, DEVICE).await?;
                if let Some(interface) = properties.and_then(carries) {
                    names.entry(interface).or_insert_with(|| name.clone());
                }
            }
        }
        Ok(names)
    }

    fn keep(said: Self::Said, heard: &mut Heard) {
        heard.connections = said;
    }
}

/// The name and the devices of an active connection, if it names them.
fn named(mut active: Properties) -> Option<(String, Vec<OwnedObjectPath>)> {
    let flags = take::<u32>(&mut active, "StateFlags").unwrap_or_default();
    // A VPN has the devices of the connection that carries it. What its own interface is called by is a
    // connection of its own, if there is one.
    let vpn = take(&mut active, "Vpn").unwrap_or(false);
    if take(&mut active, "State") != Some(ACTIVATED) || flags & EXTERNAL != 0 || vpn {
        return None;
    }
    let name = connection(take(&mut active, "Id")?)?;
    Some((name, take(&mut active, "Devices")?))
}

/// The interface that carries a device's packets: a modem's is not what the device is called by.
fn carries(mut device: Properties) -> Option<String> {
    let carries: Option<String> = take(&mut device, "IpInterface");
    let carries = carries.filter(|name| !name.is_empty());
    interface(carries.or_else(|| take(&mut device, "Interface"))?)
}
