//! Attributes: stat, chmod, chown, truncate, utimens, statfs, readlink.

use std::os::fd::AsFd;
use std::sync::Arc;

use rustix::fs::{Stat, Timespec, Timestamps, UTIME_NOW, UTIME_OMIT};

use super::super::copy_up::Data;
use super::super::node::Node;
use super::super::spot::Spot;
use super::super::types::{Attr, Caller, Fault, FileKind, NodeId, SetAttr, SetTime, StatFs};
use super::super::{Outcome, Union};
use crate::sys::Errno;

const SETUID: u16 = 0o4000;
const SETGID: u16 = 0o2000;
const GROUP_EXEC: u16 = 0o010;

impl Union {
    /// The root's attributes.
    pub fn root(&self) -> Outcome<Attr> {
        self.getattr(NodeId::ROOT)
    }

    /// The attributes of a node.
    pub fn getattr(&self, id: NodeId) -> Outcome<Attr> {
        let node = self.node(id)?;
        self.at_object(&node, |spot, stat| Ok(self.attr_of(&node, spot, stat)))
    }

    /// The target of a symbolic link.
    pub fn readlink(&self, id: NodeId) -> Outcome<Vec<u8>> {
        let node = self.node(id)?;
        if node.kind != FileKind::Symlink {
            return Err(Fault::merged("reading a link", Errno::INVAL));
        }
        self.at_object(&node, |spot, _| self.read_link_at(spot))
    }

    pub(in super::super) fn read_link_at(&self, spot: &Spot) -> Outcome<Vec<u8>> {
        let fault = |errno| spot.fault("reading a link", errno);
        let target = match spot {
            Spot::At { dir, name } => {
                rustix::fs::readlinkat(dir.open()?.as_fd(), &**name, Vec::new())
            }
            Spot::Open(file) => rustix::fs::readlinkat(file.as_fd(), "", Vec::new()),
        };
        Ok(target.map_err(fault)?.into_bytes())
    }

    /// Changes attributes; copies up first.
    pub fn setattr(&self, caller: Caller, id: NodeId, change: &SetAttr) -> Outcome<Attr> {
        let node = self.node(id)?;
        if change.size.is_some() && node.kind != FileKind::Regular {
            return Err(Fault::merged("truncating", Errno::INVAL));
        }
        self.may_set(&node, change)?;
        let has_privileges = !matches!(node.kind, FileKind::Directory | FileKind::Symlink);
        if *change == SetAttr::default() && has_privileges {
            let shown = self.getattr(id)?;
            if is_for_others_to_kill(&shown, caller) {
                return Ok(shown);
            }
        }
        self.copy_up(&node, change.size.map_or(Data::Later, Data::UpTo))?;
        if *change == SetAttr::default() && has_privileges {
            self.kill_privileges(&node, caller)?;
        }
        if let Some(size) = change.size {
            self.truncate(&node, caller, size)?;
        }
        if change.uid.is_some() || change.gid.is_some() {
            let before = self.at_object(&node, |_, stat| Ok(*stat))?;
            self.chown(&node, change)?;
            // The server may keep setgid with a group that isn't its own; the caller may not.
            if lacks_fsetid(caller) && has_privileges {
                self.drop_privileges(&node, &before, caller.gid)?;
            }
        }
        if let Some(perm) = change.perm {
            self.chmod(&node, perm)?;
        }
        if change.atime.is_some() || change.mtime.is_some() {
            let times = Timestamps {
                last_access: timespec(change.atime),
                last_modification: timespec(change.mtime),
            };
            self.at_object(&node, |spot, _| {
                spot.set_times(&times)
                    .map_err(|errno| spot.fault("setting times", errno))
            })?;
        }
        self.at_object(&node, |spot, stat| Ok(self.attr_of(&node, spot, stat)))
    }

    fn truncate(&self, node: &Arc<Node>, caller: Caller, size: u64) -> Outcome<()> {
        let file = self.file_for_writing(node)?;
        let fault = |errno| self.io_fault(node, "truncating", errno);
        let stat = rustix::fs::fstat(file.as_fd()).map_err(fault)?;
        rustix::fs::ftruncate(file.as_fd(), size).map_err(fault)?;
        if lacks_fsetid(caller) {
            self.drop_privileges(node, &stat, caller.gid)
        } else {
            Ok(())
        }
    }

    /// What a request to change nothing means, but for [`is_for_others_to_kill`]: the kernel has found that privileges must go off the
    /// file that the caller writes to, allocates in or gives to its own owner again, and leaves it
    /// to us. The last is not for everybody, and the others drop privileges themselves: so it is
    /// done for the owner and root alone. For root's write to a file with capabilities (the kernel
    /// has taken them off by now) that is more than was meant, and on the safe side.
    fn kill_privileges(&self, node: &Arc<Node>, caller: Caller) -> Outcome<()> {
        let shown = self.at_object(node, |spot, stat| {
            let shown = self.attr_of(node, spot, stat);
            if lacks_fsetid(caller) && caller.uid != shown.uid {
                return Ok(None);
            }
            spot.chown(None, None)
                .map_err(|errno| spot.fault("dropping privileges", errno))?;
            Ok(Some(shown))
        })?;
        let Some(shown) = shown else { return Ok(()) };
        let gid = if lacks_fsetid(caller) {
            caller.gid
        } else {
            shown.gid
        };
        let stat = self.at_object(node, |_, stat| Ok(*stat))?;
        self.drop_privileges(node, &stat, gid)
    }

    /// As [`Union::drop_privileges`], for a change by a caller who isn't to leave them. The kernel
    /// hears of it even if the change fails.
    pub(in super::super) fn drop_privileges_for(
        &self,
        caller: Caller,
        node: &Arc<Node>,
    ) -> Outcome<()> {
        if !lacks_fsetid(caller) {
            return Ok(());
        }
        let stat = self.at_object(node, |_, stat| Ok(*stat))?;
        self.drop_privileges(node, &stat, caller.gid)?;
        if self.at_object(node, |_, stat| Ok(stat.st_mode))? != stat.st_mode {
            self.watcher.tell(node.id);
        }
        Ok(())
    }

    /// Takes setuid off a file that was written, and setgid where the group may execute or isn't
    /// the writer's. Of the writer's groups FUSE tells the first alone.
    pub(in super::super) fn drop_privileges(
        &self,
        node: &Arc<Node>,
        stat: &Stat,
        gid: u32,
    ) -> Outcome<()> {
        let shown = self.in_place(node, |spot, _| Ok(Some(self.attr_of(node, spot, stat))))?;
        match without_privileges(&shown, gid) {
            left if left == shown.perm => Ok(()),
            left => self.chmod(node, left),
        }
    }

    /// Takes setgid off where the caller, who changed the permissions, isn't of the group.
    pub(in super::super) fn drop_foreign_setgid(
        &self,
        caller: Caller,
        node: &Arc<Node>,
    ) -> Outcome<()> {
        if !lacks_fsetid(caller) {
            return Ok(());
        }
        let shown = self.at_object(node, |spot, stat| Ok(self.attr_of(node, spot, stat)))?;
        if shown.perm & SETGID == 0 || shown.gid == caller.gid {
            return Ok(());
        }
        self.copy_up(node, Data::All)?;
        self.chmod(node, shown.perm & !SETGID)
    }

    fn chmod(&self, node: &Arc<Node>, perm: u16) -> Outcome<()> {
        if node.kind == FileKind::Symlink {
            return Err(Fault::merged("chmod of a link", Errno::OPNOTSUPP));
        }
        self.at_object(node, |spot, stat| {
            let mut shown = self.own_attr_of(node, spot, stat);
            self.ground
                .lender
                .alone(|| spot.chmod(self.owners.perm_on_disk(shown.kind, perm)))
                .map_err(|errno| spot.fault("chmod", errno))?;
            if let Some(upper) = node.dir.as_ref().and_then(|dir| dir.upper.get()) {
                upper.reopen_to_read();
            }
            if self.owners.only_records(shown.kind) || self.record_at(spot, stat).is_some() {
                shown.perm = perm;
                self.write_record(spot, &shown)?;
            }
            Ok(())
        })
    }

    fn chown(&self, node: &Arc<Node>, change: &SetAttr) -> Outcome<()> {
        self.at_object(node, |spot, stat| self.chown_at(node, change, spot, stat))
    }

    fn chown_at(
        &self,
        node: &Arc<Node>,
        change: &SetAttr,
        spot: &Spot,
        stat: &Stat,
    ) -> Outcome<()> {
        let recorded = self.record_at(spot, stat);
        let uid = change.uid.map(|uid| self.owners.uid_on_disk(uid));
        let gid = change.gid.map(|gid| self.owners.gid_on_disk(gid));
        let mut shown = self.own_attr_of(node, spot, stat);
        let given = match self.owners.only_records(shown.kind) {
            true => Err(Errno::PERM),
            false => spot.chown(uid, gid),
        };
        match given {
            Ok(()) if recorded.is_none() && !self.owners.is_ambiguous(uid, gid) => Ok(()),
            Ok(()) | Err(Errno::PERM | Errno::INVAL) if self.owners.records() => {
                shown.uid = uid.unwrap_or(shown.uid);
                shown.gid = gid.unwrap_or(shown.gid);
                if shown.kind == FileKind::Regular {
                    // As chown(2) does.
                    shown.perm &= !SETUID;
                    if shown.perm & GROUP_EXEC != 0 {
                        shown.perm &= !SETGID;
                    }
                }
                self.write_record(spot, &shown)
            }
            Ok(()) => Ok(()),
            Err(errno) => Err(spot.fault("chown", errno)),
        }
    }

    /// Space and inodes of the upper layer, or of the top lower layer without one.
    pub fn statfs(&self) -> Outcome<StatFs> {
        let root = self.node(NodeId::ROOT)?;
        let spot = self.spot(&root)?;
        let fault = |errno| spot.fault("statfs", errno);
        let Spot::At { dir, .. } = &spot else {
            return Err(fault(Errno::STALE));
        };
        let dir = dir.open()?;
        let stat = rustix::fs::fstatvfs(dir.as_fd()).map_err(fault)?;
        Ok(StatFs {
            blocks: stat.f_blocks,
            bfree: stat.f_bfree,
            bavail: stat.f_bavail,
            files: stat.f_files,
            ffree: stat.f_ffree,
            bsize: stat.f_bsize as u32,
            namelen: stat.f_namemax as u32,
            frsize: stat.f_frsize as u32,
        })
    }
}

/// The permissions of a file without setuid, and without setgid where the group may execute or isn't `gid`.
fn without_privileges(shown: &Attr, gid: u32) -> u16 {
    let mut left = shown.perm & !SETUID;
    if shown.perm & GROUP_EXEC != 0 || shown.gid != gid {
        left &= !SETGID;
    }
    left
}

/// Whether a request to change nothing comes from a stranger who either has no right to it (chown(2) to nobody: the
/// kernel's overlay refuses it, which can't be told here) or drops privileges by what follows, a write.
fn is_for_others_to_kill(shown: &Attr, caller: Caller) -> bool {
    let is_stranger = lacks_fsetid(caller) && caller.uid != shown.uid;
    is_stranger && without_privileges(shown, caller.gid) != shown.perm
}

/// FUSE says of a write alone whether the caller lacks `CAP_FSETID`. Elsewhere: who isn't root
/// lacks it.
fn lacks_fsetid(caller: Caller) -> bool {
    caller.uid != 0
}

fn timespec(time: Option<SetTime>) -> Timespec {
    match time {
        None => Timespec {
            tv_sec: 0,
            tv_nsec: UTIME_OMIT as _,
        },
        Some(SetTime::Now) => Timespec {
            tv_sec: 0,
            tv_nsec: UTIME_NOW as _,
        },
        Some(SetTime::At(time)) => Timespec {
            tv_sec: time.sec,
            tv_nsec: time.nsec as _,
        },
    }
}
