//! Who is told: a watcher, and what may be expected of it.

use std::time::Duration;

use steer::dbus::{Told, Watcher};
use tokio::task::LocalSet;
use tokio::time::timeout;

use crate::bus::Bus;

/// Longest that anything may take.
pub(crate) const DEADLINE: Duration = Duration::from_secs(20);

/// Runs `test` as the agent runs: on one thread, in a set of local tasks.
pub(crate) fn run(test: impl Future<Output = ()>) {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    LocalSet::new().block_on(&runtime, test);
}

/// What a manager that is gone said holds for so long.
const HOLD: Duration = Duration::from_millis(300);

/// What is told.
pub(crate) fn told(
    connections: &[(&str, &str)],
    operators: &[(&str, &str)],
    signals: &[(&str, u8)],
) -> Told {
    let owned = |(interface, name): &(&str, &str)| ((*interface).to_owned(), (*name).to_owned());
    Told {
        connections: connections.iter().map(owned).collect(),
        operators: operators.iter().map(owned).collect(),
        signals: signals
            .iter()
            .map(|(interface, percent)| ((*interface).to_owned(), *percent))
            .collect(),
    }
}

/// A watcher.
pub(crate) struct Follower(Watcher);

impl Follower {
    /// One of `bus`.
    pub(crate) fn of(bus: &Bus) -> Self {
        Self::after(bus, Told::default())
    }

    /// One of `bus` who was told this before.
    pub(crate) fn after(bus: &Bus, told: Told) -> Self {
        Self(Watcher::new(Some(bus.address()), told, HOLD))
    }

    /// What it is told next.
    pub(crate) async fn next(&mut self) -> Told {
        let told = timeout(DEADLINE, self.0.next()).await;
        told.expect("something is told")
    }

    /// It is told exactly this next; a modem that has no connection goes by its operator.
    pub(crate) async fn hears(&mut self, names: &[(&str, &str)], signals: &[(&str, u8)]) {
        let Told {
            connections,
            operators,
            signals: heard,
        } = self.next().await;
        let mut heard = Told {
            connections: operators,
            signals: heard,
            ..Told::default()
        };
        heard.connections.extend(connections);
        assert_eq!(heard, told(names, &[], signals));
    }

    /// It waits, and is told nothing until `event`.
    pub(crate) async fn hears_nothing_until<T>(&mut self, event: impl Future<Output = T>) -> T {
        let either = async {
            tokio::select! {
                biased;
                told = self.0.next() => panic!("told without need: {told:?}"),
                value = event => value,
            }
        };
        timeout(DEADLINE, either).await.expect("the event comes")
    }
}
