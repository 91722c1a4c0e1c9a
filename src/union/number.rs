//! Inode numbers: one 64-bit number for each real object of any file system below.
//!
//! Objects of the first file system (the upper's, or the top lower's without one) keep their
//! numbers; those of the others get their file system's index in the high bits, as `xino` does
//! in the kernel. A number that has no room for that gets one from a counter, for this mount.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};

use super::locks::{OrderedMutex, OrderedRwLock, Rank};
use super::types::{Ino, NodeId};

const FS_SHIFT: u32 = 48;
/// Marks a number that came from the counter.
const MADE_UP: u64 = 1 << 63;

/// Index of a file system (a `st_dev`) among those that were met.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct FsIndex(u16);

/// The mapping.
#[derive(Debug)]
pub(crate) struct Numbers {
    devices: OrderedRwLock<Vec<u64>>,
    made_up: OrderedMutex<HashMap<(FsIndex, u64), u64>>,
    counter: AtomicU64,
}

impl Numbers {
    /// A mapping whose first file system is `first`.
    pub(crate) fn new(first: u64) -> Self {
        Self {
            devices: OrderedRwLock::new(Rank::Leaf, vec![first]),
            made_up: OrderedMutex::new(Rank::Leaf, HashMap::new()),
            counter: AtomicU64::new(1),
        }
    }

    /// The index of the file system with this `st_dev`.
    pub(crate) fn fs(&self, device: u64) -> FsIndex {
        let position = |devices: &[u64]| {
            devices
                .iter()
                .position(|known| *known == device)
                .map(|at| at as u16)
        };
        if let Some(at) = position(&self.devices.read()) {
            return FsIndex(at);
        }
        let mut devices = self.devices.write();
        if let Some(at) = position(&devices) {
            return FsIndex(at);
        }
        devices.push(device);
        FsIndex((devices.len() - 1) as u16)
    }

    /// The number of object `ino` of file system `fs`.
    pub(crate) fn ino(&self, fs: FsIndex, ino: u64) -> Ino {
        // 1 is the root's node id; 0 means "no inode" to FUSE and to readdir(3).
        let fits = ino >> FS_SHIFT == 0 && ino > NodeId::ROOT.0 && fs.0 < 1 << 15;
        if fits {
            return Ino(u64::from(fs.0) << FS_SHIFT | ino);
        }
        let mut made_up = self.made_up.lock();
        Ino(*made_up.entry((fs, ino)).or_insert_with(|| self.fresh()))
    }

    /// A number that no object has.
    pub(crate) fn fresh(&self) -> u64 {
        MADE_UP | self.counter.fetch_add(1, Ordering::Relaxed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_of_the_first_file_system_are_kept_and_others_never_clash() {
        let numbers = Numbers::new(7);
        let (first, second) = (numbers.fs(7), numbers.fs(9));
        assert_eq!(numbers.ino(first, 1234), Ino(1234));
        assert_ne!(numbers.ino(second, 1234), Ino(1234));
        assert_eq!(numbers.fs(9), second);
        let huge = numbers.ino(first, 1 << 60);
        assert_eq!(numbers.ino(first, 1 << 60), huge);
        assert_ne!(numbers.ino(second, 1 << 60), huge);
        assert!(numbers.ino(first, 1).0 > 1);
    }
}
