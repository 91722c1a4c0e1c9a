//! Giving a mounted overlay other flags.

use std::path::Path;

use nix::mount::{MsFlags, mount};

use super::fuse;
use crate::error::Context;
use crate::options::MountFlags;
use crate::sys::from_nix;
use crate::{Error, Result};

const STEP: &str = "remounting";

/// Gives the mount at `target` these flags: read-only or not, `nodev` and so on. Layers can't be
/// changed.
pub(crate) fn remount(target: &Path, flags: MountFlags) -> Result<()> {
    if !super::unmount::is_ours(target)? {
        return Err(Error::usage(STEP)
            .at(target)
            .because("no overlay is mounted there"));
    }
    let none: Option<&str> = None;
    let flags = fuse::mount_flags(flags) | MsFlags::MS_REMOUNT;
    mount(none, target, none, flags, none)
        .map_err(from_nix)
        .context(STEP, target)
}
