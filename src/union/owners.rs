//! Owners as they are shown, and as they are recorded where they can't be given.

use std::ffi::OsStr;
use std::fs;

use rustix::fs::Stat;

use super::types::{Attr, Caller, FileKind, Ino, Timestamp};
use crate::format::override_stat::{self, Kind, OverrideStat};
use crate::options::{IdMap, Records, Shown, Switch};

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
    /// What the lower layers hold belongs to these, and gets them when it is copied up; what is in
    /// the upper layer belongs to whom it belongs. Only where the upper layer is on a file system
    /// of its own.
    Given {
        /// The user, where it is another.
        uid: Option<u32>,
        /// The group, where it is another.
        gid: Option<u32>,
    },
}

/// The policy with what it needs to know of the system.
#[derive(Debug, Clone)]
pub(crate) struct OwnerPolicy {
    owners: Owners,
    shown: Shown,
    overflow_uid: u32,
    overflow_gid: u32,
    /// The upper layer's device: what isn't on it is a lower layer's.
    upper: Option<u64>,
}

impl OwnerPolicy {
    pub(crate) fn new(owners: Owners, shown: &Shown, upper: Option<u64>) -> Self {
        Self {
            owners,
            shown: shown.clone(),
            upper,
            overflow_uid: overflow_id("/proc/sys/kernel/overflowuid"),
            overflow_gid: overflow_id("/proc/sys/kernel/overflowgid"),
        }
    }

    /// Whether owners are recorded where they can't be given.
    pub(crate) fn records(&self) -> bool {
        self.owners == Owners::FakeRoot || self.records_all()
    }

    /// Whether owners and modes are recorded rather than given, and were so in every layer.
    pub(crate) fn records_all(&self) -> bool {
        self.shown.records != Records::None
    }

    /// Whether owners and modes of objects of this kind are recorded rather than given. `user.*`
    /// attributes can be set on files and directories only.
    pub(crate) fn only_records(&self, kind: FileKind) -> bool {
        match self.shown.records {
            Records::None => false,
            Records::Privileged => true,
            Records::Containers => matches!(kind, FileKind::Regular | FileKind::Directory),
        }
    }

    /// Whether an object of this kind may have a record.
    pub(crate) fn may_have_record(&self, kind: FileKind) -> bool {
        let can = self.shown.records == Records::Privileged
            || matches!(kind, FileKind::Regular | FileKind::Directory);
        self.records() && can
    }

    /// The attribute that records are in.
    pub(crate) fn record_name(&self) -> &'static OsStr {
        OsStr::new(match self.shown.records {
            Records::Privileged => override_stat::PRIVILEGED_NAME,
            Records::None | Records::Containers => override_stat::NAME,
        })
    }

    /// The permission bits for the disk of what shall show `perm`. What is recorded there is out of
    /// nobody's way, and gives nobody the server's own rights.
    pub(crate) fn perm_on_disk(&self, kind: FileKind, perm: u16) -> u32 {
        let perm = u32::from(perm);
        match kind {
            _ if !self.only_records(kind) => perm,
            FileKind::Directory => perm | 0o700,
            _ => perm & 0o777 | 0o600,
        }
    }

    /// Whose a caller's new objects are on the disk. An id that the map has nothing for becomes
    /// the kernel's "nobody", as it would be shown.
    pub(crate) fn on_disk(&self, caller: Caller) -> Caller {
        Caller {
            uid: self.uid_on_disk(caller.uid),
            gid: self.gid_on_disk(caller.gid),
        }
    }

    /// The user on the disk who is shown as `uid`.
    pub(crate) fn uid_on_disk(&self, uid: u32) -> u32 {
        self.shown.uids.on_disk(uid).unwrap_or(self.overflow_uid)
    }

    /// The group on the disk that is shown as `gid`.
    pub(crate) fn gid_on_disk(&self, gid: u32) -> u32 {
        self.shown.gids.on_disk(gid).unwrap_or(self.overflow_gid)
    }

    /// Whether the kernel is to check ACLs.
    pub(crate) fn acls(&self) -> Switch {
        self.shown.acls()
    }

    /// Whether an extended attribute can't be had, or made.
    pub(crate) fn withholds(&self, name: &OsStr) -> bool {
        self.shown.withholds(name)
    }

    /// Whether an owner that could be given must be recorded all the same: what the kernel shows
    /// for unmapped owners may also be an id of the namespace ("nobody").
    pub(crate) fn is_ambiguous(&self, uid: Option<u32>, gid: Option<u32>) -> bool {
        self.owners == Owners::FakeRoot
            && (uid == Some(self.overflow_uid) || gid == Some(self.overflow_gid))
    }

    /// The attributes of an object as it is shown.
    pub(crate) fn show(&self, ino: Ino, stat: &Stat, record: Option<OverrideStat>) -> Attr {
        let mut attr = self.own(ino, stat, record);
        let (uids, gids): (&IdMap, &IdMap) = (&self.shown.uids, &self.shown.gids);
        attr.uid = uids.shown(attr.uid).unwrap_or(self.overflow_uid);
        attr.gid = gids.shown(attr.gid).unwrap_or(self.overflow_gid);
        attr.uid = self.shown.squashed_uid().unwrap_or(attr.uid);
        attr.gid = self.shown.squashed_gid().unwrap_or(attr.gid);
        if self.shown.static_nlink && attr.kind == FileKind::Directory {
            attr.nlink = 1;
        }
        attr
    }

    /// The attributes of an object, from its `stat` and, where owners are recorded, its record: its
    /// own ones, which a copy of it gets.
    pub(crate) fn own(&self, ino: Ino, stat: &Stat, record: Option<OverrideStat>) -> Attr {
        let mut attr = Attr {
            ino,
            kind: FileKind::of_mode(stat.st_mode),
            perm: (stat.st_mode & 0o7777) as u16,
            nlink: stat.st_nlink as u32,
            uid: stat.st_uid,
            gid: stat.st_gid,
            rdev: encode_dev(stat.st_rdev),
            size: stat.st_size as u64,
            blocks: stat.st_blocks as u64,
            blksize: stat.st_blksize as u32,
            atime: Timestamp {
                sec: stat.st_atime,
                nsec: stat.st_atime_nsec as u32,
            },
            mtime: Timestamp {
                sec: stat.st_mtime,
                nsec: stat.st_mtime_nsec as u32,
            },
            ctime: Timestamp {
                sec: stat.st_ctime,
                nsec: stat.st_ctime_nsec as u32,
            },
        };
        if let Owners::Given { uid, gid } = self.owners
            && self.upper != Some(stat.st_dev)
        {
            attr.uid = uid.unwrap_or(attr.uid);
            attr.gid = gid.unwrap_or(attr.gid);
        }
        if self.owners == Owners::FakeRoot {
            if attr.uid == self.overflow_uid {
                attr.uid = 0;
            }
            if attr.gid == self.overflow_gid {
                attr.gid = 0;
            }
        }
        if let Some(record) = record.filter(|_| self.records()) {
            apply(&mut attr, record);
        }
        attr
    }
}

fn apply(attr: &mut Attr, record: OverrideStat) {
    attr.uid = record.uid;
    attr.gid = record.gid;
    attr.perm = record.perm;
    let device = |major, minor| encode_dev(rustix::fs::makedev(major, minor));
    match record.kind {
        None => {}
        Some(Kind::File) => attr.kind = FileKind::Regular,
        Some(Kind::Dir) => attr.kind = FileKind::Directory,
        Some(Kind::Symlink) => attr.kind = FileKind::Symlink,
        Some(Kind::Pipe) => attr.kind = FileKind::Fifo,
        Some(Kind::Socket) => attr.kind = FileKind::Socket,
        Some(Kind::Char { major, minor }) => {
            attr.kind = FileKind::CharDevice;
            attr.rdev = device(major, minor);
        }
        Some(Kind::Block { major, minor }) => {
            attr.kind = FileKind::BlockDevice;
            attr.rdev = device(major, minor);
        }
    }
}

/// The record of an object that should look like `attr`.
pub(crate) fn record_of(attr: &Attr) -> OverrideStat {
    let (major, minor) = {
        let device = decode_dev(attr.rdev);
        (rustix::fs::major(device), rustix::fs::minor(device))
    };
    let kind = match attr.kind {
        FileKind::Regular => Kind::File,
        FileKind::Directory => Kind::Dir,
        FileKind::Symlink => Kind::Symlink,
        FileKind::Fifo => Kind::Pipe,
        FileKind::Socket => Kind::Socket,
        FileKind::CharDevice => Kind::Char { major, minor },
        FileKind::BlockDevice => Kind::Block { major, minor },
    };
    OverrideStat {
        uid: attr.uid,
        gid: attr.gid,
        perm: attr.perm,
        kind: Some(kind),
    }
}

/// The kernel's 32-bit form of a device number, as FUSE carries it.
pub(crate) fn encode_dev(device: u64) -> u32 {
    let (major, minor) = (rustix::fs::major(device), rustix::fs::minor(device));
    (minor & 0xff) | (major << 8) | ((minor & !0xff) << 12)
}

/// The reverse of [`encode_dev`].
pub(crate) fn decode_dev(device: u32) -> u64 {
    rustix::fs::makedev(
        (device & 0xf_ff00) >> 8,
        (device & 0xff) | ((device >> 12) & 0xf_ff00),
    )
}

fn overflow_id(path: &str) -> u32 {
    const DEFAULT: u32 = 65534;
    fs::read_to_string(path)
        .ok()
        .and_then(|text| text.trim().parse().ok())
        .unwrap_or(DEFAULT)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn device_numbers_survive_the_kernels_form() {
        for (major, minor) in [(0, 0), (1, 3), (8, 257), (4095, 0xf_ffff)] {
            let device = rustix::fs::makedev(major, minor);
            assert_eq!(decode_dev(encode_dev(device)), device);
        }
    }
}
