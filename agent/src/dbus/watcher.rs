//! Follows the bus and the managers on it, whichever are there.

use std::convert::Infallible;
use std::future::pending;
use std::io::ErrorKind;
use std::thread;
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::{Instant, sleep};
use zbus::MessageStream;

use super::Error;
use super::bus::{Bell, Bus, listen};
use super::manager::{Manager, follow};
use super::modem_manager::ModemManager;
use super::network_manager::NetworkManager;
use super::told::{Heard, Told};

/// Pause before a bus that is not there is looked for again: at first, and at last.
const PAUSES: (Duration, Duration) = (Duration::from_millis(250), Duration::from_secs(60));

/// What a manager said holds for so long when it is gone: an upgrade restarts it.
pub const HOLD: Duration = Duration::from_secs(30);

/// Follows what connection managers say of interfaces, on a thread of its own: whatever the bus does, nobody else waits
/// for it.
pub struct Watcher {
    heard: watch::Receiver<Heard>,
    given: Told,
}

impl Watcher {
    /// One for the bus at `address` (a D-Bus server address); without one for the system's bus, at
    /// `$DBUS_SYSTEM_BUS_ADDRESS` or its well-known socket.
    ///
    /// It begins with what was `told` before: that holds until a manager says something else, or has not been there
    /// for `hold` ([`HOLD`]).
    pub fn new(address: Option<String>, told: Told, hold: Duration) -> Self {
        let (sender, heard) = watch::channel(Heard::after(&told));
        let begun = thread::Builder::new()
            .name("dbus".to_owned())
            .spawn(move || follow_until_closed(address.as_deref(), &sender, hold));
        if let Err(error) = begun {
            tracing::warn!(
                "begin a thread for the message bus: {error}: what it tells is not known"
            );
        }
        Self { heard, given: told }
    }

    /// Whoever was told has forgotten an interface, since it is gone or bears another name: what is said of one of this
    /// name from now on is news.
    pub fn forgotten(&mut self, interface: &str) {
        self.given.connections.remove(interface);
        self.given.operators.remove(interface);
        self.given.signals.remove(interface);
    }

    /// Waits until what is told is different from what it gave last, at first from nothing, and gives all
    /// of it. A signal that changes by less than five points is no difference.
    ///
    /// It never ends and never fails: where there is no bus, or neither manager on it, it waits.
    ///
    /// Cancel-safe.
    pub async fn next(&mut self) -> Told {
        loop {
            if self.heard.changed().await.is_err() {
                // There is no thread.
                pending::<()>().await;
            }
            let told = self.heard.borrow_and_update().told();
            if told.is_news(&self.given) {
                self.given.clone_from(&told);
                return told;
            }
        }
    }
}

/// Follows the bus until nobody waits for what is heard.
fn follow_until_closed(address: Option<&str>, heard: &watch::Sender<Heard>, hold: Duration) {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build();
    match runtime {
        Ok(runtime) => runtime.block_on(async {
            tokio::select! {
                never = follow_bus(address, heard, hold) => match never {},
                () = heard.closed() => {}
            }
        }),
        Err(error) => {
            tracing::warn!(
                "make a runtime for the message bus: {error}: what it tells is not known"
            );
        }
    }
}

/// Finds the bus and follows the managers on it, again and again.
async fn follow_bus(
    address: Option<&str>,
    heard: &watch::Sender<Heard>,
    hold: Duration,
) -> Infallible {
    let mut pause = PAUSES.0;
    let mut silent = Silent::default();
    loop {
        let error = match Bus::connect(address).await {
            Ok((bus, messages)) => {
                let since = Instant::now();
                let error = follow_managers(&bus, messages, heard, hold, &mut silent).await;
                if since.elapsed() > PAUSES.1 {
                    (silent.bus, pause) = (false, PAUSES.0);
                }
                error
            }
            Err(error) => error,
        };
        heard.send_if_modified(forget);
        if is_plain_absence(&error) || std::mem::replace(&mut silent.bus, true) {
            tracing::debug!("{}", error.words());
        } else {
            tracing::warn!("{}; it is tried again", error.words());
        }
        sleep(pause).await;
        pause = (pause * 2).min(PAUSES.1);
    }
}

/// Who failed when it was asked last, so that it is said once.
#[derive(Default)]
struct Silent {
    /// The bus; until it has served for a while.
    bus: bool,
    network_manager: bool,
    modem_manager: bool,
}

/// Follows both managers, each at its own pace, until the bus fails.
async fn follow_managers(
    bus: &Bus,
    mut messages: MessageStream,
    heard: &watch::Sender<Heard>,
    hold: Duration,
    silent: &mut Silent,
) -> Error {
    let network_manager = Bell::new(NetworkManager::NAME);
    let modem_manager = Bell::new(ModemManager::NAME);
    let bells = [&network_manager, &modem_manager];
    let ask_network_manager = follow::<NetworkManager>(
        bus,
        &network_manager,
        heard,
        hold,
        &mut silent.network_manager,
    );
    let ask_modem_manager =
        follow::<ModemManager>(bus, &modem_manager, heard, hold, &mut silent.modem_manager);
    // What the bus sends is always taken: answers wait behind it.
    tokio::select! {
        error = listen(&mut messages, &bells) => error,
        error = ask_network_manager => error,
        error = ask_modem_manager => error,
    }
}

/// Forgets all that was said; says whether that was anything.
fn forget(heard: &mut Heard) -> bool {
    let was = !heard.connections.is_empty() || !heard.modems.is_empty();
    *heard = Heard::default();
    was
}

/// Whether there is just no bus, as on hosts without D-Bus and while it restarts.
fn is_plain_absence(error: &Error) -> bool {
    match error {
        Error::Ended => true,
        Error::Connect(zbus::Error::InputOutput(cause) | zbus::Error::Connection(cause, _)) => {
            matches!(
                cause.kind(),
                ErrorKind::NotFound | ErrorKind::ConnectionRefused
            )
        }
        _ => false,
    }
}
