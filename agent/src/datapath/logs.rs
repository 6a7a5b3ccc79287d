//! What the kernel programs say that they decide, passed on to the agent's own log: in builds with the feature
//! `log-programs` alone.
//!
//! The messages come by a ring that is not pinned. Programs that outlive their agent fill it, lose what does not
//! fit, and go on; the next agent's programs have a ring of their own.

use std::{os::fd::AsFd as _, thread};

use aya::{Ebpf, EbpfLoader};
use aya_log::EbpfLogger;
use log::{Log, Metadata, Record};
use nix::{
    errno::Errno,
    poll::{PollFd, PollFlags, PollTimeout, poll},
};
use tracing::{debug, enabled, trace, warn};

use super::error::{Error, Result};

/// What the agent's log filters by.
const TARGET: &str = "steer::programs";

/// Has the programs say what the agent's log shows, and skip the rest.
pub(super) fn ask(loader: &mut EbpfLoader<'_>) {
    loader.override_global(aya_log::LEVEL, wanted(), true);
}

/// A level as the programs know it. The kernel leaves the code out that nothing leads to.
fn wanted() -> &'static u8 {
    if enabled!(target: TARGET, tracing::Level::TRACE) {
        &(aya_log::Level::Trace as u8)
    } else if enabled!(target: TARGET, tracing::Level::DEBUG) {
        &(aya_log::Level::Debug as u8)
    } else {
        &0
    }
}

/// Logs what the programs of `object` say, on a thread that ends with the agent: however much they say, it does not
/// keep the agent's loop from its work.
pub(super) fn follow(object: &mut Ebpf) -> Result<()> {
    if *wanted() == 0 {
        return Ok(());
    }
    let mut logger = EbpfLogger::init_with_logger(object, ToTracing).map_err(Error::ProgramLogs)?;
    let read = move || loop {
        let mut ring = [PollFd::new(logger.as_fd(), PollFlags::POLLIN)];
        match poll(&mut ring, PollTimeout::NONE) {
            Ok(_) => logger.flush(),
            Err(Errno::EINTR) => {}
            Err(error) => {
                warn!(%error, "what the kernel programs say is not logged any more");
                return;
            }
        }
    };
    thread::Builder::new()
        .name("programs' log".to_owned())
        .spawn(read)
        .map(drop)
        .map_err(Error::kernel(
            "start a thread for",
            "the kernel programs' log",
        ))
}

/// Gives records of the crate that aya logs by to the one that the agent logs by.
struct ToTracing;

impl Log for ToTracing {
    fn enabled(&self, _: &Metadata<'_>) -> bool {
        true
    }

    fn log(&self, record: &Record<'_>) {
        match record.level() {
            log::Level::Trace => trace!(target: TARGET, "{}", record.args()),
            _ => debug!(target: TARGET, "{}", record.args()),
        }
    }

    fn flush(&self) {}
}
