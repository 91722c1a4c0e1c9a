//! What this process may do, as far as mounts are concerned.

use rustix::thread::{CapabilitySet, capabilities};

/// Which root this process is, if any.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Privilege {
    /// May mount, in the machine's own user namespace: the real root.
    Machine,
    /// May mount, in a user namespace of its own.
    Namespace,
    /// May not mount.
    None,
}

/// The inode number that the kernel gives the first user namespace (`PROC_USER_INIT_INO`).
const FIRST_USER_NAMESPACE: u64 = 0xEFFF_FFFD;

impl Privilege {
    /// That of the calling thread.
    pub fn current() -> Self {
        let may_mount =
            capabilities(None).is_ok_and(|sets| sets.effective.contains(CapabilitySet::SYS_ADMIN));
        match (may_mount, in_first_namespace()) {
            (true, true) => Self::Machine,
            (true, false) => Self::Namespace,
            (false, _) => Self::None,
        }
    }

    /// Whether the kernel's overlay must keep its attributes under `user.overlay.`.
    pub fn needs_userxattr(self) -> bool {
        self != Self::Machine
    }
}

/// Whether this is the machine's own user namespace. Without /proc we can't know, and say no:
/// what works in another namespace works there too.
pub(crate) fn in_first_namespace() -> bool {
    rustix::fs::stat("/proc/self/ns/user").is_ok_and(|stat| stat.st_ino == FIRST_USER_NAMESPACE)
}
