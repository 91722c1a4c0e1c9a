//! The overlays of a run: one over the root, and one over each file system mounted below it.
//!
//! What becomes of a mount below the root:
//!
//! | it is | inside |
//! |---|---|
//! | a directory of a file system that can be written | an overlay with an upper of its own |
//! | mounted read-only | bound: it can't be written outside either |
//! | a single file (`/etc/resolv.conf` in many containers) | bound, read-only |
//! | the kernel's interface (proc, sysfs, cgroup, …) or an automounter's | bound, read-only |
//! | at or below `/proc`, `/sys`, `/dev` | see [`super::root`] |
//! | below a directory of `--bind` or `--bind-ro` | as there |
//!
//! An overlay that can't be mounted (a file system that neither backend takes) becomes a
//! read-only bind with a warning: nothing is lost, nothing can be written.

use std::path::{Path, PathBuf};

use log::{debug, info, warn};
use rustix::fs::StatVfsMountFlags;

use super::mounts::Mounts;
use super::scratch::{Layers, Scratch};
use crate::backend::{Backend, Carrier, Mounted};
use crate::options::Fsync;
use crate::sys::mountinfo::Mount;
use crate::union::Owners;
use crate::{Overlay, Result};

/// What all overlays of a run have in common.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Policy {
    pub(crate) backend: Backend,
    pub(crate) owners: Owners,
}

/// A mounted overlay and the layers it was made of.
#[derive(Debug)]
pub(crate) struct Piece {
    mounted: Mounted,
    layers: Layers,
    lowers: Vec<PathBuf>,
}

/// A mount of the machine that is shown inside as it is, but read-only.
#[derive(Debug, Clone)]
pub(crate) struct Shown {
    /// Where it is on the machine.
    pub(crate) source: PathBuf,
    /// Where it goes, relative to the root.
    pub(crate) inside: PathBuf,
}

/// The mounted overlays, the root's first. Dropping them unmounts the last one first.
#[derive(Debug, Default)]
pub(crate) struct Overlays {
    pieces: Vec<Piece>,
    shown: Vec<Shown>,
}

impl Overlays {
    /// Mounts them. `lowers` are the root's, topmost first, the root itself last; mounts at or
    /// below one of `handled` (relative to the root) are left to others.
    pub(crate) fn mount(
        scratch: &Scratch,
        lowers: Vec<PathBuf>,
        handled: &[PathBuf],
        policy: Policy,
    ) -> Result<Self> {
        let root = lowers.last().cloned().unwrap_or_else(|| "/".into());
        // Before anything is mounted, or our own mounts would be among them.
        let mounts = Mounts::of_self()?;
        let mut overlays = Self::default();
        let piece = mount_one(scratch, Path::new(""), lowers, policy)?;
        overlays.pieces.push(piece);
        for mount in mounts.visible_below(&root) {
            let Ok(inside) = mount.point.strip_prefix(&root) else {
                continue;
            };
            let bound = overlays.shown.iter().map(|shown| &shown.inside);
            if handled.iter().chain(bound).any(|at| inside.starts_with(at)) {
                continue;
            }
            overlays.cover(scratch, mount, inside, policy)?;
        }
        Ok(overlays)
    }

    fn cover(
        &mut self,
        scratch: &Scratch,
        mount: &Mount,
        inside: &Path,
        policy: Policy,
    ) -> Result<()> {
        let target = scratch.merged().join(inside);
        // A kept upper or a layer on top may have put something else there.
        if std::fs::canonicalize(&target).ok().as_ref() != Some(&target) {
            debug!("{}: not there in the merged tree", mount.point.display());
            return Ok(());
        }
        if takes_overlay(mount) {
            match mount_one(scratch, inside, vec![mount.point.clone()], policy) {
                Ok(piece) => {
                    self.pieces.push(piece);
                    return Ok(());
                }
                Err(error) => warn!("{} is read-only in here: {error}", mount.point.display()),
            }
        }
        self.shown.push(Shown {
            source: mount.point.clone(),
            inside: inside.to_path_buf(),
        });
        Ok(())
    }

    /// The mounts that are shown read-only; parents first.
    pub(crate) fn shown(&self) -> &[Shown] {
        &self.shown
    }

    /// Who carries the root.
    pub(crate) fn carrier(&self) -> Option<Carrier> {
        self.pieces.first().map(|piece| piece.mounted.backend())
    }

    /// Unmounts them all, the last one first, and waits until everything is written. Gives back
    /// the layers they were made of.
    pub(crate) fn unmount(mut self) -> Result<Vec<(PathBuf, Vec<PathBuf>)>> {
        let mut outcome = Ok(());
        let mut layers = Vec::new();
        while let Some(piece) = self.pieces.pop() {
            layers.push((piece.layers.upper, piece.lowers));
            outcome = outcome.and(piece.mounted.unmount());
        }
        outcome.map(|()| layers)
    }
}

impl Drop for Overlays {
    fn drop(&mut self) {
        // A vector drops its first element first; here the last one has to go first.
        while self.pieces.pop().is_some() {}
    }
}

fn mount_one(
    scratch: &Scratch,
    inside: &Path,
    lowers: Vec<PathBuf>,
    policy: Policy,
) -> Result<Piece> {
    let like = lowers.first().cloned().unwrap_or_else(|| "/".into());
    let layers = scratch.layers(inside, &like)?;
    let target = if inside.as_os_str().is_empty() {
        scratch.merged()
    } else {
        scratch.merged().join(inside)
    };
    let overlay = Overlay::writable(
        lowers.iter().map(PathBuf::as_path),
        &layers.upper,
        &layers.work,
        &target,
    )
    .backend(policy.backend)
    .owners(policy.owners)
    .configure(|options| {
        // Other users of the namespace must get in, and what is thrown away needs no syncing.
        options.allow_other = true;
        if scratch.is_temporary() {
            options.fsync = Fsync::Volatile;
        }
    });
    let mounted = overlay.mount()?;
    let carrier = mounted.backend();
    match mounted.why_not_native() {
        Some(why) => info!("/{}: carried by {carrier}: {why}", inside.display()),
        None => info!("/{}: carried by {carrier}", inside.display()),
    }
    Ok(Piece {
        mounted,
        layers,
        lowers,
    })
}

/// File systems that are an interface of the kernel or an automounter's stage.
const NOT_FOR_FILES: [&str; 22] = [
    "autofs",
    "binfmt_misc",
    "bpf",
    "cgroup",
    "cgroup2",
    "configfs",
    "debugfs",
    "devpts",
    "devtmpfs",
    "efivarfs",
    "fusectl",
    "hugetlbfs",
    "mqueue",
    "nfsd",
    "nsfs",
    "proc",
    "pstore",
    "rpc_pipefs",
    "securityfs",
    "selinuxfs",
    "sysfs",
    "tracefs",
];

fn takes_overlay(mount: &Mount) -> bool {
    let kernel = NOT_FOR_FILES.iter().any(|name| mount.fstype == *name);
    !kernel && !mount.is_read_only() && mount.point.is_dir() && !is_read_only(&mount.point)
}

/// The super block's own word: a mount table of an old kernel doesn't always show it.
fn is_read_only(point: &Path) -> bool {
    rustix::fs::statvfs(point).is_ok_and(|stat| stat.f_flag.contains(StatVfsMountFlags::RDONLY))
}
