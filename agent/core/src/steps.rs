//! The difference between what is and what should be, in an order that leaks nothing on the way.
//!
//! What flows need is there before anything sends them to it: routes, rules and domains, then shares,
//! choices, compiled rules and policies, then cgroups, then programs, which so find all that they read from their first
//! run on, also when they take the place of those that read other maps. What goes, goes in the reverse
//! order. So a reconcile that is cut short at any step leaves every flow on its old decision or on its
//! new one.
//!
//! The kernel may refuse a step. What grows goes on then: what was written although something below
//! it is missing refuses its flows, while an application that was left without its policy would
//! leak. What goes waits: see [`held`].

mod held;

pub use held::held;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;
use steer_common::{CgroupEntry, ChoiceEntry, DomainEntry, IngressEntry, PolicyEntry, ShareEntry};

use crate::engine::Changes;
use crate::ids::{CgroupId, ChoiceId, DomainIndex, IfIndex, PolicyId, RulesetId};
use crate::plan::{Hook, Local, Named, Plan, Rule, TableRoute};
use crate::rules::image::Image;

/// One idempotent change of one object.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Step {
    /// Writes a setting below /proc/sys.
    SetSysctl(String, String),
    /// Gives a setting its old value back.
    RestoreSysctl(String),
    /// Adds a route.
    AddRoute(TableRoute),
    /// Removes a route.
    DeleteRoute(TableRoute),
    /// Adds a rule.
    AddRule(Rule),
    /// Removes a rule.
    DeleteRule(Rule),
    /// Adds an address of a domain.
    AddSource(DomainIndex, IpAddr),
    /// Removes an address of a domain.
    RemoveSource(DomainIndex, IpAddr),
    /// Adds an address of the host and where it is at home.
    AddHost(IfIndex, IpAddr),
    /// Removes one.
    RemoveHost(IfIndex, IpAddr),
    /// Writes an on-link prefix.
    SetLocal(IpNet, Local),
    /// Removes an on-link prefix.
    RemoveLocal(IpNet),
    /// Writes a domain.
    SetDomain(DomainIndex, DomainEntry),
    /// Clears a domain.
    ClearDomain(DomainIndex),
    /// Writes the slots of a choice whose flows are shared.
    SetShare(ChoiceId, Arc<ShareEntry>),
    /// Clears them.
    ClearShare(ChoiceId),
    /// Writes a choice.
    SetChoice(ChoiceId, ChoiceEntry),
    /// Clears a choice.
    ClearChoice(ChoiceId),
    /// Publishes compiled rules.
    SetRuleset(RulesetId, Image),
    /// Takes them away.
    ClearRuleset(RulesetId),
    /// Writes a policy.
    SetPolicy(PolicyId, PolicyEntry),
    /// Clears a policy.
    ClearPolicy(PolicyId),
    /// Attaches a program.
    Attach(Hook),
    /// Detaches a program.
    Detach(Hook),
    /// Attaches the guard to an interface.
    Guard(IfIndex),
    /// Detaches the guard from an interface.
    Unguard(IfIndex),
    /// Says what is done with what comes in by an interface.
    SetIngress(IfIndex, IngressEntry),
    /// Leaves it alone again.
    ClearIngress(IfIndex),
    /// Writes the entry of a cgroup that policies name.
    SetName(Named, CgroupEntry),
    /// Removes it.
    RemoveName(Named),
    /// Writes the policy in force for a cgroup.
    SetCgroup(CgroupId, CgroupEntry),
    /// Removes a cgroup's entry.
    RemoveCgroup(CgroupId),
}

impl Step {
    /// Whether it writes what programs read.
    pub const fn is_entry(&self) -> bool {
        matches!(
            self,
            Self::AddSource(..)
                | Self::AddHost(..)
                | Self::SetLocal(..)
                | Self::SetDomain(..)
                | Self::SetShare(..)
                | Self::SetChoice(..)
                | Self::SetRuleset(..)
                | Self::SetPolicy(..)
                | Self::SetName(..)
                | Self::SetCgroup(..)
        )
    }
}

/// As people are told that the kernel refused it.
impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::SetSysctl(path, value) => write!(f, "to set {path} to {value}"),
            Self::RestoreSysctl(path) => write!(f, "to give {path} its old value back"),
            Self::AddRoute(route) => write!(
                f,
                "the route to {} in table {}",
                route.destination, route.table
            ),
            Self::DeleteRoute(route) => write!(
                f,
                "to remove the route to {} from table {}",
                route.destination, route.table
            ),
            Self::AddRule(rule) => write!(f, "the rule with priority {}: {rule}", rule.priority),
            Self::DeleteRule(rule) => {
                write!(
                    f,
                    "to remove the rule with priority {}: {rule}",
                    rule.priority
                )
            }
            Self::AddSource(domain, ip) => write!(f, "the source {ip} of domain {domain}"),
            Self::RemoveSource(domain, ip) => {
                write!(f, "to remove the source {ip} of domain {domain}")
            }
            Self::AddHost(interface, ip) => {
                write!(f, "the address {ip} of the host at interface {interface}")
            }
            Self::RemoveHost(interface, ip) => {
                write!(
                    f,
                    "to remove the address {ip} of the host at interface {interface}"
                )
            }
            Self::SetLocal(net, _) => write!(f, "the entry of the local network {net}"),
            Self::RemoveLocal(net) => write!(f, "to remove the entry of the local network {net}"),
            Self::SetDomain(domain, _) => write!(f, "the entry of domain {domain}"),
            Self::ClearDomain(domain) => write!(f, "to clear the entry of domain {domain}"),
            Self::SetChoice(choice, _) => write!(f, "the entry of choice {choice}"),
            Self::ClearChoice(choice) => write!(f, "to clear the entry of choice {choice}"),
            Self::SetShare(choice, _) => write!(f, "the slots of choice {choice}"),
            Self::ClearShare(choice) => write!(f, "to clear the slots of choice {choice}"),
            Self::SetRuleset(set, _) => write!(f, "the rules with number {set}"),
            Self::ClearRuleset(set) => write!(f, "to remove the rules with number {set}"),
            Self::SetPolicy(policy, _) => write!(f, "the entry of policy {policy}"),
            Self::ClearPolicy(policy) => write!(f, "to clear the entry of policy {policy}"),
            Self::Attach(hook) => write!(f, "to attach the program {hook}"),
            Self::Detach(hook) => write!(f, "to detach the program {hook}"),
            Self::Guard(interface) => write!(f, "the guard at interface {interface}"),
            Self::Unguard(interface) => write!(f, "to remove the guard from interface {interface}"),
            Self::SetIngress(interface, _) => {
                write!(f, "the program for what comes in by interface {interface}")
            }
            Self::ClearIngress(interface) => write!(
                f,
                "to remove the program for what comes in by interface {interface}"
            ),
            Self::SetName(named, _) => write!(f, "the entry of cgroups named {}", named.name),
            Self::RemoveName(named) => {
                write!(f, "to remove the entry of cgroups named {}", named.name)
            }
            Self::SetCgroup(cgroup, _) => write!(f, "the entry of the cgroup with id {cgroup}"),
            Self::RemoveCgroup(cgroup) => {
                write!(f, "to remove the entry of the cgroup with id {cgroup}")
            }
        }
    }
}

/// What a comparison looks at.
#[derive(Clone, Copy, Debug)]
pub enum Scope<'a> {
    /// Every object.
    All,
    /// The objects that may have changed.
    Changed(&'a Changes),
}

/// The way from what is to what should be: all of `grow`, then all of `shrink`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Steps {
    /// What comes or changes, what is led to before what leads there.
    pub grow: Vec<Step>,
    /// What goes, what leads somewhere before what it leads to.
    pub shrink: Vec<Step>,
}

impl Steps {
    /// Whether there is nothing to do.
    pub fn is_empty(&self) -> bool {
        self.grow.is_empty() && self.shrink.is_empty()
    }

    /// All of them in order.
    pub fn iter(&self) -> impl Iterator<Item = &Step> {
        self.grow.iter().chain(&self.shrink)
    }
}

/// The steps from `is` to `wanted`. Empty if and only if the two are equal within `scope`.
pub fn steps(is: &Plan, wanted: &Plan, scope: Scope<'_>) -> Steps {
    let mut grow = Vec::new();
    let mut shrink = Vec::new();
    let network = match scope {
        Scope::All => true,
        Scope::Changed(changes) => changes.network,
    };

    if network {
        for (path, value) in changed(&is.sysctls, &wanted.sysctls) {
            grow.push(Step::SetSysctl(path.clone(), value.clone()));
        }
        // The kernel refuses a gateway that no route leads to.
        let routes = wanted.routes.difference(&is.routes).copied();
        let (near, far) = routes.partition::<Vec<_>, _>(|route| route.gateway.is_none());
        grow.extend(near.into_iter().chain(far).map(Step::AddRoute));
        grow.extend(
            wanted
                .rules
                .difference(&is.rules)
                .copied()
                .map(Step::AddRule),
        );
        for &(domain, ip) in wanted.sources.difference(&is.sources) {
            grow.push(Step::AddSource(domain, ip));
        }
        // That an address is the host's comes last and goes first: between, it may be anybody's.
        let hosts: Vec<_> = wanted.hosts.difference(&is.hosts).copied().collect();
        grow.extend(
            hosts
                .into_iter()
                .rev()
                .map(|(interface, ip)| Step::AddHost(interface, ip)),
        );
        for (&prefix, &local) in changed(&is.locals, &wanted.locals) {
            grow.push(Step::SetLocal(prefix, local));
        }
        for (&index, &entry) in changed(&is.domains, &wanted.domains).filter(|(_, e)| leads(e)) {
            grow.push(Step::SetDomain(index, entry));
        }
    }

    let (set, gone) = match scope {
        Scope::All => compare_all(&is.shares, &wanted.shares),
        Scope::Changed(c) => compare(&is.shares, &wanted.shares, &c.shares),
    };
    grow.extend(set.into_iter().map(|(id, slots)| Step::SetShare(id, slots)));
    let gone_shares = gone;
    let (set, gone) = match scope {
        Scope::All => compare_all(&is.choices, &wanted.choices),
        Scope::Changed(c) => compare(&is.choices, &wanted.choices, &c.choices),
    };
    grow.extend(
        set.into_iter()
            .map(|(id, entry)| Step::SetChoice(id, entry)),
    );
    let gone_choices = gone;
    let (set, gone) = match scope {
        Scope::All => compare_all(&is.rulesets, &wanted.rulesets),
        Scope::Changed(c) => compare(&is.rulesets, &wanted.rulesets, &c.rulesets),
    };
    grow.extend(
        set.into_iter()
            .map(|(id, image)| Step::SetRuleset(id, image)),
    );
    let gone_rulesets = gone;
    let (set, gone) = match scope {
        Scope::All => compare_all(&is.policies, &wanted.policies),
        Scope::Changed(c) => compare(&is.policies, &wanted.policies, &c.policies),
    };
    grow.extend(
        set.into_iter()
            .map(|(id, entry)| Step::SetPolicy(id, entry)),
    );
    let gone_policies = gone;

    let (set, gone) = match scope {
        Scope::All => compare_all(&is.names, &wanted.names),
        Scope::Changed(c) => compare(&is.names, &wanted.names, &c.names),
    };
    grow.extend(
        set.into_iter()
            .map(|(name, entry)| Step::SetName(name, entry)),
    );
    let gone_names = gone;
    let (set, gone) = match scope {
        Scope::All => compare_all(&is.cgroups, &wanted.cgroups),
        Scope::Changed(c) => compare(&is.cgroups, &wanted.cgroups, &c.cgroups),
    };
    grow.extend(
        set.into_iter()
            .map(|(id, entry)| Step::SetCgroup(id, entry)),
    );

    if network {
        for (&interface, &entry) in changed(&is.ingress, &wanted.ingress) {
            grow.push(Step::SetIngress(interface, entry));
        }
        grow.extend(
            wanted
                .guards
                .difference(&is.guards)
                .copied()
                .map(Step::Guard),
        );
        grow.extend(
            wanted
                .hooks
                .difference(&is.hooks)
                .copied()
                .map(Step::Attach),
        );
    }

    shrink.extend(gone.into_iter().map(Step::RemoveCgroup));
    shrink.extend(gone_names.into_iter().map(Step::RemoveName));

    if network {
        shrink.extend(
            is.hooks
                .difference(&wanted.hooks)
                .copied()
                .map(Step::Detach),
        );
        shrink.extend(
            is.guards
                .difference(&wanted.guards)
                .copied()
                .map(Step::Unguard),
        );
        for &interface in missing(&is.ingress, &wanted.ingress) {
            shrink.push(Step::ClearIngress(interface));
        }
    }
    shrink.extend(gone_policies.into_iter().map(Step::ClearPolicy));
    shrink.extend(gone_rulesets.into_iter().map(Step::ClearRuleset));
    shrink.extend(gone_choices.into_iter().map(Step::ClearChoice));
    shrink.extend(gone_shares.into_iter().map(Step::ClearShare));
    if network {
        for (&index, &entry) in changed(&is.domains, &wanted.domains).filter(|(_, e)| !leads(e)) {
            shrink.push(Step::SetDomain(index, entry));
        }
        for &index in missing(&is.domains, &wanted.domains) {
            shrink.push(Step::ClearDomain(index));
        }
        for &prefix in missing(&is.locals, &wanted.locals) {
            shrink.push(Step::RemoveLocal(prefix));
        }
        for &(interface, ip) in is.hosts.difference(&wanted.hosts) {
            shrink.push(Step::RemoveHost(interface, ip));
        }
        for &(domain, ip) in is.sources.difference(&wanted.sources) {
            shrink.push(Step::RemoveSource(domain, ip));
        }
        shrink.extend(
            is.rules
                .difference(&wanted.rules)
                .copied()
                .map(Step::DeleteRule),
        );
        shrink.extend(
            is.routes
                .difference(&wanted.routes)
                .copied()
                .map(Step::DeleteRoute),
        );
        for path in missing(&is.sysctls, &wanted.sysctls) {
            shrink.push(Step::RestoreSysctl(path.clone()));
        }
    }
    Steps { grow, shrink }
}

impl Plan {
    /// What is, after `step` was done.
    pub fn record(&mut self, step: &Step) {
        match step {
            Step::SetSysctl(path, value) => {
                self.sysctls.insert(path.clone(), value.clone());
            }
            Step::RestoreSysctl(path) => {
                self.sysctls.remove(path);
            }
            Step::AddRoute(route) => {
                self.routes.insert(*route);
            }
            Step::DeleteRoute(route) => {
                self.routes.remove(route);
            }
            Step::AddRule(rule) => {
                self.rules.insert(*rule);
            }
            Step::DeleteRule(rule) => {
                self.rules.remove(rule);
            }
            Step::AddSource(domain, ip) => {
                self.sources.insert((*domain, *ip));
            }
            Step::RemoveSource(domain, ip) => {
                self.sources.remove(&(*domain, *ip));
            }
            Step::AddHost(interface, ip) => {
                self.hosts.insert((*interface, *ip));
            }
            Step::RemoveHost(interface, ip) => {
                self.hosts.remove(&(*interface, *ip));
            }
            Step::SetLocal(prefix, local) => {
                self.locals.insert(*prefix, *local);
            }
            Step::RemoveLocal(prefix) => {
                self.locals.remove(prefix);
            }
            Step::SetDomain(index, entry) => {
                self.domains.insert(*index, *entry);
            }
            Step::ClearDomain(index) => {
                self.domains.remove(index);
            }
            Step::SetChoice(id, entry) => {
                self.choices.insert(*id, *entry);
            }
            Step::ClearChoice(id) => {
                self.choices.remove(id);
            }
            Step::SetShare(id, slots) => {
                self.shares.insert(*id, Arc::clone(slots));
            }
            Step::ClearShare(id) => {
                self.shares.remove(id);
            }
            Step::SetRuleset(id, image) => {
                self.rulesets.insert(*id, image.clone());
            }
            Step::ClearRuleset(id) => {
                self.rulesets.remove(id);
            }
            Step::SetPolicy(id, entry) => {
                self.policies.insert(*id, *entry);
            }
            Step::ClearPolicy(id) => {
                self.policies.remove(id);
            }
            Step::Attach(hook) => {
                self.hooks.insert(*hook);
            }
            Step::Detach(hook) => {
                self.hooks.remove(hook);
            }
            Step::Guard(interface) => {
                self.guards.insert(*interface);
            }
            Step::Unguard(interface) => {
                self.guards.remove(interface);
            }
            Step::SetIngress(interface, entry) => {
                self.ingress.insert(*interface, *entry);
            }
            Step::ClearIngress(interface) => {
                self.ingress.remove(interface);
            }
            Step::SetName(name, entry) => {
                self.names.insert(name.clone(), *entry);
            }
            Step::RemoveName(name) => {
                self.names.remove(name);
            }
            Step::SetCgroup(id, entry) => {
                self.cgroups.insert(*id, *entry);
            }
            Step::RemoveCgroup(id) => {
                self.cgroups.remove(id);
            }
        }
    }
}

/// Whether flows can be put on a domain. One that leads nowhere any more is written after the choices
/// that left it.
const fn leads(entry: &DomainEntry) -> bool {
    entry.ifindex != 0 && entry.flags != 0
}

/// Entries of `wanted` that `is` has not, or has otherwise.
fn changed<'a, K: Ord, V: PartialEq>(
    is: &'a BTreeMap<K, V>,
    wanted: &'a BTreeMap<K, V>,
) -> impl Iterator<Item = (&'a K, &'a V)> {
    wanted
        .iter()
        .filter(|(key, value)| is.get(key) != Some(value))
}

/// Keys of `is` that `wanted` has not.
fn missing<'a, K: Ord, V>(
    is: &'a BTreeMap<K, V>,
    wanted: &'a BTreeMap<K, V>,
) -> impl Iterator<Item = &'a K> {
    is.keys().filter(|key| !wanted.contains_key(key))
}

fn compare_all<K: Ord + Clone, V: PartialEq + Clone>(
    is: &BTreeMap<K, V>,
    wanted: &BTreeMap<K, V>,
) -> (Vec<(K, V)>, Vec<K>) {
    (
        changed(is, wanted)
            .map(|(k, v)| (k.clone(), v.clone()))
            .collect(),
        missing(is, wanted).cloned().collect(),
    )
}

fn compare<K: Ord + Clone, V: PartialEq + Clone>(
    is: &BTreeMap<K, V>,
    wanted: &BTreeMap<K, V>,
    keys: &BTreeSet<K>,
) -> (Vec<(K, V)>, Vec<K>) {
    let mut set = Vec::new();
    let mut gone = Vec::new();
    for key in keys {
        match (is.get(key), wanted.get(key)) {
            (old, Some(new)) if old != Some(new) => set.push((key.clone(), new.clone())),
            (Some(_), None) => gone.push(key.clone()),
            _ => {}
        }
    }
    (set, gone)
}
