//! The FUSE server as the backend.

/// The process that serves a mount.
#[derive(Debug)]
pub(crate) struct Server;
