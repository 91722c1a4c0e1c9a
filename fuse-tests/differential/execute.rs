//! Carries an operation out on one mounted tree and says what came of it, as text.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, CWD, FileType, Gid, Mode, Timestamps, Uid};
use rustix::thread::{set_thread_groups, set_thread_res_gid, set_thread_res_uid};

use super::calls::timespec;
use super::layers::IN_ANOTHER_GROUP;
use super::look;
use super::manner::Manner;
use super::mapping::Mapping;
use super::ops::{self, MAPS, Moment, On, Op, SLOTS, Step};
use super::place::Place;

/// What came of an operation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Outcome {
    /// What it returned, or its error.
    pub(crate) result: Result<String, i32>,
    /// `(st_dev, st_ino)` of the object that was looked at.
    pub(crate) identity: Option<(u64, u64)>,
    /// Whether the descriptor's file has no name any more.
    pub(crate) nameless: bool,
}

impl Outcome {
    /// For people.
    pub(crate) fn show(&self) -> String {
        match &self.result {
            Ok(text) => text.clone(),
            Err(errno) => io::Error::from_raw_os_error(*errno).to_string(),
        }
    }
}

pub(super) struct Descriptor {
    pub(super) fd: OwnedFd,
    pub(super) flags: i32,
}

/// One mounted tree with the descriptors and mappings that are open in it.
pub(crate) struct Hands {
    pub(super) root: PathBuf,
    custom: Custom,
    pub(super) slots: [Option<Descriptor>; SLOTS],
    pub(super) maps: [Option<Mapping>; MAPS],
}

/// What must be evened out.
struct Custom {
    /// A change of attributes copies no data.
    metacopy: bool,
    /// The upper may be on btrfs.
    btrfs: bool,
}

pub(super) enum Object<'a> {
    Path(PathBuf),
    Descriptor(BorrowedFd<'a>),
}

/// No descriptor in that slot: the operation isn't done.
pub(super) const EMPTY: i32 = -1;

pub(super) type Done = io::Result<String>;

impl Hands {
    /// For a tree mounted at `root`.
    pub(crate) fn new(root: PathBuf, manner: &Manner) -> Self {
        Self {
            root,
            custom: Custom {
                metacopy: manner.has("metacopy=on"),
                btrfs: matches!(manner.place, Place::Btrfs | Place::Mixed | Place::Tmp),
            },
            slots: [const { None }; SLOTS],
            maps: [const { None }; MAPS],
        }
    }

    /// The objects that may be gone after the step: their numbers may then be given to others.
    pub(crate) fn parting(&self, op: &Op) -> Vec<(u64, u64)> {
        let name = |path: &Path| {
            let stat = rustix::fs::lstat(path).ok()?;
            let last = stat.st_nlink <= 1 || stat.st_mode & libc::S_IFMT == libc::S_IFDIR;
            last.then_some((stat.st_dev, stat.st_ino))
        };
        let held = |slot: usize| {
            let stat = rustix::fs::fstat(self.fd(slot).ok()?).ok()?;
            let last = stat.st_nlink == 0 || stat.st_mode & libc::S_IFMT == libc::S_IFDIR;
            last.then_some((stat.st_dev, stat.st_ino))
        };
        let gone = match op {
            Op::Unlink { path } | Op::Rmdir { path } | Op::Rename { to: path, .. } => {
                name(&self.at(path))
            }
            Op::Open { slot, .. } | Op::Close { slot } => held(*slot),
            Op::Within { slot, op } => match &**op {
                Op::Unlink { path } | Op::Rmdir { path } | Op::Rename { to: path, .. } => {
                    let gone = self.enter(*slot).ok().and_then(|()| name(path));
                    let _ = rustix::process::chdir("/");
                    gone
                }
                Op::Open { slot, .. } => held(*slot),
                _ => None,
            },
            _ => None,
        };
        Vec::from_iter(gone)
    }

    /// Does it.
    pub(crate) fn execute(&mut self, step: &Step) -> Outcome {
        let mut identity = None;
        rustix::process::umask(Mode::from_raw_mode(step.umask));
        let result = become_user(step.uid).and_then(|()| {
            let result = self.act(&step.op, &mut identity);
            become_user(0)?;
            result
        });
        rustix::process::umask(Mode::from_raw_mode(0o022));
        if let (Op::Rename { from, .. }, Err(error)) = (&step.op, &result)
            && matches!(error.raw_os_error(), Some(libc::ENOTEMPTY | libc::EEXIST))
        {
            self.after_full_target(from);
        }
        let after = match &result {
            // What is in the slot was there before.
            Err(_) if is_open(&step.op) => Ok(()),
            _ => self.afterwards(&step.op),
        };
        if after.is_err() {
            self.give_up(&step.op);
        }
        let result = result.and_then(|text| after.map(|()| text));
        let result = result.map_err(|error| error.raw_os_error().unwrap_or(EMPTY));
        let nameless = self.is_nameless(&step.op);
        Outcome {
            result,
            identity,
            nameless,
        }
    }

    /// What `known.rs` says that is done after an operation.
    fn afterwards(&self, op: &Op) -> io::Result<()> {
        match op {
            Op::Open { slot, flags, .. } => self.after_open(*slot, *flags),
            Op::Within { op, .. } => match **op {
                Op::Open { slot, flags, .. } => self.after_open(slot, flags),
                _ => Ok(()),
            },
            // A call that FUSE hasn't sets the time on ext4 even if it fails.
            Op::Fallocate { slot, mode, .. } if mode & ops::MOVING != 0 => self.touch(*slot),
            // btrfs sets the time of a hole that is punched in a hole, or doesn't, by what it has
            // in memory.
            Op::Fallocate { slot, mode, .. } if self.custom.btrfs && *mode != 0 => {
                self.touch(*slot)
            }
            _ => Ok(()),
        }
    }

    /// What couldn't be evened out isn't kept.
    fn give_up(&mut self, op: &Op) {
        match op {
            Op::Open { slot, .. } => self.slots[*slot] = None,
            Op::Within { op, .. } => self.give_up(op),
            _ => {}
        }
    }

    /// Sets the time of the last change, if the file could be written.
    fn touch(&self, slot: usize) -> io::Result<()> {
        let times = Timestamps {
            last_access: timespec(Moment::Omit),
            last_modification: timespec(Moment::Now),
        };
        match &self.slots[slot] {
            Some(held)
                if held.flags & (libc::O_WRONLY | libc::O_RDWR) != 0
                    && !self.is_special(&On::Slot(slot)) =>
            {
                Ok(rustix::fs::futimens(&held.fd, &times)?)
            }
            _ => Ok(()),
        }
    }

    /// The kernel copies a file up when it is opened for writing; we do at the first write, since
    /// no OPEN request reaches us. A chmod by root to what it is already brings both to the same
    /// point; with `metacopy=on`, a truncate to the size that it has.
    fn after_open(&self, slot: usize, flags: i32) -> io::Result<()> {
        if flags & libc::O_ACCMODE == libc::O_RDONLY || flags & libc::O_PATH != 0 {
            return Ok(());
        }
        if let Some(held) = &self.slots[slot] {
            let stat = rustix::fs::fstat(&held.fd)?;
            if stat.st_mode & libc::S_IFMT == libc::S_IFREG {
                match rustix::fs::fchmod(&held.fd, Mode::from_raw_mode(stat.st_mode & 0o7777)) {
                    // An append-only file lets itself be touched, and opened for appending alone.
                    Err(rustix::io::Errno::PERM) if held.flags & libc::O_APPEND != 0 => {
                        let now = timespec(Moment::Now);
                        let times = Timestamps {
                            last_access: now,
                            last_modification: now,
                        };
                        rustix::fs::futimens(&held.fd, &times)?;
                    }
                    result => result?,
                }
                if self.custom.metacopy {
                    match rustix::fs::ftruncate(&held.fd, stat.st_size as u64) {
                        // An append-only file takes room for what it has.
                        Err(rustix::io::Errno::PERM) if held.flags & libc::O_APPEND != 0 => {
                            let mode = rustix::fs::FallocateFlags::KEEP_SIZE;
                            rustix::fs::fallocate(&held.fd, mode, 0, 1)?;
                        }
                        result => result?,
                    }
                    self.touch(slot)?;
                }
            }
        }
        Ok(())
    }

    fn is_nameless(&self, op: &Op) -> bool {
        let slot = match op {
            Op::Chmod { on, .. }
            | Op::Chown { on, .. }
            | Op::Utimens { on, .. }
            | Op::Truncate { on, .. }
            | Op::Setxattr { on, .. }
            | Op::Removexattr { on, .. }
            | Op::Flags { on, .. }
            | Op::Statx { on, .. }
            | Op::Stat { on, .. } => match on {
                On::Slot(slot) => *slot,
                On::Path(_) => return false,
            },
            _ => return false,
        };
        let stat = self.fd(slot).map(rustix::fs::fstat);
        stat.is_ok_and(|stat| stat.is_ok_and(|stat| stat.st_nlink == 0))
    }

    /// ext4 has touched the directory of the source by the time it refuses to rename over a full
    /// one, if a whiteout was to be left; we refuse before. The source being a directory of the
    /// upper layer alone, this copies nothing up.
    fn after_full_target(&self, from: &Path) {
        let path = self.at(from);
        let parent = path.parent().unwrap_or(&self.root);
        if path.symlink_metadata().is_ok_and(|meta| meta.is_dir()) {
            let now = timespec(Moment::Now);
            let times = Timestamps {
                last_access: now,
                last_modification: now,
            };
            let _ = rustix::fs::utimensat(CWD, parent, &times, AtFlags::empty());
        }
    }

    pub(super) fn at(&self, path: &Path) -> PathBuf {
        self.root.join(path)
    }

    /// Makes an open directory the working directory.
    pub(super) fn enter(&self, slot: usize) -> io::Result<()> {
        Ok(rustix::process::fchdir(self.fd(slot)?)?)
    }

    pub(super) fn fd(&self, slot: usize) -> io::Result<BorrowedFd<'_>> {
        match &self.slots[slot] {
            Some(held) => Ok(held.fd.as_fd()),
            None => Err(io::Error::from_raw_os_error(EMPTY)),
        }
    }

    pub(super) fn object(&self, on: &On) -> io::Result<Object<'_>> {
        match on {
            On::Path(path) => Ok(Object::Path(self.at(path))),
            On::Slot(slot) => self.fd(*slot).map(Object::Descriptor),
        }
    }

    pub(super) fn is_direct(&self, slot: usize) -> bool {
        let held = self.slots[slot].as_ref();
        held.is_some_and(|held| held.flags & libc::O_DIRECT != 0)
    }

    /// Whether a descriptor is open on a special file or a link.
    pub(super) fn is_special(&self, on: &On) -> bool {
        let On::Slot(slot) = on else { return false };
        let Some(held) = &self.slots[*slot] else {
            return false;
        };
        let plain = [FileType::RegularFile, FileType::Directory];
        rustix::fs::fstat(&held.fd).is_ok_and(|stat| !plain.contains(&look::kind_of(&stat)))
    }
}

/// Changes who this thread is for the file systems. The real user stays root, and may come back.
pub(super) fn become_user(uid: u32) -> io::Result<()> {
    thread_local! {
        static NOW: std::cell::Cell<u32> = const { std::cell::Cell::new(0) };
    }
    if NOW.get() == uid {
        return Ok(());
    }
    let root = (Uid::ROOT, Gid::ROOT);
    set_thread_res_uid(root.0, root.0, root.0)?;
    set_thread_res_gid(root.1, Gid::from_raw(uid), root.1)?;
    let groups: &[Gid] = match uid {
        IN_ANOTHER_GROUP => &[Gid::from_raw(1001)],
        _ => &[],
    };
    set_thread_groups(groups)?;
    set_thread_res_uid(root.0, Uid::from_raw(uid), root.0)?;
    NOW.set(uid);
    Ok(())
}

fn is_open(op: &Op) -> bool {
    match op {
        Op::Open { .. } => true,
        Op::Within { op, .. } => is_open(op),
        _ => false,
    }
}
