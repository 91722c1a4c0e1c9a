//! Reads trees into text that can be compared.

use std::collections::BTreeMap;
use std::collections::hash_map::DefaultHasher;
use std::ffi::OsStr;
use std::hash::{Hash, Hasher};
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, FileType, Mode, OFlags, RawDir, SeekFrom, Stat};

/// Times after this were made by the test, not by the layers or utimens: they are "now".
const RECENT: i64 = 1_600_000_000;

/// Says of a directory that its `d_ino` isn't its `st_ino`.
const OTHER_NUMBER: &str = " (other d_ino)";
/// Says it of anything else.
pub(crate) const OTHER_NUMBER_OF_FILE: &str = " (other d_ino of a file)";

fn other_number(stat: &Stat) -> &'static str {
    match kind_of(stat) {
        FileType::Directory => OTHER_NUMBER,
        _ => OTHER_NUMBER_OF_FILE,
    }
}

/// One object.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Node {
    /// All that must be the same on both sides.
    pub(crate) lines: Vec<String>,
    /// How many blocks of a file aren't holes.
    pub(crate) blocks: u64,
    /// `(st_dev, st_ino)`.
    pub(crate) identity: (u64, u64),
    pub(crate) kind: FileType,
    pub(crate) rdev: u64,
}

/// A tree by path; the root is the empty path.
pub(crate) type Tree = BTreeMap<PathBuf, Node>;

/// The type of what was stat'ed.
pub(crate) fn kind_of(stat: &Stat) -> FileType {
    FileType::from_raw_mode(stat.st_mode)
}

/// A stat without what is different by nature.
pub(crate) fn stat_text(stat: &Stat) -> String {
    let kind = kind_of(stat);
    let mut text = format!(
        "{kind:?} {:04o} {}:{} nlink {}",
        stat.st_mode & 0o7777,
        stat.st_uid,
        stat.st_gid,
        stat.st_nlink
    );
    if matches!(kind, FileType::RegularFile | FileType::Symlink) {
        text += &format!(" size {}", stat.st_size);
    }
    if matches!(kind, FileType::CharacterDevice | FileType::BlockDevice) {
        text += &format!(" rdev {:x}", stat.st_rdev);
    }
    text + &time_text(stat.st_mtime, stat.st_mtime_nsec as i64)
}

/// The time of the last change, for a stat's text.
pub(crate) fn time_text(seconds: i64, nanoseconds: i64) -> String {
    if seconds > RECENT {
        " mtime now".to_owned()
    } else {
        format!(" mtime {seconds}.{nanoseconds:09}")
    }
}

/// Bytes in short.
pub(crate) fn digest(bytes: &[u8]) -> String {
    if bytes.len() <= 24 {
        return format!("{} bytes {}", bytes.len(), bytes.escape_ascii());
    }
    let mut hasher = DefaultHasher::new();
    bytes.hash(&mut hasher);
    let head = bytes[..12].escape_ascii();
    format!("{} bytes {head}... hash {:x}", bytes.len(), hasher.finish())
}

/// The names in an open directory with `d_type` and `d_ino`.
pub(crate) type Listing = Vec<(Vec<u8>, FileType, u64)>;

/// A listing as text, sorted, and the names whose `d_ino` isn't what `stat` says. Names that are
/// listed but aren't there are left out: the kernel shows the whiteouts in a directory that is in
/// one layer only.
pub(crate) fn listing_text(dir: BorrowedFd<'_>, listing: &Listing) -> String {
    let mut names = Vec::new();
    for (name, kind, ino) in listing {
        let mut text = format!("{}:{kind:?}", name.escape_ascii());
        match rustix::fs::statat(dir, OsStr::from_bytes(name), AtFlags::SYMLINK_NOFOLLOW) {
            Err(rustix::io::Errno::NOENT) => continue,
            Ok(stat) if name != b".." && stat.st_ino != *ino => text += other_number(&stat),
            _ => {}
        }
        names.push(text);
    }
    names.sort();
    names.join(", ")
}

/// Lists an open directory from where it stands.
pub(crate) fn entries(dir: BorrowedFd<'_>, room: usize) -> io::Result<Listing> {
    let mut buffer = vec![MaybeUninit::uninit(); room];
    let mut dir = RawDir::new(dir, &mut buffer);
    let mut found = Vec::new();
    while let Some(entry) = dir.next() {
        let entry = entry?;
        found.push((
            entry.file_name().to_bytes().to_vec(),
            entry.file_type(),
            entry.ino(),
        ));
    }
    Ok(found)
}

/// How extended attributes are taken over: name and value to what is compared, if anything.
pub(crate) type ShowXattr<'a> = &'a dyn Fn(&str, &[u8]) -> Option<String>;

/// Attributes as they are.
pub(crate) fn plainly(name: &str, value: &[u8]) -> Option<String> {
    // Labels of the machine's security module aren't ours.
    (name != "security.selinux").then(|| format!("{name}={}", value.escape_ascii()))
}

/// Reads a tree. What can't be read is part of it, as an error's text.
pub(crate) fn tree(root: &Path, xattr: ShowXattr<'_>) -> io::Result<Tree> {
    let mut tree = Tree::new();
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let dir = rustix::fs::open(root, flags, Mode::empty())?;
    let stat = rustix::fs::fstat(&dir)?;
    walk(
        root,
        &dir,
        PathBuf::new(),
        &stat,
        Vec::new(),
        xattr,
        &mut tree,
    )?;
    Ok(tree)
}

fn walk(
    root: &Path,
    dir: &OwnedFd,
    path: PathBuf,
    stat: &Stat,
    mut lines: Vec<String>,
    xattr: ShowXattr<'_>,
    tree: &mut Tree,
) -> io::Result<()> {
    lines.push(stat_text(stat));
    xattrs(&root.join(&path), xattr, &mut lines);
    tree.insert(path.clone(), node(lines, stat));
    for (name, kind, ino) in entries(dir.as_fd(), 8192)? {
        if name == b"." || name == b".." {
            continue;
        }
        let name = OsStr::from_bytes(&name);
        let child = path.join(name);
        let stat = match rustix::fs::statat(dir, name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(stat) => stat,
            // The kernel shows the whiteouts in a directory that is in one layer only.
            Err(rustix::io::Errno::NOENT) => continue,
            Err(error) => {
                let lines = vec![format!("listed, but {error}")];
                tree.insert(
                    child,
                    Node {
                        lines,
                        identity: (0, 0),
                        blocks: 0,
                        kind,
                        rdev: 0,
                    },
                );
                continue;
            }
        };
        let mut lines = Vec::new();
        let mut blocks = 0;
        if kind != kind_of(&stat) {
            lines.push(format!("d_type {kind:?}"));
        }
        if ino != stat.st_ino {
            lines.push(other_number(&stat).to_owned());
        }
        match kind_of(&stat) {
            FileType::Directory => {
                let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
                match rustix::fs::openat(dir, name, flags, Mode::empty()) {
                    Ok(below) => walk(root, &below, child, &stat, lines, xattr, tree)?,
                    Err(error) => {
                        lines.push(format!("open: {error}"));
                        tree.insert(child, node(lines, &stat));
                    }
                }
                continue;
            }
            FileType::RegularFile => match data(dir, name, stat.st_size as u64) {
                Ok((text, held)) => {
                    lines.push(text);
                    blocks = held;
                }
                Err(error) => lines.push(format!("reading: {error}")),
            },
            FileType::Symlink => lines.push(match rustix::fs::readlinkat(dir, name, Vec::new()) {
                Ok(target) => format!("to {target:?}"),
                Err(error) => format!("readlink: {error}"),
            }),
            _ => {}
        }
        lines.push(stat_text(&stat));
        xattrs(&root.join(&child), xattr, &mut lines);
        let found = node(lines, &stat);
        tree.insert(child, Node { blocks, ..found });
    }
    Ok(())
}

fn node(lines: Vec<String>, stat: &Stat) -> Node {
    Node {
        lines,
        blocks: 0,
        identity: (stat.st_dev, stat.st_ino),
        kind: kind_of(stat),
        rdev: stat.st_rdev,
    }
}

fn xattrs(path: &Path, show: ShowXattr<'_>, lines: &mut Vec<String>) {
    let mut names = vec![0; 70_000];
    let length = match rustix::fs::llistxattr(path, &mut names[..]) {
        Ok(length) => length,
        Err(error) => return lines.push(format!("listxattr: {error}")),
    };
    let mut names: Vec<_> = names[..length]
        .split(|b| *b == 0)
        .filter(|name| !name.is_empty())
        .collect();
    names.sort_unstable();
    for name in names {
        let mut value = vec![0; 70_000];
        let name = String::from_utf8_lossy(name);
        match rustix::fs::lgetxattr(path, &*name, &mut value[..]) {
            Ok(length) => lines.extend(show(&name, &value[..length])),
            Err(error) => lines.push(format!("{name}: {error}")),
        }
    }
}

/// A file's bytes as a hash, and how many of its blocks aren't holes.
fn data(dir: &OwnedFd, name: &OsStr, size: u64) -> io::Result<(String, u64)> {
    let flags =
        OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC | OFlags::NOATIME;
    let file = rustix::fs::openat(dir, name, flags, Mode::empty())?;
    let mut blocks = 0;
    let mut at = 0;
    while at < size {
        let start = match rustix::fs::seek(&file, SeekFrom::Data(at)) {
            Err(rustix::io::Errno::NXIO) => break,
            start => start?,
        };
        at = rustix::fs::seek(&file, SeekFrom::Hole(start))?;
        blocks += at.div_ceil(4096) - start / 4096;
    }
    let mut hasher = DefaultHasher::new();
    let mut block = vec![0; 1 << 16];
    let mut at = 0;
    loop {
        let read = rustix::io::pread(&file, &mut block[..], at)?;
        if read == 0 {
            break;
        }
        block[..read].hash(&mut hasher);
        at += read as u64;
    }
    Ok((format!("{at} bytes, hash {:x}", hasher.finish()), blocks))
}

/// A path as text.
pub(crate) fn shown(path: &Path) -> String {
    path.to_path_buf()
        .into_os_string()
        .into_vec()
        .escape_ascii()
        .to_string()
}
