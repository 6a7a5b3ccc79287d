//! Whose flow is it?
//!
//! Fixed at `connect` or first `sendmsg` by the calling task's cgroup, before that by the cgroup that
//! created the socket. Where the two differ and one is strict, strict wins; two different strict ones
//! are refused.

use aya_ebpf::helpers::generated::bpf_get_current_cgroup_id;
use steer_common::{
    CgroupEntry, ChoiceEntry, FlowState, PolicyEntry, cgroup_flags, flow_flags, policy_flags,
    verdict,
};

use crate::maps::{CGROUPS, CHOICES, POLICIES};

/// A policy that owns a flow.
#[derive(Clone, Copy)]
pub struct Owner {
    /// Index into `POLICIES`; 0: an undecided cgroup.
    pub policy: u32,
    entry: PolicyEntry,
}

/// The creator's and the caller's policies are strict and differ.
pub struct TwoStrictPolicies;

impl Owner {
    /// An undecided cgroup is closed: strict, and no choice.
    const UNDECIDED: Self = Self {
        policy: 0,
        entry: PolicyEntry { choice: 0, flags: policy_flags::STRICT },
    };

    /// Policy `index`, unless it is 0 or no longer in use.
    #[inline(always)]
    pub fn of_policy(index: u32) -> Option<Self> {
        if index == 0 {
            return None;
        }
        let entry = *POLICIES.get(index)?;
        if entry.choice == 0 && entry.flags & policy_flags::STRICT == 0 {
            return None;
        }
        Some(Self { policy: index, entry })
    }

    /// The policy that `entry` says.
    #[inline(always)]
    pub fn of_entry(entry: &CgroupEntry) -> Option<Self> {
        if entry.flags & cgroup_flags::EXEMPT != 0 {
            None
        } else if entry.flags & cgroup_flags::UNDECIDED != 0 {
            Some(Self::UNDECIDED)
        } else {
            Self::of_policy(entry.policy)
        }
    }

    /// The policy of cgroup `id`.
    #[inline(always)]
    pub fn of_cgroup(id: u64) -> Option<Self> {
        // SAFETY: the entry is copied at once; a concurrent write changes whole words.
        Self::of_entry(unsafe { CGROUPS.get(id) }?)
    }

    /// The policy of the calling task.
    #[inline(always)]
    pub fn caller() -> Option<Self> {
        // SAFETY: no arguments.
        Self::of_cgroup(unsafe { bpf_get_current_cgroup_id() })
    }

    /// Leaves by its domains or not at all.
    #[inline(always)]
    pub fn is_strict(&self) -> bool {
        self.entry.flags & policy_flags::STRICT != 0
    }

    /// Its cgroup waits for the agent.
    #[inline(always)]
    pub fn is_undecided(&self) -> bool {
        self.policy == 0
    }

    /// Other interfaces' on-link prefixes are left to the host's routing.
    #[inline(always)]
    pub fn passes_locals(&self) -> bool {
        self.entry.flags & policy_flags::LOCAL_PASS != 0
    }

    /// What was chosen for it. A strict policy never passes: no choice means closed.
    #[inline(always)]
    pub fn choice(&self) -> ChoiceEntry {
        let choice = match CHOICES.get(self.entry.choice) {
            Some(choice) if self.entry.choice != 0 => *choice,
            _ => ChoiceEntry { verdict: verdict::PASS, domain: 0 },
        };
        if choice.verdict == verdict::PASS && self.is_strict() {
            return ChoiceEntry { verdict: verdict::BLOCK, domain: 0 };
        }
        choice
    }
}

/// The owner of a flow that begins now, by `connect`.
#[inline(always)]
pub fn at_connect(
    caller: Option<Owner>,
    flow: Option<&FlowState>,
) -> Result<Option<Owner>, TwoStrictPolicies> {
    match flow {
        Some(flow) => merge(caller, Owner::of_policy(flow.creator)),
        None => Ok(caller),
    }
}

/// The owner of a datagram of an unconnected socket: as the first one was decided.
///
/// A caller without policy leaves the socket to its creator's.
#[inline(always)]
pub fn at_sendmsg(
    caller: Option<Owner>,
    flow: Option<&FlowState>,
) -> Result<Option<Owner>, TwoStrictPolicies> {
    let Some(flow) = flow else { return Ok(caller) };
    if flow.flags & flow_flags::DECIDED != 0
        && let Some(first) = Owner::of_policy(flow.policy)
    {
        return merge(Some(first), caller);
    }
    let creator = Owner::of_policy(flow.creator);
    match caller {
        None => Ok(creator),
        caller => merge(caller, creator),
    }
}

/// `first` if there is one, but a strict `second` wins.
#[inline(always)]
fn merge(
    first: Option<Owner>,
    second: Option<Owner>,
) -> Result<Option<Owner>, TwoStrictPolicies> {
    match (first, second) {
        (Some(first), Some(second)) if second.is_strict() => {
            if first.is_undecided() {
                Ok(Some(first))
            } else if second.is_undecided() {
                Ok(Some(second))
            } else if first.is_strict() && first.policy != second.policy {
                Err(TwoStrictPolicies)
            } else {
                Ok(Some(second))
            }
        }
        (None, Some(second)) if second.is_strict() => Ok(Some(second)),
        (first, _) => Ok(first),
    }
}
