//! What carries a mounted overlay: the kernel's overlayfs or our FUSE server.

mod fuse;
mod native;

use std::fmt;
use std::path::{Path, PathBuf};

use crate::{Overlay, Result};

/// Who is wanted to carry an overlay.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Backend {
    /// The kernel's overlayfs where a trial proves that it works, FUSE otherwise.
    #[default]
    Auto,
    /// The kernel's overlayfs or an error.
    Native,
    /// The FUSE server or an error.
    Fuse,
}

/// Who carries an overlay that is mounted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Carrier {
    /// The kernel's overlayfs.
    Native,
    /// The FUSE server.
    Fuse,
}

impl fmt::Display for Carrier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Carrier::Native => "native",
            Carrier::Fuse => "fuse",
        })
    }
}

/// A mounted overlay. Dropping it unmounts; [`Mounted::leave`] keeps the mount.
#[derive(Debug)]
pub struct Mounted {
    target: PathBuf,
    carrier: Carrier,
    armed: bool,
    server: Option<fuse::Server>,
}

impl Mounted {
    /// Who carries it.
    pub fn backend(&self) -> Carrier {
        self.carrier
    }

    /// Where it is mounted.
    pub fn target(&self) -> &Path {
        &self.target
    }

    /// Unmounts, waits until everything is written and, with FUSE, until the server has gone.
    pub fn unmount(mut self) -> Result<()> {
        self.armed = false;
        todo!()
    }

    /// Keeps the mount beyond this value.
    pub fn leave(mut self) {
        self.armed = false;
    }
}

/// Mounts `overlay` with the backend that it asks for.
pub(crate) fn mount(_overlay: Overlay) -> Result<Mounted> {
    todo!()
}
