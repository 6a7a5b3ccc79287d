//! Settings of the kernel, as far as they matter to steered flows.

use std::fs;
use std::path::Path;

use steer_core::config::{Config, DomainConfig};
use steer_core::name::Name;
use steer_core::network::Network;
use steer_core::plan::{Family, foreign};

use super::cgroups::listed;
use super::code::Code;
use super::finding::Finding;
use super::rules;

/// Settings of one interface.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct InterfaceSettings {
    /// Its name.
    pub name: String,
    /// `net.ipv4.conf.IF.rp_filter`.
    pub rp_filter: u8,
    /// `net.ipv4.conf.IF.src_valid_mark`.
    pub src_valid_mark: bool,
    /// `net.ipv6.conf.IF.disable_ipv6`.
    pub disable_ipv6: bool,
    /// `net.ipv6.conf.IF.accept_ra`.
    pub accept_ra: u8,
    /// `net.ipv6.conf.IF.forwarding`.
    pub forwards_ipv6: bool,
}

/// Settings of the network namespace.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SettingFacts {
    /// `net.ipv4.conf.all.rp_filter`: the greater of it and the interface's counts.
    pub rp_filter: u8,
    /// `net.ipv4.conf.all.src_valid_mark`: one of it and the interface's is enough.
    pub src_valid_mark: bool,
    /// `net.ipv4.ip_forward`.
    pub ip_forward: bool,
    /// `net.ipv4.tcp_fwmark_accept`.
    pub tcp_fwmark_accept: bool,
    /// `net.ipv4.fwmark_reflect`.
    pub fwmark_reflect: bool,
    /// Of each interface.
    pub interfaces: Vec<InterfaceSettings>,
}

/// Looks.
pub(super) fn gather<'a>(interfaces: impl Iterator<Item = &'a str>) -> SettingFacts {
    let on = |path: &str| read(path) != 0;
    let of = |name: &str| InterfaceSettings {
        name: name.to_owned(),
        rp_filter: read(&format!("ipv4/conf/{name}/rp_filter")),
        src_valid_mark: on(&format!("ipv4/conf/{name}/src_valid_mark")),
        disable_ipv6: on(&format!("ipv6/conf/{name}/disable_ipv6")),
        accept_ra: read(&format!("ipv6/conf/{name}/accept_ra")),
        forwards_ipv6: on(&format!("ipv6/conf/{name}/forwarding")),
    };
    SettingFacts {
        rp_filter: read("ipv4/conf/all/rp_filter"),
        src_valid_mark: on("ipv4/conf/all/src_valid_mark"),
        ip_forward: on("ipv4/ip_forward"),
        tcp_fwmark_accept: on("ipv4/tcp_fwmark_accept"),
        fwmark_reflect: on("ipv4/fwmark_reflect"),
        interfaces: interfaces.map(of).collect(),
    }
}

/// A small number below /proc/sys/net; 0 if it is not there, as without IPv6.
fn read(path: &str) -> u8 {
    let text = fs::read_to_string(Path::new("/proc/sys/net").join(path));
    text.ok()
        .and_then(|text| text.trim().parse().ok())
        .unwrap_or(0)
}

/// Judges.
pub(super) fn judge(
    facts: &SettingFacts,
    network: &Network,
    config: &Config,
    agent_runs: bool,
    findings: &mut Vec<Finding>,
) {
    let has_default = |name: &str| {
        let link = network.links.values().find(|link| link.name == name);
        link.is_some_and(|link| {
            !link.loopback
                && !link.bridge
                && network.routes.iter().any(|route| {
                    route.interface == link.index && route.destination.prefix_len() == 0
                })
        })
    };
    let catching = foreign::catching(network, Family::Ipv4).next();
    for interface in facts.interfaces.iter().filter(|i| has_default(&i.name)) {
        let name = &interface.name;
        // A rule of others that leads into a tunnel by this very interface leads back by it, too.
        let leads_away = |table| {
            network.routes.iter().any(|route| {
                let link = network.links.get(&route.interface);
                Some(route.table) == table
                    && route.destination.prefix_len() == 0
                    && link.is_none_or(|link| link.name != *name)
            })
        };
        if facts.rp_filter.max(interface.rp_filter) == 1
            && let Some(rule) = catching
            && leads_away(rule.table)
        {
            let text = format!(
                "rp_filter is 1 at {name}, and {} leads the way back elsewhere",
                rules::describe(rule)
            );
            let mend = format!("sysctl net.ipv4.conf.{name}.rp_filter=2");
            findings.push(Finding::new(Code::S01, text).mend(mend));
        }
        if interface.disable_ipv6 {
            let text = format!("IPv6 is off at {name} (disable_ipv6)");
            let mend = format!("sysctl net.ipv6.conf.{name}.disable_ipv6=0");
            findings.push(Finding::new(Code::S04, text).mend(mend));
        } else if interface.forwards_ipv6 && interface.accept_ra == 1 {
            let text = format!(
                "{name} ignores router advertisements: it forwards IPv6, and accept_ra is 1"
            );
            let mend = format!("sysctl net.ipv6.conf.{name}.accept_ra=2");
            findings.push(Finding::new(Code::S05, text).mend(mend));
        }
    }
    let bridge = network.links.values().find(|link| link.bridge);
    if let Some(bridge) = bridge.filter(|_| facts.ip_forward) {
        let text = format!(
            "the host forwards packets, and what is behind {} is not steered",
            bridge.name
        );
        findings.push(Finding::new(Code::S06, text));
    }
    judge_overlap(facts, config, agent_runs, findings);
}

/// The settings that overlapping addresses need.
fn judge_overlap(
    facts: &SettingFacts,
    config: &Config,
    agent_runs: bool,
    findings: &mut Vec<Finding>,
) {
    let overlapping = overlapping(config);
    if overlapping.is_empty() {
        return;
    }
    let names = listed(overlapping.iter().map(|(domain, _)| domain.clone()));
    let text = format!("the domains {names} may hold the same IPv4 address");
    findings.push(Finding::new(Code::S02, text));
    if !agent_runs {
        return;
    }
    let marks = facts.interfaces.iter().filter(|interface| {
        let named = |(_, name): &(String, Option<String>)| name.as_ref() == Some(&interface.name);
        overlapping.iter().any(named) && !interface.src_valid_mark && !facts.src_valid_mark
    });
    let marks = marks.map(|i| format!("net.ipv4.conf.{}.src_valid_mark", i.name));
    let others = [
        ("net.ipv4.tcp_fwmark_accept", facts.tcp_fwmark_accept),
        ("net.ipv4.fwmark_reflect", facts.fwmark_reflect),
    ];
    let others = others
        .into_iter()
        .filter(|(_, on)| !on)
        .map(|(name, _)| name.to_owned());
    for setting in marks.chain(others) {
        let text = format!("{setting} is 0, and overlapping addresses need it to be 1");
        findings.push(Finding::new(Code::S03, text).mend(format!("sysctl {setting}=1")));
    }
}

/// Domains whose `sources` meet those of another, and their interfaces.
fn overlapping(config: &Config) -> Vec<(String, Option<String>)> {
    let meets = |name: &Name, own: &DomainConfig| {
        let others = config.domains.iter().filter(|(other, _)| *other != name);
        others.flat_map(|(_, domain)| &domain.sources).any(|one| {
            own.sources.iter().any(|two| {
                one.addr().is_ipv4() && (one.contains(&two.addr()) || two.contains(&one.addr()))
            })
        })
    };
    let domains = config
        .domains
        .iter()
        .filter(|(name, domain)| meets(name, domain));
    domains
        .map(|(name, domain)| (name.to_string(), domain.matches.interface.clone()))
        .collect()
}
