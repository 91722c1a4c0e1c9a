//! The inode table: nodes by number, and by what they are on the disk.
//!
//! Sharded; a shard's lock is held for a look-up or an insert, never over a system call.

use std::collections::HashMap;
use std::collections::hash_map::Entry as MapEntry;
use std::ffi::OsStr;
use std::hash::{BuildHasher, RandomState};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use super::layer::{LayerIndex, RealId};
use super::locks::{OrderedMutex, OrderedRwLock, Rank};
use super::node::{Link, Node, Real};
use super::number::Numbers;
use super::types::{Ino, NodeId};

const SHARDS: usize = 64;

/// What makes two look-ups find one node.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) enum Key {
    /// The object on the disk: names that are hard links share a node. The layer counts, too:
    /// layers may contain each other.
    Real(LayerIndex, RealId),
    /// The name: for a lower file with several names. A copy-up breaks such a link, as the
    /// kernel's does, and a node can't be split.
    Name(Box<(NodeId, Box<OsStr>)>),
    /// Nothing any more: the object has been replaced behind our back.
    Gone,
}

impl Key {
    /// The key of a name.
    pub(crate) fn name(parent: NodeId, name: &OsStr) -> Self {
        Key::Name(Box::new((parent, name.into())))
    }
}

/// The table.
///
/// Nearly every node has the number of its object, and is found by that and a look at its key.
/// `keys` has only the others: copied-up files, further names of hard links, clashes of numbers.
#[derive(Debug)]
pub(crate) struct Table {
    nodes: Vec<OrderedRwLock<HashMap<NodeId, Arc<Node>>>>,
    keys: Vec<OrderedMutex<HashMap<Key, NodeId>>>,
    hasher: RandomState,
    generation: AtomicU64,
}

impl Table {
    pub(crate) fn new() -> Self {
        Self {
            nodes: (0..SHARDS)
                .map(|_| OrderedRwLock::new(Rank::Table, HashMap::new()))
                .collect(),
            keys: (0..SHARDS)
                .map(|_| OrderedMutex::new(Rank::Keys, HashMap::new()))
                .collect(),
            hasher: RandomState::new(),
            generation: AtomicU64::new(1),
        }
    }

    fn node_shard(&self, id: NodeId) -> &OrderedRwLock<HashMap<NodeId, Arc<Node>>> {
        &self.nodes[id.0 as usize % SHARDS]
    }

    fn key_shard(&self, key: &Key) -> &OrderedMutex<HashMap<Key, NodeId>> {
        &self.keys[self.hasher.hash_one(key) as usize % SHARDS]
    }

    /// The node with this number.
    pub(crate) fn get(&self, id: NodeId) -> Option<Arc<Node>> {
        self.node_shard(id).read().get(&id).cloned()
    }

    /// The node of `key`, whose object has the number `ino`, without counting a look-up.
    pub(crate) fn find(&self, key: &Key, ino: Ino) -> Option<Arc<Node>> {
        let elsewhere = self.key_shard(key).lock().get(key).copied();
        let ids = [elsewhere, Some(NodeId(ino.0))];
        ids.into_iter()
            .flatten()
            .find_map(|id| self.get(id).filter(|node| *node.key.lock() == *key))
    }

    /// Counts a use of the node `id`, if it is the one of `key`.
    fn enter_known(&self, id: NodeId, key: &Key) -> Option<Arc<Node>> {
        let nodes = self.node_shard(id).read();
        let node = nodes.get(&id).filter(|node| *node.key.lock() == *key)?;
        node.uses.fetch_add(1, Ordering::Relaxed);
        Some(node.clone())
    }

    /// The node of `key`, made by `make` where there is none; counts one use. A new one gets the
    /// number `ino` if that is free, and uses `parent` in its turn.
    pub(crate) fn enter(
        &self,
        key: Key,
        ino: Ino,
        parent: &Node,
        numbers: &Numbers,
        make: impl FnOnce(NodeId, u64, Key) -> Node,
    ) -> Arc<Node> {
        let home = NodeId(ino.0);
        // Held until the node is there, so that two look-ups don't make two.
        let mut keys = self.key_shard(&key).lock();
        let elsewhere = keys.get(&key).copied();
        for id in [elsewhere, Some(home)].into_iter().flatten() {
            if let Some(node) = self.enter_known(id, &key) {
                return node;
            }
        }
        let generation = self.generation.fetch_add(1, Ordering::Relaxed);
        let mut id = home;
        loop {
            let mut nodes = self.node_shard(id).write();
            if let MapEntry::Vacant(vacant) = nodes.entry(id) {
                let node = Arc::new(make(id, generation, key.clone()));
                node.uses.store(1, Ordering::Relaxed);
                parent.uses.fetch_add(1, Ordering::Relaxed);
                vacant.insert(node.clone());
                if id == home {
                    keys.remove(&key);
                } else {
                    keys.insert(key, id);
                }
                return node;
            }
            id = NodeId(numbers.fresh());
        }
    }

    /// Adds the root, which is never forgotten.
    pub(crate) fn insert_root(&self, root: Node) -> Arc<Node> {
        let root = Arc::new(root);
        root.uses.store(1, Ordering::Relaxed);
        self.node_shard(root.id)
            .write()
            .insert(root.id, root.clone());
        root
    }

    /// Gives back `count` uses; drops the node with the last one. Returns what was dropped.
    pub(crate) fn release(&self, id: NodeId, count: u64) -> Vec<Arc<Node>> {
        let mut dropped = Vec::new();
        let mut next = Some((id, count));
        // A dropped node gives back its use of the parent, and so on upwards.
        while let Some((id, count)) = next.take() {
            if id == NodeId::ROOT {
                break;
            }
            let removed = {
                let mut nodes = self.node_shard(id).write();
                let Some(node) = nodes.get(&id) else { break };
                let minus = |uses: u64| Some(uses.saturating_sub(count));
                let before = node
                    .uses
                    .fetch_update(Ordering::Relaxed, Ordering::Relaxed, minus);
                if before.is_ok_and(|before| before <= count) {
                    nodes.remove(&id)
                } else {
                    None
                }
            };
            if let Some(node) = removed {
                let key = node.key.lock().clone();
                self.remove_key(&key, &node);
                let parent = node.state.read().link.as_ref().map(|link| link.parent.id);
                next = parent.map(|parent| (parent, 1));
                dropped.push(node);
            }
        }
        dropped
    }

    fn remove_key(&self, key: &Key, node: &Node) {
        let mut keys = self.key_shard(key).lock();
        if keys.get(key) == Some(&node.id) {
            keys.remove(key);
        }
    }

    /// Says that the node is found under `key` from now on, no longer under its old one.
    pub(crate) fn rekey(&self, node: &Node, key: Key) {
        let old = std::mem::replace(&mut *node.key.lock(), key.clone());
        self.remove_key(&old, node);
        if key != Key::Gone {
            self.key_shard(&key).lock().insert(key, node.id);
        }
    }

    /// Gives the node another place in the merged tree.
    pub(crate) fn relink(&self, node: &Node, link: Link) {
        link.parent.uses.fetch_add(1, Ordering::Relaxed);
        let old = {
            let mut state = node.state.write();
            state.named = true;
            state.link.replace(link)
        };
        if let Some(old) = old {
            let gone = self.release(old.parent.id, 1);
            drop(gone);
        }
    }

    /// Gives a node that has lost its name another place, and its object there. `false` where
    /// somebody has given it one meanwhile.
    pub(crate) fn relink_nameless(&self, node: &Node, link: Link, real: Real) -> bool {
        let parent = link.parent.clone();
        parent.uses.fetch_add(1, Ordering::Relaxed);
        let mut state = node.state.write();
        let old = if state.named {
            Err(parent)
        } else {
            state.named = true;
            let real = std::mem::replace(&mut state.real, real);
            Ok((state.link.replace(link), real))
        };
        drop(state);
        let done = old.is_ok();
        let unused = match &old {
            Ok((link, _)) => link.as_ref().map(|link| link.parent.id),
            Err(parent) => Some(parent.id),
        };
        if let Some(parent) = unused {
            drop(self.release(parent, 1));
        }
        done
    }

    /// Passes every node to `each`, which is called without a lock.
    pub(crate) fn each(&self, mut each: impl FnMut(&Arc<Node>)) {
        for shard in &self.nodes {
            let nodes: Vec<_> = shard.read().values().cloned().collect();
            nodes.iter().for_each(&mut each);
        }
    }

    /// Lets go of room for many more nodes than there are.
    pub(crate) fn shrink(&self) {
        for shard in &self.nodes {
            let mut nodes = shard.write();
            if nodes.capacity() / 4 > nodes.len() {
                nodes.shrink_to_fit();
            }
        }
    }

    /// How many nodes there are.
    pub(crate) fn len(&self) -> usize {
        self.nodes.iter().map(|shard| shard.read().len()).sum()
    }
}
