//! `StepCache`: a stack of layers, one for each step of a build, so that a build begins again where
//! something changed or failed.
//!
//! ```no_run
//! use std::path::Path;
//! use overfall::steps::{Begun, Digest, Stack, Step, StepCache};
//!
//! let cache = StepCache::open(".vagga/.layers")?;
//! let mut stack = Stack::empty(Digest::of(b"uids 0-65535"));
//! for (name, bytes) in [("untar", b"a".as_slice()), ("install", b"b")] {
//!     stack = match cache.begin(&stack, &Step::new(name, bytes))? {
//!         Begun::Hit(stack) => stack,
//!         Begun::Work(work) => {
//!             // … run the step in work.root() …
//!             std::fs::write(work.root().join(name), "done").unwrap();
//!             work.commit()?
//!         }
//!     };
//! }
//! cache.flatten(&stack, Path::new(".vagga/.roots/app/root"))?;
//! # Ok::<(), overfall::Error>(())
//! ```
//!
//! A layer is known by the digest of everything that its step's result depends on: the digest of
//! the layer below, chained with the step's own bytes. What those bytes are is the caller's
//! business: the step's text, contents of the files it reads, ids, environment.
//!
//! # On the disk
//!
//! ```text
//! DIR/format            what this directory is
//! DIR/lock              shared while something is being made in DIR/new, exclusive to sweep it
//! DIR/empty             the lowest layer of every stack
//! DIR/layers/NAME/d     what the step's overlay had in its upper directory
//! DIR/layers/NAME/manifest   digest, parent, name, counts and summary of what `d` holds, times
//! DIR/locks/NAME        shared by whoever uses the layer, exclusive for whoever makes or removes it
//! DIR/new/RANDOM/…      a layer that is being made; locked as long as its maker lives
//! ```
//!
//! NAME is the beginning of the digest, short, because the kernel before 6.8 has one page for the
//! names of all layers. Every lock is an advisory lock on an open file: it goes with the process
//! that held it, so what a killed build left is known for certain.

use std::ffi::{OsStr, OsString};
use std::fmt;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use crate::Result;
use crate::backend::{Backend, Carrier};
use crate::union::Owners;

/// What a layer is known by: 32 bytes (SHA-256).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Digest([u8; 32]);

impl Digest {
    /// Of some bytes: of what a stack begins with.
    pub fn of(bytes: &[u8]) -> Self {
        todo!()
    }

    /// Of this one followed by `bytes`: the digest of the layer that a step makes on this one.
    #[must_use]
    pub fn then(self, bytes: &[u8]) -> Self {
        todo!()
    }

    /// Reads what `Display` wrote: 64 hexadecimal digits.
    pub fn parse(text: &str) -> Option<Self> {
        todo!()
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        todo!()
    }
}

/// A step of a build: what it is called, and what its result depends on beside the layers below.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Step {
    name: String,
    bytes: Vec<u8>,
}

impl Step {
    /// `name` is for people to read and counts for nothing; `bytes` are what is digested.
    pub fn new(name: impl Into<String>, bytes: impl Into<Vec<u8>>) -> Self {
        Self {
            name: name.into(),
            bytes: bytes.into(),
        }
    }
}

/// How a layer came into a stack.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// It was there already.
    Hit,
    /// It was made.
    Built,
}

/// Directories that lie below a build's layers, and the layers; what a step is built on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stack {
    /// Topmost first.
    base: Vec<PathBuf>,
    base_digest: Digest,
    /// Bottom first.
    layers: Vec<(Digest, Outcome)>,
}

impl Stack {
    /// Nothing. `seed` stands for what all steps depend on.
    pub fn empty(seed: Digest) -> Self {
        Self::on([], seed)
    }

    /// Finished directories (topmost first), such as the root of a container that was built
    /// elsewhere. They must not change; `digest` stands for what is in them.
    pub fn on(base: impl IntoIterator<Item = PathBuf>, digest: Digest) -> Self {
        Self {
            base: base.into_iter().collect(),
            base_digest: digest,
            layers: Vec::new(),
        }
    }

    /// The digest of the topmost layer; of the base where there is none.
    pub fn digest(&self) -> Digest {
        self.layers.last().map_or(self.base_digest, |layer| layer.0)
    }

    /// The layers, the lowest first, and how each got here.
    pub fn layers(&self) -> &[(Digest, Outcome)] {
        &self.layers
    }

    /// The directories below the layers, topmost first.
    pub fn base(&self) -> &[PathBuf] {
        &self.base
    }
}

/// What [`StepCache::begin`] found.
#[derive(Debug)]
#[allow(clippy::large_enum_variant)] // one of them at a time
pub enum Begun {
    /// The step's layer is there and sound: the stack with it on top. The step needn't run.
    Hit(Stack),
    /// The step has to run, in this tree.
    Work(Work),
}

/// What a layer is, for a list.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Layer {
    /// What it is known by.
    pub digest: Digest,
    /// The digest of what it lies on.
    pub parent: Digest,
    /// The step's name.
    pub name: String,
    /// How many files, directories and whiteouts it holds: what the step added, changed or removed.
    pub files: u64,
    /// How many bytes are in its files.
    pub bytes: u64,
    /// When it was made.
    pub made: SystemTime,
    /// When a build last took it instead of running the step; `None` if none did.
    pub hit: Option<SystemTime>,
}

impl Layer {
    /// How the last build that had this step got the layer.
    pub fn outcome(&self) -> Outcome {
        match self.hit {
            Some(_) => Outcome::Hit,
            None => Outcome::Built,
        }
    }

    /// How long ago a build last made or took it.
    pub fn unused_for(&self) -> Duration {
        let last = self.hit.unwrap_or(self.made);
        // A clock that was set back makes it new.
        last.elapsed().unwrap_or_default()
    }
}

/// Whether [`StepCache::remove_unused`] really removes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Removal {
    /// It does.
    Real,
    /// It only says what it would remove.
    DryRun,
}

/// What [`StepCache::flatten`] wrote.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Flattened {
    /// Names: files, directories, links, devices.
    pub files: u64,
    /// Bytes of data in them.
    pub bytes: u64,
    /// How many of those files share their data with a layer's (reflinks), copied on the first
    /// write to either.
    pub shared: u64,
}

/// A directory with layers of builds.
#[derive(Debug)]
pub struct StepCache {
    dir: PathBuf,
    backend: Backend,
    owners: Owners,
}

impl StepCache {
    /// Opens the cache in `dir`, which is made if it isn't there, and removes what killed builds
    /// left in it; nothing that belongs to a living process.
    pub fn open(dir: impl AsRef<Path>) -> Result<Self> {
        todo!()
    }

    /// Chooses who carries the overlays; [`Backend::Auto`] unless told.
    #[must_use]
    pub fn backend(mut self, backend: Backend) -> Self {
        self.backend = backend;
        self
    }

    /// Says what is done about owners that can't be given; [`Owners::Real`] unless told. With
    /// [`Owners::FakeRoot`] the FUSE server carries every overlay, because nobody else reads its
    /// records, and the digests differ from those with real owners.
    #[must_use]
    pub fn owners(mut self, owners: Owners) -> Self {
        self.owners = owners;
        self
    }

    /// Where it is; absolute.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// The digest of the layer that `step` makes on `stack`.
    pub fn digest(&self, stack: &Stack, step: &Step) -> Digest {
        todo!()
    }

    /// Gives the layer of `step` on `stack` if it is there and sound, else a mounted tree to run
    /// the step in.
    ///
    /// While another process works on the same layer this waits for it, and then takes what it
    /// made. A layer that is damaged (a truncated manifest, a missing directory, files that were
    /// added, removed or changed as far as names, sizes and times tell) is removed, with a
    /// warning, and made again. A layer of `stack` that has gone is an error.
    pub fn begin(&self, stack: &Stack, step: &Step) -> Result<Begun> {
        todo!()
    }

    /// As [`StepCache::begin`], but only looks: no waiting, no work, nothing is removed.
    pub fn find(&self, stack: &Stack, step: &Step) -> Result<Option<Stack>> {
        todo!()
    }

    /// The stack whose topmost layer is `top`, as it was built: with its base and all layers in
    /// between. `None` when one of them isn't there any more.
    pub fn stack(&self, top: Digest) -> Result<Option<Stack>> {
        todo!()
    }

    /// Keeps a stack's layers from being removed, and says where they are. Whoever mounts them
    /// (a run in a container that isn't flattened) holds them as long as they are mounted.
    pub fn hold(&self, stack: &Stack) -> Result<Held> {
        todo!()
    }

    /// Writes the merged tree of `stack` as one plain directory, `dest`, which must not be there
    /// yet. Nothing has to be mounted.
    ///
    /// Modes, owners, attributes, ACLs, times, hard links and holes are kept, and devices where
    /// they may be made (else they are left out with a warning). Data is shared by reflinks where
    /// the file system has them, and copied elsewhere: never by hard links, because whoever
    /// writes to such a file writes into the layer. On an error `dest` isn't there.
    pub fn flatten(&self, stack: &Stack, dest: &Path) -> Result<Flattened> {
        todo!()
    }

    /// What is known of each layer of a stack, the lowest first.
    pub fn steps(&self, stack: &Stack) -> Result<Vec<Layer>> {
        todo!()
    }

    /// What is known of every layer, the oldest first. Damaged ones are left out.
    pub fn layers(&self) -> Result<Vec<Layer>> {
        todo!()
    }

    /// Removes the layers that no root needs, and that nobody has used for `unused_for`: neither
    /// one of `roots` nor below one of them, nor in use by a living process. Says which.
    pub fn remove_unused(
        &self,
        roots: &[Digest],
        unused_for: Duration,
        removal: Removal,
    ) -> Result<Vec<Layer>> {
        todo!()
    }
}

/// Layers that stay as long as this value does.
#[derive(Debug)]
pub struct Held {
    lowers: Vec<PathBuf>,
}

impl Held {
    /// The directories of the stack, topmost first, as [`crate::Overlay`] takes them. There are
    /// always two at least, so they can be mounted read-only, too. Mount them with `userxattr`.
    pub fn lowers(&self) -> &[PathBuf] {
        &self.lowers
    }
}

/// A mounted tree for a step to run in. Dropping it abandons it.
#[derive(Debug)]
pub struct Work {
    root: PathBuf,
    carrier: Carrier,
    digest: Digest,
}

impl Work {
    /// Where the merged tree is: in the calling process's mount namespace. It can be bound
    /// elsewhere or made a root; it must not be in use when the work is committed.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// Who carries it.
    pub fn carrier(&self) -> Carrier {
        self.carrier
    }

    /// What the layer will be known by.
    pub fn digest(&self) -> Digest {
        self.digest
    }

    /// Unmounts the tree and makes what was changed the next layer: when this returns it is on the
    /// disk, when it fails or is killed the cache is as it was.
    pub fn commit(self) -> Result<Stack> {
        todo!()
    }

    /// Unmounts the tree and removes all of it. A tree that is in use goes out of sight at once,
    /// and for good when its last user has gone.
    pub fn abandon(self) -> Result<()> {
        todo!()
    }
}
