//! Numbers that other processes may read while this one counts.

use std::ops::Deref;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::ptr::NonNull;
use std::sync::atomic::AtomicU64;

use super::Errno;

/// Room for the numbers at the head of a file: one page of the smallest kind.
pub(crate) const ROOM: usize = 4096;

/// A row of numbers.
#[derive(Debug)]
pub(crate) enum Cells {
    /// In memory of our own.
    Own(Box<[AtomicU64]>),
    /// At the head of a file.
    Shared(Mapping),
}

impl Cells {
    /// `count` zeros.
    pub(crate) fn own(count: usize) -> Self {
        Cells::Own((0..count).map(|_| AtomicU64::new(0)).collect())
    }

    /// The first `count` numbers of a file, which has [`ROOM`] and can't be made shorter.
    pub(crate) fn shared(file: BorrowedFd<'_>, count: usize) -> Result<Self, Errno> {
        if count * size_of::<AtomicU64>() > ROOM {
            return Err(Errno::INVAL);
        }
        Ok(Cells::Shared(Mapping::new(file.as_fd(), count)?))
    }
}

impl Deref for Cells {
    type Target = [AtomicU64];

    fn deref(&self) -> &[AtomicU64] {
        match self {
            Cells::Own(cells) => cells,
            Cells::Shared(mapping) => mapping.cells(),
        }
    }
}

/// The first page of a file in memory.
#[derive(Debug)]
pub(crate) struct Mapping {
    first: NonNull<AtomicU64>,
    count: usize,
}

// SAFETY: what is behind the pointer are atomics, which any thread may use; the mapping isn't
// bound to the thread that made it.
unsafe impl Send for Mapping {}
// SAFETY: as above.
unsafe impl Sync for Mapping {}

impl Mapping {
    fn new(file: BorrowedFd<'_>, count: usize) -> Result<Self, Errno> {
        let protection = libc::PROT_READ | libc::PROT_WRITE;
        let anywhere = std::ptr::null_mut();
        let file = file.as_raw_fd();
        // SAFETY: a new mapping at a place of the kernel's choice is in nobody's way.
        let place = unsafe { libc::mmap(anywhere, ROOM, protection, libc::MAP_SHARED, file, 0) };
        if place == libc::MAP_FAILED {
            return Err(super::from_nix(nix::errno::Errno::last()));
        }
        let first = NonNull::new(place.cast()).ok_or(Errno::NOMEM)?;
        Ok(Self { first, count })
    }

    fn cells(&self) -> &[AtomicU64] {
        // SAFETY: the mapping begins at a page, holds more than `count` numbers, and stays as
        // long as `self`. The file can't be made shorter, so its page stays, too. Others may
        // write to it: atomics may be read meanwhile.
        unsafe { std::slice::from_raw_parts(self.first.as_ptr(), self.count) }
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: this mapping was made in `new`; the borrows of it have ended.
        unsafe { libc::munmap(self.first.as_ptr().cast(), ROOM) };
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::FileExt;
    use std::sync::atomic::Ordering;

    use super::*;

    #[test]
    fn what_is_counted_is_in_the_file() {
        let file = tempfile::tempfile().unwrap();
        file.set_len(ROOM as u64).unwrap();
        let cells = Cells::shared(file.as_fd(), 3).unwrap();
        cells[2].fetch_add(7, Ordering::Relaxed);
        let mut read = [0; 8];
        file.read_exact_at(&mut read, 16).unwrap();
        assert_eq!(u64::from_ne_bytes(read), 7);
        assert!(Cells::shared(file.as_fd(), 513).is_err());
        assert_eq!(Cells::own(3).len(), 3);
    }
}
