//! The agent under test and its command line, run at the laboratory's host.

use std::fs;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

use crate::cgroup::LabCgroup;
use crate::executable;
use crate::lab::Lab;
use crate::terminal::Terminal;
use crate::wait;

/// How long the agent may take to load its programs and answer.
const READY: Duration = Duration::from_secs(20);
/// How long it may take to end when told to.
const STOPPED: Duration = Duration::from_secs(10);

/// A running agent. It is killed when this is dropped; what it left in the kernel ends with the laboratory.
#[derive(Debug)]
pub struct Agent<'lab> {
    lab: &'lab Lab,
    program: PathBuf,
    /// Where it is started; a cgroup of its own by default.
    cgroup: LabCgroup,
    child: Option<Child>,
    /// Without a name, so that it goes with the last process that has it open.
    log: fs::File,
    /// Where it is to say how it does, as systemd asks for it.
    notify: Option<PathBuf>,
    /// What it is to log, if not what it does unasked.
    logs: Option<String>,
}

/// What a command printed, and how it ended.
#[derive(Clone, Debug)]
pub struct Output {
    /// The command line, for messages.
    pub command: String,
    /// Exit code; 128 + n for signal n.
    pub code: i32,
    /// Standard output.
    pub stdout: String,
    /// Standard error.
    pub stderr: String,
}

impl Output {
    /// Runs a command `steer ARGS` to its end.
    ///
    /// # Errors
    /// If it cannot be started.
    pub fn of(command: &mut Command, args: &[&str]) -> Result<Self> {
        let words = format!("steer {}", args.join(" "));
        // What is asked is not to be asked of who runs the tests.
        Terminal::none(command);
        let output = command.output().with_context(|| format!("start {words}"))?;
        Ok(Self {
            command: words,
            code: exit_code(output.status),
            stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
            stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
        })
    }

    /// Its standard output if the code is 0.
    ///
    /// # Errors
    /// If the code is another, with what was printed.
    pub fn success(&self) -> Result<&str> {
        ensure!(self.code == 0, "{self:#?}");
        Ok(&self.stdout)
    }

    /// Its standard output in one line: what it prints is laid out for a terminal.
    pub fn unwrapped(&self) -> String {
        let words: Vec<_> = self.stdout.split_whitespace().collect();
        words.join(" ")
    }

    /// Its standard output as JSON if the code is 0.
    ///
    /// # Errors
    /// As [`Output::success`], or if it is not JSON.
    pub fn json(&self) -> Result<Value> {
        serde_json::from_str(self.success()?)
            .with_context(|| format!("{} printed no JSON: {}", self.command, self.stdout))
    }

    /// Its standard error if the code is `code`.
    ///
    /// # Errors
    /// If the code is another.
    pub fn failure(&self, code: i32) -> Result<&str> {
        ensure!(self.code == code, "should end with code {code}: {self:#?}");
        Ok(&self.stderr)
    }
}

impl Lab {
    /// Writes `/etc/steer/steer.toml`: `[agent]` with this laboratory's `cgroup-root`, then `text`.
    ///
    /// # Errors
    /// If it cannot be written.
    pub fn configure(&self, text: &str) -> Result<()> {
        self.configure_agent("", text)
    }

    /// [`Lab::configure`] with further keys of `[agent]`.
    ///
    /// # Errors
    /// If it cannot be written.
    pub fn configure_agent(&self, agent: &str, text: &str) -> Result<()> {
        let root = self.cgroup().path().display();
        let text = format!("[agent]\ncgroup-root = \"{root}\"\n{agent}\n{text}");
        self.write_file("/etc/steer/steer.toml", &text)
    }

    /// Writes a file as the host sees the file system.
    ///
    /// # Errors
    /// If it cannot be written.
    pub fn write_file(&self, path: &str, text: &str) -> Result<()> {
        self.host()
            .run(|| fs::write(path, text).with_context(|| format!("write {path}")))
    }

    /// Starts the agent and waits until it answers. Without an earlier [`Lab::configure`] its file says
    /// only `cgroup-root`.
    ///
    /// # Errors
    /// If it is not there to run, ends, or does not answer in time; with its log.
    pub fn start_agent(&self) -> Result<Agent<'_>> {
        let written = self
            .host()
            .run(|| Ok(fs::exists("/etc/steer/steer.toml")?))?;
        if !written {
            self.configure("")?;
        }
        let mut agent = self.agent()?;
        agent.start()?;
        Ok(agent)
    }

    /// Starts an agent that should refuse to run, and waits until it has ended.
    ///
    /// # Errors
    /// If it is still there at the deadline.
    pub fn agent_that_ends(&self) -> Result<Output> {
        let mut agent = self.agent()?;
        agent.spawn()?;
        let child = agent.child.as_mut().context("the agent does not run")?;
        let status = wait::until_within(STOPPED, "the agent to refuse", || {
            child.try_wait().context("wait for the agent")
        })?;
        Ok(Output {
            command: "steer agent".to_owned(),
            code: exit_code(status),
            stdout: String::new(),
            stderr: agent.log(),
        })
    }

    /// An agent that does not run yet (see [`Agent::spawn`]).
    ///
    /// # Errors
    /// If there is no place for its log.
    pub fn agent(&self) -> Result<Agent<'_>> {
        let log = tempfile::tempfile().context("make the agent's log")?;
        Ok(Agent {
            lab: self,
            program: executable::steer()?,
            cgroup: self.cgroup().child("agent")?,
            child: None,
            log,
            notify: None,
            logs: None,
        })
    }

    /// `steer policy set NAME --cgroup .. --via VIA MORE --json`: what the agent made of it.
    ///
    /// # Errors
    /// If it is refused.
    pub fn set_policy(
        &self,
        name: &str,
        cgroup: &LabCgroup,
        via: &str,
        more: &[&str],
    ) -> Result<Value> {
        let mut args = vec![
            "policy",
            "set",
            name,
            "--cgroup",
            cgroup.name(),
            "--via",
            via,
            "--json",
        ];
        args.extend(more);
        self.steer(&args)?.json()
    }

    /// Runs `steer ARGS` at the host, in the cgroup `cli`, and waits for its end.
    ///
    /// # Errors
    /// If it cannot be started. A failure of the command itself is in the output.
    pub fn steer(&self, args: &[&str]) -> Result<Output> {
        let cgroup = self.cgroup().child("cli")?;
        let program = executable::steer()?;
        let mut command = self.host().command(program);
        cgroup.place(&mut command)?;
        command.args(args).stdin(Stdio::null());
        Output::of(&mut command, args)
    }
}

impl Agent<'_> {
    /// Its process id.
    ///
    /// # Errors
    /// If it does not run.
    pub fn pid(&self) -> Result<u32> {
        Ok(self.child.as_ref().context("the agent does not run")?.id())
    }

    /// Has its next start run a build of steer whose kernel maps have another layout and whose kernel programs
    /// log, or the build under test again.
    ///
    /// # Errors
    /// If there is no such build.
    pub fn upgrade(&mut self, to_next: bool) -> Result<()> {
        self.program = if to_next {
            executable::next_steer()?
        } else {
            executable::steer()?
        };
        Ok(())
    }

    /// Has its next start say at this socket how it does, as to systemd.
    pub fn notify_at(&mut self, socket: PathBuf) {
        self.notify = Some(socket);
    }

    /// Sets what it logs from its next start on, as `STEER_LOG` does.
    pub fn log_what(&mut self, filter: &str) {
        self.logs = Some(filter.to_owned());
    }

    /// Has it start in the managed cgroup itself from now on.
    pub fn place_in_managed_cgroup(&mut self) {
        self.cgroup = self.lab.cgroup().share();
    }

    /// Whether it has ended by itself.
    ///
    /// # Errors
    /// If it was not started.
    pub fn has_ended(&mut self) -> Result<bool> {
        let child = self.child.as_mut().context("the agent does not run")?;
        Ok(child.try_wait().context("look after the agent")?.is_some())
    }

    /// Starts it (again) and waits until it answers.
    ///
    /// # Errors
    /// As [`Lab::start_agent`].
    pub fn start(&mut self) -> Result<()> {
        ensure!(self.child.is_none(), "the agent runs already");
        self.spawn()?;
        self.wait_ready()
    }

    /// Starts it without waiting.
    ///
    /// # Errors
    /// If it cannot be started.
    pub fn spawn(&mut self) -> Result<()> {
        let log = self.log.try_clone().context("share the agent's log")?;
        let mut command = self.lab.host().command(&self.program);
        self.cgroup.place(&mut command)?;
        match &self.notify {
            Some(socket) => command.env("NOTIFY_SOCKET", socket),
            None => command.env_remove("NOTIFY_SOCKET"),
        };
        if let Some(filter) = &self.logs {
            command.env("STEER_LOG", filter);
        }
        let child = command
            .arg("agent")
            .env("NO_COLOR", "1")
            .stdin(Stdio::null())
            .stdout(log.try_clone().context("share the agent's log")?)
            .stderr(log)
            .spawn()
            .context("start the agent")?;
        self.child = Some(child);
        Ok(())
    }

    /// Waits until it answers `steer status`.
    ///
    /// # Errors
    /// If it ends, or does not answer in time; with its log.
    pub fn wait_ready(&mut self) -> Result<()> {
        let lab = self.lab;
        let child = self.child.as_mut().context("the agent does not run")?;
        let ready = wait::until_within(READY, "the agent to answer", || {
            if let Some(status) = child.try_wait().context("look after the agent")? {
                bail!("the agent ended: {status}");
            }
            Ok((lab.steer(&["status", "--json"])?.code == 0).then_some(()))
        });
        ready.with_context(|| format!("its log:\n{}", self.log()))
    }

    /// Kills it (SIGKILL) and waits until it is gone.
    ///
    /// # Errors
    /// If it did not run.
    pub fn kill(&mut self) -> Result<()> {
        let mut child = self.child.take().context("the agent does not run")?;
        child.kill().context("kill the agent")?;
        child.wait().context("wait for the agent").map(drop)
    }

    /// Stops it (SIGTERM) and returns its exit code.
    ///
    /// # Errors
    /// If it does not end in time.
    pub fn stop(&mut self) -> Result<i32> {
        let mut child = self.child.take().context("the agent does not run")?;
        let pid = Pid::from_raw(i32::try_from(child.id()).context("process id")?);
        kill(pid, Signal::SIGTERM).context("stop the agent")?;
        let status = wait::until_within(STOPPED, "the agent to end", || {
            child.try_wait().context("wait for the agent")
        });
        if status.is_err() {
            child.kill().context("kill the agent")?;
            child.wait().context("wait for the agent")?;
        }
        status
            .map(exit_code)
            .with_context(|| format!("its log:\n{}", self.log()))
    }

    /// Kills it and starts it again.
    ///
    /// # Errors
    /// As [`Agent::kill`] and [`Agent::start`].
    pub fn restart_after_kill(&mut self) -> Result<()> {
        self.kill()?;
        self.start()
    }

    /// What it has logged.
    pub fn log(&self) -> String {
        // Read at offsets of its own: where the agent writes next is not moved.
        let mut text = Vec::new();
        let mut buffer = [0; 4096];
        loop {
            match self.log.read_at(&mut buffer, text.len() as u64) {
                Ok(0) => return String::from_utf8_lossy(&text).into_owned(),
                Ok(length) => text.extend_from_slice(&buffer[..length]),
                Err(error) => return format!("(cannot read the log: {error})"),
            }
        }
    }
}

impl Drop for Agent<'_> {
    fn drop(&mut self) {
        if let Some(mut child) = self.child.take() {
            // It may have ended by itself; there is nothing left to do then.
            drop(child.kill());
            drop(child.wait());
        }
        if std::thread::panicking() || std::env::var_os("STEER_LOG").is_some() {
            eprintln!("the agent's log:\n{}", self.log());
        }
    }
}

fn exit_code(status: std::process::ExitStatus) -> i32 {
    use std::os::unix::process::ExitStatusExt;
    status
        .code()
        .or_else(|| status.signal().map(|signal| 128 + signal))
        .unwrap_or(-1)
}
