//! What an uplink of the laboratory's host looks like, and the `ip` lines that make it so.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::Path;

use crate::checks;

/// An address with its prefix and gateway.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Net {
    /// The host's address.
    pub address: IpAddr,
    /// Prefix length.
    pub length: u8,
    /// The peer's address.
    pub gateway: IpAddr,
}

/// An uplink: a veth from the host to a peer namespace that plays router, network and servers.
#[derive(Clone, Debug)]
pub struct Uplink {
    pub(crate) name: String,
    pub(crate) number: u16,
    pub(crate) ipv4: Option<Net>,
    pub(crate) ipv6: Option<Net>,
    pub(crate) metric: Option<u32>,
    pub(crate) serves: Vec<String>,
    pub(crate) bridge: bool,
    pub(crate) crowded: bool,
    pub(crate) relayed: bool,
    /// Which router stands behind it: the last byte of its MAC address.
    router: u8,
}

impl Net {
    /// The same hosts in the next prefix of the same length.
    fn in_next_prefix(self) -> Self {
        Self {
            address: later(self.address, 1, self.length),
            gateway: later(self.gateway, 1, self.length),
            length: self.length,
        }
    }

    /// The same host behind another gateway of the prefix. The host itself is between the two.
    fn behind_next_gateway(self) -> Self {
        let whole = if self.gateway.is_ipv6() { 128 } else { 32 };
        Self {
            gateway: later(self.gateway, 2, whole),
            ..self
        }
    }
}

/// The address `count` prefixes of `length` after `address`, at the same place in its prefix.
fn later(address: IpAddr, count: u8, length: u8) -> IpAddr {
    match address {
        IpAddr::V4(v4) => {
            let step = u32::from(count).checked_shl(32 - u32::from(length));
            Ipv4Addr::from(u32::from(v4).wrapping_add(step.unwrap_or(0))).into()
        }
        IpAddr::V6(v6) => {
            let step = u128::from(count).checked_shl(128 - u32::from(length));
            Ipv6Addr::from(u128::from(v6).wrapping_add(step.unwrap_or(0))).into()
        }
    }
}

impl Uplink {
    /// Uplink number `number` (1 to 250): `10.N.0.2/24` and `2001:db8:N::2/64`, default routes by the
    /// peer with metric 100 N.
    pub fn new(name: &str, number: u8) -> Self {
        let segment = u16::from(number);
        Self {
            name: name.to_owned(),
            number: segment,
            ipv4: Some(Net {
                address: Ipv4Addr::new(10, number, 0, 2).into(),
                length: 24,
                gateway: Ipv4Addr::new(10, number, 0, 1).into(),
            }),
            ipv6: Some(Net {
                address: Ipv6Addr::new(0x2001, 0xdb8, segment, 0, 0, 0, 0, 2).into(),
                length: 64,
                gateway: Ipv6Addr::new(0x2001, 0xdb8, segment, 0, 0, 0, 0, 1).into(),
            }),
            metric: Some(u32::from(number) * 100),
            serves: [
                "198.51.100.0/24",
                "198.18.0.0/16",
                "2001:db8:ffff::/64",
                checks::SERVED4,
                checks::SERVED6,
            ]
            .map(str::to_owned)
            .to_vec(),
            bridge: false,
            crowded: false,
            relayed: false,
            router: 1,
        }
    }

    /// Uplink number `number` of a crowd: `10.128.0.0/9` in pieces of four addresses, and
    /// `2001:db8:4000+N::2/64`. Its far end is in one namespace with the crowd's others, where it has the
    /// uplink's name.
    pub(crate) fn in_crowd(number: u16) -> Self {
        let first = u32::from(Ipv4Addr::new(10, 128, 0, 0)) + 4 * u32::from(number);
        let address6 = |last| Ipv6Addr::new(0x2001, 0xdb8, 0x4000 + number, 0, 0, 0, 0, last);
        Self {
            name: format!("d{number}"),
            number: 0x4000 + number,
            ipv4: Some(Net {
                address: Ipv4Addr::from(first + 2).into(),
                length: 30,
                gateway: Ipv4Addr::from(first + 1).into(),
            }),
            ipv6: Some(Net {
                address: address6(2).into(),
                length: 64,
                gateway: address6(1).into(),
            }),
            metric: Some(10_000 + u32::from(number)),
            crowded: true,
            ..Self::new("", 0)
        }
    }

    /// Name of its far end.
    pub(crate) fn far_end(&self) -> &str {
        if self.crowded { &self.name } else { "peer" }
    }

    /// Another IPv4 address, prefix length and gateway.
    #[must_use]
    pub fn ipv4(mut self, address: [u8; 4], length: u8, gateway: [u8; 4]) -> Self {
        self.ipv4 = Some(Net {
            address: address.into(),
            length,
            gateway: gateway.into(),
        });
        self
    }

    /// No IPv4 at all.
    #[must_use]
    pub fn without_ipv4(mut self) -> Self {
        self.ipv4 = None;
        self
    }

    /// No IPv6 but the link-local address.
    #[must_use]
    pub fn without_ipv6(mut self) -> Self {
        self.ipv6 = None;
        self
    }

    /// No default routes in the main table.
    #[must_use]
    pub fn without_default_route(mut self) -> Self {
        self.metric = None;
        self
    }

    /// The peer answers for every address of `prefix` too.
    #[must_use]
    pub fn serves(mut self, prefix: &str) -> Self {
        self.serves.push(prefix.to_owned());
        self
    }

    /// Metric of its default routes.
    #[must_use]
    pub fn metric(mut self, metric: u32) -> Self {
        self.metric = Some(metric);
        self
    }

    /// Its packets pass through a relay, which can lose and delay them (see [`Lab::impair`](crate::Lab::impair)).
    #[must_use]
    pub fn relayed(mut self) -> Self {
        self.relayed = true;
        self
    }

    /// The uplink in another network: other prefixes, addresses and gateways, of the same router.
    pub(crate) fn renumbered(&self) -> Self {
        Self {
            ipv4: self.ipv4.map(Net::in_next_prefix),
            ipv6: self.ipv6.map(Net::in_next_prefix),
            ..self.clone()
        }
    }

    /// The uplink with another router: the same addresses, other gateways, another MAC address.
    pub(crate) fn behind_next_router(&self) -> Self {
        Self {
            ipv4: self.ipv4.map(Net::behind_next_gateway),
            ipv6: self.ipv6.map(Net::behind_next_gateway),
            router: self.router.wrapping_add(2),
            ..self.clone()
        }
    }

    /// The uplink is a bridge at the host, with the veth as its port.
    pub(crate) fn behind_bridge(mut self) -> Self {
        self.bridge = true;
        self
    }

    /// The host's IPv4 address on it.
    pub fn address4(&self) -> Option<IpAddr> {
        self.ipv4.map(|net| net.address)
    }

    /// The host's global IPv6 address on it.
    pub fn address6(&self) -> Option<IpAddr> {
        self.ipv6.map(|net| net.address)
    }

    /// Its IPv4 gateway.
    pub fn gateway4(&self) -> Option<IpAddr> {
        self.ipv4.map(|net| net.gateway)
    }

    /// Its global IPv6 gateway.
    pub fn gateway6(&self) -> Option<IpAddr> {
        self.ipv6.map(|net| net.gateway)
    }

    /// The host's addresses on it, both families.
    pub fn addresses(&self) -> Vec<IpAddr> {
        self.address4().into_iter().chain(self.address6()).collect()
    }

    fn host_mac(&self) -> String {
        self.mac(2)
    }

    pub(crate) fn peer_mac(&self) -> String {
        self.mac(self.router)
    }

    fn mac(&self, end: u8) -> String {
        let [high, low] = self.number.to_be_bytes();
        format!("02:5e:00:{high:02x}:{low:02x}:{end:02x}")
    }

    pub(crate) fn nets(&self) -> impl Iterator<Item = Net> {
        self.ipv4.into_iter().chain(self.ipv6)
    }

    /// Lines for the host that make the veth, with its other end, named `peer`, in `namespace`.
    pub(crate) fn creation(&self, namespace: &Path) -> Vec<String> {
        let (name, host, peer) = (&self.name, self.host_mac(), self.peer_mac());
        let (far_end, port) = (self.far_end(), self.port());
        let mut lines = Vec::new();
        if self.bridge {
            lines.push(format!("link add {name} type bridge"));
        }
        lines.push(format!(
            "link add {port} address {host} type veth peer name {far_end} address {peer} netns {}",
            namespace.display()
        ));
        if self.bridge {
            lines.push(format!("link set {port} master {name} up"));
        }
        lines
    }

    /// Name of the veth at the host: the uplink's, or a bridge port's.
    fn port(&self) -> String {
        if self.bridge {
            format!("vp{}", self.number)
        } else {
            self.name.clone()
        }
    }

    /// Lines for the host that bring the interface `name` up with addresses and routes. Idempotent.
    ///
    /// The gateways' neighbour entries are permanent, so that a packet on a wrong way leaves at once
    /// instead of waiting for an answer.
    pub(crate) fn host_configuration(&self, name: &str) -> Vec<String> {
        let mut lines = vec![format!("link set {name} up")];
        for Net {
            address,
            length,
            gateway,
        } in self.nets()
        {
            let nodad = if address.is_ipv6() { " nodad" } else { "" };
            lines.push(format!(
                "address replace {address}/{length} dev {name}{nodad}"
            ));
            lines.push(format!(
                "neighbour replace {gateway} lladdr {} dev {name} nud permanent",
                self.peer_mac()
            ));
            if let Some(metric) = self.metric {
                lines.push(format!(
                    "route replace {} via {gateway} dev {name} metric {metric}",
                    everything(address)
                ));
            }
        }
        lines
    }

    /// Lines for the host that take from the interface `name` what `next` does not have.
    pub(crate) fn host_removal(&self, name: &str, next: &Self) -> Vec<String> {
        let mut lines = Vec::new();
        for (old, new) in self.nets().zip(next.nets()) {
            let Net {
                address,
                length,
                gateway,
            } = old;
            if gateway != new.gateway {
                if let Some(metric) = self.metric {
                    lines.push(format!(
                        "route delete {} via {gateway} dev {name} metric {metric}",
                        everything(gateway)
                    ));
                }
                lines.push(format!("neighbour delete {gateway} dev {name}"));
            }
            if address != new.address {
                lines.push(format!("address delete {address}/{length} dev {name}"));
            }
        }
        lines
    }

    /// Lines for the peer's namespace that take away what `next` does not have.
    pub(crate) fn peer_removal(&self, next: &Self) -> Vec<String> {
        let far_end = self.far_end();
        let mut lines = Vec::new();
        for (old, new) in self.nets().zip(next.nets()) {
            let Net {
                address,
                length,
                gateway,
            } = old;
            if address != new.address {
                lines.push(format!("neighbour delete {address} dev {far_end}"));
            }
            if gateway != new.gateway {
                lines.push(format!("address delete {gateway}/{length} dev {far_end}"));
            }
        }
        lines
    }

    /// Lines for the peer's namespace. Idempotent.
    pub(crate) fn peer_configuration(&self) -> Vec<String> {
        let far_end = self.far_end();
        let mut lines = vec![
            "link set lo up".to_owned(),
            format!("link set {far_end} up"),
        ];
        for Net {
            address,
            length,
            gateway,
        } in self.nets()
        {
            let nodad = if gateway.is_ipv6() { " nodad" } else { "" };
            lines.push(format!(
                "address replace {gateway}/{length} dev {far_end}{nodad}"
            ));
            // Behind a bridge the address is the bridge's, whose MAC address is the kernel's choice.
            if !self.bridge {
                lines.push(format!(
                    "neighbour replace {address} lladdr {} dev {far_end} nud permanent",
                    self.host_mac()
                ));
            } else {
                lines.push(format!(
                    "route replace {} via {address} dev {far_end}",
                    everything(address)
                ));
            }
        }
        for prefix in &self.serves {
            lines.push(format!("route replace local {prefix} dev lo"));
        }
        lines
    }
}

/// The default route's prefix, spelled so that `ip -batch` knows the family.
fn everything(address: IpAddr) -> &'static str {
    if address.is_ipv6() {
        "::/0"
    } else {
        "0.0.0.0/0"
    }
}
