//! `Overlay`: what to mount where, and who carries it.

use std::path::{Path, PathBuf};

use crate::backend::{self, Backend, Mounted};
use crate::options::Options;
use crate::union::Owners;
use crate::{Error, Result};

/// An overlay to be mounted: its layers, its target, its options and the wanted backend.
#[derive(Debug, Clone)]
pub struct Overlay {
    /// Layers and options, as `-o` would give them.
    pub(crate) options: Options,
    /// Where the merged tree appears.
    pub(crate) target: PathBuf,
    /// Who carries it.
    pub(crate) backend: Backend,
    /// What to do about owners that can't be given; the kernel's overlayfs knows [`Owners::Real`]
    /// only.
    pub(crate) owners: Owners,
}

impl Overlay {
    /// A writable overlay. `lowers` come topmost first; `upper` and `work` must be on one file
    /// system, neither inside the other.
    pub fn writable<'x>(
        lowers: impl Iterator<Item = &'x Path>,
        upper: impl AsRef<Path>,
        work: impl AsRef<Path>,
        target: impl AsRef<Path>,
    ) -> Self {
        let options = Options {
            lower: lowers.map(Path::to_path_buf).collect(),
            upper: Some(upper.as_ref().to_path_buf()),
            work: Some(work.as_ref().to_path_buf()),
            ..Options::default()
        };
        Self::from_options(options, target)
    }

    /// A read-only overlay of `lowers`, topmost first.
    pub fn readonly<'x>(lowers: impl Iterator<Item = &'x Path>, target: impl AsRef<Path>) -> Self {
        let options = Options {
            lower: lowers.map(Path::to_path_buf).collect(),
            ..Options::default()
        };
        Self::from_options(options, target)
    }

    /// An overlay as an option string describes it.
    pub fn from_options(options: Options, target: impl AsRef<Path>) -> Self {
        Self {
            options,
            target: target.as_ref().to_path_buf(),
            backend: Backend::Auto,
            owners: Owners::Real,
        }
    }

    /// Chooses who carries it; [`Backend::Auto`] unless told.
    #[must_use]
    pub fn backend(mut self, backend: Backend) -> Self {
        self.backend = backend;
        self
    }

    /// Says what the FUSE server does about owners that it can't give; [`Owners::Real`] unless
    /// told. [`Owners::FakeRoot`] is for a user namespace whose root is not the machine's.
    #[must_use]
    pub fn owners(mut self, owners: Owners) -> Self {
        self.owners = owners;
        self
    }

    /// Changes the options.
    #[must_use]
    pub fn configure(mut self, change: impl FnOnce(&mut Options)) -> Self {
        change(&mut self.options);
        self
    }

    /// Mounts it. Returns when the tree is usable; the error says which step failed, on which
    /// path, with which errno, and what to do.
    pub fn mount(self) -> Result<Mounted> {
        backend::mount(self)
    }

    /// As [`Overlay::mount`], without adding anything to the error. Kept because callers of
    /// libmount know the name.
    pub fn bare_mount(self) -> Result<Mounted, Error> {
        self.mount()
    }
}
