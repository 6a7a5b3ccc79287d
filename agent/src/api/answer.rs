//! Where the answer to a call goes: parts on the way, if the caller wants them, and the end.

use std::task::{Context, Poll};

use tokio::sync::{mpsc, oneshot};

use super::error::ApiError;
use super::methods::Reply;

/// Parts that wait to be written to one caller.
const WAITING: usize = 16;

/// The agent's side of a call.
#[derive(Debug)]
pub struct Answer {
    end: oneshot::Sender<Result<Reply, ApiError>>,
    /// None: the caller wants no parts (`more` in the call).
    parts: Option<mpsc::Sender<Reply>>,
}

/// The caller does not take its parts as fast as they come. It is to be told no more.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the answers were not taken fast enough")]
pub struct TooSlow;

/// The connection's side of a call.
#[derive(Debug)]
pub(super) struct Answered {
    pub(super) end: oneshot::Receiver<Result<Reply, ApiError>>,
    pub(super) parts: mpsc::Receiver<Reply>,
}

impl Answer {
    /// Both sides; `more`: the caller wants parts.
    pub(super) fn new(more: bool) -> (Self, Answered) {
        let (end, ended) = oneshot::channel();
        let (parts, received) = mpsc::channel(WAITING);
        let answer = Self {
            end,
            parts: more.then_some(parts),
        };
        let answered = Answered {
            end: ended,
            parts: received,
        };
        (answer, answered)
    }

    /// Sends a part, if the caller wants parts.
    ///
    /// # Errors
    /// Too many wait already.
    pub fn part(&self, reply: Reply) -> Result<(), TooSlow> {
        let Some(parts) = &self.parts else {
            return Ok(());
        };
        match parts.try_send(reply) {
            Err(mpsc::error::TrySendError::Full(_)) => Err(TooSlow),
            // Who has gone is found by `is_closed`.
            Err(mpsc::error::TrySendError::Closed(_)) | Ok(()) => Ok(()),
        }
    }

    /// Whether the caller wants parts.
    pub fn wants_parts(&self) -> bool {
        self.parts.is_some()
    }

    /// Whether a part waits to be written: the caller has not taken what came before.
    pub fn has_parts_waiting(&self) -> bool {
        let waiting = |parts: &mpsc::Sender<Reply>| parts.capacity() < parts.max_capacity();
        self.parts.as_ref().is_some_and(waiting)
    }

    /// Ends the call. A caller that has gone gets no answer; what it asked for holds.
    pub fn end(self, result: Result<Reply, ApiError>) {
        let _gone = self.end.send(result);
    }

    /// Ready as soon as the caller has gone.
    pub fn poll_closed(&mut self, context: &mut Context<'_>) -> Poll<()> {
        self.end.poll_closed(context)
    }

    /// Whether the caller has gone: nobody waits any longer.
    pub fn is_closed(&self) -> bool {
        self.end.is_closed()
    }
}
