//! Bringing the plan up to date: cgroups, then policies, then domains, then choices, then the
//! network. Each step looks only at what the steps before it and the events touched.

use std::collections::BTreeSet;
use std::sync::Arc;

use steer_common::{CgroupEntry, PolicyEntry, cgroup_flags, policy_flags};

use super::awaited::split;
use super::index::Found;
use super::ruled::{Compiled, without_rules};
use super::{Changes, Engine, Uses};
use crate::domains::Domains;
use crate::groups;
use crate::ids::{CgroupId, ChoiceId, DomainIndex, PolicyId};
use crate::name::Name;
use crate::pattern::Reach;
use crate::plan::{Family, Plan, inputs, network};
use crate::policy::{LocalNetworks, Otherwise, Policy, Rebind};
use crate::select::Inputs;

impl Engine {
    /// Brings the plan up to date and says what changed in it.
    pub fn settle(&mut self) -> Changes {
        let mut changes = Changes::default();
        let now = (self.index.acts(), self.index.strict(), self.index.repairs());
        let mut network = self.dirty.network;
        if self.dirty.before != Some(now) {
            network = true;
            self.dirty.all_cgroups |= self.dirty.before.is_none_or(|(acts, ..)| acts != now.0);
        }
        if self.dirty.network {
            self.settle_domains();
        }
        // A cgroup's entry says whether names below it have room.
        let mut touched = self.settle_names(&mut changes);
        touched.extend(self.settle_cgroups(&mut changes));
        for policy in touched {
            self.settle_policy(policy, &mut changes);
        }
        self.settle_rulesets(&mut changes);
        self.settle_any(&mut changes);
        if self.dirty.wanted {
            network |= self.settle_indices();
        }
        self.settle_choices(&mut changes);
        // What this settling took back may be what others had no room for.
        let starved = self.starved();
        if !starved.is_empty() && self.state.memory.has_room_for_rules() {
            for policy in starved {
                self.settle_policy(policy, &mut changes);
            }
            self.settle_rulesets(&mut changes);
            self.settle_choices(&mut changes);
        }
        if network {
            changes.network = self.settle_network();
        }
        self.dirty = super::Dirty {
            before: Some(now),
            ..super::Dirty::default()
        };
        changes
    }

    /// What the programs may leave out while no policy asks for it.
    fn settle_any(&mut self, changes: &mut Changes) {
        let none = PolicyId(0);
        let any = self.index.strict().then_some(PolicyEntry {
            flags: policy_flags::STRICT,
            ..PolicyEntry::default()
        });
        let old = match any {
            Some(entry) => self.plan.policies.insert(none, entry),
            None => self.plan.policies.remove(&none),
        };
        if old != any {
            changes.policies.insert(none);
        }
    }

    fn settle_domains(&mut self) {
        let domains = Domains::new(&self.state.config, &self.state.network);
        let mut changed = self.domains.changed(&domains);
        let state = &mut self.state;
        changed.extend(
            state
                .health
                .observe(&state.config, &domains, &state.history, state.now),
        );
        self.domains = domains;
        self.touch_domains(changed);
        // What a name in `use` stands for may have changed with the domains.
        self.dirty.wanted = true;
    }

    pub(super) fn touch_choices_of(&mut self, name: &Name) {
        if let Some(choices) = self.choices_by_name.get(name) {
            self.dirty.choices.extend(choices);
        }
    }

    /// Decides cgroups; returns the kernel policies they had and have.
    fn settle_cgroups(&mut self, changes: &mut Changes) -> BTreeSet<PolicyId> {
        let mut cgroups = std::mem::take(&mut self.dirty.cgroups);
        if self.dirty.all_cgroups {
            let managed = self.state.cgroups.subtree(self.state.cgroup_root);
            cgroups.extend(managed);
            cgroups.extend(self.plan.cgroups.keys());
            cgroups.extend(self.conflicts.keys());
            // Numbers that an earlier agent gave out and nothing bears now.
            let given = self.state.memory.policies.iter();
            let mut touched: BTreeSet<PolicyId> =
                given.map(|(number, _)| PolicyId(number)).collect();
            for id in cgroups {
                touched.extend(self.settle_cgroup(id, changes));
            }
            return touched;
        }
        cgroups
            .into_iter()
            .flat_map(|id| self.settle_cgroup(id, changes))
            .collect()
    }

    fn settle_cgroup(
        &mut self,
        id: CgroupId,
        changes: &mut Changes,
    ) -> impl Iterator<Item = PolicyId> + use<> {
        let new = self.decide_cgroup(id);
        let old = match new {
            Some(entry) => self.plan.cgroups.insert(id, entry),
            None => self.plan.cgroups.remove(&id),
        };
        if new != old {
            changes.cgroups.insert(id);
        }
        self.count_policy(new, old, |uses| &mut uses.cgroups)
    }

    /// Counts that an entry took the place of another; returns their policies.
    pub(super) fn count_policy(
        &mut self,
        new: Option<CgroupEntry>,
        old: Option<CgroupEntry>,
        kind: fn(&mut Uses) -> &mut u32,
    ) -> impl Iterator<Item = PolicyId> + use<> {
        let policy = |entry: Option<CgroupEntry>| {
            entry
                .map(|entry| entry.policy)
                .filter(|policy| *policy != 0)
                .map(PolicyId)
        };
        let (new, old) = (policy(new), policy(old));
        if let Some(new) = new {
            *kind(self.policy_uses.entry(new).or_default()) += 1;
        }
        if let Some(uses) = old.and_then(|old| self.policy_uses.get_mut(&old)) {
            *kind(uses) -= 1;
        }
        new.into_iter().chain(old)
    }

    fn decide_cgroup(&mut self, id: CgroupId) -> Option<CgroupEntry> {
        self.conflicts.remove(&id);
        self.unnumbered.remove(&id);
        let tree = &self.state.cgroups;
        if !self.index.acts() || !tree.is_below(id, self.state.cgroup_root) {
            return None;
        }
        if self.state.exempt.contains(&id) {
            return Some(CgroupEntry {
                policy: 0,
                flags: cgroup_flags::EXEMPT,
                place: 0,
            });
        }
        let path = tree.path(id).unwrap_or_default();
        let mut nodes: Vec<Option<CgroupId>> = tree.ancestors(id).map(Some).collect();
        nodes.reverse();
        let found = self.index.find(&path, &nodes, &self.state.exempt);
        if !found.conflicts.is_empty() {
            self.conflicts.insert(id, found.conflicts.clone());
        }
        let (mut entry, numbered) = self.entry(&path, found);
        if !numbered {
            self.unnumbered.insert(id);
        }
        if entry == CgroupEntry::default() {
            return None;
        }
        // A policy on the real root itself would catch packets that the kernel makes.
        if id == self.state.cgroups.root() {
            entry.flags |= cgroup_flags::INHERIT_ONLY;
        }
        Some(entry)
    }

    /// The entry for what was found at a path, and whether there was a number for its policy.
    pub(super) fn entry(&mut self, path: &str, found: Found) -> (CgroupEntry, bool) {
        let mut entry = CgroupEntry {
            policy: 0,
            flags: match found.reach {
                Reach::None => 0,
                Reach::Child => cgroup_flags::CHILDREN_UNDECIDED,
                Reach::Descendants => cgroup_flags::DESCENDANTS_UNDECIDED,
            },
            place: 0,
        };
        if found.too_deep {
            entry.flags |= cgroup_flags::UNDECIDED;
        }
        if self.index.strict_units().next().is_some() {
            entry.flags |= cgroup_flags::UNITS_UNDECIDED;
        }
        if self.index.awaited().below(path) {
            entry.place = self.place(path).map_or(0, |place| place.0);
            if self.unplaced.iter().any(|other| split(other).0 == path) {
                entry.flags |= cgroup_flags::CHILDREN_UNDECIDED;
            }
        }
        let chain = self.chain(found.order);
        if chain.is_empty() {
            return (entry, true);
        }
        let number = self.state.memory.policies.give(&chain);
        match number {
            Some(number) => entry.policy = number,
            // A strict policy that cannot be enforced is closed, not open.
            None if chain.iter().any(|name| self.is_strict(name)) => {
                entry.flags |= cgroup_flags::UNDECIDED;
            }
            None => {}
        }
        (entry, number.is_some())
    }

    pub(super) fn is_strict(&self, name: &Name) -> bool {
        let policy = self.state.policy(name.as_str());
        policy.is_some_and(|policy| policy.strict)
    }

    /// The first policy of `order`, and behind each `otherwise = "next"` the next.
    pub(super) fn chain(&self, mut order: Vec<Name>) -> Vec<Name> {
        let last = order.iter().position(|name| {
            let policy = self.state.policy(name.as_str());
            policy.is_none_or(|policy| policy.otherwise != Otherwise::Next)
        });
        if let Some(last) = last {
            order.truncate(last + 1);
        }
        order
    }

    fn settle_policy(&mut self, id: PolicyId, changes: &mut Changes) {
        let used = self.policy_uses.get(&id).is_some_and(Uses::any);
        let chain = self
            .state
            .memory
            .policies
            .key(id.0)
            .filter(|_| used)
            .cloned();
        let had = self.compiled.remove(&id);
        let now = chain
            .as_ref()
            .and_then(|chain| self.compile(chain, had.as_ref(), changes));
        let new = chain
            .as_ref()
            .map(|chain| self.decide_policy(chain, now.as_deref()));
        self.put_compiled(id, had.as_ref(), now);
        let old = match new {
            Some(entry) => self.plan.policies.insert(id, entry),
            None => {
                self.policy_uses.remove(&id);
                self.state.memory.policies.free(id.0);
                self.plan.policies.remove(&id)
            }
        };
        if new != old {
            changes.policies.insert(id);
        }
        let choice = |entry: Option<PolicyEntry>| {
            entry
                .map(|entry| entry.choice)
                .filter(|choice| *choice != 0)
                .map(ChoiceId)
        };
        if let Some(new) = choice(new) {
            *self.choice_uses.entry(new).or_default() += 1;
        }
        if let Some(old) = choice(old)
            && release(self.choice_uses.get_mut(&old))
        {
            self.dirty.choices.insert(old);
        }
    }

    /// Flags hold for the whole chain, since any of its policies may decide: strict if one is, and
    /// local networks passed if all pass them.
    fn decide_policy(&mut self, chain: &Arc<[Name]>, rules: Option<&Compiled>) -> PolicyEntry {
        let found = chain.iter();
        let found = found.filter_map(|name| self.state.policy(name.as_str()));
        let found: Vec<&Policy> = found.collect();
        let policies = || found.iter().copied();
        let mut flags = 0;
        if policies().any(|policy| policy.strict) {
            flags |= policy_flags::STRICT;
        }
        if policies().all(|policy| policy.local_networks == LocalNetworks::Pass) {
            flags |= policy_flags::LOCAL_PASS;
        }
        if policies().any(Policy::repairs) {
            flags |= policy_flags::REPAIR;
        }
        if policies().any(Policy::moves_datagrams) {
            flags |= policy_flags::MOVE;
        }
        if policies().any(|policy| policy.rebind == Rebind::Datagram) {
            flags |= policy_flags::REBIND_DATAGRAM;
        }
        // The first that says anything.
        match policies().find_map(|policy| policy.prefer_family) {
            Some(Family::Ipv4) => flags |= policy_flags::PREFER_IPV4,
            Some(Family::Ipv6) => flags |= policy_flags::PREFER_IPV6,
            None => {}
        }
        let strict = flags & policy_flags::STRICT != 0;
        let (inputs, rules): (Inputs, u32) = match rules.map(Compiled::ruleset) {
            // A strict policy that cannot be enforced is closed.
            None if self.cannot_enforce(chain) => (without_rules(true), 0),
            None => (self.inputs(chain), 0),
            Some(Ok(ruleset)) => (self.inputs(chain), ruleset.0),
            Some(Err(_)) => (without_rules(strict), 0),
        };
        PolicyEntry {
            choice: self.give_choice(&inputs).unwrap_or(0),
            flags,
            rules,
        }
    }

    /// Gives an index to each domain that policies can choose; returns whether anything is different.
    fn settle_indices(&mut self) -> bool {
        let world = self.world();
        let names: Vec<Name> = self.uses.keys().cloned().collect();
        let wanted: BTreeSet<Name> = world.expand(&names).into_iter().collect();
        let mask = self.state.config.agent.mark_mask;
        let in_use = self.dirty.in_use.take();
        let memory = &mut self.state.memory;
        let before = memory.indices.clone();
        memory.indices.retain(|name, index| {
            let retired = !wanted.contains(name);
            let free = in_use
                .as_ref()
                .is_some_and(|in_use| !in_use.contains(index));
            (1..=mask.capacity()).contains(&index.0) && !(retired && free)
        });
        let mut taken: BTreeSet<DomainIndex> = memory.indices.values().copied().collect();
        let unmarked = std::mem::take(&mut self.unmarked);
        for name in &wanted {
            if memory.indices.contains_key(name) || self.domains.get(name.as_str()).is_none() {
                continue;
            }
            // Freed indices come back as late as possible.
            let capacity = mask.capacity();
            let after = (memory.last_index.min(capacity)..capacity).map(|index| index + 1);
            let free = after
                .chain(1..=capacity)
                .map(DomainIndex)
                .find(|index| !taken.contains(index));
            match free {
                Some(index) => {
                    taken.insert(index);
                    memory.last_index = index.0;
                    memory.indices.insert(name.clone(), index);
                }
                None => {
                    self.unmarked.insert(name.clone());
                }
            }
        }
        let installed = memory
            .indices
            .iter()
            .filter(|(name, _)| wanted.contains(*name))
            .map(|(name, index)| (name.clone(), *index))
            .collect();
        // Domains that no policy can choose have tables and marks too, as long as they have an index.
        let indices_changed = before != memory.indices;
        if installed == self.installed && unmarked == self.unmarked {
            return indices_changed;
        }
        let old = std::mem::replace(&mut self.installed, installed);
        let differs: Vec<Name> = old
            .keys()
            .chain(self.installed.keys())
            .filter(|name| old.get(*name) != self.installed.get(*name))
            .cloned()
            .collect();
        self.touch_domains(differs);
        true
    }

    fn settle_choices(&mut self, changes: &mut Changes) {
        let mut choices = std::mem::take(&mut self.dirty.choices);
        if self.dirty.all_choices {
            self.choices_by_name.clear();
            choices.extend(self.plan.choices.keys());
        }
        let given: Vec<ChoiceId> = if self.dirty.before.is_none() {
            // Numbers that an earlier agent gave out and nothing bears now.
            self.state
                .memory
                .choices
                .iter()
                .map(|(number, _)| ChoiceId(number))
                .collect()
        } else {
            Vec::new()
        };
        choices.extend(given);
        for &id in &choices {
            let used = self.choice_uses.get(&id).is_some_and(|count| *count > 0);
            let inputs = self.state.memory.choices.key(id.0).cloned();
            let new = inputs
                .as_ref()
                .filter(|_| used)
                .map(|inputs| self.decide_choice(id, inputs));
            let old = match (new, inputs) {
                (Some(entry), Some(inputs)) => {
                    self.name_choice(id, &inputs, true);
                    self.plan.choices.insert(id, entry)
                }
                (_, inputs) => {
                    if let Some(inputs) = inputs {
                        self.name_choice(id, &inputs, false);
                    }
                    self.choice_uses.remove(&id);
                    self.shares.remove(id);
                    self.state.memory.choices.free(id.0);
                    self.state.chosen.remove(&id);
                    self.plan.choices.remove(&id)
                }
            };
            if new != old {
                changes.choices.insert(id);
            }
        }
        self.settle_shares(choices, changes);
    }

    /// Notes or forgets which names matter to a choice.
    fn name_choice(&mut self, id: ChoiceId, inputs: &Inputs, matters: bool) {
        let config = &self.state.config;
        let names: Vec<Name> = inputs
            .iter()
            .flat_map(|stage| &stage.use_)
            .flat_map(|name| groups::names_of(config, name))
            .collect();
        if matters && inputs.iter().any(|stage| stage.wish.is_about_measured()) {
            self.measured.insert(id);
        } else {
            self.measured.remove(&id);
        }
        for name in &names {
            if matters {
                match self.choices_by_name.get_mut(name) {
                    Some(choices) => {
                        choices.insert(id);
                    }
                    None => {
                        self.choices_by_name
                            .insert(name.clone(), BTreeSet::from([id]));
                    }
                }
            } else if let Some(choices) = self.choices_by_name.get_mut(name) {
                choices.remove(&id);
                if choices.is_empty() {
                    self.choices_by_name.remove(name);
                }
            }
        }
    }

    /// Makes the network part again; returns whether it is different.
    fn settle_network(&mut self) -> bool {
        let inputs = inputs::Inputs {
            config: &self.state.config,
            network: &self.state.network,
            domains: &self.domains,
            installed: &self.installed,
            indexed: &self.state.memory.indices,
            acts: self.index.acts(),
            strict: self.index.strict(),
            repairs: self.index.repairs(),
        };
        let mut new = Plan {
            cgroups: std::mem::take(&mut self.plan.cgroups),
            names: std::mem::take(&mut self.plan.names),
            policies: std::mem::take(&mut self.plan.policies),
            rulesets: std::mem::take(&mut self.plan.rulesets),
            choices: std::mem::take(&mut self.plan.choices),
            shares: std::mem::take(&mut self.plan.shares),
            ..Plan::default()
        };
        let old = std::mem::take(&mut self.plan);
        network::write(&inputs, &mut new);
        let same = network::same(&old, &new);
        self.plan = new;
        !same
    }
}

/// One use less; returns whether none is left.
pub(super) fn release(count: Option<&mut usize>) -> bool {
    match count {
        Some(count) => {
            *count = count.saturating_sub(1);
            *count == 0
        }
        None => true,
    }
}
