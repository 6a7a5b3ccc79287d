//! What is worth knowing of files in which nothing is wrong: what can never hold, what competes, what is
//! not used, and what this host cannot do. Exact where it can be, and silent where it cannot be sure.

mod host;
mod names;
mod policies;
mod requirements;
mod rules;

use std::collections::BTreeSet;
use std::fmt;

use crate::config::{Parsed, Place};

/// Something worth knowing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// What it is.
    pub kind: Kind,
    /// What it is about.
    pub place: Place,
    /// The same in a sentence.
    pub message: String,
    /// What there is to say of the words at the place, briefly.
    pub label: Option<String>,
    /// What to do, if anything.
    pub help: Option<String>,
}

/// What a finding is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Kind {
    /// A later file's section took the place of an earlier one.
    Replaced,
    /// A policy that is never in force, because others always hold where it matches.
    Shadowed,
    /// Two policies that can hold for one cgroup.
    Overlapping,
    /// What nothing leads to.
    Unreachable,
    /// What this host or this version cannot do.
    Unenforceable,
}

/// What is known of the host. What is not known is not judged.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Facts {
    /// Names of its interfaces.
    pub interfaces: Option<BTreeSet<String>>,
    /// Where the unified hierarchy is mounted, without a leading slash.
    pub mount: Option<String>,
    /// Path of the managed cgroup in the unified hierarchy, without a leading slash; or why there is none.
    pub managed_root: Option<Result<String, String>>,
    /// Version of its kernel, major and minor.
    pub kernel: Option<(u32, u32)>,
    /// Whether the kernel describes its types (BTF).
    pub btf: Option<bool>,
}

/// All findings.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Report {
    /// In the order of the files.
    pub findings: Vec<Finding>,
    /// Whether all policies were compared with each other, and all rules of each: of very many only the first
    /// are.
    pub complete: bool,
}

/// Looks at files in which nothing is wrong, or single policies only; `files` gives their order.
pub fn check(parsed: &Parsed, files: &[&str], facts: &Facts) -> Report {
    let mut findings: Vec<Finding> = parsed.places.replaced.iter().map(replaced).collect();
    let mut complete = policies::check(parsed, &mut findings);
    complete &= rules::check(parsed, &mut findings);
    names::check(parsed, &mut findings);
    requirements::check(parsed, &mut findings);
    host::check(parsed, facts, &mut findings);
    let order = |finding: &Finding| {
        let file = files.iter().position(|file| **file == *finding.place.file);
        let Finding { place, kind, .. } = finding;
        (file, place.start, *kind, finding.message.clone())
    };
    findings.sort_by_cached_key(order);
    Report { findings, complete }
}

fn replaced(replaced: &crate::config::Replaced) -> Finding {
    let crate::config::Replaced {
        section,
        earlier,
        later,
        mistakes,
    } = replaced;
    let bad = if mistakes.is_empty() {
        ""
    } else {
        ", in which something is wrong"
    };
    Finding {
        kind: Kind::Replaced,
        place: later.clone(),
        message: format!("{section} replaces the one in {earlier}{bad}"),
        label: None,
        help: None,
    }
}

impl Kind {
    /// Its word.
    pub const fn word(self) -> &'static str {
        match self {
            Self::Replaced => "replaced",
            Self::Shadowed => "shadowed",
            Self::Overlapping => "overlapping",
            Self::Unreachable => "unreachable",
            Self::Unenforceable => "unenforceable",
        }
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.word())
    }
}
