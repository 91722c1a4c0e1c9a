//! In which form a layer is, and in which one an upper is begun: the kernel's wherever its file
//! system can hold that.

use std::ffi::OsStr;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use rustix::fs::{Mode, RenameFlags, XattrFlags};

use super::work::Work;
use crate::dotted::{self, Guard, Lack, Marked};
use crate::error::Context;
use crate::format::{Form, XattrNamespace};
use crate::options::Options;
use crate::sys::{Errno, tree};
use crate::{Error, Result};

const STEP: &str = "trying the upper's file system";

/// In which form a lower layer is. `unmarked` is the form of those that don't say.
pub(super) fn form_of_lower(root: &OwnedFd, path: &Path, unmarked: Form) -> Result<Form> {
    match dotted::marked(root.as_fd()).context("looking at a lower layer", path)? {
        Marked::No => Ok(unmarked),
        Marked::Dotted => Ok(Form::Dotted),
        Marked::Upgrading => Err(half_upgraded(path)),
    }
}

/// In which form the upper layer is or, where it holds nothing, is begun.
pub(super) fn form_of_upper(
    (upper, path): (&OwnedFd, &Path),
    (work, work_path): (&Work, &Path),
    namespace: XattrNamespace,
    options: &Options,
) -> Result<Form> {
    let marked = dotted::marked(upper.as_fd()).context("looking at the upper layer", path)?;
    let guarded = Guard::of(work.base()).context("looking at the work directory", work_path)?;
    let is_empty = || {
        let names = tree::list(upper.as_fd(), OsStr::new("."));
        let names = names.context("looking at the upper layer", path)?;
        Ok(names.is_none_or(|names| names.is_empty()))
    };
    match marked {
        Marked::Upgrading => return Err(half_upgraded(path)),
        Marked::Dotted => {
            refuse_options(options, path)?;
            if guarded != Guard::Dotted {
                Guard::set(work.as_fd()).context("marking the work directory", work_path)?;
            }
            return Ok(Form::Dotted);
        }
        Marked::No if guarded == Guard::Dotted => {
            if !is_empty()? {
                return Err(half_upgraded(path));
            }
            // Begun, and nothing more.
            Guard::clear(work.base()).context("preparing the work directory", work_path)?;
        }
        Marked::No => {}
    }
    let Err(unfit) = prove(work, work_path, namespace) else {
        return Ok(Form::Kernel);
    };
    let Some(why) = unfit.lacks else {
        return Err(unfit.error);
    };
    if !is_empty()? {
        return Err(unfit.error.because(format!(
            "{why}, and what is in the upper was written where it could"
        )));
    }
    refuse_options(options, path)?;
    Guard::set(work.as_fd())
        .and_then(|()| dotted::mark(upper.as_fd(), work.as_fd(), namespace))
        .context("beginning an upper in the fallback form", path)?;
    Ok(Form::Dotted)
}

/// Between two forms it can be read in neither.
fn half_upgraded(path: &Path) -> Error {
    Error::usage("opening a layer")
        .at(path)
        .because("it is on its way from overfall's fallback form to the kernel's")
        .remedy("end that with `overfall upgrade-layer UPPER --workdir WORK`")
}

/// What leads elsewhere is kept in attributes of the kernel's form.
fn refuse_options(options: &Options, path: &Path) -> Result<()> {
    match options.needs_root() {
        None => Ok(()),
        Some(option) => Err(Error::usage("reading the options")
            .at(path)
            .because(format!(
                "`{option}` can't be had in overfall's fallback form"
            ))
            .remedy("leave the option out")),
    }
}

/// Why an upper can't hold the kernel's form.
#[derive(Debug)]
struct Unfit {
    error: Error,
    /// What the file system hasn't, if that is the reason and the fallback form does without it.
    lacks: Option<Lack>,
}

impl From<Error> for Unfit {
    fn from(error: Error) -> Self {
        Self { error, lacks: None }
    }
}

/// Proves that this upper can hold what the kernel's form needs, before anything is changed in it.
fn prove(work: &Work, path: &Path, namespace: XattrNamespace) -> std::result::Result<(), Unfit> {
    let missing = OsStr::new("missing");
    let flags = RenameFlags::EXCHANGE;
    let exchange = rustix::fs::renameat_with(work.as_fd(), missing, work.as_fd(), missing, flags);
    if exchange == Err(Errno::NOSYS) {
        // No form does without that.
        return Err(Error::system(STEP)
            .at(path)
            .errno(Errno::NOSYS)
            .because("the kernel can't exchange two names (renameat2)")
            .remedy("use Linux 3.15 or later, or a sandbox that allows renameat2")
            .into());
    }
    let temp = work
        .temp()
        .map_err(|fault| Error::system(STEP).at(path).errno(fault.errno))?;
    let made = rustix::fs::mkdirat(work.as_fd(), temp.name(), Mode::RWXU);
    made.context(STEP, path)?;
    let marked = temp
        .spot()
        .set_xattr(namespace.opaque(), b"0", XattrFlags::empty());
    marked.map_err(|errno| Unfit {
        error: Error::system(STEP)
            .at(path)
            .errno(errno)
            .because("it can't hold the overlay's attributes (no user.* attributes?)")
            .remedy("put upperdir and workdir on another file system, such as ext4, xfs or btrfs"),
        lacks: Lack::Attributes.by(errno),
    })?;
    drop(temp);
    let whiteout = work.whiteout().map_err(|fault| Unfit {
        error: Error::system(STEP)
            .at(path)
            .errno(fault.errno)
            .because("it can't hold whiteouts (0:0 devices without privilege need Linux 5.8)")
            .remedy("run as root, or put upperdir and workdir on another file system"),
        lacks: Lack::Whiteouts.by(fault.errno),
    })?;
    drop(whiteout);
    match exchange {
        Err(Errno::NOENT) | Ok(()) => Ok(()),
        Err(errno) => Err(Error::system(STEP)
            .at(path)
            .errno(errno)
            .because("it can't exchange two names (renameat2)")
            .remedy("put upperdir and workdir on another file system, such as ext4, xfs or btrfs")
            .into()),
    }
}
