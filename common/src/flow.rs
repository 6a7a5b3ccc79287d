//! What a socket remembers.

use bytemuck::{Pod, Zeroable};

/// Value of `FLOWS` (socket storage): whose a socket is and what was decided for it.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
pub struct FlowState {
    /// Policy of the cgroup that created the socket; 0: none.
    pub creator: u32,
    /// Policy that decided the flow at `connect` or first `sendmsg`; 0: undecided.
    pub policy: u32,
    /// Domain the flow was put on; 0: none.
    pub domain: u32,
    /// Bits of [`flow_flags`].
    pub flags: u32,
}

/// Bits of [`FlowState::flags`].
pub mod flow_flags {
    /// The application bound an address itself.
    pub const APP_BOUND: u32 = 1 << 0;
    /// `connect` or `sendmsg` decided the flow.
    pub const DECIDED: u32 = 1 << 1;
    /// The policy that owns the socket is strict.
    pub const STRICT: u32 = 1 << 2;
    /// The source was set by `bpf_bind`, not by the application.
    pub const HOOK_BOUND: u32 = 1 << 3;
}

const _: () = assert!(size_of::<FlowState>() == 16);
