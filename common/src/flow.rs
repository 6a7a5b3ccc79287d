//! What a socket remembers.

use bytemuck::{Pod, Zeroable};

/// Value of `FLOWS3` (socket storage): whose a socket is and what was decided for it.
///
/// Sockets of strict policies have it from the beginning. Others have it once they sent an unconnected
/// datagram or bound an address: making it costs as much as all else that is done for a socket, and
/// until then the mark says enough.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
pub struct FlowState {
    /// Strict policy of the cgroup that created the socket; 0: none.
    pub creator: u32,
    /// Policy that decided the flow at `connect` or first `sendmsg`; 0: undecided.
    pub policy: u32,
    /// Choice that gave the domain.
    pub choice: u32,
    /// Domain the flow was put on; 0: none, where a guard goes by the policy's choice of the moment.
    pub domain: u32,
    /// Bits of [`flow_flags`].
    pub flags: u32,
    /// When it was decided last, in seconds of `CLOCK_MONOTONIC`.
    pub since: u32,
}

/// Bits of [`FlowState::flags`].
pub mod flow_flags {
    /// The application bound an address itself.
    pub const APP_BOUND: u32 = 1 << 0;
    /// `connect` or `sendmsg` decided the flow.
    pub const DECIDED: u32 = 1 << 1;
    /// The socket once had a source from `bpf_bind`, which makes the kernel keep any later one too.
    pub const HOOK_BOUND: u32 = 1 << 2;
    /// The socket belongs to another network namespace and is nobody's here.
    pub const FOREIGN: u32 = 1 << 3;
}

const _: () = assert!(size_of::<FlowState>() == 24);
