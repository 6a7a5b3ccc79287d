//! The cgroup hierarchies of the host, and the managed cgroup in them.

use std::fs;
use std::path::{Path, PathBuf};

use super::code::Code;
use super::finding::Finding;
use crate::cgroup::{self, Mount, Tree};

/// What is known of the hierarchies.
#[derive(Clone, Debug)]
pub struct CgroupFacts {
    /// All mounts of cgroup hierarchies.
    pub mounts: Vec<Mount>,
    /// net_cls and net_prio, as far as a version 1 hierarchy has cgroups with them.
    pub socket_controllers: Vec<String>,
    /// The managed cgroup, or why there is none.
    pub root: Result<PathBuf, String>,
    /// This process cannot see its own place from the hierarchy's root.
    pub namespaced: bool,
}

/// Looks.
pub(super) fn gather(configured: Option<&str>) -> (CgroupFacts, Option<Tree>) {
    let read = |path: &str| fs::read_to_string(path).unwrap_or_default();
    let tree = Tree::open(configured.map(Path::new));
    let facts = CgroupFacts {
        mounts: cgroup::mounts(&read("/proc/self/mountinfo")),
        socket_controllers: socket_controllers(&read("/proc/cgroups")),
        root: tree
            .as_ref()
            .map(|tree| tree.root().to_owned())
            .map_err(ToString::to_string),
        namespaced: read("/proc/self/cgroup")
            .lines()
            .any(|line| line.starts_with("0::/..")),
    };
    (facts, tree.ok())
}

/// The controllers in /proc/cgroups that keep something in sockets and have cgroups below the root of a
/// version 1 hierarchy (hierarchy 0 is the unified one, or none).
pub fn socket_controllers(table: &str) -> Vec<String> {
    let row = |line: &str| {
        let mut fields = line.split_whitespace();
        let name = fields.next()?;
        let hierarchy: u32 = fields.next()?.parse().ok()?;
        let cgroups: u32 = fields.next()?.parse().ok()?;
        let used = hierarchy != 0 && cgroups > 1;
        (used && matches!(name, "net_cls" | "net_prio")).then(|| name.to_owned())
    };
    table.lines().filter_map(row).collect()
}

/// Judges.
pub(super) fn judge(facts: &CgroupFacts, findings: &mut Vec<Finding>) {
    let (unified, others): (Vec<_>, Vec<_>) = facts.mounts.iter().partition(|m| m.unified);
    let whole: Vec<_> = unified.iter().filter(|m| m.whole).collect();
    let Some(first) = whole.first() else {
        let text = if unified.is_empty() {
            "no cgroup hierarchy of version 2 is mounted".to_owned()
        } else {
            let paths = listed(unified.iter().map(|m| m.path.display().to_string()));
            format!("only parts of the unified cgroup hierarchy are mounted: {paths}")
        };
        findings.push(Finding::new(Code::C01, text).mend("mount -t cgroup2 none /sys/fs/cgroup"));
        return;
    };
    let at = first.path.display();
    let controllers: Vec<_> = others.iter().filter(|m| m.whole).collect();
    if !controllers.is_empty() {
        let text = format!(
            "the unified hierarchy is at {at}, beside {} mounts of version 1",
            controllers.len()
        );
        findings.push(Finding::new(Code::C02, text));
    }
    if whole.len() > 1 {
        let paths = listed(whole.iter().map(|m| m.path.display().to_string()));
        let text = format!("the unified hierarchy is mounted at {paths}; steer uses {at}");
        findings.push(Finding::new(Code::C03, text));
    }
    if facts.namespaced {
        let delegated = first.options.iter().any(|option| option == "nsdelegate");
        let bound = if delegated {
            ", and processes cannot be moved across its border (nsdelegate)"
        } else {
            ""
        };
        let text = format!("this is a cgroup namespace: what is outside is not seen{bound}");
        findings.push(Finding::new(Code::C04, text).usual_mend());
    }
    if let Err(why) = &facts.root {
        findings.push(Finding::new(Code::C05, why.clone()).usual_mend());
    }
    if !facts.socket_controllers.is_empty() {
        let names = facts.socket_controllers.join(" and ");
        let text = format!("a version 1 hierarchy has cgroups with {names}");
        findings.push(Finding::new(Code::C09, text));
    }
}

/// Items as one reads them, without end.
pub(super) fn listed(items: impl IntoIterator<Item = String>) -> String {
    const SHOWN: usize = 4;
    let items: Vec<String> = items.into_iter().collect();
    let shown = items[..items.len().min(SHOWN)].join(", ");
    match items.len().saturating_sub(SHOWN) {
        0 => shown,
        more => format!("{shown} and {more} more"),
    }
}
