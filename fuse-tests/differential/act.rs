//! The operations, as system calls.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd};
use std::path::Path;

use rustix::fs::{
    Access, AtFlags, CWD, FallocateFlags, FileType, Gid, Mode, OFlags, RenameFlags, SeekFrom,
    Timestamps, Uid, XattrFlags,
};

use super::calls::{self, timespec};
use super::execute::{Descriptor, Done, EMPTY, Hands, Object, become_user};
use super::layers::fill;
use super::look;
use super::mapping::Mapping;
use super::ops::{MAP_LENGTH, Op, Special, Whence};

impl Hands {
    /// Does it, as whoever this thread is.
    pub(super) fn act(&mut self, op: &Op, identity: &mut Option<(u64, u64)>) -> Done {
        let done = |()| "done".to_owned();
        if let Op::Chmod { on, .. }
        | Op::Chown { on, .. }
        | Op::Utimens { on, .. }
        | Op::Setxattr { on, .. }
        | Op::Removexattr { on, .. } = op
            && self.is_special(on)
        {
            return Ok("a special file".into());
        }
        match op {
            Op::Open {
                slot,
                path,
                flags,
                mode,
            } => {
                self.slots[*slot] = None;
                let all = flags | libc::O_NONBLOCK | libc::O_CLOEXEC | libc::O_NOCTTY;
                let all = OFlags::from_bits_retain(all as u32);
                let fd = rustix::fs::open(self.at(path), all, Mode::from_raw_mode(*mode))?;
                self.slots[*slot] = Some(Descriptor { fd, flags: *flags });
                Ok("opened".into())
            }
            Op::Close { slot } => {
                self.slots[*slot] = None;
                Ok("closed".into())
            }
            Op::Within { slot, op } => {
                self.enter(*slot)?;
                let root = std::mem::take(&mut self.root);
                let done = self.act(op, identity);
                self.root = root;
                rustix::process::chdir("/")?;
                done
            }
            Op::Read { slot, at, length } => {
                let (at, length) = self.aligned(*slot, *at, *length);
                let mut buffer = Aligned::new(length);
                let fd = self.fd(*slot)?;
                if look::kind_of(&rustix::fs::fstat(fd)?) == FileType::Directory {
                    return Ok("a directory".into());
                }
                let read = match at {
                    Some(at) => rustix::io::pread(fd, buffer.bytes(), at)?,
                    None => rustix::io::read(fd, buffer.bytes())?,
                };
                Ok(look::digest(&buffer.bytes()[..read]))
            }
            Op::Write {
                slot,
                at,
                length,
                seed,
            } => {
                let (at, length) = self.aligned(*slot, *at, *length);
                let mut buffer = Aligned::new(length);
                buffer.bytes().copy_from_slice(&fill(*seed, length));
                let fd = self.fd(*slot)?;
                let written = match at {
                    Some(at) => rustix::io::pwrite(fd, buffer.bytes(), at)?,
                    None => rustix::io::write(fd, buffer.bytes())?,
                };
                Ok(format!("{written} bytes"))
            }
            Op::Truncate { on, size } => match self.object(on)? {
                Object::Path(path) => {
                    if std::fs::metadata(&path)
                        .is_ok_and(|meta| meta.is_file() && meta.len() == *size)
                    {
                        return Ok("has that size".into());
                    }
                    Ok(nix::unistd::truncate(&path, *size as i64).map(done)?)
                }
                Object::Descriptor(fd) => Ok(rustix::fs::ftruncate(fd, *size).map(done)?),
            },
            Op::Chmod { on, mode } => {
                let mode = Mode::from_raw_mode(*mode);
                match self.object(on)? {
                    Object::Path(path) => Ok(rustix::fs::chmod(&path, mode).map(done)?),
                    Object::Descriptor(fd) => Ok(rustix::fs::fchmod(fd, mode).map(done)?),
                }
            }
            Op::Chown { on, uid, gid } => {
                let (uid, gid) = (uid.map(Uid::from_raw), gid.map(Gid::from_raw));
                match self.object(on)? {
                    Object::Path(path) => {
                        Ok(
                            rustix::fs::chownat(CWD, &path, uid, gid, AtFlags::SYMLINK_NOFOLLOW)
                                .map(done)?,
                        )
                    }
                    Object::Descriptor(fd) => Ok(rustix::fs::fchown(fd, uid, gid).map(done)?),
                }
            }
            Op::Utimens { on, atime, mtime } => {
                let times = Timestamps {
                    last_access: timespec(*atime),
                    last_modification: timespec(*mtime),
                };
                match self.object(on)? {
                    Object::Path(path) => {
                        Ok(
                            rustix::fs::utimensat(CWD, &path, &times, AtFlags::SYMLINK_NOFOLLOW)
                                .map(done)?,
                        )
                    }
                    Object::Descriptor(fd) => Ok(rustix::fs::futimens(fd, &times).map(done)?),
                }
            }
            Op::Mkdir { path, mode } => {
                Ok(rustix::fs::mkdir(self.at(path), Mode::from_raw_mode(*mode)).map(done)?)
            }
            Op::Rmdir { path } => Ok(rustix::fs::rmdir(self.at(path)).map(done)?),
            Op::Mknod { path, kind, mode } => {
                let (kind, device) = match kind {
                    Special::Fifo => (FileType::Fifo, (0, 0)),
                    Special::Socket => (FileType::Socket, (0, 0)),
                    Special::Null => (FileType::CharacterDevice, (1, 3)),
                    Special::Loop => (FileType::BlockDevice, (7, 200)),
                    Special::Whiteout => (FileType::CharacterDevice, (0, 0)),
                    Special::Regular => (FileType::RegularFile, (0, 0)),
                };
                let device = rustix::fs::makedev(device.0, device.1);
                let mode = Mode::from_raw_mode(*mode);
                Ok(rustix::fs::mknodat(CWD, self.at(path), kind, mode, device).map(done)?)
            }
            Op::Symlink { target, path } => {
                Ok(rustix::fs::symlink(target, self.at(path)).map(done)?)
            }
            Op::Readlink { path } => Ok(format!(
                "{:?}",
                rustix::fs::readlink(self.at(path), Vec::new())?
            )),
            Op::Link { from, to } => Ok(rustix::fs::link(self.at(from), self.at(to)).map(done)?),
            Op::Unlink { path } => Ok(rustix::fs::unlink(self.at(path)).map(done)?),
            Op::Rename { from, to, flags } => {
                let flags = RenameFlags::from_bits_retain(*flags);
                Ok(
                    rustix::fs::renameat_with(CWD, self.at(from), CWD, self.at(to), flags)
                        .map(done)?,
                )
            }
            Op::Getxattr { on, name, room } => {
                let mut value = vec![0; *room];
                let length = match self.object(on)? {
                    Object::Path(path) => rustix::fs::lgetxattr(&path, *name, &mut value[..])?,
                    Object::Descriptor(fd) => rustix::fs::fgetxattr(fd, *name, &mut value[..])?,
                };
                Ok(match *room {
                    0 => format!("{length} bytes"),
                    _ => value[..length].escape_ascii().to_string(),
                })
            }
            Op::Listxattr { on, room } => {
                let mut names = vec![0; *room];
                let length = match self.object(on)? {
                    Object::Path(path) => rustix::fs::llistxattr(&path, &mut names[..])?,
                    Object::Descriptor(fd) => rustix::fs::flistxattr(fd, &mut names[..])?,
                };
                if *room == 0 {
                    return Ok(format!("{length} bytes"));
                }
                let mut names: Vec<_> = names[..length].split(|byte| *byte == 0).collect();
                names.sort_unstable();
                Ok(names.join(&b' ').escape_ascii().to_string())
            }
            Op::Setxattr {
                on,
                name,
                value,
                flags,
            } => {
                let flags = XattrFlags::from_bits_retain(*flags);
                match self.object(on)? {
                    Object::Path(path) => {
                        Ok(rustix::fs::lsetxattr(&path, *name, &value.0, flags).map(done)?)
                    }
                    Object::Descriptor(fd) => {
                        Ok(rustix::fs::fsetxattr(fd, *name, &value.0, flags).map(done)?)
                    }
                }
            }
            Op::Removexattr { on, name } => match self.object(on)? {
                Object::Path(path) => Ok(rustix::fs::lremovexattr(&path, *name).map(done)?),
                Object::Descriptor(fd) => Ok(rustix::fs::fremovexattr(fd, *name).map(done)?),
            },
            Op::Readdir { on, room } => match self.object(on)? {
                Object::Path(path) => {
                    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
                    let dir = rustix::fs::open(&path, flags, Mode::empty())?;
                    let listing = look::entries(dir.as_fd(), *room)?;
                    become_user(0)?;
                    Ok(look::listing_text(dir.as_fd(), &listing))
                }
                Object::Descriptor(fd) => {
                    // A regular file's position is its own business.
                    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
                    rustix::fs::openat(fd, ".", flags, Mode::empty())?;
                    rustix::fs::seek(fd, SeekFrom::Start(0))?;
                    let listing = look::entries(fd, *room)?;
                    become_user(0)?;
                    Ok(look::listing_text(fd, &listing))
                }
            },
            Op::Stat { on, follow } => {
                let stat = match self.object(on)? {
                    Object::Path(path) if *follow => rustix::fs::stat(&path)?,
                    Object::Path(path) => rustix::fs::lstat(&path)?,
                    Object::Descriptor(fd) => rustix::fs::fstat(fd)?,
                };
                // Devices of the machine don't belong to the tree.
                *identity = Some((stat.st_dev, stat.st_ino));
                Ok(look::stat_text(&stat))
            }
            Op::Access { path, mode } => {
                let mode = Access::from_bits_retain(*mode);
                Ok(rustix::fs::accessat(CWD, self.at(path), mode, AtFlags::EACCESS).map(done)?)
            }
            Op::Fallocate {
                slot,
                mode,
                at,
                length,
            } => {
                let mode = FallocateFlags::from_bits_retain(*mode);
                Ok(rustix::fs::fallocate(self.fd(*slot)?, mode, *at, *length).map(done)?)
            }
            Op::Seek { slot, whence, at } => self.seek(*slot, *whence, *at),
            Op::CopyRange {
                from,
                from_at,
                to,
                to_at,
                length,
            } => {
                let (mut from_at, mut to_at, mut length) = (*from_at, *to_at, *length);
                if self.is_direct(*from) || self.is_direct(*to) {
                    (from_at, to_at) = (from_at & !4095, to_at & !4095);
                    // Not up to the end, where what is left is no whole block.
                    let size = rustix::fs::fstat(self.fd(*from)?)?.st_size as u64;
                    length = length.min(size.saturating_sub(from_at) as usize) & !4095;
                }
                let (from, to) = (self.fd(*from)?, self.fd(*to)?);
                let copied = rustix::fs::copy_file_range(
                    from,
                    Some(&mut from_at),
                    to,
                    Some(&mut to_at),
                    length,
                )?;
                Ok(format!("{copied} bytes"))
            }
            Op::Fsync { slot, data: true } => Ok(rustix::fs::fdatasync(self.fd(*slot)?).map(done)?),
            Op::Fsync { slot, data: false } => Ok(rustix::fs::fsync(self.fd(*slot)?).map(done)?),
            Op::Clone { from, to } | Op::Send { from, to, .. }
                if self.is_direct(*from) || self.is_direct(*to) =>
            {
                Ok("direct".into())
            }
            Op::Clone { from, to } => calls::clone(self.fd(*from)?, self.fd(*to)?),
            Op::Send {
                from,
                at,
                to,
                length,
            } => calls::send(self.fd(*from)?, *at, self.fd(*to)?, *length),
            Op::Lock { slot, lock } => calls::lock(self.fd(*slot)?, lock),
            Op::Flags { on, set } => match self.object(on)? {
                Object::Path(path) => {
                    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::CLOEXEC;
                    let file = rustix::fs::open(&path, flags | OFlags::NOFOLLOW, Mode::empty())?;
                    calls::inode_flags(file.as_fd(), *set)
                }
                Object::Descriptor(fd) => calls::inode_flags(fd, *set),
            },
            Op::Statx { on, force } => {
                let sync = match force {
                    true => AtFlags::STATX_FORCE_SYNC,
                    false => AtFlags::empty(),
                };
                match self.object(on)? {
                    Object::Path(path) => calls::statx(CWD, &path, sync),
                    Object::Descriptor(fd) => calls::statx(fd, Path::new(""), sync),
                }
            }
            Op::Statfs { path } => calls::statfs(&self.at(path)),
            Op::LinkSlot { slot, to } => {
                let from = format!("/proc/self/fd/{}", self.fd(*slot)?.as_raw_fd());
                let flags = AtFlags::SYMLINK_FOLLOW;
                Ok(rustix::fs::linkat(CWD, &*from, CWD, self.at(to), flags).map(done)?)
            }
            Op::MapOnce { path, shared } => {
                let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::CLOEXEC;
                let file = File::from(rustix::fs::open(self.at(path), flags, Mode::empty())?);
                if !file.metadata()?.is_file() {
                    return Ok("not a file".into());
                }
                let (protection, flags) = if *shared {
                    (libc::PROT_READ, libc::MAP_SHARED)
                } else {
                    (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_PRIVATE)
                };
                let mapping = Mapping::new(file.as_fd(), MAP_LENGTH, protection, flags)?;
                let mut text = look::digest(&mapping.read(0, MAP_LENGTH)?);
                if !shared {
                    mapping.write(10, b"private")?;
                    text += &look::digest(&mapping.read(0, 100)?);
                }
                Ok(text)
            }
            Op::Map { map, slot } => {
                self.maps[*map] = None;
                let fd = self.fd(*slot)?;
                if look::kind_of(&rustix::fs::fstat(fd)?) != FileType::RegularFile {
                    return Ok("not a file".into());
                }
                let protection = libc::PROT_READ | libc::PROT_WRITE;
                let mapping = Mapping::new(fd, MAP_LENGTH, protection, libc::MAP_SHARED)?;
                self.maps[*map] = Some(mapping);
                Ok("mapped".into())
            }
            Op::MapRead { map, at } => match &self.maps[*map] {
                Some(mapping) => Ok(look::digest(&mapping.read(*at, 5000)?)),
                None => Err(io::Error::from_raw_os_error(EMPTY)),
            },
            Op::MapWrite {
                map,
                at,
                length,
                seed,
            } => match &self.maps[*map] {
                Some(mapping) => {
                    let written = mapping.write(*at, &fill(*seed, *length))?;
                    mapping.sync();
                    Ok(format!("{written} bytes"))
                }
                None => Err(io::Error::from_raw_os_error(EMPTY)),
            },
            Op::Unmap { map } => {
                self.maps[*map] = None;
                Ok("unmapped".into())
            }
            Op::DropCaches => {
                std::fs::write("/proc/sys/vm/drop_caches", "3").map(|()| "dropped".into())
            }
        }
    }

    /// Finds data or a hole. A block of zeros that the file system has allocated ahead, or holds in
    /// memory, may count as data: it is passed over.
    fn seek(&self, slot: usize, whence: Whence, at: u64) -> Done {
        let fd = self.fd(slot)?;
        if look::kind_of(&rustix::fs::fstat(fd)?) != FileType::RegularFile {
            return Ok("not a file".into());
        }
        let place = match whence {
            Whence::End => {
                let place = rustix::fs::seek(fd, SeekFrom::End(-(at as i64)))?;
                return Ok(format!("at {place}"));
            }
            Whence::Hole => rustix::fs::seek(fd, SeekFrom::Hole(at))?,
            // The blocks that are found couldn't be looked at.
            Whence::Data if self.is_write_only(slot) => return Ok("write-only".into()),
            Whence::Data => self.data_from(slot, at)?,
        };
        // The two sides may disagree about it; they go on from the same place.
        rustix::fs::seek(fd, SeekFrom::Start(0))?;
        Ok(format!("at {place}"))
    }

    fn data_from(&self, slot: usize, mut at: u64) -> io::Result<u64> {
        let fd = self.fd(slot)?;
        let mut block = Aligned::new(4096);
        loop {
            at = rustix::fs::seek(fd, SeekFrom::Data(at))?;
            let read = rustix::io::pread(fd, block.bytes(), at & !4095)?;
            let skip = (at % 4096) as usize;
            match block.bytes()[..read].get(skip..) {
                Some(rest) if !rest.is_empty() && rest.iter().all(|byte| *byte == 0) => {
                    at = (at & !4095) + 4096;
                }
                _ => return Ok(at),
            }
        }
    }

    fn is_write_only(&self, slot: usize) -> bool {
        let held = self.slots[slot].as_ref();
        held.is_some_and(|held| held.flags & libc::O_ACCMODE == libc::O_WRONLY)
    }

    /// Direct I/O wants everything in whole blocks; FUSE doesn't insist.
    fn aligned(&self, slot: usize, at: Option<u64>, length: usize) -> (Option<u64>, usize) {
        if self.is_direct(slot) {
            let at = at.unwrap_or(0) & !4095;
            (Some(at), length.next_multiple_of(4096))
        } else {
            (at, length)
        }
    }
}

/// Memory that direct I/O accepts.
struct Aligned {
    memory: Vec<u8>,
    start: usize,
    length: usize,
}

impl Aligned {
    fn new(length: usize) -> Self {
        let memory = vec![0; length + 4096];
        let start = memory.as_ptr().align_offset(4096);
        Self {
            memory,
            start,
            length,
        }
    }

    fn bytes(&mut self) -> &mut [u8] {
        &mut self.memory[self.start..self.start + self.length]
    }
}
