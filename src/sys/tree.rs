//! Whole directories: listing one, removing a tree. Relative to descriptors, symbolic links
//! never followed.

use std::ffi::{OsStr, OsString};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;

use rustix::fs::{AtFlags, FileType, Mode, OFlags, RawDir};

use super::Errno;

const DIR_FLAGS: OFlags = OFlags::RDONLY
    .union(OFlags::DIRECTORY)
    .union(OFlags::NOFOLLOW)
    .union(OFlags::CLOEXEC);

/// The names in the directory `path` below `dir`; `None` when it isn't there.
pub fn list(dir: BorrowedFd<'_>, path: &OsStr) -> Result<Option<Vec<OsString>>, Errno> {
    match rustix::fs::openat(dir, path, DIR_FLAGS, Mode::empty()) {
        Ok(fd) => {
            let mut names = Vec::new();
            for_each(fd.as_fd(), |name, _, _| names.push(name.to_os_string()))?;
            Ok(Some(names))
        }
        Err(Errno::NOENT) => Ok(None),
        // Our own directory, with its permissions taken off.
        Err(Errno::ACCESS) => {
            open_own(dir, path)?;
            list(dir, path)
        }
        Err(errno) => Err(errno),
    }
}

/// Calls `each` with every name of an open directory but `.` and `..`, its type and number, from
/// where the descriptor stands.
pub fn for_each(
    dir: BorrowedFd<'_>,
    mut each: impl FnMut(&OsStr, FileType, u64),
) -> Result<(), Errno> {
    let mut buffer = Box::new_uninit_slice(32 * 1024);
    let buffer: &mut [MaybeUninit<u8>] = &mut buffer;
    let mut entries = RawDir::new(dir, buffer);
    while let Some(entry) = entries.next() {
        let entry = entry?;
        let name = OsStr::from_bytes(entry.file_name().to_bytes());
        if name != "." && name != ".." {
            each(name, entry.file_type(), entry.ino());
        }
    }
    Ok(())
}

/// Removes `name` in `dir` with all that is in it. A name that isn't there is fine.
pub fn remove(dir: BorrowedFd<'_>, name: &OsStr) -> Result<(), Errno> {
    match rustix::fs::unlinkat(dir, name, AtFlags::empty()) {
        Ok(()) | Err(Errno::NOENT) => return Ok(()),
        // Linux says EISDIR, POSIX allows EPERM.
        Err(Errno::ISDIR | Errno::PERM) => {}
        Err(errno) => return Err(errno),
    }
    match rustix::fs::unlinkat(dir, name, AtFlags::REMOVEDIR) {
        Err(Errno::NOTEMPTY | Errno::EXIST) => {}
        Err(Errno::NOENT) => return Ok(()),
        result => return result,
    }
    remove_contents(&open_own(dir, name)?)?;
    rustix::fs::unlinkat(dir, name, AtFlags::REMOVEDIR)
}

/// Removes all that is in a directory.
fn remove_contents(top: &OwnedFd) -> Result<(), Errno> {
    let mut names = Vec::new();
    for_each(top.as_fd(), |name, _, _| names.push(name.to_os_string()))?;
    for name in names {
        remove(top.as_fd(), &name)?;
    }
    Ok(())
}

/// Opens a directory of our own whatever its permissions, by giving them back first.
fn open_own(dir: BorrowedFd<'_>, name: &OsStr) -> Result<OwnedFd, Errno> {
    let needed = Mode::RWXU;
    let stat = rustix::fs::statat(dir, name, AtFlags::SYMLINK_NOFOLLOW)?;
    if FileType::from_raw_mode(stat.st_mode) != FileType::Directory {
        return Err(Errno::NOTDIR);
    }
    if !Mode::from_raw_mode(stat.st_mode).contains(needed) {
        super::chmod::chmod_at(dir, name, needed.as_raw_mode())?;
    }
    rustix::fs::openat(dir, name, DIR_FLAGS, Mode::empty())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn a_tree_goes_even_with_its_permissions_off() {
        let scratch = tempfile::tempdir().unwrap();
        let inner = scratch.path().join("a/b/c");
        std::fs::create_dir_all(&inner).unwrap();
        std::fs::write(inner.join("file"), "x").unwrap();
        std::os::unix::fs::symlink("/", inner.join("link")).unwrap();
        std::fs::set_permissions(&inner, std::fs::Permissions::from_mode(0o000)).unwrap();
        let top = std::fs::File::open(scratch.path()).unwrap();
        remove(top.as_fd(), OsStr::new("a")).unwrap();
        assert_eq!(list(top.as_fd(), OsStr::new(".")).unwrap(), Some(vec![]));
        remove(top.as_fd(), OsStr::new("a")).unwrap();
    }
}
