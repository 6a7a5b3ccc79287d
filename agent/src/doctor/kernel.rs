//! What the kernel can do for steer, found by doing.

use std::fs;
use std::io;
use std::path::Path;

use nix::sys::socket::{AddressFamily, SockFlag, SockType, getsockopt, socketpair, sockopt};
use steer_common::MarkMask;

use super::code::Code;
use super::finding::{Finding, Seen, Unchecked};
use super::own_network;
use crate::datapath::{self, Loaded};
use crate::netlink;
use crate::reconcile::chain;

/// The oldest kernel that steer is made for.
const FLOOR: (u32, u32) = (6, 1);

/// What is known of the kernel.
#[derive(Clone, Debug)]
pub struct KernelFacts {
    /// Its release, as `uname -r` says.
    pub release: String,
    /// Type information is there.
    pub btf: bool,
    /// Lockdown: none, integrity or confidentiality.
    pub lockdown: Option<String>,
    /// `net.core.bpf_jit_enable` is not 0.
    pub jit: Seen<bool>,
    /// The kernel has SO_PEERPIDFD.
    pub peer_pidfd: bool,
    /// A BPF file system is at /sys/fs/bpf.
    pub bpffs: bool,
    /// What came of loading the programs.
    pub programs: Seen<Programs>,
    /// What came of the netlink requests.
    pub netlink: Seen<NetlinkFacts>,
}

/// What came of loading the programs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Programs {
    /// The bpf system call is not permitted.
    NotPermitted(String),
    /// Nothing could be loaded.
    Failed(String),
    /// The kernel judged each.
    Judged(Loaded),
}

/// What came of netlink requests in a network namespace of its own.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NetlinkFacts {
    /// Rules that the kernel refused, a line each.
    pub refused_rules: Vec<String>,
    /// Why sockets cannot be listed by mark.
    pub marks: Option<String>,
    /// The kernel closes sockets on request.
    pub closes: bool,
}

/// Looks.
pub(super) fn gather(root: bool, mask: MarkMask) -> KernelFacts {
    let release = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let probed = if root {
        own_network::run(async move { (programs(mask), requests().await) })
    } else {
        Err(Unchecked::needs_root(PROGRAMS))
    };
    let (programs, netlink) = match probed {
        Ok((programs, netlink)) => (Ok(programs), netlink),
        Err(unchecked) => {
            let netlink = Unchecked::failed(REQUESTS, unchecked.why.clone());
            (Err(unchecked), Err(netlink))
        }
    };
    KernelFacts {
        release: release.trim().to_owned(),
        btf: Path::new("/sys/kernel/btf/vmlinux").exists(),
        lockdown: fs::read_to_string("/sys/kernel/security/lockdown")
            .ok()
            .and_then(|text| chosen(&text)),
        jit: jit(root),
        peer_pidfd: peer_pidfd(),
        bpffs: datapath::is_bpffs(Path::new("/sys/fs/bpf")).unwrap_or(false),
        programs,
        netlink,
    }
}

const PROGRAMS: &str = "whether the kernel takes steer's programs";
const REQUESTS: &str = "whether the kernel takes steer's rules";

fn programs(mask: MarkMask) -> Programs {
    match datapath::probe(mask) {
        Ok(loaded) => Programs::Judged(loaded),
        Err((true, error)) => Programs::NotPermitted(chain(&error)),
        Err((false, error)) => Programs::Failed(chain(&error)),
    }
}

async fn requests() -> Seen<NetlinkFacts> {
    let failed = |error: netlink::Error| Unchecked::failed(REQUESTS, chain(&error));
    Ok(NetlinkFacts {
        refused_rules: netlink::refused_rules().await.map_err(failed)?,
        marks: netlink::sockets_with_mark(1, 1)
            .await
            .err()
            .map(|error| chain(&error)),
        closes: netlink::closes_sockets().await.map_err(failed)?,
    })
}

/// Whether programs are compiled. The setting is not there where it cannot be changed: in network
/// namespaces other than the host's, and in kernels that always compile.
fn jit(root: bool) -> Seen<bool> {
    const WHAT: &str = "whether kernel programs are compiled";
    match fs::read_to_string("/proc/sys/net/core/bpf_jit_enable") {
        Ok(text) => Ok(text.trim() != "0"),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(true),
        Err(_) if !root => Err(Unchecked::needs_root(WHAT)),
        Err(error) => Err(Unchecked::failed(WHAT, error.to_string())),
    }
}

fn peer_pidfd() -> bool {
    let pair = socketpair(
        AddressFamily::Unix,
        SockType::Stream,
        None,
        SockFlag::SOCK_CLOEXEC,
    );
    pair.is_ok_and(|(one, _other)| getsockopt(&one, sockopt::PeerPidfd).is_ok())
}

/// The word in brackets: `none [integrity] confidentiality`.
fn chosen(text: &str) -> Option<String> {
    let (_, rest) = text.split_once('[')?;
    Some(rest.split_once(']')?.0.to_owned())
}

/// Major and minor number of a release.
fn version(release: &str) -> Option<(u32, u32)> {
    let mut numbers = release.split(|c: char| !c.is_ascii_digit());
    Some((numbers.next()?.parse().ok()?, numbers.next()?.parse().ok()?))
}

/// Judges.
pub(super) fn judge(facts: &KernelFacts, findings: &mut Vec<Finding>) {
    let mut say = |finding: Finding| findings.push(finding);
    if let Some(version) = version(&facts.release)
        && version < FLOOR
    {
        let text = format!("the kernel is {}, older than 6.1", facts.release);
        say(Finding::new(Code::K01, text).usual_mend());
    }
    if !facts.btf {
        let text = "there is no /sys/kernel/btf/vmlinux";
        say(Finding::new(Code::K03, text).usual_mend());
    }
    match &facts.programs {
        Ok(Programs::NotPermitted(why)) => {
            let lockdown = facts.lockdown.as_deref().filter(|mode| *mode != "none");
            let because = lockdown.map_or(String::new(), |mode| {
                format!(" (kernel lockdown is in {mode} mode)")
            });
            let text = format!("the bpf system call is refused{because}: {why}");
            say(Finding::new(Code::K02, text).usual_mend());
        }
        // Without type information nothing else is to be expected.
        Ok(Programs::Failed(_)) if !facts.btf => {}
        Ok(Programs::Failed(why)) => {
            let text = format!("the kernel programs cannot be loaded: {why}");
            say(Finding::new(Code::K04, text).usual_mend());
        }
        Ok(Programs::Judged(loaded)) => {
            for refused in &loaded.refused {
                let words = format!("program {}: {}", refused.program, refused.why);
                say(if refused.optional {
                    let text = format!("this kernel ({}) refuses {words}", facts.release);
                    Finding::new(Code::K05, text)
                } else {
                    let text = format!("the kernel refuses {words}");
                    Finding::new(Code::K04, text).usual_mend()
                });
            }
            if !loaded.tcx {
                let text = format!(
                    "this kernel ({}) has no tcx: guards are filters of a clsact qdisc",
                    facts.release
                );
                say(Finding::new(Code::K06, text));
            }
        }
        Err(_) => {}
    }
    if let Ok(netlink) = &facts.netlink {
        for refused in &netlink.refused_rules {
            let text = format!("the kernel refuses {refused}");
            say(Finding::new(Code::K07, text).usual_mend());
        }
        if let Some(why) = &netlink.marks {
            let text = format!("sockets cannot be listed by their mark: {why}");
            say(Finding::new(Code::K08, text).mend("modprobe tcp_diag udp_diag"));
        }
        if !netlink.closes {
            let text = "the kernel was built without CONFIG_INET_DIAG_DESTROY";
            say(Finding::new(Code::K09, text));
        }
    }
    if !facts.peer_pidfd {
        let text = format!("this kernel ({}) has no SO_PEERPIDFD", facts.release);
        say(Finding::new(Code::K10, text));
    }
    if !facts.bpffs {
        let text = "there is no BPF file system at /sys/fs/bpf: the agent will mount one";
        say(Finding::new(Code::K11, text));
    }
    if let Ok(false) = facts.jit {
        let text = "net.core.bpf_jit_enable is 0";
        say(Finding::new(Code::K12, text).mend("sysctl net.core.bpf_jit_enable=1"));
    }
}

/// What could not be looked at.
pub(super) fn unchecked(facts: &KernelFacts) -> impl Iterator<Item = Unchecked> {
    [
        facts.jit.as_ref().err(),
        facts.programs.as_ref().err(),
        facts.netlink.as_ref().err(),
    ]
    .into_iter()
    .flatten()
    .cloned()
}
