//! What of the host a scenario may want unchanged: rules, routes, addresses, settings, pins, cgroups.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use anyhow::{Context, Result, ensure};

use crate::lab::Lab;

/// The host's networking state as text, by what it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Snapshot(BTreeMap<&'static str, String>);

impl Snapshot {
    /// Takes one now.
    ///
    /// # Errors
    /// If something cannot be read.
    pub fn take(lab: &Lab) -> Result<Self> {
        let mut state = BTreeMap::new();
        let commands: [(&str, &[&str]); 6] = [
            ("IPv4 rules", &["-4", "rule", "show"]),
            ("IPv6 rules", &["-6", "rule", "show"]),
            ("IPv4 routes", &["-4", "route", "show", "table", "all"]),
            ("IPv6 routes", &["-6", "route", "show", "table", "all"]),
            ("addresses", &["address", "show"]),
            ("neighbours", &["neighbour", "show", "nud", "permanent"]),
        ];
        for (what, args) in commands {
            state.insert(what, sorted(&lab.ip(args)?));
        }
        state.insert("settings", lab.host().run(settings)?);
        state.insert(
            "pins",
            lab.host().run(|| entries(Path::new("/sys/fs/bpf")))?,
        );
        Ok(Self(state))
    }

    /// Asserts that nothing differs in `later`.
    ///
    /// # Errors
    /// If something does, with both texts.
    pub fn assert_same(&self, later: &Self) -> Result<()> {
        self.assert_same_but(later, &[])
    }

    /// [`Snapshot::assert_same`] without the parts named in `but`.
    ///
    /// # Errors
    /// As [`Snapshot::assert_same`].
    pub fn assert_same_but(&self, later: &Self, but: &[&str]) -> Result<()> {
        for (what, before) in self.0.iter().filter(|(what, _)| !but.contains(what)) {
            let after = later.0.get(what).map(String::as_str).unwrap_or_default();
            ensure!(
                before == after,
                "{what} differ; before:\n{before}\nafter:\n{after}"
            );
        }
        Ok(())
    }
}

fn sorted(text: &str) -> String {
    let mut lines: Vec<_> = text.lines().collect();
    lines.sort_unstable();
    lines.join("\n")
}

/// The settings of the network namespace that a tool of this kind may be tempted to change.
fn settings() -> Result<String> {
    let mut found = Vec::new();
    for name in ["tcp_fwmark_accept", "fwmark_reflect", "ip_forward"] {
        let path = format!("/proc/sys/net/ipv4/{name}");
        let value = fs::read_to_string(&path).with_context(|| format!("read {path}"))?;
        found.push(format!("{name} {}", value.trim()));
    }
    for entry in fs::read_dir("/proc/sys/net/ipv4/conf").context("list settings")? {
        let path = entry.context("list settings")?.path();
        for name in [
            "rp_filter",
            "src_valid_mark",
            "arp_ignore",
            "ignore_routes_with_linkdown",
        ] {
            let setting = path.join(name);
            let value = fs::read_to_string(&setting)
                .with_context(|| format!("read {}", setting.display()))?;
            found.push(format!("{} {}", setting.display(), value.trim()));
        }
    }
    found.sort();
    Ok(found.join("\n"))
}

fn entries(directory: &Path) -> Result<String> {
    let mut found = Vec::new();
    let mut open = vec![directory.to_owned()];
    while let Some(directory) = open.pop() {
        for entry in
            fs::read_dir(&directory).with_context(|| format!("read {}", directory.display()))?
        {
            let entry = entry.with_context(|| format!("read {}", directory.display()))?;
            found.push(entry.path().display().to_string());
            if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                open.push(entry.path());
            }
        }
    }
    found.sort();
    Ok(found.join("\n"))
}
