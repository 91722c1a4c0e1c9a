//! Writing one object as it is in a layer.

use std::collections::HashMap;
use std::ffi::OsStr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use rustix::fs::{
    AtFlags, FileType, Gid, Mode, OFlags, Stat, Uid, XattrFlags, chownat, fstat, linkat, mkdirat,
    mknodat, openat, readlinkat, symlinkat, utimensat,
};

use super::{Owner, Totals};
use crate::format::{Visible, XattrNamespace, is_guard};
use crate::sys::times::times_of;
use crate::sys::{Errno, chmod, xattr};
use crate::union::copy_data;
use crate::{Error, Result};

/// Writes objects, and remembers what it needs for hard links.
#[derive(Debug)]
pub(super) struct Writer<'a> {
    step: &'static str,
    namespace: XattrNamespace,
    owner: Owner,
    /// The root of what is written.
    root: &'a OwnedFd,
    /// Objects with several names: device and number, and where the first name is.
    links: HashMap<(u64, u64), PathBuf>,
    totals: Totals,
}

pub(super) fn is_regular(stat: &Stat) -> bool {
    FileType::from_raw_mode(stat.st_mode) == FileType::RegularFile
}

impl<'a> Writer<'a> {
    pub(super) fn new(
        step: &'static str,
        namespace: XattrNamespace,
        owner: Owner,
        root: &'a OwnedFd,
    ) -> Self {
        Self {
            step,
            namespace,
            owner,
            root,
            links: HashMap::new(),
            totals: Totals::default(),
        }
    }

    pub(super) fn totals(&self) -> Totals {
        self.totals
    }

    /// Writes `name`, which is no directory and is `path` from the root, from one open directory
    /// into another.
    pub(super) fn leaf(
        &mut self,
        from: BorrowedFd<'_>,
        to: BorrowedFd<'_>,
        path: &Path,
        name: &OsStr,
        stat: &Stat,
    ) -> Result<()> {
        let mut written = Totals {
            files: 1,
            ..Totals::default()
        };
        let failed = |errno: Errno| self.failed(path, errno);
        let several = stat.st_nlink > 1;
        let identity = (stat.st_dev, stat.st_ino);
        if several && let Some(first) = self.links.get(&identity) {
            linkat(self.root, first, to, name, AtFlags::empty()).map_err(failed)?;
            self.totals += written;
            return Ok(());
        }
        match FileType::from_raw_mode(stat.st_mode) {
            FileType::RegularFile => {
                self.refuse_without_data(from, path, name)?;
                let shared = regular(from, to, name, stat).map_err(failed)?;
                written.bytes = u64::try_from(stat.st_size).unwrap_or(0);
                written.shared = u64::from(shared);
            }
            FileType::Symlink => {
                let goal = readlinkat(from, name, Vec::new()).map_err(failed)?;
                symlinkat(goal, to, name).map_err(failed)?;
            }
            kind => {
                let device = matches!(kind, FileType::CharacterDevice | FileType::BlockDevice);
                match mknodat(to, name, kind, Mode::RUSR, stat.st_rdev) {
                    Err(Errno::PERM) if device => {
                        log::warn!("{}: a device can't be made here", path.display());
                        return Ok(());
                    }
                    result => result.map_err(failed)?,
                }
            }
        }
        self.dress(from, name, to, name, stat).map_err(failed)?;
        self.totals += written;
        if several {
            self.links.insert(identity, path.to_path_buf());
        }
        Ok(())
    }

    /// Makes a directory that can be written into; [`Writer::finish_directory`] does the rest.
    pub(super) fn directory(
        &mut self,
        to: BorrowedFd<'_>,
        path: &Path,
        name: &OsStr,
    ) -> Result<()> {
        mkdirat(to, name, Mode::RWXU).map_err(|errno| self.failed(path, errno))?;
        self.totals.files += 1;
        Ok(())
    }

    /// Gives the open directory `to` the attributes of `from`.
    pub(super) fn finish_directory(
        &self,
        from: BorrowedFd<'_>,
        to: BorrowedFd<'_>,
        path: &Path,
    ) -> Result<()> {
        let itself = OsStr::new(".");
        fstat(from)
            .and_then(|stat| self.dress(from, itself, to, itself, &stat))
            .map_err(|errno| self.failed(path, errno))
    }

    /// Owner, attributes, mode and times, in this order: a change of owner takes set-user-id bits
    /// and capabilities away, and everything but the last changes the times.
    fn dress(
        &self,
        from: BorrowedFd<'_>,
        from_name: &OsStr,
        to: BorrowedFd<'_>,
        to_name: &OsStr,
        stat: &Stat,
    ) -> Result<(), Errno> {
        let uid = Uid::from_raw(self.owner.uid.unwrap_or(stat.st_uid));
        let gid = Gid::from_raw(self.owner.gid.unwrap_or(stat.st_gid));
        chownat(to, to_name, Some(uid), Some(gid), AtFlags::SYMLINK_NOFOLLOW)?;
        copy_attributes(self.namespace, from, from_name, to, to_name)?;
        if FileType::from_raw_mode(stat.st_mode) != FileType::Symlink {
            chmod::chmod_at(to, to_name, stat.st_mode & 0o7777)?;
        }
        utimensat(to, to_name, &times_of(stat), AtFlags::SYMLINK_NOFOLLOW)
    }

    /// A file whose data is elsewhere looks like one full of zeros.
    fn refuse_without_data(&self, from: BorrowedFd<'_>, path: &Path, name: &OsStr) -> Result<()> {
        match xattr::get_optional(from, name, self.namespace.metacopy()) {
            None => Ok(()),
            Some(_) => Err(Error::system(self.step)
                .at(path)
                .errno(Errno::PERM)
                .because("its layer has the attributes of this file only, and not its data")
                .remedy("make the layer without `metacopy=on`")),
        }
    }

    fn failed(&self, path: &Path, errno: Errno) -> Error {
        let error = Error::system(self.step).at(path).errno(errno);
        match errno {
            Errno::NOSPC | Errno::DQUOT => error.because("it doesn't fit"),
            Errno::INVAL => error.because("perhaps its owner isn't mapped in this user namespace"),
            _ => error,
        }
    }
}

/// Copies attributes that a user of the merged tree sees; those the target can't hold are left
/// out, unless they guard something.
pub(super) fn copy_attributes(
    namespace: XattrNamespace,
    from: BorrowedFd<'_>,
    from_name: &OsStr,
    to: BorrowedFd<'_>,
    to_name: &OsStr,
) -> Result<(), Errno> {
    let names = match xattr::list(from, from_name) {
        Err(Errno::OPNOTSUPP) => return Ok(()),
        names => names?,
    };
    for stored in names
        .split(|byte| *byte == 0)
        .filter(|name| !name.is_empty())
    {
        let stored = OsStr::from_bytes(stored);
        let Visible::As(shown) = namespace.show(stored) else {
            continue;
        };
        let guards = is_guard(stored);
        let value = match xattr::get(from, from_name, stored) {
            Err(Errno::NODATA) => continue,
            Err(Errno::OPNOTSUPP) if !guards => continue,
            value => value?,
        };
        match xattr::set(to, to_name, &shown, &value, XattrFlags::empty()) {
            Err(Errno::OPNOTSUPP) if !guards => {}
            // The kernel gives these by itself.
            Err(Errno::PERM | Errno::OPNOTSUPP) if stored == "security.selinux" => {}
            // In a user namespace: nobody there sees them either.
            Err(Errno::PERM) if stored.as_bytes().starts_with(b"trusted.") => {}
            result => result?,
        }
    }
    Ok(())
}

/// Writes a regular file's data; says whether it is shared with the original.
fn regular(
    from: BorrowedFd<'_>,
    to: BorrowedFd<'_>,
    name: &OsStr,
    stat: &Stat,
) -> Result<bool, Errno> {
    let read = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    // Only the owner may leave the access time as it is.
    let source = match openat(from, name, read | OFlags::NOATIME, Mode::empty()) {
        Err(Errno::PERM) => openat(from, name, read, Mode::empty())?,
        source => source?,
    };
    let write = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
    let copy = openat(to, name, write, Mode::RUSR | Mode::WUSR)?;
    let size = u64::try_from(stat.st_size).unwrap_or(0);
    if size == 0 {
        return Ok(false);
    }
    if rustix::fs::ioctl_ficlone(&copy, &source).is_ok() {
        return Ok(true);
    }
    copy_data::copy(source.as_fd(), copy.as_fd(), size, false)?;
    Ok(false)
}
