//! fchmodat2(2), and what stands in for it before Linux 6.6.

use std::ffi::{CString, OsStr};
use std::os::fd::{AsRawFd, BorrowedFd};
use std::os::unix::ffi::OsStrExt;

use rustix::fs::{AtFlags, Mode};

use super::Errno;

/// Number of fchmodat2(2), the same on every architecture but alpha, which Rust doesn't have.
const SYS_FCHMODAT2: libc::c_long = 452;

/// Changes the permission bits of `name` in `dir`, which is known not to be a symbolic link.
/// Doesn't follow one that was swapped in, where the kernel has the call for it.
pub fn chmod_at(dir: BorrowedFd<'_>, name: &OsStr, mode: u32) -> Result<(), Errno> {
    match fchmodat2(dir, name, mode, libc::AT_SYMLINK_NOFOLLOW) {
        Err(Errno::NOSYS | Errno::INVAL | Errno::OPNOTSUPP) => {
            rustix::fs::chmodat(dir, name, Mode::from_raw_mode(mode), AtFlags::empty())
        }
        result => result,
    }
}

/// Changes the permission bits of an open object, `O_PATH` descriptors included.
pub fn chmod_fd(fd: BorrowedFd<'_>, mode: u32) -> Result<(), Errno> {
    match rustix::fs::fchmod(fd, Mode::from_raw_mode(mode)) {
        Err(Errno::BADF) => fchmodat2(fd, OsStr::new(""), mode, libc::AT_EMPTY_PATH),
        result => result,
    }
}

fn fchmodat2(dir: BorrowedFd<'_>, name: &OsStr, mode: u32, flags: i32) -> Result<(), Errno> {
    let name = CString::new(name.as_bytes()).map_err(|_| Errno::INVAL)?;
    // SAFETY: the kernel reads `name`, a NUL-terminated string that outlives the call; the other
    // arguments are numbers.
    let result =
        unsafe { libc::syscall(SYS_FCHMODAT2, dir.as_raw_fd(), name.as_ptr(), mode, flags) };
    if result == 0 {
        Ok(())
    } else {
        Err(super::from_io(&std::io::Error::last_os_error()))
    }
}
