//! Rules: which packets they match, and how `ip rule` prints them.

use std::fmt;
use std::net::IpAddr;

use ipnet::IpNet;

use super::path::Packet;
use crate::plan::{ROUTE_PROTOCOL, Rule, RuleAction};

/// Whether a packet that the host itself sends, from a socket bound to no interface, matches a rule.
pub(super) fn matches(rule: &Rule, packet: &Packet) -> bool {
    let within = |net: Option<IpNet>, ip: Option<IpAddr>| {
        net.is_none_or(|net| ip.is_some_and(|ip| net.contains(&ip)))
    };
    within(rule.from, packet.source)
        && within(rule.to, Some(packet.destination))
        && rule.fwmark.is_none_or(|(mark, mask)| packet.mark & mask == mark)
        && rule.protocol.is_none_or(|protocol| protocol == packet.protocol)
        && rule.oif.is_none()
        // DHCP clients, which are told of apart.
        && rule.udp_ports.is_none()
}

/// As `ip rule` prints it, without its priority. A table is told by its number, but for those that
/// every host has a name for.
impl fmt::Display for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let net = |net: IpNet| {
            if net.prefix_len() == net.max_prefix_len() {
                net.addr().to_string()
            } else {
                net.to_string()
            }
        };
        match self.from {
            Some(from) => write!(f, "from {}", net(from))?,
            None => f.write_str("from all")?,
        }
        if let Some(to) = self.to {
            write!(f, " to {}", net(to))?;
        }
        if let Some((mark, mask)) = self.fwmark {
            match mask {
                u32::MAX => write!(f, " fwmark {mark:#x}")?,
                _ => write!(f, " fwmark {mark:#x}/{mask:#x}")?,
            }
        }
        if let Some(oif) = self.oif {
            write!(f, " oif {}", oif.as_str())?;
        }
        match self.protocol {
            Some(6) => f.write_str(" ipproto tcp")?,
            Some(17) => f.write_str(" ipproto udp")?,
            Some(other) => write!(f, " ipproto {other}")?,
            None => {}
        }
        if let Some((source, destination)) = self.udp_ports {
            write!(f, " ipproto udp sport {source} dport {destination}")?;
        }
        match self.action {
            RuleAction::Lookup {
                table,
                suppress_prefix_len,
            } => {
                match table.0 {
                    253 => f.write_str(" lookup default")?,
                    254 => f.write_str(" lookup main")?,
                    255 => f.write_str(" lookup local")?,
                    number => write!(f, " lookup {number}")?,
                }
                if let Some(length) = suppress_prefix_len {
                    write!(f, " suppress_prefixlength {length}")?;
                }
            }
            RuleAction::Goto(priority) => write!(f, " goto {priority}")?,
            RuleAction::Nop => f.write_str(" nop")?,
            RuleAction::Unreachable => f.write_str(" unreachable")?,
        }
        write!(f, " proto {ROUTE_PROTOCOL}")
    }
}
