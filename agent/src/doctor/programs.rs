//! Programs of others at the hooks and interfaces where steer's are attached.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use steer_core::ids::IfIndex;

use super::cgroups::listed;
use super::code::Code;
use super::finding::{Finding, Seen, Unchecked};
use crate::cgroup::Tree;
use crate::datapath::{
    AtCgroup, AtInterface, Direction, ForeignProgram, PIN_ROOT, Sharing, Survey,
};
use crate::reconcile::chain;

/// What is known of programs of others.
#[derive(Clone, Debug)]
pub struct ProgramFacts {
    /// At the managed cgroup, above it and below it.
    pub cgroups: Seen<Vec<AtCgroup>>,
    /// The managed cgroup.
    pub root: PathBuf,
    /// At interfaces, by their name.
    pub interfaces: Seen<Vec<(String, AtInterface)>>,
}

const AT_CGROUPS: &str = "programs of others at cgroups";
const AT_INTERFACES: &str = "programs of others at interfaces";

/// Looks.
pub(super) fn gather(
    root: bool,
    tree: Option<&Tree>,
    interfaces: &[(IfIndex, String)],
) -> ProgramFacts {
    let unseen = |why: &dyn Fn(&str) -> Unchecked| ProgramFacts {
        cgroups: Err(why(AT_CGROUPS)),
        root: PathBuf::new(),
        interfaces: Err(why(AT_INTERFACES)),
    };
    if !root {
        return unseen(&Unchecked::needs_root);
    }
    let survey = match Survey::open(Path::new(PIN_ROOT)) {
        Ok(survey) => survey,
        Err(error) => return unseen(&|what| Unchecked::failed(what, chain(&error))),
    };
    let cgroups = match tree {
        Some(tree) => at_cgroups(&survey, tree),
        None => Err(Unchecked::failed(AT_CGROUPS, "there is no managed cgroup")),
    };
    ProgramFacts {
        cgroups,
        root: tree.map(|tree| tree.root().to_owned()).unwrap_or_default(),
        interfaces: at_interfaces(&survey, interfaces),
    }
}

fn at_cgroups(survey: &Survey, tree: &Tree) -> Seen<Vec<AtCgroup>> {
    let failed = |why: String| Unchecked::failed(AT_CGROUPS, why);
    let directories = tree.directories().map_err(|error| failed(chain(&error)))?;
    let mut found = Vec::new();
    for directory in directories {
        match survey.at_cgroup(&directory) {
            Ok(mut at) => found.append(&mut at),
            // Cgroups come and go.
            Err(_) if !directory.exists() => {}
            Err(error) => return Err(failed(chain(&error))),
        }
    }
    Ok(found)
}

fn at_interfaces(
    survey: &Survey,
    interfaces: &[(IfIndex, String)],
) -> Seen<Vec<(String, AtInterface)>> {
    let mut found = Vec::new();
    for (index, name) in interfaces {
        let at = survey
            .at_interface(index.0)
            .map_err(|error| Unchecked::failed(AT_INTERFACES, chain(&error)))?;
        found.extend(at.into_iter().map(|at| (name.clone(), at)));
    }
    Ok(found)
}

/// Judges.
pub(super) fn judge(facts: &ProgramFacts, findings: &mut Vec<Finding>) {
    if let Ok(cgroups) = &facts.cgroups {
        judge_cgroups(&facts.root, cgroups, findings);
    }
    for (interface, at) in facts.interfaces.iter().flatten() {
        let side = match at.direction {
            Direction::Egress => "egress",
            Direction::Ingress => "ingress",
        };
        if !at.before.is_empty() {
            let text = format!(
                "{} runs before steer's at {side} of {interface}",
                named(&at.before)
            );
            findings.push(Finding::new(Code::B02, text).usual_mend());
        }
        if !at.after.is_empty() {
            let text = format!("{} at {side} of {interface}", named(&at.after));
            findings.push(Finding::new(Code::B03, text));
        }
    }
}

fn judge_cgroups(root: &Path, cgroups: &[AtCgroup], findings: &mut Vec<Finding>) {
    // A service manager attaches the same program to a hundred services: one finding for it.
    let mut shared: BTreeMap<(Code, String, &str), BTreeSet<&Path>> = BTreeMap::new();
    for at in cgroups {
        let (is_root, is_below) = (at.directory == root, at.directory.starts_with(root));
        let code = match at.sharing {
            Sharing::Stacked => Code::B01,
            _ if is_root => Code::C06,
            _ if is_below => Code::C08,
            Sharing::Alone => Code::C06,
            Sharing::Overridden => Code::C07,
        };
        if matches!(code, Code::B01 | Code::C08) {
            for program in &at.programs {
                let name = match program.name.as_str() {
                    "" => format!("(id {})", program.id),
                    name => name.to_owned(),
                };
                let key = (code, name, at.hook.name());
                shared.entry(key).or_default().insert(&at.directory);
            }
            continue;
        }
        let programs = named(&at.programs);
        let (hook, directory) = (at.hook.name(), at.directory.display());
        let id = at.programs.first().map_or(0, |program| program.id);
        findings.push(if code == Code::C06 {
            let text = format!(
                "{programs} at {hook} of cgroup {directory} lets no other be attached \
                 {}",
                if is_root { "there" } else { "below" }
            );
            Finding::new(code, text).mend(format!(
                "bpftool cgroup detach {directory} {} id {id}, or another `cgroup-root`",
                bpftool_name(hook)
            ))
        } else {
            let text = format!(
                "{programs} at {hook} of cgroup {directory} does not run below {} while steer's \
                 does",
                root.display()
            );
            Finding::new(code, text).usual_mend()
        });
    }
    for ((code, name, hook), directories) in shared {
        let at = listed(directories.iter().map(|path| path.display().to_string()));
        findings.push(Finding::new(
            code,
            format!("program {name} is at {hook} of {at}"),
        ));
    }
}

fn named(programs: &[ForeignProgram]) -> String {
    let name = |program: &ForeignProgram| match program.name.as_str() {
        "" => format!("(id {})", program.id),
        name => format!("{name} (id {})", program.id),
    };
    let names = listed(programs.iter().map(name));
    match programs {
        [_] => format!("program {names}"),
        _ => format!("programs {names}"),
    }
}

/// What bpftool calls a hook.
fn bpftool_name(hook: &str) -> String {
    match hook {
        "egress" => "cgroup_inet_egress".to_owned(),
        "sock-create" => "cgroup_inet_sock_create".to_owned(),
        "setsockopt" => "cgroup_setsockopt".to_owned(),
        _ => {
            let (call, family) = hook.split_at(hook.len() - 1);
            let layer = if call == "sendmsg" { "udp" } else { "inet" };
            format!("cgroup_{layer}{family}_{}", call.replace('-', "_"))
        }
    }
}

/// What could not be looked at.
pub(super) fn unchecked(facts: &ProgramFacts) -> impl Iterator<Item = Unchecked> {
    [
        facts.cgroups.as_ref().err(),
        facts.interfaces.as_ref().err(),
    ]
    .into_iter()
    .flatten()
    .cloned()
}
