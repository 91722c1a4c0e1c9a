//! `_mount`: the tree of a container that is made of layers, where everybody can see it.

use std::path::{Path, PathBuf};

use super::lowers::Lowers;
use super::project::Project;
use crate::backend::Backend;
use crate::{Error, Overlay, Result};

/// Mounts the tree of a container in this process's own mount namespace, read-only. The kernel
/// doesn't let a plain user do that; the FUSE server does it through fusermount3(1).
///
/// Without `target` it appears where `.vagga/NAME` leads to, unless that is the tree itself. Nothing holds the layers once this
/// process has ended, but `_clean` leaves those of a container that is linked alone.
pub fn show(project: &Project, name: &str, target: Option<&Path>) -> Result<PathBuf> {
    let root = project.built(name)?;
    if target.is_none() && root.layers().is_none() {
        return Err(Error::usage("showing the container")
            .at(root.tree())
            .because("it is one plain directory, where everybody can see it")
            .remedy("name a directory to show it on as well"));
    }
    let lowers = Lowers::of(project, &root)?;
    let target = target.map_or_else(|| root.tree(), Path::to_path_buf);
    // A plain container is one directory alone, which is enough for the FUSE server.
    let dirs = lowers.dirs().iter().map(PathBuf::as_path);
    let mounted = Overlay::readonly(dirs, &target)
        .backend(Backend::Fuse)
        .configure(|options| options.userxattr = true)
        .mount()?;
    let target = mounted.target().to_path_buf();
    mounted.forget();
    root.touch();
    Ok(target)
}
