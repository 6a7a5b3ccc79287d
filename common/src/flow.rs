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
    /// Domain the flow was put on; 0: none, where a guard goes by the policy's choice of the moment.
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
    /// `connect` ran: a source that the application did not bind may be the kernel's choice.
    pub const CONNECTED: u32 = 1 << 2;
    /// The source was set by `bpf_bind`, not by the application.
    pub const HOOK_BOUND: u32 = 1 << 3;
    /// The socket belongs to another network namespace and is nobody's here.
    pub const FOREIGN: u32 = 1 << 4;
}

const _: () = assert!(size_of::<FlowState>() == 16);
