//! Network namespaces (with a private mount namespace for the host) held by file descriptors alone.
//!
//! Nothing is named under `/run/netns`: when the last descriptor and the last process in it are gone,
//! so is the namespace, however the test ended.

use std::ffi::OsStr;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::Command;
use std::sync::Arc;

use anyhow::{Context, Result, anyhow};
use nix::sched::{CloneFlags, setns, unshare};
use nix::sys::signal::{SigSet, Signal};

/// A network namespace, and for the laboratory's host a mount namespace.
#[derive(Clone, Debug)]
pub struct Namespace(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    net: OwnedFd,
    mount: Option<OwnedFd>,
}

impl Namespace {
    /// A new network namespace.
    ///
    /// # Errors
    /// If the kernel refuses: the laboratory needs root.
    pub fn new() -> Result<Self> {
        Self::unshared(CloneFlags::CLONE_NEWNET, || Ok(()))
    }

    /// A new network namespace with a private mount namespace, which `prepare` fills from inside.
    ///
    /// # Errors
    /// As [`Namespace::new`], or the error of `prepare`.
    pub fn with_mounts(prepare: impl FnOnce() -> Result<()> + Send) -> Result<Self> {
        Self::unshared(CloneFlags::CLONE_NEWNET | CloneFlags::CLONE_NEWNS, prepare)
    }

    fn unshared(flags: CloneFlags, prepare: impl FnOnce() -> Result<()> + Send) -> Result<Self> {
        on_own_thread(|| {
            unshare(flags).context("unshare namespaces: the laboratory needs root")?;
            prepare()?;
            let net = File::open("/proc/thread-self/ns/net").context("open network namespace")?;
            let mount = flags
                .contains(CloneFlags::CLONE_NEWNS)
                .then(|| File::open("/proc/thread-self/ns/mnt").context("open mount namespace"))
                .transpose()?;
            Ok(Self(Arc::new(Inner {
                net: net.into(),
                mount: mount.map(Into::into),
            })))
        })
    }

    /// Runs `f` on a thread inside the namespaces and returns what it returned.
    ///
    /// Sockets that `f` makes stay in the namespace wherever they are used later.
    ///
    /// # Errors
    /// If the namespace cannot be entered, or the error of `f`.
    pub fn run<T: Send>(&self, f: impl FnOnce() -> Result<T> + Send) -> Result<T> {
        on_own_thread(|| {
            self.enter()?;
            f()
        })
    }

    /// Moves the calling thread into the namespaces for the rest of its life.
    ///
    /// # Errors
    /// If the kernel refuses.
    pub(crate) fn enter(&self) -> Result<()> {
        if let Some(mount) = &self.0.mount {
            // A thread that shares its file system attributes may not change its mount namespace.
            unshare(CloneFlags::CLONE_FS).context("unshare file system attributes")?;
            setns(mount, CloneFlags::CLONE_NEWNS).context("enter mount namespace")?;
        }
        setns(&self.0.net, CloneFlags::CLONE_NEWNET).context("enter network namespace")
    }

    /// A command that will run inside the namespaces. It dies with the thread that starts it.
    ///
    /// `program` is looked up in PATH, or absolute: the working directory becomes `/` when there is a
    /// mount namespace.
    pub fn command(&self, program: impl AsRef<OsStr>) -> Command {
        let mut command = Command::new(program);
        let inner = Arc::clone(&self.0);
        let enter = move || -> io::Result<()> {
            nix::sys::prctl::set_pdeathsig(Signal::SIGKILL)?;
            // Signals that the laboratory's own process has blocked are not to be blocked in programs.
            SigSet::empty().thread_set_mask()?;
            if let Some(mount) = &inner.mount {
                setns(mount, CloneFlags::CLONE_NEWNS)?;
            }
            setns(&inner.net, CloneFlags::CLONE_NEWNET)?;
            Ok(())
        };
        // SAFETY: between fork and exec the closure makes system calls only (prctl, sigprocmask, setns); it
        // neither allocates nor takes locks.
        unsafe {
            command.pre_exec(enter);
        }
        command
    }

    /// A path under `/proc` that names the network namespace while `self` lives, as `ip` takes it.
    pub(crate) fn path(&self) -> PathBuf {
        PathBuf::from(format!(
            "/proc/{}/fd/{}",
            std::process::id(),
            self.0.net.as_raw_fd()
        ))
    }

    /// Inode of the network namespace, as `/proc/PID/ns/net` shows it.
    ///
    /// # Errors
    /// If the descriptor cannot be asked.
    pub fn inode(&self) -> Result<u64> {
        Ok(nix::sys::stat::fstat(self.0.net.as_fd())
            .context("stat network namespace")?
            .st_ino)
    }
}

/// Runs `f` on a fresh thread, so that what it unshares or enters ends with it.
pub(crate) fn on_own_thread<T: Send>(f: impl FnOnce() -> Result<T> + Send) -> Result<T> {
    std::thread::scope(|scope| {
        scope.spawn(f).join().unwrap_or_else(|panic| {
            let text = panic
                .downcast_ref::<String>()
                .map(String::as_str)
                .or_else(|| panic.downcast_ref::<&str>().copied())
                .unwrap_or("no message");
            Err(anyhow!("a laboratory thread panicked: {text}"))
        })
    })
}
