//! The calls that take more than a line: cloning, sending, locks, inode flags, what statx(2) and
//! statfs(2) say.

use std::io;
use std::os::fd::BorrowedFd;
use std::path::Path;

use nix::fcntl::{FcntlArg, fcntl};
use rustix::fs::{AtFlags, FallocateFlags, FileType, FlockOperation, IFlags, SeekFrom, StatxFlags};
use rustix::io::Errno;

use super::look;
use super::ops::{Lock, Moment};

/// The inode flags that are set and compared: file systems have more of their own.
pub(crate) const FLAGS: IFlags = IFlags::NODUMP
    .union(IFlags::SYNC)
    .union(IFlags::NOATIME)
    .union(IFlags::APPEND)
    .union(IFlags::IMMUTABLE);

fn is_file(fd: BorrowedFd<'_>) -> io::Result<bool> {
    Ok(look::kind_of(&rustix::fs::fstat(fd)?) == FileType::RegularFile)
}

/// Whether both are files, and two of them. What has several names may show several numbers.
fn are_two_files(from: BorrowedFd<'_>, to: BorrowedFd<'_>) -> io::Result<bool> {
    let (a, b) = (rustix::fs::fstat(from)?, rustix::fs::fstat(to)?);
    let single = a.st_nlink <= 1 && b.st_nlink <= 1;
    Ok(single && is_file(from)? && is_file(to)? && (a.st_dev, a.st_ino) != (b.st_dev, b.st_ino))
}

/// FICLONE, or what `cp --reflink=auto` does without it: FUSE has no such request.
pub(crate) fn clone(from: BorrowedFd<'_>, to: BorrowedFd<'_>) -> io::Result<String> {
    if !are_two_files(from, to)? {
        return Ok("not two files".into());
    }
    match rustix::fs::ioctl_ficlone(to, from) {
        Err(Errno::OPNOTSUPP | Errno::XDEV | Errno::INVAL) => {}
        result => return Ok(result.map(|()| "cloned".into())?),
    }
    let size = rustix::fs::fstat(from)?.st_size as u64;
    if size == 0 {
        return Ok("cloned".into());
    }
    if (rustix::fs::fstat(to)?.st_size as u64) < size {
        rustix::fs::ftruncate(to, size)?;
    }
    rustix::fs::fallocate(
        to,
        FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE,
        0,
        size,
    )?;
    let position = rustix::fs::seek(from, SeekFrom::Current(0))?;
    let mut at = 0;
    while let Ok(start) = rustix::fs::seek(from, SeekFrom::Data(at)) {
        let end = rustix::fs::seek(from, SeekFrom::Hole(start))?.min(size);
        let mut data = vec![0; (end - start) as usize];
        let read = rustix::io::pread(from, &mut data[..], start)?;
        rustix::io::pwrite(to, &data[..read], start)?;
        at = end;
    }
    rustix::fs::seek(from, SeekFrom::Start(position))?;
    Ok("cloned".into())
}

/// sendfile(2) from an offset.
pub(crate) fn send(
    from: BorrowedFd<'_>,
    at: u64,
    to: BorrowedFd<'_>,
    length: usize,
) -> io::Result<String> {
    if !are_two_files(from, to)? {
        return Ok("not two files".into());
    }
    let mut at = at;
    let sent = rustix::fs::sendfile(to, from, Some(&mut at), length)?;
    Ok(format!("{sent} bytes, at {at}"))
}

/// Takes, asks for or drops a lock, without waiting.
pub(crate) fn lock(fd: BorrowedFd<'_>, lock: &Lock) -> io::Result<String> {
    let done = |()| "done".to_owned();
    match lock {
        Lock::Whole(kind) => {
            let operation = match *kind {
                libc::F_RDLCK => FlockOperation::NonBlockingLockShared,
                libc::F_WRLCK => FlockOperation::NonBlockingLockExclusive,
                _ => FlockOperation::Unlock,
            };
            Ok(rustix::fs::flock(fd, operation).map(done)?)
        }
        Lock::Range { kind, at, length } => {
            let range = flock(*kind, *at, *length);
            fcntl(fd, FcntlArg::F_OFD_SETLK(&range))?;
            Ok(done(()))
        }
        Lock::Ask { kind, at, length } => {
            let mut range = flock(*kind, *at, *length);
            fcntl(fd, FcntlArg::F_OFD_GETLK(&mut range))?;
            let libc::flock {
                l_type,
                l_start,
                l_len,
                ..
            } = range;
            Ok(format!("type {l_type} from {l_start}, {l_len} bytes"))
        }
    }
}

fn flock(kind: i32, at: i64, length: i64) -> libc::flock {
    libc::flock {
        l_type: kind as i16,
        l_whence: libc::SEEK_SET as i16,
        l_start: at,
        l_len: length,
        l_pid: 0,
    }
}

/// lsattr(1), and chattr(1) where there is something to set.
pub(crate) fn inode_flags(fd: BorrowedFd<'_>, set: Option<u32>) -> io::Result<String> {
    match look::kind_of(&rustix::fs::fstat(fd)?) {
        FileType::RegularFile | FileType::Directory => {}
        _ => return Ok("a special file".into()),
    }
    let now = rustix::fs::ioctl_getflags(fd)?;
    match set {
        None => {
            let names = (now & FLAGS).iter_names().map(|(name, _)| name);
            let owner = rustix::fs::fstat(fd)?.st_uid;
            Ok(format!(
                "{} of {owner}",
                names.collect::<Vec<_>>().join("|")
            ))
        }
        Some(wanted) => {
            // There are flags that no name is given to here.
            let set = |now: IFlags| {
                let others = now.bits() & !FLAGS.bits();
                let wanted = IFlags::from_bits_retain(others | wanted & FLAGS.bits());
                rustix::fs::ioctl_setflags(fd, wanted)
            };
            match set(now) {
                // The copy is on another file system, which has others.
                Err(Errno::OPNOTSUPP) => set(rustix::fs::ioctl_getflags(fd)?)?,
                result => result?,
            }
            Ok("set".to_owned())
        }
    }
}

/// statx(2) of a path or, where it is empty, of the descriptor.
pub(crate) fn statx(at: BorrowedFd<'_>, path: &Path, flags: AtFlags) -> io::Result<String> {
    let flags = flags | AtFlags::EMPTY_PATH | AtFlags::SYMLINK_NOFOLLOW;
    let stat = rustix::fs::statx(at, path, flags, StatxFlags::BASIC_STATS)?;
    let kind = FileType::from_raw_mode(stat.stx_mode.into());
    let mut text = format!(
        "{kind:?} {:04o} {}:{} nlink {} mask {:x} block {}",
        stat.stx_mode & 0o7777,
        stat.stx_uid,
        stat.stx_gid,
        stat.stx_nlink,
        stat.stx_mask & StatxFlags::BASIC_STATS.bits(),
        stat.stx_blksize,
    );
    if matches!(kind, FileType::RegularFile | FileType::Symlink) {
        text += &format!(" size {}", stat.stx_size);
    }
    if matches!(kind, FileType::CharacterDevice | FileType::BlockDevice) {
        text += &format!(" rdev {}:{}", stat.stx_rdev_major, stat.stx_rdev_minor);
    }
    let time = (stat.stx_mtime.tv_sec, stat.stx_mtime.tv_nsec);
    Ok(text + &look::time_text(time.0, time.1.into()))
}

/// What doesn't change in statfs(2).
pub(crate) fn statfs(path: &Path) -> io::Result<String> {
    let stat = rustix::fs::statfs(path)?;
    Ok(format!(
        "{} blocks of {}, names of {}",
        stat.f_blocks, stat.f_bsize, stat.f_namelen
    ))
}

/// For utimensat(2).
pub(crate) fn timespec(moment: Moment) -> rustix::fs::Timespec {
    let (tv_sec, tv_nsec) = match moment {
        Moment::Now => (0, rustix::fs::UTIME_NOW as _),
        Moment::Omit => (0, rustix::fs::UTIME_OMIT as _),
        Moment::At(sec) => (sec, 123),
    };
    rustix::fs::Timespec { tv_sec, tv_nsec }
}
