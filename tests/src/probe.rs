//! Driving `steer-probe`, the program that sends traffic in every way a program can.

use std::io::{BufRead, BufReader, Write};
use std::net::{IpAddr, SocketAddr};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

use anyhow::{Context, Result, ensure};

use crate::cgroup::LabCgroup;
use crate::executable;
use crate::lab::Lab;
use crate::namespace::Namespace;
use crate::report::{ECHO_PORT, Report};
use crate::user::User;

/// How the probe sends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A TCP connection.
    Tcp,
    /// UDP after `connect`.
    UdpConnected,
    /// UDP by `sendto`.
    UdpUnconnected,
    /// An ICMP echo by a datagram ("ping") socket.
    Ping,
    /// An ICMP echo by a raw socket.
    Raw,
}

impl Kind {
    /// All of them.
    pub const ALL: [Self; 5] = [
        Self::Tcp,
        Self::UdpConnected,
        Self::UdpUnconnected,
        Self::Ping,
        Self::Raw,
    ];

    fn name(self) -> &'static str {
        match self {
            Self::Tcp => "tcp",
            Self::UdpConnected | Self::UdpUnconnected => "udp",
            Self::Ping => "ping",
            Self::Raw => "raw",
        }
    }

    /// Whether its answers come from the laboratory's servers (an echo's come from the kernel).
    pub fn is_answered_by_server(self) -> bool {
        matches!(self, Self::Tcp | Self::UdpConnected | Self::UdpUnconnected)
    }
}

/// Which family the probe's socket has, and what it sends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Family {
    /// `AF_INET`.
    V4,
    /// `AF_INET6`.
    V6,
    /// `AF_INET6` with v4-mapped addresses.
    Mapped,
}

impl Family {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::V4, Self::V6, Self::Mapped];

    /// Whether a socket of `kind` can have it: ping and raw sockets take no v4-mapped addresses.
    pub fn suits(self, kind: Kind) -> bool {
        self != Self::Mapped || kind.is_answered_by_server()
    }

    fn name(self) -> &'static str {
        match self {
            Self::V4 => "4",
            Self::V6 => "6",
            Self::Mapped => "mapped",
        }
    }

    /// A fresh destination of this family in `lab`.
    pub fn target(self, lab: &Lab) -> IpAddr {
        match self {
            Self::V6 => lab.target6(),
            Self::V4 | Self::Mapped => lab.target4(),
        }
    }
}

/// A run of the probe: a socket and the operations on it, each of which yields a [`Report`].
#[derive(Clone, Debug)]
pub struct Probe {
    kind: String,
    family: Family,
    operations: Vec<String>,
}

impl Probe {
    /// A probe that opens a socket and does nothing yet.
    pub fn new(kind: Kind, family: Family) -> Self {
        Self::named(kind.name(), family)
    }

    /// A probe of a kind outside the matrix: `raw-udp` (UDP header by hand), `header` (IP header by
    /// hand, `IP_HDRINCL`), `packet` (`AF_PACKET`).
    pub fn named(kind: &str, family: Family) -> Self {
        Self {
            kind: kind.to_owned(),
            family,
            operations: Vec::new(),
        }
    }

    /// A complete flow to `target`: `connect` where the kind does, one token sent, its answer awaited.
    pub fn flow(kind: Kind, family: Family, target: IpAddr) -> Self {
        let to = SocketAddr::new(target, ECHO_PORT);
        let probe = Self::new(kind, family);
        match kind {
            Kind::Tcp | Kind::UdpConnected => probe
                .then(&format!("connect {to}"))
                .then(&format!("send token-{target}")),
            Kind::UdpUnconnected | Kind::Ping | Kind::Raw => {
                probe.then(&format!("send token-{target} {to}"))
            }
        }
    }

    /// Adds an operation at the end. See the probe's `--help` for all.
    #[must_use]
    pub fn then(mut self, operation: &str) -> Self {
        self.operations.push(operation.to_owned());
        self
    }

    /// Adds an operation at the beginning, just after the socket is made.
    #[must_use]
    pub fn first(mut self, operation: &str) -> Self {
        self.operations.insert(0, operation.to_owned());
        self
    }

    /// Runs it at the host in `cgroup` and returns the reports of all operations, `open` first.
    ///
    /// # Errors
    /// If it cannot be run. A refused operation is in its report.
    pub fn run(&self, lab: &Lab, cgroup: &LabCgroup) -> Result<Vec<Report>> {
        let mut session = self.start(lab, cgroup)?;
        session.finish()
    }

    /// Runs it and returns the last report.
    ///
    /// # Errors
    /// As [`Probe::run`].
    pub fn last(&self, lab: &Lab, cgroup: &LabCgroup) -> Result<Report> {
        self.run(lab, cgroup)?
            .pop()
            .context("the probe reported nothing")
    }

    /// Runs it and returns the last report, which must say that all went well.
    ///
    /// # Errors
    /// If an operation failed.
    pub fn succeed(&self, lab: &Lab, cgroup: &LabCgroup) -> Result<Report> {
        let mut reports = self.run(lab, cgroup)?;
        ensure!(
            reports.iter().all(|report| report.ok),
            "{self:?} failed: {reports:#?}"
        );
        reports.pop().context("the probe reported nothing")
    }

    /// Starts it at the host in `cgroup`; further operations can be asked for one by one.
    ///
    /// # Errors
    /// If it cannot be started.
    pub fn start(&self, lab: &Lab, cgroup: &LabCgroup) -> Result<Session> {
        let mut command = lab.host().command(executable::probe()?);
        cgroup.place(&mut command)?;
        self.session(command)
    }

    /// Starts it at the host by `steer run --via VIA MORE -- steer-probe ..`.
    ///
    /// # Errors
    /// If it cannot be started.
    pub fn start_by_run(&self, lab: &Lab, via: &str, more: &[&str]) -> Result<Session> {
        let mut command = lab.host().command(executable::steer()?);
        lab.cgroup().child("cli")?.place(&mut command)?;
        command
            .args(["run", "--via", via])
            .args(more)
            .arg("--")
            .arg(executable::probe()?);
        self.session(command)
    }

    /// Starts it at the host in `cgroup` as a user; with `via` by `steer run --via VIA MORE`.
    ///
    /// # Errors
    /// If it cannot be started.
    pub fn start_as(
        &self,
        lab: &Lab,
        user: &User,
        cgroup: &LabCgroup,
        via: Option<(&str, &[&str])>,
    ) -> Result<Session> {
        let probe = lab.probe_of_users()?;
        let command = match via {
            Some((via, more)) => {
                let args = [&["run", "--via", via], more, &["--", probe]].concat();
                lab.steer_command(user, cgroup, &args)?
            }
            None => {
                let mut command = lab.command(probe, cgroup)?;
                user.become_by(&mut command);
                command
            }
        };
        self.session(command)
    }

    /// Starts it in any namespace, such as a peer's, outside every cgroup of the laboratory.
    ///
    /// # Errors
    /// If it cannot be started.
    pub fn start_in(&self, namespace: &Namespace) -> Result<Session> {
        self.session(namespace.command(executable::probe()?))
    }

    /// Starts it by a command line that ends in its name. `meanwhile` happens before it is waited for.
    ///
    /// # Errors
    /// If it cannot be started, or `meanwhile` fails.
    pub fn start_by(
        &self,
        command: Command,
        meanwhile: impl FnOnce() -> Result<()>,
    ) -> Result<Session> {
        let mut session = self.spawn(command)?;
        meanwhile()?;
        self.open(&mut session)?;
        Ok(session)
    }

    fn session(&self, command: Command) -> Result<Session> {
        let mut session = self.spawn(command)?;
        self.open(&mut session)?;
        Ok(session)
    }

    fn spawn(&self, mut command: Command) -> Result<Session> {
        let mut child = command
            .args([self.kind.as_str(), self.family.name()])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .context("start steer-probe")?;
        let input = child.stdin.take().context("the probe's standard input")?;
        let output = BufReader::new(child.stdout.take().context("the probe's standard output")?);
        Ok(Session {
            child,
            input: Some(input),
            output,
            reports: Vec::new(),
        })
    }

    fn open(&self, session: &mut Session) -> Result<()> {
        let opened = session.read()?;
        session.reports.push(opened);
        for operation in &self.operations {
            let report = session.perform(operation)?;
            session.reports.push(report);
        }
        Ok(())
    }
}

/// A running probe that performs operations one by one.
#[derive(Debug)]
pub struct Session {
    child: Child,
    input: Option<ChildStdin>,
    output: BufReader<ChildStdout>,
    reports: Vec<Report>,
}

impl Session {
    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Reports of the operations that it was started with, `open` first.
    pub fn reports(&self) -> &[Report] {
        &self.reports
    }

    /// Performs one operation and waits for its report.
    ///
    /// # Errors
    /// If the probe has ended.
    pub fn perform(&mut self, operation: &str) -> Result<Report> {
        self.ask(operation)?;
        self.read()
            .with_context(|| format!("operation: {operation}"))
    }

    /// Performs one operation that must succeed.
    ///
    /// # Errors
    /// If it does not.
    pub fn succeed(&mut self, operation: &str) -> Result<Report> {
        let report = self.perform(operation)?;
        ensure!(report.ok, "{operation}: {report:?}");
        Ok(report)
    }

    /// Asks for an operation without waiting for its report.
    ///
    /// # Errors
    /// If the probe has ended.
    pub fn ask(&mut self, operation: &str) -> Result<()> {
        let input = self
            .input
            .as_mut()
            .context("the probe was told to finish")?;
        writeln!(input, "{operation}").context("write to steer-probe")
    }

    /// The next report.
    ///
    /// # Errors
    /// If the probe has ended.
    pub fn read(&mut self) -> Result<Report> {
        let mut line = String::new();
        self.output
            .read_line(&mut line)
            .context("read from steer-probe")?;
        serde_json::from_str(&line).with_context(|| format!("steer-probe printed {line:?}"))
    }

    /// Ends it and returns the reports of the operations that it was started with.
    ///
    /// # Errors
    /// If it failed.
    pub fn finish(&mut self) -> Result<Vec<Report>> {
        drop(self.input.take());
        let status = self.child.wait().context("wait for steer-probe")?;
        ensure!(status.success(), "steer-probe: {status}");
        Ok(std::mem::take(&mut self.reports))
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        drop(self.input.take());
        // It may have ended by itself; there is nothing left to do then.
        drop(self.child.kill());
        drop(self.child.wait());
    }
}
