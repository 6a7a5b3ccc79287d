//! Whose flow is it?
//!
//! Fixed at `connect` or first `sendmsg` by the calling task's cgroup, before that by the cgroup that
//! created the socket. Where the two differ and one is strict, strict wins; two different strict ones
//! are refused.

use aya_ebpf::helpers::generated::bpf_get_current_cgroup_id;
use steer_common::{
    CgroupEntry, ChoiceEntry, FlowState, PolicyEntry, cgroup_flags, flow_flags, policy_flags,
    share, verdict,
};

use crate::maps::{CGROUPS, CHOICES, POLICIES};

/// The policy that owns a flow, or none.
///
/// Not an `Option`: the compiler may copy the payload of `None`, which the verifier takes for a read
/// of a register that was never written ("!read_ok"). Every field is always set.
#[repr(C, align(8))]
#[derive(Clone, Copy)]
pub struct Owner {
    /// Index into `POLICIES`; 0: none, or an undecided cgroup.
    pub policy: u32,
    /// Index into `CHOICES`; 0: none.
    pub choice: u32,
    /// Number of its rules; 0: none.
    pub rules: u32,
    /// Of [`policy_flags`], and [`CONFLICT`].
    flags: u32,
}

/// The creator's and the caller's policies are strict and differ.
const CONFLICT: u32 = 1 << 31;

impl Owner {
    /// Nobody.
    pub const NONE: Self = Self {
        policy: 0,
        choice: 0,
        rules: 0,
        flags: 0,
    };
    /// An undecided cgroup is closed: strict, and no choice.
    const UNDECIDED: Self = Self {
        policy: 0,
        choice: 0,
        rules: 0,
        flags: policy_flags::STRICT,
    };
    const CONFLICT: Self = Self {
        policy: 0,
        choice: 0,
        rules: 0,
        flags: CONFLICT,
    };

    /// Policy `index`, unless it is 0 or no longer in use.
    #[inline(always)]
    pub fn of_policy(index: u32) -> Self {
        if index == 0 {
            return Self::NONE;
        }
        let Some(entry) = POLICIES.get(index) else {
            return Self::NONE;
        };
        let PolicyEntry {
            choice,
            flags,
            rules,
        } = *entry;
        if choice | rules == 0 && flags & policy_flags::STRICT == 0 {
            return Self::NONE;
        }
        Self {
            policy: index,
            choice,
            rules,
            flags,
        }
    }

    /// The policy of cgroup `id`.
    #[inline(always)]
    pub fn of_cgroup(id: u64) -> Self {
        // SAFETY: the entry is copied at once; a concurrent write changes whole words.
        let Some(&CgroupEntry { policy, flags, .. }) = (unsafe { CGROUPS.get(id) }) else {
            return Self::NONE;
        };
        if flags & (cgroup_flags::EXEMPT | cgroup_flags::INHERIT_ONLY) != 0 {
            Self::NONE
        } else if flags & cgroup_flags::UNDECIDED != 0 {
            Self::UNDECIDED
        } else {
            Self::of_policy(policy)
        }
    }

    /// Whether any policy is strict.
    #[inline(always)]
    pub fn any_is_strict() -> bool {
        POLICIES
            .get(0)
            .is_some_and(|any| any.flags & policy_flags::STRICT != 0)
    }

    /// The policy of the calling task.
    #[inline(always)]
    pub fn caller() -> Self {
        // SAFETY: no arguments.
        Self::of_cgroup(unsafe { bpf_get_current_cgroup_id() })
    }

    /// Nobody owns it.
    #[inline(always)]
    pub fn is_none(&self) -> bool {
        self.policy == 0 && self.flags == 0
    }

    /// Leaves by its domains or not at all.
    #[inline(always)]
    pub fn is_strict(&self) -> bool {
        self.flags & policy_flags::STRICT != 0
    }

    /// What no socket program could decide is put right packet by packet. Strict drops instead.
    #[inline(always)]
    pub fn repairs(&self) -> bool {
        self.flags & (policy_flags::REPAIR | policy_flags::STRICT) == policy_flags::REPAIR
    }

    /// Datagram flows that were decided for another domain are repaired to the new one.
    #[inline(always)]
    pub fn moves(&self) -> bool {
        self.flags & policy_flags::MOVE != 0
    }

    /// Its cgroup waits for the agent.
    #[inline(always)]
    pub fn is_undecided(&self) -> bool {
        self.policy == 0 && self.is_strict()
    }

    /// Two different strict policies want it: refused.
    #[inline(always)]
    pub fn is_conflict(&self) -> bool {
        self.flags & CONFLICT != 0
    }

    /// Other interfaces' on-link prefixes are left to the host's routing.
    #[inline(always)]
    pub fn passes_locals(&self) -> bool {
        self.flags & policy_flags::LOCAL_PASS != 0
    }

    /// Each datagram goes by the decision of the moment.
    #[inline(always)]
    pub fn rebinds(&self) -> bool {
        self.flags & policy_flags::REBIND_DATAGRAM != 0
    }

    /// Programs are to prefer addresses of the other family.
    #[inline(always)]
    pub fn prefers_other(&self, v4: bool) -> bool {
        let other = if v4 {
            policy_flags::PREFER_IPV6
        } else {
            policy_flags::PREFER_IPV4
        };
        self.flags & other != 0
    }

    /// Whether its flows go more than one way: by rules, or spread over the members of its own `choice`.
    #[inline(always)]
    pub fn divides(&self, choice: &ChoiceEntry) -> bool {
        self.rules != 0 || choice.share != share::NONE
    }

    /// It asks for nothing any more.
    #[inline(always)]
    pub fn forget(&mut self) {
        self.flags = 0;
    }

    /// Choice and flags, for functions that take numbers alone.
    #[inline(always)]
    pub fn numbers(&self) -> u64 {
        u64::from(self.flags) << 32 | u64::from(self.choice)
    }

    /// The owner of [`Self::numbers`] and rules, without its policy.
    #[inline(always)]
    pub fn of_numbers(numbers: u64, rules: u32) -> Self {
        Self {
            policy: 0,
            choice: numbers as u32,
            rules,
            flags: (numbers >> 32) as u32,
        }
    }

    /// What was chosen for it, as far as no rule says otherwise.
    #[inline(always)]
    pub fn choice(&self) -> ChoiceEntry {
        self.choice_at(self.choice)
    }

    /// What was chosen at an index into `CHOICES`. A strict policy never passes: no choice means closed.
    #[inline(always)]
    pub fn choice_at(&self, index: u32) -> ChoiceEntry {
        let choice = match CHOICES.get(index) {
            Some(choice) if index != 0 => *choice,
            _ => ChoiceEntry {
                verdict: verdict::PASS,
                domain: 0,
                share: 0,
            },
        };
        if choice.verdict == verdict::PASS && self.is_strict() {
            return ChoiceEntry {
                verdict: verdict::BLOCK,
                domain: 0,
                share: 0,
            };
        }
        choice
    }
}

/// The owner of a flow that begins now, by `connect`.
#[inline(always)]
pub fn at_connect(caller: Owner, flow: Option<&FlowState>) -> Owner {
    match flow {
        Some(flow) => merge(caller, Owner::of_policy(flow.creator)),
        None => caller,
    }
}

/// The owner of a datagram of an unconnected socket: as the first one was decided.
///
/// A caller without policy leaves the socket to its creator's.
#[inline(always)]
pub fn at_sendmsg(caller: Owner, flow: Option<&FlowState>) -> Owner {
    let Some(flow) = flow else { return caller };
    if flow.flags & flow_flags::DECIDED != 0 {
        let first = Owner::of_policy(flow.policy);
        if !first.is_none() {
            return merge(first, caller);
        }
    }
    let creator = Owner::of_policy(flow.creator);
    if caller.is_none() {
        creator
    } else {
        merge(caller, creator)
    }
}

/// `first`, but a strict `second` wins.
#[inline(always)]
fn merge(first: Owner, second: Owner) -> Owner {
    if !second.is_strict() || first.is_undecided() {
        first
    } else if !second.is_undecided() && first.is_strict() && first.policy != second.policy {
        Owner::CONFLICT
    } else {
        second
    }
}
