//! Sending by `io_uring`, where no system call of the socket's own is made.

use std::os::fd::{AsRawFd, OwnedFd};

use anyhow::{Context, Result};
use io_uring::{IoUring, opcode, types};
use nix::errno::Errno;

use crate::control::Prepared;

/// Sends a message. `ENOSYS` and `EPERM` also say that the kernel allows no ring.
pub(crate) fn send(socket: &OwnedFd, message: &Prepared) -> Result<Result<(), Errno>> {
    let mut ring = match IoUring::new(4) {
        Ok(ring) => ring,
        Err(error) => {
            let errno = error.raw_os_error().context("make a ring")?;
            return Ok(Err(Errno::from_raw(errno)));
        }
    };
    // IOSQE_ASYNC: by a worker of the kernel, and not by the calling thread.
    let entry = opcode::SendMsg::new(types::Fd(socket.as_raw_fd()), message.header())
        .build()
        .flags(io_uring::squeue::Flags::ASYNC);
    // SAFETY: the message and what it points to live until the completion was seen below.
    unsafe { ring.submission().push(&entry) }.context("queue a message")?;
    ring.submit_and_wait(1).context("submit a message")?;
    let result = ring.completion().next().context("no completion")?.result();
    Ok(if result < 0 {
        Err(Errno::from_raw(-result))
    } else {
        Ok(())
    })
}
