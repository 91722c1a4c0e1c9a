//! Whether a file system can hold the kernel's form.

use std::ffi::OsStr;
use std::fmt;
use std::os::fd::{AsFd, BorrowedFd};

use rustix::fs::{FileType, Mode, OFlags, XattrFlags, mkdirat, mknodat, openat};

use crate::format::XattrNamespace;
use crate::sys::{Errno, random, tree};

/// What the kernel's form needs and isn't to be had.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Lack {
    /// Attributes under the overlay's prefix.
    Attributes,
    /// 0:0 devices.
    Whiteouts,
}

impl fmt::Display for Lack {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Lack::Attributes => "the file system can't hold the overlay's attributes",
            Lack::Whiteouts => {
                "whiteouts can't be made there (0:0 devices need Linux 5.8, or root and mknod(2))"
            }
        })
    }
}

impl Lack {
    /// This, if an error says that it can't be had at all, and not that it failed just now.
    pub(crate) fn by(self, errno: Errno) -> Option<Self> {
        let refused = matches!(
            errno,
            Errno::OPNOTSUPP | Errno::PERM | Errno::ACCESS | Errno::NOSYS | Errno::INVAL
        );
        refused.then_some(self)
    }
}

/// What the file system of `dir`, where something is made and removed, lacks.
pub(crate) fn lacks(dir: BorrowedFd<'_>, namespace: XattrNamespace) -> Result<Option<Lack>, Errno> {
    let name = format!("#overfall-{:x}", random::number()?);
    mkdirat(dir, &*name, Mode::RWXU)?;
    let lack = lacks_in(dir, &name, namespace);
    tree::remove(dir, OsStr::new(&name))?;
    lack
}

fn lacks_in(
    dir: BorrowedFd<'_>,
    name: &str,
    namespace: XattrNamespace,
) -> Result<Option<Lack>, Errno> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let inner = openat(dir, name, flags, Mode::empty())?;
    let steps = [
        (
            Lack::Attributes,
            rustix::fs::fsetxattr(&inner, namespace.opaque(), b"0", XattrFlags::empty()),
        ),
        (
            Lack::Whiteouts,
            mknodat(
                inner.as_fd(),
                "0",
                FileType::CharacterDevice,
                Mode::empty(),
                0,
            ),
        ),
    ];
    for (lack, result) in steps {
        if let Err(errno) = result {
            return lack.by(errno).map(Some).ok_or(errno);
        }
    }
    Ok(None)
}
