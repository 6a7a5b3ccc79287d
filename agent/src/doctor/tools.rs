//! Other managers of the host's network, known by their rules, routes and processes. They are named, not
//! fought.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use steer_core::config::AgentConfig;
use steer_core::ids::TableId;
use steer_core::network::{ForeignRule, Network};

use super::code::Code;
use super::finding::Finding;
use super::rules;

/// What is known of others beside their rules and routes.
#[derive(Clone, Debug, Default)]
pub struct ToolFacts {
    /// Names of all processes, as in /proc/PID/comm.
    pub processes: BTreeSet<String>,
    /// The texts of networkd's configuration, those that count less first.
    pub networkd: Vec<String>,
    /// The text of firewalld.conf.
    pub firewalld: String,
}

/// Looks.
pub(super) fn gather() -> ToolFacts {
    let processes = fs::read_dir("/proc")
        .into_iter()
        .flatten()
        .flatten()
        .filter_map(|entry| fs::read_to_string(entry.path().join("comm")).ok())
        .map(|name| name.trim().to_owned())
        .collect();
    ToolFacts {
        processes,
        networkd: networkd_files()
            .iter()
            .filter_map(|path| fs::read_to_string(path).ok())
            .collect(),
        firewalld: fs::read_to_string("/etc/firewalld/firewalld.conf").unwrap_or_default(),
    }
}

/// The main file (the first of its places that has one), then the drop-ins by name, whichever directory
/// they are in (networkd.conf(5)).
fn networkd_files() -> Vec<PathBuf> {
    const PLACES: [&str; 4] = [
        "/etc/systemd",
        "/run/systemd",
        "/usr/local/lib/systemd",
        "/usr/lib/systemd",
    ];
    let main = PLACES
        .iter()
        .map(|place| Path::new(place).join("networkd.conf"))
        .find(|path| path.exists());
    let mut drop_ins = std::collections::BTreeMap::new();
    for place in PLACES.iter().rev() {
        let entries = fs::read_dir(Path::new(place).join("networkd.conf.d"));
        for entry in entries.into_iter().flatten().flatten() {
            if entry.path().extension().is_some_and(|end| end == "conf") {
                drop_ins.insert(entry.file_name(), entry.path());
            }
        }
    }
    main.into_iter().chain(drop_ins.into_values()).collect()
}

/// Whether networkd leaves rules and routes of others alone, by its configuration.
pub fn networkd_spares_others(texts: &[String]) -> (bool, bool) {
    let (mut rules, mut routes) = (false, false);
    for text in texts {
        let mut section = "";
        for line in text.lines().map(str::trim) {
            if line.starts_with('[') {
                section = line;
            }
            let Some((key, value)) = line.split_once('=') else {
                continue;
            };
            if section != "[Network]" {
                continue;
            }
            let no = matches!(
                value.trim().to_ascii_lowercase().as_str(),
                "no" | "n" | "false" | "f" | "0" | "off"
            );
            match key.trim() {
                "ManageForeignRoutingPolicyRules" => rules = no,
                "ManageForeignRoutes" => routes = no,
                _ => {}
            }
        }
    }
    (rules, routes)
}

/// Whether firewalld drops IPv6 by the way back: the last line that says so, and `yes` if none does.
pub fn firewalld_filters(text: &str) -> bool {
    let value = text.lines().rev().find_map(|line| {
        let value = line.trim().strip_prefix("IPv6_rpfilter")?;
        value.trim_start().strip_prefix('=')
    });
    !matches!(
        value
            .map(|value| value.trim().to_ascii_lowercase())
            .as_deref(),
        Some("no" | "false" | "loose" | "loose-forward")
    )
}

const FULL: u32 = u32::MAX;
/// Mullvad's mark, and the number of its table.
const MULLVAD: u32 = 0x6d6f_6c65;
const MWAN3: u32 = 0x3f00;
const TAILSCALE: u32 = 0x00ff_0000;
const TAILSCALE_TABLE: TableId = TableId(52);

/// Who makes rules like this one.
pub(super) fn owner_of(rule: &ForeignRule) -> Option<&'static str> {
    let table = rule.table.map(|table| table.0);
    let mullvad = rule.fwmark.is_some_and(|(value, _)| value == MULLVAD);
    Some(match rule.fwmark {
        _ if mullvad || table == Some(MULLVAD) => "Mullvad",
        // wg-quick takes one number for the mark and the table.
        Some((value, FULL)) if rule.invert && table == Some(value) => "wg-quick",
        Some((_, TAILSCALE)) if (5200..5300).contains(&rule.priority) => "Tailscale",
        _ if rule.table == Some(TAILSCALE_TABLE) && (5200..5300).contains(&rule.priority) => {
            "Tailscale"
        }
        Some((_, MWAN3)) => "mwan3",
        Some((_, TAILSCALE)) => "pbr",
        Some((0x200 | 0xa00, 0xf00)) if rule.priority < 32 => "Cilium",
        // Felix' rule for WireGuard between nodes.
        Some((_, 0x10_0000)) if rule.invert && rule.priority == 99 => "Calico",
        Some((_, 0xffff | 0x1_ffff | 0x3_ffff | 0xc_ffff | 0x1_0000 | 0x3_0000 | 0xc_0000))
            if (10_000..=32_000).contains(&rule.priority) =>
        {
            "netd"
        }
        _ => return None,
    })
}

/// Judges what is known of others; `config` is steer's.
pub(super) fn judge(
    facts: &ToolFacts,
    network: Option<&Network>,
    config: &AgentConfig,
    findings: &mut Vec<Finding>,
) {
    let running = |name: &str| facts.processes.contains(name);
    let rules_of = |tool: &str| -> Vec<&ForeignRule> {
        network.map_or_else(Vec::new, |network| {
            network
                .rules
                .iter()
                .filter(|rule| owner_of(rule) == Some(tool))
                .collect()
        })
    };
    for (code, tool, processes) in [
        (Code::R10, "wg-quick", &[][..]),
        (Code::R11, "Tailscale", &["tailscaled"]),
        (Code::R12, "Mullvad", &["mullvad-daemon"]),
        (Code::R13, "mwan3", &["mwan3track", "mwan3rtmon"]),
        (Code::R14, "pbr", &[]),
        (Code::R18, "Cilium", &["cilium-agent"]),
        (Code::R20, "netd", &[]),
    ] {
        let rules = rules_of(tool);
        let process = processes.iter().find(|name| running(name));
        let text = match (rules.as_slice(), process) {
            ([], None) => continue,
            ([], Some(process)) => {
                format!("{tool} runs ({process}) and has no rules at the moment")
            }
            (rules, _) => {
                let at = rules::priorities(rules.iter().copied());
                match network.and_then(|network| tunnel(rules, network)) {
                    Some(interface) => format!("{tool} has rules ({at}) into {interface}"),
                    None => format!("{tool} has rules ({at})"),
                }
            }
        };
        let finding = Finding::new(code, text);
        // The one whose mark is in steer's default mask, and whose firewall cares.
        findings.push(if matches!(code, Code::R12 | Code::R13) {
            finding.usual_mend()
        } else {
            finding
        });
    }
    if running("NetworkManager") {
        findings.push(Finding::new(Code::R15, "NetworkManager runs"));
    }
    if running("systemd-network") {
        findings.push(Finding::new(Code::R16, "systemd-networkd runs"));
        let (rules, routes) = networkd_spares_others(&facts.networkd);
        let removed = match (rules, routes) {
            (true, true) => None,
            (false, true) => Some("rules"),
            (true, false) => Some("routes"),
            (false, false) => Some("rules and routes"),
        };
        if let Some(removed) = removed {
            let text = format!("systemd-networkd removes {removed} of others when it starts");
            findings.push(Finding::new(Code::R17, text).usual_mend());
        }
    }
    if running("firewalld") && firewalld_filters(&facts.firewalld) {
        let text = "firewalld drops IPv6 packets by the way back (IPv6_rpfilter)";
        findings.push(Finding::new(Code::R22, text));
    }
    if let Some(network) = network {
        judge_calico(&rules_of("Calico"), network, config, findings);
        judge_halves(network, findings);
    }
}

/// The interface that the rules' tables lead to.
fn tunnel<'a>(rules: &[&ForeignRule], network: &'a Network) -> Option<&'a str> {
    let own = |table| rules.iter().any(|rule| rule.table == Some(table));
    let usual = [TableId(253), TableId(254), TableId(255)];
    let route = network
        .routes
        .iter()
        .find(|route| own(route.table) && !usual.contains(&route.table))?;
    network
        .links
        .get(&route.interface)
        .map(|link| link.name.as_str())
}

/// Bits that Felix takes for its marks.
const FELIX: u32 = 0xffff_0000;

fn judge_calico(
    rules: &[&ForeignRule],
    network: &Network,
    config: &AgentConfig,
    findings: &mut Vec<Finding>,
) {
    let port = network.links.values().find(|link| {
        // `cali` and eleven digits of a hash; `vxlan.calico`.
        let hash = link.name.strip_prefix("cali");
        hash.is_some_and(|hash| hash.len() == 11 && hash.bytes().all(|b| b.is_ascii_hexdigit()))
            || link.name == "vxlan.calico"
    });
    let known_by = match (port, rules) {
        (Some(link), _) => format!("interface {}", link.name),
        (None, [rule, ..]) => rules::describe(rule),
        (None, []) => return,
    };
    let mask = config.mark_mask.bits();
    if mask & FELIX != 0 {
        let text = format!(
            "Calico is here ({known_by}), and its marks ({FELIX:#x}, if not set) meet \
             `mark-mask` {mask:#x}"
        );
        findings.push(Finding::new(Code::R19, text).usual_mend());
    }
}

/// Routes to 0.0.0.0/1 and 128.0.0.0/1 by the same interface.
fn judge_halves(network: &Network, findings: &mut Vec<Finding>) {
    let by = |destination: &str| -> BTreeSet<_> {
        let routes = network.routes.iter();
        routes
            .filter(|route| route.table == TableId(254))
            .filter(|route| route.destination.to_string() == destination)
            .map(|route| route.interface)
            .collect()
    };
    for interface in by("0.0.0.0/1").intersection(&by("128.0.0.0/1")) {
        let name = network
            .links
            .get(interface)
            .map_or("(gone)", |link| link.name.as_str());
        let text = format!("0.0.0.0/1 and 128.0.0.0/1 are routed by {name}, as OpenVPN does");
        findings.push(Finding::new(Code::R21, text));
    }
}
