//! A working directory of one's own for each server thread.
//!
//! Some calls take only a path: the `l*xattr` family has no `*at` form before Linux 6.13. A path
//! through `/proc/self/fd` would need a `/proc`, which the server may have lost to a
//! `pivot_root`. So a thread leaves the process's shared working directory once
//! (`unshare(CLONE_FS)`) and from then on moves its own to the directory that it works in.

use std::cell::Cell;
use std::os::fd::BorrowedFd;

use super::Errno;

thread_local! {
    static PRIVATE: Cell<bool> = const { Cell::new(false) };
}

/// Makes `dir` this thread's working directory and no other thread's. A relative path given to
/// the next call of this thread starts there.
pub fn enter(dir: BorrowedFd<'_>) -> Result<(), Errno> {
    PRIVATE.with(|private| {
        if !private.get() {
            // SAFETY: CLONE_FS gives this thread its own working directory, root and umask; no
            // memory or descriptor is touched.
            unsafe { rustix::thread::unshare_unsafe(rustix::thread::UnshareFlags::FS)? };
            private.set(true);
        }
        rustix::process::fchdir(dir)
    })
}
