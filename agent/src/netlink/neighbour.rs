//! The hardware address of a neighbour, as the kernel knows it.

use std::net::IpAddr;

use steer_core::ids::IfIndex;

use super::Error;
use super::connection::Connection;
use super::watcher::read;
use super::wire::{Message, Request, family_of, ip, u32_at};

/// `NDA_DST`
const NDA_DST: u16 = 1;
/// `NDA_LLADDR`
const NDA_LLADDR: u16 = 2;

/// The hardware address of a neighbour. `None`: there is none, or it is not known now.
///
/// # Errors
/// The kernel could not be asked.
pub async fn neighbour(interface: IfIndex, address: IpAddr) -> Result<Option<[u8; 6]>, Error> {
    let mut connection = Connection::open(libc::NETLINK_ROUTE).map_err(Error::Open)?;
    // struct ndmsg: family, two of padding, interface, state, flags, type.
    let mut fixed = [0; 12];
    fixed[0] = family_of(address);
    fixed[4..8].copy_from_slice(&interface.0.to_ne_bytes());
    let mut request = Request::new(libc::RTM_GETNEIGH, libc::NLM_F_ACK, &fixed);
    request.put_ip(NDA_DST, address);
    let parse = |message: &Message<'_>| parse(message, interface, address);
    match connection.dump(&request, parse).await {
        Ok(found) => Ok(found.into_iter().next()),
        Err(refusal) if refusal.errno() == libc::ENOENT => Ok(None),
        Err(refusal) => Err(read("neighbours")(refusal)),
    }
}

fn parse(message: &Message<'_>, interface: IfIndex, address: IpAddr) -> Option<[u8; 6]> {
    if message.kind != libc::RTM_NEWNEIGH {
        return None;
    }
    let (fixed, rest) = message.split::<12>()?;
    if u32_at(fixed, 4)? != interface.0 {
        return None;
    }
    let (mut same, mut hardware) = (false, None);
    for (kind, value) in rest {
        match kind {
            NDA_DST => same = ip(value) == Some(address),
            NDA_LLADDR => hardware = value.try_into().ok(),
            _ => {}
        }
    }
    hardware.filter(|_| same)
}
