//! Extended attributes of a name in a directory, symbolic links not followed (xattr(7)).
//!
//! A name of `.` means the directory itself.

use std::ffi::OsStr;
use std::os::fd::BorrowedFd;

use rustix::fs::XattrFlags;

use super::{Errno, cwd};

/// lgetxattr(2) of `name` in `dir`; the whole value, however long.
pub fn get(dir: BorrowedFd<'_>, name: &OsStr, attr: &OsStr) -> Result<Vec<u8>, Errno> {
    cwd::enter(dir)?;
    grow(|buffer| rustix::fs::lgetxattr(name, attr, buffer))
}

/// As [`get`], `None` for an attribute that isn't there, can't be read or isn't supported: the
/// kernel's overlay takes these for "not set" too.
pub fn get_optional(dir: BorrowedFd<'_>, name: &OsStr, attr: &OsStr) -> Option<Vec<u8>> {
    get(dir, name, attr).ok()
}

/// llistxattr(2): the names, each ended by a NUL.
pub fn list(dir: BorrowedFd<'_>, name: &OsStr) -> Result<Vec<u8>, Errno> {
    cwd::enter(dir)?;
    grow(|buffer| rustix::fs::llistxattr(name, buffer))
}

/// lsetxattr(2).
pub fn set(
    dir: BorrowedFd<'_>,
    name: &OsStr,
    attr: &OsStr,
    value: &[u8],
    flags: XattrFlags,
) -> Result<(), Errno> {
    cwd::enter(dir)?;
    rustix::fs::lsetxattr(name, attr, value, flags)
}

/// lremovexattr(2).
pub fn remove(dir: BorrowedFd<'_>, name: &OsStr, attr: &OsStr) -> Result<(), Errno> {
    cwd::enter(dir)?;
    rustix::fs::lremovexattr(name, attr)
}

/// fgetxattr(2) of an open descriptor; the whole value, however long.
pub fn fget(fd: BorrowedFd<'_>, attr: &OsStr) -> Result<Vec<u8>, Errno> {
    grow(|buffer| rustix::fs::fgetxattr(fd, attr, buffer))
}

/// flistxattr(2).
pub fn flist(fd: BorrowedFd<'_>) -> Result<Vec<u8>, Errno> {
    grow(|buffer| rustix::fs::flistxattr(fd, buffer))
}

/// Reads into a growing buffer: most values are short, the longest have 64 KiB.
fn grow(read: impl Fn(&mut [u8]) -> Result<usize, Errno>) -> Result<Vec<u8>, Errno> {
    let mut buffer = vec![0; 256];
    loop {
        match read(&mut buffer) {
            Ok(length) => {
                buffer.truncate(length);
                return Ok(buffer);
            }
            Err(Errno::RANGE) if buffer.len() < (1 << 20) => buffer.resize(buffer.len() * 16, 0),
            Err(errno) => return Err(errno),
        }
    }
}
