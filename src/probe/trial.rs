//! The trial of the kernel's overlay, on the real location.

use std::fs;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::fs::{FlockOperation, flock};

use super::diagnose::Findings;
use super::machine::FileSystem;
use super::notes::{self, Note, Pen};
use super::space::{self, Who};
use super::synthetic::Scratch;
use super::verdict::Verdict;
use super::{real, synthetic};
use crate::error::Context;
use crate::options::Options;
use crate::sys::Errno;
use crate::sys::child::{End, in_child};
use crate::sys::privilege::Privilege;
use crate::{Error, Result};

const STEP: &str = "trying the kernel's overlay";

/// How long a trial may take: it touches a few files, but a network file system may hang.
const LIMIT: Duration = Duration::from_secs(20);

/// Tries whether the kernel's overlay carries `wanted` here: on a fresh directory in its work
/// directory, in namespaces of the kind that it would be mounted in, and then over its real lower
/// layers, which are only read. Nothing of it is left.
///
/// An error says that the trial itself couldn't be made, and tells nothing about the overlay.
pub fn trial(wanted: &Options) -> Result<Verdict> {
    match &wanted.work {
        Some(work) => trial_in(work, wanted),
        None => trial_in(&std::env::temp_dir(), wanted),
    }
}

/// As [`trial`], on a fresh directory in `near`. Without lower layers only our own are tried.
pub(crate) fn trial_in(near: &Path, wanted: &Options) -> Result<Verdict> {
    let privilege = Privilege::current();
    let mut wanted = wanted.clone();
    wanted.userxattr |= privilege.needs_userxattr();
    if !wanted.lower.is_empty() {
        wanted.check()?;
    }
    let room = Room::make(near)?;
    let who = Who::current();
    let legacy = in_child(LIMIT, |out| {
        work(&wanted, &room.scratch, who, &Pen::new(out))
    })
    .context(STEP, near)?;
    let notes = notes::read(&legacy.output);
    let finished = notes.iter().any(|note| matches!(note, Note::End));
    if !finished {
        let why = match legacy.end {
            End::TooLong => "it took too long; a file system below may hang",
            _ => "it died before its end",
        };
        return Err(Error::system(STEP).at(near).because(why));
    }
    let findings = Findings {
        notes: &notes,
        wanted: &wanted,
        privilege,
        upper: FileSystem::of(near),
    };
    let cause = findings.cause();
    let steps = notes
        .into_iter()
        .filter_map(|note| match note {
            Note::Step(_, step) => Some(step),
            _ => None,
        })
        .collect();
    Ok(Verdict {
        supported: cause.is_none(),
        cause,
        steps,
        userxattr: wanted.userxattr,
    })
}

/// The child's part.
fn work(wanted: &Options, scratch: &Scratch, who: Who, pen: &Pen) {
    if pen.step("make a namespace", || space::enter(who)) && synthetic::lay_out(scratch, pen) {
        let ours = synthetic::options(wanted, scratch);
        synthetic::examine(scratch, &ours, pen);
        // A mount without an upper layer asks nothing of our own layers.
        let mounts = wanted.upper.is_none() || synthetic::run(scratch, &ours, pen);
        if mounts && !wanted.lower.is_empty() {
            real::run(wanted, scratch, pen);
        }
    }
    pen.note(&Note::End);
}

/// The private directory of a trial; dropped, it is removed. A lock on it says that its trial is
/// still alive.
struct Room {
    scratch: Scratch,
    _lock: fs::File,
}

const NAME: &str = ".overfall-trial.";
/// A trial is ended long before.
const FORGOTTEN_AFTER: Duration = Duration::from_secs(60);

impl Room {
    fn make(near: &Path) -> Result<Self> {
        let why = |error: std::io::Error| Errno::from_io_error(&error).unwrap_or(Errno::IO);
        let near = fs::canonicalize(near).map_err(why).context(STEP, near)?;
        sweep(&near);
        let number = crate::sys::random::number().context("getting a random number", &near)?;
        let top = near.join(format!("{NAME}{number:016x}"));
        fs::DirBuilder::new()
            .mode(0o700)
            .create(&top)
            .map_err(why)
            .context(STEP, &top)?;
        let room = fs::File::open(&top).and_then(|lock| {
            flock(&lock, FlockOperation::LockExclusive)?;
            Ok(Self {
                scratch: Scratch { top: top.clone() },
                _lock: lock,
            })
        });
        room.map_err(|error| {
            remove(&top);
            Error::system(STEP).at(&top).errno(why(error))
        })
    }
}

impl Drop for Room {
    fn drop(&mut self) {
        remove(&self.scratch.top);
    }
}

/// Removes what trials that were killed have left.
fn sweep(near: &Path) {
    let Ok(entries) = fs::read_dir(near) else {
        return;
    };
    for entry in entries.flatten() {
        if !entry
            .file_name()
            .as_encoded_bytes()
            .starts_with(NAME.as_bytes())
        {
            continue;
        }
        let path: PathBuf = entry.path();
        // One that was made just now may not have its lock yet.
        let is_old = entry
            .metadata()
            .and_then(|meta| meta.modified())
            .is_ok_and(|made| made.elapsed().is_ok_and(|age| age > FORGOTTEN_AFTER));
        if is_old
            && let Ok(dir) = fs::File::open(&path)
            && flock(&dir, FlockOperation::NonBlockingLockExclusive).is_ok()
        {
            remove(&path);
        }
    }
}

/// Removes a directory that only we know. What can't be removed now, the next trial tries again.
fn remove(top: &Path) {
    // The kernel makes some of its directories without any permission.
    drop(fs::set_permissions(top, fs::Permissions::from_mode(0o700)));
    for entry in fs::read_dir(top).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            remove(&entry.path());
        } else {
            drop(fs::remove_file(entry.path()));
        }
    }
    drop(fs::remove_dir(top));
}
