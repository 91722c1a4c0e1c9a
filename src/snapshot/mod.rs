//! `Snapshot`: a writable, throw-away copy of a directory in its place.
//!
//! The changes are kept in memory, in a tmpfs of a given size, so what they may use is bounded and
//! what was there before costs nothing. The kernel's overlay carries it where a trial over these
//! very layers passes, else the FUSE server, else everything is copied into the tmpfs. What a
//! program finds there is the same in all three cases.
//!
//! ```no_run
//! use overfall::Snapshot;
//!
//! let snapshot = Snapshot::of("/var/lib/mysql").size(200 << 20).mount()?;
//! println!("made by {}", snapshot.means());
//! // … run the database; everything it writes goes with the snapshot …
//! snapshot.unmount()?;
//! # Ok::<(), overfall::Error>(())
//! ```
//!
//! Nothing but the merged tree shows in the mount table: it is put together in a mount namespace
//! of its own, where it is invisible and from where nothing can be left behind, and then moved to
//! its place in one step.

mod make;
mod owners;
mod stage;

use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, Mode, OFlags, openat};

use crate::backend::Mounted;
use crate::error::Context;
use crate::flatten::Owner;
use crate::sys::from_io;
use crate::sys::privilege::Privilege;
use crate::{Error, Result};
use make::{Product, Wish};
use stage::Stage;

/// How much may be written unless told: 100 MiB.
pub const DEFAULT_SIZE: u64 = 100 << 20;

/// A snapshot to be made.
#[derive(Debug, Clone)]
pub struct Snapshot {
    target: PathBuf,
    source: Option<PathBuf>,
    size: u64,
    uid: Option<u32>,
    gid: Option<u32>,
    means: Means,
    progress: Progress,
}

/// How a snapshot is wanted to be made.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Means {
    /// The first of the others that works here.
    #[default]
    Auto,
    /// The kernel's overlay or an error.
    Kernel,
    /// The FUSE server or an error.
    Fuse,
    /// A copy of everything.
    Copy,
}

/// How a snapshot was made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Made {
    /// The kernel's overlay carries it.
    Kernel,
    /// The FUSE server carries it.
    Fuse,
    /// It is a copy.
    Copy,
}

impl fmt::Display for Made {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Made::Kernel => "kernel",
            Made::Fuse => "fuse",
            Made::Copy => "copy",
        })
    }
}

/// Whether somebody watches.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Progress {
    /// A copy that takes more than a second shows a bar on stderr, if that is a terminal.
    #[default]
    OnTerminal,
    /// Nothing is shown.
    Silent,
}

impl Snapshot {
    /// A snapshot of what is in the directory `target`, in its place.
    pub fn of(target: impl AsRef<Path>) -> Self {
        Self {
            target: target.as_ref().to_path_buf(),
            source: None,
            size: DEFAULT_SIZE,
            uid: None,
            gid: None,
            means: Means::Auto,
            progress: Progress::OnTerminal,
        }
    }

    /// How many bytes may be written; [`DEFAULT_SIZE`] unless told. A copy must fit into them as a
    /// whole, an overlay's changes only: whoever goes past them gets `ENOSPC`, and all else stays
    /// usable. Rounded up to whole pages; 0 is an error.
    #[must_use]
    pub fn size(mut self, bytes: u64) -> Self {
        self.size = bytes;
        self
    }

    /// Takes what is in the directory `source` instead (of another container, for instance). Mode
    /// and owner of the root of the tree remain those of the target.
    #[must_use]
    pub fn source(mut self, source: impl AsRef<Path>) -> Self {
        self.source = Some(source.as_ref().to_path_buf());
        self
    }

    /// Makes everything in the tree, and its root, belong to this user; as it is unless told.
    #[must_use]
    pub fn owner_uid(mut self, uid: u32) -> Self {
        self.uid = Some(uid);
        self
    }

    /// Makes everything in the tree, and its root, belong to this group; as it is unless told.
    #[must_use]
    pub fn owner_gid(mut self, gid: u32) -> Self {
        self.gid = Some(gid);
        self
    }

    /// Chooses how it is made; [`Means::Auto`] unless told.
    #[must_use]
    pub fn means(mut self, means: Means) -> Self {
        self.means = means;
        self
    }

    /// Chooses whether a copy shows its progress; [`Progress::OnTerminal`] unless told.
    #[must_use]
    pub fn progress(mut self, progress: Progress) -> Self {
        self.progress = progress;
        self
    }

    /// Makes it. Needs the right to mount: the machine's root, or root of a user namespace.
    ///
    /// Only the calling process's mount namespace changes, and only when everything is ready.
    pub fn mount(self) -> Result<MountedSnapshot> {
        if self.size == 0 {
            return Err(Error::usage(STEP)
                .at(&self.target)
                .because("a size of 0 has no room for anything"));
        }
        let target = directory(&self.target, "the target")?;
        let source = match &self.source {
            Some(source) => directory(source, "the source")?,
            None => target.clone(),
        };
        if target.parent().is_none() {
            return Err(Error::usage(STEP)
                .at(&target)
                .because("the root can't be replaced while this process is in it"));
        }
        if Privilege::current() == Privilege::None {
            return Err(Error::usage(STEP)
                .at(&target)
                .because("only root may mount")
                .remedy("make it as root, or in a user namespace"));
        }
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let wish = Wish {
            size: self.size,
            owner: Owner {
                uid: self.uid,
                gid: self.gid,
            },
            means: self.means,
            progress: self.progress,
            target: target.clone(),
            like: openat(CWD, &target, flags, Mode::empty()).context(STEP, &target)?,
        };
        let (product, tree) = Stage::put_together(&source, &target, |stage| wish.make(stage))?;
        let Product {
            made,
            mounted,
            why_not,
        } = product;
        let mounted = mounted.moved_to(target.clone());
        if let Err(errno) = stage::place(&tree, &target) {
            // With its last descriptor the tree goes.
            mounted.forget();
            return Err(Error::system(STEP).at(&target).errno(errno));
        }
        Ok(MountedSnapshot {
            made,
            mounted,
            why_not,
        })
    }
}

/// A snapshot that is there. Dropping it unmounts, and with the mount all changes go;
/// [`MountedSnapshot::forget`] leaves it to its mount namespace.
#[derive(Debug)]
pub struct MountedSnapshot {
    made: Made,
    mounted: Mounted,
    why_not: Vec<String>,
}

const STEP: &str = "making a snapshot";

/// Its name from the root.
fn directory(path: &Path, what: &str) -> Result<PathBuf> {
    let found = fs::canonicalize(path).map_err(|error| {
        Error::usage(STEP)
            .at(path)
            .because(format!("{what} can't be reached"))
            .errno(from_io(&error))
    })?;
    if found.is_dir() {
        return Ok(found);
    }
    Err(Error::usage(STEP)
        .at(path)
        .because(format!("{what} is not a directory")))
}

impl MountedSnapshot {
    /// How it was made.
    pub fn means(&self) -> Made {
        self.made
    }

    /// Where it is.
    pub fn target(&self) -> &Path {
        self.mounted.target()
    }

    /// Why the means that [`Means::Auto`] tried before this one don't work here, one line each.
    pub fn why_not(&self) -> &[String] {
        &self.why_not
    }

    /// Unmounts it and, with FUSE, waits until the server has gone. One that is in use stays, with
    /// an error.
    pub fn unmount(self) -> Result<()> {
        self.mounted.unmount()
    }

    /// Keeps it beyond this value: it goes with the last mount namespace that has it.
    pub fn forget(self) {
        self.mounted.forget();
    }
}
