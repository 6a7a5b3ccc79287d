//! Brings the kernel to the plan, one idempotent step at a time: the only path to the kernel.
//!
//! On changes it compares the plan with what it wrote before. On the slow timer, and whenever a third
//! party touched what is ours, it reads the kernel first: what was deleted comes back, what a dead
//! agent left is adopted or removed. What the kernel refuses keeps back the removals that rest on it
//! ([`steer_core::steps::held`]).

mod entries;
mod flows;
mod sent;
mod sysctl;

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::mem::discriminant;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::SystemTime;

use ipnet::IpNet;
use steer_common::{CgroupEntry, ChoiceEntry, DomainEntry, HostCounts, PolicyEntry, share};
use steer_core::engine::Changes;
use steer_core::explain::held::Held;
use steer_core::ids::{CgroupId, ChoiceId, DomainIndex, IfIndex, PolicyId, RulesetId};
use steer_core::plan::{Hook, Plan, TableRoute};
use steer_core::rules::image::{ContentHash, Image};
use steer_core::steps::{Scope, Step, Steps, held, steps};
use thiserror::Error;
use tracing::{debug, warn};

use self::entries::{
    host, host_key, local, local_entry, local_key4, local_key6, name_key, named, net4, net6,
    source, source_key,
};
use crate::datapath::{self, Counters, Datapath};
use crate::netlink::{self, Routing};

pub use flows::{FlowMeans, mark_flows, reset_flows};
pub use sent::{Sent, read as read_sent};
pub use sysctl::Sysctls;

/// A step that the kernel refused.
#[derive(Debug, Error)]
enum Refusal {
    #[error(transparent)]
    Datapath(#[from] datapath::Error),
    #[error(transparent)]
    Netlink(#[from] netlink::Error),
    #[error(transparent)]
    Sysctl(#[from] sysctl::Error),
}

/// What is could not be read.
#[derive(Debug, Error)]
pub enum Error {
    /// From the maps and links.
    #[error("read the kernel maps")]
    Datapath(#[from] datapath::Error),
    /// From netlink.
    #[error("read rules and routes")]
    Netlink(#[from] netlink::Error),
}

/// What is, and the means to change it.
pub struct Reconciler {
    datapath: Datapath,
    routing: Routing,
    sysctls: Sysctls,
    is: Plan,
    /// Cgroups that had an entry before the tree was read last.
    before: HashSet<CgroupId>,
    /// Steps that the kernel refused and that were not tried again since, with its words.
    refused: Vec<(Step, String)>,
    /// The same as of the check of everything before: what is refused still is no news.
    told: Vec<(Step, String)>,
}

impl Reconciler {
    /// Takes over what is there already.
    ///
    /// # Errors
    /// It cannot be read.
    pub async fn adopt(
        datapath: Datapath,
        routing: Routing,
        sysctls: Sysctls,
    ) -> Result<Self, Error> {
        let mut reconciler = Self {
            datapath,
            routing,
            sysctls,
            is: Plan::default(),
            before: HashSet::new(),
            refused: Vec::new(),
            told: Vec::new(),
        };
        reconciler.read().await?;
        Ok(reconciler)
    }

    /// Brings what may have changed to the plan. Says whether new cgroups are told of only from now on.
    pub async fn apply(&mut self, plan: &Plan, changes: &Changes) -> bool {
        let todo = steps(&self.is, plan, Scope::Changed(changes));
        self.run(plan, &todo).await
    }

    /// Reads what is, and brings all of it to the plan.
    ///
    /// # Errors
    /// What is cannot be read.
    pub async fn apply_all(&mut self, plan: &Plan) -> Result<bool, Error> {
        self.read().await?;
        // One that was made since the tree was read is not in the plan, but its entry is right.
        let before = std::mem::take(&mut self.before);
        let known = |id: &CgroupId| before.contains(id) || plan.cgroups.contains_key(id);
        self.is.cgroups.retain(|id, _| known(id));
        let todo = steps(&self.is, plan, Scope::All);
        // What is refused still is among these.
        self.told = std::mem::take(&mut self.refused);
        let attached = self.run(plan, &todo).await;
        self.close_ledger(plan);
        self.sweep();
        Ok(attached)
    }

    /// Reads what is, and writes all that the programs read: nothing is taken away, and of programs only
    /// those are attached that tell of new cgroups. Says whether that changed what cgroups have, so that
    /// others may have been made meanwhile without it.
    ///
    /// What an earlier agent left in force, perhaps on maps of its own, is taken over after that.
    ///
    /// # Errors
    /// What is cannot be read.
    pub async fn fill(&mut self, plan: &Plan) -> Result<bool, Error> {
        self.read().await?;
        let todo: Vec<Step> = steps(&self.is, plan, Scope::All)
            .iter()
            .filter(|step| fills(step))
            .cloned()
            .collect();
        self.refused.clear();
        self.take(&todo).await;
        let cgroups = |step: &Step| matches!(step, Step::SetCgroup(..) | Step::Attach(_));
        Ok(todo.iter().any(cgroups))
    }

    /// Whether what another version left is in force.
    ///
    /// # Errors
    /// It cannot be read.
    pub fn takes_over(&self) -> Result<bool, Error> {
        Ok(self.datapath.takes_over()?)
    }

    /// Removes what earlier agents left and no step names, unless something is still to be taken over.
    fn sweep(&self) {
        let awaited = |step: &Step| {
            matches!(
                step,
                Step::Attach(_) | Step::Guard(_) | Step::SetIngress(..)
            )
        };
        if self.refused.iter().any(|(step, _)| awaited(step)) {
            return;
        }
        if let Err(error) = self.datapath.sweep() {
            warn!("{}", chain(&error));
        }
    }

    /// Reads rules, routes and settings only, and brings them to the plan: the cheap answer to a third
    /// party's change.
    ///
    /// # Errors
    /// What is cannot be read.
    pub async fn apply_routing(&mut self, plan: &Plan) -> Result<bool, Error> {
        self.is.rules = self.routing.rules().await?;
        self.is.routes = self.routing.routes().await?;
        self.is.sysctls = self.sysctls.current();
        let network = Changes {
            network: true,
            ..Changes::default()
        };
        Ok(self.apply(plan, &network).await)
    }

    /// Notes which cgroups have an entry. To be called before the cgroup tree is read: of these
    /// [`Reconciler::apply_all`] removes what the plan has not.
    ///
    /// # Errors
    /// The map cannot be read.
    pub fn note_cgroups(&mut self) -> Result<(), Error> {
        let entries = self.datapath.maps.cgroups.entries()?.into_iter();
        self.before = entries.map(|(id, _)| CgroupId(id)).collect();
        Ok(())
    }

    /// A cgroup was made: the kernel gave it what its parent has, which is not what was written here.
    pub fn cgroup_made(&mut self, id: CgroupId) {
        let unknown = CgroupEntry {
            policy: u32::MAX,
            flags: u32::MAX,
            place: u32::MAX,
        };
        self.is.cgroups.insert(id, unknown);
    }

    /// Reads what settings are before they are changed, so that this can be kept first.
    pub fn remember_settings(&mut self, plan: &Plan) {
        for path in plan.sysctls.keys() {
            if let Err(error) = self.sysctls.remember(path) {
                warn!("{}", chain(&error));
            }
        }
    }

    /// What the kernel refuses, with its words.
    pub fn refused(&self) -> &[(Step, String)] {
        &self.refused
    }

    /// Programs of the plan that this kernel cannot have.
    pub fn missing<'a>(&'a self, plan: &'a Plan) -> impl Iterator<Item = Hook> + 'a {
        let hooks = plan.hooks.iter().copied();
        hooks.filter(|hook| !self.datapath.supports(*hook))
    }

    /// What is.
    pub fn is(&self) -> &Plan {
        &self.is
    }

    /// What the strong host model dropped at an interface, or would have dropped; nothing where that cannot
    /// be read.
    pub fn host_counts(&self, interface: IfIndex) -> HostCounts {
        self.datapath
            .host_counts(interface.0)
            .inspect_err(|error| warn!("{}", chain(error)))
            .unwrap_or_default()
    }

    /// The programs' counters.
    ///
    /// # Errors
    /// The map cannot be read.
    pub fn counters(&self) -> Result<Counters, Error> {
        Ok(self.datapath.counters()?)
    }

    /// What was sent for policies.
    ///
    /// # Errors
    /// The map cannot be read.
    pub fn sent(&self) -> Result<Sent, Error> {
        Ok(sent::read(&self.datapath.maps)?)
    }

    /// Since when that is counted.
    pub fn sent_since(&self) -> Option<SystemTime> {
        self.datapath.traffic_since()
    }

    /// The socket storage with what the kernel programs remember of flows, for a thread of its own.
    ///
    /// # Errors
    /// No descriptor is left.
    pub fn flow_storage(&self) -> std::io::Result<OwnedFd> {
        self.datapath.maps.flows().try_clone_to_owned()
    }

    /// The values that changed settings had before.
    pub fn original_sysctls(&self) -> &BTreeMap<String, String> {
        self.sysctls.originals()
    }

    async fn run(&mut self, plan: &Plan, todo: &Steps) -> bool {
        let attached = self.take(&todo.grow).await;
        // A kind at a time, since what goes no longer leads to what goes after it.
        for removals in todo
            .shrink
            .chunk_by(|a, b| discriminant(a) == discriminant(b))
        {
            if self.refused.is_empty() {
                self.take(removals).await;
                continue;
            }
            let refused: Vec<&Step> = self.refused.iter().map(|(step, _)| step).collect();
            let waits = held(&self.is, plan, &refused, removals);
            let mut going = Vec::with_capacity(removals.len());
            for (step, waits) in removals.iter().zip(waits) {
                if waits {
                    debug!(?step, "waits for what the kernel refused");
                } else {
                    going.push(step.clone());
                }
            }
            self.take(&going).await;
        }
        self.forget_refusals(plan);
        let ends = |step: &Step| matches!(step, Step::ClearPolicy(_) | Step::ClearDomain(_));
        if todo.shrink.iter().any(ends) {
            self.close_ledger(plan);
        }
        attached
    }

    fn close_ledger(&mut self, plan: &Plan) {
        if let Err(error) = sent::close(&self.datapath, plan) {
            warn!("{}", chain(&error));
        }
    }

    /// What nobody wants any more is not refused any more.
    fn forget_refusals(&mut self, plan: &Plan) {
        if self.refused.is_empty() {
            return;
        }
        let open = steps(&self.is, plan, Scope::All);
        let open: HashSet<&Step> = open.grow.iter().chain(&open.shrink).collect();
        self.refused.retain(|(step, _)| open.contains(step));
    }

    /// Takes steps. Says whether new cgroups are told of only from now on.
    async fn take(&mut self, steps: &[Step]) -> bool {
        let mut attached = false;
        for batch in steps.chunk_by(go_together) {
            let outcomes = self.batch(batch).await;
            for (step, outcome) in batch.iter().zip(outcomes) {
                if !self.refused.is_empty() {
                    self.refused.retain(|(refused, _)| refused != step);
                }
                match outcome {
                    Ok(()) => {
                        debug!(?step, "done");
                        // Cgroups that were made before it are not told of.
                        attached |= matches!(step, Step::Attach(Hook::CgroupMkdir));
                        let absent =
                            matches!(step, Step::Attach(hook) if !self.datapath.supports(*hook));
                        if !absent {
                            self.is.record(step);
                        }
                    }
                    Err(refusal) => {
                        let refused = (step.clone(), chain(&refusal));
                        let words = &refused.1;
                        if self.told.contains(&refused) {
                            debug!(?step, "the kernel refused it again: {words}");
                        } else {
                            warn!(?step, "the kernel refused: {words}");
                        }
                        self.refused.push(refused);
                    }
                }
            }
        }
        if !steps.is_empty()
            && let Err(error) = self.datapath.maps.count_change()
        {
            // What is cached lasts a quarter of a second at most.
            warn!("{}", chain(&error));
        }
        attached
    }

    /// Takes the steps of a batch; an outcome per step. Routes go together, so that what is there
    /// is read once and not for each of them, and entries of cgroups and policies, which are many.
    async fn batch(&mut self, batch: &[Step]) -> Vec<Result<(), Refusal>> {
        let routes = || {
            let routes = batch.iter().filter_map(|step| match step {
                Step::AddRoute(route) | Step::DeleteRoute(route) => Some(*route),
                _ => None,
            });
            routes.collect::<Vec<TableRoute>>()
        };
        let outcomes = match batch {
            [Step::AddRoute(_), ..] => self.routing.add_routes(&routes()).await,
            [Step::DeleteRoute(_), ..] => self.routing.delete_routes(&routes()).await,
            many if many.len() > 1 && self.set_all(many) => {
                return many.iter().map(|_| Ok(())).collect();
            }
            others => {
                let mut outcomes = Vec::with_capacity(others.len());
                for step in others {
                    outcomes.push(self.step(step).await);
                }
                return outcomes;
            }
        };
        let outcomes = outcomes.into_iter();
        outcomes.map(|o| o.map_err(Refusal::from)).collect()
    }

    /// Writes or removes entries of one kind at once. False: not all of them could be, and which is to be seen
    /// one by one.
    fn set_all(&self, batch: &[Step]) -> bool {
        let maps = &self.datapath.maps;
        match batch {
            [Step::SetCgroup(..), ..] => {
                let entries = batch.iter().filter_map(|step| match step {
                    Step::SetCgroup(id, entry) => Some((id.0, *entry)),
                    _ => None,
                });
                maps.cgroups.set_all(&entries.collect::<Vec<_>>()).is_ok()
            }
            [Step::SetPolicy(..), ..] => {
                let entries = batch.iter().filter_map(|step| match step {
                    Step::SetPolicy(id, entry) => Some((id.0, *entry)),
                    _ => None,
                });
                maps.policies.set_all(&entries.collect::<Vec<_>>()).is_ok()
            }
            [Step::SetRuleset(..), ..] => {
                let sets = batch.iter().filter_map(|step| match step {
                    Step::SetRuleset(id, set) => Some((id.0, set.pages())),
                    _ => None,
                });
                maps.rulesets.set_all(sets).is_ok()
            }
            [Step::ClearRuleset(_), ..] => {
                let sets = batch.iter().filter_map(|step| match step {
                    Step::ClearRuleset(id) => Some(id.0),
                    _ => None,
                });
                maps.rulesets.clear(&sets.collect::<Vec<_>>()).is_ok()
            }
            _ => false,
        }
    }

    async fn step(&mut self, step: &Step) -> Result<(), Refusal> {
        let maps = &mut self.datapath.maps;
        match step {
            Step::SetSysctl(path, value) => self.sysctls.set(path, value)?,
            Step::RestoreSysctl(path) => self.sysctls.restore(path)?,
            Step::AddRoute(_) | Step::DeleteRoute(_) => {
                unreachable!("routes are taken in batches")
            }
            Step::AddRule(rule) => self.routing.add_rule(rule).await?,
            Step::DeleteRule(rule) => self.routing.delete_rule(rule).await?,
            Step::AddSource(domain, ip) => maps.sources.set(&source_key(*domain, *ip), &1)?,
            Step::RemoveSource(domain, ip) => {
                maps.sources.remove(&source_key(*domain, *ip))?;
            }
            Step::AddHost(interface, ip) => maps.hosts.set(&host_key(*interface, *ip), &1)?,
            Step::RemoveHost(interface, ip) => {
                maps.hosts.remove(&host_key(*interface, *ip))?;
            }
            Step::SetLocal(IpNet::V4(net), local) => {
                maps.locals4.set(&local_key4(*net), &local_entry(local))?;
            }
            Step::SetLocal(IpNet::V6(net), local) => {
                maps.locals6.set(&local_key6(*net), &local_entry(local))?;
            }
            Step::RemoveLocal(IpNet::V4(net)) => {
                maps.locals4.remove(&local_key4(*net))?;
            }
            Step::RemoveLocal(IpNet::V6(net)) => {
                maps.locals6.remove(&local_key6(*net))?;
            }
            Step::SetDomain(index, entry) => maps.domains.set(u32::from(index.0), entry)?,
            Step::ClearDomain(index) => {
                maps.domains
                    .set(u32::from(index.0), &DomainEntry::default())?;
            }
            Step::SetChoice(id, entry) => maps.choices.set(id.0, entry)?,
            Step::ClearChoice(id) => maps.choices.set(id.0, &ChoiceEntry::default())?,
            Step::SetPolicy(id, entry) => maps.policies.set(id.0, entry)?,
            Step::ClearPolicy(id) => maps.policies.set(id.0, &PolicyEntry::default())?,
            Step::SetName(named, entry) => maps.names.set(&name_key(named), entry)?,
            Step::RemoveName(named) => {
                maps.names.remove(&name_key(named))?;
            }
            Step::SetCgroup(id, entry) => maps.cgroups.set(&id.0, entry)?,
            Step::RemoveCgroup(id) => {
                maps.cgroups.remove(&id.0)?;
            }
            Step::Attach(hook) => self.datapath.set_hook(*hook, true)?,
            Step::Detach(hook) => self.datapath.set_hook(*hook, false)?,
            Step::Guard(interface) => self.datapath.set_guard(interface.0, true)?,
            Step::Unguard(interface) => self.datapath.set_guard(interface.0, false)?,
            Step::SetIngress(interface, entry) => {
                self.datapath.set_ingress(interface.0, Some(*entry))?;
            }
            Step::ClearIngress(interface) => self.datapath.set_ingress(interface.0, None)?,
            Step::SetShare(id, slots) => maps.shares.set(&id.0, slots)?,
            Step::ClearShare(id) => {
                maps.shares.remove(&id.0)?;
            }
            Step::SetRuleset(id, set) => maps.rulesets.set(id.0, set.pages())?,
            Step::ClearRuleset(id) => maps.rulesets.clear(&[id.0])?,
        }
        Ok(())
    }

    /// What the maps hold for a cgroup now, followed as the programs follow it.
    ///
    /// # Errors
    /// They cannot be read.
    pub fn held(&self, id: CgroupId) -> Result<Held, Error> {
        let maps = &self.datapath.maps;
        let cgroup = maps.cgroups.get(&id.0)?;
        let policy = maps.policies.get(cgroup.map_or(0, |entry| entry.policy))?;
        let mut rules = None;
        if policy.rules != 0 {
            rules = maps.rulesets.hash(policy.rules)?.map(ContentHash);
        }
        let choice = maps.choices.get(policy.choice)?;
        let slots = match choice.share {
            share::NONE => None,
            _ => maps.shares.get(&policy.choice)?,
        };
        let domain = maps.domains.get(choice.domain)?;
        Ok(Held {
            cgroup,
            policy,
            rules,
            choice,
            share: slots.map(Arc::new),
            domain,
        })
    }

    async fn read(&mut self) -> Result<(), Error> {
        let maps = &self.datapath.maps;
        let mut locals = BTreeMap::new();
        for (key, entry) in maps.locals4.entries()? {
            if let Some(net) = net4(&key) {
                locals.insert(net, local(&entry, false));
            }
        }
        for (key, entry) in maps.locals6.entries()? {
            if let Some(net) = net6(&key) {
                locals.insert(net, local(&entry, true));
            }
        }
        self.is = Plan {
            hooks: self.datapath.hooks()?,
            guards: self.datapath.guards()?.into_iter().map(IfIndex).collect(),
            ingress: keyed(self.datapath.ingress()?, IfIndex),
            hosts: maps
                .hosts
                .entries()?
                .into_iter()
                .map(|(key, _)| host(&key))
                .collect(),
            cgroups: keyed(maps.cgroups.entries()?, CgroupId),
            names: maps
                .names
                .entries()?
                .iter()
                .filter_map(|(key, entry)| Some((named(key)?, *entry)))
                .collect(),
            policies: keyed(maps.policies.entries()?, PolicyId),
            rulesets: maps
                .rulesets
                .hashes()?
                .into_iter()
                .map(|(index, hash)| (RulesetId(index), Image::known(ContentHash(hash))))
                .collect(),
            choices: keyed(maps.choices.entries()?, ChoiceId),
            shares: maps
                .shares
                .entries()?
                .into_iter()
                .map(|(choice, slots)| (ChoiceId(choice), Arc::new(slots)))
                .collect(),
            domains: maps
                .domains
                .entries()?
                .into_iter()
                .filter_map(|(index, entry)| Some((DomainIndex(u16::try_from(index).ok()?), entry)))
                .collect(),
            sources: maps
                .sources
                .entries()?
                .into_iter()
                .filter_map(|(key, _)| source(&key))
                .collect::<BTreeSet<_>>(),
            locals,
            rules: self.routing.rules().await?,
            routes: self.routing.routes().await?,
            sysctls: self.sysctls.current(),
        };
        Ok(())
    }
}

/// Whether a step comes before programs are attached.
fn fills(step: &Step) -> bool {
    step.is_entry()
        || matches!(
            step,
            Step::SetSysctl(..)
                | Step::AddRoute(_)
                | Step::AddRule(_)
                | Step::Attach(Hook::CgroupMkdir | Hook::CgroupRmdir)
        )
}

/// Whether two steps that follow each other are taken in one batch.
fn go_together(one: &Step, next: &Step) -> bool {
    matches!(
        (one, next),
        (Step::AddRoute(_), Step::AddRoute(_))
            | (Step::DeleteRoute(_), Step::DeleteRoute(_))
            | (Step::SetCgroup(..), Step::SetCgroup(..))
            | (Step::SetPolicy(..), Step::SetPolicy(..))
            | (Step::SetRuleset(..), Step::SetRuleset(..))
            | (Step::ClearRuleset(_), Step::ClearRuleset(_))
    )
}

/// An error with its causes, in one line.
pub(crate) fn chain(error: &dyn std::error::Error) -> String {
    let mut words = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        words.push_str(": ");
        words.push_str(&error.to_string());
        cause = error.source();
    }
    words
}

fn keyed<K: Ord, N, V>(
    entries: impl IntoIterator<Item = (N, V)>,
    key: fn(N) -> K,
) -> BTreeMap<K, V> {
    entries.into_iter().map(|(n, v)| (key(n), v)).collect()
}
