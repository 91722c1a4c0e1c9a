//! Whose a mount is, as the mount table tells: nobody can make that say something else.
//!
//! `user_id=` is a number in the user namespace in which the mount was made. We take that for the
//! owner of the mount namespace, and read from the processes in it what its numbers are here.

use std::collections::HashMap;
use std::fs;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};

use crate::sys::mountinfo::Mount;
use crate::sys::{Errno, namespace};

/// What the users of other namespaces are called in ours.
#[derive(Debug)]
pub(super) struct Users {
    own: Option<u64>,
    maps: HashMap<u64, Vec<Range>>,
}

/// A line of a `uid_map`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Range {
    there: u32,
    here: u32,
    count: u32,
}

impl Users {
    /// Those of every user namespace that has a process into which we may look.
    pub(super) fn known() -> Self {
        let mut maps = HashMap::new();
        for entry in fs::read_dir("/proc").into_iter().flatten().flatten() {
            let process = entry.path();
            if let Some(namespace) = user_namespace(&process)
                && !maps.contains_key(&namespace)
                && let Ok(map) = fs::read_to_string(process.join("uid_map"))
            {
                maps.insert(namespace, map.lines().filter_map(Range::parse).collect());
            }
        }
        Self {
            own: user_namespace(Path::new("/proc/self")),
            maps,
        }
    }

    /// Who mounted a FUSE mount, in the mount namespace of `holder` or in ours.
    pub(super) fn mounter(&self, holder: Option<u32>, mount: &Mount) -> Option<u32> {
        let process = match holder {
            Some(pid) => PathBuf::from(format!("/proc/{pid}")),
            None => PathBuf::from("/proc/self"),
        };
        let owner = owner(&process)?;
        let id = number(mount, b"user_id=")?;
        // The map of our own namespace tells what its numbers are in its parent.
        if self.own == Some(owner) {
            return Some(id);
        }
        self.maps
            .get(&owner)?
            .iter()
            .find_map(|range| range.here(id))
    }
}

impl Range {
    fn parse(line: &str) -> Option<Self> {
        let mut numbers = line.split_ascii_whitespace().map(|word| word.parse().ok());
        Some(Self {
            there: numbers.next()??,
            here: numbers.next()??,
            count: numbers.next()??,
        })
    }

    fn here(self, id: u32) -> Option<u32> {
        let offset = id.checked_sub(self.there)?;
        (offset < self.count).then(|| self.here.checked_add(offset))?
    }
}

/// A number among the options of a file system.
pub(super) fn number(mount: &Mount, name: &[u8]) -> Option<u32> {
    let text = |option: &Vec<u8>| {
        let number = option.strip_prefix(name)?;
        std::str::from_utf8(number).ok()?.parse().ok()
    };
    mount.super_options.iter().find_map(text)
}

fn user_namespace(process: &Path) -> Option<u64> {
    let stat = rustix::fs::stat(process.join("ns/user")).ok()?;
    Some(stat.st_ino)
}

/// The user namespace that owns the mount namespace of a process.
fn owner(process: &Path) -> Option<u64> {
    let mounts = fs::File::open(process.join("ns/mnt")).ok()?;
    match namespace::owner(mounts.as_fd()) {
        Ok(owner) => Some(rustix::fs::fstat(owner).ok()?.st_ino),
        // Before Linux 4.9. Most processes are in the user namespace that owns their mounts.
        Err(Errno::NOTTY) => user_namespace(process),
        Err(_) => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_those_of_our_namespace() {
        let map: Vec<_> = "         0       1000          1\n         1     100000      65536\n"
            .lines()
            .filter_map(Range::parse)
            .collect();
        let here = |id| map.iter().find_map(|range| range.here(id));
        assert_eq!(here(0), Some(1000));
        assert_eq!(here(1), Some(100_000));
        assert_eq!(here(65536), Some(165_535));
        assert_eq!(here(65537), None);
        let unmapped = Range::parse("5 4294967295 10").unwrap();
        assert_eq!((unmapped.here(4), unmapped.here(6)), (None, None));
    }
}
