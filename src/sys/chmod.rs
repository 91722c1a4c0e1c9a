//! fchmodat2(2), and what stands in for it before Linux 6.6.

use std::ffi::{CString, OsStr};
use std::os::fd::{AsRawFd, BorrowedFd};
use std::os::unix::ffi::OsStrExt;

use rustix::fs::{AtFlags, FileType, Mode, OFlags};

use super::Errno;

/// Number of fchmodat2(2), the same on every architecture but alpha, which Rust doesn't have.
const SYS_FCHMODAT2: libc::c_long = 452;

/// Changes the permission bits of `name` in `dir`, which is known not to be a symbolic link.
/// Doesn't follow one that was swapped in meanwhile: `EOPNOTSUPP`, or `ELOOP` before Linux 6.6.
pub fn chmod_at(dir: BorrowedFd<'_>, name: &OsStr, mode: u32) -> Result<(), Errno> {
    match fchmodat2(dir, name, mode, libc::AT_SYMLINK_NOFOLLOW) {
        // The second is what a sandbox says that doesn't know the call.
        Err(Errno::NOSYS | Errno::INVAL) => chmod_opened(dir, name, mode),
        result => result,
    }
}

/// Changes them through a descriptor, as only that can't be swapped. What can't be opened (a
/// socket, a file that we may not read) is changed by name, when it is no link.
fn chmod_opened(dir: BorrowedFd<'_>, name: &OsStr, mode: u32) -> Result<(), Errno> {
    let mode = Mode::from_raw_mode(mode);
    let stat = rustix::fs::statat(dir, name, AtFlags::SYMLINK_NOFOLLOW)?;
    match FileType::from_raw_mode(stat.st_mode) {
        FileType::Symlink => return Err(Errno::LOOP),
        FileType::RegularFile | FileType::Directory => {
            let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            match rustix::fs::openat(dir, name, flags, Mode::empty()) {
                Ok(file) => return rustix::fs::fchmod(file, mode),
                Err(Errno::ACCESS) => {}
                Err(errno) => return Err(errno),
            }
        }
        _ => {}
    }
    rustix::fs::chmodat(dir, name, mode, AtFlags::empty())
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

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn a_link_that_was_swapped_in_is_not_followed() {
        let scratch = tempfile::tempdir().unwrap();
        let file = scratch.path().join("file");
        std::fs::write(&file, "x").unwrap();
        std::fs::set_permissions(&file, PermissionsExt::from_mode(0o644)).unwrap();
        std::os::unix::fs::symlink("file", scratch.path().join("link")).unwrap();
        let dir = std::fs::File::open(scratch.path()).unwrap();
        for chmod in [chmod_at, chmod_opened] {
            chmod(dir.as_fd(), OsStr::new("link"), 0o600).unwrap_err();
            assert_eq!(file.metadata().unwrap().permissions().mode() & 0o777, 0o644);
            chmod(dir.as_fd(), OsStr::new("file"), 0o600).unwrap();
            assert_eq!(file.metadata().unwrap().permissions().mode() & 0o777, 0o600);
            chmod(dir.as_fd(), OsStr::new("file"), 0o644).unwrap();
        }
    }
}
