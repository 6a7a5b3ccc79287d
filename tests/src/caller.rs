//! A user's own client of the API: a process that connects, and the connection, which goes on without it.

use std::io::{self, Read, Write};
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::process::{Child, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use nix::sys::socket::{AddressFamily, SockFlag, SockType, UnixAddr, connect, socket};
use serde_json::{Value, json};

use crate::cgroup::LabCgroup;
use crate::lab::Lab;
use crate::user::User;

const SOCKET: &str = "/run/steer/agent.sock";
const INTERFACE: &str = "net.steer.Agent";

/// How long an answer may take.
const DEADLINE: Duration = Duration::from_secs(20);

/// A process that has connected to the agent, and its connection.
#[derive(Debug)]
pub struct Caller {
    process: Option<Child>,
    pid: u32,
    stream: UnixStream,
    read: Vec<u8>,
}

impl Caller {
    /// Starts one as a user, in `cgroup`.
    ///
    /// # Errors
    /// If it cannot be started, or nobody listens.
    pub fn start(lab: &Lab, user: &User, cgroup: &LabCgroup) -> Result<Self> {
        let (family, kind) = (AddressFamily::Unix, SockType::Stream);
        let socket = socket(family, kind, SockFlag::SOCK_CLOEXEC, None).context("make a socket")?;
        let address = UnixAddr::new(SOCKET).context("the agent's address")?;
        let mut command = lab.command("cat", cgroup)?;
        command.stdin(Stdio::piped()).stdout(Stdio::null());
        user.become_by(&mut command);
        let at: RawFd = socket.as_raw_fd();
        let connects = move || connect(at, &address).map_err(io::Error::from);
        // SAFETY: between fork and exec the closure makes one system call, on a descriptor that is open
        // until the program starts.
        unsafe {
            command.pre_exec(connects);
        }
        let process = command.spawn().context("start a caller")?;
        let stream = UnixStream::from(socket);
        stream.set_read_timeout(Some(DEADLINE))?;
        stream.set_write_timeout(Some(DEADLINE))?;
        Ok(Self {
            pid: process.id(),
            process: Some(process),
            stream,
            read: Vec::new(),
        })
    }

    /// Id of the process that connected, also when it has ended.
    pub fn pid(&self) -> u32 {
        self.pid
    }

    /// Ends the process that connected. The connection stays.
    ///
    /// # Errors
    /// If it cannot be waited for.
    pub fn end(&mut self) -> Result<()> {
        if let Some(mut process) = self.process.take() {
            process.kill().context("end a caller")?;
            process.wait().context("wait for a caller")?;
        }
        Ok(())
    }

    /// Starts processes as `user` in `cgroup` until one has the id of the caller's process, which has ended.
    ///
    /// # Errors
    /// If none gets it in time.
    pub fn reuse_pid(&self, lab: &Lab, user: &User, cgroup: &LabCgroup) -> Result<Child> {
        ensure!(self.process.is_none(), "it has its id still");
        crate::wait::until("a process with the id of the caller", || {
            std::fs::write("/proc/sys/kernel/ns_last_pid", (self.pid - 1).to_string())
                .context("choose the next process id")?;
            let mut command = lab.command("cat", cgroup)?;
            command.stdin(Stdio::piped()).stdout(Stdio::null());
            user.become_by(&mut command);
            let mut child = command.spawn().context("start a process")?;
            if child.id() == self.pid {
                return Ok(Some(child));
            }
            child.kill()?;
            child.wait()?;
            Ok(None)
        })
    }

    /// Sends what may be a call.
    ///
    /// # Errors
    /// If the agent does not take it.
    pub fn say(&mut self, bytes: &[u8]) -> Result<()> {
        self.stream.write_all(bytes).context("write to the agent")
    }

    /// Sends a call. `more`: with parts of the answer.
    ///
    /// # Errors
    /// If the agent does not take it.
    pub fn ask(&mut self, method: &str, parameters: &Value, more: bool) -> Result<()> {
        let method = format!("{INTERFACE}.{method}");
        let call = json!({"method": method, "parameters": parameters, "more": more});
        self.say(format!("{call}\0").as_bytes())
    }

    /// Calls, and waits for the answer.
    ///
    /// # Errors
    /// If there is none in time.
    pub fn call(&mut self, method: &str, parameters: &Value) -> Result<Value> {
        self.ask(method, parameters, false)?;
        let answer = self.answer()?;
        answer.with_context(|| format!("the agent hung up at {method} {parameters}"))
    }

    /// The next answer; none if the agent has hung up.
    ///
    /// # Errors
    /// If there is none in time, or it is not JSON.
    pub fn answer(&mut self) -> Result<Option<Value>> {
        loop {
            if let Some(end) = self.read.iter().position(|byte| *byte == 0) {
                let message: Vec<u8> = self.read.drain(..=end).collect();
                return Ok(Some(serde_json::from_slice(&message[..end])?));
            }
            let mut bytes = [0; 4096];
            match self.stream.read(&mut bytes) {
                Ok(0) => return Ok(None),
                Ok(length) => self.read.extend_from_slice(&bytes[..length]),
                Err(e) if e.kind() == io::ErrorKind::ConnectionReset => return Ok(None),
                Err(e) => bail!("no answer: {e}"),
            }
        }
    }
}

impl Drop for Caller {
    fn drop(&mut self) {
        // It may have ended by itself.
        drop(self.end());
    }
}
