//! ModemManager, by a double. Names, types and values are those of its API's reference.

use crate::bus::Bus;
use crate::double::{Double, path, paths};
use crate::follower::{Follower, run};
use crate::network_manager::NetworkManager;

pub(crate) const NAME: &str = "org.freedesktop.ModemManager1";
const ROOT: &str = "/org/freedesktop/ModemManager1";
const MODEM: &str = "org.freedesktop.ModemManager1.Modem";
const MODEM_3GPP: &str = "org.freedesktop.ModemManager1.Modem.Modem3gpp";
const BEARER: &str = "org.freedesktop.ModemManager1.Bearer";

fn modem(number: usize) -> String {
    format!("{ROOT}/Modem/{number}")
}

/// Bearers are no objects of the object manager.
fn bearer(number: usize) -> String {
    format!("/org/freedesktop/ModemManager1/Bearer/{number}")
}

/// A double of ModemManager that has its name.
pub(crate) struct ModemManager(pub(crate) Double);

impl ModemManager {
    /// One without modems.
    pub(crate) async fn start(bus: &Bus) -> Self {
        let double = Double::nameless(bus).await;
        double.take_name(NAME).await;
        Self(double)
    }

    /// Has a modem with a bearer, and says so.
    pub(crate) async fn plug(&self, number: usize, interface: &str, operator: (&str, &str)) {
        self.0.have(
            &bearer(number),
            BEARER,
            [("Connected", true.into()), ("Interface", interface.into())],
        );
        self.0.have(
            &modem(number),
            MODEM_3GPP,
            [
                ("OperatorName", operator.0.into()),
                ("OperatorCode", operator.1.into()),
            ],
        );
        let properties = [
            ("SignalQuality", (50_u32, true).into()),
            ("Bearers", paths([bearer(number)])),
            ("Sim", path("/")),
        ];
        self.0.add(ROOT, &modem(number), MODEM, properties).await;
    }

    /// Takes a modem out, and says so.
    pub(crate) async fn unplug(&self, number: usize) {
        self.0.remove(ROOT, &modem(number)).await;
    }

    /// Has a modem hear so well, and says so.
    pub(crate) async fn signal(&self, number: usize, percent: u32) {
        let signal = (percent, true).into();
        self.0
            .set(&modem(number), MODEM, "SignalQuality", signal)
            .await;
    }

    /// Has a bearer be connected or not, and says so.
    async fn connect(&self, number: usize, connected: bool) {
        self.0
            .set(&bearer(number), BEARER, "Connected", connected.into())
            .await;
    }
}

#[test]
fn modems_are_told_as_they_come_and_go() {
    run(async {
        let bus = Bus::start();
        let manager = ModemManager::start(&bus).await;
        let mut follower = Follower::of(&bus);
        manager.plug(0, "wwan0", ("Alpha", "26201")).await;
        follower
            .hears(&[("wwan0", "Alpha")], &[("wwan0", 50)])
            .await;
        // Without a name the network has its code.
        manager.plug(1, "wwan1", ("", "26202")).await;
        let both = [("wwan0", "Alpha"), ("wwan1", "26202")];
        follower.hears(&both, &[("wwan0", 50), ("wwan1", 50)]).await;
        manager.unplug(0).await;
        follower
            .hears(&[("wwan1", "26202")], &[("wwan1", 50)])
            .await;
        manager.connect(1, false).await;
        follower.hears(&[], &[]).await;
        manager.connect(1, true).await;
        follower
            .hears(&[("wwan1", "26202")], &[("wwan1", 50)])
            .await;
    });
}

#[test]
fn a_signal_is_told_when_it_changes_by_five_points() {
    run(async {
        let bus = Bus::start();
        let manager = ModemManager::start(&bus).await;
        let mut follower = Follower::of(&bus);
        manager.plug(0, "wwan0", ("Alpha", "26201")).await;
        follower
            .hears(&[("wwan0", "Alpha")], &[("wwan0", 50)])
            .await;
        for percent in [54, 46, 53] {
            manager.signal(0, percent).await;
            // It is read twice: the modem, and its bearer.
            follower.hears_nothing_until(manager.0.is_asked()).await;
            follower.hears_nothing_until(manager.0.is_asked()).await;
        }
        // From what was told last, not from what was heard.
        manager.signal(0, 55).await;
        follower
            .hears(&[("wwan0", "Alpha")], &[("wwan0", 55)])
            .await;
        manager.signal(0, 50).await;
        follower
            .hears(&[("wwan0", "Alpha")], &[("wwan0", 50)])
            .await;
        manager.signal(0, 4711).await;
        follower
            .hears(&[("wwan0", "Alpha")], &[("wwan0", 100)])
            .await;
    });
}

#[test]
fn a_small_change_of_signal_comes_with_what_is_told_next() {
    run(async {
        let bus = Bus::start();
        let manager = ModemManager::start(&bus).await;
        let mut follower = Follower::of(&bus);
        manager.plug(0, "wwan0", ("Alpha", "26201")).await;
        follower
            .hears(&[("wwan0", "Alpha")], &[("wwan0", 50)])
            .await;
        manager.signal(0, 51).await;
        follower.hears_nothing_until(manager.0.is_asked()).await;
        manager.plug(1, "wwan1", ("Beta", "26202")).await;
        let both = [("wwan0", "Alpha"), ("wwan1", "Beta")];
        follower.hears(&both, &[("wwan0", 51), ("wwan1", 50)]).await;
    });
}

#[test]
fn a_modem_of_network_managers_has_the_name_of_its_connection() {
    run(async {
        let bus = Bus::start();
        let modems = ModemManager::start(&bus).await;
        let mut follower = Follower::of(&bus);
        modems.plug(0, "wwan0", ("Alpha", "26201")).await;
        follower
            .hears(&[("wwan0", "Alpha")], &[("wwan0", 50)])
            .await;
        let networks = NetworkManager::start(&bus).await;
        networks.up(1, "Work SIM", "wwan0");
        networks.activate([1]).await;
        follower
            .hears(&[("wwan0", "Work SIM")], &[("wwan0", 50)])
            .await;
        networks.activate([]).await;
        follower
            .hears(&[("wwan0", "Alpha")], &[("wwan0", 50)])
            .await;
    });
}

#[test]
fn whatever_it_says_of_modems_is_bounded() {
    run(async {
        let bus = Bus::start();
        let manager = ModemManager::start(&bus).await;
        let mut follower = Follower::of(&bus);
        for number in 0..300 {
            let interface = [
                ("Connected", true.into()),
                ("Interface", format!("wwan{number}").into()),
            ];
            manager.0.have(&bearer(number), BEARER, interface);
        }
        // Of other types than they are.
        manager.0.have(
            &modem(0),
            MODEM,
            [("SignalQuality", 50_u32.into()), ("Bearers", "x".into())],
        );
        manager.0.have(
            &bearer(300),
            BEARER,
            [("Connected", true.into()), ("Interface", "a b".into())],
        );
        let operator = [("OperatorName", "x".repeat(4096).into())];
        manager.0.have(&modem(1), MODEM_3GPP, operator);
        let properties = [("Bearers", paths([bearer(300), bearer(7)]))];
        manager.0.add(ROOT, &modem(1), MODEM, properties).await;
        follower.hears(&[("wwan7", &"x".repeat(255))], &[]).await;

        let properties = [
            ("SignalQuality", (9_u32, false).into()),
            ("Bearers", paths((0..300).map(bearer))),
        ];
        let asked = manager.0.asked();
        manager.0.add(ROOT, &modem(0), MODEM, properties).await;
        let told = follower.next().await;
        assert_eq!(told.signals.len(), 256);
        assert_eq!(manager.0.asked() - asked, 1 + 256);
    });
}
