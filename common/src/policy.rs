//! What the maps say: cgroup -> policy -> choice -> domain.

use bytemuck::{Pod, Zeroable};

use crate::NAME_LEN;

/// Length of an interface's name with its terminating zero (`IFNAMSIZ`).
pub const IFNAME_LEN: usize = 16;

/// Value of `CGROUPS` (hash; key: cgroup id, `u64`): the policy in force for a cgroup.
///
/// Every cgroup below one with a policy has an entry of its own, so the datapath looks one id up and
/// never walks ancestors. A new cgroup gets the entry of its name from `NAMES`, or else its parent's,
/// in the kernel.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Pod, Zeroable)]
pub struct CgroupEntry {
    /// Index into `POLICIES`; 0: no policy.
    pub policy: u32,
    /// Bits of [`cgroup_flags`].
    pub flags: u32,
    /// Where new cgroups below are looked up in `NAMES`; 0: nowhere. Not inherited.
    pub place: u32,
}

/// Key of `NAMES` (hash; value: [`CgroupEntry`]): a cgroup that strict policies name, whether it exists or
/// not, so that it has its entry when it is made, also while no agent runs.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Pod, Zeroable)]
pub struct NameKey {
    /// [`CgroupEntry::place`] of its parent; 0: a unit of a strict policy, anywhere below a cgroup with
    /// [`cgroup_flags::UNITS_UNDECIDED`]. Its value does not matter: it starts closed.
    pub place: u32,
    /// Name of its directory; zeros behind it.
    pub name: [u8; NAME_LEN],
}

/// Bits of [`CgroupEntry::flags`].
pub mod cgroup_flags {
    /// The agent has not decided yet: the cgroup is closed.
    pub const UNDECIDED: u32 = 1 << 0;
    /// A strict glob may match a child: a new child starts [`UNDECIDED`] and [`CHILDREN_UNDECIDED`]
    /// is not inherited.
    pub const CHILDREN_UNDECIDED: u32 = 1 << 1;
    /// As [`CHILDREN_UNDECIDED`], at any depth below (`**`): inherited.
    pub const DESCENDANTS_UNDECIDED: u32 = 1 << 2;
    /// The agent's own cgroup: exempt, and its children inherit nothing.
    pub const EXEMPT: u32 = 1 << 3;
    /// The real root: its own sockets are the kernel's and have no policy, but its children inherit
    /// one. Not inherited itself.
    pub const INHERIT_ONLY: u32 = 1 << 4;
    /// A new cgroup at any depth below whose name is in `NAMES` at place 0 starts [`UNDECIDED`]:
    /// inherited.
    pub const UNITS_UNDECIDED: u32 = 1 << 5;
}

/// Value of `POLICIES` (array). Number 0 is no policy: its flags say what any policy is ([`policy_flags::STRICT`]).
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Pod, Zeroable)]
pub struct PolicyEntry {
    /// Index into `CHOICES`; 0: none, treated as [`verdict::PASS`], or closed when strict.
    pub choice: u32,
    /// Bits of [`policy_flags`].
    pub flags: u32,
    /// Number of its compiled rules, which come before its choice; 0: none.
    pub rules: u32,
}

/// Bits of [`PolicyEntry::flags`].
pub mod policy_flags {
    /// Flows leave by the policy's domains or not at all.
    pub const STRICT: u32 = 1 << 0;
    /// Destinations on-link at another interface are left to the host's routing
    /// (`local-networks = "pass"`).
    pub const LOCAL_PASS: u32 = 1 << 1;
    /// Flows that no socket program could decide are put right packet by packet.
    pub const REPAIR: u32 = 1 << 2;
    /// Each datagram of an unconnected socket goes by the decision of the moment
    /// (`rebind = "datagram"`).
    pub const REBIND_DATAGRAM: u32 = 1 << 3;
    /// Datagram flows that were decided for another domain are put on the new one (with [`REPAIR`]).
    pub const MOVE: u32 = 1 << 4;
    /// Programs are to prefer IPv4 (`prefer-family`).
    pub const PREFER_IPV4: u32 = 1 << 5;
    /// Programs are to prefer IPv6.
    pub const PREFER_IPV6: u32 = 1 << 6;
}

/// Value of `CHOICES` (array): what was decided for every policy with the same inputs to selection.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Pod, Zeroable)]
pub struct ChoiceEntry {
    /// One of [`verdict`].
    pub verdict: u32,
    /// Index into `DOMAINS`. With [`verdict::BLOCK`] the domain whose mark new sockets get all the
    /// same (its table is empty, and the rules refuse), or 0. Of several members the first.
    pub domain: u32,
    /// How flows are spread over the members in `SHARES`, one of [`share`]; [`share::NONE`]: `domain`
    /// has them all.
    pub share: u32,
}

/// Values of [`ChoiceEntry::share`].
pub mod share {
    /// All flows are on one domain.
    pub const NONE: u32 = 0;
    /// Each flow by itself: its slot comes from the socket and the destination's address and port.
    pub const FLOW: u32 = 1;
    /// All flows to one destination address alike (RFC 4311).
    pub const DESTINATION: u32 = 2;
}

/// Value of `SHARES` (hash; key: index into `CHOICES`, `u32`): the members that flows are spread over.
///
/// An element is replaced whole, so a reader sees the old members or the new ones.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Pod, Zeroable)]
pub struct ShareEntry {
    /// Index into `DOMAINS` of each slot for IPv4 flows; every slot has one. A member that has flows of the
    /// family has slots by its weight, and keeps them while it is one.
    pub ipv4: [u8; ShareEntry::SLOTS],
    /// The same for IPv6 flows.
    pub ipv6: [u8; ShareEntry::SLOTS],
    /// The members that `ipv4` names, each once, with zeros behind them.
    pub members4: [u8; ShareEntry::MEMBERS],
    /// The same of `ipv6`.
    pub members6: [u8; ShareEntry::MEMBERS],
}

impl ShareEntry {
    /// Slots of a share; a power of two.
    pub const SLOTS: usize = 1_024;
    /// Room for the members of a family; more domains there are not.
    pub const MEMBERS: usize = 256;

    /// The share with these slots.
    pub const fn new(ipv4: [u8; Self::SLOTS], ipv6: [u8; Self::SLOTS]) -> Self {
        Self {
            members4: Self::named(&ipv4),
            members6: Self::named(&ipv6),
            ipv4,
            ipv6,
        }
    }

    /// What slots hold, each once.
    const fn named(slots: &[u8; Self::SLOTS]) -> [u8; Self::MEMBERS] {
        let mut is_named = [false; Self::MEMBERS];
        let mut slot = 0;
        while slot < Self::SLOTS {
            is_named[slots[slot] as usize] = true;
            slot += 1;
        }
        let mut members = [0; Self::MEMBERS];
        let (mut count, mut domain) = (0, u8::MAX);
        while domain > 0 {
            if is_named[domain as usize] {
                members[count] = domain;
                count += 1;
            }
            domain -= 1;
        }
        members
    }

    /// The slots of a family.
    #[inline(always)]
    pub const fn slots(&self, ipv4: bool) -> &[u8; Self::SLOTS] {
        if ipv4 { &self.ipv4 } else { &self.ipv6 }
    }

    /// The members of a family.
    #[inline(always)]
    pub const fn members(&self, ipv4: bool) -> &[u8; Self::MEMBERS] {
        if ipv4 { &self.members4 } else { &self.members6 }
    }
}

/// The slot of [`ShareEntry`] that flows to a destination have: its IPv6 or v4-mapped address as four
/// words in network byte order. `seed` tells flows apart that go to one destination; it is 0 with
/// [`share::DESTINATION`].
#[expect(
    clippy::cast_possible_truncation,
    reason = "so few bits are left that any number holds them"
)]
#[inline(always)]
pub const fn share_slot(destination: &[u32; 4], seed: u64) -> usize {
    // Odd, so that no bit is lost: 2^64 divided by the golden ratio.
    const FACTOR: u64 = 0x9e37_79b9_7f4a_7c15;
    let mut hash = seed;
    hash = (hash ^ (destination[0] as u64 | (destination[1] as u64) << 32)).wrapping_mul(FACTOR);
    hash ^= hash >> 32;
    hash = (hash ^ (destination[2] as u64 | (destination[3] as u64) << 32)).wrapping_mul(FACTOR);
    hash ^= hash >> 29;
    hash = hash.wrapping_mul(FACTOR);
    (hash >> (u64::BITS - ShareEntry::SLOTS.trailing_zeros())) as usize
}

/// Values of [`ChoiceEntry::verdict`].
pub mod verdict {
    /// Left to the host's ordinary routing.
    pub const PASS: u32 = 0;
    /// Put on the domain.
    pub const STEER: u32 = 1;
    /// Refused at once.
    pub const BLOCK: u32 = 2;
}

/// Value of `DOMAINS` (array): a domain's entry, and room for its next ones.
///
/// An element of an array is written in place while programs read it, so an entry that is in use is
/// never written: the agent writes the next one and then counts the change. A reader that finds so many
/// changes more behind its copy than before that its entry may have been written again drops the copy.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
pub struct DomainSlots {
    /// Changes so far, wrapping: modulo the number of entries, which one is in use.
    pub changes: u32,
    /// The entries.
    pub entries: [DomainEntry; DomainSlots::COUNT],
}

impl DomainSlots {
    /// Entries of one domain; a power of two.
    pub const COUNT: usize = 4;

    /// The entry in use.
    pub const fn entry(&self) -> &DomainEntry {
        &self.entries[Self::slot(self.changes)]
    }

    /// The place in `entries` that is in use after so many changes.
    pub const fn slot(changes: u32) -> usize {
        changes as usize & (Self::COUNT - 1)
    }
}

/// Where a domain's flows go.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Pod, Zeroable)]
pub struct DomainEntry {
    /// The domain's mark, inside the mask.
    pub mark: u32,
    /// Its interface; 0: gone.
    pub ifindex: u32,
    /// Bits of [`domain_flags`].
    pub flags: u32,
    /// Preferred IPv4 source, network byte order.
    pub source4: [u8; 4],
    /// Preferred IPv6 source, network byte order.
    pub source6: [u8; 16],
    /// IPv6 source for who prefers a public address to a temporary one (RFC 5014), network byte order.
    pub public6: [u8; 16],
    /// Name of the interface, zero-terminated.
    pub ifname: [u8; IFNAME_LEN],
}

/// Bits of [`DomainEntry::flags`].
pub mod domain_flags {
    /// The domain has an IPv4 source and a table.
    pub const IPV4: u32 = 1 << 0;
    /// The domain has an IPv6 source and a table.
    pub const IPV6: u32 = 1 << 1;
    /// One of its IPv4 addresses is another interface's, too: such a source leads nowhere by itself.
    pub const SHARED: u32 = 1 << 2;
    /// Its interface is a tunnel, which may leave the socket of what it carries on what carries it.
    pub const TUNNEL: u32 = 1 << 3;
}

/// Key of `SOURCES` (hash; value: `u8`, always 1): an address that belongs to a domain.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Pod, Zeroable)]
pub struct SourceKey {
    /// Index of the domain.
    pub domain: u32,
    /// The address in network byte order; IPv4 as v4-mapped IPv6.
    pub address: [u8; 16],
}

/// Key of `LOCALS4` (LPM trie), as the kernel lays it out.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Pod, Zeroable)]
pub struct LocalKey4 {
    /// Length of the prefix in bits.
    pub prefix_len: u32,
    /// Network byte order.
    pub address: [u8; 4],
}

/// Key of `LOCALS6` (LPM trie), as the kernel lays it out.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Pod, Zeroable)]
pub struct LocalKey6 {
    /// Length of the prefix in bits.
    pub prefix_len: u32,
    /// Network byte order.
    pub address: [u8; 16],
}

/// Value of `LOCALS4` and `LOCALS6`: an on-link prefix or an address of the host itself.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
pub struct LocalEntry {
    /// Domains on whose own link the prefix is too: their flows are steered.
    pub domains: DomainSet,
    /// Bits of [`local_flags`].
    pub flags: u32,
    /// Source for datagrams of marked sockets to this prefix that are passed: the holding interface's
    /// address (IPv4 in the first four bytes), or zero.
    pub source: [u8; 16],
}

/// Bits of [`LocalEntry::flags`].
pub mod local_flags {
    /// The destination is the host itself: never steered.
    pub const HOST: u32 = 1 << 0;
}

/// A set of domain indices, one bit each.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Pod, Zeroable)]
pub struct DomainSet(pub [u32; 8]);

impl DomainSet {
    /// Adds `index`; indices from 256 on do not exist and are ignored.
    pub const fn insert(&mut self, index: u16) {
        if index < 256 {
            self.0[(index >> 5) as usize] |= 1 << (index & 31);
        }
    }

    /// Whether `index` is in the set.
    pub const fn contains(&self, index: u16) -> bool {
        self.0[(index as usize >> 5) & 7] >> (index & 31) & 1 == 1
    }
}

/// Value of `INGRESS` (hash; key: interface index, `u32`): what is done with packets that arrive there.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Pod, Zeroable)]
pub struct IngressEntry {
    /// The mark they get, inside the mask; 0: none.
    pub mark: u32,
    /// Bits of [`ingress_flags`].
    pub flags: u32,
}

/// Bits of [`IngressEntry::flags`].
pub mod ingress_flags {
    /// Packets for and from addresses of other interfaces are dropped (`host-model = "strong"`).
    pub const STRONG: u32 = 1 << 0;
    /// They are counted (`host-model = "count"`).
    pub const COUNT: u32 = 1 << 1;
    /// Answers to repaired flows arrive there.
    pub const RETURNS: u32 = 1 << 2;
    /// With [`RETURNS`]: packets have an Ethernet header there.
    pub const ETHERNET: u32 = 1 << 3;
    /// Either of the host model's.
    pub const HOST_MODEL: u32 = STRONG | COUNT;
}

/// Indices of `CELLS` (array of `u32`): single numbers.
pub mod cell {
    /// How often the agent has changed what flows are decided by, wrapping.
    pub const CHANGES: u32 = 0;
    /// Not 0: a socket has had a [`crate::SocketLease`] since the maps were made.
    pub const LEASED: u32 = 1;
    /// The hash that strict policies' packets get at a tunnel, and no application knows: random, and not 0.
    /// What carries them has it too, where the kernel leaves nothing else of what the guard knew of them.
    pub const TUNNELLED: u32 = 2;
    /// Number of them.
    pub const COUNT: u32 = 3;
}

/// Slots of `COUNTERS` (per-CPU array of `u64`).
pub mod counter {
    /// Flows put on a domain by `connect`.
    pub const CONNECT_STEERED: u32 = 0;
    /// Flows refused by `connect` or `sendmsg`: no domain fits.
    pub const REFUSED: u32 = 1;
    /// `bpf_bind` failed: the source could not be set.
    pub const SOURCE_FAILED: u32 = 2;
    /// Options and binds that a strict policy refused.
    pub const NOT_ALLOWED: u32 = 3;
    /// Packets of strict policies that the guard let through.
    pub const GUARD_PASSED: u32 = 4;
    /// Packets of strict policies that the guard dropped.
    pub const GUARD_DROPPED: u32 = 5;
    /// Events that did not fit the ring.
    pub const EVENTS_LOST: u32 = 6;
    /// Socket storage that could not be had.
    pub const STORAGE_FAILED: u32 = 7;
    /// New cgroups whose entry could not be written (the map is full).
    pub const CGROUPS_FULL: u32 = 8;
    /// Packets of other policies that left otherwise than their policy said.
    pub const GUARD_WRONG: u32 = 9;
    /// Packets that could not be counted for their policy (`TRAFFIC` is full).
    pub const TRAFFIC_LOST: u32 = 10;
    /// Packets that were repaired.
    pub const REPAIRED: u32 = 11;
    /// Packets that were to be repaired and were not, because their flow could not be told from another.
    pub const REPAIR_REFUSED: u32 = 12;
    /// Packets that were too big for the interface they were to be put on.
    pub const REPAIR_TOO_BIG: u32 = 13;
    /// Number of counters.
    pub const COUNT: u32 = 16;
}

const _: () = {
    assert!(size_of::<CgroupEntry>() == 12);
    assert!(size_of::<NameKey>() == 260);
    assert!(size_of::<PolicyEntry>() == 12);
    assert!(size_of::<ChoiceEntry>() == 12);
    assert!(size_of::<ShareEntry>() == 2 * (ShareEntry::SLOTS + ShareEntry::MEMBERS));
    assert!(size_of::<IngressEntry>() == 8);
    assert!(size_of::<DomainEntry>() == 64);
    assert!(size_of::<DomainSlots>() == 260);
    assert!(size_of::<SourceKey>() == 20);
    assert!(size_of::<LocalKey4>() == 8);
    assert!(size_of::<LocalKey6>() == 20);
    assert!(size_of::<LocalEntry>() == 52);
};

#[cfg(test)]
mod tests {
    use super::{ShareEntry, share_slot};

    #[test]
    fn a_share_names_each_member_of_a_family_once() {
        let mut slots = [7; ShareEntry::SLOTS];
        (slots[3], slots[900]) = (255, 1);
        let share = ShareEntry::new(slots, [0; ShareEntry::SLOTS]);
        assert_eq!(share.members(true)[..4], [255, 7, 1, 0]);
        assert_eq!(share.members(false), &[0; ShareEntry::MEMBERS]);
    }

    #[test]
    fn a_destination_has_its_slot_for_all_time() {
        let slots = [10_u8, 11, 12, 13].map(|host| {
            let words = [
                0,
                0,
                0x0000_ffff_u32.to_be(),
                u32::from_ne_bytes([192, 0, 2, host]),
            ];
            share_slot(&words, 0)
        });
        assert_eq!(slots, [42, 1023, 466, 406]);
    }
}
