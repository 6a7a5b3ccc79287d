//! Building a laboratory.

use std::fs;
use std::sync::RwLock;
use std::sync::atomic::AtomicU32;

use anyhow::{Context, Result};

use crate::capture::Capture;
use crate::cgroup::LabCgroup;
use crate::ip::ip_batch;
use crate::lab::{Attached, Lab};
use crate::link;
use crate::mounts;
use crate::namespace::Namespace;
use crate::relay::Relay;
use crate::server::Server;
use crate::uplink::Uplink;
use crate::wait;

/// What a laboratory should be; [`LabBuilder::build`] makes it.
#[derive(Clone, Debug)]
pub struct LabBuilder {
    uplinks: Vec<Uplink>,
    rp_filter: u8,
    container: bool,
    wg_quick: bool,
    unobserved: bool,
    crowd: u16,
}

impl Default for LabBuilder {
    fn default() -> Self {
        let uplinks = vec![
            Uplink::new("eth0", 1),
            Uplink::new("wlan0", 2),
            Uplink::new("wwan0", 3),
        ];
        Self {
            uplinks,
            rp_filter: 0,
            container: false,
            wg_quick: false,
            unobserved: false,
            crowd: 0,
        }
    }
}

impl LabBuilder {
    /// Other uplinks than the default three (`eth0`, `wlan0`, `wwan0`, best metric first).
    #[must_use]
    pub fn uplinks(mut self, uplinks: impl IntoIterator<Item = Uplink>) -> Self {
        self.uplinks = uplinks.into_iter().collect();
        self
    }

    /// The host's `rp_filter` for every interface: 0 (none), 1 (strict) or 2 (loose).
    #[must_use]
    pub fn rp_filter(mut self, mode: u8) -> Self {
        self.rp_filter = mode;
        self
    }

    /// A bridge `docker0` (172.17.0.1/16) with a container (172.17.0.2) behind it; the host forwards.
    #[must_use]
    pub fn container(mut self) -> Self {
        self.container = true;
        self
    }

    /// A tunnel `wg0` (10.66.0.2/24) with the rules that wg-quick makes: everything without its mark
    /// goes into the tunnel.
    #[must_use]
    pub fn wg_quick(mut self) -> Self {
        self.wg_quick = true;
        self
    }

    /// `count` further uplinks, `d0`, `d1`, .., whose far ends share one namespace: what is sent back leaves
    /// it by the uplink that has the destination's address.
    #[must_use]
    pub fn crowd(mut self, count: u16) -> Self {
        self.crowd = count;
        self
    }

    /// Captures nothing: a packet socket would cost every packet more than what is to be measured.
    #[must_use]
    pub fn unobserved(mut self) -> Self {
        self.unobserved = true;
        self
    }

    /// Builds it.
    ///
    /// # Errors
    /// If the machine lacks something; the laboratory needs root, cgroup2, iproute2.
    pub fn build(&self) -> Result<Lab> {
        let mut uplinks = self.uplinks.clone();
        if self.container {
            let behind = Uplink::new("docker0", 250)
                .ipv4([172, 17, 0, 1], 16, [172, 17, 0, 2])
                .without_ipv6()
                .without_default_route()
                .behind_bridge();
            uplinks.push(behind);
        }
        if self.wg_quick {
            let tunnel = Uplink::new("wg0", 249)
                .ipv4([10, 66, 0, 2], 24, [10, 66, 0, 1])
                .without_ipv6()
                .without_default_route();
            uplinks.push(tunnel);
        }
        let cgroup = LabCgroup::new()?;
        let host = Namespace::with_mounts(mounts::prepare)?;
        host.run(|| self.prepare_host())?;

        let mut peers = Vec::new();
        for uplink in uplinks {
            peers.push(Peer::of(vec![uplink])?);
        }
        if self.crowd > 0 {
            peers.push(Peer::of((0..self.crowd).map(Uplink::in_crowd).collect())?);
        }
        let mut lines = vec!["link set lo up".to_owned()];
        for peer in &peers {
            let path = peer.wire.path();
            lines.extend(peer.uplinks.iter().flat_map(|u| u.creation(&path)));
        }
        for uplink in peers.iter().flat_map(|peer| &peer.uplinks) {
            lines.extend(uplink.host_configuration(&uplink.name));
        }
        if self.wg_quick {
            lines.extend(
                [
                    "route add default via 10.66.0.1 dev wg0 table 51820",
                    "rule add not fwmark 51820 table 51820 priority 32764",
                    "rule add table main suppress_prefixlength 0 priority 32763",
                ]
                .map(str::to_owned),
            );
        }
        ip_batch(&host, &lines)?;
        let mut attached = Vec::new();
        for (server, peer) in peers.iter().enumerate() {
            peer.attach(server, &mut attached)?;
        }
        std::thread::scope(|scope| {
            let threads: Vec<_> = peers
                .iter()
                .map(|peer| scope.spawn(|| peer.configure()))
                .collect();
            threads.into_iter().try_for_each(|thread| {
                thread
                    .join()
                    .unwrap_or_else(|_| anyhow::bail!("a thread of the builder panicked"))
            })
        })?;
        wait_for_carrier(&host, &attached)?;

        let servers = peers
            .iter()
            .map(|peer| Server::start(&peer.uplinks[0].name, &peer.namespace))
            .collect::<Result<Vec<_>>>()?;
        let observed = if self.unobserved { &[][..] } else { &peers[..] };
        let peers: Vec<_> = observed
            .iter()
            .map(|peer| {
                let far_ends = peer
                    .uplinks
                    .iter()
                    .map(|u| (u.far_end().to_owned(), u.name.clone()));
                (peer.wire.clone(), far_ends.collect())
            })
            .collect();
        let capture = Capture::start(&host, &peers)?;
        Ok(Lab {
            capture,
            servers,
            attached,
            host,
            cgroup,
            next_target: AtomicU32::new(0),
        })
    }

    fn prepare_host(&self) -> Result<()> {
        prepare_network()?;
        let mode = self.rp_filter.to_string();
        write_sysctl("ipv4/conf/all/rp_filter", &mode)?;
        write_sysctl("ipv4/conf/default/rp_filter", &mode)?;
        write_sysctl("ipv4/ping_group_range", "0 2147483647")?;
        if self.container {
            write_sysctl("ipv4/ip_forward", "1")?;
        }
        Ok(())
    }
}

/// What is to be behind some uplinks.
struct Peer {
    namespace: Namespace,
    /// Where the cables end: in a namespace before the peer's if there is a relay between.
    wire: Namespace,
    uplinks: Vec<Uplink>,
}

impl Peer {
    fn of(uplinks: Vec<Uplink>) -> Result<Self> {
        let namespace = Namespace::new()?;
        namespace.run(prepare_peer)?;
        let wire = if uplinks.iter().any(|uplink| uplink.relayed) {
            let wire = Namespace::new()?;
            wire.run(prepare_wire)?;
            wire
        } else {
            namespace.clone()
        };
        Ok(Self {
            namespace,
            wire,
            uplinks,
        })
    }

    /// Adds its uplinks, whose cables are there, and starts a relay where one is wanted.
    fn attach(&self, server: usize, attached: &mut Vec<Attached>) -> Result<()> {
        for uplink in &self.uplinks {
            let relay = uplink
                .relayed
                .then(|| Relay::start(&self.wire, &self.namespace, uplink));
            attached.push(Attached {
                name: uplink.name.clone(),
                interface: uplink.name.clone(),
                uplink: RwLock::new(uplink.clone()),
                peer: self.namespace.clone(),
                wire: self.wire.clone(),
                relay: relay.transpose()?,
                server,
            });
        }
        Ok(())
    }

    fn configure(&self) -> Result<()> {
        let lines = self.uplinks.iter().flat_map(Uplink::peer_configuration);
        ip_batch(&self.namespace, &lines.collect::<Vec<_>>())
    }
}

/// Makes IPv6 addresses usable at once (no duplicate address detection, no waiting for a router) and
/// takes nothing over from the machine's settings.
fn prepare_network() -> Result<()> {
    for scope in ["all", "default"] {
        write_sysctl(&format!("ipv4/conf/{scope}/rp_filter"), "0")?;
        write_sysctl(&format!("ipv6/conf/{scope}/accept_dad"), "0")?;
        write_sysctl(&format!("ipv6/conf/{scope}/router_solicitations"), "0")?;
        write_sysctl(&format!("ipv6/conf/{scope}/disable_ipv6"), "0")?;
    }
    Ok(())
}

/// A peer answers from every address that it has a local route for; for IPv6 the kernel wants to be
/// told that a source need not be an interface's own address.
fn prepare_peer() -> Result<()> {
    prepare_network()?;
    write_sysctl("ipv6/ip_nonlocal_bind", "1")
}

/// Where a relay takes packets from a cable the kernel itself has nothing to say.
fn prepare_wire() -> Result<()> {
    for scope in ["all", "default"] {
        write_sysctl(&format!("ipv6/conf/{scope}/disable_ipv6"), "1")?;
    }
    Ok(())
}

fn write_sysctl(name: &str, value: &str) -> Result<()> {
    let path = format!("/proc/sys/net/{name}");
    fs::write(&path, value).with_context(|| format!("set {path} to {value}"))
}

fn wait_for_carrier(host: &Namespace, attached: &[Attached]) -> Result<()> {
    host.run(|| {
        attached.iter().try_for_each(|a| {
            wait::until(&format!("carrier of {}", a.interface), || {
                Ok(link::is_running(&a.interface)?.then_some(()))
            })
        })
    })
}
