//! Other owners for a whole tree.

use std::os::fd::AsFd;
use std::path::Path;
use std::thread;

use rustix::fs::{AtFlags, CWD, FileType, Gid, Mode, OFlags, Stat, Uid, chownat, openat, statat};

use crate::flatten::Owner;
use crate::sys::{Errno, chmod, tree, xattr};

use std::ffi::{OsStr, OsString};

const CAPABILITY: &str = "security.capability";

/// What a visit says about going on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Go {
    On,
    Stop,
}

/// Whether everything below the directory `root` belongs to `owner` already. Stops at the first
/// thing that doesn't. What can't be read counts as another's.
pub(super) fn all_belong_to(root: &Path, owner: Owner) -> bool {
    let mut all = true;
    let walked = walk(root, &mut |_, _, stat| {
        all &= belongs(stat, owner);
        Ok(if all { Go::On } else { Go::Stop })
    });
    walked.is_ok() && all
}

/// Gives everything below the directory `root` to `owner`. Modes and capabilities stay.
pub(super) fn give_all_to(root: &Path, owner: Owner) -> Result<(), Errno> {
    // The calls for attributes need a working directory of their own.
    thread::scope(|scope| {
        let thread = scope.spawn(|| {
            walk(root, &mut |dir, name, stat| {
                if !belongs(stat, owner) {
                    give(dir, name, stat, owner)?;
                }
                Ok(Go::On)
            })
        });
        thread.join().unwrap_or(Err(Errno::IO)).map(drop)
    })
}

fn belongs(stat: &Stat, owner: Owner) -> bool {
    owner.uid.is_none_or(|uid| uid == stat.st_uid) && owner.gid.is_none_or(|gid| gid == stat.st_gid)
}

fn give(dir: impl AsFd, name: &OsStr, stat: &Stat, owner: Owner) -> Result<(), Errno> {
    let dir = dir.as_fd();
    let regular = FileType::from_raw_mode(stat.st_mode) == FileType::RegularFile;
    let capability = match regular {
        true => xattr::get_optional(dir, name, OsStr::new(CAPABILITY)),
        false => None,
    };
    let uid = owner.uid.map(Uid::from_raw);
    let gid = owner.gid.map(Gid::from_raw);
    chownat(dir, name, uid, gid, AtFlags::SYMLINK_NOFOLLOW)?;
    // A new owner takes both of these away.
    if regular && stat.st_mode & 0o6000 != 0 {
        chmod::chmod_at(dir, name, stat.st_mode & 0o7777)?;
    }
    match capability {
        Some(value) => {
            let flags = rustix::fs::XattrFlags::empty();
            xattr::set(dir, name, OsStr::new(CAPABILITY), &value, flags)
        }
        None => Ok(()),
    }
}

/// Visits everything below `root`, directories before what is in them.
fn walk(
    root: &Path,
    visit: &mut dyn FnMut(std::os::fd::BorrowedFd<'_>, &OsStr, &Stat) -> Result<Go, Errno>,
) -> Result<Go, Errno> {
    const FLAGS: OFlags = OFlags::RDONLY
        .union(OFlags::DIRECTORY)
        .union(OFlags::CLOEXEC);
    let mut todo = vec![root.to_path_buf()];
    while let Some(path) = todo.pop() {
        let dir = openat(CWD, &path, FLAGS, Mode::empty())?;
        let mut names: Vec<OsString> = Vec::new();
        tree::for_each(dir.as_fd(), |name, _, _| names.push(name.to_os_string()))?;
        for name in names {
            let stat = statat(&dir, &name, AtFlags::SYMLINK_NOFOLLOW)?;
            if visit(dir.as_fd(), &name, &stat)? == Go::Stop {
                return Ok(Go::Stop);
            }
            if FileType::from_raw_mode(stat.st_mode) == FileType::Directory {
                todo.push(path.join(&name));
            }
        }
    }
    Ok(Go::On)
}
