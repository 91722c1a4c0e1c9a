//! What a copy gets beside its data: extended attributes, origin, owner and mode.

use std::ffi::OsStr;
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStrExt;
use std::sync::Arc;

use rustix::fs::{OFlags, XattrFlags};

use super::copy_up::{Copy, copy_spot, make_dir};
use super::layer::RealDir;
use super::node::Node;
use super::owners;
use super::spot::Spot;
use super::types::{Attr, FileKind};
use super::work::{Temp, Work};
use super::{Outcome, Union};
use crate::format::is_guard;
use crate::format::protattr::Protection;
use crate::sys::times::times_of;
use crate::sys::{Errno, fileflags};

/// `FS_SYNC_FL` and `FS_NOATIME_FL`.
const KEPT: u32 = 0x8 | 0x80;

/// Whether a copy has the owner that it should show.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Owner {
    Given,
    ToBeRecorded,
}

impl Union {
    /// Copies every attribute but the overlay's own. One that the upper can't hold is left out,
    /// unless it guards something (`security.*`, ACLs).
    pub(super) fn copy_xattrs(&self, work: &Work, spot: &Spot, copy: &Copy<'_>) -> Outcome<()> {
        let names = match spot.list_xattrs() {
            Ok(names) => names,
            Err(Errno::OPNOTSUPP) => return Ok(()),
            // A directory that a fake root may not read, but may have a changed copy of.
            Err(Errno::ACCESS) if self.owners.records() => return Ok(()),
            Err(errno) => return Err(spot.fault("copy-up: listing attributes", errno)),
        };
        for name in names
            .split(|byte| *byte == 0)
            .filter(|name| !name.is_empty())
        {
            let name = OsStr::from_bytes(name);
            if self.namespace.is_private(name) || self.is_record(name) {
                continue;
            }
            let value = match spot.get_xattr(name) {
                Ok(value) => value,
                Err(Errno::NODATA) => continue,
                Err(Errno::OPNOTSUPP) if !is_guard(name) => continue,
                Err(errno) => return Err(spot.fault("copy-up: reading an attribute", errno)),
            };
            match copy_spot(copy).set_xattr(name, &value, XattrFlags::empty()) {
                Ok(()) => {}
                Err(Errno::OPNOTSUPP) if !is_guard(name) => {}
                // A user namespace can't give security attributes that the kernel sets itself.
                Err(Errno::PERM) if name == "security.selinux" => {}
                Err(errno) => {
                    return Err(work
                        .fault("copy-up: setting an attribute", errno)
                        .named(name));
                }
            }
        }
        Ok(())
    }

    /// The inode flags that the kernel's copy-up keeps: `sync` and `noatime`, and in an attribute
    /// append-only and immutable. Where a file system has none there are none to keep.
    pub(super) fn copy_inode_flags(
        &self,
        work: &Work,
        spot: &Spot,
        copy: &Copy<'_>,
    ) -> Outcome<()> {
        let Ok(from) = spot.open(OFlags::RDONLY | OFlags::NONBLOCK) else {
            return Ok(());
        };
        let mut flags = fileflags::get_flags(from.as_fd()).unwrap_or(0);
        let protection = Protection::take_from_flags(&mut flags);
        if protection.is_any() {
            match self.write_protection(&copy_spot(copy), protection) {
                // The upper has no attributes.
                Err(errno @ (Errno::PERM | Errno::OPNOTSUPP)) => {
                    log::warn!("copy-up: append-only or immutable is lost: {errno}");
                }
                result => {
                    result.map_err(|errno| work.fault("copy-up: keeping the protection", errno))?;
                }
            }
        }
        let kept = flags & KEPT;
        if kept == 0 {
            return Ok(());
        }
        let to = copy.file.as_fd();
        let set = fileflags::get_flags(to)
            .and_then(|flags| fileflags::set_flags(to, flags & !KEPT | kept));
        if let Err(errno) = set {
            log::debug!("copy-up: inode flags {kept:x} are lost: {errno}");
        }
        Ok(())
    }

    pub(super) fn mark_origin(&self, work: &Work, spot: &Spot, copy: &Copy<'_>) -> Outcome<()> {
        let value = self.origins.describe(spot);
        let result =
            copy_spot(copy).set_xattr(self.namespace.origin(), &value, XattrFlags::empty());
        match result {
            // user.* can't be set on links, devices and fifos; the kernel leaves it out there.
            Ok(()) | Err(Errno::PERM | Errno::OPNOTSUPP) => Ok(()),
            Err(errno) => Err(work.fault("copy-up: marking the origin", errno)),
        }
    }

    /// A directory that somebody put into the upper by hand, and that merges with a lower one, gets
    /// the `origin` that a copy-up would have given it, and makes its parent impure: the kernel
    /// does so at the look-up. Without it only numbers of later mounts suffer, so that a look-up
    /// doesn't fail for it.
    pub(super) fn complete_origin(&self, upper: &Arc<RealDir>, name: &OsStr, lower: &Spot) {
        let attr = self.namespace.origin();
        let (Some(_), Ok(None)) = (&self.work, upper.xattr(name, attr)) else {
            return;
        };
        let value = self.origins.describe(lower);
        let spot = Spot::At {
            dir: upper.clone(),
            name: name.into(),
        };
        let marked = spot
            .set_xattr(attr, &value, XattrFlags::CREATE)
            .map_err(|errno| upper.fault("marking the origin", name, errno))
            .and_then(|()| self.mark_impure(upper));
        if let Err(fault) = marked {
            log::debug!("{fault}");
        }
    }

    /// Gives the copy the owner of the original; says whether it has to be recorded instead.
    pub(super) fn give_owner(&self, work: &Work, copy: &Copy<'_>, shown: &Attr) -> Outcome<Owner> {
        if self.owners.only_records(shown.kind) {
            return Ok(Owner::ToBeRecorded);
        }
        match copy_spot(copy).chown(Some(shown.uid), Some(shown.gid)) {
            Ok(()) if self.owners.is_ambiguous(Some(shown.uid), Some(shown.gid)) => {
                Ok(Owner::ToBeRecorded)
            }
            Ok(()) => Ok(Owner::Given),
            Err(Errno::PERM | Errno::INVAL) if self.owners.records() => Ok(Owner::ToBeRecorded),
            Err(errno) => Err(work.fault("copy-up: giving the owner", errno)),
        }
    }

    pub(super) fn give_mode(
        &self,
        work: &Work,
        copy: &Copy<'_>,
        shown: &Attr,
        owner: Owner,
    ) -> Outcome<()> {
        let spot = copy_spot(copy);
        if owner == Owner::ToBeRecorded {
            match self.write_record(&spot, shown) {
                // Without attributes an owner is lost; what an object is must not be.
                Err(fault) if fault.errno == Errno::PERM && is_itself(shown.kind) => {
                    log::debug!("copy-up: {fault}");
                }
                recorded => recorded?,
            }
        }
        if shown.kind == FileKind::Symlink {
            return Ok(());
        }
        spot.chmod(self.owners.perm_on_disk(shown.kind, shown.perm))
            .map_err(|errno| work.fault("copy-up: giving the mode", errno))
    }

    /// An empty directory in the work directory that hides what is below, with all that an upper
    /// one has. In the fallback form it is really empty, and hides nothing by itself.
    pub(super) fn empty_twin(&self, node: &Arc<Node>) -> Outcome<Temp<'_>> {
        let work = self.work()?;
        let spot = self.spot(node)?;
        let stat = spot.stat()?;
        let stat = stat.ok_or_else(|| spot.fault("emptying a directory", Errno::STALE))?;
        let record = self.record_at(&spot, &stat);
        let shown = self.owners.own(node.state.read().ino, &stat, record);
        let copy = make_dir(work)?;
        let owner = self.give_owner(work, &copy, &shown)?;
        self.copy_xattrs(work, &spot, &copy)?;
        if !self.is_dotted() {
            self.mark_opaque(work.as_fd(), copy.temp.name())
                .map_err(|errno| work.fault("marking opaque", errno))?;
        }
        self.give_mode(work, &copy, &shown, owner)?;
        copy_spot(&copy)
            .set_times(&times_of(&stat))
            .map_err(|errno| work.fault("setting the times of a directory", errno))?;
        Ok(copy.temp)
    }

    /// Writes what an object should look like where it can't. `EPERM` where the upper's file system
    /// has no attributes to write it in.
    pub(super) fn write_record(&self, spot: &Spot, shown: &Attr) -> Outcome<()> {
        let value = owners::record_of(shown).format();
        match spot.set_xattr(self.owners.record_name(), &value, XattrFlags::empty()) {
            // A link's or fifo's owner can't be recorded: it is shown as the server's.
            Ok(()) | Err(Errno::PERM) => Ok(()),
            Err(Errno::OPNOTSUPP) => Err(spot.fault("recording an owner", Errno::PERM)),
            Err(errno) => Err(spot.fault("recording an owner", errno)),
        }
    }
}

/// Whether an object of this kind is one on the disk, too: nothing stands in for it.
fn is_itself(kind: FileKind) -> bool {
    matches!(
        kind,
        FileKind::Regular | FileKind::Directory | FileKind::Symlink
    )
}
