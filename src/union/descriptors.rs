//! A bounded store of open descriptors, so that a tree of any size needs no more of them than
//! the process may have. What falls out is opened again by its owner when it is next needed.

use std::num::NonZeroUsize;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use lru::LruCache;

use super::locks::{OrderedMutex, Rank};

const SHARDS: usize = 16;

/// Names an entry: each owner takes a new one and is the only one to use it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct Slot(u64);

/// An open file or directory of a layer.
#[derive(Debug)]
pub(crate) struct OpenFile {
    fd: OwnedFd,
    access: Access,
}

/// What an open descriptor can do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Access {
    /// Nothing but naming the object (`O_PATH`): it couldn't be opened for reading.
    Path,
    /// Read.
    Read,
    /// Read, and write at the end: the file is append-only (`chattr +a`).
    Append,
    /// Read and write.
    Write,
}

impl OpenFile {
    pub(crate) fn new(fd: OwnedFd, access: Access) -> Arc<Self> {
        Arc::new(Self { fd, access })
    }

    pub(crate) fn access(&self) -> Access {
        self.access
    }
}

impl AsFd for OpenFile {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// The store.
#[derive(Debug)]
pub(crate) struct Descriptors {
    shards: Vec<OrderedMutex<LruCache<Slot, Arc<OpenFile>>>>,
    next: AtomicU64,
}

impl Descriptors {
    /// A store of at most about `capacity` descriptors.
    pub(crate) fn new(capacity: usize) -> Self {
        let each = NonZeroUsize::new(capacity / SHARDS).unwrap_or(NonZeroUsize::MIN);
        let shards = (0..SHARDS)
            .map(|_| OrderedMutex::new(Rank::Descriptors, LruCache::new(each)))
            .collect();
        Self {
            shards,
            next: AtomicU64::new(1),
        }
    }

    /// A new name for an owner.
    pub(crate) fn slot(&self) -> Slot {
        Slot(self.next.fetch_add(1, Ordering::Relaxed))
    }

    fn shard(&self, slot: Slot) -> &OrderedMutex<LruCache<Slot, Arc<OpenFile>>> {
        &self.shards[slot.0 as usize % SHARDS]
    }

    pub(crate) fn get(&self, slot: Slot) -> Option<Arc<OpenFile>> {
        self.shard(slot).lock().get(&slot).cloned()
    }

    pub(crate) fn put(&self, slot: Slot, file: Arc<OpenFile>) {
        // The one that falls out is closed after the lock is gone: a close can take long.
        let evicted = self.shard(slot).lock().push(slot, file);
        drop(evicted);
    }

    /// Closes all that nobody is using.
    pub(crate) fn clear(&self) {
        for shard in &self.shards {
            let mut shard = shard.lock();
            let capacity = shard.cap();
            let all = std::mem::replace(&mut *shard, LruCache::new(capacity));
            drop(shard);
            drop(all);
        }
    }

    pub(crate) fn remove(&self, slot: Slot) {
        let removed = self.shard(slot).lock().pop(&slot);
        drop(removed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_store_never_holds_more_than_its_capacity() {
        let store = Descriptors::new(SHARDS * 2);
        for _ in 0..100 {
            let fd = std::fs::File::open("/").unwrap().into();
            store.put(store.slot(), OpenFile::new(fd, Access::Read));
        }
        let held: usize = store.shards.iter().map(|shard| shard.lock().len()).sum();
        assert_eq!(held, SHARDS * 2);
    }
}
