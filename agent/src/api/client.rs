//! The caller's end of the API: blocking, one call at a time.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::marker::PhantomData;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use zlink::varlink_service::OwnedError;

use super::INTERFACE;
use super::error::ApiError;
use super::methods::Method;

/// Largest answer taken, bytes: 100,000 policies have about 50 MB.
const MAX_ANSWER: u64 = 256 << 20;

/// How long the agent may take for a call that it need not wait for anything to answer.
pub const PATIENCE: Duration = Duration::from_secs(30);

/// How long to leave a busy agent alone: at first, and at most.
const FIRST_PAUSE: Duration = Duration::from_millis(50);
const LONGEST_PAUSE: Duration = Duration::from_secs(1);

/// A call failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Nobody listens at the socket.
    #[error(
        "the agent is not running (no answer at {0}): start it with `steer agent` or \
         `systemctl start steer`"
    )]
    NotRunning(PathBuf),
    /// The socket is not for this user.
    #[error(
        "the agent's socket {0} is not for this user: its mode was changed, or that of its directory"
    )]
    NotPermitted(PathBuf),
    /// The socket could not be used.
    #[error("call the agent at {0}")]
    Io(PathBuf, #[source] io::Error),
    /// The agent is there, and silent.
    #[error("the agent at {0} does not answer: its log may say why")]
    Silent(PathBuf),
    /// The agent closed the connection instead of answering.
    #[error("the agent at {0} closed the connection without an answer: its log may say why")]
    Closed(PathBuf),
    /// The agent had no place for another connection, all the time.
    #[error("{reason}, tried again for {} s: end some of its callers", tried.as_secs())]
    Busy {
        /// What the agent said.
        reason: ApiError,
        /// How long it was tried.
        tried: Duration,
    },
    /// The agent said no.
    #[error(transparent)]
    Api(#[from] ApiError),
    /// The agent did not take the call for a call.
    #[error("the agent did not understand the call: {0}; is it of another version?")]
    Service(String),
    /// The answer is none.
    #[error("the answer of the agent was not understood; is it of another version?")]
    Answer(#[source] serde_json::Error),
}

/// A connection to the agent.
#[derive(Debug)]
pub struct Client {
    stream: BufReader<UnixStream>,
    path: PathBuf,
}

#[derive(Serialize)]
struct Message<'a, M> {
    method: &'a str,
    parameters: &'a M,
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    more: bool,
}

#[derive(Deserialize)]
struct Outline {
    error: Option<String>,
    #[serde(default)]
    continues: bool,
}

#[derive(Deserialize)]
struct Success<P> {
    parameters: P,
}

impl Client {
    /// Connects to the agent.
    ///
    /// # Errors
    /// No agent listens at `path`, or not for this user.
    pub fn connect(path: &Path) -> Result<Self, Error> {
        let at = path.to_owned();
        match UnixStream::connect(path) {
            Ok(stream) => Ok(Self {
                stream: BufReader::new(stream),
                path: at,
            }),
            Err(e) => Err(match e.kind() {
                io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused => Error::NotRunning(at),
                io::ErrorKind::PermissionDenied => Error::NotPermitted(at),
                _ => Error::Io(at, e),
            }),
        }
    }

    /// Calls a method.
    ///
    /// # Errors
    /// The agent says no, or does not answer.
    pub fn call<M: Method>(&mut self, method: &M) -> Result<M::Reply, Error> {
        self.call_within(method, Some(PATIENCE))
    }

    /// Calls a method that may take its time; `None`: any time.
    ///
    /// # Errors
    /// The agent says no, or does not answer.
    pub fn call_within<M: Method>(
        &mut self,
        method: &M,
        patience: Option<Duration>,
    ) -> Result<M::Reply, Error> {
        self.send(method, patience, false)?;
        Ok(self.receive()?.0)
    }

    /// Calls a method that tells more than one thing: what comes before the end goes to `part`.
    /// `patience` is for each.
    ///
    /// # Errors
    /// The agent says no, or does not answer.
    pub fn call_in_parts<M: Method>(
        &mut self,
        method: &M,
        patience: Option<Duration>,
        mut part: impl FnMut(M::Reply),
    ) -> Result<M::Reply, Error> {
        let mut parts = self.parts(method, patience)?;
        loop {
            let (reply, continues) = parts.receive()?;
            if !continues {
                return Ok(reply);
            }
            part(reply);
        }
    }

    /// Calls a method that tells more than one thing, and leaves it to the caller when to read them.
    ///
    /// # Errors
    /// The agent cannot be told.
    pub fn parts<M: Method>(
        &mut self,
        method: &M,
        patience: Option<Duration>,
    ) -> Result<Parts<'_, M>, Error> {
        self.send(method, patience, true)?;
        Ok(Parts {
            client: self,
            method: PhantomData,
        })
    }

    fn send<M: Method>(
        &mut self,
        method: &M,
        patience: Option<Duration>,
        more: bool,
    ) -> Result<(), Error> {
        let name = format!("{INTERFACE}.{}", M::NAME);
        let message = Message {
            method: &name,
            parameters: method,
            more,
        };
        let mut text = serde_json::to_vec(&message).map_err(Error::Answer)?;
        text.push(0);

        let stream = self.stream.get_ref();
        stream
            .set_read_timeout(patience)
            .map_err(|e| self.failed(e))?;
        stream
            .set_write_timeout(Some(PATIENCE))
            .map_err(|e| self.failed(e))?;
        match self.stream.get_mut().write_all(&text) {
            // The agent may have refused us before we spoke: then the reason is there to be read.
            Err(e) if e.kind() == io::ErrorKind::BrokenPipe => Ok(()),
            other => other.map_err(|e| self.failed(e)),
        }
    }

    /// The next answer, and whether more will come.
    fn receive<R: DeserializeOwned>(&mut self) -> Result<(R, bool), Error> {
        let mut answer = Vec::new();
        let read = self
            .stream
            .by_ref()
            .take(MAX_ANSWER)
            .read_until(0, &mut answer);
        read.map_err(|e| self.failed(e))?;
        if answer.pop() != Some(0) {
            return Err(Error::Closed(self.path.clone()));
        }
        read_answer(&answer)
    }

    /// Connects, calls one method that may take `patience`, and does both again for `persistence`
    /// as long as the agent has no place for the connection.
    ///
    /// # Errors
    /// As [`Client::connect`] and [`Client::call`]; or the agent stays busy.
    pub fn call_persistently<M: Method>(
        path: &Path,
        method: &M,
        patience: Option<Duration>,
        persistence: Duration,
    ) -> Result<M::Reply, Error> {
        Self::persist(path, persistence, |client| {
            client.call_within(method, patience)
        })
    }

    /// Connects and makes a call, and does both again for `persistence` as long as the agent has no place
    /// for the connection.
    ///
    /// # Errors
    /// As [`Client::connect`] and the call; or the agent stays busy.
    pub fn persist<R>(
        path: &Path,
        persistence: Duration,
        mut call: impl FnMut(&mut Self) -> Result<R, Error>,
    ) -> Result<R, Error> {
        let start = Instant::now();
        let mut pause = FIRST_PAUSE;
        loop {
            let answer = call(&mut Self::connect(path)?);
            let Err(Error::Api(reason @ ApiError::Busy { .. })) = answer else {
                return answer;
            };
            let left = persistence.saturating_sub(start.elapsed());
            if left.is_zero() {
                let tried = persistence;
                return Err(Error::Busy { reason, tried });
            }
            thread::sleep(pause.min(left));
            pause = (pause * 2).min(LONGEST_PAUSE);
        }
    }

    fn failed(&self, e: io::Error) -> Error {
        match e.kind() {
            io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => Error::Silent(self.path.clone()),
            io::ErrorKind::ConnectionReset => Error::Closed(self.path.clone()),
            _ => Error::Io(self.path.clone(), e),
        }
    }
}

/// What is told on the way to an answer, and that.
#[derive(Debug)]
pub struct Parts<'a, M> {
    client: &'a mut Client,
    method: PhantomData<M>,
}

impl<M: Method> Parts<'_, M> {
    /// The next one, and whether more will come. Waits for it.
    ///
    /// # Errors
    /// The agent says no, or does not answer.
    pub fn receive(&mut self) -> Result<(M::Reply, bool), Error> {
        self.client.receive()
    }

    /// Waits for the next ones for as long as it takes: nothing may happen for long.
    ///
    /// # Errors
    /// The kernel refuses.
    pub fn wait_for_ever(&self) -> Result<(), Error> {
        let stream = self.client.stream.get_ref();
        let set = stream.set_read_timeout(None);
        set.map_err(|e| self.client.failed(e))
    }

    /// Whether there is something that was read from the connection already, and would not be found by
    /// waiting for that.
    pub fn arrived(&self) -> bool {
        !self.client.stream.buffer().is_empty()
    }
}

impl<M> AsFd for Parts<'_, M> {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.client.stream.get_ref().as_fd()
    }
}

fn read_answer<R: DeserializeOwned>(text: &[u8]) -> Result<(R, bool), Error> {
    let Outline { error, continues } = serde_json::from_slice(text).map_err(Error::Answer)?;
    let Some(error) = error else {
        let success: Success<R> = serde_json::from_slice(text).map_err(Error::Answer)?;
        return Ok((success.parameters, continues));
    };
    if error.starts_with(INTERFACE) {
        return Err(serde_json::from_slice(text).map_or(Error::Service(error), Error::Api));
    }
    let known: Result<OwnedError, _> = serde_json::from_slice(text);
    Err(Error::Service(
        known.map_or(error, |known| known.to_string()),
    ))
}
