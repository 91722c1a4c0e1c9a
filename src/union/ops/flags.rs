//! Inode flags: lsattr(1), chattr(1).

use std::os::fd::{AsFd, OwnedFd};

use rustix::fs::OFlags;

use super::super::copy_up::Data;
use super::super::spot::Spot;
use super::super::types::{Caller, Fault, FileFlags, FileKind, NodeId};
use super::super::{Outcome, Union};
use crate::format::protattr::Protection;
use crate::sys::fileflags::FSXATTR_LEN;
use crate::sys::{Errno, fileflags};

impl Union {
    /// The inode flags; `like` says in which form.
    pub fn file_flags(&self, id: NodeId, like: FileFlags) -> Outcome<FileFlags> {
        let node = self.node(id)?;
        only_files_and_directories(node.kind)?;
        let protection = self.protection(&node)?;
        let (spot, file) = self.at_object(&node, |spot, _| {
            let opened = open(spot).map_err(|errno| spot.fault("reading inode flags", errno));
            Ok((spot.clone(), opened?))
        })?;
        let fault = |errno| spot.fault("reading inode flags", errno);
        match like {
            FileFlags::Flags(_) => fileflags::get_flags(file.as_fd()).map(|mut flags| {
                protection.add_to_flags(&mut flags);
                FileFlags::Flags(flags)
            }),
            FileFlags::Extended(_) => fileflags::get_extended(file.as_fd()).map(|mut all| {
                change_xflags(&mut all, |flags| protection.add_to_xflags(flags));
                FileFlags::Extended(all)
            }),
        }
        .map_err(fault)
    }

    /// Sets the inode flags; copies up first.
    ///
    /// The kernel has asked whether the caller may since Linux 5.13. Before, a FUSE server had to:
    /// the owner and root may, and only the machine's root append-only and immutable.
    pub fn set_file_flags(&self, caller: Caller, id: NodeId, wanted: FileFlags) -> Outcome<()> {
        let node = self.node(id)?;
        only_files_and_directories(node.kind)?;
        let owner = self.at_object(&node, |spot, stat| Ok(self.attr_of(&node, spot, stat).uid))?;
        let (wanted, protection) = split(wanted);
        let protects = protection != self.protection(&node)?;
        let is_root = caller.uid == 0;
        if !is_root && (caller.uid != owner || protects) || protects && !self.is_machines {
            return Err(self.spot(&node)?.fault("setting inode flags", Errno::PERM));
        }
        self.copy_up(&node, Data::Later)?;
        let (spot, file) = self.at_object(&node, |spot, _| {
            let fault = |errno| spot.fault("setting inode flags", errno);
            if protects {
                self.write_protection(spot, protection).map_err(fault)?;
                node.protection.set(protection);
            }
            Ok((spot.clone(), open(spot).map_err(fault)?))
        })?;
        let fault = |errno| spot.fault("setting inode flags", errno);
        match wanted {
            FileFlags::Flags(flags) => fileflags::set_flags(file.as_fd(), flags),
            FileFlags::Extended(value) => fileflags::set_extended(file.as_fd(), &value),
        }
        .map_err(fault)
    }
}

/// The flags for the real object, and what goes into an attribute.
fn split(wanted: FileFlags) -> (FileFlags, Protection) {
    match wanted {
        FileFlags::Flags(mut flags) => {
            let protection = Protection::take_from_flags(&mut flags);
            (FileFlags::Flags(flags), protection)
        }
        FileFlags::Extended(mut all) => {
            let protection = change_xflags(&mut all, Protection::take_from_xflags);
            (FileFlags::Extended(all), protection)
        }
    }
}

/// `fsx_xflags` is the first field of `struct fsxattr`.
fn change_xflags<R>(all: &mut [u8; FSXATTR_LEN], change: impl FnOnce(&mut u32) -> R) -> R {
    let [a, b, c, d, ..] = *all;
    let mut flags = u32::from_ne_bytes([a, b, c, d]);
    let result = change(&mut flags);
    all[..4].copy_from_slice(&flags.to_ne_bytes());
    result
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
