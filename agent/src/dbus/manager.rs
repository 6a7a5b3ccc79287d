//! What the managers have in common, and how one is followed.

use std::time::Duration;

use tokio::sync::watch;
use tokio::time::{Instant, sleep, sleep_until, timeout};

use super::Error;
use super::bus::{Bell, Bus, Peer, owner_changes};
use super::told::Heard;

/// A change is read at once; a manager that never rests is asked no more often.
const REST: Duration = Duration::from_millis(100);
/// Longest that all of a manager may take to be read.
const READ: Duration = Duration::from_secs(15);
/// Pause before a manager that did not answer is asked again: at first, and at last.
const PAUSES: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(60));

/// One that knows about interfaces.
pub(super) trait Manager {
    /// Its name on the bus.
    const NAME: &'static str;
    /// What is kept of what it says.
    type Said: Default;

    /// Rules for the signals by which it says that something has changed.
    fn signals() -> Vec<String>;

    /// Asks it for everything.
    async fn read(peer: &Peer<'_>) -> Result<Self::Said, Error>;

    /// Keeps what it said.
    fn keep(said: Self::Said, heard: &mut Heard);
}

/// Follows a manager until the bus fails. What it said stays until it says something else, or is gone for `hold`:
/// one that is restarted leaves what it has set up as it is. `silent` is whether it did not answer when it was asked
/// last.
pub(super) async fn follow<M: Manager>(
    bus: &Bus,
    bell: &Bell,
    heard: &watch::Sender<Heard>,
    hold: Duration,
    silent: &mut bool,
) -> Error {
    if let Err(error) = subscribe::<M>(bus).await {
        return error;
    }
    let mut pause = PAUSES.0;
    let mut held = false;
    loop {
        let rested = Instant::now() + REST;
        let said = match bus.owner(bell).await {
            Ok(Some(peer)) => {
                held = false;
                read::<M>(&peer).await
            }
            Ok(None) if !std::mem::replace(&mut held, true) => {
                if timeout(hold, bell.rung()).await.is_ok() {
                    // Somebody is there again, or another change of nobody's: that has its time, too.
                    held = false;
                }
                continue;
            }
            Ok(None) => Ok(M::Said::default()),
            Err(error) => return error,
        };
        match said {
            Ok(said) => {
                heard.send_modify(|heard| M::keep(said, heard));
                (*silent, pause) = (false, PAUSES.0);
                bell.rung().await;
            }
            Err(error) => {
                if std::mem::replace(silent, true) {
                    tracing::debug!("{}", error.words());
                } else {
                    tracing::warn!("{}; it is asked again", error.words());
                }
                tokio::select! {
                    () = bell.rung() => {}
                    () = sleep(pause) => pause = (pause * 2).min(PAUSES.1),
                }
            }
        }
        sleep_until(rested).await;
    }
}

async fn subscribe<M: Manager>(bus: &Bus) -> Result<(), Error> {
    bus.subscribe(&owner_changes(M::NAME)).await?;
    for rule in M::signals() {
        bus.subscribe(&rule).await?;
    }
    Ok(())
}

async fn read<M: Manager>(peer: &Peer<'_>) -> Result<M::Said, Error> {
    match timeout(READ, M::read(peer)).await {
        Ok(said) => said,
        Err(_) => Err(peer.is_slow()),
    }
}
