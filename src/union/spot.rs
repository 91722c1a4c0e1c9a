//! A spot: how to reach the real object of a node right now, and what can be done there.

use std::ffi::OsStr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use rustix::fs::{
    AtFlags, Gid, Mode, OFlags, Stat, Statx, StatxFlags, Timestamps, Uid, XattrFlags,
};

use super::descriptors::OpenFile;
use super::layer::RealDir;
use super::types::{Fault, Place};
use crate::sys::{Errno, chmod, xattr};

/// Where an object can be reached.
#[derive(Debug, Clone)]
pub(super) enum Spot {
    /// Under this name; `.` is the directory itself.
    At { dir: Arc<RealDir>, name: Box<OsStr> },
    /// Only by this descriptor: it has no name any more.
    Open(Arc<OpenFile>),
}

impl Spot {
    /// The directory itself.
    pub(super) fn itself(dir: &Arc<RealDir>) -> Self {
        Spot::At {
            dir: dir.clone(),
            name: OsStr::new(".").into(),
        }
    }

    pub(super) fn fault(&self, op: &'static str, errno: Errno) -> Fault {
        match self {
            Spot::At { dir, name } => dir.fault(op, name, errno),
            Spot::Open(_) => Fault {
                errno,
                op,
                place: Place::Upper,
                name: None,
            },
        }
    }

    /// `None` when the name is gone.
    pub(super) fn stat(&self) -> Result<Option<Stat>, Fault> {
        match self {
            Spot::At { dir, name } if **name == *"." => {
                let file = dir.open()?;
                let stat = rustix::fs::fstat(file.as_fd());
                stat.map(Some).map_err(|errno| self.fault("stat", errno))
            }
            Spot::At { dir, name } => dir.stat(name),
            Spot::Open(file) => rustix::fs::fstat(file.as_fd())
                .map(Some)
                .map_err(|errno| self.fault("stat", errno)),
        }
    }

    /// What stat(2) doesn't say. Fails with `ENOSYS` before Linux 4.11.
    pub(super) fn statx(&self, wanted: StatxFlags) -> Result<Statx, Errno> {
        match self {
            Spot::At { dir, name } => {
                let dir = dir.open().map_err(|fault| fault.errno)?;
                if **name == *"." {
                    // By name it would have to be searchable.
                    return rustix::fs::statx(dir.as_fd(), "", AtFlags::EMPTY_PATH, wanted);
                }
                rustix::fs::statx(dir.as_fd(), &**name, AtFlags::SYMLINK_NOFOLLOW, wanted)
            }
            Spot::Open(file) => rustix::fs::statx(file.as_fd(), "", AtFlags::EMPTY_PATH, wanted),
        }
    }

    pub(super) fn open(&self, flags: OFlags) -> Result<OwnedFd, Errno> {
        let flags = flags | OFlags::CLOEXEC | OFlags::NOFOLLOW;
        match self {
            Spot::At { dir, name } => {
                let dir = dir.open().map_err(|fault| fault.errno)?;
                rustix::fs::openat(dir.as_fd(), &**name, flags, Mode::empty())
            }
            Spot::Open(_) => Err(Errno::STALE),
        }
    }

    pub(super) fn get_xattr(&self, attr: &OsStr) -> Result<Vec<u8>, Errno> {
        match self {
            Spot::At { dir, name } => {
                xattr::get(dir.open().map_err(|fault| fault.errno)?.as_fd(), name, attr)
            }
            // As it is listed: a special file without a name has none.
            Spot::Open(file) => xattr::fget(file.as_fd(), attr).map_err(|errno| match errno {
                Errno::BADF => Errno::NODATA,
                errno => errno,
            }),
        }
    }

    /// As [`Spot::get_xattr`] in the upper layer, also where its owner may not read the object.
    pub(super) fn get_own_xattr(&self, attr: &OsStr) -> Result<Vec<u8>, Errno> {
        match self {
            Spot::At { dir, name } => dir.own_xattr(name, attr).map_err(|fault| fault.errno),
            Spot::Open(_) => self.get_xattr(attr),
        }
    }

    pub(super) fn list_xattrs(&self) -> Result<Vec<u8>, Errno> {
        match self {
            Spot::At { dir, name } => {
                xattr::list(dir.open().map_err(|fault| fault.errno)?.as_fd(), name)
            }
            // A special file without a name: what it has can't be reached, and hardly one has any.
            Spot::Open(file) => match xattr::flist(file.as_fd()) {
                Err(Errno::BADF) => Ok(Vec::new()),
                names => names,
            },
        }
    }

    pub(super) fn set_xattr(
        &self,
        attr: &OsStr,
        value: &[u8],
        flags: XattrFlags,
    ) -> Result<(), Errno> {
        match self {
            Spot::At { dir, name } => {
                let dir = dir.open().map_err(|fault| fault.errno)?;
                xattr::set(dir.as_fd(), name, attr, value, flags)
            }
            Spot::Open(file) => {
                rustix::fs::fsetxattr(file.as_fd(), attr, value, flags).map_err(no_path)
            }
        }
    }

    pub(super) fn remove_xattr(&self, attr: &OsStr) -> Result<(), Errno> {
        match self {
            Spot::At { dir, name } => {
                xattr::remove(dir.open().map_err(|fault| fault.errno)?.as_fd(), name, attr)
            }
            Spot::Open(file) => rustix::fs::fremovexattr(file.as_fd(), attr).map_err(no_path),
        }
    }

    pub(super) fn chown(&self, uid: Option<u32>, gid: Option<u32>) -> Result<(), Errno> {
        // The highest number means "leave it" to the call, and nobody's id to everybody else.
        if uid == Some(u32::MAX) || gid == Some(u32::MAX) {
            return Err(Errno::INVAL);
        }
        let uid = uid.map(Uid::from_raw);
        let gid = gid.map(Gid::from_raw);
        match self {
            Spot::At { dir, name } => by_name(dir, name, |dir, name| {
                rustix::fs::chownat(dir, name, uid, gid, AtFlags::SYMLINK_NOFOLLOW)
            }),
            Spot::Open(file) => {
                rustix::fs::chownat(file.as_fd(), "", uid, gid, AtFlags::EMPTY_PATH)
            }
        }
    }

    /// The object must not be a symbolic link.
    pub(super) fn chmod(&self, mode: u32) -> Result<(), Errno> {
        match self {
            Spot::At { dir, name } => {
                by_name(dir, name, |dir, name| chmod::chmod_at(dir, name, mode))
            }
            Spot::Open(file) => chmod::chmod_fd(file.as_fd(), mode),
        }
    }

    pub(super) fn set_times(&self, times: &Timestamps) -> Result<(), Errno> {
        match self {
            Spot::At { dir, name } => by_name(dir, name, |dir, name| {
                rustix::fs::utimensat(dir, name, times, AtFlags::SYMLINK_NOFOLLOW)
            }),
            Spot::Open(file) => rustix::fs::utimensat(file.as_fd(), "", times, AtFlags::EMPTY_PATH),
        }
    }
}

/// Calls with a name in a directory. A directory that may not be searched has no `.`, not even for
/// its owner: it is called by its name.
fn by_name<T>(
    dir: &RealDir,
    name: &OsStr,
    call: impl Fn(BorrowedFd<'_>, &OsStr) -> Result<T, Errno>,
) -> Result<T, Errno> {
    let file = dir.open().map_err(|fault| fault.errno)?;
    match call(file.as_fd(), name) {
        Err(Errno::ACCESS) if name == "." => match dir.above() {
            Some((parent, name)) => {
                let parent = parent.open().map_err(|fault| fault.errno)?;
                call(parent.as_fd(), &name)
            }
            None => Err(Errno::ACCESS),
        },
        result => result,
    }
}

/// An `O_PATH` descriptor carries no attributes: the object has lost its name and isn't a file
/// or a directory.
fn no_path(errno: Errno) -> Errno {
    if errno == Errno::BADF {
        Errno::OPNOTSUPP
    } else {
        errno
    }
}
