//! What a layer holds, in a few numbers: enough to notice that it was damaged, without reading any
//! data.

use std::ffi::{OsStr, OsString};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use rustix::fs::{AtFlags, CWD, FileType, Mode, OFlags, Stat, fstat, openat, statat};
use sha2::{Digest as _, Sha256};

use super::Digest;
use crate::sys::{Errno, tree};

/// The numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Summary {
    /// Names below the root.
    pub(super) files: u64,
    /// Bytes in regular files.
    pub(super) bytes: u64,
    /// Of every name with its type, mode, size, time and device number.
    pub(super) digest: Digest,
}

const FLAGS: OFlags = OFlags::RDONLY
    .union(OFlags::DIRECTORY)
    .union(OFlags::NOFOLLOW)
    .union(OFlags::CLOEXEC);

impl Summary {
    /// That of the directory `root`.
    pub(super) fn of(root: &Path) -> Result<Self, Errno> {
        let mut counter = Counter {
            files: 0,
            bytes: 0,
            hasher: Sha256::new(),
            pending: Vec::with_capacity(PIECE),
        };
        let root = openat(CWD, root, FLAGS, Mode::empty())?;
        counter.note(OsStr::new("."), &fstat(&root)?);
        counter.directory(root)?;
        counter.flush();
        Ok(Self {
            files: counter.files,
            bytes: counter.bytes,
            digest: Digest::of_all(&[&counter.hasher.finalize()]),
        })
    }
}

struct Counter {
    files: u64,
    bytes: u64,
    hasher: Sha256,
    /// What isn't hashed yet: many short pieces are slow.
    pending: Vec<u8>,
}

/// So much is hashed at once.
const PIECE: usize = 16 << 10;

impl Counter {
    fn directory(&mut self, dir: OwnedFd) -> Result<(), Errno> {
        let mut names: Vec<OsString> = Vec::new();
        tree::for_each(dir.as_fd(), |name, _, _| names.push(name.to_os_string()))?;
        names.sort_unstable();
        let mut below = Vec::new();
        for name in names {
            let stat = statat(&dir, &name, AtFlags::SYMLINK_NOFOLLOW)?;
            self.note(&name, &stat);
            self.files += 1;
            match FileType::from_raw_mode(stat.st_mode) {
                FileType::RegularFile => self.bytes += u64::try_from(stat.st_size).unwrap_or(0),
                FileType::Directory => below.push(name),
                _ => {}
            }
        }
        // No more than one descriptor for each level.
        for name in below {
            self.pending.extend_from_slice(name.as_bytes());
            self.pending.push(b'/');
            self.directory(openat(&dir, &name, FLAGS, Mode::empty())?)?;
        }
        self.pending.extend_from_slice(b"..");
        Ok(())
    }

    fn note(&mut self, name: &OsStr, stat: &Stat) {
        let size = match FileType::from_raw_mode(stat.st_mode) {
            FileType::Directory => 0,
            _ => stat.st_size,
        };
        self.pending.extend_from_slice(name.as_bytes());
        self.pending.push(0);
        // The fields have other widths on other machines.
        self.pending.extend_from_slice(&stat.st_mode.to_le_bytes());
        for number in [
            i128::from(size),
            i128::from(stat.st_mtime),
            i128::from(stat.st_mtime_nsec),
            i128::from(stat.st_rdev),
        ] {
            self.pending.extend_from_slice(&number.to_le_bytes());
        }
        if self.pending.len() >= PIECE {
            self.flush();
        }
    }

    fn flush(&mut self) {
        self.hasher.update(&self.pending);
        self.pending.clear();
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn every_kind_of_damage_is_noticed() {
        let scratch = tempfile::tempdir().unwrap();
        let top = scratch.path().join("top");
        fs::create_dir_all(top.join("a/b")).unwrap();
        fs::write(top.join("a/file"), "12345").unwrap();
        fs::write(top.join("a/b/other"), "1").unwrap();
        let before = Summary::of(&top).unwrap();
        assert_eq!((before.files, before.bytes), (4, 6));
        assert_eq!(Summary::of(&top), Ok(before));
        let damages: [&dyn Fn(); 6] = [
            &|| fs::write(top.join("a/file"), "1234").unwrap(),
            &|| fs::write(top.join("a/file"), "54321").unwrap(),
            &|| fs::write(top.join("a/new"), "").unwrap(),
            &|| fs::rename(top.join("a/b"), top.join("a/c")).unwrap(),
            &|| fs::set_permissions(&top, fs::Permissions::from_mode(0o700)).unwrap(),
            &|| fs::remove_file(top.join("a/new")).unwrap(),
        ];
        let mut seen = vec![before];
        for damage in damages {
            // Two changes may be within one tick of the file system's clock.
            std::thread::sleep(std::time::Duration::from_millis(15));
            damage();
            let now = Summary::of(&top).unwrap();
            assert!(!seen.contains(&now));
            seen.push(now);
        }
        fs::remove_dir_all(&top).unwrap();
        assert_eq!(Summary::of(&top), Err(Errno::NOENT));
    }
}
