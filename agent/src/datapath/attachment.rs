//! What can be attached, by the name of its pin: the same name in every layout.

use steer_core::plan::Hook;

use super::{
    hook,
    program::{GUARD, HOST_EGRESS, INGRESS},
    sys::{AttachType, LinkTarget},
};

/// A side of an interface at which a packet program runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Side {
    /// The guard, at egress.
    Guard,
    /// What is done with arrivals, at ingress.
    Ingress,
    /// The host model's part at egress.
    HostEgress,
}

impl Side {
    pub(super) const ALL: [Self; 3] = [Self::Guard, Self::Ingress, Self::HostEgress];

    const fn prefix(self) -> &'static str {
        match self {
            Self::Guard => "guard-",
            Self::Ingress => "ingress-",
            Self::HostEgress => "host-egress-",
        }
    }

    pub(super) const fn program(self) -> &'static str {
        match self {
            Self::Guard => GUARD,
            Self::Ingress => INGRESS,
            Self::HostEgress => HOST_EGRESS,
        }
    }

    /// `BPF_TCX_EGRESS` or `BPF_TCX_INGRESS`.
    pub(super) const fn attach_type(self) -> AttachType {
        AttachType(match self {
            Self::Ingress => 46,
            Self::Guard | Self::HostEgress => 47,
        })
    }
}

/// Something that can be attached, as its pin's name says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Attachment {
    Hook(Hook),
    Interface(Side, u32),
}

impl Attachment {
    pub(super) fn name(self) -> String {
        match self {
            Self::Hook(hook) => hook.name().to_owned(),
            Self::Interface(side, ifindex) => format!("{}{ifindex}", side.prefix()),
        }
    }

    pub(super) fn from_name(name: &str) -> Option<Self> {
        if let Some(hook) = Hook::from_name(name) {
            return Some(Self::Hook(hook));
        }
        Side::ALL.into_iter().find_map(|side| {
            let ifindex = name.strip_prefix(side.prefix())?.parse().ok()?;
            Some(Self::Interface(side, ifindex))
        })
    }

    /// The program that belongs there.
    pub(super) const fn program(self) -> &'static str {
        match self {
            Self::Hook(hook) => hook::program(hook),
            Self::Interface(side, _) => side.program(),
        }
    }

    /// Whether a link to `target` is this attachment, where hooks belong to cgroup `root`.
    ///
    /// The kernel does not compare attach types when a link's program is replaced, so this is asked
    /// before.
    pub(super) fn is_at(self, target: LinkTarget, root: u64) -> bool {
        match (self, target) {
            (Self::Hook(hook), LinkTarget::Cgroup { id, attach_type }) => {
                id == root && hook::attach_type(hook) == Some(attach_type)
            }
            (Self::Hook(hook), LinkTarget::Tracepoint) => hook::attach_type(hook).is_none(),
            (
                Self::Interface(side, wanted),
                LinkTarget::Tcx {
                    ifindex,
                    attach_type,
                },
            ) => ifindex == wanted && attach_type == side.attach_type(),
            _ => false,
        }
    }
}
