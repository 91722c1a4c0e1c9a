//! The lower layers that a built container stands for.

use std::path::PathBuf;

use super::build::{cache, layers_dir};
use super::project::{Project, Root};
use crate::steps::Held;
use crate::{Error, Result};

/// Directories, topmost first, which stay as long as this does.
#[derive(Debug)]
pub(super) struct Lowers {
    dirs: Vec<PathBuf>,
    _held: Option<Held>,
    /// What lies below the layers.
    _base: Option<Root>,
}

impl Lowers {
    /// Those of `root`: its plain directory, or its layers.
    pub(super) fn of(project: &Project, root: &Root) -> Result<Self> {
        let Some(top) = root.layers() else {
            return Ok(Self {
                dirs: vec![root.tree()],
                _held: None,
                _base: None,
            });
        };
        let mut lowers = Self {
            dirs: Vec::new(),
            _held: None,
            _base: root.base().map(|name| project.root(name)).transpose()?,
        };
        if !root.lies_on_its_base(project) {
            return Err(Error::usage("looking for the layers of a container")
                .at(root.dir())
                .because("the container below them was built again since")
                .remedy("build this one again, too"));
        }
        let cache = cache(project)?;
        let stack = cache.stack(top)?.ok_or_else(|| lowers.gone(root))?;
        let held = cache.hold(&stack)?;
        lowers.dirs = held.lowers().to_vec();
        lowers._held = Some(held);
        log::debug!(
            "{}: {} layers",
            layers_dir(project).display(),
            lowers.dirs.len()
        );
        Ok(lowers)
    }

    pub(super) fn dirs(&self) -> &[PathBuf] {
        &self.dirs
    }

    /// The error for layers that aren't there any more.
    pub(super) fn gone(&self, root: &Root) -> Error {
        Error::usage("looking for the layers of a container")
            .at(root.dir())
            .because("some of them are gone")
            .remedy("build the container again")
    }
}
