//! A layer's directory as nobody else has it: without what is mounted in it, and read-only.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use rustix::fs::{Mode, OFlags};
use rustix::mount::OpenTreeFlags;

use super::Errno;

/// Opens a directory through a private copy of its mount, as the kernel's overlay takes its lower
/// layers. Where the copy can be made read-only (Linux 5.12) reading leaves no access times, not
/// even those of links, and nothing can write. Fails where no copy may be made.
pub(crate) fn open_privately(dir: impl AsFd) -> Result<OwnedFd, Errno> {
    let clone = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    let copy = rustix::mount::open_tree(dir, "", clone | OpenTreeFlags::AT_EMPTY_PATH)?;
    // An older kernel doesn't know how, a sandbox may not let us: then it is as writable as it was.
    let _ = make_read_only(copy.as_fd());
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    // It opens as O_PATH does; reading it takes another descriptor.
    rustix::fs::openat(&copy, ".", flags, Mode::empty())
}

/// mount_setattr(2) for a mount that nobody else has.
fn make_read_only(mount: BorrowedFd<'_>) -> Result<(), Errno> {
    let attributes = libc::mount_attr {
        attr_set: libc::MOUNT_ATTR_RDONLY,
        attr_clr: 0,
        propagation: 0,
        userns_fd: 0,
    };
    // SAFETY: the kernel reads the empty path, a NUL-terminated string, and as many bytes of
    // `attributes` as it is told, which it has; both outlive the call.
    let result = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            mount.as_raw_fd(),
            c"".as_ptr(),
            libc::AT_EMPTY_PATH,
            &raw const attributes,
            size_of_val(&attributes),
        )
    };
    if result == 0 {
        Ok(())
    } else {
        Err(super::from_io(&std::io::Error::last_os_error()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_can_be_written_to_it() {
        let scratch = tempfile::tempdir().unwrap();
        std::fs::write(scratch.path().join("file"), "x").unwrap();
        let plain = std::fs::File::open(scratch.path()).unwrap();
        let Ok(layer) = open_privately(&plain) else {
            eprintln!("skipped: no copy of a mount may be made here");
            return;
        };
        let open = |flags| rustix::fs::openat(&layer, "file", flags, Mode::empty());
        open(OFlags::RDONLY).unwrap();
        assert_eq!(open(OFlags::RDWR).unwrap_err(), Errno::ROFS);
        std::fs::write(scratch.path().join("file"), "y").unwrap();
    }
}
