//! Word of changes that nobody asked for.

use std::fmt;
use std::sync::OnceLock;

use super::types::NodeId;

type Notice = Box<dyn Fn(NodeId) + Send + Sync>;

/// Who wants to know which nodes got other attributes on the way to something else: a directory
/// that is copied up for the sake of what lies in it is a merged one from then on, with one link, and
/// the one that the copy goes to has been changed;
/// a file that is copied up for a request that then fails has lost its other links.
#[derive(Default)]
pub(super) struct Watcher(OnceLock<Notice>);

impl Watcher {
    /// Keeps who is to be told. The first one stays.
    pub(super) fn set(&self, notice: Notice) {
        let _ = self.0.set(notice);
    }

    pub(super) fn tell(&self, node: NodeId) {
        if let Some(notice) = self.0.get() {
            notice(node);
        }
    }
}

impl fmt::Debug for Watcher {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Watcher")
            .field(&self.0.get().is_some())
            .finish()
    }
}
