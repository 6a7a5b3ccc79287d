//! Rows of operations, numbered, until the next line comes.

use std::net::SocketAddr;
use std::sync::mpsc::TryRecvError;

use anyhow::Context;
use steer_tests::report::Report;

use crate::operation::{Extras, Message};
use crate::probe::{Attempt, Probe};

impl Probe {
    /// Posts by the socket that there is.
    pub(crate) fn flood(&mut self, message: &Message, report: &mut Report) -> Attempt {
        report.peer = message.to.or(self.connected);
        while let Some(one) = self.next_of(message, report) {
            if self.post(&one)?.is_err() {
                report.failed += 1;
            }
            std::thread::sleep(self.pause);
        }
        Ok(Ok(()))
    }

    /// A whole exchange with a new socket each time.
    pub(crate) fn churn(&mut self, message: &Message, report: &mut Report) -> Attempt {
        let to = message.to.context("churn needs a destination")?;
        report.peer = Some(to);
        let mut last = Ok(());
        while let Some(one) = self.next_of(message, report) {
            let result = self.fresh_exchange(one.token, to)?;
            if result.is_err() {
                report.failed += 1;
                last = result;
            }
            std::thread::sleep(self.pause);
        }
        Ok(last)
    }

    /// Posts by a new socket each time.
    pub(crate) fn sprout(&mut self, message: &Message, report: &mut Report) -> Attempt {
        report.peer = message.to;
        while let Some(one) = self.next_of(message, report) {
            if self.open(self.kind, self.family).is_err() || self.post(&one)?.is_err() {
                report.failed += 1;
            }
            std::thread::sleep(self.pause);
        }
        Ok(Ok(()))
    }

    /// Posts by a socket that is connected; after an error a new one is.
    pub(crate) fn persist(&mut self, message: &Message, report: &mut Report) -> Attempt {
        let to = message.to.context("persist needs a destination")?;
        report.peer = Some(to);
        while let Some(one) = self.next_of(message, report) {
            if let Err(errno) = self.post_connected(&one, to)? {
                report.failed += 1;
                report.errno = errno as i32;
                self.connected = None;
            }
            std::thread::sleep(self.pause);
        }
        Ok(Ok(()))
    }

    fn post_connected(&mut self, message: &Message, to: SocketAddr) -> Attempt {
        if self.connected.is_none() {
            if let Err(errno) = self.open(self.kind, self.family) {
                return Ok(Err(errno));
            }
            if let Err(errno) = self.connect(to)? {
                return Ok(Err(errno));
            }
        }
        let message = Message {
            to: None,
            ..message.clone()
        };
        self.post(&message)
    }

    fn fresh_exchange(&mut self, token: String, to: SocketAddr) -> Attempt {
        if let Err(errno) = self.open(self.kind, self.family) {
            return Ok(Err(errno));
        }
        if let Err(errno) = self.connect(to)? {
            return Ok(Err(errno));
        }
        let message = Message {
            token,
            to: None,
            extras: Extras::default(),
        };
        self.exchange(&message, &mut Report::default())
    }

    /// The next message of the row; `None` when a line waits.
    fn next_of(&mut self, message: &Message, report: &mut Report) -> Option<Message> {
        if self.line_waits() {
            return None;
        }
        report.tried += 1;
        Some(Message {
            token: format!("{}-{};", message.token, report.tried),
            ..message.clone()
        })
    }

    fn line_waits(&mut self) -> bool {
        if self.waiting.is_some() {
            return true;
        }
        match self.lines.try_recv() {
            Ok(line) => {
                self.waiting = Some(line);
                true
            }
            Err(TryRecvError::Empty) => false,
            Err(TryRecvError::Disconnected) => true,
        }
    }
}
