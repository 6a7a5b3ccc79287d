//! Why the engine refuses what a user asks for.

use crate::name::Name;
use crate::policy::PolicyError;

/// Why an event was refused. The state is as it was.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Rejected {
    /// The policy contradicts itself.
    #[error(transparent)]
    Policy(#[from] PolicyError),
    /// A name in `use` means nothing.
    #[error("unknown domain `{name}` in policy `{policy}`{}", help(.meant.as_ref()))]
    UnknownDomain {
        /// The policy.
        policy: Name,
        /// The unknown name.
        name: Name,
        /// A known name that it resembles.
        meant: Option<Name>,
    },
    /// A file defines a policy of this name.
    #[error("policy `{0}` is defined in a file; change it there, or choose another name")]
    InFile(Name),
    /// Two policies of one origin and priority on one cgroup.
    #[error(
        "policies `{name}` and `{other}` have the same origin and priority on the cgroup {path}; \
         give one of them another priority"
    )]
    Conflict {
        /// The refused policy.
        name: Name,
        /// The one that is there.
        other: Name,
        /// The cgroup.
        path: String,
    },
    /// A strict policy of a higher rank holds for the cgroup.
    #[error(
        "the strict policy `{by}` holds for the cgroup {path}, and `{name}` cannot override it"
    )]
    ShutOut {
        /// The refused policy.
        name: Name,
        /// The one that holds.
        by: Name,
        /// The cgroup.
        path: String,
    },
    /// There is no such policy.
    #[error("there is no policy `{name}`{}", help(.meant.as_ref()))]
    NoPolicy {
        /// The name.
        name: Name,
        /// A policy whose name it resembles.
        meant: Option<Name>,
    },
    /// A domain is preferred that the policy cannot use.
    #[error("policy `{policy}` cannot use `{name}`, only {}: a preference adds nothing to `use`", listed(.usable))]
    NotUsed {
        /// The policy.
        policy: Name,
        /// What was to be preferred.
        name: Name,
        /// What it can use.
        usable: Vec<Name>,
    },
    /// There are too many policies.
    #[error("there are {0} policies already, as many as the kernel map holds")]
    TooMany(usize),
}

fn listed(names: &[Name]) -> String {
    if names.is_empty() {
        return "no domain at all".to_owned();
    }
    let names: Vec<_> = names.iter().map(|name| format!("`{name}`")).collect();
    names.join(", ")
}

fn help(meant: Option<&Name>) -> String {
    meant.map_or_else(String::new, |name| format!("; did you mean `{name}`?"))
}
