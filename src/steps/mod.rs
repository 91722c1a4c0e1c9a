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

mod digest;
mod draft;
mod manifest;
mod remove;
mod room;
mod stack;
mod summary;
mod work;

use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use crate::backend::Backend;
use crate::error::Context;
use crate::flatten::{Flatten, Meter, Owner};
use crate::format::XattrNamespace;
use crate::options::MAX_LOWER;
use crate::sys::{Errno, from_io};
use crate::union::Owners;
use crate::{Error, Result};

pub use digest::Digest;
pub use stack::{Outcome, Stack, Step};
pub use work::Work;

use draft::Draft;
use manifest::{DATA, Manifest, mark_hit};
use room::{Hold, Lock, Room};
use summary::Summary;
use work::Plan;

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
    room: Arc<Room>,
    backend: Backend,
    owners: Owners,
}

impl StepCache {
    /// Opens the cache in `dir`, which is made if it isn't there, and removes what killed builds
    /// left in it; nothing that belongs to a living process.
    ///
    /// Layers that are found or made through this value stay as long as it does, whoever removes
    /// unused ones.
    pub fn open(dir: impl AsRef<Path>) -> Result<Self> {
        Ok(Self {
            room: Arc::new(Room::open(dir.as_ref())?),
            backend: Backend::Auto,
            owners: Owners::Real,
        })
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
        &self.room.dir
    }

    /// The digest of the layer that `step` makes on `stack`.
    pub fn digest(&self, stack: &Stack, step: &Step) -> Digest {
        let kind: &[u8] = match self.owners {
            Owners::FakeRoot => b"recorded owners\0",
            Owners::Real | Owners::Given { .. } => b"",
        };
        stack.digest().then(&[kind, &step.bytes].concat())
    }

    /// Gives the layer of `step` on `stack` if it is there and sound, else a mounted tree to run
    /// the step in.
    ///
    /// While another process works on the same layer this waits for it, and then takes what it
    /// made. A layer that is damaged (a truncated manifest, a missing directory, files that were
    /// added, removed or changed as far as names, sizes and times tell) is removed, with a
    /// warning, and made again. A layer of `stack` that has gone is an error.
    pub fn begin(&self, stack: &Stack, step: &Step) -> Result<Begun> {
        let held = self.hold(stack)?;
        let digest = self.digest(stack, step);
        let lock = match self.take_or_lock(stack, digest)? {
            Turn::Taken(stack) => {
                mark_hit(&self.room.layer(digest));
                return Ok(Begun::Hit(stack));
            }
            Turn::Ours(lock) => lock,
        };
        // Whoever had the lock may have made it.
        let layer = self.room.layer(digest);
        match self.examine(digest) {
            Found::Sound => {
                mark_hit(&layer);
                self.room.keep_locked(digest, lock)?;
                return Ok(Begun::Hit(stack.with(digest, Outcome::Hit)));
            }
            Found::Damaged(why) => {
                log::warn!("the layer of {:?} is made again: {why}", step.name);
                self.room.discard(&layer)?;
            }
            Found::Nothing => {}
        }
        let plan = Plan {
            stack,
            digest,
            name: &step.name,
            lowers: held.lowers(),
            backend: self.wanted_backend(),
            owners: self.owners,
        };
        Work::begin(&self.room, &plan, lock).map(Begun::Work)
    }

    /// As [`StepCache::begin`], but only looks: no waiting, no work, nothing is removed, and the layer
    /// doesn't count as taken.
    pub fn find(&self, stack: &Stack, step: &Step) -> Result<Option<Stack>> {
        self.take(stack, self.digest(stack, step))
    }

    /// The stack whose topmost layer is `top`, as it was built: with its base and all layers in
    /// between. `None` when one of them isn't there any more.
    pub fn stack(&self, top: Digest) -> Result<Option<Stack>> {
        let mut layers = Vec::new();
        let mut next = top;
        while layers.len() < MAX_LOWER {
            let directory = self.room.layer(next);
            let manifest = Manifest::read(&directory).filter(|found| found.digest == next);
            let Some(manifest) = manifest.filter(|_| directory.join(DATA).is_dir()) else {
                return Ok(None);
            };
            let (base, parent) = (manifest.base.clone(), manifest.parent);
            layers.push((next, manifest.layer(&directory).outcome()));
            if let Some(base) = base {
                layers.reverse();
                return Ok(Some(Stack {
                    base,
                    base_digest: parent,
                    layers,
                }));
            }
            next = parent;
        }
        Ok(None)
    }

    /// Keeps a stack's layers from being removed, and says where they are. Whoever mounts them
    /// (a run in a container that isn't flattened) holds them as long as they are mounted.
    pub fn hold(&self, stack: &Stack) -> Result<Held> {
        const STEP: &str = "looking for the layers of a build";
        let mut lowers = Vec::new();
        for (digest, _) in stack.layers.iter().rev() {
            let data = self.room.layer(*digest).join(DATA);
            // Looked at again when nobody can remove it any more.
            let there = data.is_dir() && self.room.keep(*digest)? && data.is_dir();
            if !there {
                self.room.let_go(*digest);
                return Err(Error::usage(STEP)
                    .at(&data)
                    .because("a layer isn't there any more")
                    .remedy("build again from the start"));
            }
            lowers.push(data);
        }
        for base in &stack.base {
            let found = fs::canonicalize(base)
                .map_err(|error| Error::usage(STEP).at(base).errno(from_io(&error)))?;
            lowers.push(found);
        }
        lowers.extend(self.room.bottom());
        if lowers.len() > MAX_LOWER {
            return Err(Error::usage(STEP)
                .at(&self.room.dir)
                .because(format!(
                    "{} layers are more than the {MAX_LOWER} that one overlay may have",
                    lowers.len()
                ))
                .remedy("put several steps into one"));
        }
        Ok(Held {
            lowers,
            _room: Arc::clone(&self.room),
        })
    }

    /// Writes the merged tree of `stack` as one plain directory, `dest`, which must not be there
    /// yet. Nothing has to be mounted.
    ///
    /// Modes, owners, attributes, ACLs, times, hard links and holes are kept, and devices where
    /// they may be made (else they are left out with a warning). Data is shared by reflinks where
    /// the file system has them, and copied elsewhere: never by hard links, because whoever
    /// writes to such a file writes into the layer. On an error `dest` isn't there.
    pub fn flatten(&self, stack: &Stack, dest: &Path) -> Result<Flattened> {
        const STEP: &str = "writing the finished tree";
        let held = self.hold(stack)?;
        let failed = |error: std::io::Error| Error::system(STEP).at(dest).errno(from_io(&error));
        if dest.symlink_metadata().is_ok() {
            return Err(Error::usage(STEP)
                .at(dest)
                .because("there is something already"));
        }
        let draft = Draft::beside(dest)?;
        let flatten = Flatten {
            step: STEP,
            layers: held.lowers(),
            namespace: XattrNamespace::User,
            dest: draft.path(),
            owner: Owner::default(),
        };
        let totals = flatten.write(&mut Meter::on_terminal(format!(
            "writing {}",
            dest.display()
        )))?;
        let root = fs::File::open(draft.path()).map_err(failed)?;
        rustix::fs::syncfs(&root).context(STEP, dest)?;
        room::rename(draft.path(), dest).context(STEP, dest)?;
        Ok(Flattened {
            files: totals.files,
            bytes: totals.bytes,
            shared: totals.shared,
        })
    }

    /// What is known of each layer of a stack, the lowest first.
    pub fn steps(&self, stack: &Stack) -> Result<Vec<Layer>> {
        let layers = stack.layers.iter();
        layers
            .map(|(digest, _)| {
                let directory = self.room.layer(*digest);
                match Manifest::read(&directory) {
                    Some(manifest) => Ok(manifest.layer(&directory)),
                    None => Err(Error::usage("reading what is known of a layer")
                        .at(&directory)
                        .because("it isn't there any more")),
                }
            })
            .collect()
    }

    /// What is known of every layer, the oldest first. Damaged ones are left out.
    pub fn layers(&self) -> Result<Vec<Layer>> {
        let mut layers: Vec<Layer> = self
            .room
            .names()?
            .iter()
            .filter_map(|path| Some(Manifest::read(path)?.layer(path)))
            .collect();
        layers.sort_by_key(|layer| layer.made);
        Ok(layers)
    }

    /// Removes the layers that no root needs, and that nobody has used for `unused_for`: neither
    /// one of `roots` nor below one of them, nor in use by a living process. Says which.
    pub fn remove_unused(
        &self,
        roots: &[Digest],
        unused_for: Duration,
        removal: Removal,
    ) -> Result<Vec<Layer>> {
        self.remove_unneeded(&|| Ok(roots.to_vec()), unused_for, removal)
    }

    /// As [`StepCache::remove_unused`], with roots that may become more meanwhile.
    pub(crate) fn remove_unneeded(
        &self,
        roots: &dyn Fn() -> Result<Vec<Digest>>,
        unused_for: Duration,
        removal: Removal,
    ) -> Result<Vec<Layer>> {
        let inventory = remove::Inventory {
            layers: &|| self.layers(),
            roots,
            unused_for,
        };
        remove::unused(&self.room, &inventory, removal)
    }

    /// Waits until the layer can be taken, or until it is this process's turn to make it.
    ///
    /// Nobody sleeps in flock(2) here: whoever makes a layer keeps a shared lock on it, for which
    /// one would wait to no purpose.
    fn take_or_lock(&self, stack: &Stack, digest: Digest) -> Result<Turn> {
        const PAUSE: Duration = Duration::from_millis(20);
        let name = digest.name();
        let lock = |hold| self.room.lock(OsStr::new(&name), hold);
        let mut told = false;
        loop {
            if let Some(stack) = self.take(stack, digest)? {
                return Ok(Turn::Taken(stack));
            }
            if let Some(lock) = lock(Hold::Alone)? {
                return Ok(Turn::Ours(lock));
            }
            // Others use it; or its maker has finished since we looked.
            let layer = self.room.layer(digest);
            if layer.is_dir() && lock(Hold::Shared)?.is_some() {
                return match self.take(stack, digest)? {
                    Some(stack) => Ok(Turn::Taken(stack)),
                    None => Err(Error::system("making a damaged layer again")
                        .at(&layer)
                        .errno(Errno::BUSY)
                        .because("another process uses it as it is")
                        .remedy("end what builds on it or runs in it")),
                };
            }
            if !std::mem::replace(&mut told, true) {
                log::info!("waiting for another build that works on the same step");
            }
            std::thread::sleep(PAUSE);
        }
    }

    /// The layer on `stack` if it is there, sound, and nobody works on it.
    fn take(&self, stack: &Stack, digest: Digest) -> Result<Option<Stack>> {
        let layer = self.room.layer(digest);
        if !layer.is_dir() || !self.room.keep(digest)? {
            return Ok(None);
        }
        match self.examine(digest) {
            Found::Sound => Ok(Some(stack.with(digest, Outcome::Hit))),
            Found::Nothing | Found::Damaged(_) => {
                self.room.let_go(digest);
                Ok(None)
            }
        }
    }

    fn examine(&self, digest: Digest) -> Found {
        let layer = self.room.layer(digest);
        if !layer.exists() {
            return Found::Nothing;
        }
        let Some(manifest) = Manifest::read(&layer).filter(|found| found.digest == digest) else {
            return Found::Damaged("its manifest can't be read".to_owned());
        };
        match Summary::of(&layer.join(DATA)) {
            Ok(summary) if summary == manifest.summary => Found::Sound,
            Ok(_) => Found::Damaged("something in it was changed".to_owned()),
            Err(errno) => Found::Damaged(format!("it can't be read: {errno}")),
        }
    }

    fn wanted_backend(&self) -> Backend {
        match self.owners {
            Owners::FakeRoot => Backend::Fuse,
            Owners::Real | Owners::Given { .. } => self.backend,
        }
    }
}

/// Whose turn it is with a layer that is wanted.
enum Turn {
    /// It is there: the stack with it.
    Taken(Stack),
    /// Ours.
    Ours(Lock),
}

/// What there is of a layer.
#[derive(Debug, PartialEq, Eq)]
enum Found {
    Sound,
    /// And why.
    Damaged(String),
    Nothing,
}

/// Layers that stay as long as this value does, or the cache that it came from.
#[derive(Debug)]
pub struct Held {
    lowers: Vec<PathBuf>,
    /// Has the locks.
    _room: Arc<Room>,
}

impl Held {
    /// The directories of the stack, topmost first, as [`crate::Overlay`] takes them. There are
    /// always two at least, so they can be mounted read-only, too. Mount them with `userxattr`.
    pub fn lowers(&self) -> &[PathBuf] {
        &self.lowers
    }
}
