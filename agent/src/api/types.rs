//! What the API shows of policies, domains and the agent, as it stands on the wire.
//!
//! Every field is always present (`null` where there is nothing to say), and lists are sorted by
//! name, so that two answers can be compared.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use zlink::introspect::CustomType;

/// Who wrote a policy or a domain.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, CustomType, JsonSchema)]
#[serde(rename_all = "lowercase")]
#[zlink(rename_all = "lowercase")]
pub enum Origin {
    /// An application, for itself.
    App,
    /// A user, over the API: whoever calls, root too.
    User,
    /// The host's administrator, in a file.
    Admin,
    /// The operator of a fleet.
    Operator,
    /// The agent itself: found on the host or built in.
    Default,
}

/// What becomes of a flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, CustomType, JsonSchema)]
#[serde(rename_all = "lowercase")]
#[zlink(rename_all = "lowercase")]
pub enum Verdict {
    /// It leaves by a domain.
    Steer,
    /// It is refused at once, with an error.
    Block,
    /// It is left to the host's ordinary routing.
    Pass,
}

/// What becomes of a policy's flows when none of its domains fits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, CustomType, JsonSchema)]
#[serde(rename_all = "lowercase")]
#[zlink(rename_all = "lowercase")]
pub enum Otherwise {
    /// They are refused.
    Block,
    /// They are left to the host's ordinary routing.
    Pass,
    /// The policy decides that would apply if this one did not exist.
    Next,
}

/// What becomes of flows to networks that other interfaces are attached to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, CustomType, JsonSchema)]
#[serde(rename_all = "lowercase")]
#[zlink(rename_all = "lowercase")]
pub enum LocalNetworks {
    /// They are left to the host's ordinary routing.
    Pass,
    /// They are steered like all others.
    Steer,
}

/// A domain that a policy may use, and what the agent made of it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, CustomType, JsonSchema)]
pub struct Candidate {
    /// Name of the domain.
    pub domain: String,
    /// Whether it is the one taken.
    pub taken: bool,
    /// Why it was taken or not.
    pub reason: String,
}

/// A domain that may be chosen.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, CustomType, JsonSchema)]
pub struct Choice {
    /// Name of the domain.
    pub domain: String,
    /// Kind of its interface: wired, wlan, cellular, vpn or other.
    pub kind: String,
    /// State: `up` when flows can be put on it, else a word for what is missing.
    pub state: String,
    /// That state in one sentence.
    pub reason: String,
    /// What it costs to use it: the lower, the cheaper.
    pub cost: u32,
    /// Whether what is sent by it is paid for or limited.
    pub metered: bool,
}

/// How a policy's flows are spread over several domains.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, CustomType, JsonSchema)]
#[serde(rename_all = "lowercase")]
#[zlink(rename_all = "lowercase")]
pub enum Share {
    /// Each flow by itself.
    Flow,
    /// All flows to one destination alike.
    Destination,
}

/// A domain that flows are spread over.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, CustomType, JsonSchema)]
pub struct Member {
    /// Name of the domain.
    pub domain: String,
    /// Its part of the flows, beside those of the other members.
    pub weight: u32,
}

/// What the agent chose for a policy now, and why.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, CustomType, JsonSchema)]
#[zlink(rename = "Decision")]
#[schemars(rename = "Decision")]
pub struct DecisionView {
    /// What becomes of the policy's flows.
    pub verdict: Verdict,
    /// The domain that they leave by.
    pub domain: Option<String>,
    /// Name of that domain's interface.
    pub interface: Option<String>,
    /// Source address of their IPv4 packets.
    pub source4: Option<String>,
    /// Source address of their IPv6 packets.
    pub source6: Option<String>,
    /// The domains that flows are spread over, `domain` among them; empty: `domain` has them all.
    pub members: Vec<Member>,
    /// Why, in one sentence.
    pub reason: String,
    /// Since when it is so: RFC 3339, UTC. Not known of a policy that is in force for no cgroup.
    pub since: Option<String>,
    /// The domains looked at, in the policy's order.
    pub candidates: Vec<Candidate>,
}

/// What became of live flows whose decision changed, or that are older than their policy.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, CustomType, JsonSchema)]
#[zlink(rename = "Sessions")]
#[schemars(rename = "Sessions")]
pub struct SessionsView {
    /// How many are kept, now, although new ones leave by another domain.
    pub kept: u64,
    /// How many were moved to another domain.
    pub moved: u64,
    /// How many were ended, so that the application connects again.
    pub reset: u64,
    /// How many should have been ended, now, and could not be.
    pub failed: u64,
    /// When one was moved or ended last: RFC 3339, UTC.
    pub changed: Option<String>,
}

/// A rule of a policy, and what was chosen for the flows that it fits.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, CustomType, JsonSchema)]
#[zlink(rename = "PolicyRule")]
#[schemars(rename = "PolicyRule")]
pub struct PolicyRuleView {
    /// The policy that has it: this one, or one behind it by `otherwise = "next"`.
    pub policy: String,
    /// Its place there, from 1.
    pub number: u64,
    /// What it fits, and what it wants.
    pub text: String,
    /// What becomes of its flows.
    pub verdict: Verdict,
    /// The domain that they leave by.
    pub domain: Option<String>,
    /// The domains that they are spread over, `domain` among them; empty: `domain` has them all.
    pub members: Vec<Member>,
    /// Why, in one sentence.
    pub reason: String,
}

/// A policy and what came of it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, CustomType, JsonSchema)]
#[zlink(rename = "Policy")]
#[schemars(rename = "Policy")]
pub struct PolicyView {
    /// Name of the policy.
    pub name: String,
    /// Who wrote it.
    pub origin: Origin,
    /// Id of the plain user whose it is; none: the administrators'.
    pub owner: Option<u32>,
    /// Cgroup paths and patterns that it matches, as in /proc/PID/cgroup.
    pub cgroup: Vec<String>,
    /// Units that it matches.
    pub unit: Vec<String>,
    /// Domains and groups that it may use, in this order.
    #[serde(rename = "use")]
    #[zlink(rename = "use")]
    pub use_: Vec<String>,
    /// The domains that it can use: `use` with groups replaced by theirs. Not known while no agent runs.
    pub domains: Vec<String>,
    /// The one of them that comes first because somebody prefers it (`Prefer`).
    pub preferred: Option<String>,
    /// Whether its flows leave by its domains or not at all.
    pub strict: bool,
    /// What becomes of its flows when no domain fits. Not known while no agent runs, if that kept no
    /// record.
    pub otherwise: Option<Otherwise>,
    /// What becomes of its flows to other interfaces' networks.
    pub local_networks: LocalNetworks,
    /// How its flows are spread over the members of what it uses; none: one domain has them all.
    pub share: Option<Share>,
    /// How many rules it has that are finer than the application. Not known of a policy in a file while no
    /// agent runs, unless there are none.
    pub rules: Option<u64>,
    /// Where one policy is shown: what its rules, and those of the policies behind it, decide now, in the
    /// order in which they are asked; at most the first 1,000.
    pub rule_decisions: Option<Vec<PolicyRuleView>>,
    /// Which policy wins on the same cgroup: the higher. Not known of a policy in a file while no agent
    /// runs.
    pub priority: Option<i64>,
    /// Whether it is kept in a file over a restart of the host.
    pub saved: bool,
    /// Number of cgroups on which it is in force.
    pub cgroups: u64,
    /// What was chosen for it.
    pub decision: DecisionView,
    /// What became of its live flows since it was set, or since the host was started. Not known while no
    /// agent runs.
    pub sessions: Option<SessionsView>,
    /// Why it is not in force on every cgroup that it matches although it is valid: another policy of
    /// its origin and priority is there, or the kernel refused it, in the kernel's words.
    pub quarantined: Option<String>,
    /// What to choose from, as long as the policy's command waits for an answer (`Run` with `ask`).
    pub question: Option<Vec<Choice>>,
    /// How much was sent for it, by each domain; domains by their names, and what left by none of them last.
    /// Not told to plain users of policies that are not theirs.
    pub traffic: Option<Vec<TrafficView>>,
    /// Where one policy is shown: why it is in force on none of the cgroups that it matches, or not on
    /// all, although nothing is wrong. No cgroup matches now, or another policy overrules it.
    pub note: Option<String>,
}

/// How much was sent. Counted by the guards over restarts of the agent, until `steer detach` or an upgrade to a
/// version that counts otherwise.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, CustomType, JsonSchema)]
#[zlink(rename = "Traffic")]
#[schemars(rename = "Traffic")]
pub struct TrafficView {
    /// The domain that it left by, or should have left by where it was wrong or dropped. Absent: none, since
    /// the host's own routing or the application itself decided.
    pub domain: Option<String>,
    /// Packets that left, as on the wire.
    pub packets: u64,
    /// Their bytes, as the interface counts them.
    pub bytes: u64,
    /// Packets of these that left by another interface or with another source than the domain's.
    pub wrong: u64,
    /// Packets that a guard dropped.
    pub dropped: u64,
    /// Since when it is counted: RFC 3339, UTC.
    pub since: Option<String>,
}

/// A provisioning domain.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, CustomType, JsonSchema)]
#[zlink(rename = "Domain")]
#[schemars(rename = "Domain")]
pub struct DomainView {
    /// Name of the domain.
    pub name: String,
    /// Another name that it answers to: its interface's, when a file named it otherwise.
    pub alias: Option<String>,
    /// Who wrote it; `default` if it was found on the host.
    pub origin: Origin,
    /// Name of its interface, if that is there.
    pub interface: Option<String>,
    /// Index of its interface, if that is there.
    pub ifindex: Option<u32>,
    /// Kind of its interface: wired, wlan, cellular, vpn or other.
    pub kind: String,
    /// What it costs to use it: the lower, the cheaper.
    pub cost: u32,
    /// Whether what is sent by it is paid for or limited.
    pub metered: bool,
    /// How far what is sent by it is protected: `open`, `protected` or `encrypted`.
    pub security: String,
    /// What it carries, bit/s, as the files say.
    pub bandwidth: Option<u64>,
    /// A name by which policies may require it.
    pub profile: Option<String>,
    /// State: `absent`, `down`, `configuring`, `up` (nothing was checked), `validated`, `portal` or `limited`.
    pub state: String,
    /// That state in one sentence.
    pub reason: String,
    /// Since when it is in that state: RFC 3339, UTC.
    pub since: Option<String>,
    /// Where to log in, while a portal answers in place of others.
    pub portal: Option<String>,
    /// What its checks ask: `http://...`, `dns NAME`, `tcp HOST:PORT`, `icmp HOST`.
    pub check: Vec<String>,
    /// What they measured, since it is attached as it is.
    pub measured: MeasuredView,
    /// The WLAN that it is connected to. What is no visible character is `\\xNN`, byte by byte.
    pub ssid: Option<String>,
    /// The connection of NetworkManager that is up on its interface, or the operator of its modem.
    pub connection: Option<String>,
    /// What it is attached to: the name of its WLAN; of a modem or VPN, its connection; else hardware address and
    /// prefix of its gateway, once known.
    pub network: Option<String>,
    /// What is remembered of that network.
    pub history: Option<NetworkView>,
    /// Its name servers, which its checks ask.
    pub servers: Vec<String>,
    /// Its addresses.
    pub addresses: Vec<String>,
    /// Its gateways.
    pub gateways: Vec<String>,
    /// Its index, once a policy can choose it.
    pub index: Option<u32>,
    /// The mark of its flows, in hexadecimal, once a policy can choose it.
    pub mark: Option<String>,
    /// Its routing table, once a policy can choose it.
    pub table: Option<u32>,
    /// How much was sent by it for policies. Not told to plain users.
    pub traffic: Option<TrafficView>,
    /// The host model of its interface, if that is there.
    pub host_model: Option<HostModelView>,
}

/// What was measured of a domain.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, CustomType, JsonSchema)]
#[zlink(rename = "Measured")]
#[schemars(rename = "Measured")]
pub struct MeasuredView {
    /// Smoothed round-trip time, microseconds.
    pub latency_us: Option<u64>,
    /// How much it varies, microseconds.
    pub jitter_us: Option<u64>,
    /// Part of the last questions without an answer, thousandths.
    pub loss_permille: Option<u64>,
    /// The most that it was seen to carry in one direction between two checks, bit/s: it may carry more.
    pub bandwidth: Option<u64>,
    /// The rate of its link, bit/s: at which a wire is connected (where one domain is shown), or was sent last to an
    /// access point. No bound on what the path carries.
    pub link_rate: Option<u64>,
    /// How strong its access point is heard, dBm.
    pub signal_dbm: Option<i64>,
    /// How well its modem hears its network, percent.
    pub signal_percent: Option<u64>,
    /// How often it was lost in the last ten minutes.
    pub losses: u64,
}

/// What is remembered of a network.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, CustomType, JsonSchema)]
#[zlink(rename = "Network")]
#[schemars(rename = "Network")]
pub struct NetworkView {
    /// When it was well for the first time: RFC 3339, UTC.
    pub first_good: Option<String>,
    /// When it was well last.
    pub last_good: Option<String>,
    /// How often it failed since then.
    pub failures: u64,
}

/// Something that changed: a domain's state, or a policy's decision.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, CustomType, JsonSchema)]
#[zlink(rename = "Change")]
#[schemars(rename = "Change")]
pub struct ChangeView {
    /// When: RFC 3339 with milliseconds, UTC.
    pub time: String,
    /// The policy, if its decision changed.
    pub policy: Option<String>,
    /// Number of the policy's rule whose decision it is, from 1. Absent: for what no rule fits.
    pub rule: Option<u64>,
    /// The domain whose state changed; or the one that was chosen, if any.
    pub domain: Option<String>,
    /// The state that it is in, or `steer`, `block` or `pass`; or `ended` or `quarantined`, of a policy that was in
    /// force.
    pub state: String,
    /// What it was before: a state, or the domain or verdict.
    pub was: Option<String>,
    /// Why, in one sentence.
    pub reason: String,
    /// Where more policies changed in the same way than are told one by one: how many.
    pub more: Option<u64>,
}

/// Whether an interface takes and sends what bears addresses of other interfaces.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, CustomType, JsonSchema)]
#[zlink(rename = "HostModel")]
#[schemars(rename = "HostModel")]
pub struct HostModelView {
    /// `kernel`, `weak`, `strong` or `count`.
    pub model: String,
    /// Packets that arrived for an address of another interface: dropped by `strong`, counted by `count`.
    pub received: u64,
    /// ARP requests that arrived for one.
    pub asked: u64,
    /// Packets of the host that were to leave with one.
    pub sent: u64,
}

/// The agent and all it does.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, CustomType, JsonSchema)]
#[zlink(rename = "Status")]
#[schemars(rename = "Status")]
pub struct StatusView {
    /// Version of the agent, or of the command where no agent runs.
    pub version: String,
    /// Whether an agent runs. If not, the decisions shown are those it left in force. (What the command
    /// shows without an answer has no `since`.)
    pub agent_running: bool,
    /// When it started: RFC 3339, UTC.
    pub since: Option<String>,
    /// When the agent that left these decisions was last seen to run: RFC 3339, UTC. Exact if it ended by
    /// itself; one that was killed may have run up to 30 seconds longer. Only while no agent runs.
    pub last_seen: Option<String>,
    /// Root of the managed cgroup tree.
    pub cgroup_root: String,
    /// Kernel hooks in place.
    pub hooks: Vec<String>,
    /// Names of the interfaces that have a guard.
    pub guards: Vec<String>,
    /// All policies.
    pub policies: Vec<PolicyView>,
    /// All domains.
    pub domains: Vec<DomainView>,
    /// What became of live flows since the host was started. For administrators, and not known while no
    /// agent runs.
    pub sessions: Option<SessionsView>,
    /// Counters of the kernel programs, by name.
    pub counters: BTreeMap<String, u64>,
    /// What the administrator should know.
    pub warnings: Vec<String>,
}

impl StatusView {
    /// Puts every list into its order: by name.
    pub fn sort(&mut self) {
        self.hooks.sort();
        self.guards.sort();
        self.policies.sort_by(|a, b| a.name.cmp(&b.name));
        self.domains.sort_by(|a, b| a.name.cmp(&b.name));
    }
}
