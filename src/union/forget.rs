//! Letting go of what was remembered of the layers, for layers that somebody changes under the
//! mount.
//!
//! A node is what its object on the disk is. Where layers don't change, a look-up that finds a
//! known object finds its node as it was; from the first word of a change on, look-ups compare.

use std::ffi::OsStr;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::Union;
use super::layer::RealId;
use super::lookup::{DirLayer, LowerAt};
use super::node::{Link, Node, Real};
use super::table::Key;
use super::types::{FileKind, NodeId};

/// A node that the kernel may know, and where.
#[derive(Debug, Clone)]
pub struct Known {
    /// The node.
    pub id: NodeId,
    /// What it is.
    pub kind: FileKind,
    /// Its directory and its name there; the root has none.
    pub place: Option<(NodeId, Box<OsStr>)>,
}

impl Union {
    /// Forgets what was read from the layers: names, descriptors. What was changed through the
    /// tree is in the upper layer, and is found there.
    pub fn forget_layers(&self) {
        self.layers_change.store(true, Ordering::Relaxed);
        self.listings.clear();
        self.ground.descriptors.clear();
        self.table.each(|node| node.protection.forget());
    }

    /// Passes every node, and every further name of one, to `each`. No lock is held meanwhile.
    pub fn each_known(&self, mut each: impl FnMut(Known)) {
        self.table.each(|node| {
            let place = |link: &Link| (link.parent.id, link.name.clone());
            let place = node.state.read().link.as_ref().map(place);
            let names = self.aliases.of(node.id);
            for place in names.into_iter().map(Some).chain([place]) {
                let (id, kind) = (node.id, node.kind);
                each(Known { id, kind, place });
            }
        });
    }

    /// Whether a directory's node is made of the layers that a look-up has found.
    pub(super) fn has_layers(
        &self,
        node: &Node,
        upper: Option<&DirLayer>,
        lowers: &[(LowerAt, DirLayer)],
    ) -> bool {
        let Some(dir) = &node.dir else { return false };
        let id = |layer: &DirLayer| self.ground.real_id(&layer.stat);
        let known: Option<RealId> = dir.upper.get().map(|upper| upper.id);
        known == upper.map(id)
            && dir.lowers.len() == lowers.len()
            && dir
                .lowers
                .iter()
                .zip(lowers)
                .all(|(known, (_, layer))| known.id == id(layer))
    }

    /// Whether a file's node is of the object that a look-up has found under its name.
    pub(super) fn is_same_file(&self, node: &Node, found: &Real) -> bool {
        match (&node.state.read().real, found) {
            (Real::Lower { id: known, .. }, Real::Lower { id, .. }) => known == id,
            _ => true,
        }
    }

    /// Whether a lower object still has the name that its node was last found by.
    pub(super) fn is_where_it_was(&self, node: &Arc<Node>) -> bool {
        let stat = self.spot(node).and_then(|spot| spot.stat());
        let there = stat.ok().flatten().map(|stat| self.ground.real_id(&stat));
        let parent_is_gone = {
            let state = node.state.read();
            let link = state.link.as_ref();
            link.is_some_and(|link| *link.parent.key.lock() == Key::Gone)
        };
        let known = match (&node.state.read().real, &node.dir) {
            (Real::Lower { id, .. }, _) => Some(*id),
            (_, Some(dir)) => dir.top().map(|top| top.id),
            _ => None,
        };
        !parent_is_gone && there == known
    }

    /// Sees to a known node of a file: its directory may be another node now, and its descriptor
    /// that of a file which is no more.
    pub(super) fn settle(&self, node: &Arc<Node>, parent: &Arc<Node>, name: &OsStr, real: &Real) {
        if !matches!(real, Real::Lower { .. }) {
            return;
        }
        let moved = {
            let state = node.state.read();
            let link = state.link.as_ref();
            matches!(state.real, Real::Lower { .. })
                && link.is_some_and(|link| !link.is(parent, name))
        };
        if moved {
            let link = Link {
                parent: parent.clone(),
                name: name.into(),
            };
            self.table.relink(node, link);
            let old = std::mem::replace(&mut node.state.write().real, real.clone());
            drop(old);
        }
        self.ground.descriptors.remove(node.slot);
    }

    /// Gives up a directory that is made of other layers now. Who is in it finds it removed.
    pub(super) fn give_up(&self, node: &Arc<Node>) {
        self.table.rekey(node, Key::Gone);
        node.state.write().named = false;
        self.listings.drop_listing(node.id);
    }
}
