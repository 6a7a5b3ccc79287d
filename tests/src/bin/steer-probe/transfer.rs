//! Much of a text whose every place can be told, sent and compared.

use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

use anyhow::{Context, Result};
use nix::errno::Errno;
use nix::sys::socket::{MsgFlags, SockaddrStorage, connect, recv, recvfrom, send};
use steer_tests::report::Report;

use crate::probe::Attempt;
use crate::socket;

/// Length of the text before it begins again: a prime number, so that no two segments or buffers are alike.
const TEXT: usize = 1_000_003;
/// Bytes of one write.
const STREAM: usize = 1 << 18;
/// Bytes of one datagram, which segmentation may cut, and which is acknowledged before the next.
const DATAGRAM: usize = 56_000;

/// Waits for a connection, or connects to who sends the first datagram.
pub(crate) fn accept(
    socket: &OwnedFd,
    is_stream: bool,
    report: &mut Report,
) -> Result<Option<OwnedFd>, Errno> {
    if is_stream {
        let fd = nix::sys::socket::accept(socket.as_raw_fd())?;
        // SAFETY: accept just returned this descriptor, which nothing else owns.
        let connection = unsafe { OwnedFd::from_raw_fd(fd) };
        let peer = nix::sys::socket::getpeername::<SockaddrStorage>(connection.as_raw_fd())?;
        report.peer = socket::address(&peer);
        return Ok(Some(connection));
    }
    let (_, from) = recvfrom::<SockaddrStorage>(socket.as_raw_fd(), &mut [0; 64])?;
    let from = from.ok_or(Errno::EDESTADDRREQ)?;
    report.peer = socket::address(&from);
    connect(socket.as_raw_fd(), &from)?;
    Ok(None)
}

/// Sends `bytes` of the text.
pub(crate) fn pump(socket: &OwnedFd, is_stream: bool, bytes: u64, report: &mut Report) -> Attempt {
    let (text, fd) = (text(), socket.as_raw_fd());
    let chunk = if is_stream { STREAM } else { DATAGRAM };
    while report.tried < bytes {
        let part = part(&text, report.tried, bytes, chunk)?;
        match send(fd, part, MsgFlags::MSG_NOSIGNAL) {
            Ok(length) => report.tried += u64::try_from(length)?,
            Err(errno) => return Ok(Err(errno)),
        }
        if !is_stream && let Err(errno) = recv(fd, &mut [0; 8], MsgFlags::empty()) {
            return Ok(Err(errno));
        }
    }
    Ok(Ok(()))
}

/// Receives `bytes` of the text, and compares each.
pub(crate) fn gulp(socket: &OwnedFd, is_stream: bool, bytes: u64, report: &mut Report) -> Attempt {
    let (text, fd) = (text(), socket.as_raw_fd());
    let mut buffer = vec![0; 1 << 18];
    let mut since_acknowledged = 0;
    while report.tried < bytes {
        let length = match recv(fd, &mut buffer, MsgFlags::empty()) {
            Ok(0) => return Ok(Err(Errno::EPIPE)),
            Ok(length) => length,
            Err(errno) => return Ok(Err(errno)),
        };
        let right = part(&text, report.tried, bytes, length)?;
        if buffer[..length] != *right {
            report.failed = 1;
            return Ok(Err(Errno::EBADMSG));
        }
        report.tried += u64::try_from(length)?;
        since_acknowledged += length;
        if !is_stream && (since_acknowledged == DATAGRAM || report.tried == bytes) {
            since_acknowledged = 0;
            if let Err(errno) = send(fd, b"ok", MsgFlags::MSG_NOSIGNAL) {
                return Ok(Err(errno));
            }
        }
    }
    Ok(Ok(()))
}

/// The text twice, so that a part of it is in one piece wherever it begins.
fn text() -> Vec<u8> {
    // Marsaglia's xorshift.
    let mut state = 0x2545_f491_4f6c_dd1d_u64;
    let once = std::iter::repeat_with(|| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()[3]
    });
    let once: Vec<u8> = once.take(TEXT).collect();
    [once.as_slice(), once.as_slice()].concat()
}

/// At most `length` bytes of the text from `place` on, of which `bytes` are sent in all.
fn part(text: &[u8], place: u64, bytes: u64, length: usize) -> Result<&[u8]> {
    let left = usize::try_from(bytes - place).context("bytes left")?;
    let from = usize::try_from(place % TEXT as u64).context("place in the text")?;
    text.get(from..from + length.min(left))
        .context("a part of the text")
}
