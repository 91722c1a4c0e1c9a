//! A disk that we serve ourselves: a file of a FUSE file system of ours, on which a loop device
//! stands. What the file system on it writes is only safe when it has asked for a flush; when the
//! power fails, any part of the rest may be missing. And it can have bad days.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::sleep;
use std::time::{Duration, Instant, UNIX_EPOCH};

use fuser::{
    BackgroundSession, Errno, FileAttr, FileHandle, FileType, Filesystem, FopenFlags, Generation,
    INodeNo, LockOwner, OpenFlags, ReplyAttr, ReplyData, ReplyEmpty, ReplyEntry, ReplyOpen,
    ReplyWrite, Request, WriteFlags,
};

use nix::mount::{MntFlags, umount2};

use crate::common::dice::Dice;

/// The disk; it goes when it is dropped.
pub(crate) struct Disk {
    state: Arc<Mutex<State>>,
    file: PathBuf,
    _session: BackgroundSession,
}

#[derive(Debug)]
struct State {
    /// What is safe.
    image: File,
    size: u64,
    /// What was written since the last flush.
    cache: Vec<(u64, Vec<u8>)>,
    mood: Mood,
    flushes: usize,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Mood {
    Works,
    FailsWrites,
    /// Takes so many writes yet.
    Dying(usize),
    Dead,
}

/// What a failure of the power does at once: a disk writes so much or nothing of it.
const SECTOR: usize = 4096;

impl Disk {
    /// Serves `image` below the new directory `at`.
    pub(crate) fn serve(image: &Path, at: &Path) -> io::Result<Self> {
        let image = File::options().read(true).write(true).open(image)?;
        let state = Arc::new(Mutex::new(State {
            size: image.metadata()?.len(),
            image,
            cache: Vec::new(),
            mood: Mood::Works,
            flushes: 0,
        }));
        fs::create_dir_all(at)?;
        let server = Server {
            state: Arc::clone(&state),
        };
        let session = fuser::spawn_mount(server, at, &fuser::Config::default())?;
        Ok(Self {
            state,
            file: at.join("image"),
            _session: session,
        })
    }

    /// What a loop device can be put on.
    pub(crate) fn file(&self) -> &Path {
        &self.file
    }

    /// From now on writes fail with `EIO`, or no more.
    pub(crate) fn fail_writes(&self, yes: bool) {
        let mood = if yes { Mood::FailsWrites } else { Mood::Works };
        lock(&self.state).mood = mood;
    }

    /// The power fails, after a few more writes: of those before a flush. Of what wasn't flushed
    /// all, nothing, or any part gets to the disk. How much there was comes back, and how often it
    /// was flushed.
    pub(crate) fn lose_power(&self, dice: &mut Dice) -> io::Result<(usize, usize)> {
        lock(&self.state).mood = Mood::Dying(dice.roll(16));
        let end = Instant::now() + Duration::from_millis(100);
        while lock(&self.state).mood != Mood::Dead && Instant::now() < end {
            sleep(Duration::from_micros(200));
        }
        let mut state = lock(&self.state);
        state.mood = Mood::Dead;
        let luck = dice.roll(3);
        let mut unsafe_bytes = 0;
        for (offset, data) in std::mem::take(&mut state.cache) {
            unsafe_bytes += data.len();
            for (number, sector) in data.chunks(SECTOR).enumerate() {
                if luck == 2 || (luck == 1 && dice.roll(2) == 0) {
                    let at = offset + (number * SECTOR) as u64;
                    state.image.write_all_at(sector, at)?;
                }
            }
        }
        Ok((unsafe_bytes, state.flushes))
    }
}

impl Drop for Disk {
    /// A loop device may let go of it a moment after it has gone.
    fn drop(&mut self) {
        if let Some(at) = self.file.parent() {
            let _ = umount2(at, MntFlags::MNT_DETACH);
        }
    }
}

fn lock(state: &Mutex<State>) -> MutexGuard<'_, State> {
    state.lock().unwrap_or_else(PoisonError::into_inner)
}

impl State {
    fn read(&self, offset: u64, size: usize) -> io::Result<Vec<u8>> {
        let size = size.min(self.size.saturating_sub(offset) as usize);
        let mut data = vec![0; size];
        self.image.read_exact_at(&mut data, offset)?;
        for (at, written) in &self.cache {
            let start = (*at).max(offset);
            let end = (at + written.len() as u64).min(offset + size as u64);
            if start < end {
                let from = &written[(start - at) as usize..(end - at) as usize];
                data[(start - offset) as usize..(end - offset) as usize].copy_from_slice(from);
            }
        }
        Ok(data)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.flushes += 1;
        for (offset, data) in std::mem::take(&mut self.cache) {
            self.image.write_all_at(&data, offset)?;
        }
        Ok(())
    }
}

struct Server {
    state: Arc<Mutex<State>>,
}

const IMAGE: INodeNo = INodeNo(2);
const LONG: Duration = Duration::from_secs(3600);

impl Server {
    fn attr(&self, ino: INodeNo) -> FileAttr {
        let is_image = ino == IMAGE;
        let size = if is_image { lock(&self.state).size } else { 0 };
        FileAttr {
            ino,
            size,
            blocks: size / 512,
            atime: UNIX_EPOCH,
            mtime: UNIX_EPOCH,
            ctime: UNIX_EPOCH,
            crtime: UNIX_EPOCH,
            kind: if is_image {
                FileType::RegularFile
            } else {
                FileType::Directory
            },
            perm: 0o700,
            nlink: 1,
            uid: 0,
            gid: 0,
            rdev: 0,
            blksize: 4096,
            flags: 0,
        }
    }
}

impl Filesystem for Server {
    fn lookup(&self, _: &Request, _: INodeNo, name: &OsStr, reply: ReplyEntry) {
        if name == "image" {
            reply.entry(&LONG, &self.attr(IMAGE), Generation(0));
        } else {
            reply.error(Errno::ENOENT);
        }
    }

    fn getattr(&self, _: &Request, ino: INodeNo, _: Option<FileHandle>, reply: ReplyAttr) {
        reply.attr(&LONG, &self.attr(ino));
    }

    fn open(&self, _: &Request, _: INodeNo, _: OpenFlags, reply: ReplyOpen) {
        reply.opened(FileHandle(0), FopenFlags::empty());
    }

    fn read(
        &self,
        _: &Request,
        _: INodeNo,
        _: FileHandle,
        offset: u64,
        size: u32,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyData,
    ) {
        let state = lock(&self.state);
        let data = (state.mood != Mood::Dead).then(|| state.read(offset, size as usize));
        match data {
            Some(Ok(data)) => reply.data(&data),
            Some(Err(_)) | None => reply.error(Errno::EIO),
        }
    }

    fn write(
        &self,
        _: &Request,
        _: INodeNo,
        _: FileHandle,
        offset: u64,
        data: &[u8],
        _: WriteFlags,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        let mut state = lock(&self.state);
        state.mood = match state.mood {
            Mood::Works => Mood::Works,
            Mood::Dying(left) if left > 0 => Mood::Dying(left - 1),
            Mood::Dying(_) | Mood::Dead => Mood::Dead,
            Mood::FailsWrites => Mood::FailsWrites,
        };
        if matches!(state.mood, Mood::FailsWrites | Mood::Dead) {
            return reply.error(Errno::EIO);
        }
        state.cache.push((offset, data.to_vec()));
        reply.written(data.len() as u32);
    }

    fn fsync(&self, _: &Request, _: INodeNo, _: FileHandle, _: bool, reply: ReplyEmpty) {
        let mut state = lock(&self.state);
        if state.mood == Mood::Dead {
            return reply.error(Errno::EIO);
        }
        match state.flush() {
            Ok(()) => reply.ok(),
            Err(_) => reply.error(Errno::EIO),
        }
    }
}
