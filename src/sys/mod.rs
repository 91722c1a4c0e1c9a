//! System calls that the crates we use don't offer, and the only place for `unsafe`.

pub(crate) mod child;
pub(crate) mod mountinfo;

/// A system error number.
pub use rustix::io::Errno;
