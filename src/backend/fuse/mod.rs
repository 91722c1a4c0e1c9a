//! The FUSE server as the backend: a process of its own that serves one mount.
//!
//! Starting one takes three processes. The caller forks the *mounter*, which stays in the caller's
//! namespaces; the mounter forks the *server*, which gets a session and (where it may) a mount
//! namespace of its own. The server opens the layers, then the mounter mounts and hands the
//! connection over, then the server tells the caller that it serves. The mounter's end makes the
//! server an orphan: it leaves no zombie, and a signal to the caller's process group misses it.
//!
//! Because the server left the caller's mount namespace before the mount was made, the mount isn't
//! in the server's: no layer path can lead back into it, no pivot_root of the caller's moves the
//! server into it, and the server keeps none of the caller's mounts busy.

mod belt;
mod daemon;
mod elsewhere;
mod handover;
mod identity;
mod mount;
mod report;
mod session;
mod shutdown;
mod status;

use std::os::fd::{BorrowedFd, OwnedFd};
use std::path::Path;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{Mode, OFlags};

use super::End;
use crate::options::{MountFlags, Options};
use crate::sys::Errno;
use crate::sys::privilege::Privilege;
use crate::union::Setup;
use crate::{Error, Overlay, Result};
use report::Report;

pub(crate) use handover::Device;
pub(crate) use identity::{Identity, Process as ToWaitFor};
pub(crate) use mount::{Busy, FILE_SYSTEM, device, is_on_top, unmount};
pub(crate) use status::{Heard, Process, servers, serving};

/// What the server says while it serves.
#[derive(Debug)]
pub(crate) enum Log {
    /// Nothing: nobody is there to hear it, and a logger of the caller's may write to a descriptor
    /// that is now a layer's.
    Silent,
    /// Whatever the logger lets through, to the caller's stderr.
    Stderr,
    /// The same and more, to this file.
    File(OwnedFd),
}

impl Log {
    /// Where `wanted` goes when the options name a file. It is opened by the caller, as the
    /// caller: what it may not write to, its server doesn't.
    fn opened(self, options: &Options) -> Result<Self> {
        let Some(path) = &options.serving.log else {
            return Ok(self);
        };
        let flags = OFlags::WRONLY
            | OFlags::APPEND
            | OFlags::CREATE
            | OFlags::CLOEXEC
            | OFlags::NOCTTY
            | OFlags::NONBLOCK;
        let mode = Mode::RUSR | Mode::WUSR;
        let file = rustix::fs::open(path, flags, mode)
            .and_then(handover::above_stdio)
            .map_err(|errno| Error::usage("opening the log").at(path).errno(errno))?;
        Ok(Log::File(file))
    }
}

/// The process that serves a mount.
#[derive(Debug)]
pub(crate) struct Server {
    pid: u32,
    /// Of its mount, to tell it from another one at the same place.
    device: Device,
    /// The other end is the server's, and closes when it goes.
    alive: OwnedFd,
}

/// Mounts `overlay` and starts its server. `target` is absolute.
pub(super) fn mount(overlay: &Overlay, target: &Path, log: Log) -> Result<Server> {
    let privilege = Privilege::current();
    let mut options = overlay.options.clone();
    // `trusted.` attributes can be had by the machine's root alone.
    options.userxattr |= privilege.needs_userxattr();
    if options.upper.is_none() {
        options.flags |= MountFlags::RO;
    }
    let job = daemon::Job {
        setup: Setup {
            options,
            owners: overlay.owners,
            target: Some(target.to_path_buf()),
        },
        target: target.to_path_buf(),
        privilege,
        log: log.opened(&overlay.options)?,
    };
    let (pid, alive) = daemon::start(&job)?;
    let server = Server {
        pid,
        device: mount::device(target),
        alive,
    };
    if let Err(errno) = rustix::fs::stat(target) {
        return Err(server.unusable(target, errno));
    }
    Ok(server)
}

impl Server {
    /// Of its mount.
    pub(super) fn device(&self) -> Device {
        self.device
    }

    /// A mount that doesn't answer is not left behind.
    fn unusable(self, target: &Path, errno: Errno) -> Error {
        if let Err(error) = unmount(target, self.device, Busy::Detach) {
            log::warn!("{error}");
        }
        Error::system("asking the new mount for its root")
            .at(target)
            .errno(errno)
    }

    /// Unmounts `target` and waits until the server has gone.
    pub(super) fn unmount(self, target: &Path, patience: Duration) -> Result<()> {
        if let Err(error) = unmount(target, self.device, Busy::Refuse)
            // Somebody else may have unmounted it.
            && !self.has_gone()
        {
            return Err(error);
        }
        self.wait(target, patience)
    }

    fn has_gone(&self) -> bool {
        happened(
            &mut [PollFd::new(&self.alive, PollFlags::empty())],
            Some(Duration::ZERO),
        )
    }

    /// Waits until the server has gone, or until there is something to read from `wake`.
    pub(super) fn gone_or(&self, wake: BorrowedFd<'_>) -> Result<End> {
        let mut fds = [
            PollFd::new(&self.alive, PollFlags::empty()),
            PollFd::from_borrowed_fd(wake, PollFlags::IN),
        ];
        happened(&mut fds, None);
        Ok(if fds[0].revents().is_empty() {
            End::Woken
        } else {
            End::Gone
        })
    }

    fn wait(self, target: &Path, patience: Duration) -> Result<()> {
        elsewhere::wait(self.pid, self.device, target, patience, |time| {
            happened(
                &mut [PollFd::new(&self.alive, PollFlags::empty())],
                Some(time),
            )
        })?;
        // Pid 1 of a namespace inherits its orphans, the server among them.
        if std::process::id() == 1
            && let Some(pid) = rustix::process::Pid::from_raw(self.pid.cast_signed())
        {
            // That somebody else has reaped it is as good.
            let _ = rustix::process::waitpid(Some(pid), rustix::process::WaitOptions::empty());
        }
        Ok(())
    }
}

/// Polls until something happens; false when the time is over first. An end that hangs up is
/// reported without being asked for.
fn happened(fds: &mut [PollFd<'_>], patience: Option<Duration>) -> bool {
    let start = Instant::now();
    loop {
        let left = patience.map(|patience| patience.saturating_sub(start.elapsed()));
        let left = left.and_then(|left| Timespec::try_from(left).ok());
        match poll(fds, left.as_ref()) {
            Ok(count) => return count > 0,
            Err(Errno::INTR) => {}
            Err(errno) => {
                log::error!("poll: {errno}");
                return false;
            }
        }
    }
}
