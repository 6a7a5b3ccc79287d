//! Policies: what is wanted for the flows of a cgroup.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::criteria::Criteria;
use crate::ids::CgroupId;
use crate::name::Name;
use crate::pattern::{CgroupPattern, UnitName};
use crate::plan::Family;
use crate::rules::{Rule, Rules, RulesError};

/// What is wanted for the flows of the cgroups it matches, and of everything below them.
///
/// Which policy holds for a cgroup:
/// 1. The one matched by the deepest cgroup wins, but a strict policy holds below its cgroup against
///    every policy of a lower [`Rank`].
/// 2. At one cgroup: the higher [`Rank`], then the higher `priority`, then an exact path or id
///    before a pattern or unit name.
/// 3. Two that are still equal are a mistake. Where it can be seen at acceptance, the later is
///    refused. Where it shows only at a cgroup that both match, there one does not apply, and a
///    warning says so: the one that is not strict, else the one with the later name.
/// 4. Where none matches, the default policy holds.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct Policy {
    /// Its name, unique among all policies.
    pub name: Name,
    /// Who wrote it.
    pub origin: Origin,
    /// User id of the plain user whose it is; none: it is the administrators' (root's, for one).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub owner: Option<u32>,
    /// Cgroups it matches: any of these. Empty for the default policy alone.
    pub matches: Vec<Match>,
    /// Domains and groups, first choice first. Empty: `otherwise` says all.
    #[serde(rename = "use")]
    pub use_: Vec<Name>,
    /// Its flows leave by its domains or not at all.
    pub strict: bool,
    /// What to do when no domain fits.
    pub otherwise: Otherwise,
    /// What to do with destinations on-link at another interface.
    pub local_networks: LocalNetworks,
    /// Order among policies of one origin on one cgroup; higher wins.
    pub priority: i32,
    /// Flows that no socket program could decide are put right packet by packet.
    #[serde(default, skip_serializing_if = "is_default")]
    pub repair: bool,
    /// Flows are spread over the members of equal rank; none: the first that fits has them all.
    #[serde(default, skip_serializing_if = "is_default")]
    pub share: Option<Share>,
    /// What is decided for an unconnected socket: all of its datagrams, or each.
    #[serde(default, skip_serializing_if = "is_default")]
    pub rebind: Rebind,
    /// What becomes of live flows when the decision changes.
    #[serde(default, skip_serializing_if = "is_default")]
    pub sessions: Sessions,
    /// How long flows may stay on a domain that is lost; none: as `[agent]` says.
    #[serde(default, skip_serializing_if = "is_default")]
    pub linger: Option<Duration>,
    /// What it wants of its domains beside their names.
    #[serde(default, skip_serializing_if = "Criteria::is_none")]
    pub criteria: Criteria,
    /// The family of addresses that programs are to prefer on domains that have both.
    #[serde(default, skip_serializing_if = "is_default")]
    pub prefer_family: Option<Family>,
    /// What comes before all this for some of its flows: the first rule that fits.
    #[serde(default, skip_serializing_if = "Rules::is_none")]
    pub rules: Rules,
}

fn is_default<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
}

/// How flows are spread over members of equal rank.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Share {
    /// Each flow by itself.
    Flow,
    /// All flows to one destination alike (RFC 4311).
    Destination,
}

/// What a decision for an unconnected socket holds for.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
#[serde(rename_all = "kebab-case")]
pub enum Rebind {
    /// For the socket, while its domain lives.
    #[default]
    Flow,
    /// For one datagram.
    Datagram,
}

/// What becomes of live flows when their decision changes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct Sessions {
    /// When another domain is better and theirs lives.
    pub on_better: Session,
    /// When theirs is lost.
    pub on_loss: Session,
}

/// What becomes of a live flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Session {
    /// It stays where it is while its domain lives, and for `linger` after that.
    Keep,
    /// It goes on by the new domain where that can be, else it is ended.
    Move,
    /// It is ended, so that the application connects again at once.
    Reset,
}

impl Default for Sessions {
    fn default() -> Self {
        Self {
            on_better: Session::Keep,
            on_loss: Session::Reset,
        }
    }
}

/// Who wrote a policy, lowest precedence first.
///
/// What an application asks for gives way to its user, a user's wish to the operator of the fleet,
/// and the last word is the file's on the host itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Origin {
    /// The host's default: holds where nothing else does.
    Default,
    /// An application, for itself.
    App,
    /// A user, by command.
    User,
    /// The operator of a fleet.
    Operator,
    /// The administrator, by file.
    Admin,
}

/// What a policy has the right to, lowest first: its origin and, of two policies of one origin, the
/// administrators' before a plain user's.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Rank {
    /// Who wrote the policy.
    pub origin: Origin,
    /// Whether it is the administrators'.
    pub administrators: bool,
}

/// What happens to a flow when no domain of its policy fits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Otherwise {
    /// Refused at once.
    Block,
    /// Left to the host's ordinary routing.
    Pass,
    /// Decided by the policy that would hold if this one did not exist.
    Next,
}

/// What happens to destinations on-link at an interface that is not the domain's.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum LocalNetworks {
    /// Left to the host's ordinary routing.
    Pass,
    /// Put on the domain like everything else.
    Steer,
}

/// A cgroup, or several.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Match {
    /// Cgroups whose path matches.
    Cgroup(CgroupPattern),
    /// Cgroups whose last level is the unit's name.
    Unit(UnitName),
    /// One cgroup by its id.
    CgroupId(CgroupId),
}

/// Why a policy contradicts itself.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PolicyError {
    /// It matches nothing, and is not the default.
    #[error("policy `{0}` matches no cgroup: give it a cgroup, a unit or a process")]
    NoMatch(Name),
    /// The default policy has a match.
    #[error("the default policy holds where no other does and takes no match")]
    DefaultMatches,
    /// A policy of another origin is named `default`.
    #[error("`default` is the name of the host's default policy; choose another")]
    DefaultName,
    /// Strict, but otherwise something else than block.
    #[error(
        "policy `{0}` is strict, so its flows are blocked when no domain fits: `otherwise` cannot \
         be anything else"
    )]
    StrictOtherwise(Name),
    /// Neither names a domain nor does anything.
    #[error("policy `{name}` has {len} names in `use`, more than the limit of {limit}", limit = Policy::MAX_USE)]
    TooManyUses {
        /// The policy.
        name: Name,
        /// How many.
        len: usize,
    },
    /// Something is wrong with its rules.
    #[error("policy `{name}`: {error}")]
    Rules {
        /// The policy.
        name: Name,
        /// What.
        error: RulesError,
    },
}

impl Policy {
    /// Most names in `use`, and most matches.
    pub const MAX_USE: usize = 256;
    /// Longest `linger`.
    pub const MAX_LINGER: Duration = Duration::from_secs(24 * 60 * 60);

    /// A policy for `matches` that puts flows on the first of `use_` that fits, with the defaults of
    /// the file format: `otherwise` is [`Otherwise::default_for`], `local_networks`
    /// [`LocalNetworks::default_for`].
    pub fn new(
        name: Name,
        origin: Origin,
        matches: Vec<Match>,
        use_: Vec<Name>,
        strict: bool,
    ) -> Self {
        Self {
            name,
            origin,
            owner: None,
            matches,
            use_,
            strict,
            otherwise: Otherwise::default_for(strict),
            local_networks: LocalNetworks::default_for(strict),
            priority: 0,
            repair: false,
            share: None,
            rebind: Rebind::default(),
            sessions: Sessions::default(),
            linger: None,
            criteria: Criteria::default(),
            prefer_family: None,
            rules: Rules::default(),
        }
    }

    /// What it has the right to.
    pub fn rank(&self) -> Rank {
        Rank {
            origin: self.origin,
            administrators: self.owner.is_none(),
        }
    }

    /// What stands in place of a strict one that is in quarantine: it blocks what that matches.
    pub fn closed(&self) -> Self {
        Self {
            use_: Vec::new(),
            strict: true,
            otherwise: Otherwise::Block,
            local_networks: LocalNetworks::Steer,
            rules: Rules::default(),
            ..self.clone()
        }
    }

    /// Whether it lets nothing through.
    pub fn is_closed(&self) -> bool {
        self.strict && self.names().next().is_none()
    }

    /// Every name in `use`, also of its rules.
    pub fn names(&self) -> impl Iterator<Item = &Name> {
        let of_rules = self.rules.iter().flat_map(|rule| &rule.use_);
        self.use_.iter().chain(of_rules)
    }

    /// Whether flows may get anything but the host's ordinary routing from it.
    pub fn acts(&self) -> bool {
        let blocks = |rule: &Rule| rule.otherwise == Some(Otherwise::Block);
        self.names().next().is_some()
            || self.otherwise == Otherwise::Block
            || self.rules.iter().any(blocks)
    }

    /// Whether flows that no socket program could decide are put right packet by packet. A strict policy's
    /// are dropped instead.
    pub fn repairs(&self) -> bool {
        self.repair && !self.strict && self.acts()
    }

    /// Whether datagram flows are repaired to a better domain too.
    pub fn moves_datagrams(&self) -> bool {
        self.repairs() && self.sessions.on_better == Session::Move
    }

    /// Checks that it does not contradict itself.
    pub fn check(&self) -> Result<(), PolicyError> {
        let default = self.name.as_str() == Name::DEFAULT_POLICY;
        match (default, self.origin == Origin::Default) {
            (true, false) => return Err(PolicyError::DefaultName),
            (_, true) if !self.matches.is_empty() => return Err(PolicyError::DefaultMatches),
            (_, false) if self.matches.is_empty() => {
                return Err(PolicyError::NoMatch(self.name.clone()));
            }
            _ => {}
        }
        if self.strict && self.otherwise != Otherwise::Block {
            return Err(PolicyError::StrictOtherwise(self.name.clone()));
        }
        let len = self.use_.len().max(self.matches.len());
        if len > Self::MAX_USE {
            return Err(PolicyError::TooManyUses {
                name: self.name.clone(),
                len,
            });
        }
        self.rules
            .check(self.strict)
            .map_err(|error| PolicyError::Rules {
                name: self.name.clone(),
                error,
            })
    }
}

impl Otherwise {
    /// The default is `block`, strict or not: who names domains for an application wants those, and
    /// leaving by another must be asked for (`pass`, `next`). This is also what binding a program to
    /// an interface by hand does when the interface is down.
    pub const fn default_for(_strict: bool) -> Self {
        Self::Block
    }
}

impl LocalNetworks {
    /// `pass`, so that printers and neighbours on the other interface stay within reach; `steer`
    /// for strict policies, whose flows leave by their domains or not at all.
    pub const fn default_for(strict: bool) -> Self {
        if strict { Self::Steer } else { Self::Pass }
    }
}

impl Match {
    /// Whether it names one cgroup rather than any that fits.
    pub fn is_exact(&self) -> bool {
        match self {
            Self::Cgroup(pattern) => pattern.exact().is_some(),
            Self::Unit(_) => false,
            Self::CgroupId(_) => true,
        }
    }
}
