//! The places where socket and tracing programs are attached.

use super::sys::AttachType;

/// A hook: one kernel program, attached once at the root of the managed cgroups (the tracepoints:
/// for the whole machine, by their nature).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Hook {
    /// A new socket gets its policy's mark.
    SockCreate,
    /// Decides flows to IPv4 destinations.
    Connect4,
    /// Decides flows to IPv6 destinations.
    Connect6,
    /// Sources of unconnected IPv4 datagrams.
    Sendmsg4,
    /// Sources of unconnected IPv6 datagrams.
    Sendmsg6,
    /// Remembers IPv4 addresses that applications bind.
    PostBind4,
    /// Remembers IPv6 addresses that applications bind.
    PostBind6,
    /// Checks and respects binds to IPv4 addresses.
    Bind4,
    /// Checks and respects binds to IPv6 addresses.
    Bind6,
    /// Checks options of strict policies' sockets.
    Setsockopt,
    /// Gives new cgroups their parent's policy.
    CgroupMkdir,
    /// Forgets removed cgroups.
    CgroupRmdir,
}

impl Hook {
    /// Every hook, in the order in which they are attached.
    pub const ALL: [Self; 12] = [
        Self::SockCreate,
        Self::Connect4,
        Self::Connect6,
        Self::Sendmsg4,
        Self::Sendmsg6,
        Self::PostBind4,
        Self::PostBind6,
        Self::Bind4,
        Self::Bind6,
        Self::Setsockopt,
        Self::CgroupMkdir,
        Self::CgroupRmdir,
    ];

    /// Its name in messages and pins.
    pub const fn name(self) -> &'static str {
        match self {
            Self::SockCreate => "sock-create",
            Self::Connect4 => "connect4",
            Self::Connect6 => "connect6",
            Self::Sendmsg4 => "sendmsg4",
            Self::Sendmsg6 => "sendmsg6",
            Self::PostBind4 => "post-bind4",
            Self::PostBind6 => "post-bind6",
            Self::Bind4 => "bind4",
            Self::Bind6 => "bind6",
            Self::Setsockopt => "setsockopt",
            Self::CgroupMkdir => "cgroup-mkdir",
            Self::CgroupRmdir => "cgroup-rmdir",
        }
    }

    /// The hook of that name.
    pub(super) fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|hook| hook.name() == name)
    }

    /// The function in the object with the kernel programs.
    pub(super) const fn program(self) -> &'static str {
        match self {
            Self::SockCreate => "sock_create",
            Self::PostBind4 => "post_bind4",
            Self::PostBind6 => "post_bind6",
            Self::CgroupMkdir => "cgroup_mkdir",
            Self::CgroupRmdir => "cgroup_rmdir",
            hook => hook.name(),
        }
    }

    /// The attach type of a cgroup hook (`enum bpf_attach_type`); `None`: a tracepoint.
    pub(super) const fn attach_type(self) -> Option<AttachType> {
        Some(AttachType(match self {
            Self::SockCreate => 2,
            Self::Bind4 => 8,
            Self::Bind6 => 9,
            Self::Connect4 => 10,
            Self::Connect6 => 11,
            Self::PostBind4 => 12,
            Self::PostBind6 => 13,
            Self::Sendmsg4 => 14,
            Self::Sendmsg6 => 15,
            Self::Setsockopt => 22,
            Self::CgroupMkdir | Self::CgroupRmdir => return None,
        }))
    }
}

impl std::fmt::Display for Hook {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())
    }
}

#[cfg(test)]
mod tests {
    use super::Hook;

    #[test]
    fn names_lead_back_to_their_hooks() {
        for hook in Hook::ALL {
            assert_eq!(Hook::from_name(hook.name()), Some(hook));
        }
        assert_eq!(Hook::from_name("connect5"), None);
    }
}
