//! System calls that the crates we use don't offer in the shape we need, and the only place for
//! `unsafe`.
#![allow(unsafe_code)] // this module alone; see above

pub(crate) mod cells;
pub mod chmod;
pub mod cwd;
pub mod fileflags;
pub mod forget;
pub mod handle;
pub(crate) mod layer;
pub mod lock;
pub(crate) mod loopback;
pub mod memory;
pub(crate) mod namespace;
pub mod privilege;
pub mod process;
pub mod random;
pub(crate) mod seccomp;
pub(crate) mod subordinate;
pub(crate) mod times;
pub mod tree;
pub mod uuid;
pub mod xattr;

pub(crate) mod child;
pub(crate) mod mountinfo;

/// A system error number.
pub use rustix::io::Errno;

/// Turns an error of the `nix` crate into ours.
pub(crate) fn from_nix(errno: nix::errno::Errno) -> Errno {
    Errno::from_raw_os_error(errno as i32)
}

/// The error number inside a `std::io::Error`, `EIO` where there is none.
pub(crate) fn from_io(error: &std::io::Error) -> Errno {
    error
        .raw_os_error()
        .map_or(Errno::IO, Errno::from_raw_os_error)
}
