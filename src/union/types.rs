//! The values that go in and out of the merged tree.

use std::ffi::{OsStr, OsString};

use crate::sys::Errno;

/// Number of a node of the merged tree, unique as long as the node lives.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct NodeId(pub u64);

impl NodeId {
    /// The root of the merged tree.
    pub const ROOT: NodeId = NodeId(1);
}

/// What `stat` shows as `st_ino`. Equal to the node's [`NodeId`] except for the root, lower hard
/// links (each name is a node, all show one number) and the rare clash of two numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Ino(pub u64);

/// The type of a file (`S_IFMT` of its mode).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[allow(missing_docs)] // the seven names of inode(7) say it all
pub enum FileKind {
    Fifo,
    CharDevice,
    Directory,
    BlockDevice,
    Regular,
    Symlink,
    Socket,
}

impl FileKind {
    /// The type in a `st_mode`.
    pub(crate) fn of_mode(mode: u32) -> Self {
        match mode & libc::S_IFMT {
            libc::S_IFIFO => FileKind::Fifo,
            libc::S_IFCHR => FileKind::CharDevice,
            libc::S_IFDIR => FileKind::Directory,
            libc::S_IFBLK => FileKind::BlockDevice,
            libc::S_IFLNK => FileKind::Symlink,
            libc::S_IFSOCK => FileKind::Socket,
            _ => FileKind::Regular,
        }
    }
}

/// A point in time: seconds since the epoch (may be negative) and nanoseconds (0..1e9).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub struct Timestamp {
    /// Seconds since 1970-01-01 UTC.
    pub sec: i64,
    /// Nanoseconds after `sec`.
    pub nsec: u32,
}

/// The attributes of a node, as `stat(2)` shows them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Attr {
    /// `st_ino`.
    pub ino: Ino,
    /// Type of the file.
    pub kind: FileKind,
    /// Permission bits with setuid, setgid and sticky (`mode & 0o7777`).
    pub perm: u16,
    /// `st_nlink`; 1 for a merged directory.
    pub nlink: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Device number of a device node, in the kernel's `new_encode_dev` form.
    pub rdev: u32,
    /// Size in bytes.
    pub size: u64,
    /// Allocated blocks of 512 bytes.
    pub blocks: u64,
    /// Preferred block size for I/O.
    pub blksize: u32,
    /// Last access.
    pub atime: Timestamp,
    /// Last modification of the data.
    pub mtime: Timestamp,
    /// Last change of the inode.
    pub ctime: Timestamp,
}

/// A node that was looked up or made. The caller owes one `forget` for it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Entry {
    /// The node.
    pub id: NodeId,
    /// Tells apart two nodes that had one number at different times.
    pub generation: u64,
    /// Its attributes.
    pub attr: Attr,
}

impl Entry {
    /// Whether the node's number is what `stat` shows. Where it isn't, the kernel must not cache
    /// the attributes of a look-up: they come with the node's number in place of `st_ino`.
    pub fn shows_own_number(&self) -> bool {
        self.attr.ino.0 == self.id.0
    }
}

/// Who asks: ids as the mount's user namespace sees them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Caller {
    /// File system uid.
    pub uid: u32,
    /// File system gid.
    pub gid: u32,
}

/// A time to set.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SetTime {
    /// The present.
    Now,
    /// This moment.
    At(Timestamp),
}

/// The attributes to change; `None` leaves one as it is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct SetAttr {
    /// New permission bits (`& 0o7777`).
    pub perm: Option<u16>,
    /// New owner.
    pub uid: Option<u32>,
    /// New group.
    pub gid: Option<u32>,
    /// New size.
    pub size: Option<u64>,
    /// New access time.
    pub atime: Option<SetTime>,
    /// New modification time.
    pub mtime: Option<SetTime>,
}

/// What to make in `mknod`, `mkdir`, `symlink` and `create`.
#[derive(Debug, Clone, Copy)]
pub enum NewKind<'a> {
    /// A regular file.
    Regular,
    /// A directory.
    Directory,
    /// A fifo.
    Fifo,
    /// A socket.
    Socket,
    /// A character device with this number (`new_encode_dev` form).
    CharDevice(u32),
    /// A block device with this number (`new_encode_dev` form).
    BlockDevice(u32),
    /// A symbolic link to this target.
    Symlink(&'a OsStr),
}

/// How `rename` treats an existing target.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RenameMode {
    /// Replace it.
    Replace,
    /// Fail with `EEXIST` (`RENAME_NOREPLACE`).
    NoReplace,
    /// Swap the two (`RENAME_EXCHANGE`).
    Exchange,
}

/// Which privileges a write takes off the file: `FUSE_WRITE_KILL_SUIDGID`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum KillPriv {
    /// Drop setuid, and setgid where the group may execute or isn't the writer's.
    Drop {
        /// The writer's group.
        gid: u32,
    },
    /// Leave them.
    Keep,
}

/// What `lseek` looks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Seek {
    /// The next data (`SEEK_DATA`).
    Data,
    /// The next hole (`SEEK_HOLE`).
    Hole,
}

/// How `setxattr` treats an existing attribute.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum XattrMode {
    /// Create or replace.
    Set,
    /// Only create (`XATTR_CREATE`).
    Create,
    /// Only replace (`XATTR_REPLACE`).
    Replace,
}

/// One name of a directory listing.
#[derive(Debug, Clone, Copy)]
pub struct DirEntry<'a> {
    /// `d_ino`.
    pub ino: Ino,
    /// Where a later listing goes on behind this name (`d_off`).
    pub next: u64,
    /// `d_type`.
    pub kind: FileKind,
    /// The name; `.` and `..` are listed too.
    pub name: &'a OsStr,
}

/// Whether the taker of a listing wants more.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Flow {
    /// The entry was taken.
    Took,
    /// There was no room for it; stop before it.
    Full,
}

/// The numbers of `statfs(2)`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs)] // the fields are those of statvfs(3)
pub struct StatFs {
    pub blocks: u64,
    pub bfree: u64,
    pub bavail: u64,
    pub files: u64,
    pub ffree: u64,
    pub bsize: u32,
    pub namelen: u32,
    pub frsize: u32,
}

/// The inode flags that `FS_IOC_GETFLAGS` and `FS_IOC_FSGETXATTR` carry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FileFlags {
    /// `FS_IOC_GETFLAGS` / `FS_IOC_SETFLAGS`: `FS_*_FL` bits.
    Flags(u32),
    /// `FS_IOC_FSGETXATTR` / `FS_IOC_FSSETXATTR`: the whole `struct fsxattr`.
    Extended([u8; 28]),
}

/// Why a request failed: the errno for the caller, the rest for the log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fault {
    /// What the caller gets.
    pub errno: Errno,
    /// What was being done, for example `"copy-up: rename into upper"`.
    pub op: &'static str,
    /// The layer it was done to: `upper`, `lower 3`, `work`.
    pub place: Place,
    /// The name it was done to, where one was involved.
    pub name: Option<OsString>,
}

/// The layer that a [`Fault`] happened in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Place {
    /// The merged tree itself; no layer was asked.
    Merged,
    /// The upper layer.
    Upper,
    /// The work directory.
    Work,
    /// The lower layer with this index, 0 the topmost.
    Lower(u16),
}

impl std::fmt::Display for Place {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Place::Merged => f.write_str("merged"),
            Place::Upper => f.write_str("upper"),
            Place::Work => f.write_str("work"),
            Place::Lower(index) => write!(f, "lower {index}"),
        }
    }
}

impl Fault {
    /// A refusal by the merged tree's own rules.
    pub fn merged(op: &'static str, errno: Errno) -> Self {
        Self {
            errno,
            op,
            place: Place::Merged,
            name: None,
        }
    }

    /// Adds the name that it was about.
    #[must_use]
    pub fn named(mut self, name: &OsStr) -> Self {
        self.name = Some(name.to_os_string());
        self
    }
}

impl std::fmt::Display for Fault {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} in {}", self.op, self.place)?;
        if let Some(name) = &self.name {
            write!(f, ": {}", name.display())?;
        }
        write!(f, ": {}", self.errno)
    }
}

impl std::error::Error for Fault {}
