//! Putting a tree together out of sight: in a mount namespace of a thread's own, from where it is
//! moved to its place as a whole.
//!
//! Nobody sees the tree half done, and whatever happens to this process, nothing is left: the
//! namespace ends with its thread, and with it every mount in there.

use std::fs;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::thread;

use nix::sched::{CloneFlags, unshare};
use rustix::fs::CWD;
use rustix::mount::{
    MountFlags, MountPropagationFlags, MoveMountFlags, OpenTreeFlags, UnmountFlags, mount,
    mount_change, move_mount, open_tree, unmount,
};

use crate::error::Context;
use crate::sys::{Errno, from_io, from_nix};
use crate::{Error, Result};

const STEP: &str = "preparing a snapshot";

/// Where a tree is put together. Everything is below the snapshot's target, which nobody else sees
/// covered.
#[derive(Debug)]
pub(super) struct Stage {
    top: PathBuf,
}

impl Stage {
    /// Runs `work` on a stage, and gives back what it made there and the tree that it left in
    /// [`Stage::merged`], which is mounted nowhere.
    pub(super) fn put_together<T: Send>(
        source: &Path,
        target: &Path,
        work: impl FnOnce(&Self) -> Result<T> + Send,
    ) -> Result<(T, OwnedFd)> {
        thread::scope(|scope| {
            let thread = scope.spawn(|| {
                let stage = Self::enter(source, target)?;
                let made = work(&stage)?;
                let tree = clone(&stage.merged(), Below::Excluded)
                    .context("taking the finished tree", target)?;
                stage.strike();
                Ok((made, tree))
            });
            thread
                .join()
                .unwrap_or_else(|_| Err(Error::system(STEP).because("it ended before it was done")))
        })
    }

    /// Moves the calling thread into a namespace of its own, and makes the stage there.
    fn enter(source: &Path, target: &Path) -> Result<Self> {
        unshare(CloneFlags::CLONE_NEWNS)
            .map_err(from_nix)
            .context("making a mount namespace", target)?;
        keep_apart(target)?;
        let lower = clone(source, Below::Excluded)
            // This user namespace may not see what is beneath the mounts below it.
            .or_else(|_| clone(source, Below::Included))
            .map_err(|errno| no_clone(source, errno))?;
        let flags = MountFlags::NOSUID | MountFlags::NODEV;
        mount("tmpfs", target, "tmpfs", flags, Some(c"mode=700")).context(STEP, target)?;
        let stage = Self {
            top: target.to_path_buf(),
        };
        for place in [stage.lower(), stage.merged(), stage.changes()] {
            fs::create_dir(&place)
                .map_err(|error| from_io(&error))
                .context(STEP, &place)?;
        }
        place(&lower, &stage.lower()).context(STEP, source)?;
        Ok(stage)
    }

    /// What is to be shown.
    pub(super) fn lower(&self) -> PathBuf {
        self.top.join("lower")
    }

    /// Where the finished tree has to be mounted.
    pub(super) fn merged(&self) -> PathBuf {
        self.top.join("merged")
    }

    /// A place for the tmpfs with the changes.
    pub(super) fn changes(&self) -> PathBuf {
        self.top.join("changes")
    }

    /// Takes it all down but what is held otherwise. The namespace's end would do it, too, only
    /// later.
    fn strike(&self) {
        if let Err(errno) = unmount(&self.top, UnmountFlags::DETACH) {
            log::debug!("{}: {errno}", self.top.display());
        }
    }
}

/// Whether mounts below a directory belong to it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Below {
    Included,
    Excluded,
}

/// A mount of a directory that is nowhere yet.
fn clone(path: &Path, below: Below) -> Result<OwnedFd, Errno> {
    let mut flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    if below == Below::Included {
        flags |= OpenTreeFlags::AT_RECURSIVE;
    }
    open_tree(CWD, path, flags)
}

/// Mounts what [`clone`] or [`Stage::put_together`] gave.
pub(super) fn place(tree: &OwnedFd, target: &Path) -> Result<(), Errno> {
    let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH | MoveMountFlags::MOVE_MOUNT_T_SYMLINKS;
    move_mount(tree, "", CWD, target, flags)
}

/// Nothing that happens on the stage may be seen outside.
fn keep_apart(target: &Path) -> Result<()> {
    let private = MountPropagationFlags::PRIVATE | MountPropagationFlags::REC;
    // In a chroot "/" is no mount point; the topmost one above the target has it and its like.
    let above: Vec<&Path> = target.ancestors().collect();
    let mut last = Errno::INVAL;
    for path in above.into_iter().rev() {
        match mount_change(path, private) {
            Ok(()) => return Ok(()),
            Err(errno) => last = errno,
        }
    }
    Err(Error::system("keeping the snapshot's mounts apart")
        .at(target)
        .errno(last))
}

fn no_clone(source: &Path, errno: Errno) -> Error {
    let error = Error::system(STEP).at(source).errno(errno);
    match errno {
        Errno::NOSYS => error
            .because("this kernel can't put mounts together out of sight")
            .remedy("boot Linux 5.2 or later"),
        _ => error,
    }
}
