//! Addresses: `RTM_NEWADDR` read.

use steer_core::ids::IfIndex;
use steer_core::network::Address;

use super::wire::{AF_INET, AF_INET6, Message, ip, u32_at};

/// Reads `RTM_NEWADDR` or `RTM_DELADDR`; `None` for families other than IPv4 and IPv6.
pub(super) fn parse(message: &Message<'_>) -> Option<Address> {
    let (fixed, rest) = message.split::<8>()?;
    let [family, prefix_len, flags, scope, ..] = *fixed;
    if family != AF_INET && family != AF_INET6 {
        return None;
    }
    let mut flags = u32::from(flags);
    let (mut address, mut local) = (None, None);
    for (kind, value) in rest {
        match kind {
            libc::IFA_ADDRESS => address = ip(value),
            libc::IFA_LOCAL => local = ip(value),
            libc::IFA_FLAGS => flags = u32_at(value, 0)?,
            _ => {}
        }
    }
    // IFA_ADDRESS is the peer where IFA_LOCAL is there and differs (rtnetlink(7)).
    let own = local.or(address)?;
    let tentative = flags & libc::IFA_F_TENTATIVE != 0 && flags & libc::IFA_F_OPTIMISTIC == 0;
    Some(Address {
        interface: IfIndex(u32_at(fixed, 4)?),
        ip: own,
        prefix_len,
        peer: address.filter(|peer| *peer != own),
        global: scope < libc::RT_SCOPE_LINK,
        usable: !tentative && flags & libc::IFA_F_DADFAILED == 0,
        deprecated: flags & libc::IFA_F_DEPRECATED != 0,
        // The same bit says "secondary" for IPv4.
        temporary: family == AF_INET6 && flags & libc::IFA_F_TEMPORARY != 0,
    })
}
