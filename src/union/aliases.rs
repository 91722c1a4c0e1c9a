//! Further names of hard-linked files of the upper layer. A node is reached by one name; when that
//! goes, another one takes its place.

use std::collections::{BTreeSet, HashMap};
use std::ffi::OsStr;

use super::locks::{OrderedMutex, Rank};
use super::types::NodeId;

/// A directory and a name in it.
type Name = (NodeId, Box<OsStr>);

/// The names that were seen of each node, beside the one it is reached by.
#[derive(Debug)]
pub(super) struct Aliases {
    names: OrderedMutex<HashMap<NodeId, BTreeSet<Name>>>,
}

impl Aliases {
    pub(super) fn new() -> Self {
        Self {
            names: OrderedMutex::new(Rank::Leaf, HashMap::new()),
        }
    }

    /// Says that the node is also called `name` in `parent`.
    pub(super) fn add(&self, node: NodeId, parent: NodeId, name: &OsStr) {
        let name = (parent, name.into());
        self.names.lock().entry(node).or_default().insert(name);
    }

    /// Says that it isn't any more.
    pub(super) fn remove(&self, node: NodeId, parent: NodeId, name: &OsStr) {
        let mut names = self.names.lock();
        if let Some(known) = names.get_mut(&node) {
            known.remove(&(parent, name.into()));
            if known.is_empty() {
                names.remove(&node);
            }
        }
    }

    /// Takes one of the node's further names.
    pub(super) fn take(&self, node: NodeId) -> Option<Name> {
        let mut names = self.names.lock();
        let known = names.get_mut(&node)?;
        let name = known.pop_last();
        if known.is_empty() {
            names.remove(&node);
        }
        name
    }

    /// The node's further names.
    pub(super) fn of(&self, node: NodeId) -> BTreeSet<Name> {
        self.names.lock().get(&node).cloned().unwrap_or_default()
    }

    /// Lets nobody know or ask.
    #[cfg(test)]
    pub(super) fn held_for_a_test(&self) -> impl Sized + '_ {
        self.names.lock()
    }

    /// Forgets the node.
    pub(super) fn forget(&self, node: NodeId) {
        self.names.lock().remove(&node);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_name_is_kept_once_and_given_out_once() {
        let aliases = Aliases::new();
        let (node, dir) = (NodeId(7), NodeId::ROOT);
        for name in ["a", "b", "a", "c"] {
            aliases.add(node, dir, OsStr::new(name));
        }
        aliases.remove(node, dir, OsStr::new("b"));
        assert_eq!(aliases.take(node), Some((dir, OsStr::new("c").into())));
        assert_eq!(aliases.take(node), Some((dir, OsStr::new("a").into())));
        assert_eq!(aliases.take(node), None);
    }

    /// ext4 allows 65,000.
    #[test]
    fn as_many_names_as_a_file_can_have_are_known_and_forgotten_soon() {
        const NAMES: usize = 65_000;
        let began = std::time::Instant::now();
        let aliases = Aliases::new();
        let (node, dir) = (NodeId(7), NodeId::ROOT);
        let name = |number: usize| std::ffi::OsString::from(number.to_string());
        for _ in 0..2 {
            (0..NAMES).for_each(|number| aliases.add(node, dir, &name(number)));
        }
        (0..NAMES / 2).for_each(|number| aliases.remove(node, dir, &name(number)));
        let taken = std::iter::from_fn(|| aliases.take(node)).count();
        assert_eq!(taken, NAMES - NAMES / 2);
        assert!(began.elapsed() < std::time::Duration::from_secs(10));
    }
}
