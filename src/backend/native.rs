//! The kernel's overlayfs as the backend.

use crate::options::Options;
use crate::probe::{self, Refusal};
use crate::sys::Errno;
use crate::sys::privilege::Privilege;
use crate::{Error, Overlay, Result};

/// Mounts `overlay`, whose layers have been checked, with the kernel's overlayfs.
///
/// Outside the machine's own user namespace the attributes go under `user.overlay.`, asked for or
/// not: the others could be read by nobody.
pub(crate) fn mount(overlay: &Overlay) -> Result<()> {
    let mut options = overlay.options.clone();
    if let Some(option) = options.shown.first() {
        return Err(Error::usage("choosing the backend")
            .because(format!("the kernel's overlay doesn't know `{option}`"))
            .remedy("leave the option out, or use `--backend fuse`"));
    }
    options.userxattr |= Privilege::current().needs_userxattr();
    // The other options may not go together with the one that was just added.
    options.check()?;
    probe::attempt(&options, &overlay.target).map_err(|refusal| explain(overlay, &options, refusal))
}

fn explain(overlay: &Overlay, options: &Options, refusal: Refusal) -> Error {
    let error = Error::system(format!("mounting the kernel's overlay: {}", refusal.step))
        .at(&overlay.target)
        .errno(refusal.errno);
    let said = |why: &str| match refusal.said.as_str() {
        "" => why.to_owned(),
        said => said.to_owned(),
    };
    if refusal.errno == Errno::PERM && Privilege::current() == Privilege::None {
        return error
            .because("only root may mount")
            .remedy("mount as root, or in a user namespace: `overfall run`");
    }
    if refusal.errno == Errno::TOOBIG {
        return error
            .because(said("the names of the layers are too long together"))
            .remedy("use shorter names, or `--backend fuse`");
    }
    // A trial finds the cause; it has nothing to say where it finds none.
    let cause = probe::trial(options).ok().and_then(|verdict| verdict.cause);
    match cause {
        Some(cause) => error
            .because(said(cause.words()))
            .remedy(format!("{}; or use `--backend fuse`", cause.remedy())),
        None if refusal.said.is_empty() => {
            error.remedy("see the kernel's log (`dmesg`), or use `--backend fuse`")
        }
        None => error
            .because(said(""))
            .remedy("mend that, or use `--backend fuse`"),
    }
}
