//! What the machine itself must offer: root, a kernel with what steer uses, and a few programs.

use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

use anyhow::{Context as _, Result, bail};

use super::apt;
use crate::{process, progress};

/// The oldest kernel that steer supports.
const OLDEST_KERNEL: (u32, u32) = (6, 1);

/// Programs, with Debian's package of each.
pub(super) type Programs = [(&'static str, &'static str)];

/// What the demo, the tests and the bench run.
pub(super) const PROGRAMS: &Programs = &[
    ("ip", "iproute2"),
    ("ping", "iputils-ping"),
    ("curl", "curl"),
    ("groff", "groff-base"),
    ("nft", "nftables"),
    ("python3", "python3"),
];

/// What the tests run beside these: a bus of their own, and what they boot virtual machines by and take along into
/// them.
pub(super) const TEST_PROGRAMS: &Programs = &[
    ("dbus-daemon", "dbus-daemon"),
    ("qemu-system-x86_64", "qemu-system-x86"),
    ("busybox", "busybox-static"),
    ("hostapd", "hostapd"),
    ("iw", "iw"),
    ("wpa_supplicant", "wpasupplicant"),
];

/// Whether this process runs as root: /proc/self belongs to the effective user.
pub(super) fn is_root() -> bool {
    fs::metadata("/proc/self").is_ok_and(|metadata| metadata.uid() == 0)
}

pub(super) fn root() -> Result<()> {
    if !is_root() {
        bail!(
            "network namespaces and kernel programs need root: run it as root, for instance\n  \
             sudo --preserve-env=PATH,HOME cargo xtask COMMAND\n\
             (`cargo xtask build` and `cargo xtask lint` need no root once all is installed)"
        );
    }
    Ok(())
}

/// The linker that rustc calls.
pub(super) fn c_linker() -> Result<()> {
    if process::find("cc").is_some() {
        return Ok(());
    }
    if apt::is_here() {
        return apt::install(&["gcc", "libc6-dev"]);
    }
    bail!("no C linker `cc`: install gcc");
}

/// The kernel's version, its type information and the cgroup v2 tree.
pub(super) fn kernel() -> Result<()> {
    let path = "/proc/sys/kernel/osrelease";
    let release = fs::read_to_string(path).with_context(|| format!("read {path}"))?;
    let release = release.trim();
    let (major, minor) = OLDEST_KERNEL;
    if version(release).is_none_or(|version| version < OLDEST_KERNEL) {
        bail!(
            "kernel {release} is too old: steer needs {major}.{minor} or newer; boot a newer one"
        );
    }

    let btf = "/sys/kernel/btf/vmlinux";
    if !Path::new(btf).exists() {
        bail!(
            "{btf} is missing: if /sys is not mounted, run `mount -t sysfs sysfs /sys`, else boot a \
             kernel built with CONFIG_DEBUG_INFO_BTF=y (Debian's are)"
        );
    }

    let path = "/proc/self/mountinfo";
    let mounts = fs::read_to_string(path).with_context(|| format!("read {path}"))?;
    let Some(cgroup) = cgroup2_mount(&mounts) else {
        bail!(
            "no cgroup v2 tree is mounted: run\n  \
             mkdir -p /sys/fs/cgroup/unified && mount -t cgroup2 cgroup2 /sys/fs/cgroup/unified"
        );
    };
    progress::step(format_args!(
        "kernel {release}, with type information; cgroup v2 at {cgroup}"
    ));
    Ok(())
}

/// `6.18.44-cloud` -> (6, 18)
fn version(release: &str) -> Option<(u32, u32)> {
    let mut numbers = release.split(|c: char| !c.is_ascii_digit());
    Some((numbers.next()?.parse().ok()?, numbers.next()?.parse().ok()?))
}

/// Where the cgroup v2 tree is: on hybrid hosts not at /sys/fs/cgroup.
fn cgroup2_mount(mountinfo: &str) -> Option<&str> {
    mountinfo.lines().find_map(|line| {
        // proc_pid_mountinfo(5): optional fields end at "-", then the file system's type.
        let (mount, filesystem) = line.split_once(" - ")?;
        (filesystem.split(' ').next() == Some("cgroup2"))
            .then(|| mount.split(' ').nth(4))
            .flatten()
    })
}

/// Finds these programs, or installs them.
pub(super) fn programs(wanted: &Programs) -> Result<()> {
    let missing: Vec<_> = wanted
        .iter()
        .filter(|(program, _)| process::find(program).is_none())
        .collect();
    if missing.is_empty() {
        let names: Vec<_> = wanted.iter().map(|(program, _)| *program).collect();
        progress::step(format_args!("programs: {}", names.join(", ")));
        return Ok(());
    }
    let packages: Vec<_> = missing.iter().map(|(_, package)| *package).collect();
    if !apt::is_here() {
        let programs: Vec<_> = missing.iter().map(|(program, _)| *program).collect();
        bail!(
            "missing programs: {}; install them by this system's package manager (Debian: {})",
            programs.join(", "),
            apt::command_line(&packages)
        );
    }
    apt::install(&packages)?;
    for (program, package) in missing {
        if process::find(program).is_none() {
            bail!("the package {package} is installed, but `{program}` is not in PATH");
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kernel_versions_compare_as_numbers() {
        assert_eq!(version("6.18.44-cloud"), Some((6, 18)));
        assert_eq!(version("6.1-rc3"), Some((6, 1)));
        assert!(version("5.15.0") < Some(OLDEST_KERNEL));
        assert_eq!(version("unknown"), None);
    }

    #[test]
    fn cgroup2_is_found_where_it_is_mounted() {
        let hybrid = "31 23 0:28 / /sys/fs/cgroup rw,relatime - tmpfs tmpfs rw\n\
                      32 31 0:29 / /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu\n\
                      41 31 0:38 / /sys/fs/cgroup/unified rw shared:9 - cgroup2 cgroup2 rw\n";
        assert_eq!(cgroup2_mount(hybrid), Some("/sys/fs/cgroup/unified"));
        assert_eq!(cgroup2_mount(""), None);
    }
}
