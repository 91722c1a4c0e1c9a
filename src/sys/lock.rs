//! flock(2) with a little patience.

use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use rustix::fs::{FlockOperation, flock};

use super::Errno;

/// A server that was killed holds its locks until the kernel is done with it: a write to a slow
/// disk has to end first.
const PATIENCE: Duration = Duration::from_millis(1500);
const PAUSE: Duration = Duration::from_millis(10);

/// Locks `fd` for its owner alone; `EWOULDBLOCK` when another one has it and keeps it.
pub fn exclusively(fd: impl AsFd) -> Result<(), Errno> {
    let start = Instant::now();
    loop {
        match flock(&fd, FlockOperation::NonBlockingLockExclusive) {
            Err(Errno::WOULDBLOCK) if start.elapsed() < PATIENCE => std::thread::sleep(PAUSE),
            result => return result,
        }
    }
}
