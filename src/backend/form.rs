//! Layers in the fallback form: only our server reads them, and whoever mounts one is told.

use std::os::fd::AsFd;
use std::path::Path;

use rustix::fs::{CWD, Mode, OFlags, openat};

use crate::dotted::{self, Marked};
use crate::format::XattrNamespace;
use crate::options::{Fsync, Options};
use crate::sys::privilege::Privilege;
use crate::{Error, Result};

/// The first layer that isn't in the kernel's form. What can't be looked at is the server's to say.
pub(super) fn first_dotted(options: &Options) -> Option<&Path> {
    let layers = options.lower.iter().chain(&options.data_only);
    let mut layers = layers.chain(&options.upper);
    layers.find(|path| is_dotted(path)).map(|path| &**path)
}

pub(super) fn is_dotted(path: &Path) -> bool {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    openat(CWD, path, flags, Mode::empty())
        .and_then(|root| dotted::marked(root.as_fd()))
        .is_ok_and(|marked| marked != Marked::No)
}

/// Refuses what the kernel's overlay would misread.
pub(super) fn refuse_dotted(options: &Options) -> Result<()> {
    match first_dotted(options) {
        None => Ok(()),
        Some(path) => Err(Error::usage("choosing the backend")
            .at(path)
            .because("it is in overfall's fallback form, which the kernel doesn't read")
            .remedy(
                "use `--backend fuse`, or bring it to the kernel's form: `overfall upgrade-layer`",
            )),
    }
}

/// Says in which form the upper of a new mount is, where it isn't the kernel's. `begun` is whether
/// it was so before.
pub(super) fn tell(options: &Options, begun: bool) {
    let (Some(upper), Some(work)) = (&options.upper, &options.work) else {
        return;
    };
    if !is_dotted(upper) {
        return;
    }
    let upper = upper.display();
    let namespace = if options.userxattr || Privilege::current().needs_userxattr() {
        XattrNamespace::User
    } else {
        XattrNamespace::Trusted
    };
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let lack = openat(CWD, work, flags, Mode::empty())
        .and_then(|work| dotted::lacks(work.as_fd(), namespace));
    match lack {
        Ok(Some(lack)) if begun => {
            log::info!("{upper}: goes on in overfall's fallback form: {lack}");
        }
        // What is volatile isn't kept: nobody else will read it.
        Ok(Some(lack)) if options.fsync == Fsync::Volatile => {
            log::info!("{upper}: written in overfall's fallback form: {lack}");
        }
        Ok(Some(lack)) => log::warn!(
            "{upper}: written in overfall's fallback form, which the kernel doesn't read: {lack}"
        ),
        Ok(None) => log::warn!(
            "{upper}: goes on in overfall's fallback form; unmounted, `overfall upgrade-layer` can \
             bring it to the kernel's, which is possible here"
        ),
        Err(errno) => log::warn!("{upper}: in overfall's fallback form ({errno})"),
    }
}
