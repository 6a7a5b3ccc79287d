//! Writing a policy as a file says it.

use std::fmt::Write as _;

use toml::Value;

use crate::ids::CgroupId;
use crate::name::Name;
use crate::policy::{LocalNetworks, Match, Origin, Otherwise, Policy};

/// A policy that no file can hold.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NotSavable {
    /// It matches a cgroup by id, and ids do not outlive the cgroup.
    #[error(
        "policy `{name}` matches the cgroup with id {id}, which a file cannot name; give its path"
    )]
    Id {
        /// The policy.
        name: Name,
        /// The id.
        id: CgroupId,
    },
}

/// `policy` as text of a file. Read back it is the same policy, but for its origin, which is the
/// file's.
pub fn policy_to_toml(policy: &Policy) -> Result<String, NotSavable> {
    let mut cgroups = Vec::new();
    let mut units = Vec::new();
    for wanted in &policy.matches {
        match wanted {
            Match::Cgroup(pattern) => cgroups.push(pattern.as_str()),
            Match::Unit(unit) => units.push(unit.as_str()),
            Match::CgroupId(id) => {
                return Err(NotSavable::Id {
                    name: policy.name.clone(),
                    id: *id,
                });
            }
        }
    }
    let mut text = format!("[policy.{}]\n", key(policy.name.as_str()));
    let mut line = |key: &str, value: Value| {
        // Writing to a string does not fail.
        let _ = writeln!(text, "{key} = {value}");
    };
    for (key, values) in [("match.cgroup", cgroups), ("match.unit", units)] {
        match values.as_slice() {
            [] => {}
            [one] => line(key, Value::from(*one)),
            several => line(key, Value::from(several.to_vec())),
        }
    }
    if !policy.use_.is_empty() {
        let names: Vec<&str> = policy.use_.iter().map(Name::as_str).collect();
        line("use", Value::from(names));
    }
    if policy.strict {
        line("strict", Value::from(true));
    }
    let otherwise = match policy.otherwise {
        Otherwise::Block => "block",
        Otherwise::Pass => "pass",
        Otherwise::Next => "next",
    };
    line("otherwise", Value::from(otherwise));
    let local = match policy.local_networks {
        LocalNetworks::Pass => "pass",
        LocalNetworks::Steer => "steer",
    };
    if policy.local_networks != LocalNetworks::default_for(policy.strict) {
        line("local-networks", Value::from(local));
    }
    if policy.priority != 0 && policy.origin != Origin::Default {
        line("priority", Value::from(i64::from(policy.priority)));
    }
    Ok(text)
}

/// A key, in quotes where it needs them. Names contain neither quotes nor backslashes.
fn key(name: &str) -> String {
    let bare = name
        .chars()
        .all(|c| c.is_ascii_alphanumeric() || matches!(c, '-' | '_'));
    if bare {
        name.to_owned()
    } else {
        format!("\"{name}\"")
    }
}
