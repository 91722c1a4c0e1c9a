//! Operations as data: what can be asked of a tree.

use std::path::{Path, PathBuf};

use super::look;

/// How many descriptors a case holds at most.
pub(crate) const SLOTS: usize = 4;
/// How many mappings a case holds at most.
pub(crate) const MAPS: usize = 2;
/// The length of a mapping.
pub(crate) const MAP_LENGTH: usize = 16_384;

/// The object of an operation that takes a path or a descriptor.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum On {
    Path(PathBuf),
    Slot(usize),
}

/// An attribute's value; printed in short.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct Value(pub(crate) Vec<u8>);

impl std::fmt::Debug for Value {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&look::digest(&self.0))
    }
}

/// What mknod(2) makes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Special {
    Fifo,
    Socket,
    Null,
    Loop,
    Whiteout,
    Regular,
}

/// A time for utimensat(2).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Moment {
    Now,
    Omit,
    At(i64),
}

/// An advisory lock: `F_RDLCK`, `F_WRLCK` or `F_UNLCK`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Lock {
    /// flock(2).
    Whole(i32),
    /// Of the descriptor, for a range.
    Range { kind: i32, at: i64, length: i64 },
    /// Who is in the way?
    Ask { kind: i32, at: i64, length: i64 },
}

/// Where lseek(2) counts from, beside the start.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Whence {
    Data,
    Hole,
    /// Stays there.
    End,
}

/// One system call or a few that belong together.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Op {
    /// `O_*` flags; `O_NONBLOCK`, `O_CLOEXEC` are always added.
    Open {
        slot: usize,
        path: PathBuf,
        flags: i32,
        mode: u32,
    },
    Close {
        slot: usize,
    },
    /// `None` reads from the descriptor's position.
    Read {
        slot: usize,
        at: Option<u64>,
        length: usize,
    },
    Write {
        slot: usize,
        at: Option<u64>,
        length: usize,
        seed: u64,
    },
    Truncate {
        on: On,
        size: u64,
    },
    Chmod {
        on: On,
        mode: u32,
    },
    Chown {
        on: On,
        uid: Option<u32>,
        gid: Option<u32>,
    },
    Utimens {
        on: On,
        atime: Moment,
        mtime: Moment,
    },
    Mkdir {
        path: PathBuf,
        mode: u32,
    },
    Rmdir {
        path: PathBuf,
    },
    Mknod {
        path: PathBuf,
        kind: Special,
        mode: u32,
    },
    Symlink {
        target: PathBuf,
        path: PathBuf,
    },
    Readlink {
        path: PathBuf,
    },
    Link {
        from: PathBuf,
        to: PathBuf,
    },
    Unlink {
        path: PathBuf,
    },
    /// `RENAME_*` flags.
    Rename {
        from: PathBuf,
        to: PathBuf,
        flags: u32,
    },
    Getxattr {
        on: On,
        name: &'static str,
        room: usize,
    },
    Listxattr {
        on: On,
        room: usize,
    },
    Setxattr {
        on: On,
        name: &'static str,
        value: Value,
        flags: u32,
    },
    Removexattr {
        on: On,
        name: &'static str,
    },
    Readdir {
        on: On,
        /// Bytes for each call.
        room: usize,
    },
    Stat {
        on: On,
        follow: bool,
    },
    Access {
        path: PathBuf,
        mode: u32,
    },
    Fallocate {
        slot: usize,
        mode: u32,
        at: u64,
        length: u64,
    },
    Seek {
        slot: usize,
        whence: Whence,
        at: u64,
    },
    CopyRange {
        from: usize,
        from_at: u64,
        to: usize,
        to_at: u64,
        length: usize,
    },
    /// FICLONE, or a copy where there are no clones.
    Clone {
        from: usize,
        to: usize,
    },
    /// sendfile(2).
    Send {
        from: usize,
        at: u64,
        to: usize,
        length: usize,
    },
    Fsync {
        slot: usize,
        data: bool,
    },
    Lock {
        slot: usize,
        lock: Lock,
    },
    /// `FS_*_FL` flags: all are set to these, or just read.
    Flags {
        on: On,
        set: Option<u32>,
    },
    Statx {
        on: On,
        /// `AT_STATX_FORCE_SYNC`.
        force: bool,
    },
    Statfs {
        path: PathBuf,
    },
    /// A new name for what is open.
    LinkSlot {
        slot: usize,
        to: PathBuf,
    },
    /// Paths count from the directory that is open there.
    Within {
        slot: usize,
        op: Box<Op>,
    },
    /// Maps a path privately or shared, reads, writes a private page, unmaps.
    MapOnce {
        path: PathBuf,
        shared: bool,
    },
    /// Keeps a shared writable mapping of a descriptor.
    Map {
        map: usize,
        slot: usize,
    },
    MapRead {
        map: usize,
        at: usize,
    },
    MapWrite {
        map: usize,
        at: usize,
        length: usize,
        seed: u64,
    },
    Unmap {
        map: usize,
    },
    /// Lets the kernel forget what nobody uses, on the whole machine: only on request.
    DropCaches,
}

/// An operation and who does it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Step {
    pub(crate) uid: u32,
    pub(crate) umask: u32,
    pub(crate) op: Op,
}

pub(crate) const IMMUTABLE: u32 = 0x10;
pub(crate) const APPEND: u32 = 0x20;
/// The inode flags that forbid something.
pub(crate) const PROTECTING: u32 = IMMUTABLE | APPEND;

/// The fallocate(2) modes that FUSE doesn't pass on: `COLLAPSE_RANGE`, `INSERT_RANGE`,
/// `UNSHARE_RANGE`.
pub(crate) const MOVING: u32 = 8 | 32 | 64;

/// Whether it makes a link.
pub(crate) fn is_link(op: &Op) -> bool {
    match op {
        Op::Link { .. } | Op::LinkSlot { .. } => true,
        Op::Within { op, .. } => is_link(op),
        _ => false,
    }
}

/// What the call is called.
pub(crate) fn name_of(op: &Op) -> String {
    let text = format!("{op:?}");
    text.split([' ', '{']).next().unwrap_or_default().to_owned()
}

/// What a step was about.
pub(crate) fn objects(op: &Op) -> Vec<On> {
    let path = |path: &PathBuf| On::Path(path.clone());
    match op {
        Op::Open { path: at, .. }
        | Op::Mkdir { path: at, .. }
        | Op::Rmdir { path: at }
        | Op::Mknod { path: at, .. }
        | Op::Symlink { path: at, .. }
        | Op::Unlink { path: at } => vec![
            path(at),
            On::Path(at.parent().map_or_else(PathBuf::new, Path::to_path_buf)),
        ],
        Op::Link { from, to } | Op::Rename { from, to, .. } => vec![path(from), path(to)],
        Op::Write { slot, .. } | Op::Fallocate { slot, .. } | Op::CopyRange { to: slot, .. } => {
            vec![On::Slot(*slot)]
        }
        Op::Truncate { on, .. }
        | Op::Chmod { on, .. }
        | Op::Chown { on, .. }
        | Op::Utimens { on, .. }
        | Op::Setxattr { on, .. }
        | Op::Removexattr { on, .. } => vec![on.clone()],
        _ => Vec::new(),
    }
}
