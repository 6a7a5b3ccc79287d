//! Everything that is known: what selection and plan are made of.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;

use crate::cgroups::{CgroupChange, CgroupTree};
use crate::config::Config;
use crate::health::{Health, History, Now, Probed};
use crate::ids::{CgroupId, ChoiceId, DomainIndex};
use crate::memory::Memory;
use crate::name::Name;
use crate::network::{Network, NetworkChange};
use crate::plan::Object;
use crate::policy::Policy;

/// Everything that is known. A plan is a function of it alone.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct State {
    /// The files.
    pub config: Config,
    /// The network as netlink tells it.
    pub network: Network,
    /// The cgroup tree.
    pub cgroups: CgroupTree,
    /// The managed cgroup: policies hold at and below it.
    pub cgroup_root: CgroupId,
    /// The agent's own cgroups.
    pub exempt: BTreeSet<CgroupId>,
    /// Policies that were set by API. Those of the files are in `config`.
    pub api_policies: BTreeMap<Name, Policy>,
    /// The domain that is to come first among those of a policy, by the policy's name.
    pub preferred: BTreeMap<Name, Name>,
    /// What the kernel refused, with its words.
    pub refused: BTreeMap<Object, String>,
    /// The time.
    pub now: Now,
    /// How domains are, by their checks.
    pub health: Health,
    /// What is remembered of networks.
    pub history: History,
    /// The host's own name servers (resolv.conf).
    pub name_servers: Vec<SocketAddr>,
    /// The domains that each choice leads to: one, or those that share its flows.
    pub chosen: BTreeMap<ChoiceId, Vec<Name>>,
    /// Numbers given out.
    pub memory: Memory,
}

/// Something that happened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// The network changed.
    Network(NetworkChange),
    /// The cgroup tree changed.
    Cgroups(CgroupChange),
    /// Which cgroup is managed, and which are the agent's own.
    Managed {
        /// The managed cgroup.
        root: CgroupId,
        /// The agent's own cgroups.
        exempt: BTreeSet<CgroupId>,
    },
    /// A policy was set by API, in place of one of the same name set by API.
    SetPolicy(Policy),
    /// A policy of the API is put back as it was: what was taken once is not refused now.
    PutBack(Policy),
    /// A policy of the API was unset.
    UnsetPolicy(Name),
    /// One of a policy's domains is to come first, or none any more. It lasts as long as the policy.
    Prefer {
        /// The policy.
        policy: Name,
        /// The domain, one of those that the policy can use.
        domain: Option<Name>,
    },
    /// The files were read again. Policies of the API with the name of one of the files are dropped:
    /// they were saved.
    Config(Box<Config>),
    /// The kernel was asked which indices sockets bear; all others may be given out again.
    IndicesInUse(BTreeSet<DomainIndex>),
    /// Time has passed.
    Now(Now),
    /// What came of a check.
    Probed(Probed),
    /// Of a domain's own packets none come back: it is to be checked at once.
    Stalled(Name),
    /// A domain is to be checked at once.
    Recheck(Name),
    /// What an earlier agent remembered of networks.
    Remembered(History),
    /// How domains were when an earlier agent of this boot looked last.
    Recalled(Health),
    /// The host's own name servers are these.
    NameServers(Vec<SocketAddr>),
    /// Where choices led that an earlier agent made.
    Chosen(BTreeMap<ChoiceId, Vec<Name>>),
    /// The kernel took something (again), or refused it with these words.
    Outcome(Object, Result<(), String>),
}

impl State {
    /// A state in which nothing is known but the root of the cgroup tree.
    pub fn new(root: CgroupId) -> Self {
        Self {
            config: Config::default(),
            network: Network::default(),
            cgroups: CgroupTree::new(root),
            cgroup_root: root,
            exempt: BTreeSet::new(),
            api_policies: BTreeMap::new(),
            preferred: BTreeMap::new(),
            refused: BTreeMap::new(),
            now: Now::default(),
            health: Health::default(),
            history: History::default(),
            name_servers: Vec::new(),
            chosen: BTreeMap::new(),
            memory: Memory::default(),
        }
    }

    /// A policy by its name, from the files or the API.
    pub fn policy(&self, name: &str) -> Option<&Policy> {
        self.config
            .policies
            .get(name)
            .or_else(|| self.api_policies.get(name))
    }

    /// All policies: those of the files, then those of the API, each in the order of names.
    pub fn policies(&self) -> impl Iterator<Item = &Policy> {
        let api = self
            .api_policies
            .values()
            .filter(|policy| !self.config.policies.contains_key(&policy.name));
        self.config.policies.values().chain(api)
    }
}
