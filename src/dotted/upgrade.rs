//! From the fallback form to the kernel's.
//!
//! First everything that the kernel's form needs is added, then what the fallback form had is
//! checked against that and removed, then all is looked at once more; the disk has each of these
//! before the next begins. While it lasts the layer's root is marked as being on its way, which no
//! mount of ours takes, and the work directory still keeps the kernel's away. Killed at any moment,
//! it can be begun again.

use std::ffi::{OsStr, OsString};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{
    AtFlags, CWD, FileType, Mode, OFlags, RenameFlags, Stat, XattrFlags, linkat, mkdirat, mknodat,
    openat, statat, unlinkat,
};

use super::fit::lacks;
use super::{Guard, Marked, hidden_by, is_opaque, marked, read_mark};
use crate::error::Context;
use crate::format::dotted::{MARK, Name, OPAQUE, SCRATCH, UPGRADING, read};
use crate::format::{self, XattrNamespace};
use crate::sys::privilege::Privilege;
use crate::sys::times::times_of;
use crate::sys::{self, Errno, tree, xattr};
use crate::{Error, Result};

/// What a conversion found and did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Upgraded {
    /// Nothing: it was in the kernel's form.
    WasAlready,
    /// It is in the kernel's form now.
    Now {
        /// Whiteouts that were made.
        whiteouts: u64,
        /// Directories that were marked opaque.
        opaque: u64,
    },
}

const STEP: &str = "upgrading a layer";
const DIRECTORY: OFlags = OFlags::RDONLY
    .union(OFlags::DIRECTORY)
    .union(OFlags::NOFOLLOW)
    .union(OFlags::CLOEXEC);

/// Brings the layer `upper` from the fallback form to the kernel's, or ends that where it was
/// begun, and makes sure of it. Changes nothing where the file system can't hold the kernel's form.
/// `work` is the layer's work directory, if it has one.
pub fn upgrade(upper: &Path, work: Option<&Path>) -> Result<Upgraded> {
    let root = take(upper)?;
    let base = work.map(take).transpose()?;
    let guarded = match (&base, work) {
        (Some(base), Some(work)) => guard(base, work, (&root, upper))?,
        _ => false,
    };
    let now = marked(root.as_fd()).context(STEP, upper)?;
    let before = rustix::fs::fstat(&root).context(STEP, upper)?;
    if now == Marked::No && !guarded {
        return Ok(Upgraded::WasAlready);
    }
    let mut job = Job {
        root,
        upper,
        namespace: XattrNamespace::User,
        whiteouts: 0,
        opaque: 0,
    };
    if now != Marked::No {
        job.prepare(now)?;
        job.each_directory(Job::add)?;
        job.sync()?;
        job.each_directory(Job::check_and_remove)?;
        job.sync()?;
    }
    job.each_directory(Job::look_again)?;
    if now != Marked::No {
        job.end(&before)?;
    }
    if let (Some(base), Some(work)) = (&base, work) {
        Guard::clear(base.as_fd()).context(STEP, work)?;
    }
    Ok(Upgraded::Now {
        whiteouts: job.whiteouts,
        opaque: job.opaque,
    })
}

/// Opens a directory and keeps every mount out of it.
fn take(path: &Path) -> Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let fd = openat(CWD, path, flags, Mode::empty())
        .map_err(|errno| Error::usage(STEP).at(path).errno(errno))?;
    match sys::lock::exclusively(&fd) {
        Ok(()) => Ok(fd),
        Err(Errno::WOULDBLOCK) => Err(Error::usage(STEP)
            .at(path)
            .because("it is in use by an overfall mount")
            .remedy("unmount that first")),
        Err(errno) => Err(Error::system(STEP).at(path).errno(errno)),
    }
}

/// Whether the work directory says that its upper is in the fallback form.
fn guard(base: &OwnedFd, path: &Path, (root, upper): (&OwnedFd, &Path)) -> Result<bool> {
    let identity = |fd: &OwnedFd, path: &Path| {
        let stat = rustix::fs::fstat(fd).context(STEP, path)?;
        Ok::<_, Error>((stat.st_dev, stat.st_ino))
    };
    let (of_work, of_upper) = (identity(base, path)?, identity(root, upper)?);
    if of_work == of_upper || of_work.0 != of_upper.0 {
        return Err(Error::usage(STEP).at(path).because(format!(
            "it isn't the work directory of {}",
            upper.display()
        )));
    }
    match Guard::of(base.as_fd()).context(STEP, path)? {
        Guard::None => Ok(false),
        Guard::Dotted => Ok(true),
        Guard::Other(feature) => Err(Error::usage(STEP).at(path).because(format!(
            "the upper has the feature `{}`, which forbids using it",
            feature.display()
        ))),
    }
}

struct Job<'p> {
    root: OwnedFd,
    upper: &'p Path,
    namespace: XattrNamespace,
    whiteouts: u64,
    opaque: u64,
}

/// One directory of the layer.
struct Here<'h> {
    fd: &'h OwnedFd,
    /// Below the layer's root.
    path: &'h Path,
    names: &'h [OsString],
    /// Whether it hides all that is below it.
    opaque: bool,
}

impl Job<'_> {
    /// Proves that the kernel's form is possible here and says that the layer is on its way.
    fn prepare(&mut self, now: Marked) -> Result<()> {
        let name = match now {
            Marked::Upgrading => UPGRADING,
            Marked::Dotted | Marked::No => MARK,
        };
        let at = self.upper.join(name);
        let namespace = read_mark(self.root.as_fd(), name).context(STEP, &at)?;
        self.namespace = namespace.ok_or_else(|| {
            Error::usage(STEP)
                .at(&at)
                .because("it doesn't say how the layer was written")
        })?;
        let made = match mkdirat(&self.root, SCRATCH, Mode::RWXU) {
            Ok(()) | Err(Errno::EXIST) => openat(&self.root, SCRATCH, DIRECTORY, Mode::empty()),
            Err(errno) => Err(errno),
        };
        let scratch = made.map_err(|errno| self.failed(errno, Path::new(SCRATCH)))?;
        if let Some(lack) = lacks(scratch.as_fd(), self.namespace).context(STEP, self.upper)? {
            if now == Marked::Dotted {
                self.remove_scratch()?;
            }
            let error = Error::system(STEP)
                .at(self.upper)
                .because(format!("the kernel's form isn't possible here: {lack}"));
            let is_root = Privilege::current() == Privilege::Machine;
            return Err(match self.namespace {
                XattrNamespace::Trusted if !is_root => {
                    error.remedy("the layer is root's: upgrade it as root")
                }
                XattrNamespace::Trusted | XattrNamespace::User => error.remedy(
                    "upgrade it on another kernel, or a copy (`cp -a`) on another file system",
                ),
            });
        }
        let renamed = rustix::fs::renameat_with(
            &self.root,
            MARK,
            &self.root,
            UPGRADING,
            RenameFlags::empty(),
        );
        match renamed {
            Ok(()) => {}
            Err(Errno::NOENT) if now == Marked::Upgrading => {}
            Err(errno) => return Err(self.failed(errno, Path::new(MARK))),
        }
        rustix::fs::fsync(&self.root).context(STEP, self.upper)
    }

    /// Takes the last marks off.
    fn end(&self, before: &Stat) -> Result<()> {
        self.remove_scratch()?;
        self.sync()?;
        unlinkat(&self.root, UPGRADING, AtFlags::empty())
            .map_err(|errno| self.failed(errno, Path::new(UPGRADING)))?;
        rustix::fs::futimens(&self.root, &times_of(before)).context(STEP, self.upper)?;
        self.sync()
    }

    fn remove_scratch(&self) -> Result<()> {
        tree::remove(self.root.as_fd(), OsStr::new(SCRATCH))
            .map_err(|errno| self.failed(errno, Path::new(SCRATCH)))
    }

    fn sync(&self) -> Result<()> {
        rustix::fs::syncfs(&self.root).context("writing to the disk", self.upper)
    }

    fn failed(&self, errno: Errno, path: &Path) -> Error {
        let error = Error::system(STEP).at(self.upper.join(path)).errno(errno);
        match errno {
            Errno::ACCESS | Errno::PERM => error.remedy(
                "run it as whoever wrote the layer: root, or root of the same user namespace \
                 (`unshare --map-root-user`)",
            ),
            _ => error,
        }
    }

    /// Calls `step` for every directory of the layer, the upper ones first. Their times stay.
    fn each_directory(&mut self, step: fn(&mut Self, &Here<'_>) -> Result<()>) -> Result<()> {
        let mut todo = vec![PathBuf::new()];
        while let Some(path) = todo.pop() {
            let fail = |job: &Self, errno| job.failed(errno, &path);
            let fd = tree::open_below(&self.root, &path).map_err(|errno| fail(self, errno))?;
            let before = rustix::fs::fstat(&fd).map_err(|errno| fail(self, errno))?;
            let mut names = Vec::new();
            let mut inner = Vec::new();
            tree::for_each(fd.as_fd(), |name, file_type, _| {
                let is_dir = matches!(file_type, FileType::Directory | FileType::Unknown);
                if is_dir && read(name) == Name::Plain {
                    inner.push(path.join(name));
                }
                names.push(name.to_os_string());
            })
            .map_err(|errno| fail(self, errno))?;
            let opaque = is_opaque(fd.as_fd()).map_err(|errno| fail(self, errno))?
                || self.has_opaque(fd.as_fd());
            let here = Here {
                fd: &fd,
                path: &path,
                names: &names,
                opaque,
            };
            step(self, &here)?;
            let now = rustix::fs::fstat(&fd).map_err(|errno| fail(self, errno))?;
            if (now.st_mtime, now.st_mtime_nsec) != (before.st_mtime, before.st_mtime_nsec) {
                rustix::fs::futimens(&fd, &times_of(&before)).map_err(|errno| fail(self, errno))?;
            }
            for path in inner {
                // Some file systems don't tell the type.
                if self.is_dir(&path)? {
                    todo.push(path);
                }
            }
        }
        Ok(())
    }

    fn is_dir(&self, path: &Path) -> Result<bool> {
        match tree::open_below(&self.root, path) {
            Ok(_) => Ok(true),
            Err(Errno::NOTDIR | Errno::LOOP | Errno::NOENT) => Ok(false),
            Err(errno) => Err(self.failed(errno, path)),
        }
    }

    fn has_opaque(&self, dir: BorrowedFd<'_>) -> bool {
        xattr::fget(dir, self.namespace.opaque()).is_ok_and(|value| value == format::OPAQUE)
    }

    /// Adds what the kernel's form says by devices and attributes.
    fn add(&mut self, here: &Here<'_>) -> Result<()> {
        let found = whiteouts(here).map_err(|errno| self.failed(errno, here.path))?;
        for (_, hidden) in &found {
            let path = here.path.join(hidden);
            let fail = |job: &Self, errno| job.failed(errno, &path);
            match look(here.fd, hidden).map_err(|errno| fail(self, errno))? {
                // Nothing is there that a whiteout in there could hide.
                None if here.opaque => {}
                None => {
                    self.make_whiteout(here.fd, hidden)
                        .map_err(|errno| fail(self, errno))?;
                    self.whiteouts += 1;
                }
                Some(stat) if is_dir(&stat) => {
                    openat(here.fd, hidden, DIRECTORY, Mode::empty())
                        .and_then(|dir| self.make_opaque(dir.as_fd()))
                        .map_err(|errno| fail(self, errno))?;
                }
                Some(_) => {}
            }
        }
        if here.names.iter().any(|name| name == OPAQUE) {
            self.make_opaque(here.fd.as_fd())
                .map_err(|errno| self.failed(errno, here.path))?;
        }
        Ok(())
    }

    fn make_opaque(&mut self, dir: BorrowedFd<'_>) -> std::result::Result<(), Errno> {
        if !self.has_opaque(dir) {
            let attr = self.namespace.opaque();
            rustix::fs::fsetxattr(dir, attr, format::OPAQUE, XattrFlags::empty())?;
            self.opaque += 1;
        }
        Ok(())
    }

    /// A link of one whiteout for all, as the kernel makes them, or one of its own.
    fn make_whiteout(&self, dir: &OwnedFd, name: &OsStr) -> std::result::Result<(), Errno> {
        const SHARED: &str = "whiteout";
        let scratch = openat(&self.root, SCRATCH, DIRECTORY, Mode::empty())?;
        let make = |dir: BorrowedFd<'_>, name: &OsStr| {
            mknodat(dir, name, FileType::CharacterDevice, Mode::empty(), 0)
        };
        match make(scratch.as_fd(), OsStr::new(SHARED)) {
            Ok(()) | Err(Errno::EXIST) => {}
            Err(errno) => return Err(errno),
        }
        linkat(&scratch, SHARED, dir, name, AtFlags::empty()).or_else(|_| make(dir.as_fd(), name))
    }

    /// Checks that the kernel's form says all that the fallback form does, and removes the latter.
    fn check_and_remove(&mut self, here: &Here<'_>) -> Result<()> {
        let fail = |job: &Self, errno, name: &OsStr| job.failed(errno, &here.path.join(name));
        let found = whiteouts(here).map_err(|errno| fail(self, errno, OsStr::new("")))?;
        for (name, hidden) in &found {
            let there = look(here.fd, hidden).map_err(|errno| fail(self, errno, hidden))?;
            let said = match there {
                None => here.opaque,
                Some(stat) if is_dir(&stat) => {
                    let dir = openat(here.fd, hidden, DIRECTORY, Mode::empty())
                        .map_err(|errno| fail(self, errno, hidden))?;
                    self.has_opaque(dir.as_fd())
                }
                Some(_) => true,
            };
            if !said {
                return Err(self.changed(&here.path.join(hidden)));
            }
            unlinkat(here.fd, name, AtFlags::empty()).map_err(|errno| fail(self, errno, name))?;
        }
        if here.names.iter().any(|name| name == OPAQUE) {
            if !self.has_opaque(here.fd.as_fd()) {
                return Err(self.changed(here.path));
            }
            unlinkat(here.fd, OPAQUE, AtFlags::empty())
                .map_err(|errno| fail(self, errno, OsStr::new(OPAQUE)))?;
        }
        Ok(())
    }

    /// Makes sure that nothing is left of the fallback form.
    fn look_again(&mut self, here: &Here<'_>) -> Result<()> {
        let is_root = here.path.as_os_str().is_empty();
        let ours = |name: &OsString| is_root && (name == UPGRADING || name == SCRATCH);
        let left = here
            .names
            .iter()
            .find(|name| read(name) != Name::Plain && !ours(name));
        match left {
            None => Ok(()),
            Some(name) => Err(Error::system(STEP)
                .at(self.upper.join(here.path).join(name))
                .because("a name that overfall hasn't made, and that means nothing")
                .remedy("remove it or give it another name, and begin again")),
        }
    }

    fn changed(&self, path: &Path) -> Error {
        Error::system(STEP)
            .at(self.upper.join(path))
            .because("it isn't as it was left: somebody changes the layer meanwhile")
            .remedy("begin again when nobody does")
    }
}

/// The names in a directory that hide others, with those.
fn whiteouts(here: &Here<'_>) -> std::result::Result<Vec<(OsString, OsString)>, Errno> {
    let found = here.names.iter().map(|name| {
        let hidden = hidden_by(here.fd.as_fd(), name)?;
        Ok(hidden.map(|hidden| (name.clone(), hidden)))
    });
    found.filter_map(std::result::Result::transpose).collect()
}

fn look(dir: &OwnedFd, name: &OsStr) -> std::result::Result<Option<Stat>, Errno> {
    match statat(dir, name, AtFlags::SYMLINK_NOFOLLOW) {
        Ok(stat) => Ok(Some(stat)),
        Err(Errno::NOENT) => Ok(None),
        Err(errno) => Err(errno),
    }
}

fn is_dir(stat: &Stat) -> bool {
    FileType::from_raw_mode(stat.st_mode) == FileType::Directory
}
