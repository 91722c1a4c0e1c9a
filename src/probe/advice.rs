//! The table of advice: for each cause what it is, what to change on which distribution, and what
//! overfall does meanwhile. Nothing of that is said anywhere else.

use super::cause::Cause;
use super::distro::Distro;

/// What there is to say about a cause.
pub(super) struct Entry {
    pub(super) cause: Cause,
    pub(super) words: &'static str,
    /// For every distribution that isn't in `special`.
    pub(super) remedy: &'static str,
    pub(super) special: &'static [(Distro, &'static str)],
    /// What overfall does meanwhile.
    pub(super) instead: &'static str,
}

const KERNEL: &str = "the kernel's overlay does without it, where it works";
pub(super) const FUSE: &str = "overfall's FUSE server does without it";
const FUSE_AS_ROOT: &str =
    "without user namespaces only root can mount, or a plain user through fusermount3";

pub(super) const TABLE: &[Entry] = &[
    Entry {
        cause: Cause::NoOverlay,
        words: "this kernel has no overlay, or can't load the module here",
        remedy: "as root: `modprobe overlay`, and `overlay` in /etc/modules-load.d/overlay.conf; \
                 a kernel built without CONFIG_OVERLAY_FS has to be replaced",
        special: &[
            (
                Distro::NixOs,
                "set `boot.kernelModules = [ \"overlay\" ];` and rebuild",
            ),
            (
                Distro::Arch,
                "as root: `modprobe overlay` (after an update of the kernel reboot first), \
                            and `overlay` in /etc/modules-load.d/overlay.conf",
            ),
        ],
        instead: FUSE,
    },
    Entry {
        cause: Cause::NotInUserNamespaces,
        words: "this kernel mounts overlays for the real root only; others may since Linux 5.11",
        remedy: "boot a kernel of 5.11 or later, or mount as root",
        special: &[
            (
                Distro::Debian,
                "boot a kernel of 5.11 or later, or put `options overlay \
                              permit_mounts_in_userns=1` in /etc/modprobe.d/overlay.conf and reload \
                              the module",
            ),
            (
                Distro::NixOs,
                "set `boot.kernelPackages = pkgs.linuxPackages_latest;`, rebuild and reboot",
            ),
        ],
        instead: FUSE,
    },
    Entry {
        cause: Cause::NoUserNamespaces,
        words: "this kernel has no user namespaces",
        remedy: "boot a kernel with CONFIG_USER_NS, or mount as root",
        special: &[(
            Distro::NixOs,
            "set `security.allowUserNamespaces = true;` and rebuild, or mount as root",
        )],
        instead: FUSE_AS_ROOT,
    },
    Entry {
        cause: Cause::UserNamespacesForRootOnly,
        words: "only root may make user namespaces: kernel.unprivileged_userns_clone is 0",
        remedy: "as root: `sysctl -w kernel.unprivileged_userns_clone=1`, and the same in \
                 /etc/sysctl.d/50-userns.conf",
        special: &[
            (
                Distro::Arch,
                "as root: `sysctl -w kernel.unprivileged_userns_clone=1`, and the same in \
                            /etc/sysctl.d/50-userns.conf; or boot `linux` in place of `linux-hardened`",
            ),
            (
                Distro::NixOs,
                "set `security.unprivilegedUsernsClone = true;` and rebuild",
            ),
        ],
        instead: FUSE_AS_ROOT,
    },
    Entry {
        cause: Cause::UserNamespacesUsedUp,
        words: "no user namespace can be made: user.max_user_namespaces is 0, or as many exist",
        remedy: "as root: `sysctl -w user.max_user_namespaces=15000`, and the same in \
                 /etc/sysctl.d/50-userns.conf",
        special: &[(
            Distro::NixOs,
            "set `boot.kernel.sysctl.\"user.max_user_namespaces\" = 15000;` (the \
                             hardened profile sets 0: `security.allowUserNamespaces = true;`) and rebuild",
        )],
        instead: FUSE_AS_ROOT,
    },
    Entry {
        cause: Cause::AppArmor,
        words: "AppArmor takes the rights away in a new user namespace",
        remedy: "as root: give overfall an AppArmor profile with `userns,`, or `sysctl -w \
                 kernel.apparmor_restrict_unprivileged_userns=0`",
        special: &[(
            Distro::Ubuntu,
            "as root: write /etc/apparmor.d/overfall with `abi <abi/4.0>, profile \
                              overfall /usr/bin/overfall flags=(unconfined) { userns, }` (and the path \
                              of your overfall) and run `apparmor_parser -r` on it; or `sysctl -w \
                              kernel.apparmor_restrict_unprivileged_userns=0`",
        )],
        instead: FUSE_AS_ROOT,
    },
    Entry {
        cause: Cause::Seccomp,
        words: "a seccomp filter, such as a container's, forbids namespaces or mounts",
        remedy: "start the container with `--security-opt seccomp=unconfined` (or with a profile that \
                 allows unshare and mount) and `--device /dev/fuse`",
        special: &[],
        instead: "overfall's FUSE server works here only if the container has /dev/fuse and may mount it",
    },
    Entry {
        cause: Cause::SeLinux,
        words: "SELinux seems to deny it",
        remedy: "look at `ausearch -m avc -ts recent`; put the layers where this domain may write, or \
                 relabel them",
        special: &[],
        instead: FUSE,
    },
    Entry {
        cause: Cause::UpperFileSystem,
        words: "the upper layer's file system can't carry an upper layer of the kernel's",
        remedy: "put upper and work directory on ext4, XFS, btrfs or tmpfs",
        special: &[],
        instead: FUSE,
    },
    Entry {
        cause: Cause::UpperWithoutAttributes,
        words: "the upper layer's file system has no extended attributes of the kind that is needed",
        remedy: "put upper and work directory on ext4, XFS or btrfs (tmpfs has user attributes since \
                 Linux 6.6)",
        special: &[],
        instead: "overfall's FUSE server needs them too",
    },
    Entry {
        cause: Cause::UpperWithoutFileTypes,
        words: "the upper layer's file system doesn't tell file types in listings (no d_type)",
        remedy: "put upper and work directory on another file system; XFS needs `mkfs.xfs -n ftype=1`",
        special: &[],
        instead: FUSE,
    },
    Entry {
        cause: Cause::UpperFull,
        words: "the upper layer's file system is full",
        remedy: "make room there, or put upper and work directory elsewhere",
        special: &[],
        instead: "overfall's FUSE server needs the room too",
    },
    Entry {
        cause: Cause::LowerFileSystem,
        words: "the kernel doesn't take a lower layer's file system",
        remedy: "put the lower layers on another file system",
        special: &[],
        instead: FUSE,
    },
    Entry {
        cause: Cause::LockedSubmounts,
        words: "something is mounted below a lower layer, and a user namespace may not look beneath it",
        remedy: "mount as root, or take lower layers without mounts below them",
        special: &[],
        instead: FUSE,
    },
    Entry {
        cause: Cause::NestedTooDeep,
        words: "overlays lie on overlays more deeply than the kernel allows (two levels)",
        remedy: "give the layers of the inner overlay in place of its mount",
        special: &[],
        instead: FUSE,
    },
    Entry {
        cause: Cause::SingleLower,
        words: "the kernel wants two lower layers where there is no upper one",
        remedy: "add an empty lower directory",
        special: &[],
        instead: FUSE,
    },
    Entry {
        cause: Cause::UnmappedOwners,
        words: "files of the lower layers have owners without an id in this user namespace, so the \
                kernel can't copy them up",
        remedy: "mount as root, or take lower layers whose files are all yours",
        special: &[],
        instead: "`overfall run` takes its FUSE server, which shows such files as root's and records \
                  owners it can't give",
    },
    Entry {
        cause: Cause::UnknownOption,
        words: "this kernel doesn't know one of the options",
        remedy: "leave the option out, or boot a later kernel",
        special: &[],
        instead: "overfall's FUSE server knows the options that it can carry out on every kernel",
    },
    Entry {
        cause: Cause::NoFuseDevice,
        words: "there is no /dev/fuse",
        remedy: "as root: `modprobe fuse`, and `fuse` in /etc/modules-load.d/fuse.conf; for a container: \
                 `--device /dev/fuse`",
        special: &[
            (
                Distro::NixOs,
                "set `boot.kernelModules = [ \"fuse\" ];` and rebuild; for a container: `--device \
                 /dev/fuse`",
            ),
            (
                Distro::Arch,
                "as root: `modprobe fuse` (after an update of the kernel reboot first), and `fuse` in \
                 /etc/modules-load.d/fuse.conf; for a container: `--device /dev/fuse`",
            ),
        ],
        instead: KERNEL,
    },
    Entry {
        cause: Cause::FuseDeviceClosed,
        words: "/dev/fuse is for root only",
        remedy: "as root: `chmod 666 /dev/fuse`, and `KERNEL==\"fuse\", MODE=\"0666\"` in \
                 /etc/udev/rules.d/99-fuse.rules",
        special: &[(
            Distro::NixOs,
            "set `services.udev.extraRules = \"KERNEL==\\\"fuse\\\", MODE=\\\"0666\\\"\";` and rebuild",
        )],
        instead: KERNEL,
    },
    Entry {
        cause: Cause::FuseDeviceForbidden,
        words: "the container forbids /dev/fuse",
        remedy: "start it with `--device /dev/fuse`",
        special: &[],
        instead: KERNEL,
    },
    Entry {
        cause: Cause::NoFusermount,
        words: "FUSE can't be mounted in a namespace of one's own, and there is no fusermount3",
        remedy: "install fusermount3 (package `fuse3`), allow user namespaces, or mount as root",
        special: &[
            (Distro::Debian, "as root: `apt install fuse3`"),
            (Distro::Ubuntu, "as root: `apt install fuse3`"),
            (Distro::Arch, "as root: `pacman -S fuse3`"),
            (Distro::Fedora, "as root: `dnf install fuse3`"),
            (
                Distro::NixOs,
                "set `programs.fuse.enable = true;` and rebuild",
            ),
        ],
        instead: KERNEL,
    },
    Entry {
        cause: Cause::NoIdHelpers,
        words: "there is no newuidmap or newgidmap, so a plain user has only one id in a container",
        remedy: "install newuidmap and newgidmap (package `uidmap` or `shadow`)",
        special: &[
            (Distro::Debian, "as root: `apt install uidmap`"),
            (Distro::Ubuntu, "as root: `apt install uidmap`"),
            (Distro::Arch, "as root: `pacman -S shadow`"),
            (Distro::Fedora, "as root: `dnf install shadow-utils`"),
            (
                Distro::NixOs,
                "set `users.users.NAME.autoSubUidGidRange = true;` and rebuild: the helpers come with it",
            ),
        ],
        instead: "`overfall run` records the owners that it can't give",
    },
    Entry {
        cause: Cause::NoSubordinateIds,
        words: "this user has no ids in /etc/subuid and /etc/subgid, so only one id in a container",
        remedy: "as root: `usermod --add-subuids 100000-165535 --add-subgids 100000-165535 NAME` (ids that \
                 no other user has)",
        special: &[(
            Distro::NixOs,
            "set `users.users.NAME.autoSubUidGidRange = true;` and rebuild",
        )],
        instead: "`overfall run` records the owners that it can't give",
    },
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_cause_has_one_entry() {
        for (at, entry) in TABLE.iter().enumerate() {
            let twice = TABLE[..at].iter().any(|other| other.cause == entry.cause);
            assert!(!twice, "{:?}", entry.cause);
            assert!(!entry.remedy.is_empty() && !entry.words.contains('\n'));
        }
    }

    const ALL: [Distro; 6] = [
        Distro::Debian,
        Distro::Ubuntu,
        Distro::Arch,
        Distro::NixOs,
        Distro::Fedora,
        Distro::Other,
    ];

    #[test]
    fn there_is_something_to_do_everywhere() {
        for entry in TABLE {
            for distro in ALL {
                let remedy = entry.cause.remedy_on(distro);
                assert!(
                    !remedy.is_empty() && !remedy.contains('\n'),
                    "{:?}",
                    entry.cause
                );
                // What is set by a command elsewhere is a matter of the configuration there.
                let by_command = ["sysctl -w", "modprobe ", "usermod", "apt ", "chmod"]
                    .iter()
                    .any(|command| remedy.contains(command));
                assert!(
                    distro != Distro::NixOs || !by_command || entry.cause == Cause::AppArmor,
                    "{:?}: {remedy}",
                    entry.cause
                );
            }
        }
    }

    #[test]
    fn packages_have_the_name_of_the_distribution() {
        for (distro, command) in [
            (Distro::Debian, "apt install "),
            (Distro::Ubuntu, "apt install "),
            (Distro::Arch, "pacman -S "),
            (Distro::Fedora, "dnf install "),
        ] {
            for cause in [Cause::NoFusermount, Cause::NoIdHelpers] {
                assert!(cause.remedy_on(distro).contains(command), "{distro:?}");
            }
        }
    }

    #[test]
    fn remedies_differ_by_distribution() {
        let cause = Cause::UserNamespacesForRootOnly;
        assert!(
            cause
                .remedy_on(Distro::NixOs)
                .contains("security.unprivilegedUsernsClone")
        );
        assert!(cause.remedy_on(Distro::Debian).contains("sysctl"));
    }
}
