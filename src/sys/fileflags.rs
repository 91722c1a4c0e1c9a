//! Inode flags: `FS_IOC_GETFLAGS`, `FS_IOC_SETFLAGS` (ioctl_iflags(2)) and the `fsxattr` pair
//! (`linux/fs.h`).

use std::os::fd::{AsRawFd, BorrowedFd};

use super::Errno;

/// Length of `struct fsxattr`.
pub const FSXATTR_LEN: usize = 28;

#[allow(missing_docs, clippy::undocumented_unsafe_blocks)] // what the macros make: private here
mod raw {
    nix::ioctl_read!(get_flags, b'f', 1, libc::c_long);
    nix::ioctl_write_ptr!(set_flags, b'f', 2, libc::c_long);
    nix::ioctl_read!(get_xattr, b'X', 31, [u8; super::FSXATTR_LEN]);
    nix::ioctl_write_ptr!(set_xattr, b'X', 32, [u8; super::FSXATTR_LEN]);
}

/// The `FS_*_FL` bits of an open file.
pub fn get_flags(fd: BorrowedFd<'_>) -> Result<u32, Errno> {
    // The kernel writes an int although the request's number says long.
    let mut flags: libc::c_long = 0;
    // SAFETY: `flags` outlives the call and has room for the int that the kernel writes.
    unsafe { raw::get_flags(fd.as_raw_fd(), &raw mut flags) }.map_err(super::from_nix)?;
    Ok(flags as u32)
}

/// Sets the `FS_*_FL` bits of an open file.
pub fn set_flags(fd: BorrowedFd<'_>, flags: u32) -> Result<(), Errno> {
    let flags = libc::c_long::from(flags);
    // SAFETY: the kernel only reads an int from `flags`, which outlives the call.
    unsafe { raw::set_flags(fd.as_raw_fd(), &raw const flags) }.map_err(super::from_nix)?;
    Ok(())
}

/// The `struct fsxattr` of an open file.
pub fn get_extended(fd: BorrowedFd<'_>) -> Result<[u8; FSXATTR_LEN], Errno> {
    let mut value = [0; FSXATTR_LEN];
    // SAFETY: the kernel writes exactly the 28 bytes of `value`, which outlives the call.
    unsafe { raw::get_xattr(fd.as_raw_fd(), &raw mut value) }.map_err(super::from_nix)?;
    Ok(value)
}

/// Sets the `struct fsxattr` of an open file.
pub fn set_extended(fd: BorrowedFd<'_>, value: &[u8; FSXATTR_LEN]) -> Result<(), Errno> {
    // SAFETY: the kernel only reads the 28 bytes of `value`, which outlives the call.
    unsafe { raw::set_xattr(fd.as_raw_fd(), &raw const *value) }.map_err(super::from_nix)?;
    Ok(())
}
