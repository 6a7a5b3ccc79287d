//! The kernel that the tests boot in virtual machines: a package of Debian's, unpacked into the cache. It is never
//! installed at the machine.

use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Context as _, Result, anyhow, bail};

use super::{apt, cache};
use crate::{process, progress};

/// The package that depends on the newest of its series; `tests/src/vm/mod.rs` asks for it by this name. Not the
/// flavour for clouds, which has no WLAN.
const PACKAGE: &str = "linux-image-6.12-amd64";

/// Unpacks it, unless that was done before. A later release of the series is not asked for: remove the directory to
/// get it.
pub(super) fn find_or_unpack() -> Result<()> {
    let parent = cache::directory()?.join("vm");
    let directory = parent.join(PACKAGE);
    if directory.exists() {
        let at = directory.display();
        progress::step(format_args!("kernel for virtual machines at {at}"));
        return Ok(());
    }
    if !apt::is_here() {
        bail!(
            "no kernel for virtual machines: unpack Debian's package of a kernel, which {PACKAGE} depends on, into \
             {}, and run there: depmod --basedir . VERSION",
            directory.display()
        );
    }
    let package = apt::dependency(PACKAGE)
        .ok_or_else(|| anyhow!("apt knows no package {PACKAGE}: try: apt-get update"))?;
    progress::step(format_args!(
        "unpacking {package} into {}",
        parent.display()
    ));
    // What is not complete has another name.
    let unpacked = parent.join(format!("{PACKAGE}.new"));
    if unpacked.exists() {
        fs::remove_dir_all(&unpacked).with_context(|| format!("remove {}", unpacked.display()))?;
    }
    fs::create_dir_all(&unpacked).with_context(|| format!("make {}", unpacked.display()))?;
    unpack(&package, &unpacked)?;
    fs::rename(&unpacked, &directory).with_context(|| format!("make {}", directory.display()))
}

fn unpack(package: &str, into: &Path) -> Result<()> {
    let file = apt::download(package, into)?;
    let mut extract = Command::new("dpkg-deb");
    process::show(extract.arg("--extract").arg(&file).arg(into))?;
    fs::remove_file(&file).with_context(|| format!("remove {}", file.display()))?;
    let modules = into.join("lib/modules");
    let release = fs::read_dir(&modules)
        .with_context(|| format!("list {}", modules.display()))?
        .next()
        .with_context(|| format!("{package} has no modules"))?
        .with_context(|| format!("list {}", modules.display()))?;
    // The list of what needs what, which the package makes when it is installed.
    let busybox = process::find("busybox").context("`busybox` is not in PATH")?;
    let mut depmod = Command::new(busybox);
    process::show(
        depmod
            .args(["depmod", "-b"])
            .arg(into)
            .arg(release.file_name()),
    )
}
