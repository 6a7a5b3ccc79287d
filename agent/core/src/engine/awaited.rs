//! Cgroups that strict policies name by path and that do not exist.

use std::collections::HashMap;

use crate::cgroups::CgroupTree;

/// Paths of strict policies level by level, and how many of them have no cgroup: below the parent of
/// such a one a new cgroup starts closed.
#[derive(Debug, Default)]
pub(super) struct Awaited(HashMap<Box<str>, AwaitedChildren>);

#[derive(Debug, Default)]
struct AwaitedChildren {
    names: HashMap<Box<str>, u32>,
    missing: usize,
}

impl Awaited {
    pub(super) fn insert(&mut self, path: &str, tree: &CgroupTree) {
        for (parent, name) in levels(path) {
            let children = self.0.entry(parent.into()).or_default();
            let count = children.names.entry(name.into()).or_default();
            *count += 1;
            if *count == 1
                && tree
                    .find(parent)
                    .and_then(|id| tree.child(id, name))
                    .is_none()
            {
                children.missing += 1;
            }
        }
    }

    pub(super) fn remove(&mut self, path: &str, tree: &CgroupTree) {
        for (parent, name) in levels(path) {
            let Some(children) = self.0.get_mut(parent) else {
                continue;
            };
            let Some(count) = children.names.get_mut(name) else {
                continue;
            };
            *count -= 1;
            if *count == 0 {
                children.names.remove(name);
                if tree
                    .find(parent)
                    .and_then(|id| tree.child(id, name))
                    .is_none()
                {
                    children.missing = children.missing.saturating_sub(1);
                }
            }
            if children.names.is_empty() {
                self.0.remove(parent);
            }
        }
    }

    pub(super) fn count(&mut self, parent: &str, name: &str, change: impl Fn(usize) -> usize) {
        if let Some(children) = self.0.get_mut(parent)
            && children.names.contains_key(name)
        {
            children.missing = change(children.missing);
        }
    }

    /// Whether a cgroup that is awaited would be a child of the one at `path`.
    pub(super) fn below(&self, path: &str) -> bool {
        self.0
            .get(path)
            .is_some_and(|children| children.missing > 0)
    }

    /// The tree is another.
    pub(super) fn recount(&mut self, tree: &CgroupTree) {
        for (parent, children) in &mut self.0 {
            children.missing = match tree.find(parent) {
                None => children.names.len(),
                Some(id) => children
                    .names
                    .keys()
                    .filter(|name| tree.child(id, name).is_none())
                    .count(),
            };
        }
    }
}

/// Each level of a path: the path of its parent, and its name.
pub(super) fn levels(path: &str) -> impl Iterator<Item = (&str, &str)> {
    let starts = [0]
        .into_iter()
        .chain(path.match_indices('/').map(|(at, _)| at + 1));
    starts.map(move |start| {
        let parent = &path[..start.saturating_sub(1)];
        let name = &path[start..];
        (parent, name.split('/').next().unwrap_or(name))
    })
}
