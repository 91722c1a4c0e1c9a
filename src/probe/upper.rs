//! In which form our server would write an upper.

use std::os::fd::AsFd;
use std::path::Path;

use rustix::fs::{CWD, Mode, OFlags, openat};
use serde::Serialize;

use crate::dotted;
use crate::format::{Form, XattrNamespace};
use crate::sys::privilege::Privilege;

/// What there is to say of a directory's file system.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct UpperVerdict {
    /// The form; none where nothing can be made in the directory.
    pub form: Option<Form>,
    /// What the kernel's form would need.
    pub lacks: Option<String>,
}

/// Tries in `near` what the kernel's form of an upper needs.
pub fn look_at_upper(near: &Path) -> UpperVerdict {
    let namespace = if Privilege::current().needs_userxattr() {
        XattrNamespace::User
    } else {
        XattrNamespace::Trusted
    };
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let lack = openat(CWD, near, flags, Mode::empty())
        .and_then(|dir| dotted::lacks(dir.as_fd(), namespace));
    match lack {
        Ok(None) => UpperVerdict {
            form: Some(Form::Kernel),
            lacks: None,
        },
        Ok(Some(lack)) => UpperVerdict {
            form: Some(Form::Dotted),
            lacks: Some(lack.to_string()),
        },
        Err(_) => UpperVerdict {
            form: None,
            lacks: None,
        },
    }
}
