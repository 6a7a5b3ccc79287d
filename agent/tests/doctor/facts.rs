//! A host on which all is well, and parts to make it unwell.

use std::path::PathBuf;
use std::time::{Duration, UNIX_EPOCH};

use steer::cgroup::mounts;
use steer::datapath::{AtCgroup, ForeignProgram, Hook, Loaded, PinsFound, Sharing};
use steer::doctor::{
    AgentFacts, Answer, CgroupFacts, ClockFacts, Facts, FileFacts, InterfaceSettings, KernelFacts,
    LeftoverFacts, NetlinkFacts, ProgramFacts, Programs, SettingFacts, StateFile, ToolFacts,
};
use steer::netlink::Survey;
use steer_core::config::Config;
use steer_core::ids::{IfIndex, TableId};
use steer_core::network::{ForeignRule, Link, LinkKind, Network, Route};

pub(crate) const ROOT: &str = "/sys/fs/cgroup";

/// Everything is as it should be, and an agent runs.
pub(crate) fn healthy() -> Facts {
    Facts {
        config: Config::default(),
        kernel: KernelFacts {
            release: "6.18.4-amd64".to_owned(),
            btf: true,
            lockdown: Some("none".to_owned()),
            jit: Ok(true),
            peer_pidfd: true,
            bpffs: true,
            programs: Ok(Programs::Judged(Loaded {
                refused: Vec::new(),
                tcx: true,
            })),
            netlink: Ok(NetlinkFacts {
                refused_rules: Vec::new(),
                marks: None,
                closes: true,
            }),
        },
        cgroups: CgroupFacts {
            mounts: mounts(
                "29 23 0:26 / /sys/fs/cgroup rw,nosuid - cgroup2 cgroup2 rw,nsdelegate,memory_recursiveprot",
            ),
            socket_controllers: Vec::new(),
            root: Ok(ROOT.into()),
            namespaced: false,
        },
        programs: ProgramFacts {
            cgroups: Ok(Vec::new()),
            root: ROOT.into(),
            interfaces: Ok(Vec::new()),
        },
        survey: Ok(Survey {
            network: network(),
            ..Survey::default()
        }),
        tools: ToolFacts::default(),
        settings: SettingFacts {
            interfaces: vec![
                InterfaceSettings {
                    name: "eth0".to_owned(),
                    accept_ra: 1,
                    ..InterfaceSettings::default()
                },
                InterfaceSettings {
                    name: "wlan0".to_owned(),
                    accept_ra: 1,
                    ..InterfaceSettings::default()
                },
            ],
            ..SettingFacts::default()
        },
        leftovers: LeftoverFacts {
            pins: Ok(PinsFound {
                own: true,
                in_force: true,
                ..PinsFound::default()
            }),
            state: Ok(StateFile::Absent),
            state_is_old: false,
            cgroups: Ok(Vec::new()),
            socket: Some("/run/steer/agent.sock".into()),
        },
        clock: ClockFacts {
            now: UNIX_EPOCH + Duration::from_secs(1_800_000_000),
            built: Some(UNIX_EPOCH + Duration::from_secs(1_790_000_000)),
            synchronised: Some(true),
        },
        agent: AgentFacts {
            running: Some("an agent runs (pid 7)".to_owned()),
            answer: Answer::Status {
                version: env!("CARGO_PKG_VERSION").to_owned(),
                warnings: 0,
                quarantined: Vec::new(),
            },
            pids: vec![7],
            files: Ok(FileFacts::default()),
        },
    }
}

/// The same without an agent, and without anything that one left.
pub(crate) fn without_agent() -> Facts {
    let mut facts = healthy();
    facts.agent.running = None;
    facts.agent.answer = Answer::Nobody;
    facts.agent.pids.clear();
    facts.leftovers.pins = Ok(PinsFound::default());
    facts.leftovers.socket = None;
    facts
}

/// The same where every answer to "what does the kernel hold" is open to change.
pub(crate) fn with(change: impl FnOnce(&mut Facts)) -> Facts {
    let mut facts = healthy();
    change(&mut facts);
    facts
}

pub(crate) fn with_network(change: impl FnOnce(&mut Network)) -> Facts {
    with(|facts| {
        if let Ok(survey) = &mut facts.survey {
            change(&mut survey.network);
        }
    })
}

pub(crate) fn with_rule(rule: ForeignRule) -> Facts {
    with_network(|network| {
        network.rules.insert(rule);
    })
}

/// What every host has.
fn network() -> Network {
    let mut network = Network::default();
    for (index, name) in [(2, "eth0"), (3, "wlan0")] {
        let link = link(index, name);
        network.links.insert(link.index, link);
        network.routes.insert(route(254, "0.0.0.0/0", index));
    }
    for (priority, table) in [(0, 255), (32_766, 254), (32_767, 253)] {
        network.rules.insert(rule(priority, table));
    }
    network
}

pub(crate) fn link(index: u32, name: &str) -> Link {
    Link {
        under: None,
        index: IfIndex(index),
        name: name.to_owned(),
        kind: LinkKind::Wired,
        up: true,
        carrier: true,
        loopback: false,
        master: None,
        bridge: false,
        mac: None,
        mtu: 1500,
    }
}

pub(crate) fn route(table: u32, destination: &str, interface: u32) -> Route {
    Route {
        table: TableId(table),
        destination: destination.parse().unwrap(),
        metric: 100 * interface,
        interface: IfIndex(interface),
        gateway: None,
        onlink: false,
        prefsrc: None,
        mtu: None,
        source: None,
    }
}

pub(crate) fn rule(priority: u32, table: u32) -> ForeignRule {
    ForeignRule {
        v6: false,
        priority,
        invert: false,
        fwmark: None,
        from: None,
        to: None,
        narrow: false,
        table: Some(TableId(table)),
        suppress_prefix_len: None,
    }
}

pub(crate) fn marked(priority: u32, mark: u32, mask: u32, table: u32) -> ForeignRule {
    ForeignRule {
        fwmark: Some((mark, mask)),
        ..rule(priority, table)
    }
}

/// `not from all fwmark 0xca6c lookup 51820`
pub(crate) fn wg_quick() -> ForeignRule {
    ForeignRule {
        invert: true,
        ..marked(32_764, 51_820, u32::MAX, 51_820)
    }
}

/// A program of somebody else at a cgroup.
pub(crate) fn at_cgroup(directory: &str, sharing: Sharing) -> Facts {
    with(|facts| {
        facts.programs.root = PathBuf::from(ROOT).join("managed");
        facts.programs.cgroups = Ok(vec![AtCgroup {
            directory: directory.into(),
            hook: Hook::Connect4,
            sharing,
            programs: vec![program()],
        }]);
    })
}

pub(crate) fn program() -> ForeignProgram {
    ForeignProgram {
        id: 42,
        name: "sd_fw_egress".to_owned(),
    }
}
