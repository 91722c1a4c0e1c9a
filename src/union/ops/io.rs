//! Data: read, write, fsync, fallocate, lseek, copy_file_range.
//!
//! There is no open file here. Every request names a node, so whatever was opened before a
//! copy-up reads the copy after it.

use std::ffi::OsStr;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

use rustix::fs::{AtFlags, FallocateFlags, OFlags, SeekFrom, StatxAttributes, StatxFlags};

use super::super::copy_data::write_some;
use super::super::copy_up::{Data, open_for_reading};
use super::super::descriptors::{Access, OpenFile};
use super::super::metacopy::DataPlace;
use super::super::node::{Node, Real};
use super::super::spot::Spot;
use super::super::types::{Caller, Fault, FileKind, KillPriv, NodeId, Seek};
use super::super::{ATTEMPTS, Outcome, Union};
use crate::sys::{Errno, xattr};

/// A read within one page is short at the end of the file alone. A longer one may be cut by a page
/// that can't be read, and the next one says so.
const PAGE: u64 = 4096;

impl Union {
    /// Reads up to `buffer.len()` bytes; fewer only at the end of the file.
    pub fn read(&self, id: NodeId, offset: u64, buffer: &mut [u8]) -> Outcome<usize> {
        let node = self.node(id)?;
        let file = self.file_for_reading(&node)?;
        let mut done = 0;
        while done < buffer.len() {
            let at = offset + done as u64;
            let got = rustix::io::retry_on_intr(|| {
                rustix::io::pread(file.as_fd(), &mut buffer[done..], at)
            });
            let got = got.map_err(|errno| self.io_fault(&node, "reading", errno))?;
            let wanted = buffer.len() - done;
            done += got;
            let one_page = wanted as u64 + at % PAGE <= PAGE;
            if got == 0 || (got < wanted && one_page) {
                break;
            }
        }
        Ok(done)
    }

    /// Whether a file's data is in the place where it stays: no copy-up can come any more.
    pub fn is_settled(&self, id: NodeId) -> bool {
        let settled = |node: Arc<Node>| {
            let whole = self.data_place(&node).is_none();
            self.work.is_none() || (node.is_upper() && whole)
        };
        self.node(id).is_ok_and(settled)
    }

    /// The real file of one that is settled, if writing to it takes nothing but a write.
    pub(crate) fn settled_file(&self, id: NodeId) -> Option<Arc<OpenFile>> {
        let node = self.node(id).ok()?;
        let regular = node.kind == FileKind::Regular;
        if !regular || !self.is_settled(id) || self.protection(&node).ok()?.is_any() {
            return None;
        }
        let file = self.file_for_reading(&node).ok()?;
        is_plain(&file).then_some(file)
    }

    /// Writes; copies up first.
    pub fn write(&self, id: NodeId, offset: u64, data: &[u8], kill: KillPriv) -> Outcome<usize> {
        let node = self.node(id)?;
        let protection = self.protection(&node)?;
        if protection.immutable {
            return Err(self.io_fault(&node, "writing to an immutable file", Errno::PERM));
        }
        // FUSE doesn't tell an append from another write that begins at the end.
        if protection.append_only
            && self.at_object(&node, |_, stat| Ok(stat.st_size as u64))? != offset
        {
            return Err(self.io_fault(&node, "writing to an append-only file", Errno::PERM));
        }
        let file = self.file_for_writing(&node)?;
        if file.access() == Access::Append {
            let stat = rustix::fs::fstat(file.as_fd())
                .map_err(|errno| self.io_fault(&node, "stat before a write", errno))?;
            if stat.st_size as u64 != offset {
                return Err(self.io_fault(&node, "writing to an append-only file", Errno::PERM));
            }
        }
        // Before the first byte: never somebody's data in a file that is set-user-id.
        if let KillPriv::Drop { gid } = kill {
            let stat = rustix::fs::fstat(file.as_fd())
                .map_err(|errno| self.io_fault(&node, "stat before a write", errno))?;
            self.drop_privileges(&node, &stat, gid)?;
        }
        write_some(file.as_fd(), data, offset)
            .map_err(|errno| self.io_fault(&node, "writing", errno))
    }

    /// Writes a file's data (`data_only`: without its attributes) to the disk.
    pub fn fsync(&self, id: NodeId, data_only: bool) -> Outcome<()> {
        let node = self.node(id)?;
        let synced = self
            .work
            .as_ref()
            .is_some_and(|work| work.durability.syncs());
        // What is in a lower layer has not been changed by us.
        if !synced || !node.is_upper() || node.kind != FileKind::Regular {
            return Ok(());
        }
        // A metadata copy's data was not changed either.
        let file = match self.data_place(&node) {
            Some(_) if data_only => return Ok(()),
            Some(_) => {
                let opened = self.at_object(&node, |spot, _| {
                    self.open_to_read(&node, spot)
                        .map_err(|errno| spot.fault("opening", errno))
                })?;
                OpenFile::new(opened, Access::Read)
            }
            None => self.file_for_reading(&node)?,
        };
        let result = if data_only {
            rustix::fs::fdatasync(file.as_fd())
        } else {
            rustix::fs::fsync(file.as_fd())
        };
        result.map_err(|errno| self.io_fault(&node, "fsync", errno))
    }

    /// As [`Union::fsync`] for a directory.
    pub fn fsyncdir(&self, id: NodeId, data_only: bool) -> Outcome<()> {
        let super::super::DirNode { node, dir } = self.dir_node(id)?;
        let synced = self
            .work
            .as_ref()
            .is_some_and(|work| work.durability.syncs());
        let Some(upper) = dir.upper.get().filter(|_| synced) else {
            return Ok(());
        };
        let file = upper.open()?;
        let result = if data_only {
            rustix::fs::fdatasync(file.as_fd())
        } else {
            rustix::fs::fsync(file.as_fd())
        };
        result.map_err(|errno| self.io_fault(&node, "fsync of a directory", errno))
    }

    /// fallocate(2): `mode` is its mode argument.
    pub fn fallocate(
        &self,
        caller: Caller,
        id: NodeId,
        offset: u64,
        length: u64,
        mode: i32,
    ) -> Outcome<()> {
        let node = self.node(id)?;
        let mode = FallocateFlags::from_bits_retain(mode as u32);
        let protection = self.protection(&node)?;
        let adds = FallocateFlags::KEEP_SIZE.contains(mode);
        if protection.immutable || protection.append_only && !adds {
            return Err(self.io_fault(&node, "fallocate", Errno::PERM));
        }
        self.copy_up(&node, Data::All)?;
        self.drop_privileges_for(caller, &node)?;
        let file = self.file_for_writing(&node)?;
        rustix::fs::fallocate(file.as_fd(), mode, offset, length)
            .map_err(|errno| self.io_fault(&node, "fallocate", errno))
    }

    /// lseek(2) for data and holes.
    pub fn seek(&self, id: NodeId, offset: u64, seek: Seek) -> Outcome<u64> {
        let node = self.node(id)?;
        let file = self.file_for_reading(&node)?;
        let from = match seek {
            Seek::Data => SeekFrom::Data(offset),
            Seek::Hole => SeekFrom::Hole(offset),
        };
        // The descriptor's position is nobody's: all other calls give an offset.
        rustix::fs::seek(file.as_fd(), from).map_err(|errno| self.io_fault(&node, "lseek", errno))
    }

    /// copy_file_range(2).
    pub fn copy_range(
        &self,
        caller: Caller,
        from: NodeId,
        from_offset: u64,
        to: NodeId,
        to_offset: u64,
        length: u64,
    ) -> Outcome<usize> {
        let (from, to) = (self.node(from)?, self.node(to)?);
        self.may_change("copy_file_range", &to)?;
        // First the target: where both are one file, the source is then its copy.
        self.copy_up(&to, Data::All)?;
        self.drop_privileges_for(caller, &to)?;
        let target = self.file_for_writing(&to)?;
        let source = self.file_for_reading(&from)?;
        let length = usize::try_from(length).unwrap_or(usize::MAX);
        let (mut off_in, mut off_out) = (from_offset, to_offset);
        rustix::fs::copy_file_range(
            source.as_fd(),
            Some(&mut off_in),
            target.as_fd(),
            Some(&mut off_out),
            length,
        )
        .map_err(|errno| self.io_fault(&to, "copy_file_range", errno))
    }

    /// A descriptor that can read the node's data as it is now.
    pub(in super::super) fn file_for_reading(&self, node: &Arc<Node>) -> Outcome<Arc<OpenFile>> {
        self.file(node, Access::Read)
    }

    /// A descriptor that can write; copies up first.
    pub(in super::super) fn file_for_writing(&self, node: &Arc<Node>) -> Outcome<Arc<OpenFile>> {
        self.copy_up_quietly(node, Data::All)?;
        self.file(node, Access::Write)
    }

    fn file(&self, node: &Arc<Node>, wanted: Access) -> Outcome<Arc<OpenFile>> {
        if node.kind == FileKind::Directory {
            return Err(Fault::merged("opening a file", Errno::ISDIR));
        }
        let enough = |file: &OpenFile| {
            wanted != Access::Write || matches!(file.access(), Access::Write | Access::Append)
        };
        if let Some(file) = self
            .ground
            .descriptors
            .get(node.slot)
            .filter(|file| enough(file))
        {
            return Ok(file);
        }
        for _ in 0..ATTEMPTS {
            let (real, data) = {
                let state = node.state.read();
                (state.real.clone(), state.data.clone())
            };
            if let Some(data) = data.filter(|_| wanted != Access::Write) {
                if let Some(file) = self.file_of_data(node, &data)? {
                    return Ok(file);
                }
                continue;
            }
            match real {
                Real::Detached(file) if enough(&file) => return Ok(file),
                Real::Detached(_) | Real::Dir => {
                    return Err(self.io_fault(node, "opening", Errno::BADF));
                }
                Real::Upper(_) | Real::Lower { .. } => {}
            }
            let found = self.in_place(node, |spot, expected| {
                let Some(id) = expected else {
                    // It has lost its name meanwhile.
                    return Ok(Some(None));
                };
                let (opened, access) = match wanted {
                    Access::Write | Access::Append => open_for_writing(spot),
                    Access::Read | Access::Path => (self.open_to_read(node, spot), Access::Read),
                };
                let fd = match opened {
                    Ok(fd) => fd,
                    Err(Errno::NOENT) => return Ok(None),
                    Err(errno) => return Err(spot.fault("opening", errno)),
                };
                let stat = rustix::fs::fstat(&fd).map_err(|errno| spot.fault("opening", errno))?;
                let is_it = self.ground.real_id(&stat) == id;
                Ok(is_it.then(|| Some((OpenFile::new(fd, access), id))))
            })?;
            let Some((file, id)) = found else { continue };
            // Kept only while it is still what the node is: a copy-up changes that under the
            // state's lock and then drops what was kept.
            let state = node.state.read();
            match state.real {
                Real::Upper(now) | Real::Lower { id: now, .. }
                    if now == id && state.data.is_none() =>
                {
                    self.ground.descriptors.put(node.slot, file.clone());
                    return Ok(file);
                }
                _ => {}
            }
        }
        Err(Fault::merged("opening a file", Errno::STALE))
    }

    /// The file with a metadata copy's data; `None` where the copy was completed meanwhile.
    fn file_of_data(
        &self,
        node: &Arc<Node>,
        data: &Arc<DataPlace>,
    ) -> Outcome<Option<Arc<OpenFile>>> {
        let (spot, id) = self.data_spot(data)?;
        let fault = |errno| spot.fault("opening a file's data", errno);
        let fd = open_for_reading(&spot).map_err(fault)?;
        let stat = rustix::fs::fstat(&fd).map_err(fault)?;
        if self.ground.real_id(&stat) != id {
            return Err(fault(Errno::STALE));
        }
        let file = OpenFile::new(fd, Access::Read);
        let state = node.state.read();
        if state
            .data
            .as_ref()
            .is_none_or(|now| !Arc::ptr_eq(now, data))
        {
            return Ok(None);
        }
        self.ground.descriptors.put(node.slot, file.clone());
        Ok(Some(file))
    }

    fn open_to_read(&self, node: &Arc<Node>, spot: &Spot) -> Result<OwnedFd, Errno> {
        match open_for_reading(spot) {
            Err(Errno::ACCESS) if node.is_upper() => {
                open_upper(spot, OFlags::RDONLY | OFlags::NONBLOCK)
            }
            result => result,
        }
    }

    pub(in super::super) fn io_fault(
        &self,
        node: &Arc<Node>,
        op: &'static str,
        errno: Errno,
    ) -> Fault {
        match self.spot(node) {
            Ok(spot) => spot.fault(op, errno),
            Err(_) => Fault::merged(op, errno),
        }
    }
}

/// Whether writing to a file changes its data and nothing else, for everybody who could open it:
/// nothing that a write takes off it, nothing that forbids one.
fn is_plain(file: &OpenFile) -> bool {
    let flags = AtFlags::EMPTY_PATH;
    let Ok(stat) = rustix::fs::statx(file.as_fd(), "", flags, StatxFlags::MODE) else {
        return false;
    };
    let guarded = StatxAttributes::APPEND | StatxAttributes::IMMUTABLE;
    let privileged = libc::S_ISUID | libc::S_ISGID;
    !stat.stx_attributes.intersects(guarded)
        && u32::from(stat.stx_mode) & privileged == 0
        && xattr::fget(file.as_fd(), OsStr::new("security.capability")).is_err()
}

pub(in crate::union) fn open_for_writing(spot: &Spot) -> (Result<OwnedFd, Errno>, Access) {
    let flags = OFlags::RDWR | OFlags::NONBLOCK;
    match open_upper(spot, flags) {
        Err(Errno::PERM) => (open_upper(spot, flags | OFlags::APPEND), Access::Append),
        result => (result, Access::Write),
    }
}

/// Opens a file of the upper layer. Whether the caller may was decided when it was opened in the
/// merged tree; a server without privilege may have to give its own file the permission first.
fn open_upper(spot: &Spot, flags: OFlags) -> Result<OwnedFd, Errno> {
    match spot.open(flags) {
        Err(Errno::ACCESS) => {}
        result => return result,
    }
    let stat = spot
        .stat()
        .map_err(|fault| fault.errno)?
        .ok_or(Errno::NOENT)?;
    let perm = stat.st_mode & 0o7777;
    spot.chmod(perm | 0o600)?;
    let opened = spot.open(flags);
    spot.chmod(perm)?;
    opened
}
