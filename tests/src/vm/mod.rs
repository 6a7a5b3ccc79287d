//! Virtual machines with a kernel of their own: what this machine's kernel lacks is tested there.
//!
//! A [`Vm`] boots one of Debian's kernels in qemu. It emulates, so that it runs wherever tests run, and in some
//! seconds. All that there is comes with its initial file system: modules, programs with their libraries, and an
//! init that runs one scenario of the program `guest` and turns the machine off. What the scenario needs of a
//! laboratory it makes there, as at any host: the machine is nobody else's, and has no network but its own.

mod image;
mod kernel;
mod libraries;

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read, Seek};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use nix::sys::signal::Signal;

use crate::executable;
use crate::wait;
use image::Image;
use kernel::Kernel;

/// How long a machine may take from its start to its end. Some scenarios wait for much, and an emulated processor is
/// a slow one.
const DEADLINE: Duration = Duration::from_secs(300);
/// The line of the console after which the scenario speaks.
const BEGIN: &str = "-- scenario begins";
/// How the line begins that says by which code the scenario ended.
const END: &str = "-- scenario ended by code ";
/// Where programs are in the machine.
const BIN: &str = "bin";
/// Modules of what laboratories are made of, and of what steer uses.
const MODULES: [&str; 8] = [
    "cls_bpf",
    "inet_diag",
    "nft_socket",
    "raw_diag",
    "sch_ingress",
    "tcp_diag",
    "udp_diag",
    "veth",
];
/// The kernel that is booted, as the directory is named into which `cargo xtask setup` unpacks it.
const KERNEL: &str = "linux-image-6.12-amd64";

/// A machine that can be booted, once or again.
#[derive(Debug)]
pub struct Vm {
    kernel: Kernel,
    modules: Vec<String>,
    /// By what they are called in the machine.
    programs: BTreeMap<String, PathBuf>,
}

/// What a machine has said, and how long it took.
#[derive(Clone, Debug)]
pub struct Ended {
    /// All that the scenario printed.
    pub printed: String,
    /// From the start of qemu to its end.
    pub took: Duration,
}

impl Vm {
    /// A machine with the `steer` under test, the laboratory's own programs, and what those call.
    ///
    /// # Errors
    /// If there is no kernel to boot, or a program is missing; with what to do.
    pub fn new() -> Result<Self> {
        let mut programs = BTreeMap::from([("steer".to_owned(), executable::steer()?)]);
        for own in ["guest", "steer-probe"] {
            programs.insert(own.to_owned(), executable::own(own)?);
        }
        let vm = Self {
            kernel: Kernel::of(KERNEL)?,
            modules: MODULES.map(str::to_owned).to_vec(),
            programs,
        };
        vm.programs(["busybox", "ip"])
    }

    /// Takes these modules along, with what they need. None is loaded before something asks for it, as at a host.
    #[must_use]
    pub fn modules<'a>(mut self, names: impl IntoIterator<Item = &'a str>) -> Self {
        self.modules.extend(names.into_iter().map(str::to_owned));
        self
    }

    /// Takes these programs of this machine along, with their libraries.
    ///
    /// # Errors
    /// If one is missing.
    pub fn programs<'a>(mut self, names: impl IntoIterator<Item = &'a str>) -> Result<Self> {
        for name in names {
            self.programs
                .insert(name.to_owned(), executable::installed(name)?);
        }
        Ok(self)
    }

    /// Boots, runs the scenario, and waits until the machine has turned itself off.
    ///
    /// # Errors
    /// If it cannot be booted, does not end in time, or the scenario fails; with all that was printed.
    pub fn run(&self, scenario: &str) -> Result<Ended> {
        let files = self.files(scenario)?;
        let log = tempfile::tempfile().context("make the console's log")?;
        let start = Instant::now();
        let mut running = Running {
            qemu: self.start(files.path(), &log)?,
            log,
        };
        let waited = wait::until_within(DEADLINE, "the virtual machine to end", || {
            running.qemu.try_wait().context("wait for qemu")
        });
        let took = start.elapsed();
        let console = running.end()?;
        waited
            .and_then(|_| scenario_of(&console))
            .map(|printed| Ended {
                printed: printed.to_owned(),
                took,
            })
            .with_context(|| format!("scenario {scenario}; the console said:\n{console}"))
    }

    /// The initial file system.
    fn files(&self, scenario: &str) -> Result<tempfile::NamedTempFile> {
        let mut file = tempfile::NamedTempFile::new().context("make the initial file system")?;
        let mut image = Image::new(io::BufWriter::new(&mut file));
        for directory in ["dev", "etc", "proc", "run", "sys", "tmp", "var/lib"] {
            image.directory(Path::new(directory))?;
        }
        // Where the kernel looks for modprobe, and steer for whatever it may call.
        for link in ["sbin", "usr/bin", "usr/sbin"] {
            image.link(Path::new(link), &Path::new("/").join(BIN))?;
        }
        image.text(Path::new("init"), 0o755, &init(scenario))?;
        for (name, program) in &self.programs {
            image.copy(program, &Path::new(BIN).join(name), 0o755)?;
        }
        for library in libraries::of(self.programs.values())? {
            let place = library.strip_prefix("/").context("a relative library")?;
            image.copy(&library, place, 0o755)?;
        }
        self.kernel
            .install(&mut image, self.modules.iter().map(String::as_str))?;
        image.finish()?;
        Ok(file)
    }

    fn start(&self, files: &Path, log: &File) -> Result<Child> {
        let mut command = Command::new(executable::installed("qemu-system-x86_64")?);
        command
            .args(["-machine", "q35,accel=tcg", "-cpu", "max", "-smp", "2"])
            .args(["-m", "1G", "-nic", "none", "-nographic", "-no-reboot"])
            // A kernel that panics ends the machine.
            .args(["-append", "console=ttyS0 quiet panic=-1"])
            .arg("-kernel")
            .arg(self.kernel.image())
            .arg("-initrd")
            .arg(files)
            .stdin(Stdio::null())
            .stdout(log.try_clone().context("share the console's log")?)
            .stderr(log.try_clone().context("share the console's log")?);
        let follow = || nix::sys::prctl::set_pdeathsig(Signal::SIGKILL).map_err(io::Error::from);
        // SAFETY: between fork and exec the closure makes one system call; it neither allocates nor takes locks.
        unsafe {
            command.pre_exec(follow);
        }
        command.spawn().context("start qemu")
    }
}

/// What the machine's first process does: mounts, the scenario, and the end.
fn init(scenario: &str) -> String {
    format!(
        "#!/{BIN}/busybox sh\n\
         export PATH=/{BIN} STEER_BIN=/{BIN}/steer\n\
         /{BIN}/busybox --install -s /{BIN} 2>/dev/null\n\
         mount -t proc proc /proc\n\
         mount -t sysfs sysfs /sys\n\
         mount -t devtmpfs devtmpfs /dev\n\
         mount -t tmpfs tmpfs /run\n\
         mount -t tmpfs tmpfs /tmp\n\
         mount -t cgroup2 cgroup2 /sys/fs/cgroup\n\
         mount -t bpf bpf /sys/fs/bpf\n\
         mount -t debugfs debugfs /sys/kernel/debug\n\
         echo '{BEGIN}'\n\
         guest {scenario}\n\
         echo \"{END}$?\"\n\
         poweroff -f\n"
    )
}

/// A machine that runs. It is turned off when this is dropped.
struct Running {
    qemu: Child,
    log: File,
}

impl Running {
    /// Turns it off if it has not ended, and returns all that it printed.
    fn end(mut self) -> Result<String> {
        self.turn_off();
        let mut bytes = Vec::new();
        self.log.rewind().context("read the console's log")?;
        let read = self.log.read_to_end(&mut bytes);
        read.context("read the console's log")?;
        Ok(String::from_utf8_lossy(&bytes).replace('\r', ""))
    }

    fn turn_off(&mut self) {
        // It has ended by itself if all went well.
        drop(self.qemu.kill());
        drop(self.qemu.wait());
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.turn_off();
    }
}

/// What the scenario printed, if it ended well.
fn scenario_of(console: &str) -> Result<&str> {
    let Some((_, printed)) = console.split_once(BEGIN) else {
        bail!("the machine did not come to the scenario");
    };
    let Some((printed, code)) = printed.split_once(END) else {
        bail!("the machine ended before the scenario");
    };
    let code = code.lines().next().unwrap_or_default();
    ensure!(code == "0", "the scenario ended by code {code}");
    Ok(printed.trim())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_scenario_that_ended_by_code_0_has_passed() {
        let console = |end: &str| format!("SeaBIOS\n{BEGIN}\nall is well\n{end}");
        let passed = console(&format!("{END}0\n[ 9.1] reboot: Power down\n"));
        assert_eq!(scenario_of(&passed).ok(), Some("all is well"));
        for failed in [
            String::new(),
            console(""),
            console(&format!("{END}1\n")),
            console(&format!("{END}101\n")),
        ] {
            assert!(scenario_of(&failed).is_err(), "{failed}");
        }
    }
}
