//! Where a run keeps its upper layers, and the watcher that removes them whatever happens.
//!
//! ```text
//! DIR/lock                  held as long as a run uses DIR
//! DIR/merged                where the merged root is mounted (in the runner's namespace only)
//! DIR/upper, DIR/work       of the root
//! DIR/mounts/NAME/{upper,work}   of each file system mounted below the root
//! ```

use std::ffi::{OsStr, OsString};
use std::fs;
use std::io::{IoSlice, IoSliceMut, Read};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::DirBuilderExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use log::info;
use nix::sys::signal::{SigSet, Signal, kill};
use nix::sys::socket::{ControlMessage, MsgFlags, sendmsg};
use nix::sys::wait::waitpid;
use nix::unistd::Pid;
use rustix::fs::{AtFlags, CWD, FlockOperation, Gid, Mode, OFlags, Uid, chownat, flock, open};
use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};
use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg};

use super::namespaces::Standing;
use crate::dotted;
use crate::error::Context;
use crate::format::{WORK, XattrNamespace};
use crate::sys::{Errno, from_io, from_nix, process, random};
use crate::{Error, Result};

/// What becomes of a state directory at the end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum End {
    /// It goes away, also when the run is killed.
    Remove,
    /// It stays, and another run can go on in it.
    Keep,
}

/// The directory with the state of a run. Dropping it waits until the watcher has done its work.
#[derive(Debug)]
pub(crate) struct Scratch {
    directory: PathBuf,
    merged: PathBuf,
    end: End,
    standing: Standing,
    watcher: Watcher,
    _lock: OwnedFd,
}

/// How long the watcher tries to remove a directory that somebody still writes into.
const PATIENCE: Duration = Duration::from_secs(30);
const PAUSE: Duration = Duration::from_millis(20);

impl Scratch {
    /// A private directory that goes away when the run ends, also when it is killed.
    pub(super) fn temporary(standing: Standing) -> Result<Self> {
        let mut refusals = Vec::new();
        let mut second_best: Option<(PathBuf, Watcher)> = None;
        for base in temporary_bases() {
            let number = random::number()
                .map_err(|errno| Error::system("finding a random number").errno(errno))?;
            let directory = base.join(format!("overfall-run.{:08x}", number >> 32));
            // First: however early the run is killed, the directory goes.
            let watcher = Watcher::start(&directory, End::Remove, Claim::Name)?;
            if let Err(error) = fs::DirBuilder::new().mode(0o700).create(&directory) {
                watcher.call_off();
                refusals.push(format!("{}: {error}", base.display()));
                continue;
            }
            if suits_an_upper(&directory, standing) {
                return Self::watched(directory, End::Remove, standing, watcher);
            }
            second_best.get_or_insert((directory, watcher));
        }
        let Some((directory, watcher)) = second_best else {
            return Err(Error::system("making a temporary directory")
                .because(refusals.join(", "))
                .remedy("set TMPDIR to a directory that can be written, or use --keep"));
        };
        // All of them on an overlay, for instance: in a container, in a run. Memory will do.
        info!("{}: in memory", directory.display());
        let flags = MountFlags::NOSUID | MountFlags::NODEV;
        mount("tmpfs", &directory, "tmpfs", flags, Some(c"mode=700"))
            .context("mounting a temporary file system", &directory)?;
        // Nor in memory: then on the disk, in the fallback form.
        if !suits_an_upper(&directory, standing) {
            unmount(&directory, UnmountFlags::empty())
                .context("unmounting a temporary file system", &directory)?;
        }
        Self::watched(directory, End::Remove, standing, watcher)
    }

    /// The directory that the user named; it stays. A new one is closed to others: what a command
    /// leaves in there may be set-user-id.
    pub(super) fn kept(directory: &Path, standing: Standing) -> Result<Self> {
        let parents = directory.parent().map_or(Ok(()), fs::create_dir_all);
        let made = parents.and_then(|()| {
            fs::DirBuilder::new()
                .recursive(true)
                .mode(0o700)
                .create(directory)
        });
        made.map_err(|error| {
            Error::usage("making the directory of --keep")
                .at(directory)
                .because(error.to_string())
        })?;
        let directory = fs::canonicalize(directory).map_err(|error| {
            Error::usage("finding the directory of --keep")
                .at(directory)
                .because(error.to_string())
        })?;
        Self::start(directory, End::Keep, standing)
    }

    /// A new directory of this name, which goes away when the run ends unless `end` says to keep it.
    /// `None` where the name is taken: what is there is somebody else's.
    pub(crate) fn named(directory: &Path, end: End, standing: Standing) -> Result<Option<Self>> {
        let step = "making the directory of the run";
        let watcher = Watcher::start(directory, end, Claim::Lock)?;
        match fs::create_dir(directory) {
            Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {
                watcher.call_off();
                Ok(None)
            }
            Err(error) => Err(Error::system(step).at(directory).because(error.to_string())),
            Ok(()) => Self::watched(directory.to_path_buf(), end, standing, watcher).map(Some),
        }
    }

    /// The directory of a run that was kept; it stays.
    pub(crate) fn resumed(directory: &Path, standing: Standing) -> Result<Self> {
        Self::start(directory.to_path_buf(), End::Keep, standing)
    }

    /// In a directory that is there.
    fn start(directory: PathBuf, end: End, standing: Standing) -> Result<Self> {
        let watcher = Watcher::start(&directory, end, Claim::Lock)?;
        Self::watched(directory, end, standing, watcher)
    }

    /// In a directory that has its watcher already.
    fn watched(directory: PathBuf, end: End, standing: Standing, watcher: Watcher) -> Result<Self> {
        let lock = take_lock(&directory)?;
        watcher.hand_over(&lock)?;
        let merged = directory.join("merged");
        make_directory(&merged)?;
        Ok(Self {
            directory,
            merged,
            end,
            standing,
            watcher,
            _lock: lock,
        })
    }

    /// Where it is.
    pub(crate) fn directory(&self) -> &Path {
        &self.directory
    }

    /// Whether nothing of it is wanted after the run.
    pub(crate) fn is_temporary(&self) -> bool {
        self.end == End::Remove
    }

    /// The descriptors that no process but the runner may keep open.
    pub(crate) fn release_fds(&self) -> Vec<BorrowedFd<'_>> {
        let release = self.watcher.release.as_ref();
        release.map(AsFd::as_fd).into_iter().collect()
    }

    /// Where the merged root goes.
    pub(crate) fn merged(&self) -> PathBuf {
        self.merged.clone()
    }

    /// As [`Scratch::merged`].
    pub(crate) fn merged_path(&self) -> &Path {
        &self.merged
    }

    /// Makes upper and work directory for what is mounted at `inside`, a path relative to the
    /// root; the root's own with an empty path. `like` is the directory that upper stands for: a
    /// new upper gets its mode and owner, because they are those of the merged directory.
    pub(crate) fn layers(&self, inside: &Path, like: &Path) -> Result<Layers> {
        let place = if inside.as_os_str().is_empty() {
            self.directory.clone()
        } else {
            let all = self.directory.join("mounts");
            make_directory(&all)?;
            let own = all.join(flat_name(inside));
            make_directory(&own)?;
            own
        };
        let layers = Layers {
            upper: place.join("upper"),
            work: place.join("work"),
        };
        if make_directory(&layers.upper)? {
            imitate(&layers.upper, like, self.standing)?;
        }
        make_directory(&layers.work)?;
        Ok(layers)
    }

    /// Lets the watcher do its work, and waits until it has.
    pub(crate) fn finish(mut self) -> Result<()> {
        self.watcher.let_go();
        if self.end == End::Remove && self.directory.exists() {
            return Err(Error::system("removing the temporary directory")
                .at(&self.directory)
                .because("something in it can't be removed"));
        }
        Ok(())
    }
}

/// By what a watcher knows that a directory is its run's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Claim {
    /// Nobody else can have one of this name.
    Name,
    /// The run has its lock. Before that it may be another's, of the same name.
    Lock,
}

/// The process that does what has to be done with a directory at the end, whatever ends the run.
/// Dropping this is the end, and waits until it is done.
#[derive(Debug)]
struct Watcher {
    process: Pid,
    /// The watcher begins when this closes; no other process may hold it.
    release: Option<UnixStream>,
}

impl Watcher {
    /// For a `directory` that may not be there yet.
    fn start(directory: &Path, end: End, claim: Claim) -> Result<Self> {
        let step = "starting the watcher";
        let (release, wait) = UnixStream::pair()
            .map_err(|error| from_io(&error))
            .context(step, directory)?;
        let process = process::fork(|| {
            process::close_these(&[release.as_fd()]);
            watch(directory, end, claim, &wait)
        })
        .context(step, directory)?;
        Ok(Self {
            process,
            release: Some(release),
        })
    }

    /// Gives it its share of the lock.
    fn hand_over(&self, lock: &OwnedFd) -> Result<()> {
        let Some(release) = &self.release else {
            return Ok(());
        };
        let descriptors = [lock.as_raw_fd()];
        let rights = [ControlMessage::ScmRights(&descriptors)];
        let byte = [IoSlice::new(b"l")];
        sendmsg::<()>(release.as_raw_fd(), &byte, &rights, MsgFlags::empty(), None)
            .map(drop)
            .map_err(|errno| Error::system("starting the watcher").errno(from_nix(errno)))
    }

    fn let_go(&mut self) {
        if self.release.take().is_some() {
            let _ = waitpid(self.process, None);
        }
    }

    /// Ends it before it does anything.
    fn call_off(mut self) {
        let _ = kill(self.process, Signal::SIGKILL);
        self.let_go();
    }
}

impl Drop for Watcher {
    fn drop(&mut self) {
        self.let_go();
    }
}

/// The writable layer of one overlay.
#[derive(Debug, Clone)]
pub(crate) struct Layers {
    pub(crate) upper: PathBuf,
    pub(crate) work: PathBuf,
}

fn temporary_bases() -> impl Iterator<Item = PathBuf> {
    std::env::var_os("TMPDIR")
        .map(PathBuf::from)
        .filter(|path| path.is_absolute())
        .into_iter()
        .chain(["/var/tmp".into(), "/tmp".into()])
        .filter_map(|path| fs::canonicalize(path).ok())
}

/// Whether an upper layer in `directory` can hold the overlay's attributes (tmpfs takes those of
/// plain users only since Linux 6.6) and whiteouts (another overlay doesn't take them).
fn suits_an_upper(directory: &Path, standing: Standing) -> bool {
    let namespace = match standing {
        Standing::Root => XattrNamespace::Trusted,
        Standing::NamespaceRoot | Standing::Plain => XattrNamespace::User,
    };
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    open(directory, flags, Mode::empty())
        .and_then(|directory| dotted::lacks(directory.as_fd(), namespace))
        .is_ok_and(|lack| lack.is_none())
}

/// Says whether it is new.
fn make_directory(path: &Path) -> Result<bool> {
    match fs::create_dir(path) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => Ok(false),
        Err(error) => Err(Error::system("making a directory for the run")
            .at(path)
            .because(error.to_string())),
    }
}

/// What the kernel shows for an owner without a mapping in this user namespace.
const OVERFLOW_ID: u32 = 65534;

/// Gives `upper` the owner and mode of `like`.
fn imitate(upper: &Path, like: &Path, standing: Standing) -> Result<()> {
    let step = "giving upper the mode of the root";
    let stat = rustix::fs::stat(like).context(step, like)?;
    // As the merged tree shows them, see `Owners::FakeRoot`.
    let shown = |id| match standing {
        Standing::Plain | Standing::NamespaceRoot if id == OVERFLOW_ID => 0,
        _ => id,
    };
    let uid = Uid::from_raw(shown(stat.st_uid));
    let gid = Gid::from_raw(shown(stat.st_gid));
    match chownat(CWD, upper, Some(uid), Some(gid), AtFlags::empty()) {
        // Where not even root is mapped the directory stays the user's.
        Ok(()) | Err(Errno::INVAL | Errno::PERM) => {}
        Err(errno) => return Err(Error::system(step).at(upper).errno(errno)),
    }
    let mode = Mode::from_raw_mode(stat.st_mode & 0o7777);
    rustix::fs::chmod(upper, mode).context(step, upper)
}

/// One name for a path of several.
fn flat_name(inside: &Path) -> OsString {
    let mut name = Vec::new();
    for &byte in inside.as_os_str().as_bytes() {
        match byte {
            b'/' => name.extend_from_slice(b"%2F"),
            b'%' => name.extend_from_slice(b"%25"),
            _ => name.push(byte),
        }
    }
    OsString::from_vec(name)
}

fn take_lock(directory: &Path) -> Result<OwnedFd> {
    let path = directory.join("lock");
    let flags = OFlags::CREATE | OFlags::RDWR | OFlags::CLOEXEC | OFlags::NOFOLLOW;
    let lock = open(&path, flags, Mode::RUSR | Mode::WUSR)
        .context("locking the directory of the run", &path)?;
    match flock(&lock, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(lock),
        Err(Errno::WOULDBLOCK) => Err(Error::usage("locking the directory of the run")
            .at(directory)
            .because("another run is using it")
            .remedy("wait for its end, or take another directory")),
        Err(errno) => Err(Error::system("locking the directory of the run")
            .at(&path)
            .errno(errno)),
    }
}

/// The lock, when the runner has it; `None` when it has ended before.
fn receive_lock(wait: &UnixStream) -> Option<OwnedFd> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut rights = RecvAncillaryBuffer::new(&mut space);
    let mut byte = [0];
    let mut data = [IoSliceMut::new(&mut byte)];
    let flags = RecvFlags::CMSG_CLOEXEC;
    let got = rustix::io::retry_on_intr(|| recvmsg(wait, &mut data, &mut rights, flags)).ok()?;
    let mut descriptors = rights.drain().filter_map(|message| match message {
        RecvAncillaryMessage::ScmRights(descriptors) => Some(descriptors),
        _ => None,
    });
    descriptors.next().filter(|_| got.bytes > 0)?.next()
}

/// The watcher: waits until the runner lets go of the socket or dies, then unmounts what is still
/// mounted and removes the directory. It shares the runner's namespaces, so it may remove what
/// belongs to the user's subordinate ids.
fn watch(directory: &Path, end: End, claim: Claim, mut wait: &UnixStream) -> u8 {
    // Not in the terminal's process group, and deaf to everything but SIGKILL.
    let _ = rustix::process::setsid();
    let _ = SigSet::all().thread_block();
    let _ = rustix::process::chdir("/");
    let _ = rustix::thread::set_name(c"overfall-watch");
    process::close_others(&[wait.as_fd()]);
    silence();
    // Kept to the end: nobody else may begin with what is being removed.
    let lock = receive_lock(wait);
    let mut nothing = [0];
    while matches!(wait.read(&mut nothing), Ok(n) if n > 0) {}
    if lock.is_none() && claim == Claim::Lock {
        if end == End::Remove {
            remove_bare(directory);
        }
        return 0;
    }

    // After a normal end there is nothing mounted any more. One lazy unmount takes with it what
    // is mounted further down.
    let merged = directory.join("merged");
    while unmount(&merged, UnmountFlags::DETACH).is_ok() {}
    match end {
        End::Keep => {
            let _ = fs::remove_dir(&merged);
            tidy(directory);
        }
        End::Remove => {
            // A directory in memory.
            while unmount(directory, UnmountFlags::DETACH).is_ok() {}
            // After a crash, processes that were killed may still be on their way out.
            let start = Instant::now();
            while !remove(directory) && start.elapsed() < PATIENCE {
                std::thread::sleep(PAUSE);
            }
        }
    }
    0
}

/// Removes a directory that was to be the run's, where it is no other's: nobody has its lock, and
/// there is nothing else in it. A copy that was kept has its layers.
fn remove_bare(directory: &Path) {
    let mut entries = fs::read_dir(directory).into_iter().flatten();
    if entries.any(|entry| entry.map_or(true, |entry| entry.file_name() != "lock")) {
        return;
    }
    let path = directory.join("lock");
    let flags = OFlags::RDWR | OFlags::CLOEXEC | OFlags::NOFOLLOW;
    let _lock = match open(&path, flags, Mode::empty()) {
        Ok(lock) if flock(&lock, FlockOperation::NonBlockingLockExclusive).is_err() => return,
        Ok(lock) => {
            let _ = fs::remove_file(&path);
            Some(lock)
        }
        Err(_) => None,
    };
    let _ = fs::remove_dir(directory);
}

/// Takes the empty directories away that a mount leaves in its work directory: they are closed
/// even to their owner, whose `rm -r` would stumble. The next mount makes them again.
fn tidy(directory: &Path) {
    let others = fs::read_dir(directory.join("mounts"))
        .into_iter()
        .flatten()
        .flatten()
        .map(|entry| entry.path());
    for place in others.chain([directory.to_path_buf()]) {
        let _ = fs::remove_dir(place.join("work").join(WORK));
    }
}

/// Never descends into `merged`: should it still be mounted, what is in there is not ours.
fn remove(directory: &Path) -> bool {
    for entry in fs::read_dir(directory).into_iter().flatten().flatten() {
        // The layers, and what was tried before there were any. The lock goes last.
        if entry.file_name() != "merged" && entry.file_name() != "lock" {
            let _ = fs::remove_dir_all(entry.path());
        }
    }
    let _ = fs::remove_dir(directory.join("merged"));
    let _ = fs::remove_file(directory.join("lock"));
    match fs::remove_dir(directory) {
        Ok(()) => true,
        Err(error) => error.kind() == std::io::ErrorKind::NotFound,
    }
}

/// Lets go of the terminal, and of pipes that somebody reads to their end.
fn silence() {
    let Ok(null) = open(
        OsStr::new("/dev/null"),
        OFlags::RDWR | OFlags::CLOEXEC,
        Mode::empty(),
    ) else {
        return;
    };
    let _ = nix::unistd::dup2_stdin(&null);
    let _ = nix::unistd::dup2_stdout(&null);
    let _ = nix::unistd::dup2_stderr(&null);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flat_names_are_distinct() {
        assert_eq!(flat_name(Path::new("home")), "home");
        assert_eq!(flat_name(Path::new("var/lib")), "var%2Flib");
        assert_eq!(flat_name(Path::new("var%2Flib")), "var%252Flib");
    }
}
