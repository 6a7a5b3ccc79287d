//! The errors that the API answers with. Each says what to do.

use zlink::ReplyError;

use super::mistake::Mistake;
use super::types::Candidate;

/// An error of interface `net.steer.Agent`.
#[derive(Clone, Debug, PartialEq, Eq, ReplyError, zlink::introspect::ReplyError)]
#[zlink(interface = "net.steer.Agent")]
pub enum ApiError {
    /// None of the domains that the policy may use fits.
    NoDomainFits {
        /// Name of the policy.
        policy: Option<String>,
        /// Why none fits.
        reason: String,
        /// The domains looked at, in the policy's order.
        candidates: Vec<Candidate>,
    },
    /// There is no policy of that name.
    NoSuchPolicy {
        /// The name.
        name: String,
        /// A policy whose name it resembles.
        meant: Option<String>,
    },
    /// There is no domain of that name.
    NoSuchDomain {
        /// The name.
        name: String,
        /// A domain whose name it resembles.
        meant: Option<String>,
    },
    /// A parameter has a value that it cannot have.
    InvalidArgument {
        /// The parameter.
        field: String,
        /// What is wrong with it.
        reason: String,
    },
    /// The caller may not do this.
    NotPermitted {
        /// Why not, and who may.
        reason: String,
    },
    /// The files cannot be taken. What was in force still is.
    BadFiles {
        /// That, in one sentence.
        reason: String,
        /// What is wrong, at most 100 of them, in the order of the files.
        mistakes: Vec<Mistake>,
    },
    /// The agent tried and failed.
    Failed {
        /// What failed.
        reason: String,
    },
    /// The agent cannot take the call now.
    Busy {
        /// Why not.
        reason: String,
    },
}

impl std::error::Error for ApiError {}

impl std::fmt::Display for ApiError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::NoDomainFits {
                policy,
                reason,
                candidates,
            } => {
                match policy {
                    Some(policy) => write!(f, "no domain fits policy `{policy}`: ")?,
                    None => f.write_str("no domain fits: ")?,
                }
                // The reason is these, put together for those who do not get them one by one.
                if candidates.is_empty() {
                    f.write_str(reason)?;
                }
                for (i, Candidate { domain, reason, .. }) in candidates.iter().enumerate() {
                    let separator = if i == 0 { "" } else { "; " };
                    if reason.split(' ').any(|word| word == domain) {
                        write!(f, "{separator}{reason}")?;
                    } else {
                        write!(f, "{separator}{domain}: {reason}")?;
                    }
                }
                f.write_str(" (`steer domain list` shows all domains)")
            }
            Self::NoSuchPolicy { name, meant } => missing(f, "policy", name, meant.as_deref()),
            Self::NoSuchDomain { name, meant } => missing(f, "domain", name, meant.as_deref()),
            Self::InvalidArgument { field, reason } => write!(f, "{field}: {reason}"),
            Self::NotPermitted { reason } => write!(f, "not permitted: {reason}"),
            Self::BadFiles { reason, mistakes } => {
                f.write_str(reason)?;
                mistakes
                    .iter()
                    .try_for_each(|mistake| write!(f, "; {mistake}"))
            }
            Self::Failed { reason } => f.write_str(reason),
            Self::Busy { reason } => write!(f, "the agent is busy: {reason}"),
        }
    }
}

fn missing(
    f: &mut std::fmt::Formatter<'_>,
    kind: &str,
    name: &str,
    meant: Option<&str>,
) -> std::fmt::Result {
    write!(f, "there is no {kind} `{name}`")?;
    match meant {
        Some(meant) => write!(f, "; did you mean `{meant}`?"),
        None => write!(f, ": `steer {kind} list` shows all"),
    }
}
