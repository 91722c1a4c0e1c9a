//! The root of a run: the container's tree, read-only or with a writable layer on it.

use std::ffi::OsStr;
use std::os::fd::BorrowedFd;
use std::path::{Path, PathBuf};

use rustix::mount::{
    MountFlags, MountPropagationFlags, UnmountFlags, mount_bind, mount_change, mount_remount,
    unmount,
};

use super::record::Form;
use super::upper::Upper;
use crate::backend::{Backend, Mounted};
use crate::container::{Overlays, Policy, Scratch};
use crate::error::Context;
use crate::flatten::{Flatten, Meter, Owner};
use crate::format::XattrNamespace;
use crate::snapshot::Means;
use crate::union::Owners;
use crate::vagga::lowers::Lowers;
use crate::vagga::project::{Project, Root};
use crate::{Overlay, Result};

/// Who carries an overlay that is made by `means`.
fn backend(means: Means) -> Backend {
    match means {
        Means::Auto | Means::Copy => Backend::Auto,
        Means::Kernel => Backend::Native,
        Means::Fuse => Backend::Fuse,
    }
}

/// A mounted root.
#[derive(Debug)]
pub(in crate::vagga) enum Tree {
    ReadOnly {
        merged: PathBuf,
    },
    /// The fields are dropped, and so unmounted and let go, in this order.
    Layers {
        mounted: Mounted,
        merged: PathBuf,
        _lowers: Lowers,
    },
    Overlay {
        overlays: Overlays,
        scratch: Scratch,
        _lowers: Lowers,
    },
    Copy {
        scratch: Scratch,
    },
}

impl Tree {
    /// The container's tree as it is, in the directory `merged`.
    pub(in crate::vagga) fn read_only(
        project: &Project,
        merged: PathBuf,
        built: &Root,
        means: Means,
    ) -> Result<Self> {
        let step = "mounting the container";
        if built.layers().is_some() {
            let lowers = Lowers::of(project, built)?;
            let dirs = lowers.dirs().iter().map(PathBuf::as_path);
            let mounted = Overlay::readonly(dirs, &merged)
                .backend(backend(means))
                .configure(|options| {
                    options.allow_other = true;
                    options.userxattr = true;
                })
                .mount()?;
            return Ok(Tree::Layers {
                mounted,
                merged,
                _lowers: lowers,
            });
        }
        let tree = built.tree();
        mount_bind(&tree, &merged).context(step, &tree)?;
        // What a user namespace inherited may not be dropped; asking for it again is harmless.
        let kept = MountFlags::BIND | MountFlags::RDONLY;
        let tries = [
            kept,
            kept | MountFlags::NODEV,
            kept | MountFlags::NOSUID | MountFlags::NODEV,
            kept | MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOATIME,
        ];
        let mut outcome = Ok(());
        for flags in tries {
            outcome = mount_remount(&merged, flags, c"");
            if outcome.is_ok() {
                break;
            }
        }
        outcome.context(step, &merged)?;
        Ok(Tree::ReadOnly { merged })
    }

    /// With a writable layer in `upper`.
    pub(super) fn writable(
        project: &Project,
        built: &Root,
        upper: &Upper,
        means: Means,
    ) -> Result<Self> {
        let lowers = Lowers::of(project, built)?;
        let scratch = upper.open(project, built)?;
        let (tree, form) = match (upper.form(), means) {
            (Some(Form::Copy), _) => (Self::copied(scratch)?, Form::Copy),
            (None, Means::Copy) => (Self::copy(built, &lowers, scratch)?, Form::Copy),
            (form, _) => {
                let policy = Policy {
                    backend: backend(means),
                    owners: Owners::Real,
                };
                match Overlays::mount(&scratch, lowers.dirs().to_vec(), &[], policy) {
                    Ok(overlays) => {
                        let tree = Tree::Overlay {
                            overlays,
                            scratch,
                            _lowers: lowers,
                        };
                        (tree, Form::Overlay)
                    }
                    Err(error) if form.is_none() && means == Means::Auto => {
                        log::warn!("no overlay works here, everything is copied: {error}");
                        (Self::copy(built, &lowers, scratch)?, Form::Copy)
                    }
                    Err(error) => return Err(error),
                }
            }
        };
        // Only now is it all there.
        if let Some(scratch) = tree.scratch() {
            upper.describe(scratch, form, built)?;
        }
        Ok(tree)
    }

    /// A fresh copy of everything.
    fn copy(built: &Root, lowers: &Lowers, scratch: Scratch) -> Result<Self> {
        let like = lowers.dirs().first().cloned().unwrap_or_default();
        let layers = scratch.layers(Path::new(""), &like)?;
        let flatten = Flatten {
            step: "copying the container",
            layers: lowers.dirs(),
            namespace: XattrNamespace::User,
            dest: &layers.upper,
            owner: Owner::default(),
        };
        flatten.write(&mut Meter::on_terminal(format!(
            "copying {}",
            built.name().display()
        )))?;
        Self::copied(scratch)
    }

    /// A copy of everything that is there.
    fn copied(scratch: Scratch) -> Result<Self> {
        let step = "mounting the copy";
        let upper = scratch.directory().join("upper");
        let merged = scratch.merged();
        mount_bind(&upper, &merged).context(step, &merged)?;
        mount_change(&merged, MountPropagationFlags::PRIVATE).context(step, &merged)?;
        Ok(Tree::Copy { scratch })
    }

    /// Where it is mounted.
    pub(in crate::vagga) fn merged(&self) -> &Path {
        match self {
            Tree::ReadOnly { merged } | Tree::Layers { merged, .. } => merged,
            Tree::Overlay { scratch, .. } | Tree::Copy { scratch } => scratch.merged_path(),
        }
    }

    pub(super) fn is_writable(&self) -> bool {
        !matches!(self, Tree::ReadOnly { .. } | Tree::Layers { .. })
    }

    fn scratch(&self) -> Option<&Scratch> {
        match self {
            Tree::ReadOnly { .. } | Tree::Layers { .. } => None,
            Tree::Overlay { scratch, .. } | Tree::Copy { scratch } => Some(scratch),
        }
    }

    /// The directory with the writable layer.
    pub(super) fn directory(&self) -> Option<&Path> {
        self.scratch().map(Scratch::directory)
    }

    /// The name of the directory with the writable layer, where that stays.
    pub(super) fn kept(&self) -> Option<&OsStr> {
        let kept = self.scratch().filter(|scratch| !scratch.is_temporary());
        kept.and_then(|scratch| scratch.directory().file_name())
    }

    pub(super) fn release_fds(&self) -> Vec<BorrowedFd<'_>> {
        self.scratch().map(Scratch::release_fds).unwrap_or_default()
    }

    /// Unmounts it, waits until everything is written, and removes what isn't kept.
    pub(in crate::vagga) fn finish(self) -> Result<()> {
        match self {
            Tree::ReadOnly { .. } => Ok(()),
            Tree::Layers { mounted, .. } => mounted.unmount(),
            Tree::Overlay {
                overlays,
                scratch,
                _lowers,
            } => {
                let unmounted = overlays.unmount().map(drop);
                unmounted.and(scratch.finish())
            }
            Tree::Copy { scratch } => {
                let merged = scratch.merged();
                let step = "unmounting the copy";
                let unmounted = unmount(&merged, UnmountFlags::empty()).context(step, &merged);
                unmounted.and(scratch.finish())
            }
        }
    }
}
