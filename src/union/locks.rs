//! Locks that know their place in the lock order; debug builds assert it.
//!
//! The order, first taken first:
//!
//! 1. [`Rank::CopyUp`]: one node's copy-up. Held over the copy of its data; nobody else waits.
//! 2. [`Rank::Moves`]: renames from one directory to another, one at a time.
//! 3. [`Rank::Names`]: the names in one directory. Several at once: see below.
//! 4. [`Rank::Listing`]: the cached listings.
//! 5. [`Rank::State`]: where one node's real object is. Never held over a system call that can
//!    wait for a disk.
//! 6. [`Rank::Keys`]: a shard of the table's keys.
//! 7. [`Rank::Table`]: a shard of the inode table.
//! 8. [`Rank::Modes`]: permissions that are lent for a moment, or changed.
//! 9. [`Rank::Place`]: where one real directory is.
//! 10. [`Rank::Descriptors`]: a shard of the descriptor cache.
//! 11. [`Rank::Whiteout`]: the whiteout that others are links of, over calls in the work directory.
//! 12. [`Rank::Leaf`]: small tables that call nothing.
//!
//! Names of several directories are locked as the VFS locks them: those of a directory before
//! those of one below it (rmdir, a rename over a directory), so that whoever waits does so down the
//! tree. Two of which neither is above the other are locked only by a rename between them, which
//! holds [`Rank::Moves`]: it alone changes what is above what, and there is no second one to wait
//! for it in a circle. Whoever takes a further lock of names says so ([`OrderedRwLock::write_more`]).

use parking_lot::{Mutex, MutexGuard, RwLock, RwLockReadGuard, RwLockWriteGuard};

/// Place of a lock in the order. See the module's head.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Rank {
    CopyUp,
    Moves,
    Names,
    Listing,
    State,
    Keys,
    Table,
    Modes,
    Place,
    Descriptors,
    Whiteout,
    Leaf,
}

/// Whether the thread may hold another lock of the rank.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Further {
    Allowed,
    Refused,
}

/// Says that this thread holds a lock of a rank, for as long as it lives.
#[derive(Debug)]
pub(crate) struct Held {
    #[cfg(debug_assertions)]
    rank: Rank,
}

#[cfg(debug_assertions)]
thread_local! {
    static HELD: std::cell::RefCell<Vec<Rank>> = const { std::cell::RefCell::new(Vec::new()) };
}

impl Held {
    #[cfg(debug_assertions)]
    fn new(rank: Rank, further: Further) -> Self {
        HELD.with_borrow_mut(|held| {
            let highest = held.iter().max();
            let in_order = highest
                .is_none_or(|&last| last < rank || (last == rank && further == Further::Allowed));
            debug_assert!(
                in_order,
                "lock order: {rank:?} taken while holding {held:?}"
            );
            held.push(rank);
        });
        Self { rank }
    }

    #[cfg(not(debug_assertions))]
    #[inline]
    fn new(_rank: Rank, _further: Further) -> Self {
        Self {}
    }
}

#[cfg(debug_assertions)]
impl Drop for Held {
    fn drop(&mut self) {
        HELD.with_borrow_mut(|held| {
            if let Some(at) = held.iter().rposition(|rank| *rank == self.rank) {
                held.remove(at);
            }
        });
    }
}

/// A guard and the mark of its rank.
#[derive(Debug)]
pub(crate) struct Guard<G> {
    inner: G,
    _held: Held,
}

impl<G: std::ops::Deref> std::ops::Deref for Guard<G> {
    type Target = G::Target;
    fn deref(&self) -> &G::Target {
        &self.inner
    }
}

impl<G: std::ops::DerefMut> std::ops::DerefMut for Guard<G> {
    fn deref_mut(&mut self) -> &mut G::Target {
        &mut self.inner
    }
}

/// A mutex with a place in the order.
#[derive(Debug)]
pub(crate) struct OrderedMutex<T> {
    #[cfg(debug_assertions)]
    rank: Rank,
    inner: Mutex<T>,
}

impl<T> OrderedMutex<T> {
    pub(crate) fn new(_rank: Rank, value: T) -> Self {
        Self {
            #[cfg(debug_assertions)]
            rank: _rank,
            inner: Mutex::new(value),
        }
    }

    fn held(&self) -> Held {
        #[cfg(debug_assertions)]
        return Held::new(self.rank, Further::Refused);
        #[cfg(not(debug_assertions))]
        return Held::new(Rank::Leaf, Further::Refused);
    }

    pub(crate) fn lock(&self) -> Guard<MutexGuard<'_, T>> {
        let held = self.held();
        Guard {
            inner: self.inner.lock(),
            _held: held,
        }
    }
}

/// A reader-writer lock with a place in the order.
#[derive(Debug)]
pub(crate) struct OrderedRwLock<T> {
    #[cfg(debug_assertions)]
    rank: Rank,
    inner: RwLock<T>,
}

impl<T> OrderedRwLock<T> {
    pub(crate) fn new(_rank: Rank, value: T) -> Self {
        Self {
            #[cfg(debug_assertions)]
            rank: _rank,
            inner: RwLock::new(value),
        }
    }

    fn held(&self, further: Further) -> Held {
        #[cfg(debug_assertions)]
        return Held::new(self.rank, further);
        #[cfg(not(debug_assertions))]
        return Held::new(Rank::Leaf, further);
    }

    pub(crate) fn read(&self) -> Guard<RwLockReadGuard<'_, T>> {
        let held = self.held(Further::Refused);
        Guard {
            inner: self.inner.read(),
            _held: held,
        }
    }

    pub(crate) fn write(&self) -> Guard<RwLockWriteGuard<'_, T>> {
        self.write_as(Further::Refused)
    }

    /// As [`OrderedRwLock::write`] by a thread that holds another lock of the rank, in the order
    /// that the module's head gives.
    pub(crate) fn write_more(&self) -> Guard<RwLockWriteGuard<'_, T>> {
        self.write_as(Further::Allowed)
    }

    fn write_as(&self, further: Further) -> Guard<RwLockWriteGuard<'_, T>> {
        let held = self.held(further);
        Guard {
            inner: self.inner.write(),
            _held: held,
        }
    }

    /// What it guards, for the only one who has it: nothing is locked.
    pub(crate) fn get_mut(&mut self) -> &mut T {
        self.inner.get_mut()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    #[cfg(debug_assertions)]
    #[should_panic(expected = "lock order")]
    fn taking_an_earlier_lock_second_is_caught() {
        let state = OrderedMutex::new(Rank::State, ());
        let names = OrderedMutex::new(Rank::Names, ());
        let _second = state.lock();
        let _first = names.lock();
    }

    #[test]
    #[cfg(debug_assertions)]
    #[should_panic(expected = "lock order")]
    fn a_further_lock_of_a_rank_is_asked_for() {
        let [above, below] = [(); 2].map(|()| OrderedRwLock::new(Rank::Names, ()));
        {
            let _above = above.write();
            let _below = below.write_more();
        }
        let _above = above.write();
        let _below = below.read();
    }

    #[test]
    fn a_panic_lets_every_lock_go() {
        let names = OrderedMutex::new(Rank::Names, ());
        let state = OrderedRwLock::new(Rank::State, ());
        let panicked = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            let _first = names.lock();
            let _second = state.write();
            // Silently: another test may be forking, and would inherit the printer's lock.
            std::panic::resume_unwind(Box::new("with both of them"));
        }));
        assert!(panicked.is_err());
        let _first = names.lock();
        let _second = state.write();
    }
}
