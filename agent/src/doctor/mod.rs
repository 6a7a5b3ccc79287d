//! `steer doctor`: looks at the host and says what stands in steer's way. Changes nothing.
//!
//! One file for each topic: it gathers facts at the edge, and judges them without looking again, so that
//! a test can state the facts. `code` says what every code means.

mod agent;
mod cgroups;
mod clock;
mod code;
mod finding;
mod kernel;
mod leftovers;
mod own_network;
mod page;
mod programs;
mod rules;
mod settings;
mod tools;

use std::path::{Path, PathBuf};

use steer_core::config::Config;
use steer_core::ids::IfIndex;

use crate::daemon;
use crate::netlink::Survey;

pub use agent::{AgentFacts, Answer, FileFacts};
pub use cgroups::{CgroupFacts, socket_controllers};
pub use clock::ClockFacts;
pub use code::{Code, Entry, Severity, TABLE, UnknownCode};
pub use finding::{Finding, Report, Seen, Summary, Unchecked};
pub use kernel::{KernelFacts, NetlinkFacts, Programs};
pub use leftovers::{LeftoverFacts, StateFile};
pub use page::troubleshooting;
pub use programs::ProgramFacts;
pub use settings::{InterfaceSettings, SettingFacts};
pub use tools::{ToolFacts, firewalld_filters, networkd_spares_others};

/// Where to look.
#[derive(Clone, Debug)]
pub struct Options {
    /// The main file of the configuration; none: the usual one.
    pub config: Option<PathBuf>,
    /// Socket of the agent.
    pub socket: PathBuf,
}

/// All that is known of the host.
#[derive(Clone, Debug)]
pub struct Facts {
    /// Steer's configuration; the defaults where it cannot be read.
    pub config: Config,
    /// The kernel.
    pub kernel: KernelFacts,
    /// Cgroup hierarchies.
    pub cgroups: CgroupFacts,
    /// Programs of others.
    pub programs: ProgramFacts,
    /// Links, rules and routes.
    pub survey: Seen<Survey>,
    /// Other managers of the network.
    pub tools: ToolFacts,
    /// Settings.
    pub settings: SettingFacts,
    /// What agents left.
    pub leftovers: LeftoverFacts,
    /// The clock.
    pub clock: ClockFacts,
    /// The agent.
    pub agent: AgentFacts,
}

/// Looks at everything that this user may see.
///
/// # Errors
/// The asynchronous runtime could not be started.
pub fn gather(options: &Options) -> std::io::Result<Facts> {
    let root = nix::unistd::geteuid().is_root();
    let (config, files) = configuration(options.config.as_deref());
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let survey = runtime.block_on(rules::gather());
    let interfaces: Vec<(IfIndex, String)> = survey
        .iter()
        .flat_map(|survey| survey.network.links.values())
        .map(|link| (link.index, link.name.clone()))
        .collect();
    let (cgroups, tree) = cgroups::gather(config.agent.cgroup_root.as_deref());
    Ok(Facts {
        kernel: kernel::gather(root, config.agent.mark_mask),
        cgroups,
        programs: programs::gather(root, tree.as_ref(), &interfaces),
        tools: tools::gather(),
        settings: settings::gather(interfaces.iter().map(|(_, name)| name.as_str())),
        leftovers: leftovers::gather(root, tree.as_ref(), &options.socket),
        clock: clock::gather(),
        agent: agent::gather(&options.socket, files),
        survey,
        config,
    })
}

/// The configuration, and what is wrong with it.
fn configuration(named: Option<&Path>) -> (Config, Seen<FileFacts>) {
    match daemon::configuration(named) {
        Ok((config, quarantined)) => {
            let files = FileFacts {
                wrong: None,
                quarantined: quarantined.iter().map(ToString::to_string).collect(),
            };
            (config, Ok(files))
        }
        Err(error) if error.is::<daemon::Mistakes>() => {
            let files = FileFacts {
                wrong: Some(format!("{error:#}")),
                quarantined: Vec::new(),
            };
            (Config::default(), Ok(files))
        }
        Err(error) => {
            let unchecked = Unchecked::failed("the configuration", format!("{error:#}"));
            (Config::default(), Err(unchecked))
        }
    }
}

/// Judges the facts, without looking again.
pub fn judge(facts: &Facts) -> Report {
    let mut findings = Vec::new();
    let config = &facts.config.agent;
    let survey = facts.survey.as_ref().ok();
    let network = survey.map(|survey| &survey.network);
    let runs = facts.agent.runs();
    kernel::judge(&facts.kernel, &mut findings);
    cgroups::judge(&facts.cgroups, &mut findings);
    programs::judge(&facts.programs, &mut findings);
    tools::judge(&facts.tools, network, config, &mut findings);
    if let Some(network) = network {
        rules::judge(network, config, &mut findings);
        settings::judge(&facts.settings, network, &facts.config, runs, &mut findings);
    }
    leftovers::judge(&facts.leftovers, survey, config, runs, &mut findings);
    clock::judge(&facts.clock, &mut findings);
    agent::judge(&facts.agent, &mut findings);
    let unchecked = kernel::unchecked(&facts.kernel)
        .chain(programs::unchecked(&facts.programs))
        .chain(facts.survey.as_ref().err().cloned())
        .chain(leftovers::unchecked(&facts.leftovers))
        .chain(agent::unchecked(&facts.agent));
    Report::new(findings, unchecked.collect())
}
