//! Work in a forked process: for what would change this process for good, such as namespaces.

use std::io::Read;
use std::os::fd::{AsFd, OwnedFd};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::{Duration, Instant};

use nix::unistd::ForkResult;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::pipe::{PipeFlags, pipe_with};
use rustix::process::{Pid, Signal, WaitOptions, kill_process, waitpid};

use super::Errno;

/// What a child left behind.
#[derive(Debug)]
pub(crate) struct Legacy {
    /// What it wrote, as far as it came.
    pub(crate) output: Vec<u8>,
    /// How it ended.
    pub(crate) end: End,
}

/// How a child ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum End {
    /// Its work returned.
    Done,
    /// It panicked, or something killed it.
    Died,
    /// It took longer than it was given, and was killed.
    TooLong,
}

/// Runs `work` in a forked child without exec, and reads what it writes to its descriptor.
///
/// The child may have one thread where this process has many: `work` takes no lock that another
/// thread may hold, so it doesn't log or print.
pub(crate) fn in_child(limit: Duration, work: impl FnOnce(OwnedFd)) -> Result<Legacy, Errno> {
    let (reader, writer) = pipe_with(PipeFlags::CLOEXEC)?;
    // SAFETY: the child runs `work` and `_exit`s. The C libraries' fork leaves the allocator
    // usable in the child, and `work` is bound by the rule above to take no other lock.
    let forked = unsafe { nix::unistd::fork() };
    match forked {
        Err(errno) => Err(Errno::from_raw_os_error(errno as i32)),
        Ok(ForkResult::Child) => {
            drop(reader);
            // The default hook would print, and take the lock of stderr.
            std::panic::set_hook(Box::new(|_| {}));
            let code = match catch_unwind(AssertUnwindSafe(|| work(writer))) {
                Ok(()) => 0,
                Err(_) => 1,
            };
            // SAFETY: ends this process without running the parent's exit handlers in it.
            unsafe { libc::_exit(code) }
        }
        Ok(ForkResult::Parent { child }) => {
            drop(writer);
            let mut legacy = read_until_end(reader, limit);
            if let Some(child) = Pid::from_raw(child.as_raw()) {
                let good = reap(child, legacy.end == End::TooLong);
                if !good && legacy.end == End::Done {
                    legacy.end = End::Died;
                }
            }
            Ok(legacy)
        }
    }
}

fn read_until_end(reader: OwnedFd, limit: Duration) -> Legacy {
    let deadline = Instant::now() + limit;
    let mut reader = std::fs::File::from(reader);
    let mut output = Vec::new();
    let mut buffer = [0; 4096];
    let end = loop {
        let left = deadline.saturating_duration_since(Instant::now());
        let timeout = Timespec {
            tv_sec: i64::try_from(left.as_secs()).unwrap_or(i64::MAX),
            tv_nsec: left.subsec_nanos().into(),
        };
        let mut polled = [PollFd::from_borrowed_fd(reader.as_fd(), PollFlags::IN)];
        match poll(&mut polled, Some(&timeout)) {
            Ok(0) => break End::TooLong,
            Ok(_) => {}
            Err(Errno::INTR) => continue,
            Err(_) => break End::Died,
        }
        match reader.read(&mut buffer) {
            Ok(0) => break End::Done,
            Ok(length) => output.extend_from_slice(&buffer[..length]),
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
            Err(_) => break End::Died,
        }
    };
    Legacy { output, end }
}

/// Waits for the child; says whether it ended well. One that hangs in the kernel can't be waited
/// for: it is killed and left.
fn reap(child: Pid, hangs: bool) -> bool {
    if hangs {
        // It may just have ended by itself.
        let _ended = kill_process(child, Signal::KILL);
        for _ in 0..20 {
            if !matches!(waitpid(Some(child), WaitOptions::NOHANG), Ok(None)) {
                break;
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        return false;
    }
    loop {
        match waitpid(Some(child), WaitOptions::empty()) {
            Err(Errno::INTR) => {}
            // Where SIGCHLD is ignored nobody can tell; the output says how far it came.
            Err(_) => return true,
            Ok(None) => return false,
            Ok(Some((_, status))) => return status.exit_status() == Some(0),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMIT: Duration = Duration::from_secs(5);

    #[test]
    fn output_and_end() {
        let legacy = in_child(LIMIT, |out| {
            let _written = rustix::io::write(&out, b"hello");
        })
        .expect("fork");
        assert_eq!((&legacy.output[..], legacy.end), (&b"hello"[..], End::Done));
    }

    #[test]
    fn a_panic_is_not_ours() {
        let legacy = in_child(LIMIT, |_| panic!("child")).expect("fork");
        assert_eq!(legacy.end, End::Died);
    }

    #[test]
    fn a_child_that_hangs_is_killed() {
        let legacy = in_child(Duration::from_millis(50), |_| {
            std::thread::sleep(Duration::from_secs(60));
        })
        .expect("fork");
        assert_eq!(legacy.end, End::TooLong);
    }
}
