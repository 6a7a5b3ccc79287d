//! Numbers that name things, each a type of its own.

use std::fmt;

use serde::{Deserialize, Serialize};

macro_rules! number {
    ($(#[$doc:meta])* $name:ident($inner:ty)) => {
        $(#[$doc])*
        #[derive(
            Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
        )]
        #[serde(transparent)]
        pub struct $name(pub $inner);

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }
    };
}

number!(
    /// Index of an interface in the agent's network namespace.
    IfIndex(u32)
);
number!(
    /// Index of a domain, 1 to 255: what marks carry. Belongs to a domain's name for the boot.
    DomainIndex(u16)
);
number!(
    /// Id of a cgroup in the unified hierarchy: its directory's inode number.
    CgroupId(u64)
);
number!(
    /// Index into the kernel's `POLICIES`, from 1: a policy together with those that apply by
    /// `otherwise = "next"` if it does not.
    PolicyId(u32)
);
number!(
    /// A cgroup below which policies name others, for the kernel's `NAMES`, from 1; 0: anywhere.
    PlaceId(u32)
);
number!(
    /// Index into the kernel's `CHOICES`, from 1.
    ChoiceId(u32)
);
number!(
    /// A routing table.
    TableId(u32)
);
number!(
    /// A compiled set of rules in the kernel's `RULESETS`, from 1.
    RulesetId(u32)
);
