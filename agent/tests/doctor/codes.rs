//! Every code has facts that give it; on a host where all is well there is none.

use std::time::UNIX_EPOCH;

use steer::cgroup::mounts;
use steer::daemon::Remains;
use steer::datapath::{AtInterface, Direction, Loaded, PinsFound, Refused, Sharing};
use steer::doctor::{
    Answer, Code, Facts, Programs, Report, SettingFacts, Severity, StateFile, TABLE, judge,
};
use steer_core::ids::TableId;
use steer_core::network::ForeignRule;
use steer_core::plan::{Family, Rule, RuleAction};

use super::facts::{
    at_cgroup, healthy, link, marked, program, route, rule, wg_quick, with, with_network,
    with_rule, without_agent,
};

pub(crate) fn has(report: &Report, code: Code) -> bool {
    report.findings.iter().any(|finding| finding.code == code)
}

#[test]
fn nothing_is_found_where_all_is_well() {
    assert_eq!(judge(&healthy()), Report::new(Vec::new(), Vec::new()));
    let report = judge(&without_agent());
    let found: Vec<Code> = report.findings.iter().map(|finding| finding.code).collect();
    assert_eq!(found, [Code::A01]);
}

#[test]
fn every_code_is_given_for_its_facts() {
    for entry in TABLE {
        let report = judge(&facts_of(entry.code));
        assert!(has(&report, entry.code), "{}: {report:#?}", entry.code);
        for finding in &report.findings {
            assert_eq!(finding.severity, finding.code.entry().severity);
            assert!(!finding.text.ends_with('.') && !finding.text.contains('\n'));
            // What is wrong can be mended.
            assert!(
                finding.mend.is_some() || finding.severity != Severity::Problem,
                "{finding:?}"
            );
        }
    }
}

fn loaded(refused: &[(&str, bool)], tcx: bool) -> Facts {
    let refused = refused.iter().map(|(program, optional)| Refused {
        program: (*program).to_owned(),
        optional: *optional,
        why: "Invalid argument (os error 22): unknown func".to_owned(),
    });
    let refused = refused.collect();
    with(|facts| {
        facts.kernel.programs = Ok(Programs::Judged(Loaded { refused, tcx }));
    })
}

fn programs(programs: Programs) -> Facts {
    with(|facts| facts.kernel.programs = Ok(programs))
}

fn mounted(mountinfo: &str) -> Facts {
    with(|facts| facts.cgroups.mounts = mounts(mountinfo))
}

fn process(name: &str) -> Facts {
    with(|facts| {
        facts.tools.processes.insert(name.to_owned());
    })
}

fn tcx(before: bool) -> Facts {
    let programs = |there| if there { vec![program()] } else { Vec::new() };
    with(|facts| {
        let at = AtInterface {
            direction: Direction::Egress,
            before: programs(before),
            after: programs(!before),
        };
        facts.programs.interfaces = Ok(vec![("eth0".to_owned(), at)]);
    })
}

fn settings(change: impl FnOnce(&mut SettingFacts)) -> Facts {
    with(|facts| change(&mut facts.settings))
}

/// Two domains that may hold the same address.
fn overlapping() -> Facts {
    let text = "[domain.one]\nmatch.interface = \"eth0\"\nsources = [\"192.168.1.0/24\"]\n\
                [domain.two]\nmatch.interface = \"wlan0\"\nsources = [\"192.168.1.10\"]\n";
    with(|facts| facts.config = steer_core::config::parse(&[("a.toml", text)]).unwrap())
}

fn pins(pins: PinsFound) -> Facts {
    let mut facts = without_agent();
    facts.leftovers.pins = Ok(pins);
    facts
}

fn state(state: StateFile) -> Facts {
    let mut facts = without_agent();
    facts.leftovers.state = Ok(state);
    facts
}

fn own_rule(mut facts: Facts, priority: u32) -> Facts {
    if let Ok(survey) = &mut facts.survey {
        survey.rules.push(Rule {
            family: Family::Ipv4,
            priority,
            from: None,
            to: None,
            fwmark: None,
            oif: None,
            protocol: None,
            udp_ports: None,
            action: RuleAction::Nop,
        });
    }
    facts
}

fn answer(version: &str, warnings: usize, quarantined: &[&str]) -> Facts {
    with(|facts| {
        facts.agent.answer = Answer::Status {
            version: version.to_owned(),
            warnings,
            quarantined: quarantined.iter().map(ToString::to_string).collect(),
        };
    })
}

/// Facts that give a code. The compiler asks for those of a new one.
fn facts_of(code: Code) -> Facts {
    let own_version = env!("CARGO_PKG_VERSION");
    match code {
        Code::K01 => with(|facts| facts.kernel.release = "5.15.0-91-generic".to_owned()),
        Code::K02 => programs(Programs::NotPermitted("Operation not permitted".to_owned())),
        Code::K03 => with(|facts| facts.kernel.btf = false),
        Code::K04 => loaded(&[("connect4", false)], true),
        Code::K05 => loaded(&[("egress", true)], true),
        Code::K06 => loaded(&[], false),
        Code::K07 => with(|facts| {
            let netlink = facts.kernel.netlink.as_mut().unwrap();
            netlink
                .refused_rules
                .push("a rule: Invalid argument".to_owned());
        }),
        Code::K08 => with(|facts| {
            let netlink = facts.kernel.netlink.as_mut().unwrap();
            netlink.marks = Some("No such file or directory".to_owned());
        }),
        Code::K09 => with(|facts| facts.kernel.netlink.as_mut().unwrap().closes = false),
        Code::K10 => with(|facts| facts.kernel.peer_pidfd = false),
        Code::K11 => with(|facts| facts.kernel.bpffs = false),
        Code::K12 => with(|facts| facts.kernel.jit = Ok(false)),
        Code::C01 => mounted("40 31 0:37 / /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu"),
        Code::C02 => mounted(
            "40 31 0:37 / /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu\n\
             41 31 0:38 / /sys/fs/cgroup/unified rw,relatime shared:9 - cgroup2 cgroup2 rw",
        ),
        Code::C03 => mounted(
            "40 31 0:38 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n\
             41 31 0:38 / /mnt/cgroup rw - cgroup2 none rw",
        ),
        Code::C04 => with(|facts| facts.cgroups.namespaced = true),
        Code::C05 => with(|facts| facts.cgroups.root = Err("there is no cgroup x".to_owned())),
        Code::C06 => at_cgroup("/sys/fs/cgroup", Sharing::Alone),
        Code::C07 => at_cgroup("/sys/fs/cgroup", Sharing::Overridden),
        Code::C08 => at_cgroup("/sys/fs/cgroup/managed/below", Sharing::Alone),
        Code::C09 => with(|facts| facts.cgroups.socket_controllers = vec!["net_cls".to_owned()]),
        Code::B01 => at_cgroup("/sys/fs/cgroup/managed/below", Sharing::Stacked),
        Code::B02 => tcx(true),
        Code::B03 => tcx(false),
        Code::R01 => with_rule(marked(100, 0x0100_0000, 0x0f00_0000, 7)),
        Code::R02 | Code::R05 | Code::R10 => with_rule(wg_quick()),
        Code::R03 => with_rule(rule(4100, 7)),
        Code::R04 => with_network(|network| {
            network.routes.insert(route(40_007, "10.0.0.0/8", 2));
        }),
        Code::R11 => with_rule(rule(5270, 52)),
        Code::R12 => process("mullvad-daemon"),
        Code::R13 => with_rule(marked(2001, 0x100, 0x3f00, 1)),
        Code::R14 => with_rule(marked(29_998, 0x1_0000, 0xff_0000, 256)),
        Code::R15 => process("NetworkManager"),
        Code::R16 | Code::R17 => process("systemd-network"),
        Code::R18 => with_rule(marked(9, 0x200, 0xf00, 2004)),
        Code::R19 => with_network(|network| {
            let port = link(9, "cali0a1b2c3d4e5");
            network.links.insert(port.index, port);
        }),
        Code::R20 => with_rule(marked(16_000, 0x64, 0x1_ffff, 1002)),
        Code::R21 => with_network(|network| {
            let tunnel = link(9, "tun0");
            network.links.insert(tunnel.index, tunnel);
            network.routes.insert(route(254, "0.0.0.0/1", 9));
            network.routes.insert(route(254, "128.0.0.0/1", 9));
        }),
        Code::R22 => process("firewalld"),
        Code::S01 => {
            let mut facts = with_network(|network| {
                network.rules.insert(wg_quick());
                let tunnel = link(9, "wg0");
                network.links.insert(tunnel.index, tunnel);
                network.routes.insert(route(51_820, "0.0.0.0/0", 9));
            });
            facts.settings.interfaces[1].rp_filter = 1;
            facts
        }
        Code::S02 | Code::S03 => overlapping(),
        Code::S04 => settings(|settings| settings.interfaces[0].disable_ipv6 = true),
        Code::S05 => settings(|settings| settings.interfaces[0].forwards_ipv6 = true),
        Code::S06 => {
            let mut facts = with_network(|network| {
                let mut bridge = link(9, "docker0");
                bridge.bridge = true;
                network.links.insert(bridge.index, bridge);
            });
            facts.settings.ip_forward = true;
            facts
        }
        Code::L01 => pins(PinsFound {
            own: true,
            in_force: true,
            ..PinsFound::default()
        }),
        Code::L02 => pins(PinsFound {
            others: vec!["v2".to_owned()],
            in_force: true,
            ..PinsFound::default()
        }),
        Code::L03 => own_rule(without_agent(), 4000),
        Code::L04 => own_rule(healthy(), 7000),
        Code::L05 => {
            let mut facts = without_agent();
            facts.leftovers.cgroups = Ok(vec!["/sys/fs/cgroup/steer/run-7-1".into()]);
            facts
        }
        Code::L06 => state(StateFile::Damaged("it has version 9, not 1".to_owned())),
        Code::L07 => {
            let mut facts = without_agent();
            facts.leftovers.state_is_old = true;
            facts
        }
        Code::L08 => {
            let mut facts = without_agent();
            facts.leftovers.socket = Some("/run/steer/agent.sock".into());
            facts
        }
        Code::L09 => pins(PinsFound {
            unfinished: vec!["new-77".to_owned()],
            ..PinsFound::default()
        }),
        Code::L10 => state(StateFile::Whole(Remains {
            settings: vec!["net/ipv4/fwmark_reflect".to_owned()],
            ..Remains::default()
        })),
        Code::T01 => with(|facts| facts.clock.now = UNIX_EPOCH),
        Code::T02 => with(|facts| facts.clock.synchronised = Some(false)),
        Code::A01 => without_agent(),
        Code::A02 => answer("0.0.1", 0, &[]),
        Code::A03 => with(|facts| facts.agent.answer = Answer::Nobody),
        Code::A04 => answer(own_version, 2, &[]),
        Code::A05 => with(|facts| {
            facts.agent.files.as_mut().unwrap().wrong = Some("a.toml:3:1: no".to_owned());
        }),
        Code::A06 => answer(own_version, 0, &["web"]),
        Code::A07 => with(|facts| facts.agent.pids = vec![7, 8]),
    }
}

/// A rule that is like a tool's, and is not.
#[test]
fn what_only_looks_like_a_tool_is_not_taken_for_it() {
    let plain = ForeignRule {
        invert: true,
        ..marked(100, 1, 0xff, 1)
    };
    for rule in [
        plain,
        rule(5270, 53),
        marked(5210, 0x8, 0xff, 52 + 1),
        marked(9, 0x300, 0xf00, 2004),
        marked(9000, 0x64, 0x1_ffff, 1002),
    ] {
        let report = judge(&with_rule(ForeignRule {
            table: rule.table.or(Some(TableId(1))),
            ..rule.clone()
        }));
        let tools = Code::R10..=Code::R22;
        let named: Vec<Code> = (report.findings.iter())
            .map(|finding| finding.code)
            .filter(|code| tools.contains(code))
            .collect();
        assert!(named.is_empty(), "{rule:?}: {named:?}");
    }
}
