//! The methods of the API: what is asked, what is answered.

use schemars::JsonSchema;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use zlink::introspect::Type;

use super::explain::{Explain, ExplainReply, ExplanationView};
use super::flows::{FlowsReply, ListFlows};
use super::mistake::Mistake;
use super::types::{
    ChangeView, Choice, DomainView, LocalNetworks, Otherwise, PolicyView, SessionsView, StatusView,
};

/// A method, by its parameters.
pub trait Method: Serialize + DeserializeOwned + Type {
    /// Name, without the interface.
    const NAME: &'static str;
    /// What it does, for the description of the interface.
    const ABOUT: &'static str;
    /// What is answered.
    type Reply: Serialize + DeserializeOwned + Type;
}

/// Makes a policy, or replaces the one of that name. Answered when it is in force.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, Type)]
pub struct SetPolicy {
    /// Name of the policy.
    pub name: String,
    /// Cgroup paths and patterns, as in /proc/PID/cgroup.
    pub cgroup: Vec<String>,
    /// Units.
    pub unit: Vec<String>,
    /// A process: its cgroup; for a plain user one of its own, which the agent makes for it.
    pub pid: Option<u32>,
    /// Domains and groups, in order.
    #[serde(rename = "use")]
    #[zlink(rename = "use")]
    pub use_: Vec<String>,
    /// Its flows leave by these domains or not at all. Absent: false.
    pub strict: Option<bool>,
    /// What becomes of its flows when no domain fits. Absent: block.
    pub otherwise: Option<Otherwise>,
    /// What becomes of its flows to other interfaces' networks. Absent: steer if strict, else pass.
    pub local_networks: Option<LocalNetworks>,
    /// Which policy wins on the same cgroup: the higher. Absent: 0.
    pub priority: Option<i64>,
    /// Keep it in a file. Absent: false.
    pub save: Option<bool>,
}

/// Removes a policy.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, Type)]
pub struct UnsetPolicy {
    /// Name of the policy.
    pub name: String,
    /// Remove it from the file that keeps it, too. Absent: false.
    pub save: Option<bool>,
}

/// Shows all policies.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, Type)]
pub struct ListPolicies {}

/// Shows one policy.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, Type)]
pub struct ShowPolicy {
    /// Name of the policy.
    pub name: String,
}

/// Shows all domains.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, Type)]
pub struct ListDomains {}

/// Shows one domain.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, Type)]
pub struct ShowDomain {
    /// Name of the domain, or its alias.
    pub name: String,
}

/// Shows the agent and all it does.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, Type)]
pub struct Status {}

/// Puts the calling process into a cgroup of its own with a policy of its own.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, Type)]
pub struct Run {
    /// Domains and groups, in order.
    pub via: Vec<String>,
    /// Its flows leave by these domains or not at all. Absent: false.
    pub strict: Option<bool>,
    /// How long to wait until a domain fits, milliseconds; -1: without limit. Absent: do not wait.
    pub wait_ms: Option<i64>,
    /// What will be run, for display.
    pub command: String,
    /// Ask which domain: nothing is done until `Prefer` names one for the policy that is told. Without
    /// `via` any that the caller may use. Absent: false.
    pub ask: Option<bool>,
}

/// Has one domain come first among those that policies can use.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, Type)]
pub struct Prefer {
    /// The domain. Absent: none any more.
    pub domain: Option<String>,
    /// Policies. Empty: all that the caller may change and that can use the domain.
    pub policy: Vec<String>,
}

/// Tells of every change of a domain's state and of a decision, as they come (with `more`).
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, Type)]
pub struct Watch {}

/// Has a domain checked at once.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, Type)]
pub struct CheckDomain {
    /// Name of the domain, or its alias.
    pub name: String,
}

/// Looks a name up over one domain alone, by its own name servers.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, Type)]
pub struct Resolve {
    /// The name of a host.
    pub name: String,
    /// Name of the domain, or its alias. One that the caller may use, or by which its own flows to the domain's name
    /// servers go.
    pub domain: String,
}

/// What the domain's name servers say of a name.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, Type)]
pub struct ResolveReply {
    /// The name.
    pub name: String,
    /// Name of the domain.
    pub domain: String,
    /// Its addresses there, IPv6 first.
    pub addresses: Vec<String>,
    /// Why there are none of a family that the domain has, as sentences without a full stop.
    pub failures: Vec<String>,
}

/// Reads the files again.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, Type)]
pub struct Reload {}

/// Puts a running process into a cgroup of its own with a policy of its own.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, Type)]
pub struct Move {
    /// The process, by the number that it has in the agent's PID namespace.
    pub pid: u32,
    /// Domains and groups, in order.
    pub via: Vec<String>,
    /// Its flows leave by these domains or not at all. Absent: false.
    pub strict: Option<bool>,
}

/// One policy.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, Type)]
pub struct PolicyReply {
    /// The policy as it is now.
    pub policy: PolicyView,
}

/// All policies.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, Type)]
pub struct PoliciesReply {
    /// Sorted by name.
    pub policies: Vec<PolicyView>,
}

/// One domain.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, Type)]
pub struct DomainReply {
    /// The domain as it is now.
    pub domain: DomainView,
}

/// All domains.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, Type)]
pub struct DomainsReply {
    /// Sorted by name.
    pub domains: Vec<DomainView>,
}

/// What changed since the last part of the answer.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, Type)]
pub struct WatchReply {
    /// In the order in which it happened.
    pub changes: Vec<ChangeView>,
}

/// The agent.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, Type)]
pub struct StatusReply {
    /// Everything.
    pub status: StatusView,
}

/// Where the process now is. With `more`, what it waits for is told on the way there.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, Type, JsonSchema)]
pub struct RunReply {
    /// Path of its cgroup, as in /proc/PID/cgroup; none while it waits.
    pub cgroup: Option<String>,
    /// Name of its policy.
    pub policy: String,
    /// The domain that its flows leave by.
    pub domain: Option<String>,
    /// Why no domain fits yet.
    pub waits: Option<String>,
    /// What to choose from, as long as it waits for an answer.
    pub question: Option<Vec<Choice>>,
    /// What became of the live flows of a process that was moved.
    pub sessions: Option<SessionsView>,
}

/// What the files came to.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, Type, JsonSchema)]
pub struct Reloaded {
    /// How many files were read.
    pub files: u64,
    /// How many policies of theirs are in force, with those in quarantine that block what they match.
    pub policies: u64,
    /// What is wrong with single policies.
    pub quarantined: Vec<Mistake>,
}

/// What the removal of a policy did.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, Type)]
pub struct UnsetReply {
    /// What became of live flows, by the policies that hold for them now.
    pub sessions: Option<SessionsView>,
}

impl Method for SetPolicy {
    const NAME: &'static str = "SetPolicy";
    const ABOUT: &'static str = "Makes a policy, or replaces the one of that name. \
                                 Answered when it is in force.";
    type Reply = PolicyReply;
}

impl Method for UnsetPolicy {
    const NAME: &'static str = "UnsetPolicy";
    const ABOUT: &'static str = "Removes a policy. Answered when it is no longer in force.";
    type Reply = UnsetReply;
}

impl Method for ListPolicies {
    const NAME: &'static str = "ListPolicies";
    const ABOUT: &'static str = "Shows all policies.";
    type Reply = PoliciesReply;
}

impl Method for ShowPolicy {
    const NAME: &'static str = "ShowPolicy";
    const ABOUT: &'static str = "Shows one policy.";
    type Reply = PolicyReply;
}

impl Method for ListDomains {
    const NAME: &'static str = "ListDomains";
    const ABOUT: &'static str = "Shows all domains.";
    type Reply = DomainsReply;
}

impl Method for ShowDomain {
    const NAME: &'static str = "ShowDomain";
    const ABOUT: &'static str = "Shows one domain.";
    type Reply = DomainReply;
}

impl Method for Watch {
    const NAME: &'static str = "Watch";
    const ABOUT: &'static str = "Tells of every change of a domain's state and of a decision that the \
                                 caller may see, as they come, until the caller goes; needs `more`. The \
                                 first part comes at once, and tells how everything is.";
    type Reply = WatchReply;
}

impl Method for CheckDomain {
    const NAME: &'static str = "CheckDomain";
    const ABOUT: &'static str = "Has a domain checked at once, as after a login. Answered before that \
                                 is done.";
    type Reply = DomainReply;
}

impl Method for Resolve {
    const NAME: &'static str = "Resolve";
    const ABOUT: &'static str = "Looks a name up over one domain alone, by its own name servers. Neither \
                                 the host's files nor its resolver are asked, and nothing is kept.";
    type Reply = ResolveReply;
}

impl Method for Status {
    const NAME: &'static str = "Status";
    const ABOUT: &'static str = "Shows the agent and all it does.";
    type Reply = StatusReply;
}

impl Method for Reload {
    const NAME: &'static str = "Reload";
    const ABOUT: &'static str = "Reads the files again; bad ones change nothing. Answered when what \
                                 they say is in force. For administrators.";
    type Reply = Reloaded;
}

impl Method for Run {
    const NAME: &'static str = "Run";
    const ABOUT: &'static str = "Puts the calling process into a cgroup of its own with a policy \
                                 of its own, until the last process in it ends. Answered when that \
                                 is in force; with `more`, also while it waits.";
    type Reply = RunReply;
}

impl Method for Move {
    const NAME: &'static str = "Move";
    const ABOUT: &'static str = "Puts a running process into a cgroup of its own with a policy of \
                                 its own, until the last process in it ends. Its running flows \
                                 are kept, or fare as the answer says.";
    type Reply = RunReply;
}

impl Method for Prefer {
    const NAME: &'static str = "Prefer";
    const ABOUT: &'static str = "Has a domain come first among those that policies can use; it never \
                                 adds one. Answers the question of a `Run` with `ask`, where that has \
                                 the policy. Answered by the policies as they are now.";
    type Reply = PoliciesReply;
}

/// A request that the server understood.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Request {
    /// To be answered by [`Reply::Policy`].
    SetPolicy(SetPolicy),
    /// To be answered by [`Reply::Unset`].
    UnsetPolicy(UnsetPolicy),
    /// To be answered by [`Reply::Policies`].
    ListPolicies,
    /// To be answered by [`Reply::Policy`].
    ShowPolicy(ShowPolicy),
    /// To be answered by [`Reply::Domains`].
    ListDomains,
    /// To be answered by [`Reply::Domain`].
    ShowDomain(ShowDomain),
    /// To be answered by [`Reply::Status`].
    Status,
    /// To be answered by [`Reply::Reloaded`].
    Reload,
    /// To be answered by [`Reply::Run`].
    Run(Run),
    /// To be answered by [`Reply::Explanation`].
    Explain(Explain),
    /// To be answered by [`Reply::Flows`].
    ListFlows(ListFlows),
    /// To be answered by [`Reply::Run`].
    Move(Move),
    /// To be answered by [`Reply::Policies`].
    Prefer(Prefer),
    /// To be answered by [`Reply::Watch`], in parts.
    Watch,
    /// To be answered by [`Reply::Domain`].
    CheckDomain(CheckDomain),
    /// To be answered by [`Reply::Resolved`].
    Resolve(Resolve),
}

/// The answer to a [`Request`]; lists need no order, the server sorts them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reply {
    /// One policy.
    Policy(Box<PolicyView>),
    /// All policies.
    Policies(Vec<PolicyView>),
    /// One domain.
    Domain(Box<DomainView>),
    /// All domains.
    Domains(Vec<DomainView>),
    /// The agent.
    Status(Box<StatusView>),
    /// What the files came to.
    Reloaded(Reloaded),
    /// Where the process now is.
    Run(RunReply),
    /// What happens to flows, and why; in the order in which things are decided.
    Explanation(Box<ExplanationView>),
    /// Live flows, in the order that was asked for.
    Flows(FlowsReply),
    /// What the removal of a policy did.
    Unset(UnsetReply),
    /// What changed.
    Watch(WatchReply),
    /// The addresses of a name, in the order in which they are to be tried.
    Resolved(ResolveReply),
}

impl Reply {
    /// The parameters of the answer on the wire, every list in it sorted.
    ///
    /// # Errors
    /// Never in practice: the types here serialize.
    pub(super) fn into_json(self) -> serde_json::Result<Vec<u8>> {
        match self {
            Self::Policy(policy) => serde_json::to_vec(&PolicyReply { policy: *policy }),
            Self::Policies(mut policies) => {
                policies.sort_by(|a, b| a.name.cmp(&b.name));
                serde_json::to_vec(&PoliciesReply { policies })
            }
            Self::Domain(domain) => serde_json::to_vec(&DomainReply { domain: *domain }),
            Self::Domains(mut domains) => {
                domains.sort_by(|a, b| a.name.cmp(&b.name));
                serde_json::to_vec(&DomainsReply { domains })
            }
            Self::Status(mut status) => {
                status.sort();
                serde_json::to_vec(&StatusReply { status: *status })
            }
            Self::Reloaded(reloaded) => serde_json::to_vec(&reloaded),
            Self::Run(run) => serde_json::to_vec(&run),
            Self::Explanation(explanation) => serde_json::to_vec(&ExplainReply {
                explanation: *explanation,
            }),
            Self::Flows(flows) => serde_json::to_vec(&flows),
            Self::Unset(unset) => serde_json::to_vec(&unset),
            Self::Watch(watch) => serde_json::to_vec(&watch),
            Self::Resolved(resolved) => serde_json::to_vec(&resolved),
        }
    }
}
