//! What each caller is told: its flows, with who holds them; off the agent's loop.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::Arc;

use ipnet::IpNet;
use steer_common::FlowCount;
use steer_core::name::Name;

use super::monotonic;
use super::place::Placed;
use crate::api::error::ApiError;
use crate::api::explain::AddressFamily;
use crate::api::flows::{
    FlowOrder, FlowsReply, HolderView, ListFlows, LiveFlowView, MOST_FLOWS, USUAL_FLOWS,
};
use crate::cgroup::{FoundHolders, Holder, Holders, holders};
use crate::netlink::{FlowPhase, Transport};

/// What a call asks for.
#[derive(Debug)]
pub(super) struct Filter {
    policy: Option<Name>,
    domain: Option<Name>,
    cgroup: Option<String>,
    pub(super) pid: Option<i32>,
    destination: Option<IpNet>,
    port: Option<u16>,
    family: Option<AddressFamily>,
    pub(super) all: bool,
    order: FlowOrder,
    limit: usize,
    /// The plain user who asks; none: an administrator.
    pub(super) uid: Option<u32>,
}

/// A call that is to be answered.
pub(super) struct Wish {
    pub(super) serial: u64,
    pub(super) filter: Arc<Filter>,
    /// The policies of which a plain user is told.
    pub(super) sees: Option<BTreeSet<Name>>,
}

/// Where processes are looked for.
pub(super) struct Search {
    pub(super) cgroups: Vec<PathBuf>,
    /// Only this user's.
    pub(super) uid: Option<u32>,
}

/// The answer to a call.
pub(super) struct Told {
    pub(super) serial: u64,
    pub(super) reply: FlowsReply,
}

/// What is remembered from look to look, as long as somebody asks.
#[derive(Debug, Default)]
pub(super) struct Memory {
    holders: FoundHolders,
    /// When flows were first seen, by cookie.
    seen: HashMap<u64, u64>,
}

impl Filter {
    pub(super) fn new(
        asked: &ListFlows,
        policy: Option<Name>,
        domain: Option<Name>,
        uid: Option<u32>,
    ) -> Result<Self, ApiError> {
        let invalid = |field: &str, reason: &str| ApiError::InvalidArgument {
            field: field.to_owned(),
            reason: reason.to_owned(),
        };
        let net = |text: &String| {
            let ip = text
                .parse::<IpAddr>()
                .map(|ip| IpNet::from(ip.to_canonical()));
            let net = ip.or_else(|_| text.parse::<IpNet>());
            net.map_err(|_| {
                invalid(
                    "destination",
                    "name an address or a prefix, as 192.0.2.0/24 or 2001:db8::1",
                )
            })
        };
        let port = asked.port.map(u16::try_from).transpose();
        let pid = asked.pid.map(i32::try_from).transpose();
        let limit = asked.limit.unwrap_or(USUAL_FLOWS);
        if !(1..=MOST_FLOWS).contains(&limit) {
            return Err(invalid("limit", &format!("it is from 1 to {MOST_FLOWS}")));
        }
        Ok(Self {
            policy,
            domain,
            cgroup: asked
                .cgroup
                .as_deref()
                .map(|path| format!("/{}", path.trim_matches('/'))),
            pid: pid.map_err(|_| invalid("pid", "there is no process of such a number"))?,
            destination: asked.destination.as_ref().map(net).transpose()?,
            port: port.map_err(|_| invalid("port", "a port is at most 65535"))?,
            family: asked.family,
            all: asked.all.unwrap_or(false),
            order: asked.order.unwrap_or_default(),
            limit: usize::try_from(limit).unwrap_or(usize::MAX),
            uid,
        })
    }

    /// What can be told without knowing the holders.
    fn fits(&self, placed: &Placed) -> bool {
        let below = |path: &String| {
            let own = placed.cgroup.as_deref().unwrap_or_default();
            let rest = own.strip_prefix(path.trim_end_matches('/'));
            rest.is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
        };
        let ip = placed.destination.map(|(ip, _)| ip).or(placed.source);
        let family = |family: &AddressFamily| {
            let v4 = *family == AddressFamily::Ipv4;
            ip.unwrap_or_else(|| placed.flow.local.ip()).is_ipv4() == v4
        };
        (self.all || placed.policy.is_some() || placed.domain.is_some())
            && self.uid.is_none_or(|uid| placed.flow.uid == uid)
            && (self.policy.is_none() || self.policy == placed.policy)
            && (self.domain.is_none() || self.domain == placed.domain)
            && self.cgroup.as_ref().is_none_or(below)
            && self
                .destination
                .is_none_or(|net| placed.destination.is_some_and(|(ip, _)| net.contains(&ip)))
            && (self.port.is_none() || self.port == placed.destination.map(|(_, port)| port))
            && self.family.as_ref().is_none_or(family)
    }

    /// Those of the holders that are told: a plain user learns of its own processes alone.
    fn holders<'a>(&self, all: &'a [Holder]) -> Vec<&'a Holder> {
        let own = |holder: &&Holder| self.uid.is_none() || holder.uid == self.uid;
        all.iter().filter(own).collect()
    }
}

/// Answers calls.
pub(super) fn tell(
    placed: &[Placed],
    wishes: &[Wish],
    search: &Search,
    counted_since: Option<&str>,
    not_counted: Option<&str>,
    mut memory: Memory,
) -> (Vec<Told>, Memory) {
    let now = monotonic();
    let mut seen = HashMap::with_capacity(placed.len());
    for placed in placed {
        let cookie = placed.flow.cookie;
        seen.insert(cookie, memory.seen.get(&cookie).copied().unwrap_or(now));
    }
    memory.seen = seen;
    let wanted: HashSet<u32> = placed
        .iter()
        .filter(|placed| wishes.iter().any(|wish| wish.filter.fits(placed)))
        .map(|placed| placed.flow.inode)
        .filter(|inode| *inode != 0)
        .collect();
    let found = holders(&wanted, &search.cgroups, search.uid, &mut memory.holders);
    let mut notes = Vec::new();
    if found.cut_short {
        notes.push(
            "there are too many processes to look at all of them: of some flows none is shown"
                .to_owned(),
        );
    }
    if let Some(words) = not_counted {
        notes.push(format!("flows other than TCP's are not counted: {words}"));
    }
    let told = wishes.iter().map(|wish| Told {
        serial: wish.serial,
        reply: FlowsReply {
            notes: notes.clone(),
            ..wish.reply(placed, &found, &memory, now, counted_since)
        },
    });
    (told.collect(), memory)
}

impl Wish {
    fn reply(
        &self,
        placed: &[Placed],
        found: &Holders,
        memory: &Memory,
        now: u64,
        counted_since: Option<&str>,
    ) -> FlowsReply {
        let filter = &*self.filter;
        let mut flows = Vec::new();
        for placed in placed.iter().filter(|placed| filter.fits(placed)) {
            let all = found
                .of
                .get(&placed.flow.inode)
                .map_or(&[][..], Vec::as_slice);
            let holders = filter.holders(all);
            // Its socket's user is not enough: a process of another may have got it and use it.
            if filter.uid.is_some() && holders.is_empty() {
                continue;
            }
            let pid = |pid: i32| holders.iter().any(|holder| holder.pid == pid);
            if filter.pid.is_some_and(|wanted| !pid(wanted)) {
                continue;
            }
            let first = memory.seen.get(&placed.flow.cookie).copied().unwrap_or(now);
            let mut view = view(placed, &holders, first, now, counted_since);
            if let (Some(sees), Some(name)) = (&self.sees, &placed.policy)
                && !sees.contains(name)
            {
                view.policy = None;
            }
            flows.push(view);
        }
        filter.order.sort(&mut flows);
        let omitted = flows.len().saturating_sub(filter.limit);
        flows.truncate(filter.limit);
        FlowsReply {
            flows,
            omitted: omitted as u64,
            notes: Vec::new(),
        }
    }
}

fn view(
    placed: &Placed,
    holders: &[&Holder],
    first_seen: u64,
    now: u64,
    counted_since: Option<&str>,
) -> LiveFlowView {
    let flow = &placed.flow;
    let decided = flow.state.map(|state| u64::from(state.since));
    let decided = decided.filter(|since| *since != 0);
    // What is not counted yet has sent nothing since.
    let counted = counted_since.map(|_| placed.counted.unwrap_or_default());
    let carried = match (flow.carried, counted) {
        (Some(tcp), _) => Some(FlowCount {
            sent_bytes: tcp.bytes_out,
            sent_packets: tcp.packets_out.into(),
            received_bytes: tcp.bytes_in,
            received_packets: tcp.packets_in.into(),
            ..FlowCount::default()
        }),
        (None, counted) => counted,
    };
    let mut processes: Vec<HolderView> = holders
        .iter()
        .map(|holder| HolderView {
            pid: holder.pid.unsigned_abs(),
            command: holder.command.clone(),
        })
        .collect();
    processes.sort();
    LiveFlowView {
        id: format!("{:x}", flow.cookie),
        protocol: match flow.transport {
            Transport::Tcp => "tcp",
            Transport::Udp => "udp",
            Transport::UdpLite => "udplite",
        }
        .to_owned(),
        state: match flow.phase {
            FlowPhase::Opening => "opening",
            FlowPhase::Open => "open",
            FlowPhase::Closing => "closing",
            FlowPhase::Unconnected => "unconnected",
        }
        .to_owned(),
        processes,
        uid: flow.uid,
        cgroup: placed.cgroup.clone(),
        policy: placed.policy.as_ref().map(ToString::to_string),
        whereabouts: placed.whereabouts,
        domain: placed.domain.as_ref().map(ToString::to_string),
        wrong: placed.wrong.clone(),
        interface: placed.interface.clone(),
        source: placed.source.map(|ip| ip.to_string()),
        source_port: Some(flow.local.port())
            .filter(|port| *port != 0)
            .map(u32::from),
        destination: placed.destination.map(|(ip, _)| ip.to_string()),
        destination_port: placed.destination.map(|(_, port)| u32::from(port)),
        sent_bytes: carried.map(|carried| carried.sent_bytes),
        sent_packets: carried.map(|carried| carried.sent_packets),
        received_bytes: carried.map(|carried| carried.received_bytes),
        received_packets: carried.map(|carried| carried.received_packets),
        counted_since: counted_since
            .filter(|_| flow.carried.is_none())
            .map(str::to_owned),
        age: now.saturating_sub(decided.unwrap_or(first_seen)),
        age_exact: decided.is_some(),
    }
}
