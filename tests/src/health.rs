//! Sentences about domains that are checked: what state they are in, what is chosen, and who is told.

use std::io::{BufRead, BufReader};
use std::process::{Child, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use crate::cgroup::LabCgroup;
use crate::executable;
use crate::lab::Lab;
use crate::probe::{Family, Kind};
use crate::wait;

/// How quickly checks follow each other in scenarios; failures and successes in a row that count, and so the
/// rest of `check`.
pub const PACE: &str = "interval = \"200ms\", fall = 3, rise = 2";
/// Failures in a row of [`PACE`] after which a domain is given up.
pub const FALL: usize = 3;
/// Successes in a row of [`PACE`] after which it is trusted again.
pub const RISE: usize = 2;

/// A check of every domain by HTTP, at [`PACE`], as a key of `[agent]`.
pub fn by_http() -> String {
    let host = crate::checks::HOST4;
    checked(&format!("http = \"http://{host}/generate_204\""))
}

/// A check of every domain of this kind, at [`PACE`], as a key of `[agent]`.
pub fn checked(kind: &str) -> String {
    format!("check = {{ {kind}, {PACE} }}\n")
}

impl Lab {
    /// Writes the file (see [`Lab::configure_agent`]) and has the agent read it again.
    ///
    /// # Errors
    /// If it is not taken.
    pub fn reload(&self, agent: &str, text: &str) -> Result<()> {
        self.configure_agent(agent, text)?;
        self.steer(&["reload"])?.success().map(drop)
    }

    /// What `steer domain show NAME --json` says.
    ///
    /// # Errors
    /// If there is no such domain.
    pub fn domain(&self, name: &str) -> Result<Value> {
        self.steer(&["domain", "show", name, "--json"])?.json()
    }

    /// Waits until the domain `name` is in `state`, and returns what is said of it.
    ///
    /// # Errors
    /// If it is not in time, with what is said instead; if no reason is given.
    pub fn wait_state(&self, name: &str, state: &str) -> Result<Value> {
        let shown = self.wait_domain(name, &format!("be {state}"), |d| d["state"] == state)?;
        let reason = shown["reason"].as_str().unwrap_or_default();
        ensure!(
            !reason.is_empty(),
            "{name} is {state} for no reason: {shown:#}"
        );
        Ok(shown)
    }

    /// Waits until what is said of the domain `name` is as `wanted`, and returns it.
    ///
    /// # Errors
    /// If it is not in time, with what is said instead.
    pub fn wait_domain(
        &self,
        name: &str,
        what: &str,
        wanted: impl Fn(&Value) -> bool,
    ) -> Result<Value> {
        let mut last = Value::Null;
        let waited = wait::until(&format!("domain {name} to {what}"), || {
            last = self.domain(name)?;
            Ok(wanted(&last).then_some(()))
        });
        waited.with_context(|| format!("{last:#}"))?;
        Ok(last)
    }

    /// Waits until `policy` is decided for `uplink`, which is the domain's name too; new flows from `cgroup`
    /// leave by it then.
    ///
    /// # Errors
    /// If it is not decided in time, or flows leave otherwise.
    pub fn chooses(&self, policy: &str, cgroup: &LabCgroup, uplink: &str) -> Result<()> {
        let flows = || -> Result<()> {
            self.flow_leaves_by(cgroup, uplink, Kind::Tcp, Family::V4)?;
            self.flow_leaves_by(cgroup, uplink, Kind::UdpUnconnected, Family::V6)?;
            Ok(())
        };
        wait::until(&format!("flows to leave by {uplink}"), || {
            let decided = self.wait_decision(policy, "domain", uplink);
            decided.with_context(|| self.situation(policy))?;
            let Err(error) = flows() else {
                return Ok(Some(()));
            };
            // On a busy machine a domain may be doubted for a moment; the flow was right then.
            let shown = self.steer(&["policy", "show", policy, "--json"])?.json()?;
            if shown["decision"]["domain"] == uplink {
                return Err(error).with_context(|| self.situation(policy));
            }
            Ok(None)
        })
    }

    /// Why `domain` is taken or not for `policy`.
    ///
    /// # Errors
    /// If it is no candidate, or not `taken`.
    pub fn candidate(&self, policy: &str, domain: &str, taken: bool) -> Result<String> {
        let shown = self.steer(&["policy", "show", policy, "--json"])?.json()?;
        let candidates = shown["decision"]["candidates"].as_array();
        let mut candidates = candidates.into_iter().flatten();
        let found = candidates
            .find(|candidate| candidate["domain"] == domain)
            .with_context(|| format!("{domain} is no candidate: {shown:#}"))?;
        ensure!(found["taken"] == taken, "{domain}: {shown:#}");
        let reason = found["reason"].as_str().unwrap_or_default();
        ensure!(!reason.is_empty(), "{domain} for no reason: {shown:#}");
        Ok(reason.to_owned())
    }

    /// Policy and domains as they are said to be, for messages.
    fn situation(&self, policy: &str) -> String {
        let asked = [
            &["policy", "show", policy, "--json"][..],
            &["domain", "list", "--json"],
        ];
        asked
            .iter()
            .map(|args| match self.steer(args) {
                Ok(output) => output.stdout,
                Err(error) => format!("{error:#}"),
            })
            .collect()
    }

    /// Starts `steer watch --json` and waits until it tells.
    ///
    /// # Errors
    /// If it cannot be started, or tells nothing.
    pub fn watch(&self) -> Result<Watch> {
        let mut command = self.host().command(executable::steer()?);
        self.cgroup().child("cli")?.place(&mut command)?;
        let mut child = command
            .args(["watch", "--json"])
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .context("start steer watch")?;
        let output = BufReader::new(child.stdout.take().context("its output")?);
        let told = Arc::new(Mutex::new(Vec::new()));
        let reader = std::thread::spawn({
            let told = Arc::clone(&told);
            move || {
                for line in output.lines().map_while(Result::ok) {
                    let value = serde_json::from_str(&line).unwrap_or(Value::String(line));
                    told.lock()
                        .unwrap_or_else(PoisonError::into_inner)
                        .push(value);
                }
            }
        });
        let watch = Watch {
            child,
            told,
            reader: Some(reader),
        };
        // Only what it tells shows that it listens; decisions that nobody else waits for make it tell. What is
        // decided after its first line comes after all that it tells in the beginning.
        let place = self.cgroup().child("watched")?;
        let decide = |name: &str| -> Result<()> {
            self.set_policy(name, &place, "eth0", &[])?;
            self.steer(&["policy", "unset", name])?.success().map(drop)
        };
        wait::until("steer watch to tell something", || {
            decide("unwatched")?;
            Ok((watch.position() > 0).then_some(()))
        })?;
        wait::until("steer watch to tell of a decision", || {
            decide("watched")?;
            let told = watch.since(0, |line| line["policy"] == "watched");
            Ok((!told.is_empty()).then_some(()))
        })?;
        Ok(watch)
    }
}

/// A running `steer watch --json`; it ends when this is dropped.
#[derive(Debug)]
pub struct Watch {
    child: Child,
    told: Arc<Mutex<Vec<Value>>>,
    reader: Option<JoinHandle<()>>,
}

impl Watch {
    /// How much it has told: a position for [`Watch::since`].
    pub fn position(&self) -> usize {
        self.told
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .len()
    }

    /// What it told after `position` that is as `wanted`.
    pub fn since(&self, position: usize, wanted: impl Fn(&Value) -> bool) -> Vec<Value> {
        let told = self.told.lock().unwrap_or_else(PoisonError::into_inner);
        let told = told.iter().skip(position);
        told.filter(|line| wanted(line)).cloned().collect()
    }

    /// Waits until it has told something after `position` that is as `wanted`.
    ///
    /// # Errors
    /// If it does not in time, with what it told.
    pub fn wait_for(
        &self,
        position: usize,
        what: &str,
        wanted: impl Fn(&Value) -> bool,
    ) -> Result<Value> {
        wait::until(what, || Ok(self.since(position, &wanted).pop()))
            .with_context(|| format!("{:#?}", self.since(position, |_| true)))
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        // It may have ended by itself; there is nothing left to do then.
        drop(self.child.kill());
        drop(self.child.wait());
        if let Some(reader) = self.reader.take()
            && reader.join().is_err()
        {
            eprintln!("laboratory: a reader's thread panicked");
        }
    }
}
