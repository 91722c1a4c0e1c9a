//! What a server tells about itself to whoever lists the mounts.
//!
//! It is a file in memory that is reached through the server's descriptors in /proc, by those who
//! may look into that process: its user and root. So nothing is left over when the server dies, it
//! works from outside of the namespaces that hide the mount, and asking costs the server nothing.
//! The first page has the counters, the rest is text that doesn't change.

use std::fs::File;
use std::io::Read;
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use rustix::fs::{
    MemfdFlags, Mode, OFlags, SealFlags, fcntl_add_seals, fcntl_get_seals, fstat, major,
    memfd_create, minor, open,
};
use rustix::process::Pid;
use serde::{Deserialize, Serialize};

use super::daemon::Job;
use super::handover::Device;
use super::identity;
use super::mount::device_behind;
use crate::server::Counters;
use crate::sys::cells::ROOM;
use crate::sys::{Errno, from_io};

/// The file's name, as `ls -l /proc/PID/fd` shows it behind `/memfd:`.
const NAME: &str = "overfall-status";
/// What keeps it as it is.
const SEALS: SealFlags = SealFlags::SHRINK
    .union(SealFlags::GROW)
    .union(SealFlags::SEAL);
/// More than any server writes.
const MOST: u64 = 16 << 20;

/// What doesn't change. Paths that aren't text are shown as far as they are.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Told {
    /// Where it was mounted, in the namespace of whoever mounted.
    pub(crate) target: String,
    /// The mount's device, as mount tables show it.
    pub(crate) device: Device,
    /// Lower layers, topmost first.
    pub(crate) lower: Vec<String>,
    /// The writable layer.
    pub(crate) upper: Option<String>,
    /// The work directory.
    pub(crate) work: Option<String>,
    /// What is counted, in the order of the counters.
    pub(crate) counted: Vec<String>,
}

/// The file, kept open as long as the server lives.
#[derive(Debug)]
pub(super) struct Status {
    file: File,
    /// What the requests are counted by.
    pub(super) counters: Arc<Counters>,
}

impl Told {
    /// To be asked for before the working directory changes: options may name layers relative to
    /// it.
    pub(super) fn about(job: &Job) -> Self {
        let options = &job.setup.options;
        let shown = |path: &Path| {
            let absolute = std::path::absolute(path);
            absolute.as_deref().unwrap_or(path).display().to_string()
        };
        let lowers = options.lower.iter().chain(&options.data_only);
        Self {
            target: shown(&job.target),
            device: None,
            lower: lowers.map(|path| shown(path)).collect(),
            upper: options.upper.as_deref().map(shown),
            work: options.work.as_deref().map(shown),
            counted: Counters::names(),
        }
    }
}

impl Status {
    /// Counters that others can read.
    pub(super) fn new() -> Result<Self, Errno> {
        let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
        let file = File::from(memfd_create(NAME, flags)?);
        file.set_len(ROOM as u64).map_err(|error| from_io(&error))?;
        // Who can open the file can't take its page from under the server.
        fcntl_add_seals(&file, SealFlags::SHRINK)?;
        let counters = Counters::shared(file.as_fd())?;
        Ok(Self {
            file,
            counters: Arc::new(counters),
        })
    }

    /// Writes down what doesn't change.
    pub(super) fn tell(&self, told: &Told) -> Result<(), Errno> {
        let text = serde_json::to_vec(told).map_err(|_| Errno::INVAL)?;
        let written = self.file.write_all_at(&text, ROOM as u64);
        written.map_err(|error| from_io(&error))?;
        fcntl_add_seals(&self.file, SealFlags::GROW | SealFlags::SEAL)
    }
}

/// The servers that we may look into, with their processes. The one that was told last about its
/// mount comes first: the device of one that is ending may be another's already.
pub(crate) fn servers() -> Vec<(Process, Heard)> {
    let Some(memory) = memory_device() else {
        return Vec::new();
    };
    let mut servers: Vec<_> = identity::numbers()
        .filter_map(|pid| {
            let place = Path::new("/proc").join(pid.to_string());
            let (user, heard) = Heard::from(&place, memory)?;
            Some((Process::at(pid, user, &place), heard))
        })
        .collect();
    servers.sort_by_key(|(_, heard)| std::cmp::Reverse(heard.since));
    servers
}

/// The process that serves a mount of this user's, if we may look into it, with what it tells. It
/// isn't asked: it may hang.
pub(crate) fn serving(
    device: (u32, u32),
    mounter: Option<u32>,
) -> Option<(identity::Process, Heard)> {
    let serves = |(process, heard): &(Process, Heard)| heard.is_about(device, mounter, process);
    let (process, _) = servers().into_iter().find(serves)?;
    let handle = identity::Process::open(Pid::from_raw(process.pid.cast_signed())?)?;
    // Now that the number can't become another process's: it is still the one.
    let place = Path::new("/proc").join(process.pid.to_string());
    let (user, heard) = Heard::from(&place, memory_device()?)?;
    let process = Process::at(process.pid, user, &place);
    heard
        .is_about(device, mounter, &process)
        .then_some((handle, heard))
}

/// What /proc tells about a server's process, as far as it does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Process {
    /// Its number here.
    pub(crate) pid: u32,
    /// Whose it is.
    pub(crate) user: u32,
    /// For how long it has been there.
    pub(crate) age: Option<Duration>,
    /// Memory that it has in use, in bytes.
    pub(crate) memory: Option<u64>,
}

impl Process {
    fn at(pid: u32, user: u32, place: &Path) -> Self {
        Self {
            pid,
            user,
            age: age(place),
            memory: memory(place),
        }
    }
}

fn age(place: &Path) -> Option<Duration> {
    let uptime = std::fs::read_to_string("/proc/uptime").ok()?;
    let uptime: f64 = uptime.split(' ').next()?.parse().ok()?;
    let started = identity::started(place)? as f64 / rustix::param::clock_ticks_per_second() as f64;
    Duration::try_from_secs_f64(uptime - started).ok()
}

/// `VmRSS:    1234 kB`.
fn memory(place: &Path) -> Option<u64> {
    let status = std::fs::read_to_string(place.join("status")).ok()?;
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("VmRSS:"))?;
    let kilobytes: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kilobytes * 1024)
}

/// What a server has told, and how often it was asked for what.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Heard {
    pub(crate) told: Told,
    /// When it was written, in seconds and their fraction. Counting doesn't change that.
    since: (i64, u64),
    /// The kinds of requests that came at all.
    pub(crate) requests: Vec<(String, u64)>,
}

impl Heard {
    /// What the process at this place in /proc tells, and whose word it is; `None` when it is no
    /// server, or not one that we may look into.
    fn from(process: &Path, memory: (u32, u32)) -> Option<(u32, Self)> {
        let wanted = format!("/memfd:{NAME}");
        let user = user(process)?;
        let descriptors = std::fs::read_dir(process.join("fd")).ok()?;
        descriptors
            .filter_map(|entry| Some(entry.ok()?.path()))
            .find_map(|path| {
                let name = std::fs::read_link(&path).ok()?;
                let name = name.to_str()?;
                let name = name.strip_suffix(" (deleted)").unwrap_or(name);
                if name != wanted {
                    return None;
                }
                // Any file may have this name, and opening one may take for ever.
                let flags = OFlags::PATH | OFlags::CLOEXEC;
                let held = open(&path, flags, Mode::empty()).ok()?;
                let path = format!("/proc/self/fd/{}", held.as_raw_fd());
                if device_behind(Path::new(&path)) != Some(memory) {
                    return None;
                }
                Some((user, Self::read(&path, user)?))
            })
    }

    /// A process may hold what somebody else made, and run a program that isn't its user's: only
    /// what is sealed and made by the very user counts.
    fn read(path: &str, user: u32) -> Option<Self> {
        let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK | OFlags::NOCTTY;
        let file = File::from(open(path, flags, Mode::empty()).ok()?);
        let stat = fstat(&file).ok()?;
        if stat.st_uid != user || !fcntl_get_seals(&file).ok()?.contains(SEALS) {
            return None;
        }
        let since = (stat.st_mtime, stat.st_mtime_nsec);
        let mut all = Vec::new();
        file.take(MOST).read_to_end(&mut all).ok()?;
        let (counters, text) = all.split_at_checked(ROOM)?;
        let told: Told = serde_json::from_slice(text).ok()?;
        let numbers = counters.chunks_exact(8).filter_map(|bytes| {
            let bytes = bytes.try_into().ok()?;
            Some(u64::from_ne_bytes(bytes))
        });
        let requests = told.counted.iter().cloned().zip(numbers);
        let requests = requests.filter(|(_, count)| *count > 0).collect();
        Some(Self {
            told,
            since,
            requests,
        })
    }

    /// Whether it is the server of a mount that speaks: a process of the user who mounted. Anybody
    /// could say it of any mount.
    pub(crate) fn is_about(
        &self,
        device: (u32, u32),
        mounter: Option<u32>,
        process: &Process,
    ) -> bool {
        self.told.device == Some(device) && mounter == Some(process.user)
    }
}

impl Told {
    /// Whether it can only be this mount that is told about. Where it isn't, it was mounted elsewhere
    /// and moved, or it has gone and its device is another's now, which only asking can tell.
    pub(crate) fn is_surely_at(&self, place: &Path) -> bool {
        Path::new(&self.target) == place
    }
}

/// The device of all files in memory.
fn memory_device() -> Option<(u32, u32)> {
    let file = memfd_create("", MemfdFlags::CLOEXEC).ok()?;
    let device = fstat(file).ok()?.st_dev;
    Some((major(device), minor(device)))
}

/// Whose a process is: `Uid:  REAL EFFECTIVE SAVED OF-FILES`, all the same. The owner of its
/// directory in /proc may be root instead.
fn user(process: &Path) -> Option<u32> {
    let status = std::fs::read_to_string(process.join("status")).ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("Uid:"))?;
    let ids: Vec<u32> = line
        .split_ascii_whitespace()
        .map(|id| id.parse().ok())
        .collect::<Option<_>>()?;
    let first = *ids.first()?;
    ids.iter().all(|id| *id == first).then_some(first)
}
