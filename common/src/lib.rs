//! Types that both sides of a kernel map share, and nothing else.
//!
//! Every type is plain old data without padding: the agent writes it with [`bytemuck`], the kernel
//! programs read it in place. Integers are in host byte order, addresses in network byte order.
//! A change of any layout here changes [`LAYOUT_VERSION`], and with it the directory of the pins.
#![cfg_attr(not(feature = "std"), no_std)]

mod event;
mod flow;
mod flow_count;
mod host;
mod mark;
mod policy;
pub mod rules;

mod repair;
mod traffic;

pub use event::{CgroupEvent, EventKind, GuardEvent, NAME_LEN, guard_reason};
pub use flow::{FlowState, flow_flags};
pub use flow_count::{FlowCount, MAX_COUNTED};
pub use host::{HostCounts, HostKey};
pub use mark::{MarkMask, MarkMaskError};
pub use policy::{
    CgroupEntry, ChoiceEntry, DomainEntry, DomainSet, DomainSlots, IFNAME_LEN, IngressEntry,
    LocalEntry, LocalKey4, LocalKey6, NameKey, PolicyEntry, ShareEntry, SourceKey, cell,
    cgroup_flags, counter, domain_flags, ingress_flags, local_flags, policy_flags, share,
    share_slot, verdict,
};
pub use repair::{
    FragmentKey, FragmentLease, RepairKey, RepairLease, ReturnKey, ReturnLease, SocketLease,
};
pub use traffic::{Traffic, TrafficKey};

/// Version of every layout in this crate; part of the pin path.
///
/// An agent with another version fills maps of its own and then takes the attachments over. Only
/// `FLOWS3` goes from version to version, because nobody but the sockets knows what is in it: a change
/// of [`FlowState`] gives that map another name, that of the first version that has it.
pub const LAYOUT_VERSION: u32 = LAYOUT + NEXT;

const LAYOUT: u32 = 5;
/// The feature `next-layout` builds the agent that the upgrade scenarios upgrade to.
const NEXT: u32 = if cfg!(feature = "next-layout") { 1 } else { 0 };

/// Cgroups that may have an entry at one time (`CGROUPS`).
pub const MAX_CGROUPS: u32 = 262_144;
/// Cgroups that strict policies name (`NAMES`).
pub const MAX_NAMES: u32 = 262_144;
/// Kernel policies, index 0 unused (`POLICIES`).
pub const MAX_POLICIES: u32 = 131_072;
/// Choices, index 0 unused (`CHOICES`).
pub const MAX_CHOICES: u32 = 131_072;
/// Choices whose flows are spread over several domains (`SHARES`).
pub const MAX_SHARES: u32 = 4_096;
/// Domain indices, 0 unused (`DOMAINS`). A [`DomainSet`] has one bit for each.
pub const MAX_DOMAINS: u32 = 256;
/// Pairs of domain and source address (`SOURCES`).
pub const MAX_SOURCES: u32 = 8_192;
/// On-link prefixes and own addresses of the host, each family (`LOCALS4`, `LOCALS6`).
pub const MAX_LOCALS: u32 = 8_192;
/// Interfaces with something to do on arrival (`INGRESS`, `HOST_COUNTS`).
pub const MAX_INGRESS: u32 = 4_096;
/// Pairs of interface and own address of the host (`HOSTS`).
pub const MAX_HOSTS: u32 = 65_536;
/// Interfaces that have a guard (`GUARDED`; key: interface index, value: `u8`, always 1).
pub const MAX_GUARDED: u32 = 65_536;
/// Pairs of policy and domain for which traffic is counted at one time (`TRAFFIC`).
pub const MAX_TRAFFIC: u32 = 65_536;
/// Flows that are repaired at one time (`REPAIRED`, `RETURNS`); more displace those that sent least
/// recently.
pub const MAX_REPAIRED: u32 = 16_384;
/// The same of pings, which have maps of their own (`ECHOES`, `ECHO_RETURNS`): one socket may ping any number of
/// hosts, and is to displace nobody's connection.
pub const MAX_ECHOES: u32 = 4_096;
/// Packets in fragments that are repaired at one time (`FRAGMENTS`).
pub const MAX_FRAGMENTS: u32 = 2_048;
/// Bytes of the event ring (`EVENTS`).
pub const EVENT_RING_BYTES: u32 = 1 << 20;

/// Errno that a refused flow sees when no domain fits: `ENETUNREACH`, the same that an
/// `unreachable` rule gives.
pub const ERRNO_NO_DOMAIN: i32 = 101;
/// Errno that a refused operation sees when the policy does not allow it: `EPERM`.
pub const ERRNO_NOT_ALLOWED: i32 = 1;
