//! A directory tree as a value that can be compared, and the difference of two of them as text.

use std::collections::BTreeMap;
use std::collections::hash_map::DefaultHasher;
use std::fmt::Write as _;
use std::fs::{self, File};
use std::hash::{Hash, Hasher};
use std::io::Read;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use rustix::fs::SeekFrom;

use super::calls::{xattr_get, xattr_names};

/// One object of a tree.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Node {
    /// The whole `st_mode`.
    pub(crate) mode: u32,
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    /// Size of a file or link target; 0 for everything else.
    pub(crate) size: u64,
    pub(crate) nlink: u64,
    pub(crate) rdev: u64,
    /// Modification time; 0 for directories, whose time every test changes.
    pub(crate) mtime: (i64, i64),
    /// Hash of the data (holes and zeroes count the same), or of a link's target.
    pub(crate) content: u64,
    pub(crate) xattrs: BTreeMap<String, Vec<u8>>,
}

/// A whole tree by path; the root is the empty path.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Snapshot(pub(crate) BTreeMap<PathBuf, Node>);

impl Snapshot {
    /// Reads the tree below `root`, `root` included.
    pub(crate) fn of(root: &Path) -> Self {
        let mut nodes = BTreeMap::new();
        read(root, PathBuf::new(), &mut nodes);
        Self(nodes)
    }

    /// The same with every node passed through `change`; what it answers `false` for goes.
    pub(crate) fn adjust(mut self, mut change: impl FnMut(&Path, &mut Node) -> bool) -> Self {
        self.0.retain(|path, node| change(path, node));
        self
    }

    /// Asserts that two trees are equal; the message lists what differs.
    #[track_caller]
    pub(crate) fn assert_same(&self, label: &str, other: &Snapshot, other_label: &str) {
        let difference = self.difference(other);
        assert!(
            difference.is_empty(),
            "trees differ (- {label}, + {other_label}):\n{difference}"
        );
    }

    /// One line for each object that only one side has or that differs.
    pub(crate) fn difference(&self, other: &Snapshot) -> String {
        let mut text = String::new();
        let paths: std::collections::BTreeSet<_> = self.0.keys().chain(other.0.keys()).collect();
        for path in paths {
            let (ours, theirs) = (self.0.get(path), other.0.get(path));
            if ours == theirs {
                continue;
            }
            for (sign, node) in [('-', ours), ('+', theirs)] {
                if let Some(node) = node {
                    writeln!(text, "{sign} {}: {}", path.display(), node.line()).expect("a line");
                }
            }
        }
        text
    }
}

impl Node {
    fn line(&self) -> String {
        let mut line = format!(
            "mode {:o} owner {}:{} size {} nlink {} rdev {:x} mtime {}.{:09} content {:x}",
            self.mode,
            self.uid,
            self.gid,
            self.size,
            self.nlink,
            self.rdev,
            self.mtime.0,
            self.mtime.1,
            self.content
        );
        for (name, value) in &self.xattrs {
            write!(line, " {name}={}", value.escape_ascii()).expect("a line");
        }
        line
    }

    /// Whether it is a directory.
    pub(crate) fn is_dir(&self) -> bool {
        self.mode & libc::S_IFMT == libc::S_IFDIR
    }

    /// Whether it is a whiteout.
    pub(crate) fn is_whiteout(&self) -> bool {
        self.mode & libc::S_IFMT == libc::S_IFCHR && self.rdev == 0
    }
}

fn read(path: &Path, relative: PathBuf, nodes: &mut BTreeMap<PathBuf, Node>) {
    let meta = fs::symlink_metadata(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    let kind = meta.file_type();
    let content = if kind.is_file() {
        data_hash(path, meta.len())
    } else if kind.is_symlink() {
        hash(
            fs::read_link(path)
                .expect("a target")
                .as_os_str()
                .as_bytes(),
        )
    } else {
        0
    };
    let sized = kind.is_file() || kind.is_symlink();
    let xattrs = xattr_names(path)
        .into_iter()
        .map(|name| String::from_utf8_lossy(&name).into_owned())
        .map(|name| {
            let value = xattr_get(path, &name).unwrap_or_default();
            (name, value)
        })
        .collect();
    let node = Node {
        mode: meta.mode(),
        uid: meta.uid(),
        gid: meta.gid(),
        size: if sized { meta.len() } else { 0 },
        nlink: meta.nlink(),
        rdev: meta.rdev(),
        mtime: if kind.is_dir() {
            (0, 0)
        } else {
            (meta.mtime(), meta.mtime_nsec())
        },
        content,
        xattrs,
    };
    if kind.is_dir() {
        for entry in fs::read_dir(path).unwrap_or_else(|e| panic!("{}: {e}", path.display())) {
            let name = entry.expect("an entry").file_name();
            read(&path.join(&name), relative.join(&name), nodes);
        }
    }
    nodes.insert(relative, node);
}

/// Hash of the blocks that aren't zero, with their places; holes are jumped over.
fn data_hash(path: &Path, size: u64) -> u64 {
    // Looking must not change the access time that a test asks for.
    let quiet = super::calls::open_flags(path, libc::O_NOATIME);
    let Ok(mut file) = quiet.or_else(|_| File::open(path)) else {
        return u64::MAX;
    };
    let mut hasher = DefaultHasher::new();
    let mut block = [0; 4096];
    let mut at = 0;
    while at < size {
        match rustix::fs::seek(&file, SeekFrom::Data(at)) {
            Ok(data) => at = data / 4096 * 4096,
            Err(rustix::io::Errno::NXIO) => break,
            Err(_) => {}
        }
        rustix::fs::seek(&file, SeekFrom::Start(at)).expect("seek");
        let mut length = 0;
        while length < block.len() {
            match file.read(&mut block[length..]).expect("read") {
                0 => break,
                more => length += more,
            }
        }
        if length == 0 {
            break;
        }
        if block[..length].iter().any(|byte| *byte != 0) {
            (at, &block[..length]).hash(&mut hasher);
        }
        at += length as u64;
    }
    hasher.finish()
}

fn hash(bytes: &[u8]) -> u64 {
    let mut hasher = DefaultHasher::new();
    bytes.hash(&mut hasher);
    hasher.finish()
}
