//! The one module that knows D-Bus: what NetworkManager and ModemManager say about interfaces
//! ([`Watcher`]).
//!
//! A host may have both, one or neither, and no bus at all; each may come, hang and go at any time.
//! Both are only read. A question goes to the owner of a manager's name and never to the name, so that
//! none is started by being asked. Whatever they say is bounded before it is kept, and what others on
//! the bus say about interfaces is not listened to.

mod bus;
mod manager;
mod modem_manager;
mod network_manager;
mod told;
mod watcher;

use std::error::Error as _;

pub use told::Told;
pub use watcher::{HOLD, Watcher};

/// What went wrong, with the operation and its object. None of it ends anything: it is logged.
#[derive(Debug, thiserror::Error)]
enum Error {
    /// The address of the bus is none.
    #[error("read the address of the message bus")]
    Address(#[source] zbus::Error),
    /// There is no bus, or it refused.
    #[error("connect to the message bus")]
    Connect(#[source] zbus::Error),
    /// The bus took a connection, and then said nothing.
    #[error("connect to the message bus: it does not answer")]
    ConnectSilent,
    /// A connection that was there is no more.
    #[error("listen to the message bus: it ended the connection")]
    Ended,
    /// A question was refused or could not be asked.
    #[error("ask {whom} for {what}")]
    Ask {
        /// The name of who was asked.
        whom: &'static str,
        /// The method, and its object.
        what: String,
        /// Why.
        #[source]
        source: Box<zbus::Error>,
    },
    /// A question had no answer in time.
    #[error("ask {whom} for {what}: it does not answer")]
    Silent {
        /// The name of who was asked.
        whom: &'static str,
        /// The method, and its object.
        what: String,
    },
    /// Each question had an answer, but not all in time.
    #[error("ask {whom} for everything: it answers too slowly")]
    Slow {
        /// The name of who was asked.
        whom: &'static str,
    },
    /// Somebody answered who was not asked.
    #[error("ask {whom} for {what}: another answered")]
    Stranger {
        /// The name of who was asked.
        whom: &'static str,
        /// The method, and its object.
        what: String,
    },
    /// An answer has another shape than its interface says.
    #[error("read what {whom} answered to {what}")]
    Shape {
        /// The name of who was asked.
        whom: &'static str,
        /// The method, and its object.
        what: String,
        /// Why.
        #[source]
        source: Box<zbus::Error>,
    },
}

/// Bytes of an error in the log at most: others have their words in it.
const WORDS: usize = 512;

impl Error {
    /// The error and its cause in one line. (The words of the cause have the cause's own causes in them.)
    fn words(&self) -> String {
        let mut words = self.to_string();
        if let Some(cause) = self.source() {
            words = format!("{words}: {cause}");
        }
        words.truncate(words.floor_char_boundary(WORDS));
        words.replace(char::is_control, " ")
    }
}
