//! What the laboratory's host sees of the file system: the machine's, but with its own `/run`, `/etc/steer`,
//! `/var/lib`, bpffs and view of the network interfaces. Nothing here reaches the machine's real files.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;

use anyhow::{Context, Result};
use nix::mount::{MsFlags, mount};

/// Where the machine's own `/etc` is found from inside.
const REAL_ETC: &str = "/run/machine/etc";
/// A sysfs of the laboratory's network namespace.
const OWN_SYSFS: &str = "/run/machine/sys";

/// Prepares the calling thread's new mount namespace.
///
/// # Errors
/// If a mount is refused.
pub(crate) fn prepare() -> Result<()> {
    attach(None, "/", None, MsFlags::MS_REC | MsFlags::MS_PRIVATE)?;
    attach(Some("tmpfs"), "/run", Some("tmpfs"), MsFlags::empty())?;
    for directory in [REAL_ETC, OWN_SYSFS, "/run/lock", "/run/steer"] {
        fs::create_dir_all(directory).with_context(|| format!("make {directory}"))?;
    }
    private_etc()?;
    // What an agent remembers of networks is nobody else's: laboratories are all alike.
    attach(Some("tmpfs"), "/var/lib", Some("tmpfs"), MsFlags::empty())?;
    attach(Some("bpffs"), "/sys/fs/bpf", Some("bpf"), MsFlags::empty())?;
    // sysfs shows the interfaces of the namespace that mounted it. Mounting it over /sys would hide
    // the cgroup tree, so only the two directories about interfaces are replaced.
    attach(Some("sysfs"), OWN_SYSFS, Some("sysfs"), MsFlags::empty())?;
    for directory in ["class/net", "devices/virtual/net"] {
        show_devices(directory)?;
    }
    Ok(())
}

/// Has a directory of sysfs show the interfaces of the laboratory's network namespace.
///
/// # Errors
/// If there is no such directory.
pub(crate) fn show_devices(directory: &str) -> Result<()> {
    let from = format!("{OWN_SYSFS}/{directory}");
    let to = format!("/sys/{directory}");
    attach(Some(&from), &to, None, MsFlags::MS_BIND)
}

/// An `/etc` that holds links to everything in the machine's, and a `steer` directory of its own.
fn private_etc() -> Result<()> {
    attach(
        Some("/etc"),
        REAL_ETC,
        None,
        MsFlags::MS_BIND | MsFlags::MS_REC,
    )?;
    attach(Some("tmpfs"), "/etc", Some("tmpfs"), MsFlags::empty())?;
    for entry in fs::read_dir(REAL_ETC).context("read the machine's /etc")? {
        let entry = entry.context("read the machine's /etc")?;
        if entry.file_name() == "steer" {
            continue;
        }
        let real = entry.path();
        // A link is copied, for a relative one would point elsewhere from the bind mount.
        let target = fs::read_link(&real).unwrap_or(real);
        let link = Path::new("/etc").join(entry.file_name());
        symlink(&target, &link).with_context(|| format!("link {}", link.display()))?;
    }
    fs::create_dir("/etc/steer").context("make /etc/steer")
}

fn attach(source: Option<&str>, target: &str, kind: Option<&str>, flags: MsFlags) -> Result<()> {
    mount(source, target, kind, flags, None::<&str>)
        .with_context(|| format!("mount {} on {target}", source.unwrap_or("none")))
}
