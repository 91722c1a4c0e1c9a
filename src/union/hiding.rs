//! What the fallback form needs: a name beside another says what is hidden, so that two names are
//! to be kept in step.
//!
//! An object in the upper layer is shown whatever hides the lower ones beside it. So what hides
//! comes first and goes last, and a server that dies in between leaves the old state or the new.

use std::ffi::OsStr;
use std::os::fd::AsFd;

use rustix::fs::AtFlags;

use super::layer::RealDir;
use super::types::Fault;
use super::{Outcome, Union};
use crate::dotted::{self, Made};
use crate::format::Form;
use crate::format::dotted::{Name, read};
use crate::sys::Errno;

impl Union {
    /// Whether the upper layer is in the fallback form.
    pub(super) fn is_dotted(&self) -> bool {
        self.form == Form::Dotted
    }

    /// Refuses a name that means something to the form of the upper layer.
    pub(super) fn refuse_reserved(&self, name: &OsStr) -> Outcome<()> {
        if self.is_dotted() && read(name) != Name::Plain {
            let why = "a name that begins with .wh. (the upper layer is in the fallback form)";
            return Err(Fault::merged(why, Errno::PERM).named(name));
        }
        Ok(())
    }

    /// Hides the lower layers' `name`, whatever the upper has under it.
    pub(super) fn hide(&self, upper: &RealDir, name: &OsStr) -> Outcome<Made> {
        let file = upper.open()?;
        dotted::hide(file.as_fd(), name)
            .map_err(|errno| upper.fault("leaving a whiteout", name, errno))
    }

    /// Takes away what hides the lower layers' `name`, which the upper has an object for, or still
    /// has. One that stays hides nothing that would be shown.
    pub(super) fn unhide(&self, upper: &RealDir, name: &OsStr) {
        let removed = upper
            .open()
            .map_err(|fault| fault.errno)
            .and_then(|file| dotted::unhide(file.as_fd(), name));
        if let Err(errno) = removed {
            log::warn!("{}: a whiteout stays: {errno}", name.display());
        }
    }

    /// As [`Union::clear`], in the fallback form.
    pub(super) fn clear_hiding(
        &self,
        upper: &RealDir,
        name: &OsStr,
        in_upper: bool,
    ) -> Outcome<()> {
        let made = self.hide(upper, name)?;
        if !in_upper {
            return Ok(());
        }
        let file = upper.open()?;
        let removed = rustix::fs::unlinkat(file.as_fd(), name, AtFlags::empty());
        removed.map_err(|errno| {
            if made == Made::New {
                self.unhide(upper, name);
            }
            upper.fault("unlink", name, errno)
        })
    }
}
