//! The cgroup tree: ids, names and who is below whom.

use std::collections::{BTreeMap, HashMap};

use crate::ids::CgroupId;

/// The unified hierarchy, from its real root down.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CgroupTree {
    root: CgroupId,
    nodes: HashMap<CgroupId, Node>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Node {
    parent: Option<CgroupId>,
    name: Box<str>,
    children: BTreeMap<Box<str>, CgroupId>,
}

/// The name of a cgroup's directory as text. Bytes that are not UTF-8 are written as a zero byte, which no
/// name has, and two digits: two names are never taken for one.
pub fn name_of(bytes: &[u8]) -> String {
    let mut name = String::with_capacity(bytes.len());
    for chunk in bytes.utf8_chunks() {
        name.push_str(chunk.valid());
        for byte in chunk.invalid() {
            name.push_str(&format!("\0{byte:02x}"));
        }
    }
    name
}

/// One change of the tree.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CgroupChange {
    /// A cgroup was made. One whose parent is unknown is ignored: the scan that tells of the parent
    /// tells of it too.
    Made {
        /// Its id.
        id: CgroupId,
        /// Its parent's id.
        parent: CgroupId,
        /// Its directory's name.
        name: String,
    },
    /// A cgroup was removed.
    Removed(CgroupId),
    /// A complete scan: replaces everything.
    Dump(CgroupTree),
}

impl CgroupTree {
    /// A tree of nothing but its root, whose path is empty.
    pub fn new(root: CgroupId) -> Self {
        let node = Node {
            parent: None,
            name: Box::default(),
            children: BTreeMap::new(),
        };
        Self {
            root,
            nodes: HashMap::from([(root, node)]),
        }
    }

    /// The root's id.
    pub fn root(&self) -> CgroupId {
        self.root
    }

    /// Number of cgroups.
    pub fn len(&self) -> usize {
        self.nodes.len()
    }

    /// Whether there is nothing but the root.
    pub fn is_empty(&self) -> bool {
        self.nodes.len() <= 1
    }

    /// Whether `id` is known.
    pub fn contains(&self, id: CgroupId) -> bool {
        self.nodes.contains_key(&id)
    }

    /// All ids, in no order.
    pub fn ids(&self) -> impl Iterator<Item = CgroupId> + '_ {
        self.nodes.keys().copied()
    }

    /// Adds a cgroup. An older one of the same id, or of the same name below the same parent, is
    /// gone with all below it, since its removal must have been missed. Returns what is gone.
    pub fn made(&mut self, id: CgroupId, parent: CgroupId, name: &str) -> Vec<CgroupId> {
        if let Some(node) = self.nodes.get(&id)
            && node.parent == Some(parent)
            && &*node.name == name
        {
            return Vec::new();
        }
        if id == self.root || name.is_empty() || name.contains('/') || self.is_below(parent, id) {
            return Vec::new();
        }
        let mut gone = self.removed(id);
        if let Some(&older) = self.nodes.get(&parent).and_then(|p| p.children.get(name)) {
            gone.extend(self.removed(older));
        }
        if let Some(node) = self.nodes.get_mut(&parent) {
            node.children.insert(name.into(), id);
            let node = Node {
                parent: Some(parent),
                name: name.into(),
                children: BTreeMap::new(),
            };
            self.nodes.insert(id, node);
        }
        gone
    }

    /// Removes a cgroup and all below it; the root stays. Returns what is gone.
    pub fn removed(&mut self, id: CgroupId) -> Vec<CgroupId> {
        if id == self.root || !self.nodes.contains_key(&id) {
            return Vec::new();
        }
        let gone: Vec<CgroupId> = self.subtree(id).collect();
        if let Some(node) = self.nodes.get(&id) {
            let name = node.name.clone();
            if let Some(parent) = node.parent.and_then(|parent| self.nodes.get_mut(&parent)) {
                parent.children.remove(&name);
            }
        }
        for id in &gone {
            self.nodes.remove(id);
        }
        gone
    }

    /// Parent of a cgroup.
    pub fn parent(&self, id: CgroupId) -> Option<CgroupId> {
        self.nodes.get(&id)?.parent
    }

    /// Name of a cgroup's directory; empty for the root.
    pub fn name(&self, id: CgroupId) -> Option<&str> {
        Some(&self.nodes.get(&id)?.name)
    }

    /// Child of a cgroup by its name.
    pub fn child(&self, id: CgroupId, name: &str) -> Option<CgroupId> {
        self.nodes.get(&id)?.children.get(name).copied()
    }

    /// The cgroup itself, its parent, and so on up to the root. Empty if it is unknown.
    pub fn ancestors(&self, id: CgroupId) -> impl Iterator<Item = CgroupId> + '_ {
        let first = self.nodes.contains_key(&id).then_some(id);
        std::iter::successors(first, |id| self.parent(*id))
    }

    /// Whether `id` is `top` or below it.
    pub fn is_below(&self, id: CgroupId, top: CgroupId) -> bool {
        self.ancestors(id).any(|ancestor| ancestor == top)
    }

    /// The cgroup and all below it, in no order. Empty if it is unknown.
    pub fn subtree(&self, id: CgroupId) -> impl Iterator<Item = CgroupId> + '_ {
        let mut stack = Vec::from_iter(self.nodes.contains_key(&id).then_some(id));
        std::iter::from_fn(move || {
            let id = stack.pop()?;
            if let Some(node) = self.nodes.get(&id) {
                stack.extend(node.children.values());
            }
            Some(id)
        })
    }

    /// Path of a cgroup as in `/proc/PID/cgroup` without the leading slash; empty for the root.
    pub fn path(&self, id: CgroupId) -> Option<String> {
        let mut names: Vec<&str> = self.ancestors(id).filter_map(|id| self.name(id)).collect();
        names.pop()?;
        names.reverse();
        Some(names.join("/"))
    }

    /// The cgroup at a path, with or without a leading slash.
    pub fn find(&self, path: &str) -> Option<CgroupId> {
        path.split('/')
            .filter(|level| !level.is_empty())
            .try_fold(self.root, |id, level| self.child(id, level))
    }
}

#[cfg(test)]
mod tests {
    use super::{CgroupId, CgroupTree, name_of};

    #[test]
    fn names_that_are_not_utf8_are_told_apart() {
        let names = [
            &b"x"[..],
            b"\xff",
            b"\xfe",
            "\u{fffd}".as_bytes(),
            b"ff",
            b"x\xff",
        ];
        let told: std::collections::BTreeSet<String> = names.into_iter().map(name_of).collect();
        assert_eq!(told.len(), names.len());
        assert_eq!(name_of("ä.service".as_bytes()), "ä.service");
    }

    #[test]
    fn cgroups_are_found_by_path_and_id_until_they_are_removed() {
        let mut tree = CgroupTree::new(CgroupId(1));
        tree.made(CgroupId(2), CgroupId(1), "a");
        tree.made(CgroupId(3), CgroupId(2), "b");
        tree.made(CgroupId(9), CgroupId(8), "orphan");
        assert_eq!(tree.path(CgroupId(3)).as_deref(), Some("a/b"));
        assert_eq!(tree.find("/a/b"), Some(CgroupId(3)));
        assert_eq!(tree.path(CgroupId(1)).as_deref(), Some(""));
        assert_eq!(tree.path(CgroupId(9)), None);
        assert_eq!(tree.removed(CgroupId(2)), [CgroupId(2), CgroupId(3)]);
        assert_eq!(tree.find("a"), None);
        assert!(tree.is_empty());
    }

    #[test]
    fn a_missed_removal_shows_when_the_name_comes_back() {
        let mut tree = CgroupTree::new(CgroupId(1));
        tree.made(CgroupId(2), CgroupId(1), "a");
        tree.made(CgroupId(3), CgroupId(2), "b");
        assert_eq!(
            tree.made(CgroupId(4), CgroupId(1), "a"),
            [CgroupId(2), CgroupId(3)]
        );
        assert_eq!(tree.find("a"), Some(CgroupId(4)));
        assert!(tree.made(CgroupId(4), CgroupId(1), "a").is_empty());
    }
}
