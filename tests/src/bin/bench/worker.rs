//! A process that sends: this program again, inside a laboratory and one of its cgroups.

use std::io::{BufRead, BufReader, Write};
use std::net::{IpAddr, Ipv6Addr, TcpListener};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::process::{Child, ChildStdin, ChildStdout, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use nix::fcntl::{FcntlArg, FdFlag, fcntl};
use nix::libc;
use nix::sched::{CpuSet, sched_getaffinity, sched_setaffinity};
use nix::unistd::Pid;
use steer_tests::{Lab, LabCgroup, SERVER4};

use crate::clock::monotonic;
use crate::kept::Kept;
use crate::workload::{Workload, port, source_now};

/// First argument of a worker.
pub(crate) const COMMAND: &str = "worker";
/// How long a decision may take to change before the bench gives up.
const PATIENCE: Duration = Duration::from_secs(20);

/// How often a watching worker opens a flow.
const RESOLUTION: Duration = Duration::from_micros(100);

/// A worker of the bench; it ends when this is dropped.
#[derive(Debug)]
pub(crate) struct Worker {
    child: Child,
    input: Option<ChildStdin>,
    output: BufReader<ChildStdout>,
}

impl Worker {
    /// Starts one at `lab`'s host in `cgroup`; its TCP servers stand behind `uplinks`, so that a flow that
    /// leaves by another fails instead of being measured.
    pub(crate) fn start(lab: &Lab, cgroup: &LabCgroup, uplinks: &[&str]) -> Result<Self> {
        // Made by this process, so that the servers' ends belong to no policy.
        let listeners = servers(lab, uplinks)?;
        let descriptors = listeners.iter().map(|one| one.as_raw_fd().to_string());
        let descriptors: Vec<_> = descriptors.collect();
        let program = std::env::current_exe().context("find the running program")?;
        let mut command = lab.host().command(program);
        cgroup.place(&mut command)?;
        let inherit = move || {
            for listener in &listeners {
                fcntl(listener, FcntlArg::F_SETFD(FdFlag::empty()))?;
            }
            Ok(())
        };
        // SAFETY: between fork and exec the closure makes system calls (fcntl) on descriptors that it
        // owns; it neither allocates nor takes locks.
        unsafe {
            command.pre_exec(inherit);
        }
        let mut child = command
            .arg(COMMAND)
            .args(descriptors)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .context("start a worker")?;
        let input = child.stdin.take().context("the worker's standard input")?;
        let output = BufReader::new(
            child
                .stdout
                .take()
                .context("the worker's standard output")?,
        );
        Ok(Self {
            child,
            input: Some(input),
            output,
        })
    }

    /// Sends a burst and returns the CPU time of one unit, in nanoseconds.
    pub(crate) fn burst(&mut self, workload: Workload) -> Result<f64> {
        self.perform(workload.name())?
            .parse()
            .context("a worker's answer")
    }

    /// Has it begin the flows that it keeps.
    pub(crate) fn begin(&mut self) -> Result<()> {
        let answer = self.perform("begin")?;
        ensure!(answer == "begun", "a worker answered {answer:?}");
        Ok(())
    }

    /// Waits until the kept connection is there; the source that its server sees.
    pub(crate) fn finish(&mut self) -> Result<IpAddr> {
        self.perform("finish")?.parse().context("a source")
    }

    /// The source that a flow to the server would have now.
    pub(crate) fn source(&mut self) -> Result<Option<IpAddr>> {
        let answer = self.perform("source")?;
        if answer == "none" {
            Ok(None)
        } else {
            Ok(Some(answer.parse().context("a source")?))
        }
    }

    /// Tells it to open flows until one has `source`; [`Worker::when`] says when that was.
    pub(crate) fn watch(&mut self, source: IpAddr) -> Result<()> {
        self.tell(&format!("until {source}"))?;
        let answer = self.answer()?;
        ensure!(answer == "watching", "a worker answered {answer:?}");
        Ok(())
    }

    /// The monotonic time of the first flow with the source that was waited for.
    pub(crate) fn when(&mut self) -> Result<Duration> {
        let nanoseconds = self.answer()?.parse().context("a worker's time")?;
        Ok(Duration::from_nanos(nanoseconds))
    }

    fn perform(&mut self, command: &str) -> Result<String> {
        self.tell(command)?;
        self.answer()
    }

    fn tell(&mut self, command: &str) -> Result<()> {
        let input = self
            .input
            .as_mut()
            .context("the worker was told to finish")?;
        writeln!(input, "{command}").context("write to a worker")
    }

    fn answer(&mut self) -> Result<String> {
        let mut line = String::new();
        self.output
            .read_line(&mut line)
            .context("read from a worker")?;
        ensure!(!line.is_empty(), "a worker ended");
        Ok(line.trim_end().to_owned())
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        drop(self.input.take());
        // It may have ended by itself; there is nothing left to do then.
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

/// TCP servers behind `uplinks`, all with one port.
fn servers(lab: &Lab, uplinks: &[&str]) -> Result<Vec<TcpListener>> {
    let mut servers = Vec::new();
    for uplink in uplinks {
        let port = if servers.is_empty() {
            0
        } else {
            port(&servers)?
        };
        let open = || TcpListener::bind((Ipv6Addr::UNSPECIFIED, port)).context("open a TCP server");
        servers.push(lab.peer(uplink)?.run(open)?);
    }
    Ok(servers)
}

/// A worker's life: a command a line, an answer a line.
pub(crate) fn serve(arguments: &[String]) -> Result<()> {
    ensure!(
        !arguments.is_empty(),
        "a worker is started by the bench only"
    );
    let listeners = arguments
        .iter()
        .map(|descriptor| {
            let descriptor: i32 = descriptor.parse().context("a listener's descriptor")?;
            // SAFETY: the bench left this descriptor open for the worker alone.
            Ok(TcpListener::from(unsafe {
                OwnedFd::from_raw_fd(descriptor)
            }))
        })
        .collect::<Result<Vec<_>>>()?;
    let mut kept: Option<Kept> = None;
    pin_to_one_cpu()?;
    let input = std::io::stdin().lock();
    let mut output = std::io::stdout().lock();
    for line in input.lines() {
        let line = line.context("read a command")?;
        if let Some(source) = line.strip_prefix("until ") {
            let source = source.parse().context("source address")?;
            writeln!(output, "watching").context("answer")?;
            let when = watch(source)?.as_nanos();
            writeln!(output, "{when}").context("answer")?;
        } else if line == "source" {
            match source_now(SERVER4)? {
                Some(source) => writeln!(output, "{source}"),
                None => writeln!(output, "none"),
            }
            .context("answer")?;
        } else if line == "begin" {
            kept = Some(Kept::begin(port(&listeners)?)?);
            writeln!(output, "begun").context("answer")?;
        } else if line == "finish" {
            let kept = kept.as_mut().context("finish before begin")?;
            let source = kept.finish(&listeners)?;
            writeln!(output, "{source}").context("answer")?;
        } else {
            let workload = Workload::from_name(&line).context("unknown command")?;
            let spent = workload.run(workload.burst(), &listeners, kept.as_ref())?;
            writeln!(output, "{spent}").context("answer")?;
        }
    }
    Ok(())
}

fn watch(source: IpAddr) -> Result<Duration> {
    let end = Instant::now() + PATIENCE;
    loop {
        if source_now(SERVER4)? == Some(source) {
            return monotonic();
        }
        ensure!(
            Instant::now() < end,
            "no flow from {source} within {PATIENCE:?}"
        );
        // The agent may need this CPU.
        std::thread::sleep(RESOLUTION);
    }
}

/// All workers share one CPU, the last that this process may use, and are preempted as little as root
/// can have it.
fn pin_to_one_cpu() -> Result<()> {
    let allowed = sched_getaffinity(Pid::this()).context("read the allowed CPUs")?;
    let last = (0..CpuSet::count())
        .rev()
        .find(|&cpu| allowed.is_set(cpu).unwrap_or(false))
        .context("no CPU is allowed")?;
    let mut one = CpuSet::new();
    one.set(last).context("choose a CPU")?;
    sched_setaffinity(Pid::this(), &one).context("stay on one CPU")?;
    // SAFETY: plain numbers. Where it is refused the bench is only noisier.
    unsafe { libc::setpriority(libc::PRIO_PROCESS, 0, -20) };
    Ok(())
}
