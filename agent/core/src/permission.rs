//! Permission: whether a plain user may have steered what it asks for.
//!
//! Administrators may do anything and are not asked here. A plain user has its own processes and
//! cgroups steered; that these are its own is for the caller to know.

use crate::config::Config;
use crate::domains::{DomainOrigin, Domains};
use crate::groups;
use crate::name::Name;
use crate::permit::{Account, Accounts, Permit, User};

/// What a plain user asks for.
#[derive(Clone, Copy, Debug)]
pub struct Wish<'a> {
    /// Domains and groups.
    pub use_: &'a [Name],
    /// Whether the policy is to be strict.
    pub strict: bool,
    /// Path of the cgroup, where that is not the user's own.
    pub cgroup: Option<&'a str>,
}

/// Why a plain user may not do what it asks for.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Denied {
    /// There are permits, and none is for this user.
    #[error("no [permit.x] of the files is for user {0}: an administrator can add one")]
    Nobody(u32),
    /// A domain is not one of those that it may use.
    #[error(
        "user {uid} may not use the domain `{domain}`: an administrator can name it in `domains` of a \
         [permit.x]"
    )]
    Domain {
        /// The user.
        uid: u32,
        /// The domain.
        domain: Name,
    },
    /// It may not have strict policies.
    #[error("user {0} may not have strict policies: `strict` in [permit.x] says so")]
    Strict(u32),
    /// A cgroup is neither its own, nor named by a permit.
    #[error(
        "the cgroup {path} does not belong to user {uid}: steer a process of yours (`steer run`, \
         `steer move`), or have an administrator name the cgroup in `cgroups` of a [permit.x]"
    )]
    Cgroup {
        /// The user.
        uid: u32,
        /// The cgroup.
        path: String,
    },
    /// The permit is limited to destinations.
    #[error(
        "[permit.{0}] is limited to `destinations`, which policies cannot be yet: it gives nothing until \
         that key is removed"
    )]
    Destinations(Name),
}

/// Whether a permit gives all of a wish.
fn gives(permit: &Permit, user: &User, wish: Wish<'_>, world: World<'_>) -> Result<(), Denied> {
    let uid = user.uid;
    if let Some(path) = wish.cgroup
        && !permit.cgroups.iter().any(|pattern| pattern.matches(path))
    {
        let path = path.to_owned();
        return Err(Denied::Cgroup { uid, path });
    }
    if wish.strict && permit.strict == Some(false) {
        return Err(Denied::Strict(uid));
    }
    let given = world.expand(&permit.domains);
    let denied = world.expand(wish.use_).into_iter().find(|domain| {
        if permit.domains.is_empty() {
            !world.was_found(domain)
        } else {
            !given.contains(domain)
        }
    });
    match denied {
        Some(domain) => Err(Denied::Domain { uid, domain }),
        None => Ok(()),
    }
}

/// What names stand for.
#[derive(Clone, Copy)]
struct World<'a> {
    config: &'a Config,
    domains: &'a Domains,
}

impl World<'_> {
    /// Groups replaced by their domains, and aliases by the domains' own names.
    fn expand(self, names: &[Name]) -> Vec<Name> {
        let names = names.iter();
        names
            .flat_map(|name| groups::members(self.config, self.domains, name))
            .collect()
    }

    /// Whether no file names the domain.
    fn was_found(self, name: &Name) -> bool {
        let domain = self.domains.get(name.as_str());
        domain.is_none_or(|domain| domain.origin == DomainOrigin::Discovered)
    }
}

/// Whether a plain user may have what it asks for. One permit must give all of it. Without any permit in
/// the files everybody has what an empty one gives.
///
/// # Errors
/// It may not; of several permits for it, the last one's reason.
pub fn check(
    config: &Config,
    domains: &Domains,
    accounts: &Accounts,
    user: &User,
    wish: Wish<'_>,
) -> Result<(), Denied> {
    let world = World { config, domains };
    if config.permits.is_empty() {
        return gives(&Permit::default(), user, wish, world);
    }
    let mut denied = Denied::Nobody(user.uid);
    for (name, permit) in &config.permits {
        if !permit.is_for(user, accounts) {
            continue;
        }
        if !permit.destinations.is_empty() {
            denied = Denied::Destinations(name.clone());
            continue;
        }
        match gives(permit, user, wish, world) {
            Ok(()) => return Ok(()),
            Err(reason) => denied = reason,
        }
    }
    Err(denied)
}

/// The names of users and of groups that permits name, to be looked up.
pub fn names(config: &Config) -> (Vec<&str>, Vec<&str>) {
    let pick = |of: fn(&Permit) -> &[Account]| {
        let accounts = config.permits.values().flat_map(of);
        let names = accounts.filter_map(|account| match account {
            Account::Name(name) => Some(&**name),
            Account::Any | Account::Id(_) => None,
        });
        names.collect()
    };
    (pick(|permit| &permit.users), pick(|permit| &permit.groups))
}

/// Why a plain user may have no more policies.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Full {
    /// It has enough.
    #[error(
        "user {0} has {MAX_OWN} policies, as many as a plain user may: end a command of `steer run`, or \
         unset one"
    )]
    Own(u32),
    /// All plain users have.
    #[error(
        "plain users have {MAX_OF_USERS} policies, as many as they may in all: wait until some end, or ask \
         an administrator"
    )]
    All,
}

/// Most policies of one plain user: each costs kernel memory.
pub const MAX_OWN: usize = 64;

/// Most policies of all plain users. One may have thousands of ids of its own (subuid(5)), and the rest of
/// what the kernel's maps hold is for administrators.
pub const MAX_OF_USERS: usize = 4096;

/// Whether a plain user may have one more policy. `owners`: of the policies that plain users have.
///
/// # Errors
/// It may not.
pub fn room(owners: impl Iterator<Item = u32>, uid: u32) -> Result<(), Full> {
    let (mut own, mut all) = (0, 0);
    for owner in owners {
        all += 1;
        own += usize::from(owner == uid);
    }
    match (own, all) {
        (MAX_OWN.., _) => Err(Full::Own(uid)),
        (_, MAX_OF_USERS..) => Err(Full::All),
        _ => Ok(()),
    }
}
