//! A tree that is being written, beside the place that it gets when it is whole.

use std::ffi::{OsStr, OsString};
use std::fs;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, FlockOperation, Mode, OFlags, flock, openat};

use super::room;
use crate::error::Context;
use crate::sys::{Errno, from_io};
use crate::{Error, Result};

/// A hidden directory, locked as long as its writer lives, and removed when this value is dropped.
#[derive(Debug)]
pub(super) struct Draft {
    path: PathBuf,
    _lock: OwnedFd,
}

const STEP: &str = "writing the finished tree";

impl Draft {
    /// A fresh one beside `dest`. What killed writers of `dest` have left goes.
    pub(super) fn beside(dest: &Path) -> Result<Self> {
        let Some(name) = dest.file_name() else {
            return Err(Error::usage(STEP).at(dest).because("it has no name"));
        };
        let mut prefix = OsString::from(".");
        prefix.push(name);
        prefix.push(".");
        sweep(dest, &prefix);
        prefix.push(room::random()?);
        let path = dest.with_file_name(prefix);
        fs::create_dir(&path)
            .map_err(|error| from_io(&error))
            .context(STEP, dest)?;
        match lock(&path) {
            Ok(lock) => Ok(Self { path, _lock: lock }),
            Err(errno) => {
                let _ = fs::remove_dir(&path);
                Err(Error::system(STEP).at(&path).errno(errno))
            }
        }
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for Draft {
    fn drop(&mut self) {
        if let Err(errno) = room::remove(&self.path) {
            log::warn!("{}: {errno}", self.path.display());
        }
    }
}

fn lock(path: &Path) -> Result<OwnedFd, Errno> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let lock = openat(CWD, path, flags, Mode::empty())?;
    flock(&lock, FlockOperation::NonBlockingLockExclusive)?;
    Ok(lock)
}

fn sweep(dest: &Path, prefix: &OsStr) {
    let parent = match dest.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    for entry in fs::read_dir(parent).into_iter().flatten().flatten() {
        let name = entry.file_name();
        let number = name.as_bytes().strip_prefix(prefix.as_bytes());
        let ours =
            number.is_some_and(|rest| rest.len() == 16 && rest.iter().all(u8::is_ascii_hexdigit));
        if ours && let Ok(_lock) = lock(&entry.path()) {
            log::info!(
                "{}: left by a build that was killed",
                entry.path().display()
            );
            if let Err(errno) = room::remove(&entry.path()) {
                log::warn!("{}: {errno}", entry.path().display());
            }
        }
    }
}
