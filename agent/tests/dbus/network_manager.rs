//! NetworkManager, by a double. Names, types and values are those of its API's reference.

use zbus::zvariant::Value;

use crate::bus::Bus;
use crate::double::{Double, paths};
use crate::follower::{Follower, run};

pub(crate) const NAME: &str = "org.freedesktop.NetworkManager";
const ROOT: &str = "/org/freedesktop/NetworkManager";
const ACTIVE: &str = "org.freedesktop.NetworkManager.Connection.Active";
const DEVICE: &str = "org.freedesktop.NetworkManager.Device";

/// `NMActiveConnectionState`
const ACTIVATING: u32 = 1;
const ACTIVATED: u32 = 2;
const DEACTIVATING: u32 = 3;
/// `NMActivationStateFlags`, as they are of a connection that is up and bound to its profile.
const READY: u32 = 0x5c;
const EXTERNAL: u32 = 0x80;

fn active(number: usize) -> String {
    format!("{ROOT}/ActiveConnection/{number}")
}

fn device(number: usize) -> String {
    format!("{ROOT}/Devices/{number}")
}

/// A double of NetworkManager that has its name.
pub(crate) struct NetworkManager(pub(crate) Double);

impl NetworkManager {
    /// One that knows nothing.
    pub(crate) async fn start(bus: &Bus) -> Self {
        let manager = Self::nameless(bus).await;
        manager.0.take_name(NAME).await;
        manager
    }

    /// One that knows nothing and has not got the name yet.
    pub(crate) async fn nameless(bus: &Bus) -> Self {
        let double = Double::nameless(bus).await;
        double.have(ROOT, NAME, [("ActiveConnections", paths::<&str>([]))]);
        Self(double)
    }

    /// Has a connection that is up on an interface.
    pub(crate) fn up(&self, number: usize, id: &str, interface: &str) {
        self.device(number, interface, interface);
        self.connection(number, id, ACTIVATED, READY, false, number);
    }

    fn device(&self, number: usize, interface: &str, ip_interface: &str) {
        let properties = [
            ("Interface", interface.into()),
            ("IpInterface", ip_interface.into()),
            ("State", 100_u32.into()),
        ];
        self.0.have(&device(number), DEVICE, properties);
    }

    fn connection(
        &self,
        number: usize,
        id: &str,
        state: u32,
        flags: u32,
        vpn: bool,
        by_device: usize,
    ) {
        let properties = [
            ("Id", id.into()),
            ("State", state.into()),
            ("StateFlags", flags.into()),
            ("Vpn", vpn.into()),
            ("Devices", paths([device(by_device)])),
        ];
        self.0.have(&active(number), ACTIVE, properties);
    }

    async fn state(&self, number: usize, state: u32) {
        let property = ("State", state.into());
        self.0
            .set(&active(number), ACTIVE, property.0, property.1)
            .await;
    }

    /// Has these connections be active, and says so.
    pub(crate) async fn activate(&self, numbers: impl IntoIterator<Item = usize>) {
        let active = paths(numbers.into_iter().map(active));
        self.0.set(ROOT, NAME, "ActiveConnections", active).await;
    }
}

#[test]
fn a_connection_that_comes_up_or_goes_down_is_told() {
    run(async {
        let bus = Bus::start();
        let manager = NetworkManager::start(&bus).await;
        let mut follower = Follower::of(&bus);
        manager.device(1, "eth0", "eth0");
        manager.connection(1, "Office", ACTIVATING, 0, false, 1);
        manager.activate([1]).await;
        follower.hears_nothing_until(manager.0.is_asked()).await;
        manager.state(1, ACTIVATED).await;
        follower.hears(&[("eth0", "Office")], &[]).await;
        manager.up(2, "Café", "wlan0");
        manager.activate([1, 2]).await;
        follower
            .hears(&[("eth0", "Office"), ("wlan0", "Café")], &[])
            .await;
        manager.state(1, DEACTIVATING).await;
        follower.hears(&[("wlan0", "Café")], &[]).await;
        manager.activate([]).await;
        follower.hears(&[], &[]).await;
    });
}

#[test]
fn another_connection_on_an_interface_takes_its_place() {
    run(async {
        let bus = Bus::start();
        let manager = NetworkManager::start(&bus).await;
        let mut follower = Follower::of(&bus);
        manager.up(1, "Home", "wlan0");
        manager.activate([1]).await;
        follower.hears(&[("wlan0", "Home")], &[]).await;
        manager.connection(2, "Café", ACTIVATED, READY, false, 1);
        manager.connection(1, "Home", DEACTIVATING, READY, false, 1);
        manager.activate([1, 2]).await;
        follower.hears(&[("wlan0", "Café")], &[]).await;
    });
}

#[test]
fn a_vpn_does_not_name_the_interface_that_carries_it() {
    run(async {
        let bus = Bus::start();
        let manager = NetworkManager::start(&bus).await;
        let mut follower = Follower::of(&bus);
        manager.up(1, "Office", "eth0");
        manager.up(2, "Tunnel", "tun0");
        manager.connection(3, "Company", ACTIVATED, READY, true, 1);
        manager.activate([3, 1, 2]).await;
        follower
            .hears(&[("eth0", "Office"), ("tun0", "Tunnel")], &[])
            .await;
        // Neither when it is all that there is.
        manager.activate([3]).await;
        follower.hears(&[], &[]).await;
    });
}

#[test]
fn what_another_has_configured_is_left_out() {
    run(async {
        let bus = Bus::start();
        let manager = NetworkManager::start(&bus).await;
        let mut follower = Follower::of(&bus);
        manager.up(1, "Office", "eth0");
        manager.device(2, "docker0", "docker0");
        manager.connection(2, "docker0", ACTIVATED, READY | EXTERNAL, false, 2);
        manager.activate([2, 1]).await;
        follower.hears(&[("eth0", "Office")], &[]).await;
    });
}

#[test]
fn an_interface_is_the_one_that_carries_packets() {
    run(async {
        let bus = Bus::start();
        let manager = NetworkManager::start(&bus).await;
        let mut follower = Follower::of(&bus);
        manager.device(1, "cdc-wdm0", "wwan0");
        manager.connection(1, "SIM", ACTIVATED, READY, false, 1);
        manager.device(2, "eth0", "");
        manager.connection(2, "Office", ACTIVATED, READY, false, 2);
        manager.activate([1, 2]).await;
        follower
            .hears(&[("eth0", "Office"), ("wwan0", "SIM")], &[])
            .await;
    });
}

#[test]
fn what_vanishes_while_it_is_read_is_left_out() {
    run(async {
        let bus = Bus::start();
        let manager = NetworkManager::start(&bus).await;
        let mut follower = Follower::of(&bus);
        for (number, interface) in [(1, "eth0"), (2, "eth1"), (3, "eth2")] {
            manager.up(number, "Office", interface);
        }
        manager.0.lose(&active(1));
        manager.0.lose(&device(2));
        manager.activate([1, 2, 3]).await;
        follower.hears(&[("eth2", "Office")], &[]).await;
    });
}

#[test]
fn whatever_it_says_is_bounded() {
    run(async {
        let bus = Bus::start();
        let manager = NetworkManager::start(&bus).await;
        let mut follower = Follower::of(&bus);
        let names = ["", "1234567890123456", "a\nb", "a/b", "\u{1b}[2J", ".."];
        for (number, name) in names.iter().enumerate() {
            manager.up(number, "Office", name);
        }
        manager.up(10, &"é".repeat(4096), "eth0");
        manager.up(11, "", "eth1");
        // Of other types than they are.
        manager.up(12, "Office", "eth2");
        manager.0.have(&active(12), ACTIVE, [("Id", 7_u32.into())]);
        manager.up(13, "Office", "eth3");
        manager
            .0
            .have(&active(13), ACTIVE, [("Devices", "eth3".into())]);
        manager.up(14, "Office", "eth4");
        let interface: Value<'_> = vec!["eth4"].into();
        manager
            .0
            .have(&device(14), DEVICE, [("IpInterface", interface)]);
        manager.up(15, "Office", "eth5");
        manager.up(16, "Office", "eth6");
        manager.0.babble(&active(16));
        manager.activate([16].into_iter().chain(0..16)).await;
        let cut = "é".repeat(127);
        let good = [("eth0", &*cut), ("eth4", "Office"), ("eth5", "Office")];
        follower.hears(&good, &[]).await;

        // It is asked for itself, and for no more connections and devices than there may be interfaces.
        let asked = manager.0.asked();
        for number in 100..400 {
            manager.up(number, "Office", &format!("veth{number}"));
        }
        manager.activate(100..400).await;
        let told = follower.next().await;
        assert_eq!(told.connections.len(), 256);
        assert!(told.connections.contains_key("veth355"));
        assert_eq!(manager.0.asked() - asked, 1 + 256 + 256);

        // One connection with more devices.
        let asked = manager.0.asked();
        let devices = paths((100..400).map(device));
        let many = [("Id", "Many".into()), ("Devices", devices)];
        manager.0.have(&active(100), ACTIVE, many);
        manager.activate([100, 399]).await;
        let told = follower.next().await;
        assert_eq!(told.connections.len(), 256);
        assert!(told.connections.values().all(|id| id == "Many"));
        assert_eq!(manager.0.asked() - asked, 1 + 2 + 256);
    });
}
