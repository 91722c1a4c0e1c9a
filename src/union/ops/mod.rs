//! The operations that change or read objects, one file for each family.

mod attr;
mod create;
mod flags;
mod io;
mod link;
mod remove;
mod rename;
mod xattrs;

pub(in crate::union) use io::open_for_writing;
