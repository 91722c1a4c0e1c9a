//! Unmounting: by whoever mounted, and by anybody else who names the target.

use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::{Path, PathBuf};

use rustix::event::{PollFd, PollFlags, poll};
use rustix::fs::{CWD, Mode, OFlags, openat, syncfs};

use super::fuse::{self, Busy, Device, Identity};
use super::users::Users;
use super::{Carrier, End, PATIENCE, Place};
use crate::error::Context;
use crate::sys::mountinfo::{self, Mount};
use crate::sys::{Errno, from_io};
use crate::{Error, Result};

const STEP: &str = "unmounting";

/// Unmounts the overlay at `target`, whoever mounted and whatever carries it. Returns when
/// everything is written and, with FUSE, the server has gone.
pub fn unmount(target: &Path) -> Result<()> {
    let target = absolute(target)?;
    let mounts = mountinfo::read()
        .map_err(|error| Error::system("reading the mount table").errno(from_io(&error)))?;
    // Of several mounts at one place the last one is on top.
    let Some(mount) = mounts.iter().rfind(|mount| mount.point == target) else {
        return Err(Error::usage(STEP)
            .at(&target)
            .because("nothing is mounted there"));
    };
    match mount.fstype.to_str().unwrap_or_default() {
        "overlay" => native(&target, Some(mount.device)),
        fuse::FILE_SYSTEM => served(&target, mount),
        other => Err(Error::usage(STEP)
            .at(&target)
            .because(format!("a file system of type {other} is mounted there"))
            .remedy("use umount(8)")),
    }
}

/// Unmounts every overlay of this user's that is mounted in our mount namespace, but for one that
/// is our root. What comes back are the failures.
pub fn unmount_all() -> Result<Vec<Error>> {
    let own = rustix::process::geteuid().as_raw();
    // What was mounted last may lie over the others.
    let mounts = super::list()?.into_iter().rev();
    let ours = mounts.filter(|mount| {
        matches!(mount.place, Place::Here | Place::Dead)
            && (mount.user == Some(own) || mount.backend == Carrier::Native)
            && mount.target != Path::new("/")
    });
    let ended = ours.map(|mount| {
        unmount(&mount.target).inspect(|()| log::info!("{}: unmounted", mount.target.display()))
    });
    Ok(ended.filter_map(Result::err).collect())
}

/// Whether what is on top at `target` is an overlay, the kernel's or ours.
pub(super) fn is_ours(target: &Path) -> Result<bool> {
    let target = absolute(target)?;
    let mounts = mountinfo::read()
        .map_err(|error| Error::system("reading the mount table").errno(from_io(&error)))?;
    let top = mounts.iter().rfind(|mount| mount.point == target);
    Ok(top.is_some_and(|mount| mount.fstype == "overlay" || mount.fstype == fuse::FILE_SYSTEM))
}

/// The target's name from the root. The target itself may be a mount that nobody serves any more:
/// it isn't asked, but for being a link, which mounts are not.
fn absolute(target: &Path) -> Result<PathBuf> {
    let failed = |errno| Error::usage(STEP).at(target).errno(errno);
    let resolve =
        |path: &Path| std::fs::canonicalize(path).map_err(|error| failed(from_io(&error)));
    let mut path = target.to_path_buf();
    for _ in 0..MOST_LINKS {
        let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else {
            return resolve(&path);
        };
        let parent = match parent.as_os_str().is_empty() {
            true => resolve(Path::new("."))?,
            false => resolve(parent)?,
        };
        let named = parent.join(name);
        match std::fs::read_link(&named) {
            Ok(next) => path = parent.join(next),
            Err(_) => return Ok(named),
        }
    }
    Err(failed(Errno::LOOP))
}

/// As many links in a row as the kernel follows.
const MOST_LINKS: usize = 40;

fn served(target: &Path, mount: &Mount) -> Result<()> {
    let device = Some(mount.device);
    let server = server(target, mount);
    let unmounted = fuse::unmount(target, device, Busy::Refuse);
    match server {
        Ok(Some(server)) => unmounted.and_then(|()| server.wait(target, device, PATIENCE)),
        Err(Errno::TIMEDOUT) => {
            log::warn!(
                "{}: its server doesn't answer; it is unmounted all the same, and nobody waits \
                 for what may still be written",
                target.display()
            );
            unmounted.or_else(|error| match error.raw_errno() {
                // Perhaps it is our own question that keeps it busy.
                Some(Errno::BUSY) => fuse::unmount(target, device, Busy::Detach),
                _ => Err(error),
            })
        }
        Ok(None) | Err(_) => unmounted.inspect(|()| {
            log::info!(
                "{}: its server is out of sight, so there is nobody to wait for",
                target.display()
            );
        }),
    }
}

/// Who serves a mount, to be waited for. Only one that is out of sight is asked.
fn server(target: &Path, mount: &Mount) -> Result<Option<fuse::ToWaitFor>, Errno> {
    let mounter = Users::known().mounter(None, mount);
    let found = fuse::serving(mount.device, mounter);
    if let Some((server, heard)) = found
        && (heard.told.is_surely_at(&mount.point)
            || Identity::asked_of(target, None) != Err(Errno::NOTCONN))
    {
        return Ok(Some(server));
    }
    let identity = Identity::asked_of(target, None)?;
    Ok(identity.and_then(Identity::process))
}

/// Unmounts a kernel overlay after writing back what is dirty.
pub(super) fn native(target: &Path, device: Device) -> Result<()> {
    fuse::is_on_top(target, device)?;
    let flags = OFlags::DIRECTORY | OFlags::CLOEXEC;
    let root = openat(CWD, target, flags, Mode::empty()).context(STEP, target)?;
    syncfs(&root).context("writing back what is dirty", target)?;
    drop(root);
    fuse::unmount(target, device, Busy::Refuse)
}

/// Whether the device is mounted at `target`, on top or not.
pub(super) fn is_there(target: &Path, device: Device) -> Result<bool> {
    let mounts = mountinfo::read()
        .map_err(|error| Error::system("reading the mount table").errno(from_io(&error)))?;
    Ok(mounts
        .iter()
        .any(|mount| mount.point == target && device.is_none_or(|device| device == mount.device)))
}

/// Waits for the end of a kernel overlay: the mount table is readable, in poll's eyes, when it
/// changes.
pub(super) fn native_gone_or(target: &Path, device: Device, wake: BorrowedFd<'_>) -> Result<End> {
    const STEP: &str = "watching the mount table";
    let table = File::open("/proc/self/mountinfo")
        .map_err(|error| Error::system(STEP).errno(from_io(&error)))?;
    loop {
        if !is_there(target, device)? {
            return Ok(End::Gone);
        }
        let mut fds = [
            PollFd::from_borrowed_fd(table.as_fd(), PollFlags::PRI),
            PollFd::from_borrowed_fd(wake, PollFlags::IN),
        ];
        match poll(&mut fds, None) {
            Ok(_) if !fds[1].revents().is_empty() => return Ok(End::Woken),
            Ok(_) | Err(Errno::INTR) => {}
            Err(errno) => return Err(Error::system(STEP).errno(errno)),
        }
    }
}
