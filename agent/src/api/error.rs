//! The errors that the API answers with. Each says what to do.

use zlink::ReplyError;

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
    },
    /// There is no domain of that name.
    NoSuchDomain {
        /// The name.
        name: String,
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
                    Some(policy) => write!(f, "no domain fits policy `{policy}`: {reason}")?,
                    None => write!(f, "no domain fits: {reason}")?,
                }
                for candidate in candidates {
                    write!(f, "; {}: {}", candidate.domain, candidate.reason)?;
                }
                f.write_str(" (`steer domain list` shows all domains)")
            }
            Self::NoSuchPolicy { name } => {
                write!(
                    f,
                    "there is no policy `{name}`: `steer policy list` shows all"
                )
            }
            Self::NoSuchDomain { name } => {
                write!(
                    f,
                    "there is no domain `{name}`: `steer domain list` shows all"
                )
            }
            Self::InvalidArgument { field, reason } => write!(f, "{field}: {reason}"),
            Self::NotPermitted { reason } => write!(f, "not permitted: {reason}"),
            Self::Failed { reason } => f.write_str(reason),
            Self::Busy { reason } => write!(f, "the agent is busy: {reason}"),
        }
    }
}
