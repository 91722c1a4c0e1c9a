//! Permissions lent to ourselves for a moment, to read what the upper layer says of its own objects.
//!
//! A `user.` attribute is read by who may read the object. The kernel's overlay and a server that is
//! root, of the machine or of a namespace, always may. A plain user's server may not where the user
//! took the permission off, and must know all the same whether such a directory hides those below.

use std::ffi::OsStr;
use std::os::fd::BorrowedFd;

use rustix::fs::{AtFlags, FileType};

use super::locks::{OrderedMutex, Rank};
use crate::sys::{Errno, chmod};

/// Keeps a permission that is being lent from being mistaken for the object's own.
#[derive(Debug)]
pub(crate) struct Lender(OrderedMutex<()>);

impl Default for Lender {
    fn default() -> Self {
        Self(OrderedMutex::new(Rank::Modes, ()))
    }
}

impl Lender {
    /// Changes permissions while none are lent.
    pub(super) fn alone<T>(&self, change: impl FnOnce() -> T) -> T {
        let _alone = self.0.lock();
        change()
    }

    /// Has `read` read something of `name` in `dir`; where that may not be, once more with the
    /// permission to. `EACCES` for what isn't ours.
    pub(super) fn lend<T>(
        &self,
        dir: BorrowedFd<'_>,
        name: &OsStr,
        read: impl Fn() -> Result<T, Errno>,
    ) -> Result<T, Errno> {
        const READ: u32 = 0o400;
        const READ_AND_SEARCH: u32 = 0o500;
        match read() {
            Err(Errno::ACCESS) => {}
            result => return result,
        }
        let _alone = self.0.lock();
        let stat = rustix::fs::statat(dir, name, AtFlags::SYMLINK_NOFOLLOW)?;
        let perm = stat.st_mode & 0o7777;
        let needed = match FileType::from_raw_mode(stat.st_mode) {
            FileType::Directory => perm | READ_AND_SEARCH,
            FileType::RegularFile => perm | READ,
            _ => return Err(Errno::ACCESS),
        };
        if needed == perm {
            // Others were lent it until now, or it takes more than that.
            return read();
        }
        chmod::chmod_at(dir, name, needed).map_err(|_| Errno::ACCESS)?;
        let result = read();
        chmod::chmod_at(dir, name, perm)?;
        result
    }
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn what_was_lent_is_given_back() {
        let scratch = tempfile::tempdir().unwrap();
        let inner = scratch.path().join("d");
        std::fs::create_dir(&inner).unwrap();
        let mode = || inner.metadata().unwrap().permissions().mode() & 0o7777;
        std::fs::set_permissions(&inner, PermissionsExt::from_mode(0o1200)).unwrap();
        let dir = std::fs::File::open(scratch.path()).unwrap();
        let read = || match mode() {
            0o1700 => Ok("read"),
            _ => Err(Errno::ACCESS),
        };
        let lent = Lender::default().lend(dir.as_fd(), OsStr::new("d"), read);
        assert_eq!(lent, Ok("read"));
        assert_eq!(mode(), 0o1200);
        let never =
            Lender::default().lend(dir.as_fd(), OsStr::new("d"), || Err::<(), _>(Errno::ACCESS));
        assert_eq!(never, Err(Errno::ACCESS));
        assert_eq!(mode(), 0o1200);
    }
}
