//! Giving a mounted overlay other flags.

use std::path::Path;

use rustix::mount::mount_remount;

use crate::error::Context;
use crate::options::MountFlags;
use crate::probe::ms_flags;
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
    mount_remount(target, ms_flags(flags), c"").context(STEP, target)?;
    super::is_protected(target, flags)
}
