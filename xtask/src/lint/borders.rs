//! Module borders: which crate is known where, and what the pure core may not touch.

use super::Finding;
use super::paths::{Names, Path};
use super::tree::{File, Tree};

/// Paths that may be named in one place only, or not at all.
struct Border {
    /// Crates or longer paths; with a `*` at the end, every crate whose name begins so.
    paths: &'static [&'static str],
    /// Where the border holds: files whose path begins so.
    scope: &'static str,
    /// Where the paths may be named all the same: the module, and its own tests.
    allowed: &'static [&'static str],
    /// What to do.
    mend: &'static str,
}

const BORDERS: &[Border] = &[
    Border {
        paths: &["aya", "aya_obj", "aya_log"],
        scope: "",
        allowed: &[
            "agent/src/datapath/",
            "agent/src/datapath.rs",
            "agent/tests/datapath",
        ],
        mend: "only agent/src/datapath knows aya: wrap it there",
    },
    Border {
        paths: &["rtnetlink", "netlink_*"],
        scope: "",
        allowed: &[
            "agent/src/netlink/",
            "agent/src/netlink.rs",
            "agent/tests/netlink",
        ],
        mend: "only agent/src/netlink knows the netlink crates: wrap it there",
    },
    Border {
        paths: &["zlink", "zlink_*"],
        scope: "",
        allowed: &["agent/src/api/", "agent/src/api.rs", "agent/tests/api"],
        mend: "only agent/src/api knows Varlink: wrap it there",
    },
    Border {
        paths: &["zbus", "zbus_*", "zvariant", "zvariant_*"],
        scope: "",
        allowed: &[
            "agent/src/dbus/",
            "agent/src/dbus.rs",
            "agent/tests/dbus",
            // Doubles of those who are asked.
            "tests/tests/connections/managers.rs",
        ],
        mend: "only agent/src/dbus knows D-Bus: wrap it there",
    },
    Border {
        paths: &["hickory_*"],
        scope: "",
        allowed: &[
            "agent/src/probe/dns.rs",
            "agent/tests/probe/dns.rs",
            // The laboratory's own server, and what is asked of it.
            "tests/src/server/dns.rs",
            "tests/tests/bad_networks.rs",
        ],
        mend: "only agent/src/probe/dns.rs knows DNS messages: wrap it there",
    },
    Border {
        paths: &["socket2", "tokio::net::TcpSocket"],
        scope: "agent/src/",
        allowed: &["agent/src/steered.rs"],
        mend: "agent/src/steered.rs makes the agent's sockets: ask it for one",
    },
    Border {
        paths: &["toml", "toml_*"],
        scope: "",
        allowed: &["agent/core/src/config/", "agent/core/src/config.rs"],
        mend: "only agent/core/src/config knows TOML: wrap it there",
    },
    Border {
        paths: &[
            "std::fs",
            "std::env",
            "std::process",
            "std::thread",
            "std::os",
            "std::net::TcpStream",
            "std::net::TcpListener",
            "std::net::UdpSocket",
            "std::net::ToSocketAddrs",
            "std::time::Instant",
            "std::time::SystemTime",
            "libc",
            "nix",
            "tokio",
            "mio",
            "aya",
        ],
        scope: "agent/core/src/",
        allowed: &[],
        mend: "steer-core has no clock, I/O, threads or system calls: take the value as an argument",
    },
];

/// Where `unsafe` may stand: at the edges to the kernel and to libc, in the kernel programs, and in
/// tests that need root.
const UNSAFE: &[&str] = &[
    "agent/src/datapath/",
    "agent/src/netlink/",
    "agent/src/cgroup/",
    // adjtimex(2), which no other crate of ours wraps.
    "agent/src/doctor/clock.rs",
    // malloc_trim(3).
    "agent/src/heap.rs",
    "agent/tests/",
    "ebpf/",
    "tests/",
];

/// Crates that steer-core may not depend on, whether it names them or not.
const NOT_IN_CORE: &[&str] = &["aya", "libc", "nix", "tokio", "mio", "rtnetlink", "zlink"];
const CORE_MANIFEST: &str = "agent/core/Cargo.toml";

pub(super) fn check(tree: &Tree) -> Vec<Finding> {
    let mut findings: Vec<_> = tree.with_ending(".rs").flat_map(check_source).collect();
    let manifests = tree.with_ending(CORE_MANIFEST);
    findings.extend(manifests.flat_map(check_core_manifest));
    findings
}

fn check_source(file: &File) -> Vec<Finding> {
    let names = Names::of(&file.text);
    let begins = |places: &[&str]| places.iter().any(|place| file.path.starts_with(place));
    let mut findings = Vec::new();
    for border in BORDERS {
        if !file.path.starts_with(border.scope) || begins(border.allowed) {
            continue;
        }
        for path in names.paths.iter().filter(|path| is_beyond(border, path)) {
            findings.push(Finding {
                file: file.path.clone(),
                line: path.line,
                text: format!("`{}`: {}", path.text, border.mend),
            });
        }
    }
    if !begins(UNSAFE) {
        findings.extend(names.unsafe_lines.iter().map(|line| Finding {
            file: file.path.clone(),
            line: *line,
            text: format!(
                "`unsafe` stands only in {}: move it to one of them",
                UNSAFE.join(", ")
            ),
        }));
    }
    findings.sort_by_key(|finding| finding.line);
    findings
}

fn is_beyond(border: &Border, path: &Path) -> bool {
    border
        .paths
        .iter()
        .any(|guarded| names(&path.text, guarded))
}

/// Whether a path is the guarded one, lies below it, or brings it in by a glob.
fn names(path: &str, guarded: &str) -> bool {
    if let Some(beginning) = guarded.strip_suffix('*') {
        let first = path.split("::").next().unwrap_or(path);
        return first.starts_with(beginning);
    }
    let below = |whole: &str, above: &str| {
        whole
            .strip_prefix(above)
            .is_some_and(|rest| rest.is_empty() || rest.starts_with("::"))
    };
    below(path, guarded)
        || path
            .strip_suffix("::*")
            .is_some_and(|module| guarded != module && below(guarded, module))
}

fn check_core_manifest(file: &File) -> Vec<Finding> {
    let mut findings = Vec::new();
    let mut section = "";
    for (number, line) in file.text.lines().enumerate() {
        let line = line.trim();
        if let Some(name) = line.strip_prefix('[') {
            section = name.trim_end_matches(']');
        }
        // `[dependencies.x]` is a section, `x = ..` and `x.workspace = ..` are lines.
        let named = match section.split_once("dependencies.") {
            Some((_, name)) if line.starts_with('[') => Some(name),
            _ if section.ends_with("dependencies") => line.split(['=', '.']).next(),
            _ => None,
        };
        let named = named.map(|name| name.trim().trim_matches('"'));
        if let Some(name) = named.filter(|name| NOT_IN_CORE.contains(name)) {
            findings.push(Finding {
                file: file.path.clone(),
                line: number + 1,
                text: format!("steer-core may not depend on {name}: remove it"),
            });
        }
    }
    findings
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOTHING: [usize; 0] = [];

    fn lines(path: &str, text: &str) -> Vec<usize> {
        let file = File {
            path: path.to_owned(),
            text: text.to_owned(),
        };
        let findings = if path.ends_with(".toml") {
            check_core_manifest(&file)
        } else {
            check_source(&file)
        };
        findings.into_iter().map(|finding| finding.line).collect()
    }

    #[test]
    fn a_crate_is_known_in_its_module_alone() {
        let source = "//! aya in words\nuse aya::Ebpf;\nfn f() -> aya::Ebpf {}\n";
        assert_eq!(lines("agent/src/daemon/mod.rs", source), [2, 3]);
        assert_eq!(lines("agent/src/datapath/load.rs", source), NOTHING);
        assert_eq!(lines("agent/src/datapath.rs", source), NOTHING);
        assert_eq!(lines("agent/tests/datapath/load.rs", source), NOTHING);
        assert_eq!(lines("agent/tests/api.rs", source), [2, 3]);
        assert_eq!(lines("agent/src/datapaths/load.rs", source), [2, 3]);
        assert_eq!(
            lines("agent/src/cli/run.rs", "use netlink_sys::Socket;"),
            [1]
        );
        assert_eq!(
            lines("agent/src/api/server.rs", "use zlink::Server;"),
            NOTHING
        );
        assert_eq!(
            lines("agent/src/cli/run.rs", "use crate::api::zlink;"),
            NOTHING
        );
        assert_eq!(
            lines("ebpf/src/main.rs", "use aya_ebpf::macros::map;"),
            NOTHING
        );
        let bus = "use zbus::Connection;\nuse zvariant::Value;";
        assert_eq!(lines("agent/src/daemon/serve.rs", bus), [1, 2]);
        assert_eq!(lines("agent/src/dbus/bus.rs", bus), NOTHING);
        assert_eq!(lines("agent/tests/dbus/double.rs", bus), NOTHING);
        let sockets = "use socket2::Socket;\nuse hickory_net::udp;";
        assert_eq!(lines("agent/src/steered.rs", sockets), [2]);
        assert_eq!(lines("agent/src/probe/dns.rs", sockets), [1]);
        assert_eq!(lines("agent/src/probe/tcp.rs", sockets), [1, 2]);
        assert_eq!(lines("agent/tests/probe/icmp.rs", sockets), [2]);
        assert_eq!(lines("agent/build.rs", "aya_build::build_ebpf();"), NOTHING);
    }

    #[test]
    fn core_has_no_clock_and_no_input() {
        let path = "agent/core/src/select.rs";
        assert_eq!(
            lines(path, "use std::{fs, time::{Duration, Instant}};"),
            [1, 1]
        );
        assert_eq!(
            lines(path, "use std::time;\nlet t = time::SystemTime::now();"),
            [2]
        );
        assert_eq!(lines(path, "use std::time::*;"), [1]);
        assert_eq!(
            lines(path, "use std::time::Duration;\nuse std::net::IpAddr;"),
            NOTHING
        );
        assert_eq!(lines(path, "use std::net::TcpStream;\nfs::read();"), [1]);
        assert_eq!(lines("agent/core/tests/plan.rs", "use std::fs;"), NOTHING);
    }

    #[test]
    fn unsafe_stands_at_the_edges_alone() {
        let source = "fn f() {\n    unsafe { g() }\n}";
        assert_eq!(lines("agent/src/daemon/mod.rs", source), [2]);
        assert_eq!(lines("common/src/lib.rs", source), [2]);
        assert_eq!(lines("agent/src/netlink/diag.rs", source), NOTHING);
        assert_eq!(lines("tests/src/lab.rs", source), NOTHING);
    }

    #[test]
    fn core_depends_on_nothing_that_does_io() {
        let manifest = "[package]\nname = \"libc\"\n[dependencies]\nlibc = \"0.2\"\n\
                        nix.workspace = true\nserde = \"1\"\n[dev-dependencies.tokio]\nversion = \"1\"\n";
        assert_eq!(lines(CORE_MANIFEST, manifest), [4, 5, 7]);
    }
}
