//! Namespaces: whose they are (ioctl_ns(2)).

use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

use super::Errno;

#[allow(missing_docs, clippy::undocumented_unsafe_blocks)] // what the macros make: private here
mod raw {
    nix::ioctl_none!(get_userns, 0xb7, 0x1);
}

/// The user namespace that owns a namespace, if it is ours or one that was made in ours; `EPERM`
/// where it is neither.
pub(crate) fn owner(namespace: BorrowedFd<'_>) -> Result<OwnedFd, Errno> {
    // SAFETY: the request takes no argument and names no memory.
    let number = unsafe { raw::get_userns(namespace.as_raw_fd()) }.map_err(super::from_nix)?;
    // SAFETY: the kernel has just made this descriptor, and nobody else knows of it.
    Ok(unsafe { OwnedFd::from_raw_fd(number) })
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;

    use super::*;

    #[test]
    fn the_owner_of_our_mounts_is_our_user_namespace_or_out_of_sight() {
        let mounts = std::fs::File::open("/proc/self/ns/mnt").unwrap();
        let ours = rustix::fs::stat("/proc/self/ns/user").unwrap();
        match owner(mounts.as_fd()) {
            Ok(owner) => assert_eq!(rustix::fs::fstat(owner).unwrap().st_ino, ours.st_ino),
            Err(errno) => assert_eq!(errno, Errno::PERM),
        }
    }
}
