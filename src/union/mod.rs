//! The merged tree: lower layers and an upper one shown as the kernel's overlayfs would show
//! them, with no FUSE in it.
//!
//! A [`Union`] is asked by node number and name, as a FUSE server is. It holds its layers by
//! descriptors: once open, it resolves no path, so it can serve from anywhere.
//!
//! The lock order stands at the head of `locks.rs`.

mod aliases;
mod copy_attributes;
pub(crate) mod copy_data;
mod copy_up;
mod crowd;
mod decide;
mod descriptors;
mod enter;
mod forget;
mod hiding;
mod index;
mod index_open;
mod layer;
mod lend;
mod listing;
mod locks;
mod lookup;
mod lower_names;
mod metacopy;
mod node;
mod number;
mod ops;
mod origins;
mod owners;
mod protect;
mod redirect;
mod setup;
mod spot;
mod table;
#[cfg(test)]
mod tests;
mod types;
mod watch;
mod work;

use std::ffi::OsStr;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use rustix::fs::Stat;

use crate::format::override_stat::OverrideStat;
use crate::format::{Form, XattrNamespace};
use crate::options::Switch;
use crate::sys::{Errno, memory};
use aliases::Aliases;
use crowd::Crowd;
use index::Index;
use layer::{Ground, LayerIndex, RealDir, RealId};
use listing::Listings;
use locks::OrderedMutex;
use node::{DirPart, Node, Real, State};
use origins::Origins;
use owners::OwnerPolicy;
use redirect::Follow;
use spot::Spot;
use table::Table;
use watch::Watcher;
use work::Work;

pub use forget::Known;
pub use owners::Owners;
pub use setup::Setup;
pub use types::*;
pub(crate) use work::trust_again;

/// `Result` of a request to the merged tree.
pub type Outcome<T> = std::result::Result<T, Fault>;

/// How often a request looks again for an object that wasn't where it should be.
const ATTEMPTS: usize = 8;

/// The merged tree.
#[derive(Debug)]
pub struct Union {
    ground: Arc<Ground>,
    table: Table,
    listings: Listings,
    /// Present for a writable mount.
    work: Option<Work>,
    namespace: XattrNamespace,
    /// The upper layer's.
    form: Form,
    owners: OwnerPolicy,
    /// For each lower layer: whether a directory of it said that it may hold xattr-whiteouts.
    xattr_whiteouts: Vec<AtomicBool>,
    origins: Origins,
    aliases: Aliases,
    watcher: Watcher,
    crowd: Crowd,
    /// Held to move a name from one directory to another.
    moves: OrderedMutex<()>,
    follow: Follow,
    /// Present with `index=on`.
    index: Option<Index>,
    /// Whether somebody else changes the layers: known nodes are compared with what is there.
    layers_change: AtomicBool,
    /// Whether root is the machine's root, who alone makes things append-only and immutable.
    is_machines: bool,
    /// Names in all [`lower_names::LowerNames`].
    lower_names: Arc<AtomicUsize>,
}

impl Union {
    fn node(&self, id: NodeId) -> Outcome<Arc<Node>> {
        self.table
            .get(id)
            .ok_or_else(|| Fault::merged("finding a node", Errno::STALE))
    }

    fn dir_node(&self, id: NodeId) -> Outcome<DirNode> {
        let node = self.node(id)?;
        match &node.dir {
            Some(dir) => Ok(DirNode {
                dir: dir.clone(),
                node,
            }),
            None => Err(Fault::merged("finding a directory", Errno::NOTDIR)),
        }
    }

    /// Has `notice` called for each node whose attributes a copy-up changed. It is called during the
    /// request, with no lock held.
    pub fn watch_attributes(&self, notice: impl Fn(NodeId) + Send + Sync + 'static) {
        self.watcher.set(Box::new(notice));
    }

    /// Gives back `count` look-ups of a node.
    pub fn forget(&self, id: NodeId, count: u64) {
        self.release(id, count);
    }

    fn release(&self, id: NodeId, count: u64) {
        let dropped = self.table.release(id, count);
        let many = dropped.len();
        for node in dropped {
            self.ground.descriptors.remove(node.slot);
            self.aliases.forget(node.id);
            if node.dir.is_some() {
                self.listings.drop_listing(node.id);
            }
        }
        if self.crowd.leave(many, || self.table.len()) {
            self.table.shrink();
            memory::give_back();
        }
    }

    /// Whether names of this layer may be whited out by an attribute.
    fn may_hold_xattr_whiteouts(&self, layer: LayerIndex) -> bool {
        match layer {
            LayerIndex::Upper => false,
            LayerIndex::Lower(index) => {
                self.xattr_whiteouts[usize::from(index)].load(Ordering::Relaxed)
            }
        }
    }

    /// Where a node is in the tree, for people to read: its last name, where
    /// it has lost that.
    pub fn path_of(&self, id: NodeId) -> PathBuf {
        let mut names = Vec::new();
        let mut at = self.table.get(id);
        while let Some(node) = at {
            // One lock at a time: nothing is to be held while the parent's is taken.
            let link = node.state.read().link.clone();
            at = link.map(|link| {
                names.push(link.name);
                link.parent
            });
        }
        let names = names.iter().rev().map(|name| &**name);
        if names.len() == 0 && id != NodeId::ROOT {
            return PathBuf::from(format!("node {}", id.0));
        }
        std::iter::once(OsStr::new("/")).chain(names).collect()
    }

    /// How many nodes are in memory.
    pub fn node_count(&self) -> usize {
        self.table.len()
    }

    /// Where a node's real object can be reached now.
    fn spot(&self, node: &Arc<Node>) -> Outcome<Spot> {
        if let Some(dir) = &node.dir {
            let top = dir
                .top()
                .ok_or_else(|| Fault::merged("finding a directory", Errno::STALE))?;
            return Ok(Spot::itself(top));
        }
        self.spot_in(&node.state.read())
    }

    /// As [`Union::spot`], for what isn't a directory.
    fn spot_in(&self, state: &State) -> Outcome<Spot> {
        let parent = state
            .link
            .as_ref()
            .and_then(|link| Some((link.parent.dir.as_ref()?, &link.name)));
        let at = |dir: &Arc<RealDir>, name: &OsStr| Spot::At {
            dir: dir.clone(),
            name: name.into(),
        };
        if let (Real::Upper(id), Some(index)) = (&state.real, &self.index)
            && let Some(spot) = index.spot(*id)
        {
            return Ok(spot);
        }
        match (&state.real, parent) {
            (Real::Detached(file), _) => Ok(Spot::Open(file.clone())),
            (Real::Upper(_), Some((parent, name))) if parent.upper.get().is_some() => {
                let upper = parent.upper.get();
                upper.map(|dir| at(dir, name)).ok_or_else(stale)
            }
            (Real::Lower { slot, .. }, Some((parent, name))) => parent
                .lowers
                .get(usize::from(*slot))
                .map(|dir| at(dir, name))
                .ok_or_else(stale),
            _ => Err(stale()),
        }
    }

    /// As [`Union::spot`], with the object's `stat`. For a caller who has locked names that keep
    /// the object where it is, or doesn't go by its name: a rename may come at once.
    fn spot_and_stat(&self, node: &Arc<Node>) -> Outcome<(Spot, Stat)> {
        for _ in 0..ATTEMPTS {
            let (spot, expected) = match &node.dir {
                Some(_) => (self.spot(node)?, None),
                None => {
                    let state = node.state.read();
                    (self.spot_in(&state)?, state.real.id())
                }
            };
            if let Some(stat) = spot.stat()?
                && expected.is_none_or(|id| id == self.ground.real_id(&stat))
            {
                return Ok((spot, stat));
            }
        }
        Err(stale())
    }

    /// Has `act` work where the node's real object is, which no rename moves meanwhile: names of
    /// the upper layer are locked, those of the lower layers stay. `act` gets what is to be found
    /// there, and says `None` where it has found something else.
    ///
    /// No names may be locked by the caller, and `act` mustn't take long.
    fn in_place<T>(
        &self,
        node: &Arc<Node>,
        mut act: impl FnMut(&Spot, Option<RealId>) -> Outcome<Option<T>>,
    ) -> Outcome<T> {
        let mut failed = Err(stale());
        let mut attempts = 0;
        while attempts < ATTEMPTS {
            if node.dir.is_some() {
                // By its descriptor, wherever it is.
                return act(&self.spot(node)?, None)?.ok_or_else(stale);
            }
            let parent = upper_parent(&node.state.read()).cloned();
            let dir = parent.as_ref().and_then(|parent| parent.dir.as_ref());
            let _names = dir.map(|dir| dir.names.read());
            let (spot, expected) = {
                let state = node.state.read();
                if let Some(now) = upper_parent(&state)
                    && !parent
                        .as_ref()
                        .is_some_and(|locked| Arc::ptr_eq(locked, now))
                {
                    // Moved to another directory, or copied up.
                    continue;
                }
                (self.spot_in(&state)?, state.real.id())
            };
            match act(&spot, expected) {
                Ok(Some(done)) => return Ok(done),
                Ok(None) => {}
                // The entry of an indexed file goes with its last name, in whatever directory.
                Err(fault) if fault.errno == Errno::NOENT => failed = Err(fault),
                Err(fault) => return Err(fault),
            }
            attempts += 1;
        }
        failed
    }

    /// As [`Union::in_place`], with the `stat` of what is sure to be the node's object.
    fn at_object<T>(
        &self,
        node: &Arc<Node>,
        mut act: impl FnMut(&Spot, &Stat) -> Outcome<T>,
    ) -> Outcome<T> {
        self.in_place(node, |spot, expected| match spot.stat()? {
            Some(stat) if expected.is_none_or(|id| id == self.ground.real_id(&stat)) => {
                act(spot, &stat).map(Some)
            }
            _ => Ok(None),
        })
    }

    /// Whether the kernel is to check ACLs.
    pub fn acls(&self) -> Switch {
        self.owners.acls()
    }

    /// What is recorded about the owner of a name in a real directory.
    fn record(&self, dir: &RealDir, name: &OsStr, stat: &Stat) -> Outcome<Option<OverrideStat>> {
        if !self.may_have_record(stat) {
            return Ok(None);
        }
        let value = dir.xattr(name, self.owners.record_name())?;
        Ok(value.and_then(|value| OverrideStat::parse(&value)))
    }

    /// As [`Union::record`] for a spot.
    fn record_at(&self, spot: &Spot, stat: &Stat) -> Option<OverrideStat> {
        if !self.may_have_record(stat) {
            return None;
        }
        let value = spot.get_xattr(self.owners.record_name()).ok()?;
        OverrideStat::parse(&value)
    }

    fn may_have_record(&self, stat: &Stat) -> bool {
        self.owners.may_have_record(FileKind::of_mode(stat.st_mode))
    }

    /// Whether an attribute is the owner's record, which is ours and not the user's.
    fn is_record(&self, name: &OsStr) -> bool {
        self.owners.records() && name == self.owners.record_name()
    }

    /// The attributes that a copy or a record of the object gets.
    fn own_attr_of(&self, node: &Node, spot: &Spot, stat: &Stat) -> Attr {
        let record = self.record_at(spot, stat);
        self.owners.own(node.state.read().ino, stat, record)
    }

    /// The attributes of a node whose real object has this `stat`.
    fn attr_of(&self, node: &Node, spot: &Spot, stat: &Stat) -> Attr {
        let record = self.record_at(spot, stat);
        let mut attr = self.owners.show(node.state.read().ino, stat, record);
        self.show_data_blocks(node, &mut attr);
        self.show_union_links(node, stat, &mut attr);
        match &node.dir {
            Some(dir) if dir.is_merged() => attr.nlink = 1,
            // The lower file is still there, for us alone.
            None if !node.state.read().named && !node.is_upper() => attr.nlink = 0,
            _ => {}
        }
        attr
    }
}

/// A node that is a directory.
#[derive(Debug, Clone)]
struct DirNode {
    node: Arc<Node>,
    dir: Arc<DirPart>,
}

/// The directory whose names lead to an object of the upper layer.
fn upper_parent(state: &State) -> Option<&Arc<Node>> {
    match (&state.real, &state.link) {
        (Real::Upper(_), Some(link)) => Some(&link.parent),
        _ => None,
    }
}

fn stale() -> Fault {
    Fault::merged("finding an object", Errno::STALE)
}
