//! What the API tells of a flow: `Explain`.
//!
//! Unlike elsewhere, lists here are in the order in which things are decided.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use zlink::introspect::{CustomType, Type};

use super::methods::Method;
use super::types::{DecisionView, DomainView, Origin, Verdict};

/// Explains what happens to the flows of a process or cgroup, and why. Without a process, cgroup or unit:
/// those of the caller.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, Type)]
pub struct Explain {
    /// A process.
    pub pid: Option<u32>,
    /// A cgroup, as in /proc/PID/cgroup. One that does not exist is explained as if it were made now.
    pub cgroup: Option<String>,
    /// A unit that has a cgroup.
    pub unit: Option<String>,
    /// Address that a flow goes to; a link-local one may name its interface (fe80::1%wlan0).
    pub destination: Option<String>,
    /// Port that it goes to.
    pub port: Option<u32>,
    /// Transport protocol of the flow: a name such as `udp`, or a number. Absent: `tcp`.
    pub protocol: Option<String>,
    /// Code point that the program asks for: a name such as `EF`, or a number. Absent: `CS0`.
    pub dscp: Option<String>,
    /// Only this family. Absent: both, or the destination's.
    pub family: Option<AddressFamily>,
    /// Tell too what would be chosen if this domain were not there.
    pub without: Option<String>,
}

/// What is known of it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, Type)]
pub struct ExplainReply {
    /// Everything.
    pub explanation: ExplanationView,
}

impl Method for Explain {
    const NAME: &'static str = "Explain";
    const ABOUT: &'static str = "Explains what happens to the flows of a process or cgroup, and why. \
                                 Without a process, cgroup or unit: those of the caller.";
    type Reply = ExplainReply;
}

/// A family of addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, CustomType, JsonSchema)]
#[serde(rename_all = "lowercase")]
#[zlink(rename_all = "lowercase")]
pub enum AddressFamily {
    /// IPv4.
    Ipv4,
    /// IPv6.
    Ipv6,
}

/// What was asked about.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, CustomType, JsonSchema)]
#[zlink(rename = "Subject")]
#[schemars(rename = "Subject")]
pub struct SubjectView {
    /// The process, if it was one; the caller if nothing was named.
    pub pid: Option<u32>,
    /// Its name.
    pub command: Option<String>,
    /// Its user.
    pub uid: Option<u32>,
    /// Whether it is the caller itself, since nothing was named.
    pub caller: bool,
    /// The unit, if it was one.
    pub unit: Option<String>,
}

/// What would be chosen if a domain were not there.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, CustomType, JsonSchema)]
#[zlink(rename = "Without")]
#[schemars(rename = "Without")]
pub struct WithoutView {
    /// The domain.
    pub domain: String,
    /// What would be chosen, with every candidate.
    pub decision: DecisionView,
}

/// Whether a policy that matches holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, CustomType, JsonSchema)]
#[serde(rename_all = "snake_case")]
#[zlink(rename_all = "snake_case")]
pub enum Standing {
    /// It decides.
    InForce,
    /// It decides where those before it leave it to the next (`otherwise = "next"`).
    Next,
    /// It would hold if those before it did not exist.
    Behind,
    /// It and another are equal, which is a mistake, and the other applies.
    Equal,
    /// A strict policy of a higher origin leaves it no room.
    ShutOut,
}

/// A policy that matches the cgroup or one above it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, CustomType, JsonSchema)]
#[zlink(rename = "Contender")]
#[schemars(rename = "Contender")]
pub struct ContenderView {
    /// Name of the policy.
    pub policy: String,
    /// Who wrote it.
    pub origin: Origin,
    /// Its priority.
    pub priority: i64,
    /// Whether it is strict.
    pub strict: bool,
    /// The cgroup that it matches. Absent: it is the default.
    pub cgroup: Option<String>,
    /// What of it matches: `cgroup PATTERN`, `unit UNIT` or `id ID`.
    pub matches: Vec<String>,
    /// Whether it holds.
    pub standing: Standing,
    /// Why, in one sentence.
    pub reason: String,
}

/// A policy rule, as `ip rule` prints it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, CustomType, JsonSchema)]
#[zlink(rename = "Rule")]
#[schemars(rename = "Rule")]
pub struct RuleView {
    /// Its priority.
    pub priority: u32,
    /// Its text.
    pub text: String,
}

/// How flows of one family are put on the domain.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, CustomType, JsonSchema)]
#[zlink(rename = "FamilyPath")]
#[schemars(rename = "FamilyPath")]
pub struct FamilyPathView {
    /// The family.
    pub family: AddressFamily,
    /// Their source. Absent: the domain cannot have flows of this family, and they are refused.
    pub source: Option<String>,
    /// The rule that their mark matches.
    pub rule: Option<RuleView>,
}

/// What becomes of a flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, CustomType, JsonSchema)]
#[serde(rename_all = "lowercase")]
#[zlink(rename_all = "lowercase")]
pub enum FlowOutcome {
    /// It is put on the domain.
    Steered,
    /// It is refused at once.
    Refused,
    /// It is not refused, but the guard drops its packets.
    Dropped,
    /// It is left to the host's ordinary routing.
    Passed,
    /// It is in a network of another interface, and left to the host's ordinary routing.
    Local,
    /// No policy moves flows to this destination.
    Never,
}

/// A flow to the destination.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, CustomType, JsonSchema)]
#[zlink(rename = "Flow")]
#[schemars(rename = "Flow")]
pub struct FlowView {
    /// The destination.
    pub destination: String,
    /// Its port.
    pub port: Option<u32>,
    /// Its transport protocol.
    pub protocol: String,
    /// What becomes of it.
    pub outcome: FlowOutcome,
    /// Why, in one sentence.
    pub reason: String,
    /// The rules of policies that decide it, in the order in which they are asked: `POLICY rule N: TEXT`.
    /// Empty: no rule fits.
    pub decided_by: Vec<String>,
    /// The error that the program sees, if it is refused.
    pub error: Option<String>,
    /// The domain that it is put on. Where flows are spread over several: one of these.
    pub domain: Option<String>,
    /// The interface that it leaves by, as planned; where the plan leaves that to the host, as the kernel
    /// says.
    pub interface: Option<String>,
    /// Its source, likewise.
    pub source: Option<String>,
    /// The gateway, likewise. Absent: on-link.
    pub gateway: Option<String>,
    /// The table, likewise.
    pub table: Option<u32>,
    /// The mark of its socket, in hexadecimal, if it has one of steer's.
    pub mark: Option<String>,
    /// The rule of steer's that its packets match.
    pub rule: Option<RuleView>,
    /// What the kernel says. Absent: it is not asked about what is refused before that.
    pub kernel: Option<KernelView>,
}

/// What the kernel answers when it is asked for the route (`ip route get`).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, CustomType, JsonSchema)]
#[zlink(rename = "KernelRoute")]
#[schemars(rename = "KernelRoute")]
pub struct KernelView {
    /// The question, as a command.
    pub asked: String,
    /// Whether the answer is as planned. Absent: the plan leaves it to the host.
    pub agrees: Option<bool>,
    /// Why it has no route.
    pub error: Option<String>,
    /// The interface.
    pub interface: Option<String>,
    /// The source.
    pub source: Option<String>,
    /// The gateway; absent: on-link.
    pub gateway: Option<String>,
    /// The table.
    pub table: Option<u32>,
}

/// What the kernel maps hold for the cgroup.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, CustomType, JsonSchema)]
#[zlink(rename = "MapEntries")]
#[schemars(rename = "MapEntries")]
pub struct MapEntriesView {
    /// Whether it is what the agent wants there.
    pub agrees: bool,
    /// Whether the cgroup has an entry of its own.
    pub entry: bool,
    /// Flags of that, by name.
    pub flags: Vec<String>,
    /// Number of its policy; 0: none.
    pub policy: u32,
    /// Whether that is strict.
    pub strict: bool,
    /// Number of the policy's choice; 0: none.
    pub choice: u32,
    /// What that says. Absent: there is no choice.
    pub verdict: Option<Verdict>,
    /// Index of the domain; 0: none.
    pub domain: u32,
    /// Mark of that, in hexadecimal.
    pub mark: Option<String>,
    /// Interface of that.
    pub interface: Option<String>,
}

/// What happens to the flows of a process or cgroup, and why.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, CustomType, JsonSchema)]
#[zlink(rename = "Explanation")]
#[schemars(rename = "Explanation")]
pub struct ExplanationView {
    /// The answer in one sentence.
    pub summary: String,
    /// What was asked about.
    pub subject: SubjectView,
    /// Its cgroup, as in /proc/PID/cgroup.
    pub cgroup: String,
    /// The cgroup's id. Absent: there is no such cgroup now.
    pub cgroup_id: Option<u64>,
    /// Why no policy can hold there, if so.
    pub unmanaged: Option<String>,
    /// The policy in force.
    pub policy: Option<String>,
    /// Every policy that matches, in the order of precedence.
    pub contenders: Vec<ContenderView>,
    /// The policy in force, and those behind it by `otherwise = "next"`.
    pub chain: Vec<String>,
    /// What was chosen for it, with every candidate.
    pub decision: Option<DecisionView>,
    /// The domain that was chosen.
    pub domain: Option<DomainView>,
    /// How its flows are put on that, family by family.
    pub paths: Vec<FamilyPathView>,
    /// Whether flows leave by the policy's domains or not at all.
    pub strict: bool,
    /// What a program may not do then.
    pub forbids: Vec<String>,
    /// A flow to the destination, if one was named.
    pub flow: Option<FlowView>,
    /// What would be chosen without the domain that was named for that.
    pub without: Option<WithoutView>,
    /// What the kernel maps hold. Absent: there is no such cgroup now.
    pub maps: Option<MapEntriesView>,
    /// What else is worth knowing.
    pub notes: Vec<String>,
    /// Where the kernel does not do what was planned, and what to do.
    pub warnings: Vec<String>,
}
