//! The fallback form of a layer on the disk ([`crate::format::dotted`] has its names): its marks,
//! looking at it, and bringing it to the kernel's form.
//!
//! `MARK` in the layer's root decides that a layer has this form; it is made before anything else
//! is, and goes last. `work/incompat/overfall-dotted` in the work directory keeps the kernel's
//! overlay from mounting the upper as if it were its own.

mod fit;
mod guard;
mod upgrade;

use std::ffi::{OsStr, OsString};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::ffi::OsStringExt;

use rustix::fs::{
    AtFlags, FileType, Mode, OFlags, RenameFlags, fstat, openat, readlinkat, statat, symlinkat,
    unlinkat, utimensat,
};

use crate::format::XattrNamespace;
use crate::format::dotted::{self, MARK, Name, OPAQUE, UPGRADING, Whiteout};
use crate::sys::times::times_of;
use crate::sys::{Errno, from_io};

pub(crate) use fit::{Lack, lacks};
pub(crate) use guard::Guard;
pub use upgrade::{Upgraded, upgrade};

/// What a layer's root says of its form.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Marked {
    /// Nothing: it is in the kernel's.
    No,
    /// It is in the fallback form.
    Dotted,
    /// Somebody has begun to bring it to the kernel's form, and hasn't ended.
    Upgrading,
}

/// What a layer's root says of its form.
pub(crate) fn marked(root: BorrowedFd<'_>) -> Result<Marked, Errno> {
    if is_there(root, MARK)? {
        Ok(Marked::Dotted)
    } else if is_there(root, UPGRADING)? {
        Ok(Marked::Upgrading)
    } else {
        Ok(Marked::No)
    }
}

fn is_there(dir: BorrowedFd<'_>, name: impl rustix::path::Arg) -> Result<bool, Errno> {
    match statat(dir, name, AtFlags::SYMLINK_NOFOLLOW) {
        // A directory or a device of such a name is somebody's own.
        Ok(stat) => Ok(FileType::from_raw_mode(stat.st_mode) == FileType::RegularFile),
        Err(Errno::NOENT | Errno::NOTDIR) => Ok(false),
        Err(errno) => Err(errno),
    }
}

/// Marks an upper's root, whose times stay. The mark is whole or not there.
pub(crate) fn mark(
    root: BorrowedFd<'_>,
    work: BorrowedFd<'_>,
    namespace: XattrNamespace,
) -> Result<(), Errno> {
    const NAME: &str = "#mark";
    let flags = OFlags::CREATE | OFlags::TRUNC | OFlags::WRONLY | OFlags::CLOEXEC;
    let before = rustix::fs::fstat(root)?;
    let file = openat(work, NAME, flags, READABLE)?;
    rustix::io::write(&file, dotted::format_mark(namespace))?;
    rustix::fs::fsync(&file)?;
    rustix::fs::renameat_with(work, NAME, root, MARK, RenameFlags::empty())?;
    rustix::fs::futimens(root, &times_of(&before))?;
    rustix::fs::fsync(root)
}

/// Reads the mark `name` of a layer's root: where its attributes are. `None` where it says nothing.
fn read_mark(root: BorrowedFd<'_>, name: &str) -> Result<Option<XattrNamespace>, Errno> {
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let file = openat(root, name, flags, Mode::empty())?;
    let mut value = Vec::new();
    std::io::Read::read_to_end(&mut std::fs::File::from(file), &mut value)
        .map_err(|error| from_io(&error))?;
    Ok(dotted::parse_mark(&value))
}

/// Marks and whiteouts can be read by whoever copies a layer.
const READABLE: Mode = Mode::RUSR.union(Mode::RGRP).union(Mode::ROTH);

/// Whether a directory of a layer hides a name of the layers below.
pub(crate) fn hides(dir: BorrowedFd<'_>, name: &OsStr) -> Result<bool, Errno> {
    match dotted::whiteout_of(name) {
        None => Ok(false),
        Some(Whiteout::File(whiteout)) => is_there(dir, &*whiteout),
        Some(Whiteout::Link(whiteout)) => {
            Ok(target(dir, &whiteout)?.is_some_and(|hidden| hidden == name))
        }
    }
}

/// What the name of a listing hides of the layers below, if it hides something.
pub(crate) fn hidden_by(dir: BorrowedFd<'_>, name: &OsStr) -> Result<Option<OsString>, Errno> {
    match dotted::read(name) {
        Name::Plain | Name::Reserved => Ok(None),
        Name::Whiteout(hidden) => Ok(is_there(dir, name)?.then(|| hidden.to_os_string())),
        Name::LongWhiteout => {
            let hidden = target(dir, name)?;
            Ok(hidden.filter(|hidden| {
                dotted::whiteout_of(hidden).is_some_and(|whiteout| whiteout.name() == name)
            }))
        }
    }
}

/// Where a link leads; `None` when there is none.
fn target(dir: BorrowedFd<'_>, name: &OsStr) -> Result<Option<OsString>, Errno> {
    match readlinkat(dir, name, Vec::new()) {
        Ok(target) => Ok(Some(OsString::from_vec(target.into_bytes()))),
        Err(Errno::NOENT | Errno::INVAL) => Ok(None),
        Err(errno) => Err(errno),
    }
}

/// Whether a directory of a layer hides all that is below it.
pub(crate) fn is_opaque(dir: BorrowedFd<'_>) -> Result<bool, Errno> {
    is_there(dir, OPAQUE)
}

/// Whether a mark was there before.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Made {
    New,
    Already,
}

/// Hides a name of the layers below. `EPERM` for a name that can't be.
pub(crate) fn hide(dir: BorrowedFd<'_>, name: &OsStr) -> Result<Made, Errno> {
    match dotted::whiteout_of(name).ok_or(Errno::PERM)? {
        Whiteout::File(whiteout) => make(dir, &*whiteout),
        Whiteout::Link(whiteout) => match symlinkat(name, dir, &*whiteout) {
            Ok(()) => Ok(Made::New),
            Err(Errno::EXIST) => Ok(Made::Already),
            Err(errno) => Err(errno),
        },
    }
}

/// Hides a name no longer.
pub(crate) fn unhide(dir: BorrowedFd<'_>, name: &OsStr) -> Result<(), Errno> {
    let Some(whiteout) = dotted::whiteout_of(name) else {
        return Ok(());
    };
    match unlinkat(dir, whiteout.name(), AtFlags::empty()) {
        Err(Errno::NOENT) => Ok(()),
        result => result,
    }
}

/// Makes the directory `name` in `dir` hide all that is below it.
pub(crate) fn make_opaque(dir: impl AsFd, name: &OsStr) -> Result<(), Errno> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let inner = openat(&dir, name, flags, Mode::empty())?;
    let before = fstat(&inner)?;
    if make(inner.as_fd(), OPAQUE)? == Made::New {
        // An attribute, which this stands for, leaves the directory's times alone.
        let restored = utimensat(&dir, name, &times_of(&before), AtFlags::SYMLINK_NOFOLLOW);
        if let Err(errno) = restored {
            log::debug!(
                "{}: the time of an opaque directory: {errno}",
                name.display()
            );
        }
    }
    Ok(())
}

fn make(dir: BorrowedFd<'_>, name: impl rustix::path::Arg) -> Result<Made, Errno> {
    let flags = OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY | OFlags::CLOEXEC;
    match openat(dir, name, flags, READABLE) {
        Ok(_) => Ok(Made::New),
        Err(Errno::EXIST) => Ok(Made::Already),
        Err(errno) => Err(errno),
    }
}
