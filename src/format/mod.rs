//! The on-disk format of an overlay's layers. Pure: nothing here does I/O.
//!
//! Source: `Documentation/filesystems/overlayfs.rst` and `fs/overlayfs` of the Linux kernel.

pub mod acl;
pub mod dotted;
pub mod index;
pub mod metacopy;
pub mod origin;
pub mod override_stat;
pub mod protattr;
pub mod redirect;
mod xattr;

pub use dotted::Form;
pub(crate) use xattr::is_guard;
pub use xattr::{Visible, XattrNamespace};

/// Value of `opaque` on a directory that hides the lower ones.
pub const OPAQUE: &[u8] = b"y";
/// Value of `opaque` on a lower directory that may hold xattr-whiteouts; it hides nothing.
pub const MAY_HOLD_XATTR_WHITEOUTS: &[u8] = b"x";
/// Value of `impure` on an upper directory that may hold copied-up entries.
pub const IMPURE: &[u8] = b"y";

/// Name of the directory in workdir that holds unfinished objects.
pub const WORK: &str = "work";
/// Name of the directory in workdir that holds the index of hard links.
pub const INDEX: &str = "index";
/// Name of the directory in `work` whose entries forbid a mount that doesn't know them.
pub const INCOMPAT: &str = "incompat";
/// Most lower layers an overlay may have.
pub const MAX_LOWERS: usize = 500;

/// Whether a file of this mode and device number is a whiteout: a character device 0:0.
pub fn is_whiteout(mode: u32, rdev: u64) -> bool {
    mode & libc::S_IFMT == libc::S_IFCHR && rdev == 0
}
