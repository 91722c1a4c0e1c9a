//! File handles: name_to_handle_at(2), open_by_handle_at(2).

use std::ffi::{CString, OsStr};
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;

use super::{Errno, from_io};

/// Longest handle that the kernel gives (`MAX_HANDLE_SZ`).
const HANDLE_MAX: usize = 128;

/// A file's handle: it names the object, whatever it is called.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Handle {
    /// What the file system says that it is.
    pub kind: i32,
    /// The handle's bytes.
    pub bytes: Vec<u8>,
}

/// `struct file_handle` with room for the longest handle.
#[repr(C)]
struct RawHandle {
    bytes: u32,
    kind: i32,
    handle: [u8; HANDLE_MAX],
}

/// The handle of `name` in `dir`, links not followed; of `dir` itself for `.`.
pub fn of(dir: BorrowedFd<'_>, name: &OsStr) -> Result<Handle, Errno> {
    let (name, flags) = if name == "." {
        (OsStr::new(""), libc::AT_EMPTY_PATH)
    } else {
        (name, 0)
    };
    let name = CString::new(name.as_bytes()).map_err(|_| Errno::INVAL)?;
    let mut raw = RawHandle {
        bytes: HANDLE_MAX as u32,
        kind: 0,
        handle: [0; HANDLE_MAX],
    };
    let mut mount_id = 0;
    // SAFETY: `name` is NUL-terminated; `raw` has the layout of `struct file_handle` and says in
    // `bytes` how much room there is behind its head; all outlive the call.
    let result = unsafe {
        libc::name_to_handle_at(
            dir.as_raw_fd(),
            name.as_ptr(),
            (&raw mut raw).cast(),
            &raw mut mount_id,
            flags,
        )
    };
    if result != 0 {
        return Err(from_io(&std::io::Error::last_os_error()));
    }
    let length = (raw.bytes as usize).min(HANDLE_MAX);
    Ok(Handle {
        kind: raw.kind,
        bytes: raw.handle[..length].to_vec(),
    })
}

/// Opens (`O_PATH`) the object of `handle` on the file system of `on`. Needs CAP_DAC_READ_SEARCH
/// in the initial user namespace. `ESTALE` when it isn't there any more.
pub fn open(on: BorrowedFd<'_>, handle: &Handle) -> Result<OwnedFd, Errno> {
    let mut raw = RawHandle {
        bytes: 0,
        kind: handle.kind,
        handle: [0; HANDLE_MAX],
    };
    let room = raw
        .handle
        .get_mut(..handle.bytes.len())
        .ok_or(Errno::INVAL)?;
    room.copy_from_slice(&handle.bytes);
    raw.bytes = handle.bytes.len() as u32;
    let flags = libc::O_PATH | libc::O_CLOEXEC;
    // SAFETY: `raw` has the layout of `struct file_handle` and outlives the call.
    let fd = unsafe { libc::open_by_handle_at(on.as_raw_fd(), (&raw mut raw).cast(), flags) };
    if fd < 0 {
        return Err(from_io(&std::io::Error::last_os_error()));
    }
    // SAFETY: the kernel has just given us this descriptor, and nobody else has it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}
