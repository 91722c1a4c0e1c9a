//! Processes: fork, and what a forked child has to put right.

use std::os::fd::{AsRawFd, BorrowedFd};
use std::panic::{AssertUnwindSafe, catch_unwind};

use nix::sys::signal::{SigHandler, Signal};
use nix::unistd::{ForkResult, Pid};

use super::{Errno, from_nix};

/// Runs `child` in a forked process, which exits with the code that it returns.
///
/// Meant for processes with one thread: in others the child finds every lock as it was held.
pub fn fork(child: impl FnOnce() -> u8) -> Result<Pid, Errno> {
    // SAFETY: the child runs `child` and ends in `_exit`, it never returns into the caller's
    // frames. Callers have one thread, so no lock is held by somebody who isn't there any more.
    match unsafe { nix::unistd::fork() }.map_err(from_nix)? {
        ForkResult::Parent { child } => Ok(child),
        ForkResult::Child => {
            // 101 is what Rust programs exit with after a panic.
            let code = catch_unwind(AssertUnwindSafe(child)).unwrap_or(101);
            // SAFETY: `_exit` takes any number and doesn't return.
            unsafe { libc::_exit(i32::from(code)) }
        }
    }
}

/// Makes the calling process end, killed, when `parent`, the one that forked it, does. To be
/// called again after a change of the user, which takes it back.
pub fn end_with(parent: Pid) -> Result<(), Errno> {
    let kill = rustix::process::Signal::KILL;
    rustix::process::set_parent_process_death_signal(Some(kill))?;
    if nix::unistd::getppid() == parent {
        Ok(())
    } else {
        // It ended before the signal was asked for.
        Err(Errno::CHILD)
    }
}

/// Gives a signal back its default action.
pub fn default_action(signal: Signal) -> Result<(), Errno> {
    // SAFETY: no Rust code runs in a default action.
    unsafe { nix::sys::signal::signal(signal, SigHandler::SigDfl) }
        .map(drop)
        .map_err(from_nix)
}

/// Closes every descriptor above stderr but those in `keep`.
///
/// For a forked child that stays: descriptors that it merely inherited keep pipes and files open
/// which others wait for. Nothing that owned one of them may be used (or dropped) afterwards.
pub fn close_others(keep: &[BorrowedFd<'_>]) {
    let mut keep: Vec<u32> = keep
        .iter()
        .filter_map(|fd| u32::try_from(fd.as_raw_fd()).ok())
        .collect();
    keep.sort_unstable();
    let mut first = 3;
    for fd in keep {
        if fd > first {
            close_range(first, fd - 1);
        }
        first = first.max(fd + 1);
    }
    close_range(first, u32::MAX);
}

/// Closes these descriptors in a forked child, where they are copies of the parent's. What owns
/// them there must not be used or dropped in the child.
pub fn close_these(fds: &[BorrowedFd<'_>]) {
    for fd in fds {
        // SAFETY: that no owner uses them in this process is the caller's promise.
        unsafe { libc::close(fd.as_raw_fd()) };
    }
}

fn close_range(first: u32, last: u32) {
    // SAFETY: closing is harmless to memory; that no owner uses them is the caller's promise.
    let closed = unsafe { libc::syscall(libc::SYS_close_range, first, last, 0) };
    if closed == 0 {
        return;
    }
    // Before Linux 5.9: one by one, up to the highest that may exist.
    let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile).current;
    let end = limit.map_or(last, |limit| {
        u32::try_from(limit).unwrap_or(u32::MAX).min(last)
    });
    for fd in first..=end {
        // SAFETY: as above.
        unsafe { libc::close(fd.cast_signed()) };
    }
}
