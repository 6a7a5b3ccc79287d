//! Cgroups of tests that were killed, which the next test removes.
//!
//! Part of the tests of the agent's own crate, too.

use std::fs::{self, File};
use std::io;
use std::path::Path;

/// How the names of tests' cgroups begin; the id of their maker follows, and then a `-`.
pub const PREFIXES: [&str; 2] = ["steer-lab-", "steer-test-"];

/// Makes a test's cgroup. It is in use for as long as the file is open.
///
/// # Errors
/// If it cannot be made.
pub fn make(path: &Path) -> io::Result<File> {
    fs::create_dir(path)?;
    let own = File::open(path)?;
    own.lock()?;
    Ok(own)
}

/// Removes the tests' cgroups below `mount` that are nobody's: their maker has ended, there is none of its number,
/// and no process is in them.
///
/// # Errors
/// If they cannot be listed.
pub fn sweep(mount: &Path) -> io::Result<()> {
    for entry in fs::read_dir(mount)? {
        let path = entry?.path();
        let name = path.file_name().and_then(|name| name.to_str());
        let maker = name.and_then(|name| PREFIXES.iter().find_map(|p| name.strip_prefix(p)));
        let maker = maker.and_then(|rest| rest.split('-').next()?.parse::<u32>().ok());
        if maker.is_some_and(|pid| !Path::new(&format!("/proc/{pid}")).exists()) {
            // Another may sweep, too, and a process may have entered.
            let _whether_it_went = sweep_one(&path);
        }
    }
    Ok(())
}

fn sweep_one(path: &Path) -> io::Result<()> {
    // A maker in another PID namespace has no number here.
    File::open(path)?.try_lock()?;
    let events = fs::read_to_string(path.join("cgroup.events"))?;
    if events.lines().any(|line| line == "populated 0") {
        remove(path)?;
    }
    Ok(())
}

fn remove(path: &Path) -> io::Result<()> {
    for entry in fs::read_dir(path)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            remove(&entry.path())?;
        }
    }
    fs::remove_dir(path)
}
