//! Having a running mount forget what it remembers of its layers.

use std::os::fd::AsFd;
use std::path::Path;

use rustix::fs::{CWD, Mode, OFlags, openat};
use rustix::mount::{FsPickFlags, fsconfig_reconfigure, fspick};

use super::fuse::Identity;
use crate::error::Context;
use crate::sys::{Errno, forget};
use crate::{Error, Result};

const STEP: &str = "having the mount forget its layers";

/// Makes the overlay at `target` read its layers anew, after somebody changed them under it.
///
/// Open files stay what they are. A directory that is made of other layers now is a new one: who
/// works in it has to enter it again.
pub fn forget(target: &Path) -> Result<()> {
    let server = match Identity::asked_of(target, None) {
        Err(Errno::TIMEDOUT) => {
            return Err(Error::system(STEP)
                .at(target)
                .because("its server doesn't answer"));
        }
        answer => answer.ok().flatten(),
    };
    if server.is_none() {
        return Err(Error::usage(STEP)
            .at(target)
            .because("it isn't the root of a mount that our server carries")
            .remedy("give the mount's target; the kernel's overlay has to be mounted anew"));
    }
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let root = openat(CWD, target, flags, Mode::empty()).context(STEP, target)?;
    let answered = forget::forget_layers(root.as_fd());
    answered.map_err(|errno| refused(target, errno))?;
    // Which names are absent the kernel alone remembers. A remount makes it drop what isn't in use,
    // and changes nothing where nothing is asked for.
    let remounted = fspick(CWD, target, FsPickFlags::FSPICK_CLOEXEC).and_then(fsconfig_reconfigure);
    match remounted {
        Ok(()) => Ok(()),
        Err(errno) => {
            log::debug!("remounting: {errno}");
            forget::forget_names(root.as_fd()).map_err(|errno| {
                refused(target, errno)
                    .because("names that were absent may stay so for a while")
                    .remedy("do it as root of the user namespace that mounted, or mount with `-o timeout=1`")
            })
        }
    }
}

fn refused(target: &Path, errno: Errno) -> Error {
    let error = Error::system(STEP).at(target).errno(errno);
    match errno {
        Errno::PERM => error.because("only root and who mounted it may do that"),
        _ => error,
    }
}
