//! The namespaces of a trial: of the kind in which the overlay would be mounted, and private.

use std::fmt::Write as _;

use nix::sched::{CloneFlags, unshare};
use rustix::mount::{MountPropagationFlags, mount_change};

use super::verdict::Failure;
use crate::sys::Errno;
use crate::sys::privilege::Privilege;

/// Who the process was before it entered; a new user namespace hides it.
#[derive(Debug, Clone, Copy)]
pub(super) struct Who {
    uid: u32,
    gid: u32,
}

impl Who {
    pub(super) fn current() -> Self {
        Self {
            uid: rustix::process::geteuid().as_raw(),
            gid: rustix::process::getegid().as_raw(),
        }
    }
}

/// Moves this process into a mount namespace of its own, and into a user namespace first where it
/// may not mount otherwise. Nothing that is mounted afterwards is seen outside.
pub(super) fn enter(who: Who) -> Result<(), Failure> {
    let fresh = CloneFlags::CLONE_NEWNS;
    if Privilege::current() == Privilege::None {
        call("unshare(CLONE_NEWUSER)", unshare(CloneFlags::CLONE_NEWUSER))?;
        // Kernels before 3.19 have no setgroups, and don't want it denied.
        let _old_kernel = write("/proc/self/setgroups", "deny");
        let mut map = String::new();
        let _never_fails = write!(map, "0 {} 1", who.uid);
        write("/proc/self/uid_map", &map)?;
        map.clear();
        let _never_fails = write!(map, "0 {} 1", who.gid);
        write("/proc/self/gid_map", &map)?;
    }
    call("unshare(CLONE_NEWNS)", unshare(fresh))?;
    let private = MountPropagationFlags::PRIVATE | MountPropagationFlags::REC;
    mount_change("/", private).map_err(|errno| Failure::call("mount(/, MS_PRIVATE)", errno))
}

fn call(name: &str, outcome: nix::Result<()>) -> Result<(), Failure> {
    outcome.map_err(|errno| Failure::call(name, Errno::from_raw_os_error(errno as i32)))
}

fn write(path: &str, text: &str) -> Result<(), Failure> {
    std::fs::write(path, text).map_err(|error| {
        let errno = Errno::from_io_error(&error).unwrap_or(Errno::IO);
        Failure::call(format!("writing {path}"), errno)
    })
}
