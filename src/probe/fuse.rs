//! The trial of FUSE: whether a server could mount here. It mounts and lets go; nothing is served.

use std::os::fd::AsRawFd;
use std::path::PathBuf;
use std::time::Duration;

use rustix::fs::{Mode, OFlags, open};
use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};
use serde::Serialize;

use super::cause::Cause;
use super::notes::{self, Note, Pen};
use super::space::{self, Who};
use super::verdict::{Failure, Outcome, Step};
use crate::Result;
use crate::error::Context;
use crate::sys::Errno;
use crate::sys::child::in_child;
use crate::sys::privilege::{Privilege, in_first_namespace};

const STEP: &str = "trying FUSE";

/// What the trial of FUSE found.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct FuseVerdict {
    /// Our server can mount by itself, or through a helper that this trial doesn't call.
    pub usable: bool,
    /// It can mount by itself, in a user namespace where this process isn't root.
    pub direct: bool,
    /// The helper for plain users outside a user namespace, where one is installed.
    pub fusermount: Option<PathBuf>,
    /// Why not, where it isn't usable.
    pub cause: Option<Cause>,
    /// What to change then.
    pub remedy: Option<&'static str>,
    /// What was tried.
    pub steps: Vec<Step>,
}

/// Tries whether a FUSE server could mount here.
pub fn try_fuse() -> Result<FuseVerdict> {
    let who = Who::current();
    let legacy = in_child(Duration::from_secs(10), |out| work(who, &Pen::new(out)))
        .context(STEP, "/dev/fuse")?;
    let steps: Vec<Step> = notes::read(&legacy.output)
        .into_iter()
        .filter_map(|note| match note {
            Note::Step(_, step) => Some(step),
            _ => None,
        })
        .collect();
    let worked = |name: &str| {
        steps
            .iter()
            .any(|step| step.name == name && step.outcome == Outcome::Ok)
    };
    let direct = worked(MOUNT);
    let fusermount = fusermount();
    let may_not = steps
        .iter()
        .find(|step| step.name == MOUNT)
        .is_none_or(|step| matches!(step.outcome.errno(), Some(Errno::PERM | Errno::ACCESS)));
    // The helper's set-user-id bit means nothing in another user namespace, nor to a process that
    // has renounced new privileges.
    let bit_counts = in_first_namespace() && !rustix::thread::no_new_privs().unwrap_or(false);
    let by_helper = fusermount.is_some() && may_not && bit_counts;
    let usable = direct || (by_helper && worked(OPEN));
    let cause = (!usable).then(|| cause(&steps));
    Ok(FuseVerdict {
        usable,
        cause,
        remedy: cause.map(Cause::remedy),
        direct,
        fusermount,
        steps,
    })
}

const OPEN: &str = "open /dev/fuse";
const MOUNT: &str = "mount FUSE";

/// Why a server can't mount.
fn cause(steps: &[Step]) -> Cause {
    let failed = steps.iter().find(|step| step.outcome != Outcome::Ok);
    match failed.map(|step| (step.name.as_str(), step.outcome.errno())) {
        Some((OPEN, Some(Errno::NOENT | Errno::NODEV | Errno::NXIO))) => Cause::NoFuseDevice,
        Some((OPEN, Some(Errno::ACCESS))) => Cause::FuseDeviceClosed,
        Some((OPEN, Some(Errno::PERM))) => Cause::FuseDeviceForbidden,
        _ => Cause::NoFusermount,
    }
}

fn work(who: Who, pen: &Pen) {
    pen.step(OPEN, || device().map(drop));
    if pen.step("make a namespace", || space::enter(who)) {
        // The server's descriptor must come from the user namespace that mounts.
        pen.step(MOUNT, || {
            let device = device()?;
            let id = |id: u32| {
                if Privilege::current() == Privilege::Machine {
                    0
                } else {
                    id
                }
            };
            let data = format!(
                "fd={},rootmode=40000,user_id={},group_id={}",
                device.as_raw_fd(),
                id(rustix::process::geteuid().as_raw()),
                id(rustix::process::getegid().as_raw()),
            );
            let data =
                std::ffi::CString::new(data).map_err(|_| Failure::wrong("a NUL in the options"))?;
            let flags = MountFlags::NOSUID | MountFlags::NODEV;
            // Any directory will do: the namespace is ours, and nobody asks the mount anything.
            mount("overfall", "/proc", "fuse", flags, data.as_c_str())
                .map_err(|errno| Failure::call("mount(fuse)", errno))?;
            // The connection ends with the descriptor, before anyone could wait for an answer.
            drop(device);
            unmount("/proc", UnmountFlags::DETACH).map_err(|errno| Failure::call("umount2", errno))
        });
    }
}

fn device() -> std::result::Result<std::os::fd::OwnedFd, Failure> {
    open("/dev/fuse", OFlags::RDWR | OFlags::CLOEXEC, Mode::empty())
        .map_err(|errno| Failure::call("open(/dev/fuse)", errno))
}

fn fusermount() -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    ["fusermount3", "fusermount"].into_iter().find_map(|name| {
        std::env::split_paths(&path)
            .map(|dir| dir.join(name))
            .find(|candidate| candidate.is_file())
    })
}
