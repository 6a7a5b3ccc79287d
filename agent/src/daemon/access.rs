//! Who may do what: administrators (root and the group `steer`) anything, a plain user what is its own
//! and what the files permit.

use std::collections::{BTreeMap, BTreeSet};
use std::os::fd::OwnedFd;

use nix::unistd::{Gid, Group, User as Account};
use steer_core::config::Config;
use steer_core::name::Name;
use steer_core::permission::{self, Wish};
use steer_core::permit::{Accounts, User};
use steer_core::policy::{Match, Policy};
use steer_core::state::{Event, State};
use tracing::warn;

use super::Daemon;
use super::calls::refused;
use crate::api::error::ApiError;
use crate::api::server::Caller;
use crate::cgroup::process;

/// The group whose members are administrators.
const GROUP: &str = "steer";

/// Plain users whose groups are remembered before those without policies are forgotten.
const MOST_REMEMBERED: usize = 1024;

/// The users and groups of this host that matter, by number. They are looked up when files are read, since
/// that may take its time (a directory service), and a caller must not be able to cause it.
#[derive(Debug, Default)]
pub(super) struct Access {
    administrators: Option<u32>,
    accounts: Accounts,
    /// Groups of plain users who called, by user.
    users: BTreeMap<u32, Vec<u32>>,
}

/// What a caller is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Authority {
    /// It may do anything.
    Administrator,
    /// It may do what is its own and permitted.
    User(User),
}

impl Access {
    pub(super) fn look_up(config: &Config) -> Self {
        let (users, groups) = permission::names(config);
        let number = |found: nix::Result<Option<u32>>, kind: &str, name: &str| match found {
            Ok(Some(id)) => Some((name.into(), id)),
            Ok(None) => {
                warn!("a [permit.x] names the {kind} {name}, and there is none of that name");
                None
            }
            Err(error) => {
                warn!("the {kind} {name} of a [permit.x] could not be looked up: {error}");
                None
            }
        };
        let user = |name| Account::from_name(name).map(|user| user.map(|user| user.uid.as_raw()));
        let group = |name| Group::from_name(name).map(|group| group.map(|group| group.gid));
        let group = |name| group(name).map(|gid| gid.map(Gid::as_raw));
        let users = users.into_iter();
        let groups = groups.into_iter();
        Self {
            administrators: group(GROUP).unwrap_or_else(|error| {
                warn!("the group {GROUP} could not be looked up, so only root is an administrator: {error}");
                None
            }),
            accounts: Accounts {
                users: users
                    .filter_map(|name| number(user(name), "user", name))
                    .collect(),
                groups: groups
                    .filter_map(|name| number(group(name), "group", name))
                    .collect(),
            },
            users: BTreeMap::new(),
        }
    }

    /// The same for other files.
    pub(super) fn look_up_again(&mut self, config: &Config) {
        let users = std::mem::take(&mut self.users);
        *self = Self {
            users,
            ..Self::look_up(config)
        };
    }

    /// Notes a plain user's groups: what it may do is asked again when it is gone.
    pub(super) fn remember(&mut self, user: &User) {
        self.users.insert(user.uid, user.gids.clone());
    }

    /// [`Access::remember`] for who calls. Who owns nothing is forgotten again, some time later.
    pub(super) fn greet(&mut self, authority: &Authority, state: &State) {
        if let Authority::User(user) = authority {
            if self.users.len() >= MOST_REMEMBERED {
                let owners = self.owners(&state.api_policies);
                self.users = owners.into_iter().map(|o| (o.uid, o.gids)).collect();
            }
            self.remember(user);
        }
    }

    /// Plain users who own policies.
    pub(super) fn owners(&self, policies: &BTreeMap<Name, Policy>) -> Vec<User> {
        let owners: BTreeSet<u32> = policies.values().filter_map(|p| p.owner).collect();
        let known = owners.iter().map(|&uid| User {
            uid,
            gids: self.users.get(&uid).cloned().unwrap_or_default(),
        });
        known.collect()
    }

    pub(super) fn authority(&self, caller: &Caller) -> Authority {
        let member = |group| caller.gids.contains(&group);
        if caller.uid == 0 || self.administrators.is_some_and(member) {
            return Authority::Administrator;
        }
        Authority::User(User {
            uid: caller.uid,
            gids: caller.gids.clone(),
        })
    }
}

impl Authority {
    /// The owner of what the caller makes.
    pub(super) fn owner(&self) -> Option<u32> {
        match self {
            Self::Administrator => None,
            Self::User(user) => Some(user.uid),
        }
    }

    /// Whether a policy is the caller's own, or the caller is an administrator.
    pub(super) fn owns(&self, policy: &Policy) -> bool {
        self.owner().is_none_or(|uid| policy.owner == Some(uid))
    }

    /// # Errors
    /// The caller is a plain user.
    pub(super) fn administrator(&self, what: &str) -> Result<(), ApiError> {
        match self {
            Self::Administrator => Ok(()),
            Self::User(user) => Err(not_permitted(format!(
                "user {} may not {what}: it takes root or the group `{GROUP}`; try sudo",
                user.uid
            ))),
        }
    }

    /// # Errors
    /// The process is not the caller's.
    pub(super) fn process(&self, pid: i32, process: &OwnedFd) -> Result<(), ApiError> {
        let Self::User(user) = self else {
            return Ok(());
        };
        match process::owner(pid, process) {
            Ok(Some(uid)) if uid == user.uid => Ok(()),
            Ok(_) => Err(not_permitted(format!(
                "process {pid} does not belong to user {}: it takes root or the group `{GROUP}`",
                user.uid
            ))),
            Err(_) => Err(ApiError::Failed {
                reason: format!("process {pid} has ended"),
            }),
        }
    }
}

impl Daemon {
    pub(super) fn authority(&self, caller: &Caller) -> Authority {
        self.access.authority(caller)
    }

    /// Whether the caller may have flows put on these domains. `cgroup`: path of one that is not its own.
    ///
    /// # Errors
    /// No permit gives it that.
    pub(super) fn permit(
        &self,
        authority: &Authority,
        use_: &[Name],
        strict: bool,
        cgroup: Option<&str>,
    ) -> Result<(), ApiError> {
        if authority.owner().is_some() {
            // A slip of the pen is not a missing right.
            self.engine
                .check_names(&Name::default_policy(), use_)
                .map_err(|unknown| refused(&unknown))?;
        }
        self.permitted(authority, use_, strict, cgroup)
    }

    /// [`Daemon::permit`] for what was made already: an interface may be gone for a while.
    fn permitted(
        &self,
        authority: &Authority,
        use_: &[Name],
        strict: bool,
        cgroup: Option<&str>,
    ) -> Result<(), ApiError> {
        let Authority::User(user) = authority else {
            return Ok(());
        };
        let wish = Wish {
            use_,
            strict,
            cgroup,
        };
        let config = &self.engine.state().config;
        let accounts = &self.access.accounts;
        permission::check(config, self.engine.domains(), accounts, user, wish)
            .map_err(|denied| not_permitted(denied.to_string()))
    }

    /// Ends policies of plain users that are not permitted any more. Strict ones block instead: what was
    /// not to leave by anything else does not leave by anything else now.
    pub(super) fn ask_permits_again(&mut self) {
        // Without plain users no policy is one's: many need not be looked through for each change of the
        // network.
        if self.access.users.is_empty() {
            return;
        }
        let state = self.engine.state();
        let owned = state.api_policies.values();
        let mut denied = Vec::new();
        for (policy, uid) in owned.filter_map(|policy| Some((policy, policy.owner?))) {
            let gids = self.access.users.get(&uid).cloned().unwrap_or_default();
            let authority = Authority::User(User { uid, gids });
            let others = policy.matches.iter().filter_map(|m| match m {
                Match::Cgroup(pattern) => Some(pattern.as_str()),
                Match::Unit(_) | Match::CgroupId(_) => None,
            });
            let mut cgroups = others.map(Some).chain([None]);
            let reason = cgroups.find_map(|cgroup| {
                self.permitted(&authority, &policy.use_, policy.strict, cgroup)
                    .err()
            });
            if let Some(reason) = reason {
                denied.push((policy.clone(), reason));
            }
        }
        for (policy, reason) in denied {
            warn!(policy = %policy.name, "no longer permitted: {reason}");
            if policy.strict {
                self.fact(Event::PutBack(Policy {
                    use_: Vec::new(),
                    ..policy
                }));
            } else {
                self.fact(Event::UnsetPolicy(policy.name));
            }
        }
    }

    /// Whether the caller may make a policy of this name, or change the one that has it.
    ///
    /// # Errors
    /// It is another's, or the caller has enough.
    pub(super) fn may_name(&self, authority: &Authority, name: &Name) -> Result<(), ApiError> {
        let Some(uid) = authority.owner() else {
            return Ok(());
        };
        match self.find_policy(name.as_str()) {
            Some(policy) if policy.owner == Some(uid) => Ok(()),
            Some(_) => Err(not_permitted(format!(
                "the name `{name}` is another's: choose another name"
            ))),
            None => self.may_have_more(authority),
        }
    }

    /// Whether the caller may have one policy more.
    ///
    /// # Errors
    /// It has enough.
    pub(super) fn may_have_more(&self, authority: &Authority) -> Result<(), ApiError> {
        let Some(uid) = authority.owner() else {
            return Ok(());
        };
        let policies = self.engine.state().api_policies.values();
        let owners = policies.filter_map(|policy| policy.owner);
        permission::room(owners, uid).map_err(|full| not_permitted(full.to_string()))
    }

    /// Whether the caller is told of a policy: its own, and what holds where it is itself.
    pub(super) fn sees(&self, caller: &Caller, authority: &Authority, policy: &Policy) -> bool {
        authority.owns(policy) || self.holding(caller).contains(&policy.name)
    }

    /// The policies that hold for the caller itself.
    pub(super) fn holding(&self, caller: &Caller) -> Vec<Name> {
        let cgroup = self.tree.of_process(caller.pid).ok();
        // Asked after reading: whoever holds the connection now, the process that made it may have ended,
        // and another's may have its number.
        let cgroup = cgroup.filter(|_| !process::has_ended(&caller.pidfd));
        let cgroup = cgroup.and_then(|directory| crate::cgroup::id_of(&directory).ok());
        let effective = cgroup.and_then(|id| self.engine.effective(id));
        effective.map_or_else(Vec::new, |effective| effective.chain)
    }
}

pub(super) fn not_permitted(reason: String) -> ApiError {
    ApiError::NotPermitted { reason }
}
