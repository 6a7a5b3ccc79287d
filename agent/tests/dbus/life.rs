//! Managers and buses that come, hang and go, and others on the bus.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use tokio::time::timeout;
use zbus::zvariant::Value;

use steer::dbus::Told;

use crate::bus::Bus;
use crate::double::{connect, round_trip};
use crate::follower::{DEADLINE, Follower, run, told};
use crate::modem_manager::{self, ModemManager};
use crate::network_manager::{self, NetworkManager};

#[test]
fn a_manager_that_ends_is_forgotten_and_followed_when_it_is_back() {
    run(async {
        let bus = Bus::start();
        let modems = ModemManager::start(&bus).await;
        modems.plug(0, "wwan0", ("Alpha", "26201")).await;
        let mut follower = Follower::of(&bus);
        follower
            .hears(&[("wwan0", "Alpha")], &[("wwan0", 50)])
            .await;
        for id in ["Home", "Office"] {
            let networks = NetworkManager::nameless(&bus).await;
            networks.up(1, id, "eth0");
            networks.activate([1]).await;
            networks.0.take_name(network_manager::NAME).await;
            let both = [("eth0", id), ("wwan0", "Alpha")];
            follower.hears(&both, &[("wwan0", 50)]).await;
            // One that is back at once, as after an upgrade, was never gone.
            networks.0.end().await;
            let networks = NetworkManager::nameless(&bus).await;
            networks.up(1, id, "eth0");
            networks.activate([1]).await;
            networks.0.take_name(network_manager::NAME).await;
            follower.hears_nothing_until(networks.0.is_asked()).await;
            networks.0.end().await;
            follower
                .hears(&[("wwan0", "Alpha")], &[("wwan0", 50)])
                .await;
        }
        modems.0.end().await;
        follower.hears(&[], &[]).await;
    });
}

#[test]
fn what_was_told_before_holds_until_something_else_is_said() {
    run(async {
        let bus = Bus::start();
        let modems = ModemManager::start(&bus).await;
        modems.plug(0, "wwan0", ("Alpha", "26201")).await;
        let networks = NetworkManager::start(&bus).await;
        networks.up(1, "Home", "eth0");
        networks.up(2, "Work", "tun0");
        networks.activate([1, 2]).await;
        let before = told(
            &[("eth0", "Home"), ("tun0", "Work")],
            &[("wwan0", "Alpha")],
            &[("wwan0", 52)],
        );
        let mut follower = Follower::after(&bus, before);
        let asked = async {
            networks.0.is_asked().await;
            modems.0.is_asked().await;
        };
        follower.hears_nothing_until(asked).await;
        networks.activate([1]).await;
        let rest = [("eth0", "Home"), ("wwan0", "Alpha")];
        follower.hears(&rest, &[("wwan0", 50)]).await;
        // Of whom nobody is there now.
        let nobody = Bus::start();
        let mut follower = Follower::after(&nobody, told(&rest, &[], &[("wwan0", 50)]));
        let first = follower.next().await;
        if first != Told::default() {
            follower.hears(&[], &[]).await;
        }
        let absent = Bus::absent();
        let mut follower = Follower::after(&absent, told(&rest, &[], &[]));
        follower.hears(&[], &[]).await;
    });
}

#[test]
fn a_bus_that_comes_later_is_found() {
    run(async {
        let mut bus = Bus::absent();
        let mut follower = Follower::of(&bus);
        // One that is there and hangs up at once shows that there was a look; then nobody is there.
        let hangs_up = bus.listen_instead();
        let looked = follower.hears_nothing_until(hangs_up.accept()).await;
        drop((looked, hangs_up));
        bus.run();
        let manager = NetworkManager::start(&bus).await;
        manager.up(1, "Office", "eth0");
        manager.activate([1]).await;
        follower.hears(&[("eth0", "Office")], &[]).await;
    });
}

#[test]
fn a_bus_that_does_not_answer_is_given_up_and_tried_again() {
    run(async {
        let mut bus = Bus::absent();
        let mut follower = Follower::of(&bus);
        let hangs = bus.listen_instead();
        let first = follower.hears_nothing_until(hangs.accept()).await;
        let second = follower.hears_nothing_until(hangs.accept()).await;
        drop((first, second, hangs));
        bus.run();
        let manager = NetworkManager::start(&bus).await;
        manager.up(1, "Office", "eth0");
        manager.activate([1]).await;
        follower.hears(&[("eth0", "Office")], &[]).await;
    });
}

#[test]
fn a_bus_that_goes_is_forgotten_and_found_when_it_is_back() {
    run(async {
        let mut bus = Bus::start();
        let mut follower = Follower::of(&bus);
        for id in ["Home", "Office"] {
            let manager = NetworkManager::start(&bus).await;
            manager.up(1, id, "eth0");
            manager.activate([1]).await;
            follower.hears(&[("eth0", id)], &[]).await;
            bus.stop();
            follower.hears(&[], &[]).await;
            bus.run();
        }
    });
}

#[test]
fn nobody_is_started_by_being_asked() {
    run(async {
        let mut bus = Bus::absent();
        bus.can_start(network_manager::NAME);
        bus.can_start(modem_manager::NAME);
        bus.run();
        let mut follower = Follower::of(&bus);
        // Each is asked while it is away before it comes and after it went.
        for _ in 0..2 {
            let modems = ModemManager::start(&bus).await;
            modems.plug(0, "wwan0", ("Alpha", "26201")).await;
            follower
                .hears(&[("wwan0", "Alpha")], &[("wwan0", 50)])
                .await;
            modems.0.end().await;
            follower.hears(&[], &[]).await;
            let networks = NetworkManager::start(&bus).await;
            networks.up(1, "Office", "eth0");
            networks.activate([1]).await;
            follower.hears(&[("eth0", "Office")], &[]).await;
            networks.0.end().await;
            follower.hears(&[], &[]).await;
        }
        assert!(!bus.marker().exists(), "a manager was started");
        // It would have been: the bus knows how.
        let connection = connect(&bus).await;
        let name = "org.freedesktop.DBus";
        let start = (network_manager::NAME, 0_u32);
        let started =
            connection.call_method(Some(name), "/", Some(name), "StartServiceByName", &start);
        started.await.expect_err("what is started is no manager");
        assert!(bus.marker().exists());
    });
}

#[test]
fn one_that_hangs_keeps_nobody_waiting_and_is_asked_again() {
    run(async {
        let bus = Bus::start();
        let networks = NetworkManager::start(&bus).await;
        networks.up(1, "Office", "eth0");
        networks.activate([1]).await;
        networks.0.hang(true);
        let modems = ModemManager::start(&bus).await;
        let mut follower = Follower::of(&bus);
        follower.hears_nothing_until(networks.0.is_asked()).await;
        let since = Instant::now();
        modems.plug(0, "wwan0", ("Alpha", "26201")).await;
        follower
            .hears(&[("wwan0", "Alpha")], &[("wwan0", 50)])
            .await;
        assert_eq!(
            networks.0.asked(),
            1,
            "that was before the one had to answer"
        );
        networks.0.hang(false);
        let both = [("eth0", "Office"), ("wwan0", "Alpha")];
        follower.hears(&both, &[("wwan0", 50)]).await;
        let waited = since.elapsed();
        assert!(
            waited < Duration::from_secs(12),
            "{waited:?} for one question"
        );
    });
}

#[test]
fn what_was_said_stays_while_one_hangs() {
    run(async {
        let bus = Bus::start();
        let networks = NetworkManager::start(&bus).await;
        networks.up(1, "Office", "eth0");
        networks.activate([1]).await;
        let mut follower = Follower::of(&bus);
        follower.hears(&[("eth0", "Office")], &[]).await;
        networks.0.hang(true);
        networks.activate([]).await;
        // Once, and again after it did not answer.
        follower.hears_nothing_until(networks.0.is_asked()).await;
        follower.hears_nothing_until(networks.0.is_asked()).await;
        networks.0.end().await;
        follower.hears(&[], &[]).await;
    });
}

#[test]
fn others_on_the_bus_are_not_listened_to() {
    run(async {
        let bus = Bus::start();
        let networks = NetworkManager::start(&bus).await;
        networks.up(1, "Office", "eth0");
        networks.activate([1]).await;
        let modems = ModemManager::start(&bus).await;
        let mut follower = Follower::of(&bus);
        follower.hears(&[("eth0", "Office")], &[]).await;
        let asked = networks.0.asked();

        let other = connect(&bus).await;
        let (watcher, _) = networks.0.last_question();
        let nothing: HashMap<&str, Value<'_>> = HashMap::new();
        let changed = (network_manager::NAME, nothing, Vec::<&str>::new());
        let owner = (network_manager::NAME, ":1.0", "");
        for to in [None, Some(watcher.as_str())] {
            let at = "/org/freedesktop/NetworkManager";
            let properties = "org.freedesktop.DBus.Properties";
            let said = other.emit_signal(to, at, properties, "PropertiesChanged", &changed);
            said.await.unwrap();
            let (at, interface) = ("/org/freedesktop/DBus", "org.freedesktop.DBus");
            let said = other.emit_signal(to, at, interface, "NameOwnerChanged", &owner);
            said.await.unwrap();
        }
        round_trip(&other).await;
        // What came after it was heard, and read.
        for (number, interface) in [(0, "wwan0"), (1, "wwan1")] {
            modems.plug(number, interface, ("Alpha", "26201")).await;
            assert!(follower.next().await.signals.contains_key(interface));
        }
        assert_eq!(networks.0.asked(), asked, "a stranger had it asked");
    });
}

#[test]
fn another_cannot_answer_in_a_managers_place() {
    run(async {
        let bus = Bus::start();
        let networks = NetworkManager::start(&bus).await;
        networks.up(1, "Office", "eth0");
        networks.activate([1]).await;
        networks.0.answer_by(Some(connect(&bus).await));
        let mut follower = Follower::of(&bus);
        // Once, and again after the answer was no good.
        follower.hears_nothing_until(networks.0.is_asked()).await;
        follower.hears_nothing_until(networks.0.is_asked()).await;
        let (_, about) = networks.0.last_question();
        assert_eq!(about, "/org/freedesktop/NetworkManager");
        networks.0.answer_by(None);
        follower.hears(&[("eth0", "Office")], &[]).await;
    });
}

#[test]
fn what_never_rests_is_read_ten_times_a_second_at_most() {
    run(async {
        let bus = Bus::start();
        let networks = NetworkManager::start(&bus).await;
        networks.up(1, "Office", "eth0");
        networks.activate([1]).await;
        let mut follower = Follower::of(&bus);
        follower.hears(&[("eth0", "Office")], &[]).await;
        let (asked, since) = (networks.0.asked(), Instant::now());
        let burst = async {
            for _ in 0..300 {
                networks.activate([1]).await;
            }
        };
        follower.hears_nothing_until(burst).await;
        // Each time it is asked for itself, the connection and the device.
        let reads = (networks.0.asked() - asked).div_ceil(3);
        let tenths = usize::try_from(since.elapsed().as_millis() / 100).unwrap();
        assert!(
            reads <= tenths + 1,
            "{reads} in {tenths} tenths of a second"
        );
    });
}

#[test]
fn more_signals_than_fit_keep_no_answer_back() {
    run(async {
        let bus = Bus::start();
        let networks = NetworkManager::start(&bus).await;
        networks.up(1, "Office", "eth0");
        networks.activate([1]).await;
        let mut follower = Follower::of(&bus);
        follower.hears(&[("eth0", "Office")], &[]).await;
        // Nobody waits for them meanwhile.
        for number in 2..202 {
            networks.up(number, "Home", &format!("veth{number}"));
            networks.activate(1..=number).await;
        }
        while follower.next().await.connections.len() < 201 {}
    });
}

#[test]
fn a_call_that_is_dropped_loses_nothing() {
    run(async {
        let bus = Bus::start();
        let manager = NetworkManager::start(&bus).await;
        manager.up(1, "Office", "eth0");
        manager.activate([1]).await;
        let mut follower = Follower::of(&bus);
        let told = async {
            loop {
                // Dropped whenever it waits.
                tokio::select! {
                    biased;
                    told = follower.next() => return told,
                    () = tokio::task::yield_now() => {}
                }
            }
        };
        let told = timeout(DEADLINE, told).await.expect("it is told");
        assert_eq!(
            told.connections.get("eth0").map(String::as_str),
            Some("Office")
        );
    });
}
