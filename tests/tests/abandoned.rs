//! What killed tests have left is removed, and nothing that is somebody's.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use anyhow::{Context, Result, ensure};
use steer_tests::{abandoned, mount_point, wait};

/// A cgroup with others below, removed when dropped.
struct Left {
    path: PathBuf,
    own: Option<File>,
}

impl Left {
    fn by(maker: u32, number: u32) -> Result<Self> {
        let name = format!("{}{maker:07}-{number:02}", abandoned::PREFIXES[0]);
        let path = mount_point()?.join(name);
        let own = Some(abandoned::make(&path)?);
        fs::create_dir_all(path.join("one/two"))?;
        fs::create_dir(path.join("three"))?;
        Ok(Self { path, own })
    }

    fn is_there(&self) -> bool {
        self.path.join("one/two").exists() && self.path.join("three").exists()
    }
}

impl Drop for Left {
    fn drop(&mut self) {
        for below in ["one/two", "one", "three", ""] {
            drop(fs::remove_dir(self.path.join(below)));
        }
    }
}

/// The number of a process that has ended.
fn ended() -> Result<u32> {
    let mut process = Command::new("true").spawn().context("start true")?;
    process.wait()?;
    Ok(process.id())
}

fn waiting_in(cgroup: &Path) -> Result<Child> {
    let process = Command::new("cat").stdin(Stdio::piped()).spawn()?;
    fs::write(cgroup.join("cgroup.procs"), process.id().to_string())?;
    Ok(process)
}

#[test]
fn cgroups_of_killed_tests_are_removed_unless_somebody_is_in_them() -> Result<()> {
    let mount = mount_point()?;
    let maker = ended()?;
    let [mut gone, mut inhabited, held] = [
        Left::by(maker, 90)?,
        Left::by(maker, 91)?,
        Left::by(maker, 92)?,
    ];
    let mut alive = Left::by(std::process::id(), 93)?;
    let mut process = waiting_in(&inhabited.path.join("one/two"))?;
    for left in [&mut gone, &mut inhabited, &mut alive] {
        left.own = None;
    }
    abandoned::sweep(&mount)?;
    let (went, stayed) = (!gone.path.exists(), inhabited.is_there());
    process.kill()?;
    process.wait()?;
    ensure!(went, "{} is there still", gone.path.display());
    ensure!(stayed, "there was a process in it");
    ensure!(held.is_there(), "it was in use, if not by a process here");
    ensure!(alive.is_there(), "its maker lives");
    wait::until("the other to be swept, too", || {
        abandoned::sweep(&mount)?;
        Ok((!inhabited.path.exists()).then_some(()))
    })
}
