//! Which policies match a cgroup: indexes over all policies, so that one cgroup is decided without
//! looking at every policy.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, HashMap};

use super::awaited::{Awaited, is_below, levels, split};
use crate::cgroups::CgroupTree;
use crate::ids::CgroupId;
use crate::name::Name;
use crate::pattern::{CgroupPattern, Reach};
use crate::policy::{Match, Origin, Policy, Rank};

/// Policies by what they match.
#[derive(Debug, Default)]
pub(super) struct PolicyIndex {
    policies: HashMap<Name, Ranked>,
    paths: HashMap<Box<str>, Vec<Name>>,
    units: HashMap<Box<str>, Vec<Name>>,
    ids: HashMap<CgroupId, Vec<Name>>,
    globs: BTreeMap<Name, Vec<CgroupPattern>>,
    awaited: Awaited,
    default: Option<Name>,
    acting: usize,
    strict: usize,
    repairing: usize,
    /// Units that strict policies name, and how often.
    strict_units: BTreeMap<Box<str>, u32>,
}

/// What decides between policies.
#[derive(Clone, Copy, Debug)]
struct Ranked {
    rank: Rank,
    priority: i32,
    strict: bool,
    /// It lets nothing through.
    closed: bool,
}

/// Two policies of one rank and priority on one cgroup.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Conflict {
    /// The one that applies there.
    pub applies: Name,
    /// The one that does not.
    pub refused: Name,
}

/// What the index says of one cgroup.
#[derive(Debug, Default)]
pub(super) struct Found {
    /// Policies that hold, first the one in force, then those behind it.
    pub(super) order: Vec<Name>,
    /// Policies that lose at this very cgroup.
    pub(super) conflicts: Vec<Conflict>,
    /// What new cgroups below could mean for patterns of strict policies.
    pub(super) reach: Reach,
    /// It is deeper than patterns can match, and there are strict ones.
    pub(super) too_deep: bool,
}

/// What decides between policies that match one cgroup, the winner first: rank, priority, and whether
/// it is a pattern or unit that matches, and no path or id.
pub(super) type Key = (Reverse<Rank>, Reverse<i32>, bool);

/// A policy that matches a cgroup or one above it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Contender<'a> {
    pub(super) name: &'a Name,
    /// How many levels below the root it matches; 0: the default policy.
    pub(super) depth: usize,
    pub(super) key: Key,
    pub(super) standing: Standing<'a>,
}

/// How it stands there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Standing<'a> {
    /// It holds: it is in force, or behind what is.
    Holds,
    /// It is equal to this one, which applies.
    Equal(&'a Name),
    /// This strict policy of a higher rank shuts it out.
    ShutOut(&'a Name),
}

impl PolicyIndex {
    pub(super) fn new<'a>(policies: impl Iterator<Item = &'a Policy>, tree: &CgroupTree) -> Self {
        let mut index = Self::default();
        for policy in policies {
            index.add(policy);
        }
        index.await_all(tree);
        index
    }

    /// Whether any policy does more than pass.
    pub(super) fn acts(&self) -> bool {
        self.acting > 0
    }

    /// Whether any policy is strict.
    pub(super) fn strict(&self) -> bool {
        self.strict > 0
    }

    /// What policies name.
    pub(super) fn awaited(&self) -> &Awaited {
        &self.awaited
    }

    /// Whether flows of any policy are repaired.
    pub(super) fn repairs(&self) -> bool {
        self.repairing > 0
    }

    /// Units that strict policies name.
    pub(super) fn strict_units(&self) -> impl Iterator<Item = &str> {
        self.strict_units.keys().map(|unit| &**unit)
    }

    fn is_strict(&self, name: &Name) -> bool {
        self.policies.get(name).is_some_and(|policy| policy.strict)
    }

    /// Whether a policy holds for exactly this cgroup.
    pub(super) fn by_id(&self, id: CgroupId) -> bool {
        self.ids.contains_key(&id)
    }

    pub(super) fn insert(&mut self, policy: &Policy, tree: &CgroupTree) {
        if policy.strict {
            for wanted in &policy.matches {
                self.each_path(wanted, tree, Awaited::insert);
            }
        }
        self.add(policy);
    }

    pub(super) fn remove(&mut self, policy: &Policy, tree: &CgroupTree) {
        if policy.strict {
            for wanted in &policy.matches {
                self.each_path(wanted, tree, Awaited::remove);
            }
        }
        self.take(policy);
    }

    /// The paths that a match of a strict policy names: a unit's are the usual one and where it is now, a
    /// pattern's the one below which new cgroups start closed.
    fn each_path(&mut self, wanted: &Match, tree: &CgroupTree, act: fn(&mut Awaited, &str)) {
        match wanted {
            Match::Cgroup(pattern) => act(&mut self.awaited, pattern.literal()),
            Match::Unit(unit) => {
                act(&mut self.awaited, &usual_path(unit.as_str()));
                for id in tree
                    .ids()
                    .filter(|id| tree.name(*id) == Some(unit.as_str()))
                {
                    let path = tree.path(id);
                    path.iter().for_each(|path| act(&mut self.awaited, path));
                }
            }
            Match::CgroupId(_) => {}
        }
    }

    /// The tree is another.
    pub(super) fn await_all(&mut self, tree: &CgroupTree) {
        let mut awaited = Awaited::default();
        for (path, names) in &self.paths {
            let names = names.iter().filter(|name| self.is_strict(name));
            names.for_each(|_| awaited.insert(path));
        }
        for (name, patterns) in &self.globs {
            if self.is_strict(name) {
                let paths = patterns.iter().map(CgroupPattern::literal);
                paths.for_each(|path| awaited.insert(path));
            }
        }
        for (unit, count) in &self.strict_units {
            let path = usual_path(unit);
            (0..*count).for_each(|_| awaited.insert(&path));
        }
        if !self.strict_units.is_empty() {
            for id in tree.ids() {
                let count = tree.name(id).and_then(|name| self.strict_units.get(name));
                if let (Some(count), Some(path)) = (count, tree.path(id)) {
                    (0..*count).for_each(|_| awaited.insert(&path));
                }
            }
        }
        self.awaited = awaited;
    }

    /// A cgroup was made. Says whether other paths are awaited now.
    pub(super) fn made(&mut self, path: &str) -> bool {
        self.count(path, Awaited::insert)
    }

    /// A cgroup is gone. Says whether other paths are awaited now.
    pub(super) fn gone(&mut self, path: &str) -> bool {
        self.count(path, Awaited::remove)
    }

    fn count(&mut self, path: &str, act: fn(&mut Awaited, &str)) -> bool {
        let count = self.strict_units.get(split(path).1).copied().unwrap_or(0);
        (0..count).for_each(|_| act(&mut self.awaited, path));
        count > 0
    }

    fn add(&mut self, policy: &Policy) {
        let name = &policy.name;
        self.acting += usize::from(policy.acts());
        self.strict += usize::from(policy.strict);
        self.repairing += usize::from(policy.repairs());
        let ranked = Ranked {
            rank: policy.rank(),
            priority: policy.priority,
            strict: policy.strict,
            closed: policy.is_closed(),
        };
        self.policies.insert(name.clone(), ranked);
        if policy.origin == Origin::Default {
            self.default = policy.acts().then(|| name.clone());
        }
        for wanted in &policy.matches {
            match wanted {
                Match::Cgroup(pattern) => match pattern.exact() {
                    Some(path) => add(&mut self.paths, path, name),
                    None => self
                        .globs
                        .entry(name.clone())
                        .or_default()
                        .push(pattern.clone()),
                },
                Match::Unit(unit) => {
                    if policy.strict {
                        *self.strict_units.entry(unit.as_str().into()).or_default() += 1;
                    }
                    add(&mut self.units, unit.as_str(), name);
                }
                Match::CgroupId(id) => self.ids.entry(*id).or_default().push(name.clone()),
            }
        }
    }

    fn take(&mut self, policy: &Policy) {
        let name = &policy.name;
        self.acting -= usize::from(policy.acts());
        self.strict -= usize::from(policy.strict);
        self.repairing -= usize::from(policy.repairs());
        self.policies.remove(name);
        if policy.origin == Origin::Default {
            self.default = None;
        }
        for wanted in &policy.matches {
            match wanted {
                Match::Cgroup(pattern) => match pattern.exact() {
                    Some(path) => take(&mut self.paths, path, name),
                    None => {
                        self.globs.remove(name);
                    }
                },
                Match::Unit(unit) => {
                    if policy.strict
                        && let Some(count) = self.strict_units.get_mut(unit.as_str())
                    {
                        *count -= 1;
                        if *count == 0 {
                            self.strict_units.remove(unit.as_str());
                        }
                    }
                    take(&mut self.units, unit.as_str(), name);
                }
                Match::CgroupId(id) => take(&mut self.ids, id, name),
            }
        }
    }

    /// Another policy of the same rank and priority that names one of the same cgroups.
    pub(super) fn rival(&self, policy: &Policy, tree: &CgroupTree) -> Option<(&Name, String)> {
        policy.matches.iter().find_map(|wanted| {
            let path = match wanted {
                Match::Cgroup(pattern) => pattern.exact()?.to_owned(),
                Match::CgroupId(id) => tree.path(*id)?,
                Match::Unit(_) => return None,
            };
            let id = tree.find(&path);
            let by_path = self.paths.get(path.as_str()).into_iter().flatten();
            let by_id = id.and_then(|id| self.ids.get(&id)).into_iter().flatten();
            by_path
                .chain(by_id)
                .find(|other| {
                    **other != policy.name
                        && self.policies.get(*other).is_some_and(|other| {
                            (other.rank, other.priority) == (policy.rank(), policy.priority)
                        })
                })
                .map(|other| (other, path))
        })
    }

    /// A strict policy of a higher rank that holds at one of the cgroups which `policy` names.
    pub(super) fn shut_out(&self, policy: &Policy, tree: &CgroupTree) -> Option<(&Name, String)> {
        policy.matches.iter().find_map(|wanted| {
            let path = match wanted {
                Match::Cgroup(pattern) => pattern.exact()?.to_owned(),
                Match::CgroupId(id) => tree.path(*id)?,
                Match::Unit(_) => return None,
            };
            let globs = self.match_globs(&path, &mut Vec::new());
            let above = levels(&path).flat_map(|(_, here)| {
                let by_path = self.paths.get(here).into_iter().flatten();
                let node = tree.find(here);
                let by_id = node.and_then(|id| self.ids.get(&id)).into_iter().flatten();
                let by_unit = self.units.get(split(here).1).into_iter().flatten();
                by_path.chain(by_id).chain(by_unit)
            });
            above
                .chain(globs.iter().map(|(name, _)| *name))
                .find(|name| {
                    self.policies
                        .get(*name)
                        .is_some_and(|other| other.strict && other.rank > policy.rank())
                })
                .or_else(|| {
                    self.strict_default()
                        .filter(|_| !policy.rank().administrators)
                })
                .map(|name| (name, path.clone()))
        })
    }

    /// The default policy, if it is strict: then only administrators' policies hold in its place.
    fn strict_default(&self) -> Option<&Name> {
        self.default.as_ref().filter(|name| self.is_strict(name))
    }

    /// What holds for the cgroup at `path`, whose levels are the cgroups `nodes` from the root on, as
    /// far as they exist. An exempt cgroup and those above it do not count, and neither does the
    /// default policy below one.
    pub(super) fn find(
        &self,
        path: &str,
        nodes: &[Option<CgroupId>],
        exempt: &BTreeSet<CgroupId>,
    ) -> Found {
        let mut found = Found::default();
        let mut reaches = Vec::new();
        for contender in self.contest(path, nodes, exempt, &mut reaches) {
            match contender.standing {
                Standing::Holds => found.order.push(contender.name.clone()),
                Standing::Equal(applies) if contender.depth + 1 == nodes.len() => {
                    found.conflicts.push(Conflict {
                        applies: applies.clone(),
                        refused: contender.name.clone(),
                    });
                }
                Standing::Equal(_) | Standing::ShutOut(_) => {}
            }
        }
        // How deep patterns match has an end; beyond it strict ones are closed.
        let strict_globs = self.globs.keys().any(|name| self.is_strict(name));
        found.too_deep = nodes.len() > 65 && strict_globs;
        // A new child of a cgroup where a strict policy is in force gets it from its parent in the
        // kernel, so that one need not be awaited.
        let in_force = found.order.first();
        found.reach = reaches
            .into_iter()
            .filter(|(name, _)| Some(*name) != in_force)
            .map(|(_, reach)| reach)
            .max()
            .unwrap_or_default();
        found
    }

    /// Every policy that matches the cgroup at `path` or one above it, in the order of precedence, and
    /// how it stands there; arguments as of [`Self::find`]. Notes how far strict patterns reach below.
    pub(super) fn contest<'a>(
        &'a self,
        path: &str,
        nodes: &[Option<CgroupId>],
        exempt: &BTreeSet<CgroupId>,
        reaches: &mut Vec<(&'a Name, Reach)>,
    ) -> Vec<Contender<'a>> {
        let first = nodes
            .iter()
            .rposition(|node| node.is_some_and(|node| exempt.contains(&node)))
            .map_or(0, |exempt| exempt + 1);

        let globs = self.match_globs(path, reaches);
        let mut ranked = Vec::new();
        let below_root = nodes.iter().enumerate().skip(1);
        for ((depth, node), (_, here)) in below_root.zip(levels(path)) {
            if depth < first {
                continue;
            }
            let mut matched = self.at(*node, here);
            let bit = 1u64
                .checked_shl(u32::try_from(depth - 1).unwrap_or(u32::MAX))
                .unwrap_or(0);
            matched.extend(
                globs
                    .iter()
                    .filter(|(_, bits)| bits & bit != 0)
                    .map(|(name, _)| (*name, false)),
            );
            ranked.push(self.rank(depth, matched));
        }
        // What is below an exempt cgroup does not have the default policy.
        let strict_default = self.strict_default().filter(|_| first == 0);
        self.shut_out_below(&mut ranked, strict_default);
        // The deepest first.
        let mut contenders: Vec<_> = ranked.into_iter().rev().flatten().collect();
        if let (0, Some(default)) = (first, &self.default) {
            let rank = Rank {
                origin: Origin::Default,
                administrators: true,
            };
            contenders.push(Contender {
                name: default,
                depth: 0,
                key: (Reverse(rank), Reverse(0), true),
                standing: Standing::Holds,
            });
        }
        contenders
    }

    /// Globs that match along `path`, with the levels; notes how far strict ones reach below it.
    fn match_globs<'a>(
        &'a self,
        path: &str,
        reaches: &mut Vec<(&'a Name, Reach)>,
    ) -> Vec<(&'a Name, u64)> {
        let mut matched = Vec::new();
        for (name, patterns) in &self.globs {
            let strict = self.is_strict(name);
            let mut levels = 0;
            for pattern in patterns {
                let along = pattern.along(path);
                levels |= along.levels;
                // Where a pattern has no wildcards yet, names say what is closed.
                if strict && is_below(path, pattern.literal()) {
                    reaches.push((name, along.reach));
                }
            }
            if levels != 0 {
                matched.push((name, levels));
            }
        }
        matched
    }

    /// Policies that match a cgroup by path, id or unit, and whether exactly.
    fn at(&self, node: Option<CgroupId>, path: &str) -> Vec<(&Name, bool)> {
        let by_path = self.paths.get(path);
        let by_id = node.and_then(|node| self.ids.get(&node));
        let exact = by_path.into_iter().chain(by_id).flatten();
        let by_unit = self.units.get(split(path).1).into_iter().flatten();
        exact
            .map(|name| (name, true))
            .chain(by_unit.map(|name| (name, false)))
            .collect()
    }

    /// Orders what matches one cgroup; of those that are equal the first by name stays, or a strict
    /// one.
    fn rank<'a>(&'a self, depth: usize, here: Vec<(&'a Name, bool)>) -> Vec<Contender<'a>> {
        let mut exactness: BTreeMap<&Name, bool> = BTreeMap::new();
        for (name, exact) in here {
            *exactness.entry(name).or_default() |= exact;
        }
        let mut ranked: Vec<Contender<'_>> = exactness
            .into_iter()
            .filter_map(|(name, exact)| {
                let policy = self.policies.get(name)?;
                Some(Contender {
                    name,
                    depth,
                    key: (Reverse(policy.rank), Reverse(policy.priority), !exact),
                    standing: Standing::Holds,
                })
            })
            .collect();
        // Of two that are equal, one that is closed applies, or a strict one: too tight is a nuisance,
        // too loose a leak.
        let tightness = |name| {
            let policy = self.policies.get(name);
            Reverse(policy.map(|policy| (policy.closed, policy.strict)))
        };
        ranked.sort_unstable_by_key(|c| (c.key, tightness(c.name), c.name));
        let mut applies: Option<(Key, &Name)> = None;
        for contender in &mut ranked {
            match applies {
                Some((key, name)) if key == contender.key => {
                    contender.standing = Standing::Equal(name);
                }
                _ => applies = Some((contender.key, contender.name)),
            }
        }
        ranked
    }

    /// Shuts out what a strict policy of a higher rank at or above its cgroup does not leave room for;
    /// `levels` are from the root down. The strict default policy is the files', but what it is there for
    /// is to be replaced: by administrators, with the least that these can write.
    fn shut_out_below<'a>(
        &self,
        levels: &mut [Vec<Contender<'a>>],
        strict_default: Option<&'a Name>,
    ) {
        let least = Rank {
            origin: Origin::User,
            administrators: true,
        };
        let mut floor: Option<(Rank, &'a Name)> = strict_default.map(|name| (least, name));
        for level in levels {
            for contender in level.iter() {
                let rank = contender.key.0.0;
                let higher = floor.is_none_or(|(floor, _)| rank > floor);
                if contender.standing == Standing::Holds && higher && self.is_strict(contender.name)
                {
                    floor = Some((rank, contender.name));
                }
            }
            let Some((floor, by)) = floor else { continue };
            for contender in level {
                if contender.standing == Standing::Holds && contender.key.0.0 < floor {
                    contender.standing = Standing::ShutOut(by);
                }
            }
        }
    }
}

/// Where systemd puts a unit that says nothing else.
fn usual_path(unit: &str) -> String {
    format!("system.slice/{unit}")
}

fn add(map: &mut HashMap<Box<str>, Vec<Name>>, key: &str, name: &Name) {
    match map.get_mut(key) {
        Some(names) => names.push(name.clone()),
        None => {
            map.insert(key.into(), vec![name.clone()]);
        }
    }
}

fn take<K, Q>(map: &mut HashMap<K, Vec<Name>>, key: &Q, name: &Name)
where
    K: std::borrow::Borrow<Q> + Eq + std::hash::Hash,
    Q: Eq + std::hash::Hash + ?Sized,
{
    if let Some(names) = map.get_mut(key) {
        names.retain(|other| other != name);
        if names.is_empty() {
            map.remove(key);
        }
    }
}
