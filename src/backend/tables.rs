//! The mount tables of all namespaces that there are processes in, as far as we may look.
//!
//! A process sees of its namespace's mounts those below its root, and names them from there. So it
//! isn't enough to look at one process of each namespace: it may be in a chroot.

use std::collections::HashSet;
use std::fs;
use std::path::Path;

use rustix::fs::{AtFlags, CWD, StatxFlags, statx};

use crate::sys::mountinfo::{self, Mount};

/// What is mounted in a namespace.
#[derive(Debug)]
pub(super) struct Table {
    /// The namespace's number.
    pub(super) namespace: u64,
    /// A process in it.
    pub(super) holder: u32,
    /// Each mount once, named by who sees most of the way to it.
    pub(super) mounts: Vec<Mount>,
}

/// The namespace of this process.
pub(super) fn own() -> Option<u64> {
    namespace(Path::new("/proc/self"))
}

/// The tables, ours among them.
pub(super) fn all() -> Vec<Table> {
    let mut tables: Vec<Table> = Vec::new();
    let mut seen = HashSet::new();
    for entry in fs::read_dir("/proc").into_iter().flatten().flatten() {
        let place = entry.path();
        let number = entry
            .file_name()
            .to_str()
            .and_then(|name| name.parse().ok());
        let (Some(holder), Some(namespace)) = (number, namespace(&place)) else {
            continue;
        };
        if let Some(root) = root(&place)
            && !seen.insert((namespace, root))
        {
            continue;
        }
        let Ok(text) = fs::read(place.join("mountinfo")) else {
            continue;
        };
        let mounts = mountinfo::table(&text);
        match tables.iter_mut().find(|table| table.namespace == namespace) {
            Some(table) => table.add(mounts),
            None => tables.push(Table {
                namespace,
                holder,
                mounts,
            }),
        }
    }
    tables
}

impl Table {
    fn add(&mut self, mounts: Vec<Mount>) {
        for mount in mounts {
            match self.mounts.iter_mut().find(|known| known.id == mount.id) {
                Some(known) if known.point.as_os_str().len() < mount.point.as_os_str().len() => {
                    *known = mount;
                }
                Some(_) => {}
                None => self.mounts.push(mount),
            }
        }
    }
}

fn namespace(process: &Path) -> Option<u64> {
    let stat = rustix::fs::stat(process.join("ns/mnt")).ok()?;
    Some(stat.st_ino)
}

/// What tells a process's root from another one in its namespace. Nobody is asked who may not
/// answer: the root may be a mount of ours.
fn root(process: &Path) -> Option<(u64, u32, u32, u64)> {
    let flags = AtFlags::STATX_DONT_SYNC | AtFlags::NO_AUTOMOUNT;
    let wanted = StatxFlags::INO | StatxFlags::MNT_ID;
    let root = statx(CWD, process.join("root"), flags, wanted).ok()?;
    let mount = match StatxFlags::from_bits_retain(root.stx_mask).contains(StatxFlags::MNT_ID) {
        true => root.stx_mnt_id,
        // Before Linux 5.8.
        false => 0,
    };
    Some((mount, root.stx_dev_major, root.stx_dev_minor, root.stx_ino))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_longest_name_of_a_mount_stays() {
        let seen_from = |text: &str| mountinfo::table(text.as_bytes());
        let mut table = Table {
            namespace: 1,
            holder: 1,
            mounts: seen_from("40 1 0:40 / /in rw - tmpfs t rw\n"),
        };
        table.add(seen_from(
            "39 1 0:39 / / rw - tmpfs t rw\n40 1 0:40 / /jail/in rw - tmpfs t rw\n",
        ));
        table.add(seen_from("40 1 0:40 / / rw - tmpfs t rw\n"));
        let names: Vec<_> = table.mounts.iter().map(|mount| &*mount.point).collect();
        assert_eq!(names, [Path::new("/jail/in"), Path::new("/")]);
    }
}
