//! Sockets handed from process to process (`SCM_RIGHTS`).

use std::io::{IoSlice, IoSliceMut};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use nix::errno::Errno;
use nix::sys::socket::{
    AddressFamily, ControlMessage, ControlMessageOwned, MsgFlags, SockFlag, SockType, UnixAddr,
    bind, recvmsg, sendmsg, socket,
};

use crate::socket::wait_readable;

/// How long one side waits for the other.
const PATIENCE: Duration = Duration::from_secs(5);

fn meeting(name: &str) -> Result<(OwnedFd, UnixAddr)> {
    let address = UnixAddr::new_abstract(name.as_bytes()).context("name of a meeting")?;
    let socket = socket(
        AddressFamily::Unix,
        SockType::Datagram,
        SockFlag::SOCK_CLOEXEC,
        None,
    )
    .context("open a Unix socket")?;
    Ok((socket, address))
}

/// Hands `given` to the process that takes `name`.
pub(crate) fn give(given: &OwnedFd, name: &str) -> Result<Result<(), Errno>> {
    let (socket, address) = meeting(name)?;
    let descriptors = [given.as_raw_fd()];
    let end = Instant::now() + PATIENCE;
    loop {
        let sent = sendmsg(
            socket.as_raw_fd(),
            &[IoSlice::new(b"socket")],
            &[ControlMessage::ScmRights(&descriptors)],
            MsgFlags::empty(),
            Some(&address),
        );
        match sent {
            // Nobody waits there yet.
            Err(Errno::ECONNREFUSED) if Instant::now() < end => {
                std::thread::sleep(Duration::from_millis(2));
            }
            sent => return Ok(sent.map(drop)),
        }
    }
}

/// Waits for a socket that another process gives by `name`.
pub(crate) fn take(name: &str) -> Result<Result<OwnedFd, Errno>> {
    let (socket, address) = meeting(name)?;
    bind(socket.as_raw_fd(), &address).context("wait for a socket")?;
    if let Err(errno) = wait_readable(&socket, PATIENCE) {
        return Ok(Err(errno));
    }
    let mut buffer = [0; 16];
    let mut parts = [IoSliceMut::new(&mut buffer)];
    let mut space = nix::cmsg_space!([i32; 1]);
    let received = recvmsg::<UnixAddr>(
        socket.as_raw_fd(),
        &mut parts,
        Some(&mut space),
        MsgFlags::MSG_CMSG_CLOEXEC,
    );
    let received = match received {
        Ok(received) => received,
        Err(errno) => return Ok(Err(errno)),
    };
    let given = received
        .cmsgs()
        .context("read control messages")?
        .find_map(|message| match message {
            ControlMessageOwned::ScmRights(descriptors) => descriptors.first().copied(),
            _ => None,
        })
        .context("no socket was given")?;
    // SAFETY: the kernel just made this descriptor for us.
    Ok(Ok(unsafe { OwnedFd::from_raw_fd(given) }))
}
