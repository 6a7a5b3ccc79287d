//! Whose a flow is and where, in names.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::path::PathBuf;

use steer_common::FlowCount;
use steer_core::flows::{At, Place, Seen, Wrong, place};
use steer_core::ids::{CgroupId, DomainIndex, IfIndex};
use steer_core::name::Name;

use super::super::Daemon;
use crate::api::flows::Whereabouts;
use crate::netlink::{FlowPhase, LiveFlow, Transport};

/// A flow, and where it is.
#[derive(Debug)]
pub(super) struct Placed {
    pub(super) flow: LiveFlow,
    pub(super) counted: Option<FlowCount>,
    pub(super) policy: Option<Name>,
    pub(super) whereabouts: Whereabouts,
    pub(super) domain: Option<Name>,
    pub(super) wrong: Option<String>,
    pub(super) cgroup: Option<String>,
    pub(super) interface: Option<String>,
    pub(super) source: Option<IpAddr>,
    pub(super) destination: Option<(IpAddr, u16)>,
}

impl Daemon {
    /// Where a flow is; `None`: it talks to nobody, or no policy has it and `all` are not wanted.
    pub(super) fn place(
        &self,
        flow: LiveFlow,
        counted: Option<&FlowCount>,
        all: bool,
    ) -> Option<Placed> {
        let sent = counted.filter(|counted| counted.sent_packets > 0);
        let unconnected = flow.phase == FlowPhase::Unconnected;
        // Whom it talks to nobody knows.
        if unconnected && counted.is_none() {
            return None;
        }
        let address = |bytes: [u8; 16]| IpAddr::from(bytes).to_canonical();
        let own = Some(flow.local.ip()).filter(|ip| !ip.is_unspecified());
        let sent_from = sent.map(|sent| address(sent.source));
        let source = own.or(sent_from);
        let destination = if unconnected {
            sent.map(|sent| {
                let port = u16::try_from(sent.port).unwrap_or_default();
                (address(sent.destination), port)
            })
        } else {
            Some((flow.peer.ip(), flow.peer.port()))
        };
        let left_by = sent.map(|sent| IfIndex(sent.ifindex));
        let state = self.engine.state();
        let seen = Seen {
            state: flow.state,
            cgroup: CgroupId(flow.cgroup),
            mark: flow.mark,
            source: own,
            sent_from,
            destination: destination.map(|(ip, _)| ip),
            protocol: flow.transport.number(),
            source_port: flow.local.port(),
            port: destination.map_or(0, |(_, port)| port),
            accepted: flow.accepted,
            datagrams: flow.transport != Transport::Tcp,
            unconnected,
            left_by,
        };
        let Place { policy, at } = place(self.engine.plan(), state.config.agent.mark_mask, &seen);
        if policy.is_none() && at == At::Host && !all {
            return None;
        }
        let chain = policy.and_then(|policy| state.memory.policies.key(policy.0));
        let (whereabouts, domain, wrong) = match at {
            At::Domain(index) => (Whereabouts::Steered, Some(index), None),
            At::Host => (Whereabouts::Host, None, None),
            At::Wrong(wrong) => (Whereabouts::Wrong, wrong.domain(), Some(self.words(&wrong))),
        };
        let interface = left_by.or_else(|| self.interface_of(source?));
        Some(Placed {
            policy: chain.and_then(|chain| chain.first()).cloned(),
            whereabouts,
            domain: domain.and_then(|index| self.name_of(index)).cloned(),
            wrong,
            cgroup: state
                .cgroups
                .path(CgroupId(flow.cgroup))
                .map(|path| format!("/{path}")),
            interface: interface.map(|index| self.interface(index)),
            source,
            destination,
            counted: counted.copied(),
            flow,
        })
    }

    /// Directories of the cgroups that made the sockets.
    pub(super) fn cgroups_of(&self, placed: &[Placed]) -> Vec<PathBuf> {
        let paths: BTreeSet<&str> = placed.iter().filter_map(|p| p.cgroup.as_deref()).collect();
        let directory = |path: &str| self.tree.directory_of(path.trim_start_matches('/'));
        paths.into_iter().map(directory).collect()
    }

    fn words(&self, wrong: &Wrong) -> String {
        let domain = |index: DomainIndex| match self.name_of(index) {
            Some(name) => name.to_string(),
            None => format!("domain {index}"),
        };
        match wrong {
            Wrong::Interface {
                domain: index,
                leaves_by,
            } => format!(
                "leaves by {}, not by {}",
                self.interface(*leaves_by),
                domain(*index)
            ),
            Wrong::Source { domain: index, .. } => {
                format!("its source is not of {}", domain(*index))
            }
            Wrong::NoDomain => "no domain is chosen for it".to_owned(),
        }
    }

    fn name_of(&self, index: DomainIndex) -> Option<&Name> {
        let mut indices = self.engine.state().memory.indices.iter();
        indices
            .find(|(_, given)| **given == index)
            .map(|(name, _)| name)
    }

    /// The interface that has an address.
    fn interface_of(&self, ip: IpAddr) -> Option<IfIndex> {
        let mut addresses = self.engine.state().network.addresses.iter();
        addresses
            .find(|address| address.ip == ip)
            .map(|address| address.interface)
    }
}
