//! A mapped file that is looked at without a SIGBUS: beyond the end of a file that was cut, the
//! access fails with `EFAULT`.
#![allow(unsafe_code)] // mmap(2) is called

use std::io::{IoSlice, IoSliceMut};
use std::os::fd::{AsRawFd, BorrowedFd};

use nix::sys::uio::{RemoteIoVec, process_vm_readv, process_vm_writev};
use nix::unistd::Pid;

/// The first bytes of a file, mapped.
pub(crate) struct Mapping {
    address: *mut libc::c_void,
    length: usize,
}

impl Mapping {
    /// Maps `length` bytes with the flags `MAP_SHARED` or `MAP_PRIVATE`.
    pub(crate) fn new(
        file: BorrowedFd<'_>,
        length: usize,
        protection: i32,
        flags: i32,
    ) -> std::io::Result<Self> {
        let start = std::ptr::null_mut();
        // SAFETY: a new mapping at an address of the kernel's choice; nothing else refers to it.
        let address = unsafe { libc::mmap(start, length, protection, flags, file.as_raw_fd(), 0) };
        if address == libc::MAP_FAILED {
            return Err(std::io::Error::last_os_error());
        }
        Ok(Self { address, length })
    }

    /// What is mapped at `at` now.
    pub(crate) fn read(&self, at: usize, length: usize) -> nix::Result<Vec<u8>> {
        let mut bytes = vec![0; length.min(self.length - at)];
        let remote = RemoteIoVec {
            base: self.address as usize + at,
            len: bytes.len(),
        };
        let read = process_vm_readv(Pid::this(), &mut [IoSliceMut::new(&mut bytes)], &[remote])?;
        bytes.truncate(read);
        Ok(bytes)
    }

    /// Waits until what was written into the mapping is in the file.
    pub(crate) fn sync(&self) {
        // SAFETY: the range is the mapping's own.
        unsafe { libc::msync(self.address, self.length, libc::MS_SYNC) };
    }

    /// Writes into the mapping.
    pub(crate) fn write(&self, at: usize, bytes: &[u8]) -> nix::Result<usize> {
        let bytes = &bytes[..bytes.len().min(self.length - at)];
        let remote = RemoteIoVec {
            base: self.address as usize + at,
            len: bytes.len(),
        };
        process_vm_writev(Pid::this(), &[IoSlice::new(bytes)], &[remote])
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: the range is the mapping's own and nobody refers to it any more.
        unsafe { libc::munmap(self.address, self.length) };
    }
}
