//! Every mount of a cgroup hierarchy, of either version.

use std::path::PathBuf;

use super::unescape;

/// A mount of a cgroup hierarchy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mount {
    /// Where it is.
    pub path: PathBuf,
    /// The unified hierarchy (version 2).
    pub unified: bool,
    /// It shows the hierarchy from its root on.
    pub whole: bool,
    /// Options of the hierarchy: controllers of version 1, `nsdelegate` and the like of version 2.
    pub options: Vec<String>,
}

/// The mounts that a mountinfo file lists (proc_pid_mountinfo(5): field 4 is the root within the file system, 5
/// the mount point with octal escapes, the type follows the lone hyphen).
pub fn mounts(mountinfo: &str) -> Vec<Mount> {
    let mount = |line: &str| {
        let (mount, system) = line.split_once(" - ")?;
        let mut fields = mount.split(' ').skip(3);
        let (root, path) = (fields.next()?, fields.next()?);
        let mut system = system.split(' ');
        let unified = match system.next()? {
            "cgroup2" => true,
            "cgroup" => false,
            _ => return None,
        };
        Some(Mount {
            path: unescape(path),
            unified,
            whole: root == "/",
            options: system.nth(1)?.split(',').map(str::to_owned).collect(),
        })
    };
    mountinfo.lines().filter_map(mount).collect()
}
