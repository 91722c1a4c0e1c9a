//! `!Copy`, by a process that has the container as its root.

use std::fs::{self, File, Metadata, Permissions};
use std::io;
use std::os::unix::fs::{MetadataExt, PermissionsExt, lchown, symlink};
use std::path::Path;

use rustix::fs::{AtFlags, CWD, Timespec, Timestamps, utimensat};

use super::action::{Copy, Times};

/// The time of what is copied without its own.
const FIXED: i64 = 1;

/// Copies a file, or what is chosen of a directory. What is there already is written over.
pub(super) fn copy(step: &Copy) -> io::Result<()> {
    let top = fs::symlink_metadata(&step.source).map_err(|error| told(&step.source, &error))?;
    if let Some(parent) = step.path.parent() {
        fs::create_dir_all(parent)?;
    }
    let mut directories = Vec::new();
    one(step, &step.source, &step.path, &top)?;
    if top.is_dir() {
        directories.push((step.path.clone(), top));
        let names = step
            .filter
            .walk(&step.source)
            .map_err(|error| io::Error::other(error.to_string()))?;
        for name in names {
            let (from, to) = (step.source.join(&name), step.path.join(&name));
            let meta = fs::symlink_metadata(&from).map_err(|error| told(&from, &error))?;
            one(step, &from, &to, &meta)?;
            if meta.is_dir() {
                directories.push((to, meta));
            }
        }
    }
    // Writing into a directory has changed its times.
    for (path, meta) in directories.iter().rev() {
        times(step, path, meta)?;
    }
    Ok(())
}

fn told(path: &Path, error: &io::Error) -> io::Error {
    io::Error::new(error.kind(), format!("{}: {error}", path.display()))
}

fn one(step: &Copy, from: &Path, to: &Path, meta: &Metadata) -> io::Result<()> {
    let there = fs::symlink_metadata(to).ok();
    if meta.is_dir() {
        if !there.is_some_and(|there| there.is_dir()) {
            fs::create_dir(to).map_err(|error| told(to, &error))?;
        }
    } else {
        if there.is_some() {
            fs::remove_file(to).map_err(|error| told(to, &error))?;
        }
        if meta.is_symlink() {
            symlink(fs::read_link(from)?, to).map_err(|error| told(to, &error))?;
        } else if meta.is_file() {
            let mut source = File::open(from).map_err(|error| told(from, &error))?;
            let mut file = File::create(to).map_err(|error| told(to, &error))?;
            io::copy(&mut source, &mut file).map_err(|error| told(to, &error))?;
        } else {
            // Sockets, pipes, devices: nothing to copy.
            return Ok(());
        }
    }
    // An owner who has no id in the container becomes root.
    let shown = |id| if id == OVERFLOW_ID { 0 } else { id };
    let uid = step.uid.unwrap_or(shown(meta.uid()));
    let gid = step.gid.unwrap_or(shown(meta.gid()));
    lchown(to, Some(uid), Some(gid)).map_err(|error| told(to, &error))?;
    if !meta.is_symlink() {
        fs::set_permissions(to, Permissions::from_mode(mode(step, meta)))
            .map_err(|error| told(to, &error))?;
    }
    times(step, to, meta)
}

/// What the kernel shows for an owner without an id in this user namespace.
const OVERFLOW_ID: u32 = 65534;

fn mode(step: &Copy, meta: &Metadata) -> u32 {
    match step.umask {
        None => meta.mode() & 0o7777,
        Some(umask) if meta.is_dir() || meta.mode() & 0o100 != 0 => 0o777 & !umask,
        Some(umask) => 0o666 & !umask,
    }
}

fn times(step: &Copy, path: &Path, meta: &Metadata) -> io::Result<()> {
    let stamp = |seconds, nanoseconds: i64| Timespec {
        tv_sec: seconds,
        tv_nsec: nanoseconds,
    };
    let times = match step.times {
        Times::Fixed => Timestamps {
            last_access: stamp(FIXED, 0),
            last_modification: stamp(FIXED, 0),
        },
        Times::Preserved => Timestamps {
            last_access: stamp(meta.atime(), meta.atime_nsec()),
            last_modification: stamp(meta.mtime(), meta.mtime_nsec()),
        },
    };
    utimensat(CWD, path, &times, AtFlags::SYMLINK_NOFOLLOW)?;
    Ok(())
}
