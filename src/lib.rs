//! overfall: an overlay file system for every kernel.
//!
//! Give it lower directories and an upper directory and you get the merged tree that the kernel's
//! overlayfs would give you, on every kernel, without root; what it leaves in the upper directory
//! is what the kernel would have left.
//!
//! The kernel's own overlayfs does the work wherever a trial proves that it really works there.
//! Elsewhere a FUSE server does, with the same rules on the same on-disk format.
//!
//! ```no_run
//! use std::path::Path;
//! use overfall::Overlay;
//!
//! let lowers = [Path::new("/srv/base")];
//! let overlay = Overlay::writable(lowers.into_iter(), "/srv/upper", "/srv/work", "/srv/merged");
//! let mounted = overlay.mount()?;
//! println!("carried by {}", mounted.backend());
//! mounted.unmount()?;
//! # Ok::<(), overfall::Error>(())
//! ```
//!
//! Two things that a builder of containers needs stand on it: [`Snapshot`], a writable, throw-away copy
//! of a directory in its place, and [`StepCache`], a layer for each step of a build.
//!
//! `docs/ARCHITECTURE.md` in the repository describes the modules and which may use which.
#![cfg_attr(not(test), deny(clippy::print_stdout, clippy::print_stderr))] // they panic; see `say`

pub mod backend;
pub mod changes;
pub mod cli;
pub mod container;
pub mod dotted;
mod error;
mod flatten;
pub mod format;
mod logging;
pub mod options;
mod overlay;
pub mod probe;
mod say;
pub mod server;
pub mod snapshot;
pub mod steps;
pub mod sys;
pub mod union;
pub mod vagga;

pub use backend::{Backend, Mounted};
pub use error::{Error, Result};
pub use overlay::Overlay;
pub use snapshot::Snapshot;
pub use steps::StepCache;
