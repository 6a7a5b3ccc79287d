//! Permits: what the host's administrators let plain users have steered, as the files say it.

use std::collections::BTreeMap;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use crate::name::{Name, Shown};
use crate::pattern::CgroupPattern;

/// `[permit.x]`: what some users may do.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Permit {
    /// `users`: whom it is for.
    pub users: Vec<Account>,
    /// `groups`: it is for the members of these, too.
    pub groups: Vec<Account>,
    /// `cgroups`: cgroups that are not their own, and that they may give policies to all the same.
    pub cgroups: Vec<CgroupPattern>,
    /// `domains`: domains and groups that they may use. Empty: every domain that was found on the host.
    pub domains: Vec<Name>,
    /// `destinations`: where the flows may go that they have steered. Policies cannot be limited to
    /// destinations yet, so a permit that names any gives nothing.
    pub destinations: Vec<IpNet>,
    /// `strict`: whether their policies may be strict. Default: they may.
    pub strict: Option<bool>,
}

/// A user or a group of users.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Account {
    /// Everybody.
    Any,
    /// By number.
    Id(u32),
    /// By name.
    Name(Box<str>),
}

/// Numbers of the users and groups that files name. A name that is missing stands for nobody.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Accounts {
    /// Users.
    pub users: BTreeMap<Box<str>, u32>,
    /// Groups.
    pub groups: BTreeMap<Box<str>, u32>,
}

/// A plain user, as the kernel knows it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct User {
    /// Its number.
    pub uid: u32,
    /// Numbers of all groups it is in.
    pub gids: Vec<u32>,
}

impl Account {
    /// Reads a name, a number, or `*` for everybody.
    ///
    /// # Errors
    /// It cannot be the name of an account.
    pub fn new(text: &str) -> Result<Self, String> {
        if text == "*" {
            return Ok(Self::Any);
        }
        if let Ok(id) = text.parse() {
            return Ok(Self::Id(id));
        }
        let fits = |c: char| !c.is_whitespace() && !c.is_control() && !matches!(c, ':' | '/' | ',');
        if text.is_empty() || text.len() > 255 || !text.chars().all(fits) {
            return Err(format!(
                "{} cannot be the name of a user or group",
                Shown::new(text)
            ));
        }
        Ok(Self::Name(text.into()))
    }

    fn is_among(&self, ids: &[u32], names: &BTreeMap<Box<str>, u32>) -> bool {
        match self {
            Self::Any => true,
            Self::Id(id) => ids.contains(id),
            Self::Name(name) => names.get(name).is_some_and(|id| ids.contains(id)),
        }
    }
}

impl std::fmt::Display for Account {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Any => f.write_str("*"),
            Self::Id(id) => id.fmt(f),
            Self::Name(name) => name.fmt(f),
        }
    }
}

impl Permit {
    /// Whether it is for this user.
    pub fn is_for(&self, user: &User, accounts: &Accounts) -> bool {
        let is_user = |account: &Account| account.is_among(&[user.uid], &accounts.users);
        let is_member = |account: &Account| account.is_among(&user.gids, &accounts.groups);
        self.users.iter().any(is_user) || self.groups.iter().any(is_member)
    }
}
