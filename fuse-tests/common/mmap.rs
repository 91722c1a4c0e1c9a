//! A mapped file: the one thing that the safe crates don't offer.
#![allow(unsafe_code, clippy::expect_used)] // mmap(2) is called, and its memory read; a test fails by panicking

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;

/// The first bytes of a file, mapped.
pub(crate) struct Mapping {
    address: *mut libc::c_void,
    length: usize,
}

impl Mapping {
    /// Maps `length` bytes with the flags `MAP_SHARED` or `MAP_PRIVATE`.
    pub(crate) fn new(file: &File, length: usize, protection: i32, flags: i32) -> Self {
        Self::try_new(file, length, protection, flags).expect("mmap")
    }

    /// As [`Mapping::new`], which may be refused.
    pub(crate) fn try_new(
        file: &File,
        length: usize,
        protection: i32,
        flags: i32,
    ) -> io::Result<Self> {
        // SAFETY: a new mapping at an address of the kernel's choice; nothing else refers to it.
        let address = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                length,
                protection,
                flags,
                file.as_raw_fd(),
                0,
            )
        };
        match address {
            libc::MAP_FAILED => Err(io::Error::last_os_error()),
            address => Ok(Self { address, length }),
        }
    }

    /// A copy of what is mapped now.
    pub(crate) fn read(&self) -> Vec<u8> {
        let mut copy = vec![0; self.length];
        // SAFETY: both ranges have `length` bytes and don't overlap; the tests keep the file at
        // least that long.
        unsafe {
            std::ptr::copy_nonoverlapping(self.address.cast(), copy.as_mut_ptr(), self.length)
        };
        copy
    }

    /// Writes at the start of the mapping.
    pub(crate) fn write(&self, data: &[u8]) {
        assert!(data.len() <= self.length);
        // SAFETY: `data` fits; the mapping was made writable by the caller.
        unsafe { std::ptr::copy_nonoverlapping(data.as_ptr(), self.address.cast(), data.len()) };
    }

    /// msync(2) with `MS_SYNC`.
    pub(crate) fn sync(&self) {
        self.try_sync().expect("msync");
    }

    /// As [`Mapping::sync`], which may fail.
    pub(crate) fn try_sync(&self) -> io::Result<()> {
        // SAFETY: the range is the mapping's own.
        match unsafe { libc::msync(self.address, self.length, libc::MS_SYNC) } {
            0 => Ok(()),
            _ => Err(io::Error::last_os_error()),
        }
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: the range is the mapping's own and nobody refers to it any more.
        unsafe { libc::munmap(self.address, self.length) };
    }
}
