//! Who serves a mount: how anybody who may enter the tree finds the server's process.
//!
//! Whoever may look into the process finds it by its status, and needn't ask it. To others the server answers it itself, as the extended attribute [`server::IDENTITY`] of the root, which
//! no listing shows. So there is no file to be left over, to be forged or to be looked for in the
//! wrong namespace. A process number means something in its own pid namespace only; another one is
//! found by its namespace and its number there.

use std::io::{stderr, stdin, stdout};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags};
use rustix::fs::{CWD, Mode, OFlags, openat};
use rustix::process::{Gid, Pid, PidfdFlags, Uid, pidfd_open, test_kill_process};
use rustix::thread::{set_thread_res_gid, set_thread_res_uid};

use super::elsewhere;
use super::handover::Device;
use crate::Result;
use crate::server;
use crate::sys::Errno;
use crate::sys::child::{End, in_child};
use crate::sys::process::{close_others, close_these};

/// A process, told apart from every other one, before or after it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Identity {
    /// Its number in its pid namespace.
    pid: u32,
    /// That namespace's inode number.
    namespace: u64,
    /// When it started, in clock ticks after the boot.
    started: u64,
}

impl Identity {
    /// The calling process. Zeros stand for what can't be found out without /proc.
    pub(super) fn of_self() -> Self {
        Self {
            pid: std::process::id(),
            namespace: namespace(Path::new("/proc/self")).unwrap_or(0),
            started: started(Path::new("/proc/self")).unwrap_or(0),
        }
    }

    /// The server of the mount at `target`, by its own word; `None` where it isn't a mount of ours.
    /// [`Errno::TIMEDOUT`] where nobody answers. `asker` is whom to ask as, a user and a group: a
    /// plain user's mount lets nobody else in.
    pub(crate) fn asked_of(
        target: &Path,
        asker: Option<(Uid, Gid)>,
    ) -> Result<Option<Self>, Errno> {
        let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let root = openat(CWD, target, flags, Mode::empty())?;
        // Who waits for an answer may not even be killed.
        let legacy = in_child(LIMIT, |out| {
            let answer = ask(&root, asker, &out);
            let errno = answer
                .as_ref()
                .map_or_else(|errno| errno.raw_os_error(), |_| 0);
            let text = [&errno.to_ne_bytes()[..], &answer.unwrap_or_default()].concat();
            let _written = rustix::io::write(out, &text);
        })?;
        if legacy.end == End::TooLong {
            return Err(Errno::TIMEDOUT);
        }
        let (errno, text) = legacy.output.split_first_chunk().ok_or(Errno::IO)?;
        match i32::from_ne_bytes(*errno) {
            0 => Ok(Self::decode(text)),
            errno => Err(Errno::from_raw_os_error(errno)),
        }
    }

    pub(super) fn encode(self) -> Vec<u8> {
        format!("{} {} {}", self.pid, self.namespace, self.started).into_bytes()
    }

    fn decode(text: &[u8]) -> Option<Self> {
        let mut numbers = std::str::from_utf8(text).ok()?.split(' ');
        Some(Self {
            pid: numbers.next()?.parse().ok()?,
            namespace: numbers.next()?.parse().ok()?,
            started: numbers.next()?.parse().ok()?,
        })
    }

    /// The process, while it lives and is visible from here.
    pub(crate) fn process(self) -> Option<Process> {
        Process::open(self.pid_here()?).filter(|_| self.pid_here().is_some())
    }

    /// Its number in the caller's pid namespace.
    fn pid_here(self) -> Option<Pid> {
        let here = namespace(Path::new("/proc/self"))?;
        let pid = if here == self.namespace {
            self.pid
        } else {
            numbers().find(|pid| self.is_inner(&process(*pid)))?
        };
        let matches = started(&process(pid)).is_some_and(|started| started == self.started);
        matches.then(|| Pid::from_raw(pid.cast_signed())).flatten()
    }

    /// Whether the process at this place in /proc has our number in our namespace.
    fn is_inner(self, place: &Path) -> bool {
        let innermost = || {
            let status = std::fs::read_to_string(place.join("status")).ok()?;
            let numbers = status
                .lines()
                .find_map(|line| line.strip_prefix("NSpid:"))?;
            numbers.split_ascii_whitespace().last()?.parse::<u32>().ok()
        };
        innermost() == Some(self.pid) && namespace(place) == Some(self.namespace)
    }
}

/// How long a server may take to say who it is.
const LIMIT: Duration = Duration::from_secs(2);

/// In a child: asks the root of a mount.
fn ask(root: &OwnedFd, asker: Option<(Uid, Gid)>, out: &OwnedFd) -> Result<Vec<u8>, Errno> {
    // A child that hangs must hold nothing that others wait for.
    close_others(&[root.as_fd(), out.as_fd()]);
    close_these(&[stdin().as_fd(), stdout().as_fd(), stderr().as_fd()]);
    if let Some((user, group)) = asker {
        set_thread_res_gid(group, group, group)?;
        set_thread_res_uid(user, user, user)?;
    }
    let path = format!("/proc/self/fd/{}", root.as_raw_fd());
    let mut value = [0u8; 64];
    let length = rustix::fs::getxattr(path, server::IDENTITY, &mut value[..])?;
    Ok(value.get(..length).unwrap_or_default().to_vec())
}

/// A process to wait for.
#[derive(Debug)]
pub(crate) struct Process {
    pid: Pid,
    /// Absent before Linux 5.3.
    handle: Option<OwnedFd>,
}

impl Process {
    /// `None` when it has gone already.
    pub(super) fn open(pid: Pid) -> Option<Self> {
        match pidfd_open(pid, PidfdFlags::empty()) {
            Ok(handle) => Some(Self {
                pid,
                handle: Some(handle),
            }),
            Err(Errno::SRCH) => None,
            Err(_) => Some(Self { pid, handle: None }),
        }
    }

    /// Waits until it has gone: the server of `target`, which was known as `device`.
    pub(crate) fn wait(&self, target: &Path, device: Device, patience: Duration) -> Result<()> {
        let pid = self.pid.as_raw_nonzero().get().unsigned_abs();
        elsewhere::wait(pid, device, target, patience, |time| match &self.handle {
            Some(handle) => super::happened(&mut [PollFd::new(handle, PollFlags::IN)], Some(time)),
            None => ask_until_gone(self.pid, time),
        })
    }
}

fn ask_until_gone(pid: Pid, patience: Duration) -> bool {
    let start = Instant::now();
    while test_kill_process(pid) != Err(Errno::SRCH) {
        if start.elapsed() > patience {
            return false;
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    true
}

fn process(pid: u32) -> PathBuf {
    Path::new("/proc").join(pid.to_string())
}

/// The processes that /proc shows.
pub(super) fn numbers() -> impl Iterator<Item = u32> {
    std::fs::read_dir("/proc")
        .into_iter()
        .flatten()
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
}

/// The pid namespace of the process at `place` in /proc.
fn namespace(place: &Path) -> Option<u64> {
    let stat = rustix::fs::stat(place.join("ns/pid")).ok()?;
    Some(stat.st_ino)
}

/// Whether a signal or a debugger has stopped the process: the third field of `/proc/PID/stat`.
pub(super) fn is_stopped(pid: u32) -> bool {
    let stat = std::fs::read(process(pid).join("stat")).unwrap_or_default();
    let end = stat.iter().rposition(|&byte| byte == b')');
    let state = end.and_then(|end| stat.get(end + 2));
    matches!(state, Some(b'T' | b't'))
}

/// The 22nd field of `/proc/PID/stat`; the second is in parentheses and may have anything in it.
pub(super) fn started(place: &Path) -> Option<u64> {
    let stat = std::fs::read(place.join("stat")).ok()?;
    let end = stat.iter().rposition(|&byte| byte == b')')?;
    let rest = std::str::from_utf8(stat.get(end + 1..)?).ok()?;
    rest.split_ascii_whitespace().nth(19)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_process_finds_itself() {
        let identity = Identity::of_self();
        assert_eq!(Identity::decode(&identity.encode()), Some(identity));
        assert_eq!(
            identity.pid_here().map(Pid::as_raw_nonzero),
            Pid::from_raw(std::process::id().cast_signed()).map(Pid::as_raw_nonzero)
        );
    }

    #[test]
    fn another_process_with_the_number_is_not_taken_for_it() {
        let other = Identity {
            started: 1,
            ..Identity::of_self()
        };
        assert!(other.pid_here().is_none());
    }

    #[test]
    fn waiting_ends_with_the_process() {
        let mut child = std::process::Command::new("true").spawn().unwrap();
        let process = Process::open(Pid::from_child(&child)).unwrap();
        process
            .wait(Path::new("/"), None, Duration::from_secs(10))
            .unwrap();
        assert!(child.wait().unwrap().success());
    }
}
