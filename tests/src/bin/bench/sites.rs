//! The configurations that are compared, each a laboratory of its own.

use std::fmt::Write;
use std::fs;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::json;
use steer_tests::{Agent, Lab, LabCgroup, SERVER4, wait};

use crate::api::Api;
use crate::recipe;
use crate::worker::Worker;
use crate::workload::Workload;

/// The uplink of flows that nobody steers: it has the best default route.
pub(crate) const PLAIN: &str = "eth0";
/// The uplink of steered flows.
pub(crate) const STEERED: &str = "wlan0";
/// Another uplink that flows can be steered to.
pub(crate) const SECOND: &str = "wwan0";
/// Name of the policy of the cgroup that is measured.
pub(crate) const POLICY: &str = "app";

/// How many rules of a policy are few.
pub(crate) const FEW_RULES: usize = 10;

/// Longer than any start takes.
const PATIENCE: Duration = Duration::from_secs(120);
/// Where further files are.
const DROP_INS: &str = "/etc/steer/steer.d";
/// Where it is said how domains are checked.
pub(crate) const CHECKS: &str = "/etc/steer/steer.d/checks.toml";

/// A laboratory whose peers drop datagrams on arrival.
pub(crate) fn laboratory() -> Result<Lab> {
    let lab = Lab::builder().unobserved().build()?;
    for uplink in lab.uplink_names() {
        recipe::drop_datagrams(lab.peer(uplink)?)?;
    }
    Ok(lab)
}

/// The cgroup that the policy, if there is one, is about.
pub(crate) fn application(lab: &Lab) -> Result<LabCgroup> {
    lab.cgroup().child("app")
}

/// A cgroup that no policy is about.
pub(crate) fn other(lab: &Lab) -> Result<LabCgroup> {
    lab.cgroup().child("other")
}

/// Starts the agent with one policy that steers the application.
pub(crate) fn with_policy<'lab>(lab: &'lab Lab, more: &str) -> Result<Agent<'lab>> {
    let name = application(lab)?.name().to_owned();
    lab.configure(&section(POLICY, &name, &[STEERED], more))?;
    start_agent(lab)
}

/// Starts the agent with one policy that has `count` rules. The last one alone fits flows to the server, and
/// steers them to [`STEERED`]; the other ones and the policy itself say otherwise.
pub(crate) fn with_rules(lab: &Lab, count: usize) -> Result<Agent<'_>> {
    let rule = |prefix: &str, domain: &str| {
        format!("[[policy.{POLICY}.rule]]\ndestination = [\"{prefix}\"]\nuse = [\"{domain}\"]\n")
    };
    let mut text = section(POLICY, application(lab)?.name(), &[SECOND], "");
    for number in 1..count {
        // Apart from the laboratory's own networks.
        let (high, low) = (100 + number / 256, number % 256);
        text.push_str(&rule(&format!("10.{high}.{low}.0/24"), SECOND));
    }
    text.push_str(&rule(&format!("{SERVER4}/32"), STEERED));
    lab.configure(&text)?;
    start_agent(lab)
}

/// Starts the agent with one policy that spreads the application's flows over [`STEERED`] and [`SECOND`].
pub(crate) fn with_share(lab: &Lab) -> Result<Agent<'_>> {
    let policy = section(
        POLICY,
        application(lab)?.name(),
        &["both"],
        "share = \"flow\"",
    );
    lab.configure(&format!(
        "[group.both]\ndomains = {:?}\n\n{policy}",
        [STEERED, SECOND]
    ))?;
    start_agent(lab)
}

/// Starts the agent with one policy that repairs what the application began before, and such a process:
/// a connected UDP socket, and a connection whose SYN is answered only when it is sent again under the policy.
pub(crate) fn repaired<'lab>(name: &'static str, lab: &'lab Lab) -> Result<(Agent<'lab>, Subject)> {
    recipe::drop_connections(lab.peer(PLAIN)?)?;
    let mut subject = Subject::steered(name, lab)?.doing(&Workload::KEPT);
    subject.worker.begin()?;
    let agent = with_policy(lab, "repair = true")?;
    Ok((agent, subject))
}

/// Starts the agent and waits for the decision of the application's policy.
pub(crate) fn start_agent(lab: &Lab) -> Result<Agent<'_>> {
    let mut agent = lab.agent()?;
    agent.spawn()?;
    let ready = wait::until_within(PATIENCE, "the policy's decision", || Ok(decided(lab).ok()));
    ready.with_context(|| format!("the agent's log:\n{}", agent.log()))?;
    Ok(agent)
}

fn decided(lab: &Lab) -> Result<()> {
    let shown = Api::connect(lab)?.call("ShowPolicy", &json!({ "name": POLICY }))?;
    let verdict = &shown["policy"]["decision"]["verdict"];
    ensure!(verdict == "steer", "the verdict is {verdict}");
    Ok(())
}

/// Policies in one drop-in file: the agent takes no file beyond 1 MiB.
const PER_FILE: usize = 5000;

/// Writes files with `count` policies, the application's among them, each for a cgroup of its own; the
/// first `real` of these cgroups are made.
pub(crate) fn configure_many(lab: &Lab, count: usize, real: usize, domains: &[&str]) -> Result<()> {
    lab.configure(&section(POLICY, application(lab)?.name(), domains, ""))?;
    lab.host().run(|| {
        // What an earlier call wrote.
        if fs::exists(DROP_INS)? {
            fs::remove_dir_all(DROP_INS)?;
        }
        fs::create_dir(DROP_INS).with_context(|| format!("make {DROP_INS}"))
    })?;
    let numbers: Vec<usize> = (1..count).collect();
    for numbers in numbers.chunks(PER_FILE) {
        let mut text = String::new();
        for number in numbers {
            // A thousand in a directory, as services and their users' applications may be.
            let path = format!("slice{}/app{number}", number / 1000);
            if *number <= real {
                lab.cgroup().child(&path)?;
            }
            let path = format!("{}/{path}", lab.cgroup().name());
            text.push_str(&section(&format!("app{number}"), &path, domains, ""));
        }
        lab.write_file(&format!("{DROP_INS}/{:06}.toml", numbers[0]), &text)?;
    }
    Ok(())
}

fn section(policy: &str, cgroup: &str, domains: &[&str], more: &str) -> String {
    let mut text = format!("[policy.{policy}]\nmatch.cgroup = \"{cgroup}\"\nuse = {domains:?}\n");
    // Writing to a string does not fail.
    let _: std::fmt::Result = writeln!(text, "{more}");
    text
}

/// A process to be measured.
#[derive(Debug)]
pub(crate) struct Subject {
    /// What it stands for.
    pub(crate) name: &'static str,
    /// What it does.
    pub(crate) workloads: &'static [Workload],
    /// The process.
    pub(crate) worker: Worker,
}

impl Subject {
    /// A process that leaves by the domain that its policy names.
    pub(crate) fn steered(name: &'static str, lab: &Lab) -> Result<Self> {
        Self::start(name, lab, &application(lab)?, &[STEERED])
    }

    /// A process whose flows are spread over two domains.
    pub(crate) fn shared(name: &'static str, lab: &Lab) -> Result<Self> {
        Self::start(name, lab, &application(lab)?, &[STEERED, SECOND])
    }

    /// A process without a policy.
    pub(crate) fn other(name: &'static str, lab: &Lab) -> Result<Self> {
        Self::start(name, lab, &other(lab)?, &[PLAIN])
    }

    fn start(name: &'static str, lab: &Lab, cgroup: &LabCgroup, uplinks: &[&str]) -> Result<Self> {
        Ok(Self {
            name,
            workloads: &Workload::FRESH,
            worker: Worker::start(lab, cgroup, uplinks)?,
        })
    }

    /// The same process for other workloads.
    pub(crate) fn doing(mut self, workloads: &'static [Workload]) -> Self {
        self.workloads = workloads;
        self
    }
}
