//! Cgroups that strict policies name by path or unit, whether they exist or not: the kernel knows their
//! names, so that each has its policy when it is made (again), also while no agent runs.
//!
//! Others are not among them: the agent gives them their policy within milliseconds, and a name costs it
//! a number that must be kept.

use std::collections::{BTreeMap, HashMap};
use std::ops::Bound;

use steer_common::NAME_LEN;

/// Paths that policies name, and every level above them.
#[derive(Debug, Default)]
pub(super) struct Awaited {
    /// How often each path is named, or leads to one that is.
    paths: BTreeMap<Box<str>, u32>,
    /// How many of these are directly or further below each path.
    below: HashMap<Box<str>, u32>,
}

impl Awaited {
    pub(super) fn insert(&mut self, path: &str) {
        if !can_exist(path) {
            return;
        }
        for (parent, here) in levels(path) {
            match self.paths.get_mut(here) {
                Some(count) => *count += 1,
                None => {
                    self.paths.insert(here.into(), 1);
                }
            }
            match self.below.get_mut(parent) {
                Some(count) => *count += 1,
                None => {
                    self.below.insert(parent.into(), 1);
                }
            }
        }
    }

    pub(super) fn remove(&mut self, path: &str) {
        if !can_exist(path) {
            return;
        }
        for (parent, here) in levels(path) {
            if let Some(count) = self.paths.get_mut(here) {
                *count -= 1;
                if *count == 0 {
                    self.paths.remove(here);
                }
            }
            if let Some(count) = self.below.get_mut(parent) {
                *count -= 1;
                if *count == 0 {
                    self.below.remove(parent);
                }
            }
        }
    }

    /// Whether `path` is named or leads to one that is.
    pub(super) fn contains(&self, path: &str) -> bool {
        self.paths.contains_key(path)
    }

    /// Whether a path that is named is below `path`.
    pub(super) fn below(&self, path: &str) -> bool {
        self.below.contains_key(path)
    }

    /// All paths.
    pub(super) fn paths(&self) -> impl Iterator<Item = &str> {
        self.paths.keys().map(|path| &**path)
    }

    /// The paths that are `path` or below it.
    pub(super) fn subtree<'a>(&'a self, path: &'a str) -> impl Iterator<Item = &'a str> {
        let prefix = if path.is_empty() {
            String::new()
        } else {
            format!("{path}/")
        };
        let here = self.paths.get_key_value(path).map(|(path, _)| &**path);
        let from = (Bound::Included(prefix.as_str()), Bound::Unbounded);
        let below: Vec<&str> = self
            .paths
            .range::<str, _>(from)
            .map(|(path, _)| &**path)
            .take_while(|path| path.starts_with(&prefix))
            .collect();
        here.into_iter().chain(below)
    }
}

/// Each level of a path, from the first: the path of its parent, and its own.
pub(super) fn levels(path: &str) -> impl Iterator<Item = (&str, &str)> {
    let ends = path.match_indices('/').map(|(at, _)| at);
    let ends = ends.chain([path.len()]);
    let mut parent = "";
    ends.map(move |end| {
        let here = &path[..end];
        (std::mem::replace(&mut parent, here), here)
    })
}

/// A path's parent, and its last level.
pub(super) fn split(path: &str) -> (&str, &str) {
    path.rsplit_once('/').unwrap_or(("", path))
}

/// Whether `path` is `top` or below it.
pub(super) fn is_below(path: &str, top: &str) -> bool {
    let rest = path.strip_prefix(top);
    top.is_empty() || rest.is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
}

/// The root is there always, and no directory has a name that is longer.
fn can_exist(path: &str) -> bool {
    !path.is_empty() && path.split('/').all(|level| level.len() < NAME_LEN)
}

#[cfg(test)]
mod tests {
    use super::{Awaited, levels};

    #[test]
    fn a_path_brings_its_levels_and_takes_them_with_it() {
        let mut awaited = Awaited::default();
        awaited.insert("a/b/c");
        awaited.insert("a/b-d");
        assert_eq!(awaited.subtree("a/b").collect::<Vec<_>>(), ["a/b", "a/b/c"]);
        assert_eq!(awaited.subtree("").count(), 4);
        assert!(awaited.below("") && awaited.below("a") && awaited.below("a/b"));
        assert!(!awaited.below("a/b/c"));
        awaited.remove("a/b/c");
        assert_eq!(awaited.paths().collect::<Vec<_>>(), ["a", "a/b-d"]);
        assert!(!awaited.below("a/b"));
        awaited.remove("a/b-d");
        assert!(!awaited.below("") && awaited.paths().next().is_none());
    }

    #[test]
    fn a_name_that_no_directory_can_have_is_not_awaited() {
        let mut awaited = Awaited::default();
        awaited.insert(&format!("a/{}", "x".repeat(256)));
        assert!(!awaited.contains("a"));
    }

    #[test]
    fn levels_are_parent_and_path() {
        assert_eq!(
            levels("a/b/c").collect::<Vec<_>>(),
            [("", "a"), ("a", "a/b"), ("a/b", "a/b/c")]
        );
    }
}
