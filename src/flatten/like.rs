//! Making one directory look like another: what the upper directory of an overlay needs, because its
//! attributes are those of the merged root.

use std::ffi::OsStr;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::Path;
use std::thread;

use rustix::fs::{AtFlags, CWD, Gid, Mode, OFlags, Uid, chownat, fstat, openat, utimensat};

use super::Owner;
use super::object::copy_attributes;
use crate::format::XattrNamespace;
use crate::sys::times::times_of;
use crate::sys::{Errno, chmod};

/// Gives the directory `dir` owner, attributes, mode and times of `like`, but the owners that are
/// told. An owner of `like` without an id in this user namespace is left out.
pub(crate) fn make_like(
    like: BorrowedFd<'_>,
    dir: &Path,
    owner: Owner,
    namespace: XattrNamespace,
) -> Result<(), Errno> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let to = openat(CWD, dir, flags, Mode::empty())?;
    let stat = fstat(like)?;
    let uid = Uid::from_raw(owner.uid.unwrap_or(stat.st_uid));
    let gid = Gid::from_raw(owner.gid.unwrap_or(stat.st_gid));
    match chownat(&to, "", Some(uid), Some(gid), AtFlags::EMPTY_PATH) {
        Err(Errno::INVAL | Errno::PERM) if owner == Owner::default() => {}
        result => result?,
    }
    let itself = OsStr::new(".");
    let onto = to.as_fd();
    // The calls for attributes need a working directory of their own.
    thread::scope(|scope| {
        let thread = scope.spawn(|| copy_attributes(namespace, like, itself, onto, itself));
        thread.join().unwrap_or(Err(Errno::IO))
    })?;
    chmod::chmod_fd(onto, stat.st_mode & 0o7777)?;
    utimensat(&to, ".", &times_of(&stat), AtFlags::empty())
}
