//! Where a run puts things together out of sight, and paths in somebody else's root.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Component, Path, PathBuf};

use rustix::fs::{AtFlags, CWD, Gid, Uid, chownat};
use rustix::mount::{MountFlags, mount};

use crate::error::Context;
use crate::vagga::project::Project;
use crate::{Error, Result};

/// A directory in memory over `.vagga/.mnt`, in this process's mount namespace only: nothing of it
/// outlives the namespace.
#[derive(Debug)]
pub(in crate::vagga) struct Stage {
    dir: PathBuf,
}

impl Stage {
    /// The process must be in a mount namespace of its own.
    pub(in crate::vagga) fn make(project: &Project) -> Result<Self> {
        let step = "preparing the run";
        let dir = project.vagga_dir().join(".mnt");
        fs::create_dir_all(&dir)
            .map_err(|error| Error::system(step).at(&dir).because(error.to_string()))?;
        let flags = MountFlags::NOSUID | MountFlags::NODEV;
        mount("tmpfs", &dir, "tmpfs", flags, Some(c"mode=755,size=1m")).context(step, &dir)?;
        Ok(Self { dir })
    }

    /// Where it is.
    pub(in crate::vagga) fn directory(&self) -> &Path {
        &self.dir
    }

    /// A fresh directory.
    pub(in crate::vagga) fn place(&self, name: &str) -> Result<PathBuf> {
        let place = self.dir.join(name);
        fs::create_dir(&place).map_err(|error| {
            Error::system("preparing the run")
                .at(&place)
                .because(error.to_string())
        })?;
        Ok(place)
    }

    /// A fresh directory with mode and owner of `like`.
    pub(in crate::vagga) fn place_like(&self, name: &str, like: &Path) -> Result<PathBuf> {
        let step = "preparing the run";
        let place = self.place(name)?;
        let failed =
            |error: std::io::Error| Error::system(step).at(like).because(error.to_string());
        let meta = fs::metadata(like).map_err(failed)?;
        let (uid, gid) = (Uid::from_raw(meta.uid()), Gid::from_raw(meta.gid()));
        // An owner without an id here can't be given.
        let _ = chownat(CWD, &place, Some(uid), Some(gid), AtFlags::empty());
        fs::set_permissions(&place, fs::Permissions::from_mode(meta.mode() & 0o7777))
            .map_err(failed)?;
        Ok(place)
    }
}

/// Links that lead to links that lead to links.
const MOST_LINKS: usize = 40;

/// Where `inside`, a path as seen in a root at `tree`, is on the machine. Symbolic links are
/// followed as a process in there would follow them.
pub(in crate::vagga) fn in_tree(tree: &Path, inside: &Path) -> Result<PathBuf> {
    let failed = |why: &str| {
        Error::usage("looking into the container")
            .at(inside)
            .because(why.to_owned())
    };
    let mut todo: Vec<PathBuf> = vec![inside.to_path_buf()];
    let mut here = PathBuf::new();
    let mut links = 0;
    while let Some(path) = todo.pop() {
        let mut parts = path.components();
        let Some(first) = parts.next() else { continue };
        let rest = parts.as_path().to_path_buf();
        todo.push(rest);
        match first {
            Component::RootDir => here = PathBuf::new(),
            Component::ParentDir => {
                here.pop();
            }
            Component::CurDir | Component::Prefix(_) => {}
            Component::Normal(name) => {
                let place = tree.join(&here).join(name);
                match fs::symlink_metadata(&place) {
                    Ok(meta) if meta.is_symlink() => {
                        links += 1;
                        if links > MOST_LINKS {
                            return Err(failed("too many symbolic links"));
                        }
                        let target =
                            fs::read_link(&place).map_err(|error| failed(&error.to_string()))?;
                        todo.push(target);
                    }
                    Ok(_) => here.push(name),
                    Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                        return Err(failed("it isn't there")
                            .remedy("add an `!EnsureDir` step to the container"));
                    }
                    Err(error) => return Err(failed(&error.to_string())),
                }
            }
        }
    }
    Ok(tree.join(here))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    #[test]
    fn links_stay_in_the_tree() {
        let top = tempfile::tempdir().unwrap();
        let tree = top.path();
        fs::create_dir_all(tree.join("var/lib/x")).unwrap();
        fs::create_dir_all(tree.join("run")).unwrap();
        symlink("/run", tree.join("var/run")).unwrap();
        symlink("../../../../var/lib", tree.join("var/up")).unwrap();
        symlink("loop", tree.join("loop")).unwrap();
        let at = |path: &str| in_tree(tree, Path::new(path));
        assert_eq!(at("/var/run").unwrap(), tree.join("run"));
        assert_eq!(at("/var/up/x").unwrap(), tree.join("var/lib/x"));
        assert_eq!(at("/").unwrap(), tree.join(""));
        assert!(at("/loop").is_err());
        assert!(at("/var/none").is_err());
    }
}
