//! Why something doesn't work here. What there is to say about each cause is in [`super::advice`].

use serde::Serialize;

use super::advice::{self, Entry};
use super::distro::Distro;

/// Why the kernel's overlay, the FUSE server or a container's ids don't work here.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Cause {
    /// The kernel has no overlay, and can't load it here.
    NoOverlay,
    /// The kernel has it, but not for user namespaces: mainline before 5.11.
    NotInUserNamespaces,
    /// The kernel has no user namespaces.
    NoUserNamespaces,
    /// `kernel.unprivileged_userns_clone` is 0.
    UserNamespacesForRootOnly,
    /// `user.max_user_namespaces` is 0, or as many exist.
    UserNamespacesUsedUp,
    /// AppArmor takes the capabilities away in a new user namespace.
    AppArmor,
    /// A container's seccomp filter forbids namespaces or mounts.
    Seccomp,
    /// SELinux denies it.
    SeLinux,
    /// The upper layer's file system can't carry an upper layer.
    UpperFileSystem,
    /// The upper layer's file system has no extended attributes of the kind that is needed.
    UpperWithoutAttributes,
    /// The upper layer's file system doesn't tell file types in listings.
    UpperWithoutFileTypes,
    /// The upper layer's file system is full.
    UpperFull,
    /// A lower layer's file system can't carry a lower layer.
    LowerFileSystem,
    /// Something is mounted below a lower layer, and this user namespace may not look beneath it.
    LockedSubmounts,
    /// Overlays lie on overlays more deeply than the kernel allows.
    NestedTooDeep,
    /// There is one lower layer and no upper one.
    SingleLower,
    /// Files of the lower layers have owners without an id in this user namespace.
    UnmappedOwners,
    /// The kernel doesn't know one of the options.
    UnknownOption,
    /// There is no /dev/fuse.
    NoFuseDevice,
    /// /dev/fuse is for root only.
    FuseDeviceClosed,
    /// A container may not use /dev/fuse.
    FuseDeviceForbidden,
    /// FUSE can't be mounted by oneself, and there is no fusermount3(1).
    NoFusermount,
    /// There is no newuidmap(1) or newgidmap(1).
    NoIdHelpers,
    /// /etc/subuid or /etc/subgid has no ids for this user.
    NoSubordinateIds,
    /// The trial can't tell.
    Unknown,
}

impl Cause {
    /// What it is, in words.
    pub fn words(self) -> &'static str {
        self.entry()
            .map_or("the trial can't tell why", |entry| entry.words)
    }

    /// What to change on this distribution; empty where there is nothing to say.
    pub fn remedy(self) -> &'static str {
        self.remedy_on(Distro::current())
    }

    /// What overfall does instead.
    pub fn instead(self) -> &'static str {
        self.entry().map_or(advice::FUSE, |entry| entry.instead)
    }

    pub(super) fn remedy_on(self, distro: Distro) -> &'static str {
        let Some(entry) = self.entry() else {
            return "see the step that failed, and the kernel's log (`dmesg`)";
        };
        entry
            .special
            .iter()
            .find(|(special, _)| *special == distro)
            .map_or(entry.remedy, |(_, remedy)| remedy)
    }

    fn entry(self) -> Option<&'static Entry> {
        advice::TABLE.iter().find(|entry| entry.cause == self)
    }
}
