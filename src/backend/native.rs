//! The kernel's overlayfs as the backend.

use crate::options::{Options, check_layers, check_layers_for_kernel};
use crate::probe::{self, Refusal};
use crate::sys::Errno;
use crate::sys::privilege::Privilege;
use crate::{Error, Overlay, Result};

/// Mounts `overlay` with the kernel's overlayfs. Outside the machine's own user namespace the
/// attributes go under `user.overlay.`, asked for or not: the others could be read by nobody.
pub(crate) fn mount(overlay: &Overlay) -> Result<()> {
    check_layers(&overlay.options, &overlay.target)?;
    check_layers_for_kernel(&overlay.options)?;
    let mut options = overlay.options.clone();
    options.userxattr |= Privilege::current().needs_userxattr();
    // The other options may not go together with the one that was just added.
    options.check()?;
    probe::attempt(&options, &overlay.target).map_err(|refusal| explain(overlay, &options, refusal))
}

fn explain(overlay: &Overlay, options: &Options, refusal: Refusal) -> Error {
    let error = Error::system(format!("mounting the kernel's overlay: {}", refusal.step))
        .at(&overlay.target)
        .errno(refusal.errno);
    let (why, remedy) = meaning(options, &refusal);
    let why = match (refusal.said.as_str(), why) {
        ("", None) => return error,
        ("", Some(why)) => why.to_owned(),
        (said, _) => format!("the kernel says: {said}"),
    };
    let error = error.because(why);
    match remedy {
        Some(remedy) => error.remedy(remedy),
        None => error,
    }
}

/// The usual reason behind an errno, and what helps.
fn meaning(options: &Options, refusal: &Refusal) -> (Option<&'static str>, Option<&'static str>) {
    const FUSE: &str = "`--backend fuse` does without it";
    let single = options.upper.is_none() && options.lower.len() + options.data_only.len() == 1;
    match refusal.errno {
        Errno::PERM | Errno::ACCESS if Privilege::current() == Privilege::None => (
            Some("only root may mount"),
            Some("run it as root or in a user namespace: `overfall run`"),
        ),
        Errno::INVAL if single => (
            Some("the kernel wants two lower directories where there is no upper one"),
            Some("add an empty lower directory, or use `--backend fuse`"),
        ),
        Errno::TOOBIG => (None, Some("use shorter names, or `--backend fuse`")),
        Errno::NODEV => (Some("this kernel has no overlay"), Some(FUSE)),
        _ => (
            None,
            Some("`overfall check` finds the cause; `--backend fuse` does without it"),
        ),
    }
}
