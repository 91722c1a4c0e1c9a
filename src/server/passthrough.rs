//! Files that the kernel reads and writes by itself, past us.
//!
//! The kernel has one way of reading an inode at a time: through its page cache, or through one
//! real file. So the first OPEN decides, and all others follow until the last RELEASE. A file that
//! may still be copied up goes through the page cache, or who has it open would keep the old one.

use std::collections::HashMap;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use fuser::BackingId;

use crate::union::NodeId;

/// The files that are open.
#[derive(Debug, Default)]
pub(super) struct Passthrough(Mutex<HashMap<NodeId, Opened>>);

/// How a file is open.
#[derive(Debug)]
struct Opened {
    /// OPENs and CREATEs without their RELEASE.
    count: u64,
    /// The real file, unless the page cache is used.
    backing: Option<Arc<BackingId>>,
}

impl Passthrough {
    fn lock(&self) -> MutexGuard<'_, HashMap<NodeId, Opened>> {
        // What a thread that panicked has left is whole: each change is one step.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Counts an OPEN of a file. `real` is asked for the real file when nobody has it open, and
    /// `register` makes it known to the kernel.
    pub(super) fn open<F: AsFd>(
        &self,
        node: NodeId,
        real: impl FnOnce() -> Option<F>,
        register: impl FnOnce(BorrowedFd<'_>) -> io::Result<BackingId>,
    ) -> Option<Arc<BackingId>> {
        let mut all = self.lock();
        let opened = all.entry(node).or_insert_with(|| Opened {
            count: 0,
            backing: real().and_then(|file| match register(file.as_fd()) {
                Ok(backing) => Some(Arc::new(backing)),
                Err(error) => {
                    log::debug!("node {} is not passed through: {error}", node.0);
                    None
                }
            }),
        });
        opened.count += 1;
        opened.backing.clone()
    }

    /// Counts a RELEASE.
    pub(super) fn release(&self, node: NodeId) {
        let mut all = self.lock();
        let Some(opened) = all.get_mut(&node) else {
            return;
        };
        opened.count -= 1;
        let last = (opened.count == 0).then(|| all.remove(&node));
        drop(all);
        drop(last);
    }
}
