//! What agents left: pins, rules and routes, cgroups and files.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use steer_core::config::AgentConfig;
use steer_core::plan::rules::offset;

use super::cgroups::listed;
use super::code::Code;
use super::finding::{Finding, Seen, Unchecked};
use super::rules;
use crate::cgroup::Tree;
use crate::daemon::{self, Remains};
use crate::datapath::{self, PIN_ROOT, PinsFound};
use crate::netlink::Survey;
use crate::reconcile::chain;
use crate::statefile;

/// What is known of what agents left.
#[derive(Clone, Debug)]
pub struct LeftoverFacts {
    /// Pins.
    pub pins: Seen<PinsFound>,
    /// The state file.
    pub state: Seen<StateFile>,
    /// The state file was written before this boot.
    pub state_is_old: bool,
    /// Cgroups that agents made.
    pub cgroups: Seen<Vec<PathBuf>>,
    /// The socket that is there though nobody may listen.
    pub socket: Option<PathBuf>,
}

/// The state file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum StateFile {
    /// It is not there.
    Absent,
    /// It can be read.
    Whole(Remains),
    /// It cannot be understood.
    Damaged(String),
}

const PINS: &str = "pins of kernel programs and maps";
const STATE: &str = "the state file";
const CGROUPS: &str = "cgroups that steer made";

/// Looks.
pub(super) fn gather(root: bool, tree: Option<&Tree>, socket: &Path) -> LeftoverFacts {
    let unless_root = |what: &str, why: String| match root {
        true => Unchecked::failed(what, why),
        false => Unchecked::needs_root(what),
    };
    let state = match daemon::remains() {
        Ok(None) => Ok(StateFile::Absent),
        Ok(Some(remains)) => Ok(StateFile::Whole(remains)),
        Err(error @ statefile::Error::Damaged(..)) => Ok(StateFile::Damaged(chain(&error))),
        Err(error) => Err(unless_root(STATE, chain(&error))),
    };
    let written = fs::metadata(daemon::state_path()).and_then(|file| file.modified());
    let pins = match fs::read_dir(PIN_ROOT) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(unless_root(PINS, error.to_string()))
        }
        _ => datapath::find_pins(Path::new(PIN_ROOT))
            .map_err(|error| unless_root(PINS, chain(&error))),
    };
    LeftoverFacts {
        pins,
        state,
        state_is_old: match (written, booted()) {
            (Ok(written), Some(booted)) => written < booted,
            _ => false,
        },
        // Only root sees attributes of that kind (xattr(7)); others see none.
        cgroups: match (root, tree) {
            (false, _) => Err(Unchecked::needs_root(CGROUPS)),
            (true, None) => Err(Unchecked::failed(CGROUPS, "there is no managed cgroup")),
            (true, Some(tree)) => {
                daemon::places(tree).map_err(|error| Unchecked::failed(CGROUPS, chain(&error)))
            }
        },
        socket: fs::symlink_metadata(socket)
            .is_ok()
            .then(|| socket.to_owned()),
    }
}

/// When the host was started (proc_stat(5)).
fn booted() -> Option<SystemTime> {
    let stat = fs::read_to_string("/proc/stat").ok()?;
    let line = stat.lines().find_map(|line| line.strip_prefix("btime "))?;
    Some(UNIX_EPOCH + Duration::from_secs(line.trim().parse().ok()?))
}

/// Judges.
pub(super) fn judge(
    facts: &LeftoverFacts,
    survey: Option<&Survey>,
    config: &AgentConfig,
    agent_runs: bool,
    findings: &mut Vec<Finding>,
) {
    let mut say = |finding: Finding| findings.push(finding);
    if let Ok(pins) = &facts.pins
        && !agent_runs
    {
        let others = listed(pins.others.clone());
        if pins.in_force && !pins.others.is_empty() {
            let text = format!("pins of another version are below {PIN_ROOT}: {others}");
            say(Finding::new(Code::L02, text).mend("systemctl start steer, or steer detach"));
        } else if pins.in_force {
            let text = format!("programs below {PIN_ROOT} run, and no agent does");
            say(Finding::new(Code::L01, text).mend("systemctl start steer, or steer detach"));
        }
        if !pins.unfinished.is_empty() {
            let names = listed(pins.unfinished.clone());
            let text = format!("{PIN_ROOT} has pins that were never finished: {names}");
            say(Finding::new(Code::L09, text));
        }
    }
    if let Some(survey) = survey {
        let (tables, first) = (rules::tables(config), config.rule_base);
        let own_rules = first..first.saturating_add(offset::COUNT);
        let outside: Vec<String> = (survey.rules.iter())
            .filter(|rule| !own_rules.contains(&rule.priority))
            .map(|rule| format!("rule {}", rule.priority))
            .chain(
                (survey.routes.iter())
                    .filter(|route| !tables.contains(&route.table.0))
                    .map(|route| format!("{} in table {}", route.destination, route.table)),
            )
            .collect();
        let there = !survey.rules.is_empty() || !survey.routes.is_empty();
        let kept = !matches!(&facts.pins, Ok(pins) if !pins.own && pins.others.is_empty());
        if there && !agent_runs && !kept {
            let text = format!(
                "{} rules and {} routes bear steer's protocol number, and nothing else of it is \
                 there",
                survey.rules.len(),
                survey.routes.len()
            );
            say(Finding::new(Code::L03, text).mend("steer detach"));
        } else if !outside.is_empty() {
            let text = format!(
                "outside `rule-base` and `table-base`, with steer's protocol number: {}",
                listed(outside)
            );
            say(Finding::new(Code::L04, text).usual_mend());
        }
    }
    if let Ok(cgroups) = &facts.cgroups
        && !cgroups.is_empty()
        && !agent_runs
    {
        let at = listed(cgroups.iter().map(|path| path.display().to_string()));
        say(Finding::new(
            Code::L05,
            format!("no agent looks after {at}"),
        ));
    }
    match &facts.state {
        Ok(StateFile::Damaged(why)) => {
            say(Finding::new(Code::L06, why.clone()).mend("steer detach"));
        }
        Ok(StateFile::Whole(remains)) if !agent_runs && !remains.settings.is_empty() => {
            let names = listed(remains.settings.clone());
            let text = format!("the last agent changed {names}, and has not put it back");
            say(Finding::new(Code::L10, text).mend("systemctl start steer, or steer detach"));
        }
        _ => {}
    }
    if facts.state_is_old && !agent_runs {
        let path = daemon::state_path();
        let text = format!("{} was written before this boot", path.display());
        say(Finding::new(Code::L07, text).mend(format!("rm {}", path.display())));
    }
    if let Some(socket) = &facts.socket
        && !agent_runs
    {
        let text = format!("{} is there, and no agent runs", socket.display());
        say(Finding::new(Code::L08, text));
    }
}

/// What could not be looked at.
pub(super) fn unchecked(facts: &LeftoverFacts) -> impl Iterator<Item = Unchecked> {
    [
        facts.pins.as_ref().err(),
        facts.state.as_ref().err(),
        facts.cgroups.as_ref().err(),
    ]
    .into_iter()
    .flatten()
    .cloned()
}
