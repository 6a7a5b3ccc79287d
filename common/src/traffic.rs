//! What was sent for policies.

use bytemuck::{Pod, Zeroable};

/// Key of `TRAFFIC` (per-CPU hash; value: [`Traffic`]).
///
/// An entry is made when there is something to count, and removed by the agent when policy or domain go.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Pod, Zeroable)]
pub struct TrafficKey {
    /// Index into `POLICIES`.
    pub policy: u32,
    /// Index into `DOMAINS`: the domain that packets left by, or should have left by where they were wrong
    /// or dropped. 0: none, for what the host's own routing or the application itself decided.
    pub domain: u32,
}

/// What left, by one CPU. Packets are those on the wire, also where the kernel hands many to an interface
/// as one; bytes are those that the interface's own statistics count.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
pub struct Traffic {
    /// Packets that left.
    pub packets: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Packets, of those that left, that did so by another interface or with another source than the
    /// domain's, although nobody but the policy had chosen.
    pub wrong: u64,
    /// Packets that the guard dropped (strict policies). They did not leave.
    pub dropped: u64,
}

impl TrafficKey {
    /// In place of a policy: all that are gone, as the agent adds them up. No program writes these entries.
    pub const GONE: u32 = u32::MAX;
}

impl core::ops::AddAssign for Traffic {
    fn add_assign(&mut self, other: Self) {
        self.packets = self.packets.wrapping_add(other.packets);
        self.bytes = self.bytes.wrapping_add(other.bytes);
        self.wrong = self.wrong.wrapping_add(other.wrong);
        self.dropped = self.dropped.wrapping_add(other.dropped);
    }
}

const _: () = {
    assert!(size_of::<TrafficKey>() == 8);
    assert!(size_of::<Traffic>() == 32);
};
