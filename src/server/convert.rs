//! Between the merged tree's values and fuser's.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use fuser::{FileAttr, FileType, Generation, INodeNo, RenameFlags, Request, TimeOrNow};

use crate::sys::Errno;
use crate::union::{
    Attr, Caller, Entry, FileKind, Ino, KillPriv, NewKind, RenameMode, Seek, SetTime, Timestamp,
    XattrMode,
};

/// The number for the kernel.
///
/// `ENOSYS` never goes out: the kernel takes it as "this operation does not exist" for the whole
/// mount, while here it only says that one layer's file system can't do it.
pub(super) fn errno(errno: Errno) -> fuser::Errno {
    match errno {
        Errno::NOSYS => fuser::Errno::EOPNOTSUPP,
        other => fuser::Errno::from_i32(other.raw_os_error()),
    }
}

pub(super) fn caller(request: &Request) -> Caller {
    Caller {
        uid: request.uid(),
        gid: request.gid(),
    }
}

pub(super) fn kind(kind: FileKind) -> FileType {
    match kind {
        FileKind::Fifo => FileType::NamedPipe,
        FileKind::CharDevice => FileType::CharDevice,
        FileKind::Directory => FileType::Directory,
        FileKind::BlockDevice => FileType::BlockDevice,
        FileKind::Regular => FileType::RegularFile,
        FileKind::Symlink => FileType::Symlink,
        FileKind::Socket => FileType::Socket,
    }
}

/// The attributes as GETATTR gives them: with `st_ino`.
pub(super) fn attr(attr: &Attr) -> FileAttr {
    FileAttr {
        ino: INodeNo(attr.ino.0),
        size: attr.size,
        blocks: attr.blocks,
        atime: system_time(attr.atime),
        mtime: system_time(attr.mtime),
        ctime: system_time(attr.ctime),
        crtime: UNIX_EPOCH,
        kind: kind(attr.kind),
        perm: attr.perm,
        nlink: attr.nlink,
        uid: attr.uid,
        gid: attr.gid,
        rdev: attr.rdev,
        blksize: attr.blksize,
        flags: 0,
    }
}

/// The attributes as a look-up gives them: fuser takes the node's number from `ino`.
pub(super) fn entry(entry: &Entry) -> (FileAttr, Generation) {
    let attr = FileAttr {
        ino: INodeNo(entry.id.0),
        ..attr(&entry.attr)
    };
    (attr, Generation(entry.generation))
}

/// What stands in a look-up's answer for a name that isn't there: node 0, which the kernel
/// remembers for as long as the answer says.
pub(super) fn absent() -> FileAttr {
    placeholder(Ino(0), FileKind::Regular)
}

/// What stands for `.` and `..` in a listing with attributes: the kernel takes their number and
/// type, and looks no further.
pub(super) fn placeholder(ino: Ino, kind: FileKind) -> FileAttr {
    attr(&Attr {
        ino,
        kind,
        perm: 0,
        nlink: 1,
        uid: 0,
        gid: 0,
        rdev: 0,
        size: 0,
        blocks: 0,
        blksize: 0,
        atime: Timestamp::default(),
        mtime: Timestamp::default(),
        ctime: Timestamp::default(),
    })
}

fn system_time(time: Timestamp) -> SystemTime {
    let whole = Duration::from_secs(time.sec.unsigned_abs());
    let second = if time.sec >= 0 {
        UNIX_EPOCH.checked_add(whole)
    } else {
        UNIX_EPOCH.checked_sub(whole)
    };
    second
        .and_then(|second| second.checked_add(Duration::from_nanos(time.nsec.into())))
        .unwrap_or(UNIX_EPOCH)
}

/// Undoes fuser 0.18's decoding, which takes the nanoseconds off a time before 1970 where the
/// kernel's form adds them.
fn timestamp(time: SystemTime) -> Timestamp {
    match time.duration_since(UNIX_EPOCH) {
        Ok(after) => Timestamp {
            sec: i64::try_from(after.as_secs()).unwrap_or(i64::MAX),
            nsec: after.subsec_nanos(),
        },
        Err(error) => {
            let before = error.duration();
            Timestamp {
                sec: 0i64.saturating_sub_unsigned(before.as_secs()),
                nsec: before.subsec_nanos(),
            }
        }
    }
}

pub(super) fn set_time(time: TimeOrNow) -> SetTime {
    match time {
        TimeOrNow::Now => SetTime::Now,
        TimeOrNow::SpecificTime(time) => SetTime::At(timestamp(time)),
    }
}

/// The permission bits of a mode.
pub(super) fn permissions(mode: u32) -> u16 {
    (mode & 0o7777) as u16
}

/// What mknod is asked for; `None` for a type that it can't make.
pub(super) fn new_node(mode: u32, rdev: u32) -> Option<NewKind<'static>> {
    match mode & libc::S_IFMT {
        0 | libc::S_IFREG => Some(NewKind::Regular),
        libc::S_IFIFO => Some(NewKind::Fifo),
        libc::S_IFSOCK => Some(NewKind::Socket),
        libc::S_IFCHR => Some(NewKind::CharDevice(rdev)),
        libc::S_IFBLK => Some(NewKind::BlockDevice(rdev)),
        _ => None,
    }
}

/// How a rename treats its target; `None` for flags that we don't carry out.
pub(super) fn rename_mode(flags: RenameFlags) -> Option<RenameMode> {
    if flags == RenameFlags::empty() {
        Some(RenameMode::Replace)
    } else if flags == RenameFlags::RENAME_NOREPLACE {
        Some(RenameMode::NoReplace)
    } else if flags == RenameFlags::RENAME_EXCHANGE {
        Some(RenameMode::Exchange)
    } else {
        None
    }
}

pub(super) fn xattr_mode(flags: i32) -> Option<XattrMode> {
    match flags {
        0 => Some(XattrMode::Set),
        libc::XATTR_CREATE => Some(XattrMode::Create),
        libc::XATTR_REPLACE => Some(XattrMode::Replace),
        _ => None,
    }
}

pub(super) fn seek(whence: i32) -> Option<Seek> {
    match whence {
        libc::SEEK_DATA => Some(Seek::Data),
        libc::SEEK_HOLE => Some(Seek::Hole),
        _ => None,
    }
}

pub(super) fn kill_priv(flags: fuser::WriteFlags, caller: Caller) -> KillPriv {
    if flags.contains(fuser::WriteFlags::FUSE_WRITE_KILL_SUIDGID) {
        KillPriv::Drop { gid: caller.gid }
    } else {
        KillPriv::Keep
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_before_1970_keep_their_moment() {
        let time = Timestamp {
            sec: -2,
            nsec: 800_000_000,
        };
        assert_eq!(
            system_time(time),
            UNIX_EPOCH - Duration::from_millis(1_200),
            "1.2 s before the epoch"
        );
        for sec in [i64::MIN, i64::MAX] {
            // Must not panic; far ends of the range may lose their nanoseconds.
            system_time(Timestamp {
                sec,
                nsec: 999_999_999,
            });
        }
    }

    #[test]
    fn times_from_the_kernel_come_back_as_they_were() {
        // What fuser 0.18 makes of (sec, nsec): see its system_time_from_time.
        let decoded = |sec: i64, nsec: u32| {
            if sec >= 0 {
                UNIX_EPOCH + Duration::new(sec.unsigned_abs(), nsec)
            } else {
                UNIX_EPOCH - Duration::new(sec.unsigned_abs(), nsec)
            }
        };
        for (sec, nsec) in [(0, 0), (7, 5), (-1, 0), (-2, 800_000_000), (1 << 40, 1)] {
            assert_eq!(timestamp(decoded(sec, nsec)), Timestamp { sec, nsec });
        }
    }

    #[test]
    fn no_layer_switches_an_operation_off_for_the_mount() {
        assert_eq!(errno(Errno::NOSYS).code(), libc::EOPNOTSUPP);
        assert_eq!(errno(Errno::STALE).code(), libc::ESTALE);
    }

    #[test]
    fn flags_that_are_not_carried_out_are_refused() {
        assert_eq!(rename_mode(RenameFlags::RENAME_WHITEOUT), None);
        assert_eq!(rename_mode(RenameFlags::all()), None);
        assert!(new_node(libc::S_IFDIR | 0o755, 0).is_none());
        assert_eq!(seek(libc::SEEK_SET), None);
        assert_eq!(xattr_mode(4), None);
    }
}
