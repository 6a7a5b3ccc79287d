//! The engine keeps the plan in step with the state, doing only what a change asks for.
//!
//! [`Engine::apply`] takes events in and notes what they touch; [`Engine::settle`] then brings the
//! plan up to date and says what changed in it. [`plan`] makes the same plan from nothing.

mod awaited;
mod health;
mod index;
mod names;
mod prefer;
pub mod ranking;
mod rejected;
mod report;
mod ruled;
mod settle;
mod shares;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

pub use self::index::Conflict;
use self::index::PolicyIndex;
pub use self::rejected::Rejected;
pub use self::report::{Effective, Warning};
use self::ruled::Compiled;
pub use self::ruled::{FlowDecision, RuleDecision, Unruled};
use self::shares::Shares;
use crate::cgroups::CgroupChange;
use crate::config::Config;
use crate::domains::Domains;
use crate::ids::{CgroupId, ChoiceId, DomainIndex, PolicyId, RulesetId};
use crate::name::Name;
use crate::plan::{Named, Object, Plan};
use crate::policy::{Match, Policy};
use crate::select::{Stage, World};
use crate::state::{Event, State};
use crate::suggest::nearest;

/// Keeps a plan in step with a state.
#[derive(Debug)]
pub struct Engine {
    state: State,
    plan: Plan,
    domains: Domains,
    index: PolicyIndex,
    /// How often each name is in a `use`.
    uses: BTreeMap<Name, usize>,
    /// Where each kernel policy is in force, or would be.
    policy_uses: HashMap<PolicyId, Uses>,
    /// Rules of the kernel policies that have any.
    compiled: BTreeMap<PolicyId, Arc<Compiled>>,
    /// Kernel policies with each set of rules.
    ruleset_uses: HashMap<RulesetId, usize>,
    /// How often each choice is what a kernel policy leads to, by itself or by its rules.
    choice_uses: HashMap<ChoiceId, usize>,
    /// Choices whose flows are shared.
    shares: Shares,
    /// There was no room for the slots of all choices.
    shares_are_short: bool,
    /// Choices that a domain of this name or alias could change.
    choices_by_name: HashMap<Name, BTreeSet<ChoiceId>>,
    /// Choices to which it matters what is measured of domains.
    measured: BTreeSet<ChoiceId>,
    /// Domains that a policy in force can choose.
    installed: BTreeMap<Name, DomainIndex>,
    /// Domains that ought to be installed, but there is no index left.
    unmarked: BTreeSet<Name>,
    /// Policies that lose at a cgroup.
    conflicts: BTreeMap<CgroupId, Vec<Conflict>>,
    /// Cgroups for whose policy no number was left.
    unnumbered: BTreeSet<CgroupId>,
    /// Named cgroups for which the kernel map has no room.
    unplaced: BTreeSet<Box<str>>,
    dirty: Dirty,
}

/// Entries with one kernel policy.
#[derive(Clone, Copy, Debug, Default)]
struct Uses {
    /// Of cgroups.
    cgroups: u32,
    /// Of cgroups that policies name.
    names: u32,
}

impl Uses {
    const fn any(&self) -> bool {
        self.cgroups + self.names > 0
    }
}

/// What events touched since the plan was last brought up to date.
#[derive(Debug, Default)]
struct Dirty {
    /// Every cgroup.
    all_cgroups: bool,
    /// These cgroups.
    cgroups: BTreeSet<CgroupId>,
    /// Paths that strict policies name or named.
    paths: BTreeSet<Box<str>>,
    /// The domains, and what follows from them.
    network: bool,
    /// Every choice, since names may mean something else.
    all_choices: bool,
    /// These choices.
    choices: BTreeSet<ChoiceId>,
    /// Sets of rules that lost a policy.
    rulesets: BTreeSet<RulesetId>,
    /// Which domains policies can choose.
    wanted: bool,
    /// Answer to which indices sockets bear.
    in_use: Option<BTreeSet<DomainIndex>>,
    /// What the last plan was made for: any policy, any strict one.
    before: Option<(bool, bool, bool)>,
}

/// What changed in the plan.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Changes {
    /// Entries of `cgroups` that changed, came or went.
    pub cgroups: BTreeSet<CgroupId>,
    /// Likewise of `names`.
    pub names: BTreeSet<Named>,
    /// Likewise of `policies`.
    pub policies: BTreeSet<PolicyId>,
    /// Likewise of `choices`.
    pub choices: BTreeSet<ChoiceId>,
    /// Likewise of `rulesets`.
    pub rulesets: BTreeSet<RulesetId>,
    /// Likewise of `shares`.
    pub shares: BTreeSet<ChoiceId>,
    /// Anything else changed: hooks, guards, domains, sources, locals, rules, routes, sysctls.
    pub network: bool,
}

impl Changes {
    /// Whether nothing changed.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    /// Adds what another settling changed.
    pub fn merge(&mut self, other: Self) {
        self.cgroups.extend(other.cgroups);
        self.names.extend(other.names);
        self.policies.extend(other.policies);
        self.choices.extend(other.choices);
        self.rulesets.extend(other.rulesets);
        self.shares.extend(other.shares);
        self.network |= other.network;
    }
}

/// Most policies, so that each can have a number of its own.
pub const MAX_POLICIES: usize = steer_common::MAX_POLICIES as usize - 1;

impl Engine {
    /// An engine for `state`; the plan is empty until [`Engine::settle`].
    pub fn new(state: State) -> Self {
        let mut engine = Self {
            index: PolicyIndex::new(state.policies(), &state.cgroups),
            domains: Domains::new(&state.config, &state.network),
            state,
            plan: Plan::default(),
            uses: BTreeMap::new(),
            policy_uses: HashMap::new(),
            compiled: BTreeMap::new(),
            ruleset_uses: HashMap::new(),
            choice_uses: HashMap::new(),
            shares: Shares::default(),
            shares_are_short: false,
            choices_by_name: HashMap::new(),
            measured: BTreeSet::new(),
            installed: BTreeMap::new(),
            unmarked: BTreeSet::new(),
            conflicts: BTreeMap::new(),
            unnumbered: BTreeSet::new(),
            unplaced: BTreeSet::new(),
            dirty: Dirty {
                all_cgroups: true,
                network: true,
                wanted: true,
                ..Dirty::default()
            },
        };
        engine.count_uses();
        engine
    }

    /// Everything that is known.
    pub fn state(&self) -> &State {
        &self.state
    }

    /// What should be, as of the last [`Engine::settle`].
    pub fn plan(&self) -> &Plan {
        &self.plan
    }

    /// The domains, as of the last [`Engine::settle`].
    pub fn domains(&self) -> &Domains {
        &self.domains
    }

    /// Takes an event in. Only what a user asks for can be refused.
    pub fn apply(&mut self, event: Event) -> Result<(), Rejected> {
        match event {
            Event::Network(change) => {
                self.state.network.apply(change);
                self.dirty.network = true;
            }
            Event::Now(now) => self.pass_time(now),
            Event::Probed(probed) => self.take_report(&probed),
            Event::Stalled(name) => self.take_stall(&name),
            Event::Recheck(name) => self.recheck(&name),
            Event::Remembered(history) => self.state.history = history,
            Event::Recalled(health) => {
                self.state.health = health;
                self.dirty.network = true;
                self.dirty.all_choices = true;
            }
            Event::NameServers(servers) => self.state.name_servers = servers,
            Event::Chosen(chosen) => {
                self.state.chosen = chosen;
                self.dirty.all_choices = true;
            }
            Event::Cgroups(change) => self.change_cgroups(change),
            Event::Managed { root, exempt } => {
                self.state.cgroup_root = root;
                self.state.exempt = exempt;
                self.dirty.all_cgroups = true;
            }
            Event::SetPolicy(policy) => {
                self.check(&policy)?;
                self.put_policy(policy);
            }
            Event::PutBack(policy) => {
                // One of a file has taken its place.
                if !self.state.config.policies.contains_key(&policy.name) {
                    self.put_policy(policy);
                }
            }
            Event::UnsetPolicy(name) => return self.unset_policy(&name),
            Event::Prefer { policy, domain } => return self.prefer(&policy, domain.as_ref()),
            Event::Config(config) => self.change_config(*config),
            Event::IndicesInUse(in_use) => {
                self.dirty.in_use = Some(in_use);
                self.dirty.wanted = true;
            }
            Event::Outcome(object, outcome) => self.take_outcome(object, outcome.err()),
        }
        Ok(())
    }

    /// Checks a policy as [`Event::SetPolicy`] does, and changes nothing.
    pub fn check(&self, policy: &Policy) -> Result<(), Rejected> {
        policy.check()?;
        let name = &policy.name;
        if self.state.config.defines(name.as_str()) {
            return Err(Rejected::InFile(name.clone()));
        }
        self.check_names(name, &policy.use_)?;
        for rule in policy.rules.iter() {
            self.check_names(name, &rule.use_)?;
        }
        if let Some((other, path)) = self.index.rival(policy, &self.state.cgroups) {
            return Err(Rejected::Conflict {
                name: name.clone(),
                other: other.clone(),
                path,
            });
        }
        if let Some((by, path)) = self.index.shut_out(policy, &self.state.cgroups) {
            return Err(Rejected::ShutOut {
                name: name.clone(),
                by: by.clone(),
                path,
            });
        }
        let count = self.state.config.policies.len() + self.state.api_policies.len();
        if count >= MAX_POLICIES && !self.state.api_policies.contains_key(name) {
            return Err(Rejected::TooMany(count));
        }
        Ok(())
    }

    /// Checks that each of these means something now: a domain, a group, or an interface that may be one.
    pub fn check_names(&self, policy: &Name, names: &[Name]) -> Result<(), Rejected> {
        let (config, network) = (&self.state.config, &self.state.network);
        let Some(unknown) = names.iter().find(|used| !config.knows(used, network)) else {
            return Ok(());
        };
        let domains = Domains::new(config, network);
        let known = domains.iter().map(|domain| &domain.name);
        let known = known.chain(config.groups.keys()).map(Name::as_str);
        Err(Rejected::UnknownDomain {
            policy: policy.clone(),
            name: unknown.clone(),
            meant: nearest(unknown.as_str(), known).and_then(|name| Name::new(name).ok()),
        })
    }

    fn put_policy(&mut self, policy: Policy) {
        if let Some(old) = self.state.api_policies.remove(&policy.name) {
            self.forget(&old);
        }
        self.index.insert(&policy, &self.state.cgroups);
        self.count_use(&policy, true);
        self.touch_matches(&policy);
        self.state.api_policies.insert(policy.name.clone(), policy);
    }

    fn unset_policy(&mut self, name: &Name) -> Result<(), Rejected> {
        if let Some(old) = self.state.api_policies.remove(name) {
            self.forget(&old);
            // One of a file may have had its name.
            if !self.state.config.defines(name.as_str()) {
                self.state.preferred.remove(name);
            }
            return Ok(());
        }
        if self.state.config.defines(name.as_str()) {
            return Err(Rejected::InFile(name.clone()));
        }
        let known = self.state.api_policies.keys().map(Name::as_str);
        let meant = nearest(name.as_str(), known).and_then(|name| Name::new(name).ok());
        Err(Rejected::NoPolicy {
            name: name.clone(),
            meant,
        })
    }

    fn forget(&mut self, policy: &Policy) {
        // Paths that nothing names any more are touched too.
        self.touch_matches(policy);
        self.index.remove(policy, &self.state.cgroups);
        self.count_use(policy, false);
    }

    fn take_outcome(&mut self, object: Object, words: Option<String>) {
        if self.state.refused.get(&object) == words.as_ref() {
            return;
        }
        match object {
            Object::Domain(_) => self.dirty.all_choices = true,
            Object::Hook(_) | Object::Guard => self.dirty.all_cgroups = true,
        }
        match words {
            Some(words) => self.state.refused.insert(object, words),
            None => self.state.refused.remove(&object),
        };
    }

    /// What of the means that strict policies rest on the kernel refused, if anything: they are
    /// closed then.
    fn unenforceable(&self) -> Option<(&Object, &String)> {
        let mut refused = self.state.refused.iter();
        refused.find(|(object, _)| matches!(object, Object::Hook(_) | Object::Guard))
    }

    fn change_config(&mut self, config: Config) {
        self.state.config = config;
        let files = &self.state.config.policies;
        self.state
            .api_policies
            .retain(|name, _| !files.contains_key(name));
        self.drop_preferences();
        self.index = PolicyIndex::new(self.state.policies(), &self.state.cgroups);
        self.count_uses();
        self.dirty.all_cgroups = true;
        self.dirty.all_choices = true;
        self.dirty.network = true;
    }

    fn change_cgroups(&mut self, change: CgroupChange) {
        match change {
            CgroupChange::Made { id, parent, name } => {
                let tree = &self.state.cgroups;
                if tree.parent(id) == Some(parent) && tree.name(id) == Some(&name) {
                    return;
                }
                // What stood there before is gone, or the tree would not make it.
                let older = tree.child(parent, &name);
                if !tree.contains(parent) || tree.is_below(parent, id) {
                    return;
                }
                self.remove_cgroup(id);
                older
                    .into_iter()
                    .for_each(|older| self.remove_cgroup(older));
                self.state.cgroups.made(id, parent, &name);
                self.dirty.cgroups.insert(id);
                if let Some(path) = self.state.cgroups.path(id) {
                    self.touch_identity(id, &path);
                    if self.index.made(&path) {
                        self.touch_path(&path);
                    }
                }
            }
            CgroupChange::Removed(id) => self.remove_cgroup(id),
            CgroupChange::Dump(tree) => {
                self.state.cgroups = tree;
                self.index.await_all(&self.state.cgroups);
                self.dirty.all_cgroups = true;
            }
        }
    }

    fn remove_cgroup(&mut self, id: CgroupId) {
        let tree = &self.state.cgroups;
        if id == tree.root() {
            return;
        }
        let gone: Vec<CgroupId> = tree.subtree(id).collect();
        for id in gone {
            self.dirty.cgroups.insert(id);
            let Some(path) = self.state.cgroups.path(id) else {
                continue;
            };
            self.touch_identity(id, &path);
            if self.index.gone(&path) {
                self.touch_path(&path);
            }
        }
        self.state.cgroups.removed(id);
    }

    /// Notes a path that came to be named, or is named no more, with the cgroups that lead to it.
    fn touch_path(&mut self, path: &str) {
        for (parent, here) in awaited::levels(path).filter(|(_, here)| !here.is_empty()) {
            self.dirty.paths.insert(here.into());
            self.dirty.cgroups.extend(self.state.cgroups.find(parent));
        }
    }

    /// Notes what is named below a cgroup that comes or goes, if it is one by its id.
    fn touch_identity(&mut self, id: CgroupId, path: &str) {
        let state = &self.state;
        if self.index.by_id(id) || state.exempt.contains(&id) || state.cgroup_root == id {
            self.touch_below(path);
        }
    }

    /// Notes the paths that are named at and below one.
    fn touch_below(&mut self, path: &str) {
        let paths = self.index.awaited().subtree(path);
        self.dirty.paths.extend(paths.map(Box::from));
    }

    /// Notes the cgroups and paths that a policy can matter to.
    fn touch_matches(&mut self, policy: &Policy) {
        if policy.matches.is_empty() {
            self.dirty.all_cgroups = true;
        }
        for wanted in &policy.matches {
            let pattern = match wanted {
                Match::Cgroup(pattern) => pattern,
                Match::Unit(_) => {
                    self.dirty.all_cgroups = true;
                    return;
                }
                Match::CgroupId(id) => {
                    let tree = &self.state.cgroups;
                    self.dirty.cgroups.extend(tree.subtree(*id));
                    if let Some(path) = tree.path(*id) {
                        self.touch_below(&path);
                    }
                    continue;
                }
            };
            let literal = pattern.literal();
            if policy.strict {
                self.touch_path(literal);
            }
            self.touch_below(literal);
            let tree = &self.state.cgroups;
            if let Some(id) = tree.find(literal) {
                self.dirty.cgroups.extend(tree.subtree(id));
            }
        }
    }

    fn count_uses(&mut self) {
        self.uses.clear();
        for policy in self.state.policies() {
            for name in policy.names() {
                *self.uses.entry(name.clone()).or_default() += 1;
            }
        }
        self.dirty.wanted = true;
    }

    fn count_use(&mut self, policy: &Policy, more: bool) {
        for name in policy.names() {
            let count = self.uses.entry(name.clone()).or_default();
            *count = if more {
                *count + 1
            } else {
                count.saturating_sub(1)
            };
            match *count {
                0 => {
                    self.uses.remove(name);
                    self.dirty.wanted = true;
                }
                1 if more => self.dirty.wanted = true,
                _ => {}
            }
        }
    }

    fn world(&self) -> World<'_> {
        World {
            config: &self.state.config,
            network: &self.state.network,
            domains: &self.domains,
            indices: &self.installed,
            refused: &self.state.refused,
            health: &self.state.health,
            now: self.state.now.boot,
            without: None,
        }
    }

    /// Which domains a choice with these inputs led to last.
    fn in_use(&self, inputs: &[Stage]) -> &[Name] {
        let number = self.state.memory.choices.get(inputs);
        let chosen = number.and_then(|number| self.state.chosen.get(&ChoiceId(number)));
        chosen.map_or(&[], Vec::as_slice)
    }
}

/// The plan for `state`, from nothing. Numbers come from `state.memory`; what has none there gets
/// the next free one, as it would in an [`Engine`].
pub fn plan(state: &State) -> Plan {
    let mut engine = Engine::new(state.clone());
    engine.settle();
    engine.plan
}
