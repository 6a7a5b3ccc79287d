//! What the hooks of the plan are to the kernel.

use steer_core::plan::Hook;

use super::sys::AttachType;

/// The function in the object with the kernel programs.
pub(super) const fn program(hook: Hook) -> &'static str {
    match hook {
        Hook::SockCreate => "sock_create",
        Hook::PostBind4 => "post_bind4",
        Hook::PostBind6 => "post_bind6",
        Hook::CgroupMkdir => "cgroup_mkdir",
        Hook::CgroupRmdir => "cgroup_rmdir",
        hook => hook.name(),
    }
}

/// The attach type of a cgroup hook (`enum bpf_attach_type`); `None`: a tracepoint.
pub(super) const fn attach_type(hook: Hook) -> Option<AttachType> {
    Some(AttachType(match hook {
        Hook::Egress => 1,
        Hook::SockCreate => 2,
        Hook::Bind4 => 8,
        Hook::Bind6 => 9,
        Hook::Connect4 => 10,
        Hook::Connect6 => 11,
        Hook::PostBind4 => 12,
        Hook::PostBind6 => 13,
        Hook::Sendmsg4 => 14,
        Hook::Sendmsg6 => 15,
        Hook::Setsockopt => 22,
        Hook::CgroupMkdir | Hook::CgroupRmdir => return None,
    }))
}

/// Whether steer does its work without the hook where the kernel refuses its program.
///
/// [`Hook::Egress`] asks a packet for its network namespace (`bpf_get_netns_cookie`), which Linux 6.18
/// allows and 6.12 does not. Without it an interface that appears while no agent runs is not guarded
/// until one does.
pub(super) const fn is_optional(hook: Hook) -> bool {
    matches!(hook, Hook::Egress)
}
