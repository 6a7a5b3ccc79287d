//! Keys and values of the maps, and what they mean in a plan.

use std::ffi::CStr;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use steer_common::{
    HostKey, LocalEntry, LocalKey4, LocalKey6, NAME_LEN, NameKey, SourceKey, local_flags,
};
use steer_core::ids::{DomainIndex, IfIndex, PlaceId};
use steer_core::plan::{Local, Named};

pub(super) fn source_key(domain: DomainIndex, ip: IpAddr) -> SourceKey {
    SourceKey {
        domain: u32::from(domain.0),
        address: mapped(ip),
    }
}

/// An address as the programs have it: network byte order, IPv4 as v4-mapped IPv6.
fn mapped(ip: IpAddr) -> [u8; 16] {
    match ip {
        IpAddr::V4(ip) => ip.to_ipv6_mapped().octets(),
        IpAddr::V6(ip) => ip.octets(),
    }
}

pub(super) fn host_key(interface: IfIndex, ip: IpAddr) -> HostKey {
    HostKey {
        interface: interface.0,
        address: mapped(ip),
    }
}

pub(super) fn host(key: &HostKey) -> (IfIndex, IpAddr) {
    let ip = Ipv6Addr::from(key.address).to_canonical();
    (IfIndex(key.interface), ip)
}

pub(super) fn source(key: &SourceKey) -> Option<(DomainIndex, IpAddr)> {
    let domain = DomainIndex(u16::try_from(key.domain).ok()?);
    Some((domain, Ipv6Addr::from(key.address).to_canonical()))
}

/// Names that no directory can have do not get here.
pub(super) fn name_key(named: &Named) -> NameKey {
    let mut name = [0; NAME_LEN];
    for (to, from) in name.iter_mut().zip(named.name.bytes()) {
        *to = from;
    }
    NameKey {
        place: named.place.0,
        name,
    }
}

/// `None`: not UTF-8, so none of ours.
pub(super) fn named(key: &NameKey) -> Option<Named> {
    let name = CStr::from_bytes_until_nul(&key.name).ok()?;
    Some(Named {
        place: PlaceId(key.place),
        name: name.to_str().ok()?.into(),
    })
}

pub(super) fn local_key4(net: Ipv4Net) -> LocalKey4 {
    LocalKey4 {
        prefix_len: u32::from(net.prefix_len()),
        address: net.network().octets(),
    }
}

pub(super) fn local_key6(net: Ipv6Net) -> LocalKey6 {
    LocalKey6 {
        prefix_len: u32::from(net.prefix_len()),
        address: net.network().octets(),
    }
}

/// `None`: not the key of a prefix.
pub(super) fn net4(key: &LocalKey4) -> Option<IpNet> {
    let length = u8::try_from(key.prefix_len).ok()?;
    let net = Ipv4Net::new(Ipv4Addr::from(key.address), length).ok()?;
    Some(IpNet::V4(net))
}

/// `None`: not the key of a prefix.
pub(super) fn net6(key: &LocalKey6) -> Option<IpNet> {
    let length = u8::try_from(key.prefix_len).ok()?;
    let net = Ipv6Net::new(Ipv6Addr::from(key.address), length).ok()?;
    Some(IpNet::V6(net))
}

pub(super) fn local_entry(local: &Local) -> LocalEntry {
    let mut source = [0; 16];
    match local.source {
        Some(IpAddr::V4(ip)) => source[..4].copy_from_slice(&ip.octets()),
        Some(IpAddr::V6(ip)) => source = ip.octets(),
        None => {}
    }
    LocalEntry {
        domains: local.domains,
        flags: if local.host { local_flags::HOST } else { 0 },
        source,
    }
}

pub(super) fn local(entry: &LocalEntry, v6: bool) -> Local {
    let [a, b, c, d, ..] = entry.source;
    let source = if entry.source == [0; 16] {
        None
    } else if v6 {
        Some(IpAddr::V6(entry.source.into()))
    } else {
        Some(IpAddr::V4([a, b, c, d].into()))
    };
    Local {
        host: entry.flags & local_flags::HOST != 0,
        domains: entry.domains,
        source,
    }
}
