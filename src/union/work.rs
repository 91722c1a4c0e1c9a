//! The work directory: unfinished objects, whiteouts to come, and the lock that keeps a second
//! mount out.

use std::ffi::{OsStr, OsString};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::sync::Arc;

use rustix::fs::{AtFlags, CWD, FileType, Mode, OFlags, RenameFlags};

use super::layer::{Ground, LayerIndex, RealDir};
use super::locks::{OrderedMutex, Rank};
use super::spot::Spot;
use super::types::{Fault, Place};
use crate::dotted::Guard;
use crate::error::Context;
use crate::format::{Form, INCOMPAT, WORK, acl};
use crate::sys::{self, Errno, from_io, random, tree};
use crate::{Error, Result};

/// The work directory of a writable mount.
#[derive(Debug)]
pub(super) struct Work {
    /// `workdir` itself; holds the lock.
    base: OwnedFd,
    /// `workdir/work`.
    dir: Arc<RealDir>,
    fd: OwnedFd,
    /// A whiteout that further ones are hard links of, as the kernel makes them.
    shared_whiteout: OrderedMutex<Option<OsString>>,
    /// What couldn't be removed; tried again later.
    left: OrderedMutex<Vec<OsString>>,
    pub(super) durability: Durability,
}

/// Whether data is written to the disk before it counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Durability {
    /// A copied-up file is on the disk before it replaces its lower.
    Synced,
    /// `fsync=strict`: so are a copied-up directory and a metadata copy.
    Strict,
    /// `volatile`: never.
    Volatile,
}

impl Durability {
    /// Whether anything is written to the disk at all.
    pub(super) fn syncs(self) -> bool {
        self != Durability::Volatile
    }
}

/// An unfinished object in the work directory. Removed when dropped, unless it was published.
#[derive(Debug)]
pub(super) struct Temp<'w> {
    work: &'w Work,
    name: OsString,
    published: bool,
}

/// Takes the ACLs off an open directory, which it has inherited.
pub(super) fn remove_acls(fd: BorrowedFd<'_>) -> Result<(), Errno> {
    for attr in [acl::ACCESS, acl::DEFAULT] {
        match rustix::fs::fremovexattr(fd, attr) {
            Ok(()) | Err(Errno::NODATA | Errno::OPNOTSUPP) => {}
            Err(errno) => return Err(errno),
        }
    }
    Ok(())
}

impl Work {
    /// Locks `workdir`, empties `workdir/work` and makes it anew.
    pub(super) fn open(
        ground: &Arc<Ground>,
        path: &Path,
        base: OwnedFd,
        durability: Durability,
    ) -> Result<Self> {
        const STEP: &str = "preparing the work directory";
        lock(&base, path)?;
        let guard = Guard::of(base.as_fd()).context(STEP, path.join(WORK))?;
        if let Guard::Other(feature) = guard {
            let error = Error::usage(STEP)
                .at(path.join(WORK).join(INCOMPAT).join(&feature))
                .because("the upper has a feature that forbids mounting it again");
            return Err(if feature == "volatile" {
                error.remedy(
                    "it was mounted volatile and may have lost data: make a new upper, or remove \
                     that directory to trust this one",
                )
            } else {
                error
            });
        }
        if guard == Guard::Dotted {
            // Never without it, however this ends.
            Guard::sweep_around(base.as_fd()).context(STEP, path.join(WORK))?;
        } else {
            tree::remove(base.as_fd(), OsStr::new(WORK)).context(STEP, path.join(WORK))?;
            let made = rustix::fs::mkdirat(&base, WORK, Mode::RWXU);
            made.context(STEP, path.join(WORK))?;
        }
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let fd =
            rustix::fs::openat(&base, WORK, flags, Mode::empty()).context(STEP, path.join(WORK))?;
        // What is made in there would inherit them.
        remove_acls(fd.as_fd()).context(STEP, path.join(WORK))?;
        let held = fd
            .try_clone()
            .map_err(|error| from_io(&error))
            .context(STEP, path)?;
        let dir =
            RealDir::root(ground, LayerIndex::Upper, Form::Kernel, held).context(STEP, path)?;
        let work = Self {
            base,
            dir,
            fd,
            shared_whiteout: OrderedMutex::new(Rank::Whiteout, None),
            left: OrderedMutex::new(Rank::Leaf, Vec::new()),
            durability,
        };
        if durability == Durability::Volatile {
            work.mark_volatile()
                .context("marking the upper volatile", path.join(WORK))?;
        }
        work.hide().context(STEP, path.join(WORK))?;
        Ok(work)
    }

    fn mark_volatile(&self) -> Result<(), Errno> {
        let dir = rustix::fs::Mode::RWXU;
        match rustix::fs::mkdirat(&self.fd, INCOMPAT, dir) {
            // Of the fallback form.
            Ok(()) | Err(Errno::EXIST) => {}
            Err(errno) => return Err(errno),
        }
        rustix::fs::mkdirat(&self.fd, "incompat/volatile", dir)?;
        let flags = OFlags::CREATE | OFlags::WRONLY | OFlags::CLOEXEC;
        rustix::fs::openat(&self.fd, "incompat/volatile/dirty", flags, Mode::RUSR)?;
        Ok(())
    }

    /// Takes all permissions off `work`, as the kernel does, where we can still work in it.
    fn hide(&self) -> Result<(), Errno> {
        rustix::fs::fchmod(&self.fd, Mode::empty())?;
        match rustix::fs::accessat(
            &self.fd,
            ".",
            rustix::fs::Access::WRITE_OK,
            AtFlags::EACCESS,
        ) {
            Ok(()) => Ok(()),
            Err(_) => rustix::fs::fchmod(&self.fd, Mode::RWXU),
        }
    }

    /// `workdir`.
    pub(super) fn base(&self) -> BorrowedFd<'_> {
        self.base.as_fd()
    }

    /// `workdir/work`.
    pub(super) fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }

    pub(super) fn fault(&self, op: &'static str, errno: Errno) -> Fault {
        Fault {
            errno,
            op,
            place: Place::Work,
            name: None,
        }
    }

    /// A name that nobody has used, for an object that the caller makes.
    pub(super) fn temp(&self) -> Result<Temp<'_>, Fault> {
        self.remove_left();
        let number =
            random::number().map_err(|errno| self.fault("naming an unfinished object", errno))?;
        Ok(Temp {
            work: self,
            name: format!("#{number:x}").into(),
            published: false,
        })
    }

    fn remove_left(&self) {
        let names = std::mem::take(&mut *self.left.lock());
        for name in names {
            self.remove(name);
        }
    }

    /// Removes an object of ours, or remembers that it has to be.
    fn remove(&self, name: OsString) {
        if let Err(errno) = tree::remove(self.fd.as_fd(), &name) {
            log::warn!("work: {}: left behind for now: {errno}", name.display());
            self.left.lock().push(name);
        }
    }

    /// A whiteout in the work directory, to be published.
    pub(super) fn whiteout(&self) -> Result<Temp<'_>, Fault> {
        let temp = self.temp()?;
        let mut shared = self.shared_whiteout.lock();
        if let Some(name) = &*shared {
            let linked = rustix::fs::linkat(&self.fd, name, &self.fd, &temp.name, AtFlags::empty());
            if linked.is_ok() {
                return Ok(temp);
            }
            // Too many links, or none possible here: from now on links of another one.
            if let Some(name) = shared.take() {
                self.remove(name);
            }
        }
        self.make_whiteout(&temp.name)?;
        let mut keep = self.temp()?;
        let linked =
            rustix::fs::linkat(&self.fd, &temp.name, &self.fd, &keep.name, AtFlags::empty());
        if linked.is_ok() {
            keep.published = true;
            *shared = Some(keep.name.clone());
        }
        Ok(temp)
    }

    /// Leaves a whiteout under a name that nothing has in `dir`.
    pub(super) fn leave_whiteout(&self, dir: BorrowedFd<'_>, name: &OsStr) -> Result<(), Fault> {
        if let Some(whiteout) = &*self.shared_whiteout.lock()
            && rustix::fs::linkat(&self.fd, whiteout, dir, name, AtFlags::empty()).is_ok()
        {
            return Ok(());
        }
        self.whiteout()?
            .publish(dir, name, RenameFlags::NOREPLACE)
            .map_err(|errno| Fault {
                errno,
                op: "leaving a whiteout",
                place: Place::Upper,
                name: Some(name.to_os_string()),
            })
    }

    fn make_whiteout(&self, name: &OsStr) -> Result<(), Fault> {
        rustix::fs::mknodat(&self.fd, name, FileType::CharacterDevice, Mode::empty(), 0)
            .map_err(|errno| self.fault("making a whiteout", errno))
    }

    /// Empties the work directory at the end of a mount.
    pub(super) fn sweep(&self) -> Result<(), Errno> {
        self.remove_left();
        if let Some(name) = self.shared_whiteout.lock().take() {
            rustix::fs::unlinkat(&self.fd, &name, AtFlags::empty())?;
        }
        Ok(())
    }

    /// Writes the file system of upper and work to the disk.
    pub(super) fn sync(&self) -> Result<(), Errno> {
        match self.durability {
            Durability::Synced | Durability::Strict => rustix::fs::syncfs(&self.base),
            Durability::Volatile => Ok(()),
        }
    }
}

impl Temp<'_> {
    pub(super) fn name(&self) -> &OsStr {
        &self.name
    }

    /// Where it can be worked on.
    pub(super) fn spot(&self) -> Spot {
        Spot::At {
            dir: self.work.dir.clone(),
            name: self.name.clone().into_boxed_os_str(),
        }
    }

    /// Changes places with what has this name in `dir`, which is then the object to be removed.
    pub(super) fn exchange(&self, dir: BorrowedFd<'_>, name: &OsStr) -> Result<(), Errno> {
        rustix::fs::renameat_with(&self.work.fd, &self.name, dir, name, RenameFlags::EXCHANGE)
    }

    /// Gives the finished object its name in `dir`. What stands there is treated as `flags` say.
    pub(super) fn publish(
        mut self,
        dir: BorrowedFd<'_>,
        name: &OsStr,
        flags: RenameFlags,
    ) -> Result<(), Errno> {
        rustix::fs::renameat_with(&self.work.fd, &self.name, dir, name, flags)?;
        // After an exchange the work directory holds what was replaced: still ours to remove.
        self.published = !flags.contains(RenameFlags::EXCHANGE);
        Ok(())
    }
}

impl Drop for Temp<'_> {
    fn drop(&mut self) {
        if !self.published {
            self.work.remove(std::mem::take(&mut self.name));
        }
    }
}

/// Keeps a second mount out of an upper or work directory, as long as its descriptor lives.
pub(super) fn lock(dir: &OwnedFd, path: &Path) -> Result<()> {
    match sys::lock::exclusively(dir) {
        Ok(()) => Ok(()),
        Err(Errno::WOULDBLOCK) => Err(Error::usage("locking the writable layer")
            .at(path)
            .because("it is in use by another overfall mount")
            .remedy("unmount that one, or give this one its own upperdir and workdir")),
        Err(errno) => Err(Error::system("locking the writable layer")
            .at(path)
            .errno(errno)),
    }
}

/// Removes the mark that a volatile mount leaves in `workdir`. That there is none is no error.
pub(crate) fn trust_again(workdir: &Path) -> Result<(), Errno> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let mut dir = rustix::fs::openat(CWD, workdir, flags, Mode::empty())?;
    for name in [WORK, INCOMPAT] {
        dir = match rustix::fs::openat(&dir, name, flags | OFlags::NOFOLLOW, Mode::empty()) {
            Err(Errno::NOENT) => return Ok(()),
            opened => opened?,
        };
    }
    match tree::remove(dir.as_fd(), OsStr::new("volatile")) {
        Err(Errno::NOENT) => Ok(()),
        removed => removed,
    }
}
