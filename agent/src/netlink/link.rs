//! Links: `RTM_NEWLINK` read, and what kind of interface it is.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use steer_core::ids::IfIndex;
use steer_core::network::{Link, LinkKind};

use super::wire::{AF_UNSPEC, Message, attributes, text, u16_at, u32_at};

/// `IFF_LOWER_UP` of `linux/if.h`; beyond the sixteen bits that libc knows.
const LOWER_UP: u32 = 1 << 16;
/// `IFF_DORMANT`.
const DORMANT: u32 = 1 << 17;
/// `IFF_UP`.
const UP: u32 = 1;
/// `IFF_LOOPBACK`.
const LOOPBACK: u32 = 1 << 3;
/// `IF_OPER_LOWERLAYERDOWN`.
const LOWER_LAYER_DOWN: u8 = 3;

/// `IFLA_INFO_SLAVE_KIND`.
const INFO_SLAVE_KIND: u16 = 4;

/// `ARPHRD_RAWIP`: modems without link-layer headers.
const ARPHRD_RAWIP: u16 = 519;
/// `ARPHRD_NONE`, `ARPHRD_IEEE80211` to `.._RADIOTAP` and others, from `linux/if_arp.h`.
const ARPHRD_IEEE80211: std::ops::RangeInclusive<u16> = 801..=803;

/// What a link message says.
#[derive(Debug)]
pub(super) struct LinkMessage {
    index: IfIndex,
    hardware: u16,
    flags: u32,
    name: String,
    mtu: u32,
    mac: Option<[u8; 6]>,
    master: Option<IfIndex>,
    lower: Option<IfIndex>,
    elsewhere: bool,
    operational_state: u8,
    kind: Option<String>,
    port_of: Option<String>,
}

impl LinkMessage {
    /// Reads `RTM_NEWLINK` or `RTM_DELLINK`. `None` for what says nothing about a link: bridge port
    /// messages (`AF_BRIDGE`; a port that leaves its bridge is an `RTM_DELLINK` of that family) and
    /// wireless extension events, which carry no other attributes.
    pub(super) fn parse(message: &Message<'_>) -> Option<Self> {
        let (fixed, rest) = message.split::<16>()?;
        if fixed[0] != AF_UNSPEC {
            return None;
        }
        let mut link = Self {
            index: IfIndex(u32_at(fixed, 4)?),
            hardware: u16_at(fixed, 2)?,
            flags: u32_at(fixed, 8)?,
            name: String::new(),
            mtu: 0,
            mac: None,
            master: None,
            lower: None,
            elsewhere: false,
            operational_state: 0,
            kind: None,
            port_of: None,
        };
        for (kind, value) in rest {
            match kind {
                libc::IFLA_IFNAME => link.name = text(value),
                libc::IFLA_MTU => link.mtu = u32_at(value, 0)?,
                libc::IFLA_ADDRESS => {
                    link.mac = <[u8; 6]>::try_from(value).ok().filter(|mac| *mac != [0; 6]);
                }
                libc::IFLA_MASTER => link.master = u32_at(value, 0).map(IfIndex),
                libc::IFLA_LINK => link.lower = u32_at(value, 0).map(IfIndex),
                // The interface below is another network namespace's.
                libc::IFLA_LINK_NETNSID => link.elsewhere = true,
                libc::IFLA_OPERSTATE => link.operational_state = *value.first()?,
                libc::IFLA_WIRELESS => return None,
                libc::IFLA_LINKINFO => {
                    for (kind, value) in attributes(value) {
                        match kind {
                            libc::IFLA_INFO_KIND => link.kind = Some(text(value)),
                            INFO_SLAVE_KIND => link.port_of = Some(text(value)),
                            _ => {}
                        }
                    }
                }
                _ => {}
            }
        }
        (!link.name.is_empty()).then_some(link)
    }

    /// Its index.
    pub(super) fn index(&self) -> IfIndex {
        self.index
    }

    /// The link, with what only sysfs knows.
    pub(super) fn into_link(self, media: &mut Media) -> Link {
        let medium = media.of(&self);
        let is_bridge =
            |kind: &Option<String>| matches!(kind.as_deref(), Some("bridge" | "openvswitch"));
        let is_stacked = matches!(
            self.kind.as_deref(),
            Some("macvlan" | "macvtap" | "ipvlan" | "ipvtap")
        );
        Link {
            index: self.index,
            under: self.lower.filter(|_| is_stacked && !self.elsewhere),
            kind: classify(self.kind.as_deref(), self.hardware, medium),
            up: self.flags & UP != 0,
            carrier: self.flags & LOWER_UP != 0
                && self.flags & DORMANT == 0
                && self.operational_state != LOWER_LAYER_DOWN,
            loopback: self.flags & LOOPBACK != 0,
            master: self.master,
            bridge: is_bridge(&self.kind) || is_bridge(&self.port_of),
            mac: self.mac,
            mtu: self.mtu,
            name: self.name,
        }
    }
}

/// The kind of a link by its driver's name (`IFLA_INFO_KIND`), hardware type and medium.
///
/// VLANs, bonds, teams and MACsec links count as wired: they are made of wired links in practice,
/// and are the uplink where they exist. A tap (`tun` with Ethernet frames) counts as a tunnel.
fn classify(kind: Option<&str>, hardware: u16, medium: Medium) -> LinkKind {
    match (medium, kind) {
        (Medium::Wlan, _) => LinkKind::Wlan,
        (Medium::Wwan, _) | (_, Some("wwan" | "ppp" | "rmnet")) => LinkKind::Cellular,
        (
            _,
            Some(
                "tun" | "wireguard" | "amneziawg" | "ovpn" | "ovpn-dco" | "ipip" | "sit" | "ip6tnl"
                | "gre" | "gretap" | "ip6gre" | "ip6gretap" | "erspan" | "ip6erspan" | "xfrm"
                | "vti" | "vti6" | "l2tpeth" | "gtp" | "fou" | "gue",
            ),
        ) => LinkKind::Vpn,
        (_, Some("vlan" | "bond" | "team" | "macsec" | "ipoib")) => LinkKind::Wired,
        (_, Some(_)) => LinkKind::Other,
        (_, None) => match hardware {
            libc::ARPHRD_ETHER | libc::ARPHRD_INFINIBAND => LinkKind::Wired,
            libc::ARPHRD_PPP | ARPHRD_RAWIP => LinkKind::Cellular,
            libc::ARPHRD_NONE => LinkKind::Vpn,
            hardware if ARPHRD_IEEE80211.contains(&hardware) => LinkKind::Wlan,
            _ => LinkKind::Other,
        },
    }
}

/// What netlink does not tell of a link: whether an Ethernet interface is a radio.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Medium {
    Plain,
    Wlan,
    Wwan,
}

/// The media of the links, read from sysfs once for each index and name.
#[derive(Debug, Default)]
pub(super) struct Media {
    known: BTreeMap<IfIndex, (String, Medium)>,
}

impl Media {
    fn of(&mut self, link: &LinkMessage) -> Medium {
        if let Some((name, medium)) = self.known.get(&link.index)
            && *name == link.name
        {
            return *medium;
        }
        let medium = read_medium(Path::new("/sys/class/net"), link);
        self.known.insert(link.index, (link.name.clone(), medium));
        medium
    }

    /// Forgets all links but those that `is_there`.
    pub(super) fn keep(&mut self, is_there: impl Fn(IfIndex) -> bool) {
        self.known.retain(|index, _| is_there(*index));
    }

    /// Forgets a link that is gone: its index may come again for another.
    pub(super) fn forget(&mut self, index: IfIndex) {
        self.known.remove(&index);
    }
}

/// Reads a link's directory in sysfs. A sysfs mount shows the network namespace it was mounted in,
/// which may be another than the agent's: a directory whose index or hardware address is not the
/// link's says nothing about it.
fn read_medium(class: &Path, link: &LinkMessage) -> Medium {
    let directory = class.join(&link.name);
    let read = |file: &str| fs::read_to_string(directory.join(file)).unwrap_or_default();
    let same_index = read("ifindex").trim() == link.index.to_string();
    let same_mac = link.mac.is_none_or(|mac| {
        let mac: Vec<_> = mac.iter().map(|byte| format!("{byte:02x}")).collect();
        read("address").trim() == mac.join(":")
    });
    if !same_index || !same_mac {
        return Medium::Plain;
    }
    let uevent = read("uevent");
    let is_type = |name: &str| {
        uevent
            .lines()
            .any(|line| line.strip_prefix("DEVTYPE=") == Some(name))
    };
    if is_type("wwan") {
        Medium::Wwan
    } else if is_type("wlan")
        || directory.join("phy80211").exists()
        || directory.join("wireless").exists()
    {
        Medium::Wlan
    } else {
        Medium::Plain
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use steer_core::ids::IfIndex;
    use steer_core::network::LinkKind::{Cellular, Other, Vpn, Wired, Wlan};

    use super::{ARPHRD_RAWIP, LinkMessage, Medium, classify, read_medium};

    #[test]
    fn kinds_follow_driver_hardware_and_medium() {
        let ether = libc::ARPHRD_ETHER;
        for (kind, hardware, medium, expected) in [
            (None, ether, Medium::Plain, Wired),
            (None, ether, Medium::Wlan, Wlan),
            (None, ether, Medium::Wwan, Cellular),
            (Some("wwan"), ARPHRD_RAWIP, Medium::Plain, Cellular),
            (Some("ppp"), libc::ARPHRD_PPP, Medium::Plain, Cellular),
            (None, libc::ARPHRD_PPP, Medium::Plain, Cellular),
            (None, ARPHRD_RAWIP, Medium::Plain, Cellular),
            (Some("wireguard"), libc::ARPHRD_NONE, Medium::Plain, Vpn),
            (Some("tun"), libc::ARPHRD_NONE, Medium::Plain, Vpn),
            (Some("vti6"), 769, Medium::Plain, Vpn),
            (Some("ip6gretap"), ether, Medium::Plain, Vpn),
            (Some("xfrm"), libc::ARPHRD_NONE, Medium::Plain, Vpn),
            (Some("vlan"), ether, Medium::Plain, Wired),
            (Some("bond"), ether, Medium::Plain, Wired),
            (Some("veth"), ether, Medium::Plain, Other),
            (Some("dummy"), ether, Medium::Plain, Other),
            (Some("bridge"), ether, Medium::Plain, Other),
            (None, libc::ARPHRD_LOOPBACK, Medium::Plain, Other),
        ] {
            assert_eq!(
                classify(kind, hardware, medium),
                expected,
                "{kind:?} {hardware}"
            );
        }
    }

    #[test]
    fn a_sysfs_of_another_namespace_is_not_believed() {
        let class = tempfile::tempdir().expect("a directory");
        let directory = class.path().join("wlan0");
        fs::create_dir_all(directory.join("phy80211")).expect("a directory");
        fs::write(directory.join("ifindex"), "7\n").expect("a file");
        fs::write(directory.join("address"), "02:00:00:00:00:01\n").expect("a file");
        fs::write(directory.join("uevent"), "DEVTYPE=wlan\nINTERFACE=wlan0\n").expect("a file");
        let link = |index, last| LinkMessage {
            index: IfIndex(index),
            hardware: libc::ARPHRD_ETHER,
            flags: 0,
            name: "wlan0".into(),
            mtu: 1500,
            mac: Some([2, 0, 0, 0, 0, last]),
            master: None,
            lower: None,
            elsewhere: false,
            operational_state: 0,
            kind: None,
            port_of: None,
        };
        assert_eq!(read_medium(class.path(), &link(7, 1)), Medium::Wlan);
        assert_eq!(read_medium(class.path(), &link(8, 1)), Medium::Plain);
        assert_eq!(read_medium(class.path(), &link(7, 2)), Medium::Plain);
    }
}
