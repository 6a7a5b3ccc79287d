//! Bringing the part of the plan up to date that says what cgroups named by strict policies get when
//! they are made: the kernel looks them up by their parent's number and their name.

use std::collections::BTreeSet;

use steer_common::{CgroupEntry, MAX_NAMES, cgroup_flags};

use super::awaited::{is_below, split};
use super::{Changes, Engine};
use crate::ids::{PlaceId, PolicyId};
use crate::plan::Named;

impl Engine {
    /// Decides cgroups that strict policies name, whether they exist or not; returns the kernel policies
    /// that they had and have.
    pub(super) fn settle_names(&mut self, changes: &mut Changes) -> BTreeSet<PolicyId> {
        let mut paths = std::mem::take(&mut self.dirty.paths);
        let mut stale = BTreeSet::new();
        let mut touched = BTreeSet::new();
        if self.dirty.all_cgroups {
            paths.extend(self.index.awaited().paths().map(Box::from));
            stale.extend(self.plan.names.keys().cloned());
            self.unplaced.clear();
            let units: Vec<Box<str>> = self.index.strict_units().map(Box::from).collect();
            for name in units {
                let place = PlaceId(0);
                let closed = CgroupEntry {
                    flags: cgroup_flags::UNDECIDED,
                    ..CgroupEntry::default()
                };
                let named = Named { place, name };
                stale.remove(&named);
                touched.extend(self.settle_name(named, Some(closed), changes));
            }
        }
        let managed = self.state.cgroups.path(self.state.cgroup_root);
        for path in &paths {
            let (parent, name) = split(path);
            let awaited = self.index.acts()
                && self.index.awaited().contains(path)
                && managed.as_ref().is_some_and(|top| is_below(parent, top));
            self.unplaced.remove(path);
            let place = if awaited {
                self.place(parent)
            } else {
                let places = &self.state.memory.places;
                places.get(&levels(parent)).map(PlaceId)
            };
            let Some(place) = place else {
                self.unplaced.extend(awaited.then(|| path.clone()));
                continue;
            };
            let entry = if awaited {
                self.decide_path(path)
            } else {
                None
            };
            let name = name.into();
            let named = Named { place, name };
            if entry.is_some() && !self.has_room(&named) {
                self.unplaced.insert(path.clone());
                continue;
            }
            stale.remove(&named);
            touched.extend(self.settle_name(named, entry, changes));
        }
        for named in stale {
            touched.extend(self.settle_name(named, None, changes));
        }
        self.free_places(&paths);
        touched
    }

    fn settle_name(
        &mut self,
        named: Named,
        new: Option<CgroupEntry>,
        changes: &mut Changes,
    ) -> impl Iterator<Item = PolicyId> + use<> {
        let old = match new {
            Some(entry) => self.plan.names.insert(named.clone(), entry),
            None => self.plan.names.remove(&named),
        };
        if new != old {
            changes.names.insert(named);
        }
        self.count_policy(new, old, |uses| &mut uses.names)
    }

    /// What a new cgroup at `path` is to have.
    fn decide_path(&mut self, path: &str) -> Option<CgroupEntry> {
        let tree = &self.state.cgroups;
        let above = split(path).0;
        let mut nodes = vec![Some(tree.root())];
        let mut at = nodes[0];
        for level in above.split('/').filter(|level| !level.is_empty()) {
            at = at.and_then(|id| tree.child(id, level));
            nodes.push(at);
        }
        // Its own id is not known yet.
        nodes.push(None);
        let found = self.index.find(path, &nodes, &self.state.exempt);
        // Those above it may be made again too, and then have other ids.
        let others = vec![None; nodes.len()];
        let again = self.index.find(path, &others, &self.state.exempt);
        let differs = (&again.order, again.reach) != (&found.order, found.reach);
        let (mut entry, _) = self.entry(path, found);
        if differs {
            entry.flags |= cgroup_flags::UNDECIDED;
        }
        (entry != CgroupEntry::default()).then_some(entry)
    }

    /// Takes the numbers of cgroups back below which policies name none any more.
    fn free_places(&mut self, paths: &BTreeSet<Box<str>>) {
        let parents: BTreeSet<Vec<String>> = if self.dirty.all_cgroups {
            let places = self.state.memory.places.iter();
            places.map(|(_, levels)| levels.to_vec()).collect()
        } else {
            paths.iter().map(|path| levels(split(path).0)).collect()
        };
        for parent in parents {
            let needed = self.index.acts() && self.index.awaited().below(&parent.join("/"));
            let places = &mut self.state.memory.places;
            if let Some(number) = places.get(&parent).filter(|_| !needed) {
                places.free(number);
            }
        }
    }

    fn has_room(&self, named: &Named) -> bool {
        self.plan.names.len() < MAX_NAMES as usize || self.plan.names.contains_key(named)
    }

    /// The number of the cgroup at a path below which policies name others; `None`: there is no room.
    pub(super) fn place(&mut self, path: &str) -> Option<PlaceId> {
        let places = &mut self.state.memory.places;
        places.give(&levels(path)).map(PlaceId)
    }
}

/// The levels of a path; one that is empty for the root.
fn levels(path: &str) -> Vec<String> {
    path.split('/').map(str::to_owned).collect()
}
