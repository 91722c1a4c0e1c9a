//! The cache's directory: what is where, locks, and sweeping what killed builds left.

use std::collections::HashMap;
use std::ffi::OsStr;
use std::fs::{self, File};
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};

use parking_lot::Mutex;
use rustix::fs::{CWD, FlockOperation, Mode, OFlags, RenameFlags, flock, openat, renameat_with};

use super::Digest;
use super::manifest::is_name;
use crate::error::Context;
use crate::sys::{Errno, from_io, mountinfo, tree};
use crate::{Error, Result, backend};

/// What the file `format` says.
const FORMAT: &[u8] = b"overfall layers 1\n";

/// The cache's directory.
#[derive(Debug)]
pub(super) struct Room {
    pub(super) dir: PathBuf,
    /// Layers that were used through this value; they stay as long as it does.
    used: Mutex<HashMap<Digest, Lock>>,
}

/// How a layer is locked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Hold {
    /// With others who use it.
    Shared,
    /// Alone, to make or to remove it.
    Alone,
}

/// A lock of a layer, let go when it is dropped.
#[derive(Debug)]
pub(super) struct Lock {
    file: OwnedFd,
    owner: u32,
}

impl Drop for Lock {
    fn drop(&mut self) {
        // Processes that were forked meanwhile have copies of the descriptor, which would keep the
        // lock; theirs must not take it from us, either.
        if self.owner == std::process::id() {
            let _ = flock(&self.file, FlockOperation::Unlock);
        }
    }
}

const STEP: &str = "opening the cache of build steps";
const DIRECTORY: OFlags = OFlags::RDONLY
    .union(OFlags::DIRECTORY)
    .union(OFlags::CLOEXEC);

impl Room {
    /// Opens or makes it, and sweeps.
    pub(super) fn open(dir: &Path) -> Result<Self> {
        let io = |path: &Path| {
            let path = path.to_path_buf();
            move |error: std::io::Error| Error::system(STEP).at(path).errno(from_io(&error))
        };
        fs::create_dir_all(dir).map_err(io(dir))?;
        let dir = fs::canonicalize(dir).map_err(io(dir))?;
        let room = Self {
            dir,
            used: Mutex::default(),
        };
        room.claim()?;
        for name in ["empty", "empty/a", "empty/b", "layers", "locks", "new"] {
            let path = room.dir.join(name);
            match fs::create_dir(&path) {
                Err(error) if error.kind() != std::io::ErrorKind::AlreadyExists => {
                    return Err(io(&path)(error));
                }
                _ => {}
            }
        }
        room.sweep()?;
        Ok(room)
    }

    /// Nobody's home directory becomes a cache because of a slip.
    fn claim(&self) -> Result<()> {
        let format = self.dir.join("format");
        let failed = |error: std::io::Error| Error::system(STEP).at(&format).errno(from_io(&error));
        match fs::read(&format) {
            Ok(text) if text == FORMAT => return Ok(()),
            Ok(text) if !text.is_empty() => {
                return Err(Error::usage(STEP)
                    .at(&format)
                    .because("it was made by another version of overfall")
                    .remedy("remove the directory, or take another one"));
            }
            Ok(_) => {}
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                let mut names = fs::read_dir(&self.dir).map_err(failed)?;
                let foreign = names.any(|entry| {
                    entry.is_ok_and(|entry| {
                        !entry.file_name().as_encoded_bytes().starts_with(b"format")
                    })
                });
                // Another process may have claimed it in the meantime.
                if foreign && fs::read(&format).ok().as_deref() != Some(FORMAT) {
                    return Err(Error::usage(STEP)
                        .at(&self.dir)
                        .because("there is something else in it")
                        .remedy("take an empty directory, or one that isn't there yet"));
                }
            }
            Err(error) => return Err(failed(error)),
        }
        // Whole or not at all.
        let draft = self.dir.join(format!("format.{}", random()?));
        fs::write(&draft, FORMAT)
            .and_then(|()| fs::rename(&draft, &format))
            .map_err(failed)
    }

    pub(super) fn layer(&self, digest: Digest) -> PathBuf {
        self.dir.join("layers").join(digest.name())
    }

    /// The lowest layers of every stack: two, because the kernel wants two without an upper one.
    pub(super) fn bottom(&self) -> [PathBuf; 2] {
        ["a", "b"].map(|name| self.dir.join("empty").join(name))
    }

    /// The digests' names of all layers there are, damaged ones among them.
    pub(super) fn names(&self) -> Result<Vec<PathBuf>> {
        let layers = self.dir.join("layers");
        let failed = |error: std::io::Error| {
            Error::system("listing the layers")
                .at(&layers)
                .errno(from_io(&error))
        };
        let mut found = Vec::new();
        for entry in fs::read_dir(&layers).map_err(failed)? {
            let entry = entry.map_err(failed)?;
            if is_name(&entry.file_name()) {
                found.push(entry.path());
            }
        }
        found.sort();
        Ok(found)
    }

    /// Locks a layer that is there or is to be there; `None` when somebody else has it. Nobody
    /// waits.
    pub(super) fn lock(&self, name: &OsStr, hold: Hold) -> Result<Option<Lock>> {
        const STEP: &str = "locking a layer";
        let path = self.dir.join("locks").join(name);
        let how = match hold {
            Hold::Shared => FlockOperation::NonBlockingLockShared,
            Hold::Alone => FlockOperation::NonBlockingLockExclusive,
        };
        loop {
            let flags = OFlags::RDWR | OFlags::CREATE | OFlags::CLOEXEC;
            let file = openat(CWD, &path, flags, Mode::RUSR | Mode::WUSR).context(STEP, &path)?;
            match flock(&file, how) {
                Err(Errno::WOULDBLOCK) => return Ok(None),
                result => result.context(STEP, &path)?,
            }
            // Whoever removed the layer has removed the file too, perhaps just now.
            let ours = rustix::fs::fstat(&file).context(STEP, &path)?;
            let there = rustix::fs::stat(&path);
            if there.is_ok_and(|there| (there.st_dev, there.st_ino) == (ours.st_dev, ours.st_ino)) {
                return Ok(Some(Lock {
                    file,
                    owner: std::process::id(),
                }));
            }
        }
    }

    /// Locks a layer until this value goes; false when somebody is making or removing it.
    pub(super) fn keep(&self, digest: Digest) -> Result<bool> {
        if self.used.lock().contains_key(&digest) {
            return Ok(true);
        }
        let lock = self.lock(OsStr::new(&digest.name()), Hold::Shared)?;
        let got = lock.is_some();
        if let Some(lock) = lock {
            self.used.lock().insert(digest, lock);
        }
        Ok(got)
    }

    /// Takes [`Room::keep`] back.
    pub(super) fn let_go(&self, digest: Digest) {
        self.used.lock().remove(&digest);
    }

    /// As [`Room::keep`], for whoever has it alone.
    pub(super) fn keep_locked(&self, digest: Digest, lock: Lock) -> Result<()> {
        flock(&lock.file, FlockOperation::LockShared)
            .context("locking a layer", self.layer(digest))?;
        self.used.lock().insert(digest, lock);
        Ok(())
    }

    /// Lets a lock go, and removes its file where there is no such layer. Needs the lock alone.
    pub(super) fn forget(&self, name: &OsStr, lock: Lock) {
        if !self.dir.join("layers").join(name).exists() {
            // One that stays is used again.
            let _ = fs::remove_file(self.dir.join("locks").join(name));
        }
        drop(lock);
    }

    /// A fresh directory for a layer that is being made, locked until the descriptor is closed.
    pub(super) fn fresh(&self) -> Result<(PathBuf, OwnedFd)> {
        const STEP: &str = "making a directory for a layer";
        // The sweeper doesn't see it before it has its lock.
        let _gate = self.gate(FlockOperation::LockShared)?;
        let path = self.dir.join("new").join(random()?);
        fs::create_dir(&path)
            .map_err(|error| from_io(&error))
            .context(STEP, &path)?;
        let lock = openat(CWD, &path, DIRECTORY, Mode::empty()).context(STEP, &path)?;
        flock(&lock, FlockOperation::LockExclusive).context(STEP, &path)?;
        Ok((path, lock))
    }

    fn gate(&self, how: FlockOperation) -> Result<Option<OwnedFd>> {
        let path = self.dir.join("lock");
        let flags = OFlags::RDWR | OFlags::CREATE | OFlags::CLOEXEC;
        let gate = openat(CWD, &path, flags, Mode::RUSR | Mode::WUSR).context(STEP, &path)?;
        match rustix::io::retry_on_intr(|| flock(&gate, how)) {
            Ok(()) => Ok(Some(gate)),
            Err(Errno::WOULDBLOCK) => Ok(None),
            Err(errno) => Err(Error::system(STEP).at(&path).errno(errno)),
        }
    }

    /// Removes what is in `new` and belongs to nobody who lives.
    fn sweep(&self) -> Result<()> {
        let Some(_gate) = self.gate(FlockOperation::NonBlockingLockExclusive)? else {
            // Somebody is at it, or begins something. There is a next time.
            return Ok(());
        };
        let new = self.dir.join("new");
        let entries = fs::read_dir(&new)
            .map_err(|error| from_io(&error))
            .context(STEP, &new)?;
        for entry in entries.flatten() {
            let path = entry.path();
            let Ok(lock) = openat(CWD, &path, DIRECTORY | OFlags::NOFOLLOW, Mode::empty()) else {
                continue;
            };
            if flock(&lock, FlockOperation::NonBlockingLockExclusive).is_ok() {
                log::info!("{}: left by a build that was killed", path.display());
                if let Err(error) = clear(&path) {
                    log::warn!("{error}");
                }
            }
        }
        self.sweep_locks()
    }

    /// Removes the lock files of layers that were never finished.
    fn sweep_locks(&self) -> Result<()> {
        let locks = self.dir.join("locks");
        let entries = fs::read_dir(&locks)
            .map_err(|error| from_io(&error))
            .context(STEP, &locks)?;
        for name in entries.flatten().map(|entry| entry.file_name()) {
            if !self.dir.join("layers").join(&name).exists()
                && let Some(lock) = self.lock(&name, Hold::Alone)?
            {
                self.forget(&name, lock);
            }
        }
        Ok(())
    }

    /// Moves a layer out of sight, where it is removed. Needs its lock, alone.
    pub(super) fn discard(&self, layer: &Path) -> Result<()> {
        const STEP: &str = "removing a layer";
        let (grave, _lock) = self.fresh()?;
        match fs::rename(layer, grave.join("layer")) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                let _ = fs::remove_dir(&grave);
                Err(Error::system(STEP).at(layer).errno(from_io(&error)))
            }
            _ => clear(&grave),
        }
    }
}

/// Removes a directory of `new` with all that is in it. What a killed build had mounted in there
/// (and not in a namespace that ended with it) is unmounted first.
pub(super) fn clear(path: &Path) -> Result<()> {
    const STEP: &str = "removing what is left of a layer";
    for mount in mountinfo::read().unwrap_or_default().iter().rev() {
        if mount.point.starts_with(path) {
            backend::detach(&mount.point)?;
        }
    }
    remove(path).context(STEP, path)
}

/// Removes a name with all below it; one that isn't there is fine.
pub(super) fn remove(path: &Path) -> Result<(), Errno> {
    let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else {
        return Err(Errno::INVAL);
    };
    let parent = openat(CWD, parent, DIRECTORY, Mode::empty())?;
    tree::remove(parent.as_fd(), name)
}

/// Renames a directory to a name that nobody has.
pub(super) fn rename(from: &Path, to: &Path) -> Result<(), Errno> {
    match renameat_with(CWD, from, CWD, to, RenameFlags::NOREPLACE) {
        // A file system that doesn't know the flag. A directory that has something in it isn't
        // replaced in any case.
        Err(Errno::INVAL) => rustix::fs::rename(from, to),
        result => result,
    }
}

/// Writes a directory's names through to the disk.
pub(super) fn sync_directory(path: &Path) -> Result<(), Errno> {
    let directory = File::open(path).map_err(|error| from_io(&error))?;
    rustix::fs::fsync(&directory)
}

pub(super) fn random() -> Result<String> {
    let number = crate::sys::random::number();
    number
        .map(|number| format!("{number:016x}"))
        .map_err(|errno| Error::system("getting a random number").errno(errno))
}
