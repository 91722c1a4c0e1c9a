//! A node: one object of the merged tree, and where its real object is.

use std::ffi::OsStr;
use std::sync::atomic::{AtomicU8, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};

use super::descriptors::{OpenFile, Slot};
use super::layer::{RealDir, RealId};
use super::locks::{OrderedMutex, OrderedRwLock, Rank};
use super::lower_names::LowerNames;
use super::metacopy::DataPlace;
use super::protect::KnownProtection;
use super::table::Key;
use super::types::{Attr, Entry, FileKind, Ino, NodeId};

/// One object of the merged tree.
#[derive(Debug)]
pub(crate) struct Node {
    pub(crate) id: NodeId,
    pub(crate) generation: u64,
    pub(crate) kind: FileKind,
    pub(crate) protection: KnownProtection,
    /// Look-ups that the kernel holds, and nodes that name this one as their parent.
    pub(crate) uses: AtomicU64,
    /// Names the open file of a node that isn't a directory.
    pub(crate) slot: Slot,
    pub(crate) copy_up: OrderedMutex<()>,
    /// What the table finds the node by.
    pub(crate) key: OrderedMutex<Key>,
    pub(crate) state: OrderedRwLock<State>,
    /// Present exactly for directories.
    pub(crate) dir: Option<Arc<DirPart>>,
}

/// The changing part of a node.
#[derive(Debug)]
pub(crate) struct State {
    pub(crate) ino: Ino,
    /// Where it is in the merged tree, or was when it still had a name; absent for the root.
    pub(crate) link: Option<Link>,
    /// Whether `link` still leads to it.
    pub(crate) named: bool,
    pub(crate) real: Real,
    /// Where its data is, if that is elsewhere: it is a metadata copy.
    pub(crate) data: Option<Arc<DataPlace>>,
}

/// A name in a directory of the merged tree. One of several for a hard-linked file.
#[derive(Debug, Clone)]
pub(crate) struct Link {
    pub(crate) parent: Arc<Node>,
    pub(crate) name: Box<OsStr>,
}

impl Link {
    pub(crate) fn is(&self, parent: &Arc<Node>, name: &OsStr) -> bool {
        Arc::ptr_eq(&self.parent, parent) && *self.name == *name
    }
}

/// Where the real object of a node is.
#[derive(Debug, Clone)]
pub(crate) enum Real {
    /// A directory: its [`DirPart`] tells.
    Dir,
    /// The upper layer, under the node's link.
    Upper(RealId),
    /// The parent's lower directory with this index, under the node's name.
    Lower { slot: u16, id: RealId },
    /// The upper layer, without a name: all that is left is this descriptor.
    Detached(Arc<OpenFile>),
}

/// The part of a node that only directories have.
#[derive(Debug)]
pub(crate) struct DirPart {
    /// Held to change the names in the directory (write) or to rely on them (read).
    pub(crate) names: OrderedRwLock<()>,
    /// Set once: at the look-up or by the copy-up.
    pub(crate) upper: OnceLock<Arc<RealDir>>,
    /// The lower directories that are merged here, topmost first.
    pub(crate) lowers: Box<[Arc<RealDir>]>,
    /// Which of them have which names, once that is known.
    pub(crate) lower_names: OrderedRwLock<Option<Arc<LowerNames>>>,
    /// How many of them were asked for names that they don't have.
    pub(crate) in_vain: AtomicUsize,
    default_acl: AtomicU8,
}

/// Whether a directory has a default ACL that new objects inherit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum DefaultAcl {
    Unknown,
    Absent,
    Present,
}

impl Real {
    /// What is to be found under the name.
    pub(crate) fn id(&self) -> Option<RealId> {
        match self {
            Real::Upper(id) | Real::Lower { id, .. } => Some(*id),
            Real::Dir | Real::Detached(_) => None,
        }
    }
}

impl DirPart {
    pub(crate) fn new(upper: Option<Arc<RealDir>>, lowers: Vec<Arc<RealDir>>) -> Arc<Self> {
        Arc::new(Self {
            names: OrderedRwLock::new(Rank::Names, ()),
            upper: upper.map_or_else(OnceLock::new, OnceLock::from),
            lowers: lowers.into_boxed_slice(),
            lower_names: OrderedRwLock::new(Rank::Leaf, None),
            in_vain: AtomicUsize::new(0),
            default_acl: AtomicU8::new(0),
        })
    }

    /// Whether several layers, or the upper and a lower one, make up the directory.
    pub(crate) fn is_merged(&self) -> bool {
        usize::from(self.upper.get().is_some()) + self.lowers.len() > 1
    }

    /// The directory whose attributes are shown.
    pub(crate) fn top(&self) -> Option<&Arc<RealDir>> {
        self.upper.get().or_else(|| self.lowers.first())
    }

    pub(crate) fn default_acl(&self) -> DefaultAcl {
        match self.default_acl.load(Ordering::Relaxed) {
            1 => DefaultAcl::Absent,
            2 => DefaultAcl::Present,
            _ => DefaultAcl::Unknown,
        }
    }

    pub(crate) fn set_default_acl(&self, known: DefaultAcl) {
        let value = match known {
            DefaultAcl::Unknown => 0,
            DefaultAcl::Absent => 1,
            DefaultAcl::Present => 2,
        };
        self.default_acl.store(value, Ordering::Relaxed);
    }
}

impl Node {
    pub(crate) fn new(
        id: NodeId,
        generation: u64,
        kind: FileKind,
        slot: Slot,
        key: Key,
        state: State,
        dir: Option<Arc<DirPart>>,
    ) -> Self {
        Self {
            id,
            generation,
            kind,
            protection: KnownProtection::default(),
            uses: AtomicU64::new(0),
            slot,
            copy_up: OrderedMutex::new(Rank::CopyUp, ()),
            key: OrderedMutex::new(Rank::Leaf, key),
            state: OrderedRwLock::new(Rank::State, state),
            dir,
        }
    }

    /// What a look-up of it says.
    pub(crate) fn entry(&self, attr: Attr) -> Entry {
        Entry {
            id: self.id,
            generation: self.generation,
            attr,
        }
    }

    /// Whether another node is in this directory, however deep.
    pub(crate) fn is_above(&self, below: &Node) -> bool {
        let mut at = below.parent();
        while let Some(node) = at {
            if node.id == self.id {
                return true;
            }
            at = node.parent();
        }
        false
    }

    fn parent(&self) -> Option<Arc<Node>> {
        let state = self.state.read();
        state.link.as_ref().map(|link| link.parent.clone())
    }

    /// Whether its real object is in the upper layer.
    pub(crate) fn is_upper(&self) -> bool {
        match &self.dir {
            Some(dir) => dir.upper.get().is_some(),
            None => matches!(self.state.read().real, Real::Upper(_) | Real::Detached(_)),
        }
    }
}

impl Drop for Node {
    /// As a [`RealDir`], with the nodes above it that nobody else has.
    fn drop(&mut self) {
        let mut next = self.state.get_mut().link.take();
        while let Some(link) = next {
            next = Arc::into_inner(link.parent)
                .and_then(|mut parent| parent.state.get_mut().link.take());
        }
    }
}
