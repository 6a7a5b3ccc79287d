//! One netlink socket for requests: dumps, and changes with their acknowledgement.

use std::fmt;
use std::io;

use netlink_sys::{Socket, SocketAddr};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use super::wire::{Message, Request, attributes, messages, text, u32_at};

/// The kernel packs dumps into datagrams of at most 32 KiB, whatever the reader offers beyond.
pub(super) const BUFFER: usize = 64 * 1024;
/// How often a dump is taken again that the kernel says was overtaken by a change.
const DUMP_TRIES: u32 = 16;
/// `NLMSG_ERROR`.
pub(super) const ERROR: u16 = 2;
/// `NLMSG_DONE`.
pub(super) const DONE: u16 = 3;
/// `NLMSGERR_ATTR_MSG`.
const EXTENDED_MESSAGE: u16 = 1;

/// Why a request got no good answer, in the kernel's words.
#[derive(Debug)]
pub struct Refusal {
    error: io::Error,
    words: Option<String>,
}

impl Refusal {
    /// The error number, as in `errno.h`; 0 if the failure was not the kernel's.
    pub fn errno(&self) -> i32 {
        self.error.raw_os_error().unwrap_or(0)
    }

    /// Refused before the kernel was asked.
    pub(super) fn invalid(why: &'static str) -> Self {
        Self::from(io::Error::new(io::ErrorKind::InvalidInput, why))
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.words {
            Some(words) => write!(f, "{} ({words})", self.error),
            None => self.error.fmt(f),
        }
    }
}

impl std::error::Error for Refusal {}

impl Clone for Refusal {
    fn clone(&self) -> Self {
        let error = match self.error.raw_os_error() {
            Some(errno) => io::Error::from_raw_os_error(errno),
            None => io::Error::new(self.error.kind(), self.error.to_string()),
        };
        Self {
            error,
            words: self.words.clone(),
        }
    }
}

impl From<io::Error> for Refusal {
    fn from(error: io::Error) -> Self {
        Self { error, words: None }
    }
}

/// A netlink socket on which one request at a time is made.
pub(super) struct Connection {
    protocol: isize,
    socket: AsyncFd<Socket>,
    sequence: u32,
    /// A request was sent and its answer not read to the end, because the caller gave up waiting.
    unfinished: bool,
    buffer: Vec<u8>,
    /// Dumps that were asked for.
    #[cfg(test)]
    pub(super) dumps: usize,
}

impl Connection {
    /// Opens a socket in the network namespace of the calling thread.
    pub(super) fn open(protocol: i32) -> io::Result<Self> {
        let protocol = isize::try_from(protocol).map_err(io::Error::other)?;
        Ok(Self {
            protocol,
            socket: open(protocol)?,
            sequence: 0,
            unfinished: false,
            buffer: Vec::with_capacity(BUFFER),
            #[cfg(test)]
            dumps: 0,
        })
    }

    /// Makes a request that changes something; the kernel's refusal is the error.
    pub(super) async fn change(&mut self, request: Request) -> Result<(), Refusal> {
        self.transact(request, |_| {}).await.map(|_| ())
    }

    /// Everything that `parse` makes of the answers to a dump request, as of one moment where the
    /// kernel can tell.
    pub(super) async fn dump<T>(
        &mut self,
        request: &Request,
        mut parse: impl FnMut(&Message<'_>) -> Option<T>,
    ) -> Result<Vec<T>, Refusal> {
        #[cfg(test)]
        {
            self.dumps += 1;
        }
        let mut tries = 0;
        loop {
            let mut found = Vec::new();
            let interrupted = self
                .transact(request.clone(), |message| found.extend(parse(message)))
                .await?;
            tries += 1;
            if !interrupted {
                return Ok(found);
            }
            if tries == DUMP_TRIES {
                tracing::warn!(
                    "a netlink dump was overtaken by changes {tries} times; taken as it is"
                );
                return Ok(found);
            }
        }
    }

    /// Sends `request` and hands every message of the answer to `each`. Says whether the kernel
    /// marked the answer as interrupted by a change.
    async fn transact(
        &mut self,
        request: Request,
        mut each: impl FnMut(&Message<'_>),
    ) -> Result<bool, Refusal> {
        if self.unfinished {
            // The rest of an abandoned answer is in the old socket, which would refuse a second
            // dump with EBUSY.
            self.socket = open(self.protocol)?;
        }
        self.unfinished = true;
        self.sequence = self.sequence.wrapping_add(1);
        let bytes = request.finish(self.sequence);
        self.socket
            .get_ref()
            .send_to(&bytes, &SocketAddr::new(0, 0), 0)?;
        let mut interrupted = false;
        loop {
            receive(&self.socket, &mut self.buffer).await?;
            for message in messages(&self.buffer) {
                if message.sequence != self.sequence {
                    continue;
                }
                interrupted |= message.has(libc::NLM_F_DUMP_INTR);
                match message.kind {
                    DONE | ERROR => {
                        self.unfinished = false;
                        return outcome(&message).map(|()| interrupted);
                    }
                    _ => each(&message),
                }
            }
        }
    }
}

fn open(protocol: isize) -> io::Result<AsyncFd<Socket>> {
    let mut socket = Socket::new(protocol)?;
    socket.bind_auto()?;
    socket.set_non_blocking(true)?;
    socket.set_ext_ack(true)?;
    if protocol == isize::try_from(libc::NETLINK_ROUTE).unwrap_or_default() {
        // Dumps are filtered by table and protocol in the kernel.
        socket.set_netlink_get_strict_chk(true)?;
    }
    registered(socket, Interest::READABLE)
}

/// Registers a socket with the runtime of the calling thread.
pub(super) fn registered(socket: Socket, interest: Interest) -> io::Result<AsyncFd<Socket>> {
    // SAFETY: a `Socket` owns its descriptor, always returns the same, and closes it when dropped.
    let registered = unsafe { AsyncFd::register_with_interest(socket, interest) };
    registered.map_err(io::Error::from)
}

async fn receive(socket: &AsyncFd<Socket>, buffer: &mut Vec<u8>) -> io::Result<()> {
    let len = socket
        .async_io(Interest::READABLE, |socket| {
            buffer.clear();
            socket.recv(buffer, libc::MSG_TRUNC)
        })
        .await?;
    if len > buffer.len() {
        return Err(io::Error::new(
            io::ErrorKind::InvalidData,
            "netlink answer longer than 64 KiB",
        ));
    }
    Ok(())
}

/// What `NLMSG_DONE` or `NLMSG_ERROR` says.
pub(super) fn outcome(message: &Message<'_>) -> Result<(), Refusal> {
    let Some(code) = u32_at(message.payload, 0) else {
        // An NLMSG_DONE without a code, as dumps of old kernels end.
        return Ok(());
    };
    let code = code.cast_signed();
    if code == 0 {
        return Ok(());
    }
    // NLMSG_ERROR repeats the request (its header alone, when capped) before the attributes.
    let request = match message.kind {
        ERROR if message.has(libc::NLM_F_CAPPED) => 16,
        ERROR => u32_at(message.payload, 4)
            .and_then(|len| usize::try_from(len).ok())
            .map_or(16, |len| len.next_multiple_of(4)),
        _ => 0,
    };
    let words = message
        .has(libc::NLM_F_ACK_TLVS)
        .then(|| message.payload.get(4 + request..))
        .flatten()
        .and_then(|rest| attributes(rest).find(|(kind, _)| *kind == EXTENDED_MESSAGE))
        .map(|(_, words)| text(words));
    Err(Refusal {
        error: io::Error::from_raw_os_error(-code),
        words,
    })
}
