//! One directory of a layer, in either form.

use std::ffi::{CStr, OsStr, OsString};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use rustix::fs::{AtFlags, Mode, OFlags, Stat, fgetxattr, openat, statat};

use super::walk::STEP;
use crate::dotted::{self, Marked};
use crate::error::Context;
use crate::format::dotted::{Name, read};
use crate::format::{Form, OPAQUE};
use crate::sys::Errno;
use crate::{Error, Result};

#[derive(Debug)]
pub(super) struct Layer {
    pub(super) fd: OwnedFd,
    form: Form,
}

impl Layer {
    /// A layer's root.
    pub(super) fn open(path: &Path) -> Result<Self> {
        let fd = open_directory(rustix::fs::CWD, path).context(STEP, path)?;
        let form = match dotted::marked(fd.as_fd()).context(STEP, path)? {
            Marked::No => Form::Kernel,
            Marked::Dotted => Form::Dotted,
            Marked::Upgrading => {
                return Err(Error::usage(STEP)
                    .at(path)
                    .because("it is on its way from overfall's fallback form to the kernel's")
                    .remedy("end that with `overfall upgrade-layer`"));
            }
        };
        Ok(Self { fd, form })
    }

    /// The directory `name` in this one.
    pub(super) fn below(&self, name: &CStr) -> std::result::Result<Self, Errno> {
        let fd = open_directory(&self.fd, name)?;
        Ok(Self {
            fd,
            form: self.form,
        })
    }

    /// What a name of a listing is.
    pub(super) fn read<'n>(&self, name: &'n CStr) -> Name<'n> {
        match self.form {
            Form::Kernel => Name::Plain,
            Form::Dotted => read(OsStr::from_bytes(name.to_bytes())),
        }
    }

    /// `None` when it isn't there.
    pub(super) fn stat(&self, name: &CStr) -> std::result::Result<Option<Stat>, Errno> {
        if self.read(name) != Name::Plain {
            return Ok(None);
        }
        match statat(&self.fd, name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(stat) => Ok(Some(stat)),
            Err(Errno::NOENT) => Ok(None),
            Err(errno) => Err(errno),
        }
    }

    /// Whether a name beside `name` hides that of the layers below.
    pub(super) fn hides(&self, name: &CStr) -> std::result::Result<bool, Errno> {
        match self.form {
            Form::Kernel => Ok(false),
            Form::Dotted => dotted::hides(self.fd.as_fd(), OsStr::from_bytes(name.to_bytes())),
        }
    }

    /// What the name of a listing hides, in the fallback form.
    pub(super) fn hidden_by(&self, name: &CStr) -> std::result::Result<Option<OsString>, Errno> {
        dotted::hidden_by(self.fd.as_fd(), OsStr::from_bytes(name.to_bytes()))
    }

    /// Whether this layer says what becomes of a name, so that those below don't.
    pub(super) fn decides(&self, name: &CStr) -> bool {
        self.stat(name).is_ok_and(|stat| stat.is_some()) || self.hides(name).unwrap_or(false)
    }

    /// Whether the directory `name`, which is `directory`, hides those below; `attr` is `opaque`.
    pub(super) fn is_opaque(
        &self,
        name: &CStr,
        directory: &Self,
        attr: &OsStr,
    ) -> std::result::Result<bool, Errno> {
        if self.form == Form::Dotted {
            return Ok(dotted::is_opaque(directory.fd.as_fd())? || self.hides(name)?);
        }
        let mut value = [0; 2];
        Ok(matches!(fgetxattr(&directory.fd, attr, &mut value), Ok(1)) && value[..1] == *OPAQUE)
    }
}

fn open_directory<P: rustix::path::Arg>(
    at: impl AsFd,
    path: P,
) -> std::result::Result<OwnedFd, Errno> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    openat(at, path, flags, Mode::empty())
}
