//! Which mounts lie below a directory, and which of them a path look-up reaches.

use std::fs;
use std::os::fd::{AsFd, AsRawFd};
use std::path::Path;

use crate::sys::from_io;
use crate::sys::mountinfo::{self, Mount};
use crate::{Error, Result};

/// The mounts of a mount namespace, in the kernel's order: a later one of two at one place is on
/// top.
#[derive(Debug, Clone, Default)]
pub(super) struct Mounts(Vec<Mount>);

impl Mounts {
    /// Those of the calling process.
    pub(super) fn of_self() -> Result<Self> {
        let mounts = mountinfo::read()
            .map_err(|error| Error::system("reading the mount table").errno(from_io(&error)))?;
        Ok(Self(mounts))
    }

    /// The mount with this number and everything mounted below it, parents first.
    pub(super) fn subtree(&self, id: u64) -> Vec<&Mount> {
        let mut found: Vec<&Mount> = self.0.iter().filter(|mount| mount.id == id).collect();
        let mut next = 0;
        while let Some(parent) = found.get(next).map(|mount| mount.id) {
            let children = self
                .0
                .iter()
                .filter(|mount| mount.parent == parent && mount.id != parent);
            found.extend(children);
            next += 1;
        }
        found
    }

    /// The mounts below `root` (not on it) that a path look-up reaches, parents first. What is
    /// hidden under another mount, or can't be reached by this user, isn't among them.
    pub(super) fn visible_below(&self, root: &Path) -> Vec<&Mount> {
        let mut found: Vec<&Mount> = self
            .0
            .iter()
            .filter(|mount| mount.point != root && mount.point.starts_with(root))
            .filter(|mount| mount_of(&mount.point) == Some(mount.id))
            .collect();
        found.sort_by(|a, b| a.point.cmp(&b.point));
        found
    }
}

/// The number of the mount that a path look-up of `path` ends in.
pub(super) fn mount_of(path: &Path) -> Option<u64> {
    use rustix::fs::{Mode, OFlags, open};
    let fd = open(path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty()).ok()?;
    // Not statx: `mnt_id` came in Linux 5.8, this in 3.15.
    let info = fs::read_to_string(format!("/proc/self/fdinfo/{}", fd.as_fd().as_raw_fd())).ok()?;
    info.lines()
        .find_map(|line| line.strip_prefix("mnt_id:"))
        .and_then(|id| id.trim().parse().ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_subtree_has_parents_first() {
        let mounts = Mounts(mountinfo::table(mountinfo::EXAMPLE));
        let ids: Vec<u64> = mounts.subtree(27).iter().map(|mount| mount.id).collect();
        assert_eq!(ids, [27, 22, 28, 30, 29]);
    }

    #[test]
    fn this_machine_has_a_proc() {
        let mounts = Mounts::of_self().unwrap();
        let below = mounts.visible_below(Path::new("/"));
        assert!(below.iter().any(|mount| mount.point == Path::new("/proc")));
        assert!(below.iter().all(|mount| mount.point != Path::new("/")));
    }
}
