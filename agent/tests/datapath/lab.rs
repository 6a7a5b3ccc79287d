//! A small host: a network namespace with two uplinks to a peer, a cgroup, and a BPF file system,
//! all of its own and gone with it.

use std::{
    collections::BTreeSet,
    fs,
    os::fd::OwnedFd,
    path::{Path, PathBuf},
    process::Command,
    sync::{
        Once,
        atomic::{AtomicU32, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use nix::{
    mount::{MsFlags, mount},
    sched::{CloneFlags, setns, unshare},
};
use steer::datapath::{Datapath, Hook, Options, Tables, ensure_bpffs};
use steer_common::{
    CgroupEntry, ChoiceEntry, DomainEntry, IngressEntry, LAYOUT_VERSION, MarkMask, PolicyEntry,
    SourceKey, domain_flags, policy_flags, verdict,
};
use steer_core::rules::{Rule, compile::compile};

#[path = "../../../tests/src/abandoned.rs"]
#[expect(
    unreachable_pub,
    reason = "it is the laboratory's of the scenarios, too"
)]
mod abandoned;

/// Index of the domain on `h1`.
pub(crate) const ONE: u32 = 1;
/// Index of the domain on `h2`.
pub(crate) const TWO: u32 = 2;
/// An address that the peer has, reached by either uplink.
pub(crate) const SERVER4: &str = "192.0.2.1";
/// The same for IPv6.
pub(crate) const SERVER6: &str = "2001:db8::1";

static NEXT: AtomicU32 = AtomicU32::new(0);
/// What tests have left that were killed is gone.
static SWEPT: Once = Once::new();

/// The host.
pub(crate) struct Lab {
    pub(crate) cgroup: PathBuf,
    pub(crate) pins: PathBuf,
    datapath: Option<Datapath>,
    peer: OwnedFd,
    _scratch: tempfile::TempDir,
    _group: Cgroup,
}

/// The mark of a domain.
pub(crate) fn mark(domain: u32) -> u32 {
    MarkMask::DEFAULT
        .encode(u16::try_from(domain).unwrap())
        .unwrap()
}

/// Marks what arrives with a domain's mark.
pub(crate) fn arriving(domain: u32) -> IngressEntry {
    IngressEntry {
        mark: mark(domain),
        flags: 0,
    }
}

/// Runs `test` on a new host. It has a thread of its own, because namespaces belong to threads.
pub(crate) fn on_a_new_host(test: impl FnOnce(&mut Lab) + Send + 'static) {
    let outcome = thread::spawn(move || {
        let mut lab = Lab::new();
        test(&mut lab);
    })
    .join();
    if let Err(panic) = outcome {
        std::panic::resume_unwind(panic);
    }
}

/// Where cgroup2 is mounted.
fn cgroup_mount() -> PathBuf {
    fs::read_to_string("/proc/self/mountinfo")
        .unwrap()
        .lines()
        .find(|line| line.contains(" - cgroup2 "))
        .map(|line| PathBuf::from(line.split(' ').nth(4).unwrap()))
        .expect("these tests need a cgroup2 mount")
}

/// The network namespace that this thread is in.
fn this_netns() -> OwnedFd {
    fs::File::open("/proc/thread-self/ns/net").unwrap().into()
}

/// Runs `ip` with the words of `arguments`, in this thread's namespace.
pub(crate) fn ip(arguments: &str) {
    let output = Command::new("ip")
        .args(arguments.split_whitespace())
        .output()
        .expect("these tests need iproute2");
    assert!(
        output.status.success(),
        "ip {arguments}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
}

pub(crate) fn sysctl(name: &str, value: &str) {
    fs::write(Path::new("/proc/sys/net").join(name), value).unwrap();
}

impl Lab {
    fn new() -> Self {
        assert!(nix::unistd::geteuid().is_root(), "these tests need root");
        unshare(CloneFlags::CLONE_NEWNET | CloneFlags::CLONE_NEWNS).unwrap();
        mount(
            None::<&str>,
            "/",
            None::<&str>,
            MsFlags::MS_REC | MsFlags::MS_PRIVATE,
            None::<&str>,
        )
        .unwrap();
        let scratch = tempfile::tempdir().unwrap();
        assert!(ensure_bpffs(scratch.path()).unwrap());
        assert!(!ensure_bpffs(scratch.path()).unwrap());
        let mount = cgroup_mount();
        SWEPT.call_once(|| abandoned::sweep(&mount).unwrap());
        let cgroup = mount.join(format!(
            "{}{}-{}",
            abandoned::PREFIXES[1],
            std::process::id(),
            NEXT.fetch_add(1, Ordering::Relaxed)
        ));
        let own = abandoned::make(&cgroup).unwrap();
        let group = Cgroup(cgroup.clone(), own);
        let peer = thread::spawn(|| {
            unshare(CloneFlags::CLONE_NEWNET).unwrap();
            this_netns()
        })
        .join()
        .unwrap();
        let pins = scratch.path().join("steer");
        let datapath = Some(open(&pins, &cgroup));
        let lab = Self {
            cgroup,
            pins,
            datapath,
            peer,
            _scratch: scratch,
            _group: group,
        };
        lab.lay_cables();
        lab
    }

    /// Connects `h<number>` here with `p<number>` at the peer, with addresses.
    pub(crate) fn lay_cable(&self, number: u32) {
        let path = format!(
            "/proc/{}/fd/{}",
            std::process::id(),
            std::os::fd::AsRawFd::as_raw_fd(&self.peer)
        );
        ip(&format!(
            "link add h{number} type veth peer name p{number} netns {path}"
        ));
        let addresses = |side: char, host: u32| {
            ip(&format!(
                "addr add 10.0.{number}.{host}/24 dev {side}{number}"
            ));
            ip(&format!(
                "addr add fd00:{number}::{host}/64 dev {side}{number} nodad"
            ));
            ip(&format!("link set {side}{number} up"));
        };
        addresses('h', 2);
        self.in_peer(|| addresses('p', 1));
    }

    fn lay_cables(&self) {
        ip("link set lo up");
        self.in_peer(|| {
            ip("link set lo up");
            ip(&format!("addr add {SERVER4}/32 dev lo"));
            ip(&format!("addr add {SERVER6}/128 dev lo"));
        });
        for domain in [ONE, TWO] {
            self.lay_cable(domain);
        }
        let mask = MarkMask::DEFAULT.bits();
        for domain in [ONE, TWO] {
            let table = 100 + domain;
            let fwmark = mark(domain);
            for (family, source, gateway) in [
                ("-4", format!("10.0.{domain}.2"), format!("10.0.{domain}.1")),
                (
                    "-6",
                    format!("fd00:{domain}::2"),
                    format!("fd00:{domain}::1"),
                ),
            ] {
                ip(&format!(
                    "{family} route add default via {gateway} dev h{domain} src {source} table {table}"
                ));
                ip(&format!(
                    "{family} rule add from {source} lookup {table} pref 1000"
                ));
                ip(&format!(
                    "{family} rule add fwmark {fwmark}/{mask} lookup {table} pref 2000"
                ));
            }
        }
        ip("-4 route add default via 10.0.1.1 dev h1");
        ip("-6 route add default via fd00:1::1 dev h1");
        sysctl("ipv4/ping_group_range", "0 2147483647");
    }

    /// Runs `what` in the peer's namespace.
    pub(crate) fn in_peer<T: Send>(&self, what: impl FnOnce() -> T + Send) -> T {
        thread::scope(|scope| {
            scope
                .spawn(|| {
                    setns(&self.peer, CloneFlags::CLONE_NEWNET).unwrap();
                    what()
                })
                .join()
                .unwrap()
        })
    }

    /// The datapath.
    pub(crate) fn datapath(&mut self) -> &mut Datapath {
        self.datapath.as_mut().expect("the agent is alive")
    }

    /// Its tables.
    pub(crate) fn maps(&self) -> &Tables {
        &self.datapath.as_ref().expect("the agent is alive").maps
    }

    /// Lets go of everything, as an agent that dies does.
    pub(crate) fn kill_agent(&mut self) {
        self.datapath = None;
    }

    /// Takes over, as the next agent does.
    pub(crate) fn start_agent(&mut self) {
        self.datapath = Some(open(&self.pins, &self.cgroup));
    }

    /// Attaches every hook.
    pub(crate) fn attach_all(&mut self) {
        for hook in Hook::ALL {
            self.datapath().set_hook(hook, true).unwrap();
        }
    }

    /// Lets go of everything, and has what is pinned look like another version's, in the directory that
    /// is returned.
    pub(crate) fn leave_as_another_version(&mut self) -> PathBuf {
        self.kill_agent();
        let (own, other) = (self.layout(), self.pins.join("v7777"));
        fs::rename(own, &other).unwrap();
        other
    }

    /// The directory of this version's pins.
    pub(crate) fn layout(&self) -> PathBuf {
        self.pins.join(format!("v{LAYOUT_VERSION}"))
    }

    /// Every hook that this kernel can have.
    pub(crate) fn hooks(&mut self) -> BTreeSet<Hook> {
        let datapath = self.datapath();
        let can = |hook: &Hook| datapath.supports(*hook);
        Hook::ALL.into_iter().filter(can).collect()
    }

    /// Writes both domains, choices 1 and 2 that steer to them, and choice 3 that blocks.
    pub(crate) fn write_domains(&mut self) {
        let maps = &mut self.datapath().maps;
        for domain in [ONE, TWO] {
            let octet = u8::try_from(domain).unwrap();
            let mut source6 = [0; 16];
            (source6[0], source6[1], source6[3], source6[15]) = (0xfd, 0, octet, 2);
            let mut ifname = [0; 16];
            ifname[..2].copy_from_slice(format!("h{domain}").as_bytes());
            let source4 = [10, 0, octet, 2];
            let entry = DomainEntry {
                mark: mark(domain),
                ifindex: ifindex(&format!("h{domain}")),
                flags: domain_flags::IPV4 | domain_flags::IPV6,
                source4,
                source6,
                public6: source6,
                ifname,
            };
            maps.domains.set(domain, &entry).unwrap();
            let mapped = std::net::Ipv4Addr::from(source4).to_ipv6_mapped().octets();
            maps.sources
                .set(
                    &SourceKey {
                        domain,
                        address: mapped,
                    },
                    &1,
                )
                .unwrap();
            maps.sources
                .set(
                    &SourceKey {
                        domain,
                        address: source6,
                    },
                    &1,
                )
                .unwrap();
            maps.choices
                .set(
                    domain,
                    &ChoiceEntry {
                        verdict: verdict::STEER,
                        domain,
                        share: 0,
                    },
                )
                .unwrap();
        }
        maps.choices
            .set(
                BLOCKED,
                &ChoiceEntry {
                    verdict: verdict::BLOCK,
                    domain: 0,
                    share: 0,
                },
            )
            .unwrap();
    }

    /// Sets policy `index`.
    pub(crate) fn policy(&self, index: u32, choice: u32, flags: u32) {
        let policies = &self.maps().policies;
        if flags & policy_flags::STRICT != 0 {
            let any = PolicyEntry {
                flags: policy_flags::STRICT,
                ..PolicyEntry::default()
            };
            policies.set(0, &any).unwrap();
        }
        policies
            .set(
                index,
                &PolicyEntry {
                    choice,
                    flags,
                    rules: 0,
                },
            )
            .unwrap();
    }

    /// Sets policy `index` with the rules of set `rules` before its own choice.
    pub(crate) fn policy_with_rules(&self, index: u32, choice: u32, flags: u32, rules: u32) {
        self.policy(index, choice, flags);
        let entry = PolicyEntry {
            choice,
            flags,
            rules,
        };
        self.maps().policies.set(index, &entry).unwrap();
    }

    /// Puts a set of rules, each with its choice, at `index`; `otherwise` is what no rule fits.
    pub(crate) fn rules(&self, index: u32, rules: &[(Rule, u32)], otherwise: u32) {
        let rules: Vec<(&Rule, u32)> = rules.iter().map(|(rule, choice)| (rule, *choice)).collect();
        let image = compile(&rules, otherwise).unwrap();
        self.maps().rulesets.set(index, image.pages()).unwrap();
    }

    /// Attaches a guard to both uplinks.
    pub(crate) fn guard_uplinks(&mut self) {
        for interface in ["h1", "h2"] {
            self.datapath().set_guard(ifindex(interface), true).unwrap();
        }
    }

    /// Makes a cgroup below the root and gives it a policy (0: none).
    pub(crate) fn group(&self, name: &str, policy: u32) -> PathBuf {
        let path = self.cgroup.join(name);
        fs::create_dir(&path).unwrap();
        if policy != 0 {
            self.give(&path, policy, 0);
        }
        path
    }

    /// Sets the entry of a cgroup.
    pub(crate) fn give(&self, cgroup: &Path, policy: u32, flags: u32) {
        self.maps()
            .cgroups
            .set(
                &id(cgroup),
                &CgroupEntry {
                    policy,
                    flags,
                    place: 0,
                },
            )
            .unwrap();
        self.maps().count_change().unwrap();
    }
}

/// Choice that blocks.
pub(crate) const BLOCKED: u32 = 3;

/// The id of a cgroup.
pub(crate) fn id(cgroup: &Path) -> u64 {
    std::os::unix::fs::MetadataExt::ino(&fs::metadata(cgroup).unwrap())
}

/// The index of an interface of this thread's namespace.
pub(crate) fn ifindex(name: &str) -> u32 {
    nix::net::if_::if_nametoindex(name).unwrap()
}

fn open(pins: &Path, cgroup: &Path) -> Datapath {
    match Datapath::open(Options {
        pin_root: pins,
        cgroup_root: cgroup,
        mark_mask: MarkMask::DEFAULT,
    }) {
        Ok(datapath) => datapath,
        Err(error) => panic!("{}", chain(&error)),
    }
}

/// An error with all its causes.
pub(crate) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text = format!("{text}: {error}");
        cause = error.source();
    }
    text
}

/// Removes a cgroup when dropped. The file says that it is in use.
struct Cgroup(PathBuf, #[expect(dead_code, reason = "held")] fs::File);

impl Drop for Cgroup {
    fn drop(&mut self) {
        remove_cgroup(&self.0);
    }
}

/// Removes a cgroup below and with `path`, as soon as its processes are gone.
pub(crate) fn remove_cgroup(path: &Path) {
    let deadline = Instant::now() + PATIENCE;
    while path.is_dir() && Instant::now() < deadline {
        for child in fs::read_dir(path).into_iter().flatten().flatten() {
            if child.path().is_dir() {
                remove_cgroup(&child.path());
            }
        }
        if fs::remove_dir(path).is_err() {
            thread::yield_now();
        }
    }
}

/// How long anything may take that must happen.
pub(crate) const PATIENCE: Duration = Duration::from_secs(10);
