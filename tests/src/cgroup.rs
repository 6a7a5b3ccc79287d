//! Cgroups of a laboratory: always a child of the cgroup2 mount made for it, never the machine's root.

use std::ffi::OsStr;
use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Once;
use std::sync::atomic::{AtomicU32, Ordering};

use anyhow::{Context, Result, bail};

use crate::{abandoned, wait};

const PREFIX: &str = abandoned::PREFIXES[0];

/// A cgroup and everything below it. The laboratory's own one is removed with its processes when it is
/// dropped, and by a janitor process if the test is killed.
#[derive(Debug)]
pub struct LabCgroup {
    path: PathBuf,
    name: String,
    janitor: Option<Child>,
    /// Says that it is in use.
    _own: Option<File>,
}

impl LabCgroup {
    /// Makes `<cgroup2 mount>/steer-lab-<pid>-<n>`, with numbers of one width: text is laid out by it. The first of
    /// a process removes what tests have left that were killed.
    ///
    /// # Errors
    /// If there is no cgroup2 mount, or it may not be written.
    pub fn new() -> Result<Self> {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        static SWEPT: Once = Once::new();
        let mount = mount_point()?;
        let mut swept = Ok(());
        SWEPT.call_once(|| swept = abandoned::sweep(&mount));
        swept.context("remove what tests have left")?;
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let name = format!("{PREFIX}{:07}-{number:02}", std::process::id());
        let path = mount.join(&name);
        let own = abandoned::make(&path);
        let own = own.with_context(|| format!("make cgroup {}", path.display()))?;
        let janitor = janitor(&path)?;
        Ok(Self {
            path,
            name,
            janitor: Some(janitor),
            _own: Some(own),
        })
    }

    /// Makes (or finds) a cgroup below this one. It goes when the laboratory's cgroup goes.
    ///
    /// # Errors
    /// If it cannot be made.
    pub fn child(&self, name: &str) -> Result<Self> {
        let path = self.path.join(name);
        fs::create_dir_all(&path).with_context(|| format!("make cgroup {}", path.display()))?;
        Ok(Self {
            path,
            name: format!("{}/{name}", self.name),
            janitor: None,
            _own: None,
        })
    }

    /// The same cgroup for another owner, which does not remove it when dropped.
    #[must_use]
    pub fn share(&self) -> Self {
        Self {
            path: self.path.clone(),
            name: self.name.clone(),
            janitor: None,
            _own: None,
        }
    }

    /// Its directory.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Its path as `/proc/PID/cgroup` shows it, without the leading slash: how policies name it.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Makes `command` start inside: it moves itself between fork and exec.
    ///
    /// # Errors
    /// If `cgroup.procs` cannot be opened.
    pub fn place(&self, command: &mut Command) -> Result<()> {
        let procs = self.path.join("cgroup.procs");
        let file = OpenOptions::new()
            .write(true)
            .open(&procs)
            .with_context(|| format!("open {}", procs.display()))?;
        let enter = move || {
            nix::unistd::write(&file, b"0")
                .map(drop)
                .map_err(io::Error::from)
        };
        // SAFETY: between fork and exec the closure makes one system call (write) on a descriptor
        // that it owns; it neither allocates nor takes locks.
        unsafe {
            command.pre_exec(enter);
        }
        Ok(())
    }

    /// Moves the process `pid` inside.
    ///
    /// # Errors
    /// If the kernel refuses.
    pub fn adopt(&self, pid: u32) -> Result<()> {
        let procs = self.path.join("cgroup.procs");
        fs::write(&procs, pid.to_string()).with_context(|| format!("move {pid} to {}", self.name))
    }

    /// Removes it now, with its processes and children.
    ///
    /// # Errors
    /// If it is still there at the deadline.
    pub fn remove(&self) -> Result<()> {
        if let Err(error) = fs::write(self.path.join("cgroup.kill"), "1") {
            if error.kind() == io::ErrorKind::NotFound {
                return Ok(());
            }
            return Err(error).with_context(|| format!("kill cgroup {}", self.name));
        }
        wait::until(&format!("cgroup {} to be empty", self.name), || {
            Ok(remove_tree(&self.path).is_ok().then_some(()))
        })
    }

    /// Names of all cgroups below, relative to this one, sorted.
    ///
    /// # Errors
    /// If the tree cannot be read.
    pub fn descendants(&self) -> Result<Vec<String>> {
        let mut found = Vec::new();
        let mut open = vec![self.path.clone()];
        while let Some(directory) = open.pop() {
            // One that goes meanwhile has none.
            let children = match subdirectories(&directory) {
                Err(_) if directory != self.path && !directory.exists() => continue,
                children => children?,
            };
            for child in children {
                let relative = child
                    .strip_prefix(&self.path)
                    .context("child outside its parent")?;
                found.push(relative.display().to_string());
                open.push(child);
            }
        }
        found.sort();
        Ok(found)
    }
}

impl Drop for LabCgroup {
    fn drop(&mut self) {
        let Some(mut janitor) = self.janitor.take() else {
            return;
        };
        if let Err(error) = self.remove() {
            eprintln!("laboratory: {error:#}");
        }
        // Its standard input ends here; it finds nothing left to do and exits.
        drop(janitor.stdin.take());
        if let Err(error) = janitor.wait() {
            eprintln!("laboratory: wait for the janitor: {error}");
        }
    }
}

/// A process that outlives a killed test just long enough to remove its cgroup.
fn janitor(path: &Path) -> Result<Child> {
    const SCRIPT: &str = r#"
        read -r _
        for attempt in 1 2 3 4 5 6 7 8 9 10; do
            [ -d "$1" ] || exit 0
            echo 1 >"$1/cgroup.kill"
            find "$1" -depth -type d -exec rmdir {} + 2>/dev/null && exit 0
            sleep 0.1
        done"#;
    let mut command = Command::new("sh");
    command
        .args([
            OsStr::new("-c"),
            OsStr::new(SCRIPT),
            OsStr::new("janitor"),
            path.as_os_str(),
        ])
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        // Its own process group: Ctrl-C at the terminal is for the test, not for it.
        .process_group(0);
    command.spawn().context("start the janitor (sh)")
}

/// Where the cgroup2 tree is mounted: on a hybrid machine not at `/sys/fs/cgroup`.
///
/// # Errors
/// If it is mounted nowhere.
pub fn mount_point() -> Result<PathBuf> {
    let table = fs::read_to_string("/proc/self/mountinfo").context("read mountinfo")?;
    for line in table.lines() {
        let Some((before, after)) = line.split_once(" - ") else {
            continue;
        };
        if after.starts_with("cgroup2 ")
            && let Some(path) = before.split(' ').nth(4)
        {
            return Ok(path.into());
        }
    }
    bail!("no cgroup2 mount: the laboratory needs one, e.g. mount -t cgroup2 none /sys/fs/cgroup")
}

fn subdirectories(path: &Path) -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(path).with_context(|| format!("read {}", path.display()))? {
        let entry = entry.with_context(|| format!("read {}", path.display()))?;
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            found.push(entry.path());
        }
    }
    Ok(found)
}

fn remove_tree(path: &Path) -> Result<()> {
    for child in subdirectories(path)? {
        remove_tree(&child)?;
    }
    fs::remove_dir(path).with_context(|| format!("remove {}", path.display()))
}
