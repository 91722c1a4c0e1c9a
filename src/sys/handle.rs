//! File handles: name_to_handle_at(2), open_by_handle_at(2), and the file system's uuid.

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

/// `struct fsuuid2` of `linux/fs.h`.
#[repr(C)]
#[derive(Default)]
struct FsUuid {
    len: u8,
    uuid: [u8; 16],
}

/// `struct btrfs_ioctl_fs_info_args` of `linux/btrfs.h`.
#[repr(C)]
struct BtrfsInfo {
    max_id: u64,
    num_devices: u64,
    fsid: [u8; 16],
    rest: [u8; 992],
}

#[allow(missing_docs, clippy::undocumented_unsafe_blocks)] // what the macro makes: private here
mod raw {
    nix::ioctl_read!(get_fs_uuid, 0x15, 0, super::FsUuid);
    nix::ioctl_read!(get_btrfs_info, 0x94, 31, super::BtrfsInfo);
}

/// The uuid of the file system of an open object (`FS_IOC_GETFSUUID`, Linux 6.9). btrfs answers
/// only a question of its own.
pub fn fs_uuid(of: BorrowedFd<'_>) -> Result<[u8; 16], Errno> {
    let mut answer = FsUuid::default();
    // SAFETY: the kernel writes one `struct fsuuid2` to `answer`, which outlives the call.
    match unsafe { raw::get_fs_uuid(of.as_raw_fd(), &raw mut answer) } {
        Ok(_) if answer.len == 16 => Ok(answer.uuid),
        Ok(_) => Err(Errno::OPNOTSUPP),
        Err(_) if rustix::fs::fstatfs(of)?.f_type == libc::BTRFS_SUPER_MAGIC => btrfs_uuid(of),
        Err(errno) => Err(super::from_nix(errno)),
    }
}

fn btrfs_uuid(of: BorrowedFd<'_>) -> Result<[u8; 16], Errno> {
    let mut info = BtrfsInfo {
        max_id: 0,
        num_devices: 0,
        fsid: [0; 16],
        rest: [0; 992],
    };
    // SAFETY: the kernel writes one `struct btrfs_ioctl_fs_info_args`, whose 1024 bytes `info` has,
    // and `info` outlives the call.
    unsafe { raw::get_btrfs_info(of.as_raw_fd(), &raw mut info) }.map_err(super::from_nix)?;
    Ok(info.fsid)
}
