//! The merged tree, with no FUSE in it.

mod types;

use std::ffi::OsStr;

use crate::options::Options;
use crate::{Error, Result};
pub use types::*;

/// `Result` of a request to the merged tree.
pub type Outcome<T> = std::result::Result<T, Fault>;

/// What the merged tree does about owners that it can't give.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Owners {
    /// Owners are what the layers say; one that can't be given is an error, as with the kernel.
    #[default]
    Real,
    /// For a user namespace whose root is not the machine's: unmapped owners are shown as root,
    /// and an owner, mode or device that can't be given is recorded in
    /// `user.containers.override_stat` (podman's format).
    FakeRoot,
}

/// What a merged tree is made of.
#[derive(Debug, Clone, Default)]
pub struct Setup {
    /// Layers and format options; paths are resolved once, when the tree is opened.
    pub options: Options,
    /// The owners' policy.
    pub owners: Owners,
}

/// The merged tree.
#[derive(Debug)]
pub struct Union;

impl Union {
    /// Takes every layer's descriptor, locks and sweeps the work directory. After this no path
    /// is resolved again. Errors are the ones a user can mend.
    pub fn open(_setup: &Setup) -> Result<Self> {
        Err(Error::system("opening the layers"))
    }

    /// The root's attributes.
    pub fn root(&self) -> Outcome<Attr> {
        todo!()
    }

    /// Looks a name up; `None` says that it isn't there (a caller may remember that).
    /// Counts one look-up.
    pub fn lookup(&self, _parent: NodeId, _name: &OsStr) -> Outcome<Option<Entry>> {
        todo!()
    }

    /// Gives back `count` look-ups of a node.
    pub fn forget(&self, _id: NodeId, _count: u64) {
        todo!()
    }

    /// The attributes of a node.
    pub fn getattr(&self, _id: NodeId) -> Outcome<Attr> {
        todo!()
    }

    /// Changes attributes; copies up first.
    pub fn setattr(&self, _caller: Caller, _id: NodeId, _change: &SetAttr) -> Outcome<Attr> {
        todo!()
    }

    /// The target of a symbolic link.
    pub fn readlink(&self, _id: NodeId) -> Outcome<Vec<u8>> {
        todo!()
    }

    /// Makes a name that must not exist yet. `mode` has the permission bits before the umask.
    /// Counts one look-up.
    pub fn make(
        &self,
        _caller: Caller,
        _parent: NodeId,
        _name: &OsStr,
        _kind: NewKind<'_>,
        _mode: u32,
        _umask: u32,
    ) -> Outcome<Entry> {
        todo!()
    }

    /// Makes a further name for a file. Counts one look-up.
    pub fn link(&self, _id: NodeId, _parent: NodeId, _name: &OsStr) -> Outcome<Entry> {
        todo!()
    }

    /// Removes a name that isn't a directory.
    pub fn unlink(&self, _parent: NodeId, _name: &OsStr) -> Outcome<()> {
        todo!()
    }

    /// Removes an empty directory.
    pub fn rmdir(&self, _parent: NodeId, _name: &OsStr) -> Outcome<()> {
        todo!()
    }

    /// Renames.
    pub fn rename(
        &self,
        _parent: NodeId,
        _name: &OsStr,
        _new_parent: NodeId,
        _new_name: &OsStr,
        _mode: RenameMode,
    ) -> Outcome<()> {
        todo!()
    }

    /// Reads up to `buffer.len()` bytes; fewer only at the end of the file.
    pub fn read(&self, _id: NodeId, _offset: u64, _buffer: &mut [u8]) -> Outcome<usize> {
        todo!()
    }

    /// Writes; copies up first.
    pub fn write(
        &self,
        _id: NodeId,
        _offset: u64,
        _data: &[u8],
        _kill: KillPriv,
    ) -> Outcome<usize> {
        todo!()
    }

    /// Writes a file's data (`data_only`: without its attributes) to the disk.
    pub fn fsync(&self, _id: NodeId, _data_only: bool) -> Outcome<()> {
        todo!()
    }

    /// As [`Union::fsync`] for a directory.
    pub fn fsyncdir(&self, _id: NodeId, _data_only: bool) -> Outcome<()> {
        todo!()
    }

    /// fallocate(2): `mode` is its mode argument.
    pub fn fallocate(&self, _id: NodeId, _offset: u64, _length: u64, _mode: i32) -> Outcome<()> {
        todo!()
    }

    /// lseek(2) for data and holes.
    pub fn seek(&self, _id: NodeId, _offset: u64, _seek: Seek) -> Outcome<u64> {
        todo!()
    }

    /// copy_file_range(2).
    pub fn copy_range(
        &self,
        _from: NodeId,
        _from_offset: u64,
        _to: NodeId,
        _to_offset: u64,
        _length: u64,
    ) -> Outcome<usize> {
        todo!()
    }

    /// Lists a directory from `offset` (0, or a `next` of an earlier entry) until `take` is full.
    pub fn readdir(
        &self,
        _id: NodeId,
        _offset: u64,
        _take: &mut dyn FnMut(DirEntry<'_>) -> Flow,
    ) -> Outcome<()> {
        todo!()
    }

    /// As [`Union::readdir`], each name looked up; counts one look-up for each entry that was
    /// taken, `.` and `..` excepted: these come without an [`Entry`].
    pub fn readdir_plus(
        &self,
        _id: NodeId,
        _offset: u64,
        _take: &mut dyn FnMut(DirEntry<'_>, Option<Entry>) -> Flow,
    ) -> Outcome<()> {
        todo!()
    }

    /// The value of an extended attribute.
    pub fn getxattr(&self, _id: NodeId, _name: &OsStr) -> Outcome<Vec<u8>> {
        todo!()
    }

    /// The names of the extended attributes, each ended by a NUL.
    pub fn listxattr(&self, _id: NodeId) -> Outcome<Vec<u8>> {
        todo!()
    }

    /// Sets an extended attribute; copies up first.
    pub fn setxattr(
        &self,
        _caller: Caller,
        _id: NodeId,
        _name: &OsStr,
        _value: &[u8],
        _mode: XattrMode,
    ) -> Outcome<()> {
        todo!()
    }

    /// Removes an extended attribute; copies up first.
    pub fn removexattr(&self, _id: NodeId, _name: &OsStr) -> Outcome<()> {
        todo!()
    }

    /// Space and inodes of the upper layer, or of the top lower layer without one.
    pub fn statfs(&self) -> Outcome<StatFs> {
        todo!()
    }

    /// The inode flags; `like` says in which form.
    pub fn file_flags(&self, _id: NodeId, _like: FileFlags) -> Outcome<FileFlags> {
        todo!()
    }

    /// Sets the inode flags; copies up first.
    pub fn set_file_flags(&self, _id: NodeId, _flags: FileFlags) -> Outcome<()> {
        todo!()
    }

    /// Writes everything to the disk (unless volatile), empties the work directory and lets the
    /// layers go.
    pub fn close(&self) -> Outcome<()> {
        todo!()
    }
}
