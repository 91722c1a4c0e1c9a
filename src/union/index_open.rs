//! Opening the index: the proofs that it belongs to this upper and these lower layers, and the
//! removal of entries that belong to nothing any more.

use std::ffi::OsStr;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::fs::{Mode, OFlags, XattrFlags};

use super::index::Index;
use super::layer::{Ground, LayerIndex, RealDir};
use super::origins::{FsUuids, Origins};
use super::spot::Spot;
use super::work::remove_acls;
use crate::error::Context;
use crate::format::index::{Links, origin_of};
use crate::format::origin::Origin;
use crate::format::{Form, INDEX, XattrNamespace, is_whiteout};
use crate::options::Options;
use crate::sys::{Errno, tree, xattr};
use crate::{Error, Result};

const STEP: &str = "opening the index of hard links";

/// Where an index is and what it belongs to.
pub(super) struct Belongings<'a> {
    pub(super) namespace: XattrNamespace,
    pub(super) origins: &'a Origins,
    pub(super) uuids: FsUuids,
    pub(super) options: &'a Options,
    /// The work directory.
    pub(super) work: BorrowedFd<'a>,
    pub(super) upper: &'a Arc<RealDir>,
    /// The topmost lower layer.
    pub(super) lower: &'a Arc<RealDir>,
}

impl Belongings<'_> {
    /// Opens the index, or makes one.
    pub(super) fn open(&self, ground: &Arc<Ground>) -> Result<Index> {
        let named = |path: &Option<PathBuf>| path.clone().unwrap_or_default();
        let (path, upper_path) = (
            named(&self.options.work).join(INDEX),
            named(&self.options.upper),
        );
        let upper_file = self
            .upper
            .open()
            .map_err(|fault| Error::system(STEP).at(&upper_path).errno(fault.errno))?;
        let lower = self.origins.describe(&Spot::itself(self.lower));
        let upper = self.origins.describe_upper(upper_file.as_fd(), self.uuids);
        let Some(upper) = upper.filter(|_| !lower.is_empty()) else {
            return Err(Error::usage(STEP)
                .at(&path)
                .because("a layer's file system has no file handles or no uuid, by which links are indexed")
                .remedy("leave `index=on` out"));
        };
        self.prove(upper_file.as_fd(), self.namespace.origin(), &lower)
            .map_err(|errno| foreign(&upper_path, errno, "another lower layer"))?;
        match rustix::fs::mkdirat(self.work, INDEX, Mode::empty()) {
            Ok(()) | Err(Errno::EXIST) => {}
            Err(errno) => return Err(Error::system(STEP).at(path).errno(errno)),
        }
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let dir =
            rustix::fs::openat(self.work, INDEX, flags, Mode::empty()).context(STEP, &path)?;
        remove_acls(dir.as_fd()).context(STEP, &path)?;
        self.prove(dir.as_fd(), self.namespace.upper(), &upper)
            .map_err(|errno| foreign(&path, errno, "another upper layer"))?;
        let dir =
            RealDir::root(ground, LayerIndex::Upper, Form::Kernel, dir).context(STEP, &path)?;
        self.sweep(&dir, &path)?;
        Ok(Index::new(dir))
    }

    /// Compares a handle with the one that was written down before, or writes it down.
    fn prove(
        &self,
        on: BorrowedFd<'_>,
        attr: &OsStr,
        handle: &[u8],
    ) -> std::result::Result<(), Errno> {
        let known = match xattr::fget(on, attr) {
            Ok(known) => known,
            Err(Errno::NODATA) => Vec::new(),
            Err(errno) => return Err(errno),
        };
        if Origin::parse(&known).is_none() {
            rustix::fs::fsetxattr(on, attr, handle, XattrFlags::empty())
        } else if known == handle {
            Ok(())
        } else {
            Err(Errno::STALE)
        }
    }

    /// Removes what belongs to nothing; an entry that can't be understood forbids the mount, as
    /// with the kernel.
    fn sweep(&self, dir: &Arc<RealDir>, path: &Path) -> Result<()> {
        let open = dir
            .open()
            .map_err(|fault| Error::system(STEP).at(path).errno(fault.errno))?;
        let names = tree::list(open.as_fd(), OsStr::new(".")).context(STEP, path)?;
        for name in names.unwrap_or_default() {
            let keep = match self.verify(dir, &name) {
                Ok(keep) => keep,
                Err(errno) => {
                    return Err(Error::usage(STEP)
                        .at(path.join(&name))
                        .errno(errno)
                        .because("this entry can't be understood")
                        .remedy("remove the index directory: hard links are broken then"));
                }
            };
            if !keep {
                tree::remove(open.as_fd(), &name).context(STEP, path.join(&name))?;
            }
        }
        Ok(())
    }

    /// Whether an entry still belongs to a lower file and is in use.
    fn verify(&self, dir: &Arc<RealDir>, name: &OsStr) -> std::result::Result<bool, Errno> {
        if name.as_encoded_bytes().starts_with(b"#") {
            return Ok(false);
        }
        let origin = origin_of(name).ok_or(Errno::INVAL)?;
        Origin::parse(&origin).ok_or(Errno::INVAL)?;
        let entry = Spot::At {
            dir: dir.clone(),
            name: name.into(),
        };
        let stat = entry.stat().map_err(|fault| fault.errno)?;
        let stat = stat.ok_or(Errno::NOENT)?;
        let is_dir = stat.st_mode & libc::S_IFMT == libc::S_IFDIR;
        if is_whiteout(stat.st_mode, stat.st_rdev) || is_dir {
            // Of an index for NFS.
            return Ok(true);
        }
        if entry.get_xattr(self.namespace.origin())? != origin {
            return Ok(false);
        }
        if stat.st_nlink > 1 {
            return Ok(true);
        }
        let Some(lower) = self.origins.stat(&origin) else {
            return Ok(false);
        };
        let links = entry.get_xattr(self.namespace.nlink()).ok();
        let (links, nlink) = match links.and_then(|value| Links::parse(&value)) {
            Some(Links::Upper(more)) => (more, stat.st_nlink),
            Some(Links::Lower(more)) => (more, lower.st_nlink),
            None => return Ok(false),
        };
        Ok(i64::from(links) + i64::try_from(nlink).unwrap_or(i64::MAX) > 0)
    }
}

fn foreign(path: &Path, errno: Errno, whose: &str) -> Error {
    let error = Error::usage(STEP).at(path).errno(errno);
    if errno == Errno::STALE {
        error.because(format!("it was written with index=on over {whose}"))
    } else {
        error
    }
}
