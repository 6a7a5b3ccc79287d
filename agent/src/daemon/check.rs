//! `steer check`: what is wrong in the files, and what is worth knowing of them, read without an agent.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use steer_core::check::{Facts, check};
use steer_core::config::{AgentConfig, parse_with_places};

use super::files;
use crate::api::mistake::{MISTAKE, Mistake, QUARANTINED};
use crate::cgroup::{self, Tree};
use crate::reconcile::chain;

/// What there is to say of files.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Checked {
    /// The files that were read, in their order.
    pub files: Vec<String>,
    /// What is wrong or worth knowing, in the order of the files.
    pub found: Vec<Mistake>,
    /// How many policies would be in force.
    pub policies: usize,
    /// Whether all policies were compared: of very many only the first are.
    pub complete: bool,
}

/// Reads files as the agent does, and looks at them and at the host.
///
/// # Errors
/// One cannot be read.
pub fn check_files(named: Option<&Path>) -> anyhow::Result<Checked> {
    let texts = files::read(named)?;
    let pairs: Vec<(&str, &str)> = texts
        .iter()
        .map(|(name, text)| (name.as_str(), text.as_str()))
        .collect();
    let mut checked = Checked {
        files: texts.iter().map(|(name, _)| name.clone()).collect(),
        complete: true,
        ..Checked::default()
    };
    let parsed = match parse_with_places(&pairs) {
        Ok(parsed) => parsed,
        Err(errors) => {
            let mistakes = errors.iter().map(|e| Mistake::new(MISTAKE, e, &texts));
            checked.found = mistakes.collect();
            return Ok(checked);
        }
    };
    let config = &parsed.config;
    let bad = config
        .mistakes()
        .map(|e| Mistake::new(QUARANTINED, e, &texts));
    checked.found.extend(bad);
    let overridden = parsed.places.replaced.iter().flat_map(|r| &r.mistakes);
    let overridden = overridden.map(|e| Mistake::new(QUARANTINED, e, &texts));
    checked.found.extend(overridden);
    let names: Vec<&str> = pairs.iter().map(|(name, _)| *name).collect();
    let facts = facts(&config.agent);
    let report = check(&parsed, &names, &facts);
    let findings = report.findings.iter().map(|finding| Mistake {
        message: finding.message.clone(),
        label: finding.label.clone(),
        help: finding.help.clone(),
        ..Mistake::at(finding.kind.word(), &finding.place, &texts)
    });
    checked.found.extend(findings);
    if let (Some(Err(reason)), Some(place)) =
        (&facts.managed_root, config.agent_places.get("cgroup-root"))
    {
        checked.found.push(Mistake {
            message: format!("the agent cannot start: {reason}"),
            label: Some("not here".to_owned()),
            ..Mistake::at(MISTAKE, place, &texts)
        });
    }
    checked.found.sort_by_cached_key(|found| {
        let file = names.iter().position(|name| **name == found.file);
        let place = (file, found.line, found.column);
        (
            place,
            !found.is_bad(),
            found.kind.clone(),
            found.message.clone(),
        )
    });
    checked.policies = config.policies.len();
    checked.complete = report.complete;
    Ok(checked)
}

/// What can be learned of this host by anybody.
fn facts(agent: &AgentConfig) -> Facts {
    let root = agent.cgroup_root.as_deref().map(Path::new);
    let managed_root = match Tree::open(root) {
        Ok(tree) => Some(Ok(tree.name_of(tree.root()).unwrap_or_default())),
        // That there is no such hierarchy is not for the files to mend.
        Err(cgroup::Error::Mounts(_) | cgroup::Error::NotMounted) => None,
        Err(error) => Some(Err(chain(&error))),
    };
    let mount = Tree::open(None).ok();
    let mount = mount.map(|tree| tree.root().display().to_string());
    Facts {
        interfaces: interfaces(),
        mount: mount.map(|path| path.trim_matches('/').to_owned()),
        managed_root: managed_root.map(|root| root.map(|path| path.trim_matches('/').to_owned())),
        kernel: kernel(),
        btf: Path::new("/sys/kernel/btf/vmlinux").try_exists().ok(),
    }
}

fn interfaces() -> Option<BTreeSet<String>> {
    let interfaces = nix::net::if_::if_nameindex().ok()?;
    let names = interfaces
        .iter()
        .map(|i| i.name().to_string_lossy().into_owned());
    Some(names.collect())
}

/// Major and minor version of the kernel.
fn kernel() -> Option<(u32, u32)> {
    let release = fs::read_to_string("/proc/sys/kernel/osrelease").ok()?;
    let mut numbers = release.split(|c: char| !c.is_ascii_digit());
    let mut number = || numbers.next()?.parse().ok();
    Some((number()?, number()?))
}
