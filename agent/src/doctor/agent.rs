//! The agent: whether it runs, what it says of itself, and the files it reads.

use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

use super::cgroups::listed;
use super::code::Code;
use super::finding::{Finding, Seen, Unchecked};
use crate::api::client::{Client, Error, PATIENCE};
use crate::api::methods::Status;
use crate::daemon;

/// What is known of the agent.
#[derive(Clone, Debug)]
pub struct AgentFacts {
    /// The agent that holds the lock, in words.
    pub running: Option<String>,
    /// What it answered.
    pub answer: Answer,
    /// Agents in this network namespace, by their process ids.
    pub pids: Vec<u32>,
    /// The files it reads.
    pub files: Seen<FileFacts>,
}

/// What is wrong in the files.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FileFacts {
    /// Why they cannot be taken.
    pub wrong: Option<String>,
    /// Single policies that cannot, each with its place.
    pub quarantined: Vec<String>,
}

/// What came of asking the agent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    /// Nobody listens.
    Nobody,
    /// It says how it is.
    Status {
        /// Its version.
        version: String,
        /// How many warnings it has.
        warnings: usize,
        /// Policies that are not in force as written.
        quarantined: Vec<String>,
    },
    /// This user may not ask.
    NotPermitted,
    /// It did not answer as it should.
    Failed(String),
}

/// Looks.
pub(super) fn gather(socket: &Path, files: Seen<FileFacts>) -> AgentFacts {
    let asked = Client::call_persistently(socket, &Status {}, Some(PATIENCE), PATIENCE);
    AgentFacts {
        running: daemon::running().map(|running| running.to_string()),
        answer: match asked {
            Ok(reply) => Answer::Status {
                version: reply.status.version,
                warnings: reply.status.warnings.len(),
                quarantined: (reply.status.policies.into_iter())
                    .filter(|policy| policy.quarantined.is_some())
                    .map(|policy| policy.name)
                    .collect(),
            },
            Err(Error::NotRunning(_)) => Answer::Nobody,
            Err(Error::NotPermitted(_)) => Answer::NotPermitted,
            Err(error) => Answer::Failed(crate::reconcile::chain(&error)),
        },
        pids: agents_beside(),
        files,
    }
}

/// Processes `steer agent` in this network namespace.
fn agents_beside() -> Vec<u32> {
    let namespace = |path: &Path| fs::metadata(path).ok().map(|file| (file.dev(), file.ino()));
    let Some(own) = namespace(Path::new("/proc/self/ns/net")) else {
        return Vec::new();
    };
    let is_agent = |path: &Path| {
        let line = fs::read(path.join("cmdline")).unwrap_or_default();
        let mut words = line.split(|byte| *byte == 0);
        let is_steer = words
            .next()
            .is_some_and(|name| name == b"steer" || name.ends_with(b"/steer"));
        is_steer
            && words.any(|word| word == b"agent")
            && namespace(&path.join("ns/net")) == Some(own)
    };
    let mut pids: Vec<u32> = fs::read_dir("/proc")
        .into_iter()
        .flatten()
        .flatten()
        .filter(|entry| is_agent(&entry.path()))
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
        .collect();
    pids.sort_unstable();
    pids
}

impl AgentFacts {
    /// Whether an agent runs, as far as this user may know.
    pub(super) fn runs(&self) -> bool {
        self.running.is_some() || !matches!(self.answer, Answer::Nobody)
    }
}

/// Judges.
pub(super) fn judge(facts: &AgentFacts, findings: &mut Vec<Finding>) {
    let mut say = |finding: Finding| findings.push(finding);
    match (&facts.answer, &facts.running) {
        (Answer::Nobody, None) => {
            say(Finding::new(Code::A01, "no agent runs").mend("systemctl start steer"));
        }
        (Answer::Nobody, Some(running)) => {
            let text = format!("{running}, and nobody answers at the socket asked");
            say(Finding::new(Code::A03, text).usual_mend());
        }
        (Answer::Failed(why), _) => {
            say(Finding::new(Code::A03, why.clone()).usual_mend());
        }
        (
            Answer::Status {
                version,
                warnings,
                quarantined,
            },
            _,
        ) => {
            let own = env!("CARGO_PKG_VERSION");
            if version != own {
                let text = format!("the agent is of version {version}, this command of {own}");
                say(Finding::new(Code::A02, text).mend("systemctl restart steer"));
            }
            if *warnings > 0 {
                let text = format!("the agent has {warnings} warning(s)");
                say(Finding::new(Code::A04, text).mend("steer status"));
            }
            for name in quarantined {
                let text = format!("policy {name} is not in force as written");
                let mend = format!("steer policy show {name}");
                say(Finding::new(Code::A06, text).mend(mend));
            }
        }
        (Answer::NotPermitted, _) => {}
    }
    if let Ok(files) = &facts.files {
        if let Some(wrong) = &files.wrong {
            say(Finding::new(Code::A05, wrong.clone()).mend("steer check"));
        }
        // An agent that answers says so itself.
        if !matches!(facts.answer, Answer::Status { .. }) {
            for policy in &files.quarantined {
                say(Finding::new(Code::A06, policy.clone()).mend("steer check"));
            }
        }
    }
    if facts.pids.len() > 1 {
        let pids = listed(facts.pids.iter().map(u32::to_string));
        let text = format!("several agents run in this network namespace: {pids}");
        say(Finding::new(Code::A07, text).usual_mend());
    }
}

/// What could not be looked at.
pub(super) fn unchecked(facts: &AgentFacts) -> impl Iterator<Item = Unchecked> {
    let status = (facts.answer == Answer::NotPermitted)
        .then(|| Unchecked::needs_root("what the agent says of itself"));
    status
        .into_iter()
        .chain(facts.files.as_ref().err().cloned())
}
