//! Policy rules: `RTM_NEWRULE` read and written.

use ipnet::IpNet;
use steer_core::ids::TableId;
use steer_core::network::ForeignRule;
use steer_core::plan::{Family, IfName, ROUTE_PROTOCOL, Rule, RuleAction};

use super::wire::{AF_INET, AF_INET6, Message, Request, ip, octets, prefix, u16_at, u32_at};

/// `FRA_*` of `linux/fib_rules.h`, which libc lacks.
mod fra {
    pub(super) const DST: u16 = 1;
    pub(super) const SRC: u16 = 2;
    pub(super) const IIFNAME: u16 = 3;
    pub(super) const GOTO: u16 = 4;
    pub(super) const PRIORITY: u16 = 6;
    pub(super) const FWMARK: u16 = 10;
    pub(super) const TUN_ID: u16 = 12;
    pub(super) const SUPPRESS_PREFIXLEN: u16 = 14;
    pub(super) const TABLE: u16 = 15;
    pub(super) const FWMASK: u16 = 16;
    pub(super) const OIFNAME: u16 = 17;
    pub(super) const L3MDEV: u16 = 19;
    pub(super) const UID_RANGE: u16 = 20;
    pub(super) const PROTOCOL: u16 = 21;
    pub(super) const IP_PROTO: u16 = 22;
    pub(super) const SPORT_RANGE: u16 = 23;
    pub(super) const DPORT_RANGE: u16 = 24;
    pub(super) const DSCP: u16 = 25;
    pub(super) const FLOWLABEL: u16 = 26;
}

/// `FR_ACT_*`.
mod action {
    pub(super) const TO_TABLE: u8 = 1;
    pub(super) const GOTO: u8 = 2;
    pub(super) const NOP: u8 = 3;
    pub(super) const UNREACHABLE: u8 = 7;
}

/// `FIB_RULE_INVERT`.
const INVERT: u32 = 2;
/// `IPPROTO_UDP`.
const UDP: u8 = 17;

/// What a rule message says.
#[derive(Debug)]
pub(super) struct RuleMessage {
    family: Family,
    priority: u32,
    protocol: u8,
    invert: bool,
    action: u8,
    table: u32,
    target: Option<u32>,
    suppress: Option<u32>,
    from: Option<IpNet>,
    to: Option<IpNet>,
    mark: Option<u32>,
    mask: Option<u32>,
    oif: Option<IfName>,
    transport: Option<u8>,
    source_ports: Option<(u16, u16)>,
    destination_ports: Option<(u16, u16)>,
    /// A selector that no rule of ours has.
    other_selector: bool,
}

impl RuleMessage {
    /// Reads `RTM_NEWRULE` or `RTM_DELRULE`; `None` for families other than IPv4 and IPv6
    /// (multicast routing has rules of its own).
    pub(super) fn parse(message: &Message<'_>) -> Option<Self> {
        let (fixed, rest) = message.split::<12>()?;
        let [number, to_len, from_len, tos, table, _, _, action, ..] = *fixed;
        let mut rule = Self {
            family: match number {
                AF_INET => Family::Ipv4,
                AF_INET6 => Family::Ipv6,
                _ => return None,
            },
            priority: 0,
            protocol: 0,
            invert: u32_at(fixed, 8)? & INVERT != 0,
            action,
            table: u32::from(table),
            target: None,
            suppress: None,
            from: None,
            to: None,
            mark: None,
            mask: None,
            oif: None,
            transport: None,
            source_ports: None,
            destination_ports: None,
            other_selector: tos != 0,
        };
        for (kind, value) in rest {
            let range = || Some((u16_at(value, 0)?, u16_at(value, 2)?));
            match kind {
                fra::PRIORITY => rule.priority = u32_at(value, 0)?,
                fra::PROTOCOL => rule.protocol = *value.first()?,
                fra::TABLE => rule.table = u32_at(value, 0)?,
                fra::GOTO => rule.target = u32_at(value, 0),
                // The kernel writes "none" as -1.
                fra::SUPPRESS_PREFIXLEN => {
                    rule.suppress = u32_at(value, 0).filter(|len| *len != u32::MAX);
                }
                fra::SRC => rule.from = prefix(number, ip(value), from_len),
                fra::DST => rule.to = prefix(number, ip(value), to_len),
                fra::FWMARK => rule.mark = u32_at(value, 0),
                fra::FWMASK => rule.mask = u32_at(value, 0),
                fra::IP_PROTO => rule.transport = value.first().copied(),
                fra::SPORT_RANGE => rule.source_ports = range(),
                fra::DPORT_RANGE => rule.destination_ports = range(),
                fra::UID_RANGE => {
                    rule.other_selector |=
                        (u32_at(value, 0), u32_at(value, 4)) != (Some(0), Some(u32::MAX));
                }
                fra::OIFNAME => {
                    rule.oif = interface_name(value);
                    rule.other_selector |= rule.oif.is_none();
                }
                fra::IIFNAME | fra::TUN_ID | fra::L3MDEV | fra::DSCP | fra::FLOWLABEL => {
                    rule.other_selector = true;
                }
                _ => {}
            }
        }
        Some(rule)
    }

    /// The mark and mask it matches. The kernel leaves out a mark of 0 and never the mask.
    fn fwmark(&self) -> Option<(u32, u32)> {
        match (self.mark, self.mask) {
            (None, None) => None,
            (mark, mask) => Some((mark.unwrap_or(0), mask.unwrap_or(u32::MAX))),
        }
    }

    /// The rule as a plan would state it, if it bears our protocol and a plan can state it.
    pub(super) fn own(&self) -> Option<Rule> {
        if self.protocol != ROUTE_PROTOCOL || self.invert || self.other_selector {
            return None;
        }
        let action = match (self.action, self.target, self.suppress) {
            (action::TO_TABLE, None, suppress) => RuleAction::Lookup {
                table: TableId(self.table),
                suppress_prefix_len: suppress,
            },
            (action::GOTO, Some(target), None) => RuleAction::Goto(target),
            (action::NOP, None, None) => RuleAction::Nop,
            (action::UNREACHABLE, None, None) => RuleAction::Unreachable,
            _ => return None,
        };
        let (protocol, udp_ports) =
            match (self.transport, self.source_ports, self.destination_ports) {
                (protocol, None, None) => (protocol, None),
                (Some(UDP), Some((source, s)), Some((destination, d)))
                    if source == s && destination == d =>
                {
                    (None, Some((source, destination)))
                }
                _ => return None,
            };
        Some(Rule {
            family: self.family,
            priority: self.priority,
            from: self.from,
            to: self.to,
            fwmark: self.fwmark(),
            oif: self.oif,
            protocol,
            udp_ports,
            action,
        })
    }

    /// The rule as far as the agent cares about those of others.
    pub(super) fn foreign(&self) -> ForeignRule {
        ForeignRule {
            v6: self.family == Family::Ipv6,
            priority: self.priority,
            invert: self.invert,
            fwmark: self.fwmark(),
            from: self.from,
            to: self.to,
            narrow: self.other_selector
                || self.oif.is_some()
                || self.transport.is_some()
                || self.source_ports.is_some()
                || self.destination_ports.is_some(),
            table: (self.action == action::TO_TABLE).then_some(TableId(self.table)),
            suppress_prefix_len: self.suppress,
        }
    }
}

/// A zero-terminated interface name; `None` if a plan cannot state it.
fn interface_name(value: &[u8]) -> Option<IfName> {
    let name = value.split(|byte| *byte == 0).next()?;
    IfName::new(std::str::from_utf8(name).ok()?)
}

/// Asks for all rules of a family.
pub(super) fn dump_request(family: u8) -> Request {
    let mut fixed = [0; 12];
    fixed[0] = family;
    Request::new(libc::RTM_GETRULE, libc::NLM_F_DUMP, &fixed)
}

/// A request of `kind` (`RTM_NEWRULE`, `RTM_DELRULE`) that states `rule` in full.
pub(super) fn request(kind: u16, flags: i32, rule: &Rule) -> Request {
    let mut fixed = [0; 12];
    fixed[0] = match rule.family {
        Family::Ipv4 => AF_INET,
        Family::Ipv6 => AF_INET6,
    };
    fixed[1] = rule.to.map_or(0, |to| to.prefix_len());
    fixed[2] = rule.from.map_or(0, |from| from.prefix_len());
    fixed[7] = match rule.action {
        RuleAction::Lookup { .. } => action::TO_TABLE,
        RuleAction::Goto(_) => action::GOTO,
        RuleAction::Nop => action::NOP,
        RuleAction::Unreachable => action::UNREACHABLE,
    };
    let mut request = Request::new(kind, flags | libc::NLM_F_ACK, &fixed);
    request.put_u32(fra::PRIORITY, rule.priority);
    request.put(fra::PROTOCOL, &[ROUTE_PROTOCOL]);
    if let Some(from) = rule.from {
        request.put(fra::SRC, &octets(from.addr()));
    }
    if let Some(to) = rule.to {
        request.put(fra::DST, &octets(to.addr()));
    }
    if let Some((mark, mask)) = rule.fwmark {
        request.put_u32(fra::FWMARK, mark);
        request.put_u32(fra::FWMASK, mask);
    }
    if let Some(oif) = rule.oif {
        let mut name = oif.as_str().as_bytes().to_vec();
        name.push(0);
        request.put(fra::OIFNAME, &name);
    }
    if let Some(protocol) = rule.protocol {
        request.put(fra::IP_PROTO, &[protocol]);
    }
    if let Some((source, destination)) = rule.udp_ports {
        request.put(fra::IP_PROTO, &[UDP]);
        for (kind, port) in [(fra::SPORT_RANGE, source), (fra::DPORT_RANGE, destination)] {
            let [a, b] = port.to_ne_bytes();
            request.put(kind, &[a, b, a, b]);
        }
    }
    match rule.action {
        RuleAction::Lookup {
            table,
            suppress_prefix_len,
        } => {
            request.put_u32(fra::TABLE, table.0);
            if let Some(len) = suppress_prefix_len {
                request.put_u32(fra::SUPPRESS_PREFIXLEN, len);
            }
        }
        RuleAction::Goto(target) => request.put_u32(fra::GOTO, target),
        RuleAction::Nop | RuleAction::Unreachable => {}
    }
    request
}
