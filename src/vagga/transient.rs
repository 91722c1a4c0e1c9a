//! The writable copies that runs have: `.vagga/.transient/NAME.VERSION.PID`.
//!
//! Ours hold the changes of a run only, in the layout of `container::scratch`, and a lock that
//! the run holds. Vagga's own are whole copies of a root. Whether somebody still uses one is told
//! by the lock where there is one; else by the number at the end of the name: names of containers
//! have dots, too, so only what follows the last dot is a process's number. Where a kept copy has
//! the name that a new run would take, its number having come again, another hash is put in
//! VERSION's place.

use std::ffi::OsStr;
use std::fs;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use rustix::fs::{FlockOperation, Mode, OFlags, flock};

use super::project::Project;
use crate::error::Context;
use crate::sys::{Errno, tree};
use crate::{Error, Result};

/// Whether something is really removed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Removal {
    /// It is.
    Real,
    /// It is only said what would be.
    DryRun,
}

/// Removes the copies whose process is gone (kept ones, too), and none of a living one. Gives
/// back what was removed, or would be.
pub fn clean_transient(project: &Project, removal: Removal) -> Result<Vec<PathBuf>> {
    let step = "cleaning transient copies";
    let dir = project.transient();
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let top = match rustix::fs::open(&dir, flags, Mode::empty()) {
        Ok(top) => top,
        Err(Errno::NOENT) => return Ok(Vec::new()),
        Err(errno) => return Err(Error::system(step).at(&dir).errno(errno)),
    };
    let names = tree::list(top.as_fd(), OsStr::new(".")).context(step, &dir)?;
    let mut names = names.unwrap_or_default();
    names.sort();
    let mut removed = Vec::new();
    for name in names {
        let path = dir.join(&name);
        let is_dir = fs::symlink_metadata(&path).is_ok_and(|meta| meta.is_dir());
        if !is_dir {
            continue;
        }
        let Some(_lock) = abandoned(&path, &name) else {
            continue;
        };
        if removal == Removal::Real {
            tree::remove(top.as_fd(), &name).context(step, &path)?;
        }
        removed.push(path);
    }
    Ok(removed)
}

/// Removes the empty directories that runs have left which were killed before they had begun.
pub(super) fn sweep(project: &Project) {
    for entry in fs::read_dir(project.transient())
        .into_iter()
        .flatten()
        .flatten()
    {
        let path = entry.path();
        if abandoned(&path, &entry.file_name()).is_some() {
            // Only an empty one goes.
            let _ = fs::remove_dir(&path);
        }
    }
}

/// Proof that nobody uses a copy.
enum Abandoned {
    /// Nobody can begin to use it as long as this is there.
    Locked { _lock: OwnedFd },
    /// One of vagga's own; its process is gone.
    ProcessGone,
}

/// `None` where somebody uses it, or may.
fn abandoned(path: &Path, name: &OsStr) -> Option<Abandoned> {
    let flags = OFlags::RDWR | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    match rustix::fs::open(path.join("lock"), flags, Mode::empty()) {
        Ok(lock) => flock(&lock, FlockOperation::NonBlockingLockExclusive)
            .is_ok()
            .then_some(Abandoned::Locked { _lock: lock }),
        Err(Errno::NOENT) => {
            let made = fs::symlink_metadata(path).and_then(|meta| meta.modified());
            let age = made.ok()?.elapsed().unwrap_or_default();
            let gone = is_process_gone(process_of(name)?, SystemTime::now() - age);
            // One that was made a moment ago may not have its lock yet.
            (gone && age > Duration::from_secs(2)).then_some(Abandoned::ProcessGone)
        }
        Err(_) => None,
    }
}

/// The number behind the last dot.
fn process_of(name: &OsStr) -> Option<u32> {
    let digits = name.as_bytes().rsplit(|byte| *byte == b'.').next()?;
    let number = std::str::from_utf8(digits).ok()?;
    if number.len() == name.len() || !number.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    number.parse().ok().filter(|pid| *pid > 0)
}

/// Whether no process has this number, or one that began after `made`, so that the number has
/// been given anew.
fn is_process_gone(pid: u32, made: SystemTime) -> bool {
    match fs::metadata(format!("/proc/{pid}")) {
        Err(error) => error.kind() == std::io::ErrorKind::NotFound,
        Ok(_) => began(pid).is_some_and(|began| began > made + Duration::from_secs(2)),
    }
}

/// When a process began, as `/proc/PID/stat` says in clock ticks since the machine's start.
fn began(pid: u32) -> Option<SystemTime> {
    let stat = fs::read(format!("/proc/{pid}/stat")).ok()?;
    // The name in parentheses may hold anything; the 22nd field is the 20th behind it.
    let end = stat.iter().rposition(|byte| *byte == b')')?;
    let rest = std::str::from_utf8(&stat[end + 1..]).ok()?;
    let ticks: u64 = rest.split_whitespace().nth(19)?.parse().ok()?;
    let all = fs::read_to_string("/proc/stat").ok()?;
    let start = all.lines().find_map(|line| line.strip_prefix("btime "))?;
    let start: u64 = start.trim().parse().ok()?;
    let per_second = rustix::param::clock_ticks_per_second();
    Some(SystemTime::UNIX_EPOCH + Duration::from_secs(start + ticks / per_second.max(1)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_process_is_behind_the_last_dot() {
        for (name, pid) in [
            ("app.1234abcd.4711", Some(4711)),
            ("my.app.9.1234abcd.1", Some(1)),
            ("app.1234abcd.x1", None),
            ("12", None),
            ("app.", None),
            ("app.0", None),
            ("app.99999999999", None),
        ] {
            assert_eq!(process_of(OsStr::new(name)), pid, "{name}");
        }
    }

    #[test]
    fn this_process_lives() {
        let pid = std::process::id();
        assert!(!is_process_gone(pid, SystemTime::now()));
        // The number was another's when the copy was made.
        let long_ago = SystemTime::UNIX_EPOCH + Duration::from_secs(1);
        assert!(is_process_gone(pid, long_ago));
        assert!(is_process_gone(u32::MAX, long_ago));
    }
}
