//! Running a command in a merged tree: namespaces, id maps, the new root, its first process.
//!
//! Four processes take part in a run:
//!
//! ```text
//! runner    the process that was started; enters the namespaces, mounts the overlays, waits,
//!           forwards signals, unmounts, counts the changes
//! watcher   waits until the runner has ended, however it ended, and removes what it left
//! init      process 1 of the command's pid namespace; has a mount namespace of its own, in which
//!           it puts the root together and moves into it; reaps
//! command   what the user asked for
//! ```
//!
//! The FUSE servers (one for each overlay that FUSE carries) are outside of the command's pid
//! namespace: nothing in there can see or kill them. The overlays are mounted in the runner's
//! mount namespace; init has a copy of it that ends with the last process in there, so the
//! runner's unmount is the last one and waits until everything is written.

mod channel;
mod command;
mod disguise;
mod idmap;
mod init;
mod mounts;
mod namespaces;
mod overlays;
mod root;
mod run;
mod scratch;
mod wait;

pub(crate) use command::parse_variable;
pub use command::{Command, Credentials, Network};
pub use idmap::{IdMap, IdRange};
pub(crate) use namespaces::enter;
pub use namespaces::{Identity, Standing};
pub(crate) use overlays::{Overlays, Policy};
pub use root::{Access, Bind};
pub(crate) use root::{Content, Memory, Place, Root};
pub(crate) use run::launch;
pub use run::{Ended, Report, Run, State};
pub(crate) use scratch::{End, Scratch};
pub use wait::die_of;
