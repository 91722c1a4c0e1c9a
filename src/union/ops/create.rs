//! Making objects: files, directories, links, fifos, sockets, devices.
//!
//! Where nothing stands in the way, an object is made in its place. Over a whiteout, or with an
//! owner that has to be given afterwards, it is built in the work directory and published whole.

use std::ffi::OsStr;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;

use rustix::fs::{FileType, Mode, OFlags, RenameFlags, Stat, XattrFlags};

use super::super::descriptors::{Access, OpenFile};
use super::super::layer::RealDir;
use super::super::lookup::{Found, Source, check_name, is_dir};
use super::super::metacopy::DataPlace;
use super::super::node::{DefaultAcl, DirPart, Node};
use super::super::owners;
use super::super::spot::Spot;
use super::super::types::{Attr, Caller, Entry, Fault, FileKind, Ino, NewKind, NodeId, Timestamp};
use super::super::{DirNode, Outcome, Union};
use crate::format::acl;
use crate::format::protattr::Protection;
use crate::sys::Errno;

/// What stands under a name in the upper layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Standing {
    Nothing,
    Whiteout,
}

/// An object to be made, with all that it gets.
struct New<'a> {
    kind: NewKind<'a>,
    perm: u32,
    /// The permission bits that it is made with, where others are recorded.
    perm_on_disk: u32,
    uid: u32,
    gid: u32,
    access_acl: Option<Vec<u8>>,
    default_acl: Option<Vec<u8>>,
}

impl Union {
    /// Makes a name that must not exist yet. `mode` has the permission bits before the umask.
    /// Counts one look-up.
    pub fn make(
        &self,
        caller: Caller,
        parent: NodeId,
        name: &OsStr,
        kind: NewKind<'_>,
        mode: u32,
        umask: u32,
    ) -> Outcome<Entry> {
        let made = self.make_name(caller, parent, name, kind, mode, umask);
        self.or_unlist(parent, made)
    }

    fn make_name(
        &self,
        caller: Caller,
        parent: NodeId,
        name: &OsStr,
        kind: NewKind<'_>,
        mode: u32,
        umask: u32,
    ) -> Outcome<Entry> {
        check_name(name)?;
        if matches!(kind, NewKind::CharDevice(0)) {
            // That would be a whiteout; the kernel refuses it in the same way.
            return Err(Fault::merged("making a device", Errno::PERM).named(name));
        }
        self.refuse_reserved(name)?;
        let DirNode { node: parent, dir } = self.dir_node(parent)?;
        self.may_add("making a name", &parent, name)?;
        let upper = self.upper_dir(&parent, &dir)?;
        let _names = dir.names.write();
        if !parent.state.read().named {
            return Err(Fault::merged("making a name", Errno::NOENT).named(name));
        }
        let standing = self.vacant(&dir, name)?;
        let upper_file = upper.open()?;
        let parent_stat = rustix::fs::fstat(upper_file.as_fd())
            .map_err(|errno| upper.fault("stat of the parent", name, errno))?;
        let new = self.plan(caller, &dir, upper, &parent_stat, kind, mode, umask)?;
        let opened = match standing {
            Standing::Nothing if self.comes_out_right(&new, &parent_stat) => {
                make_at(upper_file.as_fd(), name, &new)
                    .map_err(|errno| upper.fault("creating", name, errno))?
            }
            _ => self.make_staged(upper, name, &new, standing)?,
        };
        if self.follow.layers_are_fixed
            && matches!(kind, NewKind::Directory)
            && standing == Standing::Nothing
            && dir.is_merged()
        {
            // Spares later look-ups the layers below; nothing is lost without it.
            let _ = self.mark_opaque(upper_file.as_fd(), name);
        }
        let (node, attr) = self.enter_new(&parent, &dir, upper, name, None)?;
        node.protection.set(Protection::NONE);
        if let Some(file) = opened {
            self.ground.descriptors.put(node.slot, file);
        }
        self.listings
            .update(parent.id, |names| names.insert(name, attr.kind, attr.ino));
        Ok(Entry {
            id: node.id,
            generation: node.generation,
            attr,
        })
    }

    /// The node of an upper object that has just been given this name; `data` is where a metadata copy has its own.
    pub(super) fn enter_new(
        &self,
        parent: &Arc<Node>,
        dir: &DirPart,
        upper: &RealDir,
        name: &OsStr,
        data: Option<Arc<DataPlace>>,
    ) -> Outcome<(Arc<Node>, Attr)> {
        let stat = upper
            .stat(name)?
            .ok_or_else(|| upper.fault("making a name", name, Errno::STALE))?;
        let found = if is_dir(&stat) {
            Found::made_dir(stat)
        } else {
            Found::Leaf {
                source: Source::Upper,
                stat,
                data,
            }
        };
        self.enter(parent, dir, name, found)
    }

    /// Makes sure that the merged tree doesn't show a name, and says what the upper has there.
    pub(super) fn vacant(&self, dir: &DirPart, name: &OsStr) -> Outcome<Standing> {
        let exists = || Err(Fault::merged("making a name", Errno::EXIST).named(name));
        if let Some(upper) = dir.upper.get() {
            if let Some(stat) = upper.stat(name)? {
                return if self.is_whiteout(upper, name, &stat)? {
                    Ok(Standing::Whiteout)
                } else {
                    exists()
                };
            }
            if upper.hides(name)? {
                return Ok(Standing::Whiteout);
            }
        }
        if self.lower_has(dir, name)? {
            exists()
        } else {
            Ok(Standing::Nothing)
        }
    }

    /// Decides permissions and owner of a new object: the directory's default ACL or else the
    /// umask; the caller, or the directory's group where that is inherited.
    #[allow(clippy::too_many_arguments)] // all of them describe the one object
    fn plan<'a>(
        &self,
        caller: Caller,
        dir: &DirPart,
        upper: &RealDir,
        parent: &Stat,
        kind: NewKind<'a>,
        mode: u32,
        umask: u32,
    ) -> Outcome<New<'a>> {
        let setgid = parent.st_mode & libc::S_ISGID != 0;
        let caller = self.owners.on_disk(caller);
        let gid = match (setgid, self.record(upper, OsStr::new("."), parent)?) {
            (true, Some(record)) => record.gid,
            (true, None) => parent.st_gid,
            (false, _) => caller.gid,
        };
        let mut new = New {
            kind,
            perm: mode & 0o7777,
            perm_on_disk: 0,
            uid: caller.uid,
            gid,
            access_acl: None,
            default_acl: None,
        };
        if matches!(kind, NewKind::Symlink(_)) {
            new.perm = 0o777;
            return Ok(new);
        }
        if setgid && matches!(kind, NewKind::Directory) {
            new.perm |= libc::S_ISGID;
        }
        match self.default_acl(dir, upper)? {
            None => new.perm &= !umask,
            Some(default) => {
                let inherited = acl::inherit(&default, new.perm)
                    .ok_or_else(|| Fault::merged("reading a default ACL", Errno::IO))?;
                new.perm = inherited.mode;
                new.access_acl = inherited.access;
                if matches!(kind, NewKind::Directory) {
                    new.default_acl = Some(default);
                }
            }
        }
        new.perm_on_disk = self.owners.perm_on_disk(shown(&new).kind, new.perm as u16);
        Ok(new)
    }

    fn default_acl(&self, dir: &DirPart, upper: &RealDir) -> Outcome<Option<Vec<u8>>> {
        let withheld = self.owners.withholds(OsStr::new(acl::DEFAULT));
        if withheld || dir.default_acl() == DefaultAcl::Absent {
            return Ok(None);
        }
        let value = upper.xattr(OsStr::new("."), OsStr::new(acl::DEFAULT))?;
        let known = if value.is_some() {
            DefaultAcl::Present
        } else {
            DefaultAcl::Absent
        };
        dir.set_default_acl(known);
        Ok(value)
    }

    /// Whether an object made in its place gets the owner it should have. The file system
    /// inherits ACLs and setgid by itself.
    fn comes_out_right(&self, new: &New<'_>, parent: &Stat) -> bool {
        if self.owners.only_records(shown(new).kind) {
            return false;
        }
        let setgid = parent.st_mode & libc::S_ISGID != 0;
        let gid = if setgid {
            parent.st_gid
        } else {
            rustix::process::getegid().as_raw()
        };
        new.uid == rustix::process::geteuid().as_raw() && new.gid == gid
    }

    /// Builds the object in the work directory, completes it and publishes it.
    fn make_staged(
        &self,
        upper: &Arc<RealDir>,
        name: &OsStr,
        new: &New<'_>,
        standing: Standing,
    ) -> Outcome<Option<Arc<OpenFile>>> {
        let work = self.work()?;
        let temp = work.temp()?;
        let fault = |op| move |errno| work.fault(op, errno).named(name);
        let opened = make_at(work.as_fd(), temp.name(), new)
            .map_err(fault("creating in the work directory"))?;
        let spot = temp.spot();
        self.give(&spot, new)
            .map_err(fault("completing a new object"))?;
        let is_dir = matches!(new.kind, NewKind::Directory);
        let upper_file = upper.open()?;
        let hidden = self.is_dotted() && standing == Standing::Whiteout;
        if hidden && is_dir {
            self.mark_opaque(work.as_fd(), temp.name())
                .map_err(fault("marking opaque"))?;
        }
        let flags = match standing {
            Standing::Nothing => RenameFlags::NOREPLACE,
            // It stands beside the name.
            Standing::Whiteout if hidden => RenameFlags::NOREPLACE,
            // A directory can't replace a whiteout: they change places.
            Standing::Whiteout if is_dir => {
                self.mark_opaque(work.as_fd(), temp.name())
                    .map_err(fault("marking opaque"))?;
                RenameFlags::EXCHANGE
            }
            Standing::Whiteout => RenameFlags::empty(),
        };
        temp.publish(upper_file.as_fd(), name, flags)
            .map_err(|errno| upper.fault("publishing", name, errno))?;
        if hidden {
            self.unhide(upper, name);
        }
        Ok(opened)
    }

    fn give(&self, spot: &Spot, new: &New<'_>) -> Result<(), Errno> {
        let owned = match self.owners.only_records(shown(new).kind) {
            true => Err(Errno::PERM),
            false => spot.chown(Some(new.uid), Some(new.gid)),
        };
        let ambiguous = self.owners.is_ambiguous(Some(new.uid), Some(new.gid));
        match owned {
            Ok(()) if !ambiguous => {}
            Ok(()) | Err(Errno::PERM | Errno::INVAL) if self.owners.records() => {
                self.write_record(spot, &shown(new))
                    .map_err(|fault| fault.errno)?;
            }
            Ok(()) => {}
            Err(errno) => return Err(errno),
        }
        if matches!(new.kind, NewKind::Symlink(_)) {
            return Ok(());
        }
        spot.chmod(new.perm_on_disk)?;
        let set = |name, value: &Option<Vec<u8>>| match value {
            Some(value) => spot.set_xattr(OsStr::new(name), value, XattrFlags::empty()),
            None => Ok(()),
        };
        set(acl::ACCESS, &new.access_acl)?;
        set(acl::DEFAULT, &new.default_acl)
    }
}

/// Makes the object under `name`. A regular file comes back open: it may soon be written by a
/// caller whose own mode forbids that from now on.
fn make_at(
    dir: BorrowedFd<'_>,
    name: &OsStr,
    new: &New<'_>,
) -> Result<Option<Arc<OpenFile>>, Errno> {
    let mode = Mode::from_raw_mode(new.perm_on_disk);
    let node = |file_type, device| rustix::fs::mknodat(dir, name, file_type, mode, device);
    match new.kind {
        NewKind::Regular => {
            let flags = OFlags::CREATE | OFlags::EXCL | OFlags::RDWR | OFlags::CLOEXEC;
            let fd = rustix::fs::openat(dir, name, flags, mode)?;
            return Ok(Some(OpenFile::new(fd, Access::Write)));
        }
        NewKind::Directory => rustix::fs::mkdirat(dir, name, mode)?,
        NewKind::Symlink(target) => rustix::fs::symlinkat(target, dir, name)?,
        NewKind::Fifo => node(FileType::Fifo, 0)?,
        NewKind::Socket => node(FileType::Socket, 0)?,
        NewKind::CharDevice(device) => node(FileType::CharacterDevice, owners::decode_dev(device))?,
        NewKind::BlockDevice(device) => node(FileType::BlockDevice, owners::decode_dev(device))?,
    }
    Ok(None)
}

fn shown(new: &New<'_>) -> Attr {
    let (kind, rdev) = match new.kind {
        NewKind::Regular => (FileKind::Regular, 0),
        NewKind::Directory => (FileKind::Directory, 0),
        NewKind::Fifo => (FileKind::Fifo, 0),
        NewKind::Socket => (FileKind::Socket, 0),
        NewKind::Symlink(_) => (FileKind::Symlink, 0),
        NewKind::CharDevice(device) => (FileKind::CharDevice, device),
        NewKind::BlockDevice(device) => (FileKind::BlockDevice, device),
    };
    Attr {
        ino: Ino(0),
        kind,
        perm: new.perm as u16,
        nlink: 1,
        uid: new.uid,
        gid: new.gid,
        rdev,
        size: 0,
        blocks: 0,
        blksize: 4096,
        atime: Timestamp::default(),
        mtime: Timestamp::default(),
        ctime: Timestamp::default(),
    }
}
