//! Plain users of the laboratory's host: programs that run as them, in cgroups that are or are not theirs.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::chown;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context, Result};
use nix::mount::{MsFlags, mount};
use nix::unistd::{Gid, Uid, setgroups, setresgid, setresuid};

use crate::agent::Output;
use crate::cgroup::LabCgroup;
use crate::executable;
use crate::lab::Lab;

/// Where users find the programs under test, whatever the permissions of the directory they were built in.
const STEER: &str = "/run/machine/steer";
const PROBE: &str = "/run/machine/steer-probe";

/// A user of the laboratory's host.
#[derive(Clone, Debug)]
pub struct User {
    uid: u32,
    groups: Vec<Gid>,
}

impl User {
    /// A user with this number, in the group of the same number alone.
    pub fn new(uid: u32) -> Self {
        Self {
            uid,
            groups: Vec::new(),
        }
    }

    /// The same as a member of this group, too.
    #[must_use]
    pub fn member_of(mut self, gid: u32) -> Self {
        self.groups.push(Gid::from_raw(gid));
        self
    }

    /// Its number.
    pub fn uid(&self) -> u32 {
        self.uid
    }

    /// Makes `command` run as this user. To be called last: what comes after it no longer runs as root.
    pub fn become_by(&self, command: &mut Command) {
        let (uid, gid) = (Uid::from_raw(self.uid), Gid::from_raw(self.uid));
        let groups = self.groups.clone();
        let change = move || -> io::Result<()> {
            setgroups(&groups)?;
            setresgid(gid, gid, gid)?;
            setresuid(uid, uid, uid)?;
            // The change of ids took this back.
            nix::sys::prctl::set_pdeathsig(nix::sys::signal::Signal::SIGKILL)?;
            Ok(())
        };
        // SAFETY: between fork and exec the closure makes system calls only, on what it owns already.
        unsafe {
            command.pre_exec(change);
        }
    }

    /// Gives it a cgroup, as systemd delegates one: the directory and the files to move processes.
    ///
    /// # Errors
    /// If the kernel refuses.
    pub fn own(&self, cgroup: &LabCgroup) -> Result<()> {
        for path in ["", "cgroup.procs", "cgroup.subtree_control"] {
            let path = cgroup.path().join(path);
            chown(&path, Some(self.uid), Some(self.uid))
                .with_context(|| format!("give away {}", path.display()))?;
        }
        Ok(())
    }
}

impl Lab {
    /// `steer ARGS` as a user, in `cgroup`, not started yet.
    ///
    /// # Errors
    /// If the programs cannot be shown to users, or the cgroup cannot be entered.
    pub fn steer_command(&self, user: &User, cgroup: &LabCgroup, args: &[&str]) -> Result<Command> {
        self.show_programs()?;
        let mut command = self.command(STEER, cgroup)?;
        command.args(args);
        user.become_by(&mut command);
        Ok(command)
    }

    /// Runs `steer ARGS` as a user, in `cgroup`, and waits for its end.
    ///
    /// # Errors
    /// If it cannot be started. A failure of the command itself is in the output.
    pub fn steer_as(&self, user: &User, cgroup: &LabCgroup, args: &[&str]) -> Result<Output> {
        let mut command = self.steer_command(user, cgroup, args)?;
        Output::of(command.stdin(Stdio::null()), args)
    }

    /// Where users find the probe, for commands that `steer run` starts.
    ///
    /// # Errors
    /// If it cannot be shown to them.
    pub fn probe_of_users(&self) -> Result<&'static str> {
        self.show_programs()?;
        Ok(PROBE)
    }

    /// Binds the programs to places that every user may read.
    fn show_programs(&self) -> Result<()> {
        let programs = [(executable::steer()?, STEER), (executable::probe()?, PROBE)];
        self.host().run(|| {
            for (program, at) in &programs {
                if Path::new(at).exists() {
                    continue;
                }
                File::create(at).with_context(|| format!("make {at}"))?;
                let bound = mount(
                    Some(program.as_path()),
                    *at,
                    None::<&str>,
                    MsFlags::MS_BIND,
                    None::<&str>,
                );
                bound.with_context(|| format!("bind {} to {at}", program.display()))?;
            }
            Ok(())
        })
    }

    /// Makes the host's `/etc/passwd` or `/etc/group` say this and no more.
    ///
    /// # Errors
    /// If it cannot be written.
    pub fn write_accounts(&self, file: &str, text: &str) -> Result<()> {
        self.host().run(|| {
            // It is a link to the machine's own.
            if fs::symlink_metadata(file).is_ok_and(|about| about.is_symlink()) {
                fs::remove_file(file).with_context(|| format!("remove the link {file}"))?;
            }
            fs::write(file, text).with_context(|| format!("write {file}"))
        })
    }
}
