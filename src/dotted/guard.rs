//! The mark in the work directory: the kernel's overlay mounts no upper whose work directory has
//! something in `work/incompat` (before Linux 5.10: mounts it read-only, since it can't empty it).

use std::ffi::{OsStr, OsString};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{AtFlags, Mode, OFlags, mkdirat, openat, unlinkat};

use crate::format::dotted::FEATURE;
use crate::format::{INCOMPAT, WORK};
use crate::sys::{Errno, tree};

/// What `work/incompat` in a work directory holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Guard {
    /// Nothing.
    None,
    /// The mark of the fallback form.
    Dotted,
    /// Another feature, which forbids a mount.
    Other(OsString),
}

impl Guard {
    /// Looks at the work directory `base`.
    pub(crate) fn of(base: BorrowedFd<'_>) -> Result<Self, Errno> {
        let path = std::path::Path::new(WORK).join(INCOMPAT);
        let names = match tree::list(base, path.as_os_str()) {
            // A mount takes all permissions off `work`; listing that gives them back.
            Err(Errno::ACCESS) => {
                tree::list(base, OsStr::new(WORK))?;
                tree::list(base, path.as_os_str())?
            }
            names => names?,
        };
        let mut names = names.unwrap_or_default();
        let dotted = names.iter().any(|name| name == FEATURE);
        names.retain(|name| name != FEATURE);
        Ok(match (names.pop(), dotted) {
            (Some(other), _) => Guard::Other(other),
            (None, true) => Guard::Dotted,
            (None, false) => Guard::None,
        })
    }

    /// Puts the mark into `work`, which is the directory of that name in a work directory. It is on
    /// the disk when this returns.
    pub(crate) fn set(work: BorrowedFd<'_>) -> Result<(), Errno> {
        let incompat = make_dir(work, INCOMPAT)?;
        let feature = make_dir(incompat.as_fd(), FEATURE)?;
        // As deep as the kernel's own features: kernels that don't know them can't remove it.
        let flags = OFlags::CREATE | OFlags::WRONLY | OFlags::CLOEXEC;
        let file = openat(&feature, "dirty", flags, Mode::RUSR)?;
        for fd in [file.as_fd(), feature.as_fd(), incompat.as_fd(), work] {
            rustix::fs::fsync(fd)?;
        }
        Ok(())
    }

    /// Takes the mark out of the work directory `base`. One that isn't there is fine.
    pub(crate) fn clear(base: BorrowedFd<'_>) -> Result<(), Errno> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        // With its permissions, which a mount takes off.
        if tree::list(base, OsStr::new(WORK))?.is_none() {
            return Ok(());
        }
        let work = openat(base, WORK, flags, Mode::empty())?;
        let incompat = match openat(&work, INCOMPAT, flags, Mode::empty()) {
            Err(Errno::NOENT) => return Ok(()),
            result => result?,
        };
        tree::remove(incompat.as_fd(), OsStr::new(FEATURE))?;
        match unlinkat(&work, INCOMPAT, AtFlags::REMOVEDIR) {
            Err(errno) if errno != Errno::NOTEMPTY && errno != Errno::EXIST => Err(errno),
            _ => rustix::fs::fsync(&work),
        }
    }

    /// Empties `work` in the work directory `base`, but for the mark.
    pub(crate) fn sweep_around(base: BorrowedFd<'_>) -> Result<(), Errno> {
        let names = tree::list(base, OsStr::new(WORK))?.unwrap_or_default();
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let work = openat(base, WORK, flags, Mode::empty())?;
        for name in names.iter().filter(|name| *name != INCOMPAT) {
            tree::remove(work.as_fd(), name)?;
        }
        Ok(())
    }
}

fn make_dir(dir: BorrowedFd<'_>, name: &str) -> Result<OwnedFd, Errno> {
    match mkdirat(dir, name, Mode::RWXU) {
        Ok(()) | Err(Errno::EXIST) => {}
        Err(errno) => return Err(errno),
    }
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    openat(dir, name, flags, Mode::empty())
}
