//! What the API tells of live flows: `ListFlows`.

use std::net::IpAddr;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use zlink::introspect::{CustomType, Type};

use super::explain::AddressFamily;
use super::methods::Method;

/// Flows of one answer, unless the call says otherwise.
pub const USUAL_FLOWS: u32 = 1_000;

/// Most flows of one answer.
pub const MOST_FLOWS: u32 = 10_000;

/// Lists the live flows of policies. A plain user is told of those alone that its own processes have.
/// With `more`: again each second, until the caller goes.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, Type)]
pub struct ListFlows {
    /// Only this policy's.
    pub policy: Option<String>,
    /// Only those that leave by this domain.
    pub domain: Option<String>,
    /// Only those of this cgroup and of those below it, as in /proc/PID/cgroup.
    pub cgroup: Option<String>,
    /// Only those of this process.
    pub pid: Option<u32>,
    /// Only those to this address, or into this prefix (192.0.2.0/24).
    pub destination: Option<String>,
    /// Only those to this port.
    pub port: Option<u32>,
    /// Only this family.
    pub family: Option<AddressFamily>,
    /// Also flows that no policy has. Absent: false.
    pub all: Option<bool>,
    /// What comes first. Absent: policy.
    pub order: Option<FlowOrder>,
    /// How many flows to tell of, at most 10000; `omitted` counts the others. Absent: 1000.
    pub limit: Option<u32>,
}

/// In which order flows are told. What it leaves equal is in the order of policy, process, protocol,
/// destination, source and id.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, CustomType, JsonSchema,
)]
#[serde(rename_all = "lowercase")]
#[zlink(rename_all = "lowercase")]
pub enum FlowOrder {
    /// By the name of the policy; flows without one are last.
    #[default]
    Policy,
    /// Most bytes, sent and received, first.
    Bytes,
    /// Youngest first.
    Age,
}

/// The live flows.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, Type, JsonSchema)]
#[schemars(rename = "Flows")]
pub struct FlowsReply {
    /// In the order that was asked for.
    pub flows: Vec<LiveFlowView>,
    /// How many more there are than `limit`.
    pub omitted: u64,
    /// What could not be found out, if anything: one sentence each.
    pub notes: Vec<String>,
}

impl Method for ListFlows {
    const NAME: &'static str = "ListFlows";
    const ABOUT: &'static str = "Lists the live flows of policies; a plain user is told of those alone \
                                 that its own processes have. With `more`: again each second, until the \
                                 caller goes.";
    type Reply = FlowsReply;
}

/// Where a flow is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, CustomType, JsonSchema)]
#[serde(rename_all = "lowercase")]
#[zlink(rename_all = "lowercase")]
pub enum Whereabouts {
    /// It leaves by a domain.
    Steered,
    /// It is left to the host's ordinary routing.
    Host,
    /// Not where its policy has it, and the guard counts it or, if the policy is strict, drops it.
    Wrong,
}

/// A process that has a flow's socket.
#[derive(
    Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, CustomType, JsonSchema,
)]
#[zlink(rename = "Holder")]
#[schemars(rename = "Holder")]
pub struct HolderView {
    /// Its number.
    pub pid: u32,
    /// Its name.
    pub command: String,
}

/// A flow: a socket that talks to somebody.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, CustomType, JsonSchema)]
#[zlink(rename = "LiveFlow")]
#[schemars(rename = "LiveFlow")]
pub struct LiveFlowView {
    /// Its socket's cookie in hexadecimal: no other socket has it until the host restarts.
    pub id: String,
    /// tcp, udp or udplite.
    pub protocol: String,
    /// `opening`, `open` or `closing`; or `unconnected`: it may send to anybody, and `destination` is who
    /// it sent to last.
    pub state: String,
    /// Who has the socket: the processes that were found.
    pub processes: Vec<HolderView>,
    /// Id of the user whose socket it is.
    pub uid: u32,
    /// Path of the cgroup that made the socket, as in /proc/PID/cgroup.
    pub cgroup: Option<String>,
    /// The policy whose it is.
    pub policy: Option<String>,
    /// Where it is.
    pub whereabouts: Whereabouts,
    /// The domain that it leaves by; where it is wrong, the one that it should leave by.
    pub domain: Option<String>,
    /// What is wrong, in one sentence.
    pub wrong: Option<String>,
    /// Name of the interface that it left by last; else of the one that has its source address.
    pub interface: Option<String>,
    /// Its own address.
    pub source: Option<String>,
    /// Its own port.
    pub source_port: Option<u32>,
    /// The other end's address.
    pub destination: Option<String>,
    /// The other end's port.
    pub destination_port: Option<u32>,
    /// Bytes that the application sent, without headers and repetitions. Not known until somebody asks
    /// for flows, of what TCP does not count.
    pub sent_bytes: Option<u64>,
    /// Packets that went out; of TCP segments, with repetitions.
    pub sent_packets: Option<u64>,
    /// Bytes that arrived for the application, without headers and repetitions.
    pub received_bytes: Option<u64>,
    /// Packets that came in; of TCP segments.
    pub received_packets: Option<u64>,
    /// Since when its bytes are counted: RFC 3339, UTC. TCP counts from the beginning of the connection,
    /// and has none.
    pub counted_since: Option<String>,
    /// Age of the flow, seconds.
    pub age: u64,
    /// Whether that is its age; else it is older, and was first seen then.
    pub age_exact: bool,
}

/// By what flows are put into order.
type Key<'a> = (
    (bool, Option<&'a str>),
    Option<u32>,
    &'a str,
    Option<IpAddr>,
    Option<u32>,
    Option<IpAddr>,
    Option<u32>,
    &'a str,
);

impl FlowOrder {
    /// Puts flows into this order, which is total.
    pub fn sort(self, flows: &mut [LiveFlowView]) {
        flows.sort_by(|a, b| {
            let first = match self {
                Self::Policy => std::cmp::Ordering::Equal,
                Self::Bytes => b.bytes().cmp(&a.bytes()),
                Self::Age => a.age.cmp(&b.age),
            };
            first.then_with(|| a.key().cmp(&b.key()))
        });
    }
}

impl LiveFlowView {
    /// Bytes in both directions, as far as they are known.
    pub fn bytes(&self) -> u64 {
        let [sent, received] =
            [self.sent_bytes, self.received_bytes].map(Option::unwrap_or_default);
        sent.saturating_add(received)
    }

    fn key(&self) -> Key<'_> {
        let address = |text: &Option<String>| text.as_deref().and_then(|text| text.parse().ok());
        (
            (self.policy.is_none(), self.policy.as_deref()),
            self.processes.first().map(|process| process.pid),
            &self.protocol,
            address(&self.destination),
            self.destination_port,
            address(&self.source),
            self.source_port,
            &self.id,
        )
    }
}
