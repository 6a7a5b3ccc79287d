//! The agent with few and with many policies: how fast it is there, how much memory it has, and how soon
//! a policy that is set is in force.

use std::fs;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use serde_json::json;
use steer_tests::{Agent, Lab, LabCgroup};

use crate::Extent;
use crate::api::Api;
use crate::sites::{self, SECOND, STEERED};
use crate::statistics::Sample;
use crate::worker::Worker;

/// How many policies are few.
pub(crate) const FEW: usize = 10;

/// The agent with few, and with many policies.
#[derive(Debug)]
pub(crate) struct Load {
    /// With [`FEW`].
    pub(crate) few: Loaded,
    /// With many.
    pub(crate) many: Loaded,
}

/// The agent with a number of policies.
#[derive(Debug)]
pub(crate) struct Loaded {
    /// Milliseconds from its start to the policy's decision.
    pub(crate) ready: Sample,
    /// The same when it finds everything in force already.
    pub(crate) again: Sample,
    /// Its resident memory once it is ready, in megabytes.
    pub(crate) memory: Sample,
    /// The most that it ever had.
    pub(crate) peak: Sample,
    /// Milliseconds from a call that sets a policy to its acknowledgement.
    pub(crate) set: Sample,
    /// The same with the command line, its start included.
    pub(crate) command: Sample,
    /// Acknowledged policies that the next flow did not follow.
    pub(crate) late: usize,
}

/// Measures both.
pub(crate) fn measure(extent: &Extent) -> Result<Load> {
    let lab = sites::laboratory()?;
    sites::configure_many(&lab, FEW, FEW, &[STEERED])?;
    let few = loaded(&lab, extent).context("few policies")?;
    sites::configure_many(&lab, extent.policies, extent.cgroups, &[STEERED])?;
    let many = loaded(&lab, extent).context("many policies")?;
    Ok(Load { few, many })
}

fn loaded(lab: &Lab, extent: &Extent) -> Result<Loaded> {
    let (mut ready, mut again, mut memory, mut peak) = (vec![], vec![], vec![], vec![]);
    let (mut set, mut command, mut late) = (vec![], vec![], 0);
    for start in 0..extent.starts {
        let mut agent = start_agent(lab, &mut ready)?;
        memory.push(megabytes(&agent, "VmRSS")?);
        peak.push(megabytes(&agent, "VmHWM")?);
        if start + 1 == extent.starts {
            let target = lab.cgroup().child("latency")?;
            (set, late) = set_by_call(lab, &target, extent.sets)?;
            command = set_by_command(lab, &target, extent.sets / 5)?;
        }
        agent.stop()?;
        again_in_force(lab, &mut again)?;
        lab.steer(&["detach"])?.success()?;
    }
    let [ready, again, memory, peak, set, command] =
        [ready, again, memory, peak, set, command].map(Sample::new);
    Ok(Loaded {
        ready,
        again,
        memory,
        peak,
        set,
        command,
        late,
    })
}

fn again_in_force(lab: &Lab, times: &mut Vec<f64>) -> Result<()> {
    start_agent(lab, times)?.stop().map(drop)
}

fn start_agent<'lab>(lab: &'lab Lab, times: &mut Vec<f64>) -> Result<Agent<'lab>> {
    let start = Instant::now();
    let agent = sites::start_agent(lab)?;
    times.push(milliseconds(start.elapsed()));
    Ok(agent)
}

fn set_by_call(lab: &Lab, target: &LabCgroup, count: usize) -> Result<(Vec<f64>, usize)> {
    let mut api = Api::connect(lab)?;
    let mut worker = Worker::start(lab, target, &[STEERED])?;
    let mut times = Vec::new();
    let mut late = 0;
    for turn in 0..count {
        let domain = domain(turn);
        let wanted = json!({
            "name": "latency", "cgroup": [target.name()], "unit": [], "use": [domain],
        });
        let start = Instant::now();
        api.call("SetPolicy", &wanted)?;
        times.push(milliseconds(start.elapsed()));
        if worker.source()? != lab.uplink(domain)?.address4() {
            late += 1;
        }
    }
    Ok((times, late))
}

fn set_by_command(lab: &Lab, target: &LabCgroup, count: usize) -> Result<Vec<f64>> {
    let mut times = Vec::new();
    for turn in 0..count {
        let start = Instant::now();
        lab.set_policy("latency", target, domain(turn), &[])?;
        times.push(milliseconds(start.elapsed()));
    }
    Ok(times)
}

fn domain(turn: usize) -> &'static str {
    if turn.is_multiple_of(2) {
        SECOND
    } else {
        STEERED
    }
}

/// A line of the agent's status, in megabytes (of a million bytes).
fn megabytes(agent: &Agent<'_>, key: &str) -> Result<f64> {
    let path = format!("/proc/{}/status", agent.pid()?);
    let text = fs::read_to_string(&path).with_context(|| format!("read {path}"))?;
    let value = text
        .lines()
        .find_map(|line| line.strip_prefix(key)?.strip_prefix(':'));
    let value = value.and_then(|value| value.trim().strip_suffix(" kB"));
    let kilobytes: f64 = value
        .with_context(|| format!("no {key} in {path}"))?
        .parse()?;
    Ok(kilobytes * 1024.0 / 1e6)
}

/// For reading.
pub(crate) fn milliseconds(time: Duration) -> f64 {
    time.as_secs_f64() * 1e3
}
