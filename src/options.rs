//! The `-o` option string of an overlay mount: parsing and writing.
//!
//! The syntax is the kernel's (`Documentation/filesystems/overlayfs.rst`): options separated by
//! commas, lower directories by colons, `\` before a character that would separate. Everything is
//! bytes; a path need not be UTF-8.

use std::path::PathBuf;

/// A parsed option string.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Options {
    /// Lower layers, the topmost first.
    pub lower: Vec<PathBuf>,
    /// Data-only lower layers (behind `::`), the topmost first.
    pub data_only: Vec<PathBuf>,
    /// The writable layer; absent for a read-only mount.
    pub upper: Option<PathBuf>,
    /// The work directory; present exactly when `upper` is.
    pub work: Option<PathBuf>,
    /// Keep overlay attributes under `user.overlay.` rather than `trusted.overlay.`.
    pub userxattr: bool,
    /// Never sync; an unclean end makes the upper unusable.
    pub volatile: bool,
    /// Let users other than the mounting one in (FUSE only; the kernel's overlay always does).
    pub allow_other: bool,
    /// Generic mount flags.
    pub flags: MountFlags,
}

bitflags::bitflags! {
    /// The generic mount flags that an overlay mount understands.
    #[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
    pub struct MountFlags: u32 {
        /// Read-only.
        const RO = 1 << 0;
        /// set-user-id bits and file capabilities have no effect.
        const NOSUID = 1 << 1;
        /// Device nodes can't be opened.
        const NODEV = 1 << 2;
        /// Nothing can be executed.
        const NOEXEC = 1 << 3;
        /// Access times are never updated.
        const NOATIME = 1 << 4;
    }
}
