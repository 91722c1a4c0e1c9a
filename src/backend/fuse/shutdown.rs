//! Signals to the server. SIGTERM, SIGINT and SIGHUP: the mount goes first, then the server.
//! SIGUSR1: it tells its counters.
//!
//! The server keeps no hold on the place that it is mounted at: a descriptor would keep the mount
//! busy, one of the mount namespace would keep both alive for ever. So the place is looked for when
//! it is needed, in the mount tables of the namespaces that there are processes in.

use std::collections::HashSet;
use std::io::{Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Weak};
use std::thread;

use nix::sched::{CloneFlags, setns, unshare};
use nix::sys::signal::{SigSet, Signal, kill};
use nix::unistd::Pid;
use rustix::fs::{CWD, Dir, Mode, OFlags, fstat, openat};

use super::handover::Device;
use super::mount::{Busy, unmount};
use crate::server::Counters;
use crate::sys::{Errno, from_io, from_nix, mountinfo};
use crate::union::Union;

/// What ending by a signal needs.
#[derive(Debug)]
pub(super) struct Shutdown {
    /// Not held: with its last user the tree lets the lock of the work directory go, before
    /// anybody is told that the server has gone.
    tree: Weak<Union>,
    /// /proc, opened while there was a path to it.
    proc: Option<OwnedFd>,
    /// The mount's device, as mount tables show it.
    pub(super) device: Device,
    /// How often which request came.
    pub(super) counters: Arc<Counters>,
}

impl Shutdown {
    pub(super) fn prepare(tree: &Arc<Union>) -> Self {
        let flags = OFlags::DIRECTORY | OFlags::CLOEXEC;
        Self {
            tree: Arc::downgrade(tree),
            proc: openat(CWD, "/proc", flags, Mode::empty()).ok(),
            device: None,
            counters: Arc::default(),
        }
    }

    /// Waits for a signal that ends the server and unmounts; the session then ends by itself, when the last user of the
    /// tree has gone. A second signal doesn't wait for that.
    pub(super) fn on_signals(&self, signals: &SigSet) {
        let mut turn = 0;
        loop {
            match signals.wait() {
                Ok(Signal::SIGUSR1) => {
                    self.tell_counters();
                    continue;
                }
                Ok(signal) => log::info!("{signal}"),
                Err(errno) => {
                    log::error!("waiting for signals: {errno}");
                    return;
                }
            }
            if turn > 0 || !self.unmount_everywhere() {
                self.end();
            }
            turn += 1;
        }
    }

    /// Where the log goes, whatever its level: who asked wants to see them. A server without a log
    /// tells nobody.
    fn tell_counters(&self) {
        // A log that has gone is no reason to end.
        let _ = writeln!(std::io::stderr(), "overfall: served: {}", self.counters);
    }

    /// Ends the process at once. What was written is on its way to the disk.
    fn end(&self) {
        if let Some(Err(fault)) = self.tree.upgrade().map(|tree| tree.close()) {
            log::error!("closing the layers: {fault}");
        }
        // Without the exit handlers: they are the caller's, from before the fork.
        if let Err(errno) = kill(Pid::this(), Signal::SIGKILL) {
            log::error!("ending: {errno}");
        }
    }

    /// Unmounts the tree in each mount namespace that has it; false when there was none.
    fn unmount_everywhere(&self) -> bool {
        let (Some(proc), Some(device)) = (&self.proc, self.device) else {
            return false;
        };
        let own = Namespace::of(proc, "self").map(|own| own.number).ok();
        let mut seen = HashSet::new();
        let mut found = false;
        for pid in numbers(proc) {
            let Ok(theirs) = Namespace::of(proc, &pid.to_string()) else {
                continue;
            };
            if !seen.insert(theirs.number) {
                continue;
            }
            let way = match own == Some(theirs.number) {
                true => Way::Here,
                false => Way::There(theirs),
            };
            match unmount_in(proc, &way, device) {
                Ok(unmounted) => found |= unmounted,
                Err(errno) => log::debug!("mounts of process {pid}: {errno}"),
            }
        }
        found
    }
}

/// A mount namespace.
#[derive(Debug)]
struct Namespace {
    file: OwnedFd,
    number: u64,
}

impl Namespace {
    /// That of a process.
    fn of(proc: &OwnedFd, pid: &str) -> Result<Self, Errno> {
        let flags = OFlags::RDONLY | OFlags::CLOEXEC;
        let file = openat(proc, format!("{pid}/ns/mnt"), flags, Mode::empty())?;
        let number = fstat(&file)?.st_ino;
        Ok(Self { file, number })
    }
}

/// Where a mount namespace is, seen from the server.
#[derive(Debug)]
enum Way {
    /// The server is in it: without privilege it never left its caller's.
    Here,
    /// It has to go there.
    There(Namespace),
}

/// The processes that /proc shows.
fn numbers(proc: &OwnedFd) -> Vec<u32> {
    let Ok(entries) = Dir::read_from(proc) else {
        return Vec::new();
    };
    entries
        .filter_map(|entry| entry.ok()?.file_name().to_str().ok()?.parse().ok())
        .collect()
}

/// Unmounts the device in a mount namespace; false when it isn't mounted there.
fn unmount_in(proc: &OwnedFd, way: &Way, device: (u32, u32)) -> Result<bool, Errno> {
    let go_and_unmount = || {
        if let Way::There(namespace) = way {
            unshare(CloneFlags::CLONE_FS).map_err(from_nix)?;
            setns(namespace.file.as_fd(), CloneFlags::CLONE_NEWNS).map_err(from_nix)?;
        }
        unmount_all(&places(proc, device)?, device)
    };
    // A thread can change its mount namespace when it shares its root and cwd with no other one.
    thread::scope(|scope| {
        let thread = thread::Builder::new().name("unmount".into());
        let thread = thread.spawn_scoped(scope, go_and_unmount);
        let thread = thread.map_err(|error| from_io(&error))?;
        thread.join().unwrap_or(Err(Errno::IO))
    })
}

/// An error where there was something and all of it stays.
fn unmount_all(places: &[PathBuf], device: (u32, u32)) -> Result<bool, Errno> {
    let mut outcome = Ok(false);
    for place in places {
        match unmount_one(place, device) {
            Ok(()) => outcome = Ok(true),
            Err(errno) if outcome == Ok(false) => outcome = Err(errno),
            Err(_) => {}
        }
    }
    outcome
}

fn unmount_one(place: &Path, device: (u32, u32)) -> Result<(), Errno> {
    let unmounted = unmount(place, Some(device), Busy::Refuse).or_else(|error| {
        log::info!("{error}; unmounting it out of sight");
        unmount(place, Some(device), Busy::Detach)
    });
    unmounted.map_err(|error| {
        log::warn!("{error}");
        error.raw_errno().unwrap_or(Errno::IO)
    })
}

/// Where the device is mounted, the topmost mount first, as the calling thread names the places.
/// Not as a process of the namespace does: it may have another root.
fn places(proc: &OwnedFd, device: (u32, u32)) -> Result<Vec<PathBuf>, Errno> {
    let flags = OFlags::RDONLY | OFlags::CLOEXEC;
    let table = openat(proc, "thread-self/mountinfo", flags, Mode::empty())?;
    let mut text = Vec::new();
    std::fs::File::from(table)
        .read_to_end(&mut text)
        .map_err(|error| from_io(&error))?;
    let places = mountinfo::table(&text)
        .into_iter()
        .rev()
        .filter(|mount| mount.device == device)
        .map(|mount| mount.point)
        .collect();
    Ok(places)
}
