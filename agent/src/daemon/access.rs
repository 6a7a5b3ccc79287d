//! Who may do what: administrators (root and the group `steer`) anything, a plain user what is its own
//! and what the files permit.

use std::os::fd::OwnedFd;

use nix::unistd::{Gid, Group, User as Account};
use steer_core::config::Config;
use steer_core::name::Name;
use steer_core::permission::{self, Wish};
use steer_core::permit::{Accounts, User};
use steer_core::policy::Policy;
use tracing::warn;

use super::Daemon;
use crate::api::error::ApiError;
use crate::api::server::Caller;
use crate::cgroup::process;

/// The group whose members are administrators.
const GROUP: &str = "steer";

/// Most policies of one plain user: each costs kernel memory.
const MAX_OWN: usize = 64;

/// The users and groups of this host that matter, by number. They are looked up when files are read, since
/// that may take its time (a directory service), and a caller must not be able to cause it.
#[derive(Debug, Default)]
pub(super) struct Access {
    administrators: Option<u32>,
    accounts: Accounts,
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
            administrators: group(GROUP).ok().flatten(),
            accounts: Accounts {
                users: users
                    .filter_map(|name| number(user(name), "user", name))
                    .collect(),
                groups: groups
                    .filter_map(|name| number(group(name), "group", name))
                    .collect(),
            },
        }
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
            None => {
                let policies = self.engine.state().api_policies.values();
                let own = policies.filter(|policy| policy.owner == Some(uid)).count();
                if own < MAX_OWN {
                    return Ok(());
                }
                Err(not_permitted(format!(
                    "user {uid} has {own} policies, as many as a plain user may: end a command of \
                     `steer run`, or unset one"
                )))
            }
        }
    }

    /// Whether the caller is told of a policy: its own, and what holds where it is itself.
    pub(super) fn sees(&self, caller: &Caller, authority: &Authority, policy: &Policy) -> bool {
        authority.owns(policy) || self.holding(caller).contains(&policy.name)
    }

    /// The policies that hold for the caller itself.
    pub(super) fn holding(&self, caller: &Caller) -> Vec<Name> {
        let cgroup = self.tree.of_process(caller.pid).ok();
        let cgroup = cgroup.and_then(|directory| crate::cgroup::id_of(&directory).ok());
        let effective = cgroup.and_then(|id| self.engine.effective(id));
        effective.map_or_else(Vec::new, |effective| effective.chain)
    }
}

pub(super) fn not_permitted(reason: String) -> ApiError {
    ApiError::NotPermitted { reason }
}
