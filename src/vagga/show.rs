//! `_mount`: the tree of a container that is made of layers, where everybody can see it.

use std::path::{Path, PathBuf};

use super::lowers::Lowers;
use super::project::Project;
use crate::backend::Backend;
use crate::{Overlay, Result};

/// Mounts the tree of a container in this process's own mount namespace, read-only. The kernel
/// doesn't let a plain user do that; the FUSE server does it through fusermount3(1).
///
/// Without `target` it appears where `.vagga/NAME` leads to. Nothing holds the layers once this
/// process has ended, but `_clean` leaves those of a container that is linked alone.
pub fn show(project: &Project, name: &str, target: Option<&Path>) -> Result<PathBuf> {
    let root = project.built(name)?;
    let lowers = Lowers::of(project, &root)?;
    let target = target.map_or_else(|| root.tree(), Path::to_path_buf);
    let mut dirs = lowers.dirs().to_vec();
    if root.layers().is_none() {
        // One alone is nothing to merge; the same one below it changes nothing.
        dirs.extend(lowers.dirs().first().cloned());
    }
    let mounted = Overlay::readonly(dirs.iter().map(PathBuf::as_path), &target)
        .backend(Backend::Fuse)
        .configure(|options| options.userxattr = true)
        .mount()?;
    let target = mounted.target().to_path_buf();
    mounted.forget();
    root.touch();
    Ok(target)
}
