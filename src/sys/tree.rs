//! Whole directories: listing one, removing a tree. Relative to descriptors, symbolic links
//! never followed.

use std::ffi::{OsStr, OsString};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Component, Path};

use rustix::fs::{AtFlags, FileType, Mode, OFlags, RawDir, RenameFlags, ResolveFlags, SeekFrom};

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

/// Opens the directory `path` below `root`, following no link.
pub fn open_below(root: impl AsFd, path: &Path) -> Result<OwnedFd, Errno> {
    if path.as_os_str().is_empty() {
        return rustix::fs::openat(root, ".", DIR_FLAGS, Mode::empty());
    }
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS;
    match rustix::fs::openat2(&root, path, DIR_FLAGS, Mode::empty(), resolve) {
        // An old kernel, a filter that doesn't know the call, a path longer than a page.
        Err(Errno::NOSYS | Errno::PERM | Errno::NAMETOOLONG) => step_by_step(root, path),
        result => result,
    }
}

fn step_by_step(root: impl AsFd, path: &Path) -> Result<OwnedFd, Errno> {
    let mut here = rustix::fs::openat(root, ".", DIR_FLAGS, Mode::empty())?;
    for part in path.components() {
        if let Component::Normal(name) = part {
            here = rustix::fs::openat(&here, name, DIR_FLAGS, Mode::empty())?;
        }
    }
    Ok(here)
}

/// Removes `name` in `dir` with all that is in it. A name that isn't there is fine.
pub fn remove(dir: BorrowedFd<'_>, name: &OsStr) -> Result<(), Errno> {
    if remove_one(dir, name)? == Removed::Full {
        remove_contents(&open_own(dir, name)?)?;
        rustix::fs::unlinkat(dir, name, AtFlags::REMOVEDIR)?;
    }
    Ok(())
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Removed {
    Gone,
    /// It is a directory that isn't empty.
    Full,
}

fn remove_one(dir: BorrowedFd<'_>, name: &OsStr) -> Result<Removed, Errno> {
    match rustix::fs::unlinkat(dir, name, AtFlags::empty()) {
        Ok(()) | Err(Errno::NOENT) => return Ok(Removed::Gone),
        // Linux says EISDIR, POSIX allows EPERM.
        Err(Errno::ISDIR | Errno::PERM) => {}
        Err(errno) => return Err(errno),
    }
    match rustix::fs::unlinkat(dir, name, AtFlags::REMOVEDIR) {
        Ok(()) | Err(Errno::NOENT) => Ok(Removed::Gone),
        Err(Errno::NOTEMPTY | Errno::EXIST) => Ok(Removed::Full),
        Err(errno) => Err(errno),
    }
}

/// Removes all that is in an open directory of our own. What lies deeper is moved up to it: a tree may have more
/// levels than we have descriptors or stack.
pub fn remove_contents(top: &OwnedFd) -> Result<(), Errno> {
    let mut moved = 0;
    loop {
        let names = names_in(top)?;
        if names.is_empty() {
            return Ok(());
        }
        for name in names {
            if remove_one(top.as_fd(), &name)? == Removed::Gone {
                continue;
            }
            let inner = open_own(top.as_fd(), &name)?;
            for name in names_in(&inner)? {
                if remove_one(inner.as_fd(), &name)? == Removed::Full {
                    // A directory that moves must be writable itself.
                    drop(open_own(inner.as_fd(), &name)?);
                    move_up(&inner, &name, top, &mut moved)?;
                }
            }
            rustix::fs::unlinkat(top, &name, AtFlags::REMOVEDIR)?;
        }
    }
}

fn names_in(dir: &OwnedFd) -> Result<Vec<OsString>, Errno> {
    let mut names = Vec::new();
    rustix::fs::seek(dir, SeekFrom::Start(0))?;
    for_each(dir.as_fd(), |name, _, _| names.push(name.to_os_string()))?;
    Ok(names)
}

/// Gives a directory a name in `top` that nothing has.
fn move_up(from: &OwnedFd, name: &OsStr, top: &OwnedFd, moved: &mut u64) -> Result<(), Errno> {
    loop {
        let free = format!("moved-up-{moved}");
        *moved += 1;
        let flags = RenameFlags::NOREPLACE;
        match rustix::fs::renameat_with(from, name, top, free, flags) {
            Err(Errno::EXIST) => {}
            result => return result,
        }
    }
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

    #[test]
    fn a_tree_deeper_than_descriptors_and_stack_reach() {
        const LEVELS: usize = 5_000;
        let scratch = tempfile::tempdir().unwrap();
        let top = OwnedFd::from(std::fs::File::open(scratch.path()).unwrap());
        let mut dir = top.try_clone().unwrap();
        for level in 0..LEVELS {
            let name = if level == 0 { "a" } else { "moved-up-0" };
            rustix::fs::mkdirat(&dir, name, Mode::RWXU).unwrap();
            dir = rustix::fs::openat(&dir, name, DIR_FLAGS, Mode::empty()).unwrap();
            rustix::fs::symlinkat("/", &dir, "link").unwrap();
        }
        drop(dir);
        remove(top.as_fd(), OsStr::new("a")).unwrap();
        assert_eq!(list(top.as_fd(), OsStr::new(".")).unwrap(), Some(vec![]));
    }
}
