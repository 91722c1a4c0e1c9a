//! What carries a mounted overlay: the kernel's overlayfs or our FUSE server.

mod choose;
mod forget;
mod form;
mod fuse;
mod list;
mod native;
mod remount;
mod tables;
mod unmount;
mod users;

use std::fmt;
use std::os::fd::BorrowedFd;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::error::Context as _;
use crate::options::{MountFlags, check_layers};
use crate::sys::{Errno, mountinfo};
use crate::{Error, Overlay, Result};
use fuse::{Busy, Device, Log};

pub use forget::forget;
pub use list::{Listed, Place, list};
pub(crate) use remount::remount;
pub use unmount::{unmount, unmount_all};

/// How long an unmount waits for the server, which may have gigabytes to write to a slow disk.
const PATIENCE: Duration = Duration::from_secs(120);

/// Who is wanted to carry an overlay.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Backend {
    /// The kernel's overlayfs where a trial proves that it works, FUSE otherwise.
    #[default]
    Auto,
    /// The kernel's overlayfs or an error.
    Native,
    /// The FUSE server or an error.
    Fuse,
}

/// Who carries an overlay that is mounted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Carrier {
    /// The kernel's overlayfs.
    Native,
    /// The FUSE server.
    Fuse,
}

impl fmt::Display for Carrier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Carrier::Native => "native",
            Carrier::Fuse => "fuse",
        })
    }
}

/// A mounted overlay. Dropping it unmounts; [`Mounted::forget`] keeps the mount.
#[derive(Debug)]
pub struct Mounted {
    target: PathBuf,
    /// Of the file system, to tell it from another one at the same place.
    device: Device,
    armed: bool,
    held: Held,
    why_not_native: Option<String>,
}

/// What there is to hold of a mount.
#[derive(Debug)]
enum Held {
    /// Nothing: the kernel has it.
    Native,
    /// The server's process.
    Fuse(fuse::Server),
    /// Nothing any more.
    Released,
}

impl Mounted {
    /// Who carries it.
    pub fn backend(&self) -> Carrier {
        match self.held {
            Held::Native => Carrier::Native,
            Held::Fuse(_) | Held::Released => Carrier::Fuse,
        }
    }

    /// Where it is mounted.
    pub fn target(&self) -> &Path {
        &self.target
    }

    /// Why the kernel's overlayfs does not carry it, where [`Backend::Auto`] decided so.
    pub fn why_not_native(&self) -> Option<&str> {
        self.why_not_native.as_deref()
    }

    /// Unmounts, waits until everything is written and, with FUSE, until the server has gone.
    ///
    /// A tree that is in use stays mounted, with an error.
    pub fn unmount(mut self) -> Result<()> {
        self.armed = false;
        match std::mem::replace(&mut self.held, Held::Released) {
            Held::Native => unmount::native(&self.target, self.device),
            Held::Fuse(server) => server.unmount(&self.target, PATIENCE),
            Held::Released => Ok(()),
        }
    }

    /// As [`Mounted::unmount`]; a tree that is in use goes out of sight, and for good when its last
    /// user has gone.
    pub(crate) fn unmount_at_once(self) -> Result<()> {
        let (target, device) = (self.target.clone(), self.device);
        match self.unmount() {
            Err(error) if error.raw_errno() == Some(Errno::BUSY) => {
                log::warn!("{error}");
                fuse::unmount(&target, device, Busy::Detach)
            }
            result => result,
        }
    }

    /// Keeps the mount beyond this value: until somebody unmounts it, or the last mount namespace
    /// that has it ends.
    pub fn forget(mut self) {
        self.armed = false;
    }

    /// The same mount, which whoever calls this moves to `target`, an absolute path.
    pub(crate) fn moved_to(mut self, target: PathBuf) -> Self {
        self.target = target;
        self
    }

    /// What is mounted at `target` is no overlay but a tmpfs, which needs as little care as the
    /// kernel's overlay does.
    pub(crate) fn on_tmpfs(target: PathBuf) -> Self {
        Self {
            device: fuse::device(&target),
            target,
            armed: true,
            held: Held::Native,
            why_not_native: None,
        }
    }

    /// Waits until the mount has gone, or until there is something to read from `wake`.
    pub(crate) fn gone_or(&self, wake: BorrowedFd<'_>) -> Result<End> {
        match &self.held {
            Held::Native => unmount::native_gone_or(&self.target, self.device, wake),
            Held::Fuse(server) => server.gone_or(wake),
            Held::Released => Ok(End::Gone),
        }
    }

    /// After [`End::Gone`]: a server that died has left a mount that nobody serves, which is taken
    /// away, with an error.
    pub(crate) fn ended(mut self) -> Result<()> {
        self.armed = false;
        if !matches!(self.held, Held::Fuse(_)) || !unmount::is_there(&self.target, self.device)? {
            return Ok(());
        }
        let error = Error::system("serving the mount").at(&self.target);
        match fuse::unmount(&self.target, self.device, Busy::Detach) {
            Ok(()) => Err(error.because(
                "the server ended before its mount did, which is taken away now that nobody \
                 serves it",
            )),
            Err(stays) => {
                log::warn!("{stays}");
                Err(error
                    .because("the server ended before its mount did, which nobody serves any more")
                    .remedy("`overfall umount` takes it away"))
            }
        }
    }
}

/// Why a wait for a mount's end is over.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum End {
    /// The mount has gone.
    Gone,
    /// Something else woke us.
    Woken,
}

impl Drop for Mounted {
    fn drop(&mut self) {
        if !self.armed {
            return;
        }
        if let Err(error) = fuse::unmount(&self.target, self.device, Busy::Detach) {
            log::warn!("{error}");
        }
    }
}

/// Takes what is mounted at `target` out of sight, whoever mounted it and whether or not anybody
/// serves it still.
pub(crate) fn detach(target: &Path) -> Result<()> {
    fuse::unmount(target, None, Busy::Detach)
}

/// Mounts `overlay` with the backend that it asks for.
pub(crate) fn mount(overlay: Overlay) -> Result<Mounted> {
    mount_logging(overlay, Log::Silent)
}

/// As [`mount`]; a FUSE server says on this process's stderr what the logger lets through.
pub(crate) fn mount_in_foreground(overlay: Overlay) -> Result<Mounted> {
    mount_logging(overlay, Log::Stderr)
}

fn mount_logging(overlay: Overlay, log: Log) -> Result<Mounted> {
    check_layers(&overlay.options, &overlay.target)?;
    // The way to the target may change, this name of it holds as long as the namespace does.
    let target = std::fs::canonicalize(&overlay.target).map_err(|error| {
        Error::usage("looking for the target")
            .at(&overlay.target)
            .errno(crate::sys::from_io(&error))
    })?;
    let choice = choose::choose(&overlay);
    let held = match choice.carrier {
        Carrier::Native => {
            form::refuse_dotted(&overlay.options)?;
            native::mount(&overlay)?;
            Held::Native
        }
        Carrier::Fuse => {
            if let Some(option) = overlay.options.unsupported_by_fuse() {
                return Err(not_by_fuse(option, choice.why_not_native));
            }
            let begun = overlay
                .options
                .upper
                .as_deref()
                .is_some_and(form::is_dotted);
            let server = fuse::mount(&overlay, &target, log)?;
            form::tell(&overlay.options, begun);
            Held::Fuse(server)
        }
    };
    let device = match &held {
        Held::Fuse(server) => server.device(),
        Held::Native | Held::Released => fuse::device(&target),
    };
    let mounted = Mounted {
        target,
        device,
        armed: true,
        held,
        why_not_native: choice.why_not_native,
    };
    // Else it goes: nobody shall trust in it.
    is_protected(&mounted.target, overlay.options.flags)?;
    Ok(mounted)
}

/// An error unless the mount at `target` has the flag that protects those who use it: mount(2)
/// before Linux 5.10 drops `nosymfollow` without a word.
fn is_protected(target: &Path, flags: MountFlags) -> Result<()> {
    if !flags.contains(MountFlags::NOSYMFOLLOW) {
        return Ok(());
    }
    let step = "looking for `nosymfollow` in the mount table";
    let table = mountinfo::read().map_err(|error| crate::sys::from_io(&error));
    let table = table.context(step, target)?;
    let point = std::fs::canonicalize(target).unwrap_or_else(|_| target.to_path_buf());
    let mount = table.iter().rfind(|mount| mount.point == point);
    if mount.is_some_and(|mount| mount.has_option("nosymfollow")) {
        return Ok(());
    }
    Err(Error::usage(step)
        .at(target)
        .because("this kernel has passed over it (before Linux 5.10), or fusermount3 has")
        .remedy("leave the option out"))
}

fn not_by_fuse(option: &str, why_not_native: Option<String>) -> Error {
    let why = match why_not_native {
        Some(why) => format!("only the kernel's overlay knows `{option}`, and {why}"),
        None => format!("the FUSE server doesn't carry out `{option}`"),
    };
    Error::usage("choosing the backend")
        .because(why)
        .remedy("leave the option out, or use `--backend native`")
}
