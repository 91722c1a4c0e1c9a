//! The private directory of a trial. It goes away with the trial, also when the process that asked for it is killed.
//!
//! It may lie where others write, in `/tmp` for one: nothing there is believed by its name. Everything is done
//! through descriptors of directories that are known to be ours.

use std::ffi::{OsStr, OsString};
use std::fs;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use rustix::fs::{
    AtFlags, CWD, FlockOperation, Mode, OFlags, Stat, flock, fstat, mkdirat, openat, unlinkat,
};

use crate::error::Context;
use crate::sys::{Errno, random, tree};
use crate::{Error, Result};

const STEP: &str = "making the directory of a trial";

const NAME: &str = ".overfall-trial.";

/// A trial is ended long before.
const FORGOTTEN_AFTER: Duration = Duration::from_secs(60);

const DIR_FLAGS: OFlags = OFlags::RDONLY
    .union(OFlags::DIRECTORY)
    .union(OFlags::NOFOLLOW)
    .union(OFlags::CLOEXEC);

/// Where the directory of a trial is to be.
#[derive(Debug)]
pub(super) struct Place {
    near: OwnedFd,
    name: OsString,
    path: PathBuf,
}

impl Place {
    /// In the directory `near`.
    pub(super) fn new(near: &Path) -> Result<Self> {
        let why = |error: std::io::Error| Errno::from_io_error(&error).unwrap_or(Errno::IO);
        let near = fs::canonicalize(near).map_err(why).context(STEP, near)?;
        let number = random::number().context("getting a random number", &near)?;
        let name = OsString::from(format!("{NAME}{number:016x}"));
        let path = near.join(&name);
        let near = openat(CWD, &near, DIR_FLAGS, Mode::empty()).context(STEP, &near)?;
        sweep(&near);
        Ok(Self { near, name, path })
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// The error of a trial that couldn't make its room.
    pub(super) fn error(&self, errno: Errno) -> Error {
        Error::system(STEP).at(&self.path).errno(errno)
    }

    /// Makes the directory, which nobody else may enter. `EXIST` where it was taken away at once: who may
    /// rename things here can do that.
    pub(super) fn make(&self) -> Result<Room<'_>, Errno> {
        mkdirat(&self.near, &self.name, Mode::RWXU)?;
        let dir = openat(&self.near, &self.name, DIR_FLAGS, Mode::empty())?;
        let mut is_empty = true;
        tree::for_each(dir.as_fd(), |_, _, _| is_empty = false)?;
        if !is_empty || !is_ours_alone(&fstat(&dir)?) {
            return Err(Errno::EXIST);
        }
        flock(&dir, FlockOperation::LockExclusive)?;
        Ok(Room { place: self, dir })
    }
}

/// The directory of a trial; dropped, it is removed.
#[derive(Debug)]
pub(super) struct Room<'a> {
    place: &'a Place,
    /// Locked: the trial is still alive.
    dir: OwnedFd,
}

impl Drop for Room<'_> {
    fn drop(&mut self) {
        remove(&self.place.near, &self.place.name, &self.dir);
    }
}

/// Whether nobody else may make or rename anything in this directory. (An ACL that lets somebody shows as rights of
/// the group.)
fn is_ours_alone(stat: &Stat) -> bool {
    let others_write = Mode::WGRP | Mode::WOTH;
    stat.st_uid == rustix::process::geteuid().as_raw()
        && !Mode::from_raw_mode(stat.st_mode).intersects(others_write)
}

/// Removes what trials have left that were killed with all their processes. Only where nobody else can plant
/// something by that name.
fn sweep(near: &OwnedFd) {
    if !fstat(near).is_ok_and(|stat| is_ours_alone(&stat)) {
        return;
    }
    for name in tree::list(near.as_fd(), OsStr::new("."))
        .ok()
        .flatten()
        .unwrap_or_default()
    {
        if name.as_encoded_bytes().starts_with(NAME.as_bytes())
            && let Ok(dir) = openat(near, &name, DIR_FLAGS, Mode::empty())
            && fstat(&dir).is_ok_and(|stat| is_ours_alone(&stat) && is_old(&stat))
            && flock(&dir, FlockOperation::NonBlockingLockExclusive).is_ok()
        {
            remove(near, &name, &dir);
        }
    }
}

/// One that was made just now may not have its lock yet.
fn is_old(stat: &Stat) -> bool {
    let seconds = u64::try_from(stat.st_mtime).unwrap_or(0);
    let made = SystemTime::UNIX_EPOCH + Duration::from_secs(seconds);
    made.elapsed().is_ok_and(|age| age > FORGOTTEN_AFTER)
}

/// Whatever has the name by now: only what is in `dir` goes, and then an empty directory.
fn remove(near: &OwnedFd, name: &OsStr, dir: &OwnedFd) {
    let removed =
        tree::remove_contents(dir).and_then(|()| unlinkat(near, name, AtFlags::REMOVEDIR));
    if let Err(errno) = removed {
        log::debug!("{}: left behind: {errno}", name.display());
    }
}
