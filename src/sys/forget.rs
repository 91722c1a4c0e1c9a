//! The ioctls by which a mount of ours is told to forget what it remembers of its layers.

use std::os::fd::{AsRawFd, BorrowedFd};

use super::Errno;

/// Forget what was read from the layers.
pub const FORGET_LAYERS: u32 = nix::request_code_none!(b'O', b'F') as u32;
/// Forget which names are absent, too, at the price of what is mounted in the tree.
pub const FORGET_NAMES: u32 = nix::request_code_none!(b'O', b'N') as u32;

#[allow(missing_docs, clippy::undocumented_unsafe_blocks)] // what the macros make: private here
mod raw {
    nix::ioctl_none!(forget_layers, b'O', b'F');
    nix::ioctl_none!(forget_names, b'O', b'N');
}

/// Asks the server of an open directory for [`FORGET_LAYERS`].
pub fn forget_layers(root: BorrowedFd<'_>) -> Result<(), Errno> {
    // SAFETY: the request takes no argument and names no memory.
    let done = unsafe { raw::forget_layers(root.as_raw_fd()) };
    done.map(drop).map_err(super::from_nix)
}

/// Asks the server of an open directory for [`FORGET_NAMES`].
pub fn forget_names(root: BorrowedFd<'_>) -> Result<(), Errno> {
    // SAFETY: the request takes no argument and names no memory.
    let done = unsafe { raw::forget_names(root.as_raw_fd()) };
    done.map(drop).map_err(super::from_nix)
}
