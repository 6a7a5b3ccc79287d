//! What `steer doctor` found, and what it could not look at.

use schemars::JsonSchema;
use serde::Serialize;

use super::code::{Code, Severity};

/// Something that was found.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, JsonSchema)]
pub struct Finding {
    /// How bad it is.
    pub severity: Severity,
    /// What it is.
    pub code: Code,
    /// One sentence that names the object.
    pub text: String,
    /// What to do: a command or a setting; `null`: nothing to do.
    pub mend: Option<String>,
}

impl Finding {
    /// A finding with nothing to do about it.
    pub fn new(code: Code, text: impl Into<String>) -> Self {
        Self {
            severity: code.entry().severity,
            code,
            text: text.into(),
            mend: None,
        }
    }

    /// What to do about it.
    #[must_use]
    pub fn mend(mut self, mend: impl Into<String>) -> Self {
        self.mend = Some(mend.into());
        self
    }

    /// With the mend of the code's own entry.
    #[must_use]
    pub fn usual_mend(self) -> Self {
        let mend = self.code.entry().mend;
        self.mend(mend)
    }
}

/// Something that could not be looked at.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, JsonSchema)]
pub struct Unchecked {
    /// What would have been looked at.
    pub what: String,
    /// Why it was not.
    pub why: String,
}

impl Unchecked {
    /// For want of root's rights.
    pub fn needs_root(what: &str) -> Self {
        Self {
            what: what.to_owned(),
            why: "needs root".to_owned(),
        }
    }

    /// Because of an error.
    pub fn failed(what: &str, why: impl Into<String>) -> Self {
        Self {
            what: what.to_owned(),
            why: why.into(),
        }
    }
}

/// A fact, or why it is not known.
pub type Seen<T> = Result<T, Unchecked>;

/// Everything that was found. This is what `steer doctor --json` prints, with sorted keys.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, JsonSchema)]
pub struct Report {
    /// The worst first, then by code and text.
    pub findings: Vec<Finding>,
    /// What could not be looked at, by name.
    pub unchecked: Vec<Unchecked>,
    /// How many findings there are of each severity.
    pub summary: Summary,
}

/// How many findings there are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, JsonSchema)]
pub struct Summary {
    /// Problems.
    pub problems: usize,
    /// Warnings.
    pub warnings: usize,
    /// Notes.
    pub notes: usize,
    /// Checks that could not be made.
    pub unchecked: usize,
}

impl Report {
    /// Puts everything into its order.
    pub fn new(mut findings: Vec<Finding>, mut unchecked: Vec<Unchecked>) -> Self {
        findings.sort();
        findings.dedup();
        unchecked.sort();
        unchecked.dedup();
        let count = |severity| findings.iter().filter(|f| f.severity == severity).count();
        let summary = Summary {
            problems: count(Severity::Problem),
            warnings: count(Severity::Warning),
            notes: count(Severity::Note),
            unchecked: unchecked.len(),
        };
        Self {
            findings,
            unchecked,
            summary,
        }
    }
}
