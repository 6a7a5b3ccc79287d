//! One connection of the server: messages in and out, within limits of size and time.

use std::io;
use std::os::fd::AsFd;
use std::time::Duration;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use serde::Serialize;
use tokio::net::UnixStream;
use tokio::sync::mpsc;
use tokio::time::{Instant, timeout, timeout_at};
use tracing::debug;
use zlink::varlink_service;

use super::answer::{Answer, Answered};
use super::error::ApiError;
use super::interface::{self, CallError, Incoming, Message};
use super::methods::Reply;
use super::server::{Call, Caller, Limits};
use super::{INTERFACE, MAX_REQUEST};

/// Why a connection ended before the peer ended it.
#[derive(Debug, thiserror::Error)]
pub(super) enum Error {
    #[error("read a call")]
    Read(#[source] io::Error),
    #[error("write an answer")]
    Write(#[source] io::Error),
    #[error("a call had more than {MAX_REQUEST} bytes")]
    TooLarge,
    #[error("a call was not completed in time")]
    Incomplete,
    #[error("nothing was called for a while")]
    Idle,
    #[error("an answer was not taken in time")]
    NotTaken,
    #[error("an answer could not be put into JSON")]
    Json(#[from] serde_json::Error),
    #[error("a call was no JSON object with a method")]
    NoCall(#[source] serde_json::Error),
}

/// What was read and not yet taken; never more than [`MAX_REQUEST`] and one byte.
#[derive(Debug, Default)]
struct Buffer {
    bytes: Vec<u8>,
    /// Where the search for the end of the message goes on.
    searched: usize,
    /// When the message that is incomplete began.
    began: Option<Instant>,
}

impl Buffer {
    /// The next complete message.
    fn take(&mut self) -> Option<Vec<u8>> {
        let fresh = self.bytes.get(self.searched..)?;
        let Some(at) = fresh.iter().position(|&byte| byte == 0) else {
            self.searched = self.bytes.len();
            return None;
        };
        let rest = self.bytes.split_off(self.searched + at + 1);
        let mut message = std::mem::replace(&mut self.bytes, rest);
        message.pop();
        self.searched = 0;
        self.began = if self.bytes.is_empty() {
            None
        } else {
            Some(Instant::now())
        };
        Some(message)
    }

    fn room(&self) -> usize {
        (MAX_REQUEST + 1).saturating_sub(self.bytes.len())
    }

    /// Reads once. `false`: the peer sends no more. Safe to cancel.
    async fn fill(&mut self, stream: &UnixStream) -> io::Result<bool> {
        loop {
            stream.readable().await?;
            let before = self.bytes.len();
            self.bytes.resize(before + self.room().min(4096), 0);
            let got = stream.try_read(&mut self.bytes[before..]);
            self.bytes.truncate(before + *got.as_ref().unwrap_or(&0));
            match got {
                Ok(0) => return Ok(false),
                Ok(_) => {
                    self.began.get_or_insert_with(Instant::now);
                    return Ok(true);
                }
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => {}
                Err(e) => return Err(e),
            }
        }
    }
}

/// One connection.
#[derive(Debug)]
pub(super) struct Connection {
    stream: UnixStream,
    caller: Caller,
    limits: Limits,
    buffer: Buffer,
}

#[derive(Serialize)]
struct Parameters<P: Serialize> {
    parameters: P,
}

#[derive(Serialize)]
struct Description {
    description: &'static str,
}

impl Connection {
    pub(super) fn new(stream: UnixStream, caller: Caller, limits: Limits) -> Self {
        Self {
            stream,
            caller,
            limits,
            buffer: Buffer::default(),
        }
    }

    /// Answers calls until the peer has no more.
    pub(super) async fn serve(mut self, calls: mpsc::Sender<Call>) -> Result<(), Error> {
        loop {
            let message = match self.receive().await {
                Ok(Some(message)) => message,
                Ok(None) => return Ok(()),
                Err(Error::TooLarge) => {
                    let error = ApiError::InvalidArgument {
                        field: "message".to_owned(),
                        reason: format!("larger than {} KiB", MAX_REQUEST >> 10),
                    };
                    self.send(&error).await?;
                    return Err(Error::TooLarge);
                }
                Err(e) => return Err(e),
            };
            let message: Message = match serde_json::from_slice(&message) {
                Ok(message) => message,
                Err(e) => {
                    let parameter = "message".into();
                    self.send(&varlink_service::Error::InvalidParameter { parameter })
                        .await?;
                    return Err(Error::NoCall(e));
                }
            };
            let silent = message.oneway;
            let more = message.more && !silent;
            let answer = match interface::read(message) {
                Ok(Incoming::Request(request)) => {
                    let (reply, answered) = Answer::new(more);
                    let call = Call {
                        caller: self.caller.clone(),
                        request,
                        reply,
                    };
                    if calls.send(call).await.is_err() {
                        Err(CallError::Api(stopping()))
                    } else {
                        match self.wait(answered).await? {
                            None => return Ok(()),
                            Some(result) => result.map_err(CallError::Api),
                        }
                    }
                }
                Ok(_) if silent => continue,
                Ok(Incoming::Info) => {
                    let info = varlink_service::Info::new(
                        "steer",
                        "steer",
                        env!("CARGO_PKG_VERSION"),
                        "",
                        ["org.varlink.service", INTERFACE],
                    );
                    self.send(&Parameters {
                        parameters: info.ok(),
                    })
                    .await?;
                    continue;
                }
                Ok(Incoming::Description(description)) => {
                    self.send(&Parameters {
                        parameters: Description { description },
                    })
                    .await?;
                    continue;
                }
                Err(e) => Err(e),
            };
            if silent {
                continue;
            }
            match answer {
                Ok(reply) => self.send_reply(reply, false).await?,
                Err(CallError::Api(error)) => self.send(&error).await?,
                Err(CallError::Service(error)) => self.send(&error).await?,
            }
        }
    }

    /// The next message. `None`: the peer has no more.
    async fn receive(&mut self) -> Result<Option<Vec<u8>>, Error> {
        loop {
            if let Some(message) = self.buffer.take() {
                return if message.len() > MAX_REQUEST {
                    Err(Error::TooLarge)
                } else {
                    Ok(Some(message))
                };
            }
            if self.buffer.room() == 0 {
                return Err(Error::TooLarge);
            }
            let (deadline, late) = match self.buffer.began {
                Some(began) => (began + self.limits.message, Error::Incomplete),
                None => (Instant::now() + self.limits.idle, Error::Idle),
            };
            match timeout_at(deadline, self.buffer.fill(&self.stream)).await {
                Err(_) => return Err(late),
                Ok(Err(e)) => return Err(Error::Read(e)),
                Ok(Ok(true)) => {}
                Ok(Ok(false)) => return Ok(None),
            }
        }
    }

    /// Waits for the agent's answer, and stops waiting when the peer has gone (`None`), so that
    /// what it asked for is not waited for any longer. Parts of the answer are sent as they come.
    async fn wait(
        &mut self,
        mut answered: Answered,
    ) -> Result<Option<Result<Reply, ApiError>>, Error> {
        let mut listening = true;
        loop {
            tokio::select! {
                biased;
                Some(part) = answered.parts.recv() => self.send_reply(part, true).await?,
                answer = &mut answered.end => {
                    return Ok(Some(answer.unwrap_or_else(|_| Err(stopping()))));
                }
                more = self.buffer.fill(&self.stream), if listening && self.buffer.room() > 0 => {
                    match more {
                        Ok(true) => {}
                        Ok(false) if hung_up(&self.stream) => return Ok(None),
                        // It sends no more, but may still read.
                        Ok(false) => listening = false,
                        Err(e) => return Err(Error::Read(e)),
                    }
                }
            }
        }
    }

    /// `continues`: it is a part, and more will come.
    async fn send_reply(&mut self, reply: Reply, continues: bool) -> Result<(), Error> {
        let mut text = b"{\"parameters\":".to_vec();
        text.append(&mut reply.into_json()?);
        if continues {
            text.extend_from_slice(b",\"continues\":true");
        }
        text.extend_from_slice(b"}\0");
        self.write(&text).await
    }

    async fn send(&mut self, answer: &impl Serialize) -> Result<(), Error> {
        self.write(&encode(answer)?).await
    }

    async fn write(&self, text: &[u8]) -> Result<(), Error> {
        let all = async {
            let mut rest = text;
            while !rest.is_empty() {
                self.stream.writable().await?;
                match self.stream.try_write(rest) {
                    Ok(written) => rest = &rest[written..],
                    Err(e) if e.kind() == io::ErrorKind::WouldBlock => {}
                    Err(e) => return Err(e),
                }
            }
            Ok(())
        };
        timeout(self.limits.take, all)
            .await
            .map_err(|_| Error::NotTaken)?
            .map_err(Error::Write)
    }
}

/// Says one thing to a peer that is not served, if it can be said at once.
pub(super) fn refuse(stream: &UnixStream, error: &ApiError) {
    let Ok(text) = encode(error) else { return };
    if let Err(e) = stream.try_write(&text) {
        debug!("a refused caller was not told why: {e}");
    }
}

fn encode(answer: &impl Serialize) -> serde_json::Result<Vec<u8>> {
    let mut text = serde_json::to_vec(answer)?;
    text.push(0);
    Ok(text)
}

fn stopping() -> ApiError {
    ApiError::Failed {
        reason: "the agent is stopping".to_owned(),
    }
}

/// Whether the peer has closed both directions, not its sending one alone.
fn hung_up(stream: &UnixStream) -> bool {
    let mut fds = [PollFd::new(stream.as_fd(), PollFlags::empty())];
    match poll(&mut fds, PollTimeout::ZERO) {
        Ok(_) => fds[0]
            .revents()
            .is_some_and(|events| events.contains(PollFlags::POLLHUP)),
        Err(_) => true,
    }
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            connections: 64,
            per_user: 8,
            for_root: 16,
            take: Duration::from_secs(5),
            message: Duration::from_secs(10),
            idle: Duration::from_secs(60),
        }
    }
}
