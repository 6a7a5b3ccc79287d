//! Terminals for programs that ask on the one that controls them.

use std::fs::File;
use std::io::{self, Read as _, Write as _};
use std::os::fd::{AsFd as _, AsRawFd as _, OwnedFd};
use std::os::unix::process::CommandExt as _;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::pty::openpty;
use nix::sys::signal::{SigHandler, Signal, signal};
use nix::unistd::setsid;

/// How long a program may take to print something.
const DEADLINE: Duration = Duration::from_secs(10);

/// A terminal, and what was printed on it.
#[derive(Debug)]
pub struct Terminal {
    master: File,
    slave: OwnedFd,
    printed: String,
}

impl Terminal {
    /// A terminal that controls nothing yet.
    ///
    /// # Errors
    /// If there is none to be had.
    pub fn new() -> Result<Self> {
        let pty = openpty(None, None).context("open a terminal")?;
        Ok(Self {
            master: pty.master.into(),
            slave: pty.slave,
            printed: String::new(),
        })
    }

    /// The terminal as a program's output.
    ///
    /// # Errors
    /// If no descriptor is left.
    pub fn output(&self) -> Result<Stdio> {
        let slave = self.slave.try_clone().context("keep the terminal")?;
        Ok(slave.into())
    }

    /// Makes it the terminal that controls the program, one without colours.
    pub fn control(&self, command: &mut Command) {
        command.env("TERM", "dumb");
        let slave = self.slave.as_raw_fd();
        let take = move || -> io::Result<()> {
            setsid()?;
            // A shell that runs the tests in the background has it ignored.
            // SAFETY: no handler is set.
            unsafe { signal(Signal::SIGINT, SigHandler::SigDfl) }?;
            // SAFETY: an open terminal, and a number.
            if unsafe { libc::ioctl(slave, libc::TIOCSCTTY, 0) } < 0 {
                return Err(io::Error::last_os_error());
            }
            Ok(())
        };
        // SAFETY: between fork and exec the closure makes system calls only.
        unsafe { command.pre_exec(take) };
    }

    /// No terminal controls the program.
    pub fn none(command: &mut Command) {
        // SAFETY: between fork and exec the closure makes a system call only.
        unsafe { command.pre_exec(|| setsid().map(|_| ()).map_err(io::Error::from)) };
    }

    /// Types something.
    ///
    /// # Errors
    /// If the terminal is gone.
    pub fn type_in(&mut self, text: &str) -> Result<()> {
        let typed = self.master.write_all(text.as_bytes());
        typed.context("type on the terminal")
    }

    /// Waits until something is printed, and returns all since the last time.
    ///
    /// # Errors
    /// If it is not printed in time, with what is there instead.
    pub fn wait_for(&mut self, wanted: &str) -> Result<String> {
        let start = Instant::now();
        let mut buffer = [0; 4096];
        while !self.printed.contains(wanted) {
            let left = DEADLINE.saturating_sub(start.elapsed());
            let mut ready = [PollFd::new(self.master.as_fd(), PollFlags::POLLIN)];
            let timeout = PollTimeout::try_from(left).unwrap_or(PollTimeout::ZERO);
            if poll(&mut ready, timeout).context("wait for the terminal")? == 0 {
                bail!("no `{wanted}` on the terminal: {:?}", self.printed);
            }
            let length = self.master.read(&mut buffer);
            let length = length.context("read from the terminal")?;
            ensure!(length > 0, "the terminal ended: {:?}", self.printed);
            let text = buffer.get(..length).unwrap_or_default();
            self.printed
                .push_str(&String::from_utf8_lossy(text).replace('\r', ""));
        }
        Ok(std::mem::take(&mut self.printed))
    }
}
