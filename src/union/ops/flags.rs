//! Inode flags: lsattr(1), chattr(1).

use std::os::fd::{AsFd, OwnedFd};

use rustix::fs::OFlags;

use super::super::copy_up::Data;
use super::super::spot::Spot;
use super::super::types::{Fault, FileFlags, FileKind, NodeId};
use super::super::{Outcome, Union};
use crate::sys::{Errno, fileflags};

impl Union {
    /// The inode flags; `like` says in which form.
    pub fn file_flags(&self, id: NodeId, like: FileFlags) -> Outcome<FileFlags> {
        let node = self.node(id)?;
        only_files_and_directories(node.kind)?;
        let (spot, _) = self.spot_and_stat(&node)?;
        let fault = |errno| spot.fault("reading inode flags", errno);
        let file = open(&spot).map_err(fault)?;
        match like {
            FileFlags::Flags(_) => fileflags::get_flags(file.as_fd()).map(FileFlags::Flags),
            FileFlags::Extended(_) => {
                fileflags::get_extended(file.as_fd()).map(FileFlags::Extended)
            }
        }
        .map_err(fault)
    }

    /// Sets the inode flags; copies up first.
    pub fn set_file_flags(&self, id: NodeId, flags: FileFlags) -> Outcome<()> {
        let node = self.node(id)?;
        only_files_and_directories(node.kind)?;
        self.copy_up(&node, Data::Later)?;
        let (spot, _) = self.spot_and_stat(&node)?;
        let fault = |errno| spot.fault("setting inode flags", errno);
        let file = open(&spot).map_err(fault)?;
        match flags {
            FileFlags::Flags(flags) => fileflags::set_flags(file.as_fd(), flags),
            FileFlags::Extended(value) => fileflags::set_extended(file.as_fd(), &value),
        }
        .map_err(fault)?;
        // A descriptor that was opened before may do what the flags forbid from now on.
        self.ground.descriptors.remove(node.slot);
        Ok(())
    }
}

/// A descriptor that answers ioctls. A file without a name has one already.
fn open(spot: &Spot) -> Result<OwnedFd, Errno> {
    match spot {
        Spot::Open(file) => Ok(rustix::io::fcntl_dupfd_cloexec(file.as_fd(), 0)?),
        Spot::At { .. } => spot.open(OFlags::RDONLY | OFlags::NONBLOCK),
    }
}

/// Other kinds have no file system of their own to ask.
fn only_files_and_directories(kind: FileKind) -> Outcome<()> {
    match kind {
        FileKind::Regular | FileKind::Directory => Ok(()),
        _ => Err(Fault::merged("inode flags", Errno::NOTTY)),
    }
}
