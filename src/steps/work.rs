//! A layer that is being made.

use std::fs;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::fs::{CWD, Mode, OFlags, openat, syncfs};

use super::manifest::{DATA, Manifest};
use super::room::{self, Lock, Room, sync_directory};
use super::summary::Summary;
use super::{Digest, Outcome, Stack};
use crate::backend::{Backend, Carrier, Mounted};
use crate::error::Context;
use crate::flatten::{Owner, make_like};
use crate::format::XattrNamespace;
use crate::options::Fsync;
use crate::sys::from_io;
use crate::union::Owners;
use crate::{Overlay, Result};

/// A mounted tree for a step to run in. Dropping it abandons it.
#[derive(Debug)]
pub struct Work {
    room: Arc<Room>,
    stack: Stack,
    digest: Digest,
    name: String,
    root: PathBuf,
    carrier: Carrier,
    /// Gone at the end only, and then all at once.
    open: Option<Open>,
}

/// What there is to be put away.
#[derive(Debug)]
struct Open {
    mounted: Mounted,
    place: Place,
    /// The layer's, alone.
    lock: Lock,
}

/// A directory of `new`; removed when it is dropped.
#[derive(Debug)]
struct Place {
    path: PathBuf,
    /// Says that its maker lives.
    _lock: OwnedFd,
}

/// Below a directory of `new`, beside [`DATA`]: the work directory, and where the tree is mounted.
const WORK: &str = "w";
const MERGED: &str = "m";

/// What is to be made, and by whom.
#[derive(Debug)]
pub(super) struct Plan<'a> {
    pub(super) stack: &'a Stack,
    pub(super) digest: Digest,
    pub(super) name: &'a str,
    /// The stack's directories, topmost first.
    pub(super) lowers: &'a [PathBuf],
    pub(super) backend: Backend,
    pub(super) owners: Owners,
}

impl Work {
    pub(super) fn begin(room: &Arc<Room>, plan: &Plan<'_>, lock: Lock) -> Result<Self> {
        let (path, own) = room.fresh()?;
        let place = Place { path, _lock: own };
        let root = place.path.join(MERGED);
        let (upper, work) = (place.path.join(DATA), place.path.join(WORK));
        for dir in [&root, &upper, &work] {
            fs::create_dir(dir)
                .map_err(|error| from_io(&error))
                .context("making a directory for a layer", dir)?;
        }
        if let Some(top) = plan.lowers.first() {
            imitate(&upper, top)?;
        }
        let lowers = plan.lowers.iter().map(PathBuf::as_path);
        let mounted = Overlay::writable(lowers, &upper, &work, &root)
            .backend(plan.backend)
            .owners(plan.owners)
            .configure(|options| {
                // For all who may use the cache, root or not.
                options.userxattr = true;
                options.allow_other = rustix::process::geteuid().is_root();
                // A layer that isn't finished is never used; a finished one has been synced.
                options.fsync = Fsync::Volatile;
            })
            .mount()?;
        Ok(Self {
            room: Arc::clone(room),
            stack: plan.stack.clone(),
            digest: plan.digest,
            name: plan.name.to_owned(),
            root,
            carrier: mounted.backend(),
            open: Some(Open {
                mounted,
                place,
                lock,
            }),
        })
    }

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
    /// disk, when it fails or is killed the cache is as it was. A tree that is in use is an error.
    pub fn commit(mut self) -> Result<Stack> {
        let stack = self.stack.with(self.digest, Outcome::Built);
        let Some(open) = self.open.take() else {
            return Ok(stack);
        };
        match self.publish(open.mounted, &open.place.path) {
            Ok(()) => self.room.keep_locked(self.digest, open.lock)?,
            Err(error) => {
                drop(open.place);
                self.room.forget(self.digest.name().as_ref(), open.lock);
                return Err(error);
            }
        }
        Ok(stack)
    }

    /// Makes the directory `path` of `new` the layer.
    fn publish(&self, mounted: Mounted, path: &Path) -> Result<()> {
        mounted.unmount()?;
        for name in [WORK, MERGED] {
            let dir = path.join(name);
            room::remove(&dir).context("removing the work directory", &dir)?;
        }
        let data = path.join(DATA);
        let summary = Summary::of(&data).context("counting what the step changed", &data)?;
        Manifest::new(&self.stack, self.digest, &self.name, summary)
            .write(path)
            .map_err(|error| from_io(&error))
            .context("writing the layer's manifest", path)?;
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let opened = openat(CWD, path, flags, Mode::empty()).context(SYNC, path)?;
        syncfs(&opened).context(SYNC, path)?;
        let layer = self.room.layer(self.digest);
        room::rename(path, &layer).context("putting the layer in its place", &layer)?;
        let layers = self.room.dir.join("layers");
        sync_directory(&layers).context(SYNC, &layers)
    }

    /// Unmounts the tree and removes all of it. A tree that is in use goes out of sight at once,
    /// and for good when its last user has gone.
    pub fn abandon(mut self) -> Result<()> {
        match self.open.take() {
            Some(open) => open.put_away(&self.room, self.digest),
            None => Ok(()),
        }
    }
}

const SYNC: &str = "writing the layer to the disk";

impl Open {
    fn put_away(self, room: &Room, digest: Digest) -> Result<()> {
        let unmounted = self.mounted.unmount_at_once();
        drop(self.place);
        room.forget(digest.name().as_ref(), self.lock);
        unmounted
    }
}

impl Drop for Work {
    fn drop(&mut self) {
        if let Some(open) = self.open.take()
            && let Err(error) = open.put_away(&self.room, self.digest)
        {
            log::warn!("{error}");
        }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        // After a commit it isn't there any more.
        if self.path.exists()
            && let Err(error) = room::clear(&self.path)
        {
            log::warn!("{error}");
        }
    }
}

/// Gives the upper directory what the merged root is to have: all that the topmost layer has.
fn imitate(upper: &Path, top: &Path) -> Result<()> {
    const STEP: &str = "giving a layer's root the attributes of the layer below";
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let like = openat(CWD, top, flags, Mode::empty()).context(STEP, top)?;
    make_like(like.as_fd(), upper, Owner::default(), XattrNamespace::User).context(STEP, upper)
}
