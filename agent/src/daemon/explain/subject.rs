//! Whose flows are asked about, and who may ask.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use steer_core::pattern::{CgroupPattern, UnitName};

use super::super::Daemon;
use super::super::access::{Authority, not_permitted};
use crate::api::error::ApiError;
use crate::api::explain::{Explain, SubjectView};
use crate::api::server::Caller;
use crate::cgroup::{id_of, process};
use crate::reconcile::chain;

/// A process or a cgroup.
#[derive(Clone, Debug)]
pub(super) struct Subject {
    pub(super) view: SubjectView,
    /// Path of its cgroup, without a leading slash.
    pub(super) path: String,
    /// Threads in other cgroups.
    pub(super) note: Option<String>,
}

/// What a call names.
enum Target {
    Process(i32),
    Cgroup(PathBuf),
}

impl Subject {
    /// How it is spoken of.
    pub(super) fn words(&self) -> String {
        let SubjectView {
            pid,
            command,
            caller,
            unit,
            ..
        } = &self.view;
        match (pid, unit) {
            _ if *caller => "this process".to_owned(),
            (Some(pid), _) => {
                let command = command.as_deref().unwrap_or("process");
                format!("{command} (pid {pid})")
            }
            (None, Some(unit)) => format!("unit {unit}"),
            (None, None) => format!("cgroup /{}", self.path),
        }
    }
}

impl Daemon {
    pub(super) fn subject(
        &mut self,
        caller: &Caller,
        asked: &Explain,
    ) -> Result<Subject, ApiError> {
        let authority = &self.authority(caller);
        let mut view = SubjectView {
            pid: None,
            command: None,
            uid: None,
            caller: false,
            unit: None,
        };
        match (asked.pid, &asked.cgroup, &asked.unit) {
            (None, None, None) => {
                view.caller = true;
                self.process(authority, caller.pid, view)
            }
            (Some(pid), None, None) => {
                let pid = i32::try_from(pid).map_err(|e| invalid("pid", chain(&e)))?;
                self.process(authority, pid, view)
            }
            (None, Some(path), None) => {
                let path = cgroup_path(path)?;
                let directory = self.tree.directory_of(&path);
                authorize(authority, &Target::Cgroup(directory.clone()))?;
                if directory.is_dir() {
                    self.learn_managed(&directory, "cgroup")?;
                }
                Ok(Subject {
                    view,
                    path,
                    note: None,
                })
            }
            (None, None, Some(unit)) => {
                let path = self.find_unit(authority, unit)?;
                authorize(authority, &Target::Cgroup(self.tree.directory_of(&path)))?;
                view.unit = Some(unit.clone());
                Ok(Subject {
                    view,
                    path,
                    note: None,
                })
            }
            _ => Err(invalid(
                "cgroup",
                "name one of a process, a cgroup and a unit".to_owned(),
            )),
        }
    }

    fn process(
        &mut self,
        authority: &Authority,
        pid: i32,
        mut view: SubjectView,
    ) -> Result<Subject, ApiError> {
        let gone = || invalid("pid", format!("no process {pid}"));
        let held = process::open(pid).map_err(|_| gone())?;
        authorize(authority, &Target::Process(pid))?;
        let directory = self.tree.of_process(pid);
        let directory = directory.map_err(|e| invalid("pid", chain(&e)))?;
        view.pid = u32::try_from(pid).ok();
        let name = fs::read(format!("/proc/{pid}/comm")).unwrap_or_default();
        let name = String::from_utf8_lossy(&name).trim_end().to_owned();
        view.command = (!name.is_empty()).then_some(name);
        view.uid = process::effective(pid);
        let note = elsewhere(pid, &view);
        if process::has_ended(&held) {
            // Its number may have been another's by now.
            return Err(gone());
        }
        let path = self.learn_managed(&directory, "pid")?;
        Ok(Subject { view, path, note })
    }

    /// The path of a directory; tells the engine of it if it is managed.
    fn learn_managed(&mut self, directory: &Path, field: &str) -> Result<String, ApiError> {
        let known = |e| invalid(field, chain(&e));
        if directory.starts_with(self.tree.root()) {
            let id = id_of(directory).map_err(known)?;
            self.learn(directory).map_err(known)?;
            if let Some(path) = self.engine.state().cgroups.path(id) {
                return Ok(path);
            }
        }
        Ok(self.tree.name_of(directory).unwrap_or_default())
    }

    /// The path of a unit's cgroup.
    fn find_unit(&mut self, authority: &Authority, unit: &str) -> Result<String, ApiError> {
        let unit = UnitName::new(unit).map_err(|e| invalid("unit", chain(&e)))?;
        let mut paths = self.paths_of(&unit);
        let stale = paths.is_empty() || !self.engine.acts();
        if stale && authority.owner().is_none() {
            // Without a policy the kernel does not tell of new cgroups. It takes its time with many, so a
            // plain user does not cause it.
            self.read_cgroups();
            paths = self.paths_of(&unit);
        }
        match paths.as_slice() {
            [] => Err(invalid(
                "unit",
                format!(
                    "{} has no cgroup below the managed root: start it, or name with --cgroup where it \
                     will be",
                    unit.as_str()
                ),
            )),
            [path] => Ok(path.clone()),
            several => Err(invalid(
                "unit",
                format!(
                    "several cgroups bear the name {}: name one with --cgroup: {}",
                    unit.as_str(),
                    several.join(", ")
                ),
            )),
        }
    }

    fn paths_of(&self, unit: &UnitName) -> Vec<String> {
        let state = self.engine.state();
        let tree = &state.cgroups;
        let named = tree
            .subtree(state.cgroup_root)
            .filter(|id| tree.name(*id) == Some(unit.as_str()));
        let mut paths: Vec<String> = named.filter_map(|id| tree.path(id)).collect();
        paths.sort();
        paths
    }
}

/// Most threads of a process, or processes of a cgroup, that are looked at: nobody else has a turn meanwhile.
const MOST_LOOKED_AT: usize = 256;

/// Whether the caller may have this explained: administrators all, others their own processes and the
/// cgroups that one of these is in.
fn authorize(authority: &Authority, target: &Target) -> Result<(), ApiError> {
    let Some(uid) = authority.owner() else {
        return Ok(());
    };
    let own = |pid: i32| {
        let owner = process::open(pid).and_then(|process| process::owner(pid, &process));
        owner.is_ok_and(|owner| owner == Some(uid))
    };
    let (allowed, whose) = match target {
        Target::Process(pid) => (own(*pid), format!("process {pid} is another user's")),
        Target::Cgroup(directory) => {
            let delegated = fs::metadata(directory).is_ok_and(|about| about.uid() == uid);
            let processes = fs::read_to_string(directory.join("cgroup.procs"));
            let processes = processes.unwrap_or_default();
            let processes = processes.lines().filter_map(|pid| pid.parse().ok());
            let mut processes = processes.take(MOST_LOOKED_AT);
            let whose = "it is not yours, and no process of yours is in that cgroup".to_owned();
            (delegated || processes.any(own), whose)
        }
    };
    if allowed {
        return Ok(());
    }
    Err(not_permitted(format!(
        "{whose}: root or the group `steer` may have it explained"
    )))
}

/// Threads that are in other cgroups than the process is told to be: each has the policy of its own.
fn elsewhere(pid: i32, view: &SubjectView) -> Option<String> {
    let of = |path: String| {
        let text = fs::read_to_string(path).ok()?;
        let line = text.lines().find_map(|line| line.strip_prefix("0::"))?;
        Some(line.to_owned())
    };
    let own = of(format!("/proc/{pid}/cgroup"))?;
    let threads = fs::read_dir(format!("/proc/{pid}/task")).ok()?;
    let others: BTreeSet<String> = threads
        .take(MOST_LOOKED_AT)
        .flatten()
        .filter_map(|thread| of(format!("{}/cgroup", thread.path().display())))
        .filter(|path| *path != own)
        .collect();
    let first = others.first()?;
    Some(format!(
        "threads of {} are in other cgroups ({first}{}), and have the policies of those: explain them with \
         --cgroup",
        view.command.as_deref().unwrap_or("the process"),
        if others.len() > 1 { ", .." } else { "" },
    ))
}

/// A path without its leading slash; empty for the root.
fn cgroup_path(text: &str) -> Result<String, ApiError> {
    if text.trim_matches('/').is_empty() {
        return Ok(String::new());
    }
    let pattern = CgroupPattern::new(text).map_err(|e| invalid("cgroup", chain(&e)))?;
    match pattern.exact() {
        Some(path) => Ok(path.to_owned()),
        None => Err(invalid(
            "cgroup",
            "name one cgroup, and no pattern".to_owned(),
        )),
    }
}

fn invalid(field: &str, reason: String) -> ApiError {
    ApiError::InvalidArgument {
        field: field.to_owned(),
        reason,
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::process::CommandExt as _;
    use std::process::{Command, Stdio};

    use steer_core::permit::User;

    use super::{Authority, Target, authorize, cgroup_path};

    fn caller(uid: u32) -> Authority {
        if uid == 0 {
            return Authority::Administrator;
        }
        Authority::User(User {
            uid,
            gids: vec![uid],
        })
    }

    #[test]
    fn a_plain_user_asks_about_own_processes_alone() {
        const NOBODY: u32 = 65534;
        let mut command = Command::new("cat");
        command.stdin(Stdio::piped()).stdout(Stdio::null());
        let mut child = command.uid(NOBODY).spawn().expect("needs root");
        let theirs = Target::Process(i32::try_from(child.id()).unwrap());
        let ours = Target::Process(i32::try_from(std::process::id()).unwrap());
        let directory = tempfile::tempdir().unwrap();
        let write = |pids: &str| std::fs::write(directory.path().join("cgroup.procs"), pids);
        let cgroup = Target::Cgroup(directory.path().to_owned());
        write(&format!("{}\n", std::process::id())).unwrap();
        let with_ours_alone = authorize(&caller(NOBODY), &cgroup);
        write(&format!("{}\n{}\n", std::process::id(), child.id())).unwrap();
        let with_theirs = authorize(&caller(NOBODY), &cgroup);
        let answers = [
            authorize(&caller(0), &theirs),
            authorize(&caller(0), &ours),
            authorize(&caller(0), &cgroup),
            authorize(&caller(NOBODY), &theirs),
            with_theirs,
        ];
        let refused = [
            authorize(&caller(NOBODY), &ours),
            authorize(&caller(NOBODY), &Target::Process(1)),
            authorize(&caller(NOBODY - 1), &theirs),
            authorize(&caller(NOBODY), &Target::Cgroup("/nowhere".into())),
            with_ours_alone,
        ];
        drop(child.stdin.take());
        child.wait().unwrap();
        assert!(answers.iter().all(Result::is_ok), "{answers:?}");
        assert!(refused.iter().all(Result::is_err), "{refused:?}");
    }

    #[test]
    fn a_cgroup_is_named_by_one_path() {
        assert_eq!(cgroup_path("/").unwrap(), "");
        assert_eq!(cgroup_path("/a/b").unwrap(), "a/b");
        assert_eq!(cgroup_path("a/b").unwrap(), "a/b");
        assert!(cgroup_path("a/*").is_err());
        assert!(cgroup_path("a/../b").is_err());
    }
}
