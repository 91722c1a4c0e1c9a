//! From the step that failed to the cause.

use super::cause::Cause;
use super::machine::{
    FileSystem, has_seccomp_filter, has_user_namespaces, selinux_enforces, sysctl,
};
use super::notes::{Note, Phase};
use super::verdict::{Outcome, Step};
use crate::options::Options;
use crate::sys::Errno;
use crate::sys::privilege::Privilege;

/// What a diagnosis stands on.
pub(super) struct Findings<'a> {
    pub(super) notes: &'a [Note],
    pub(super) wanted: &'a Options,
    pub(super) privilege: Privilege,
    /// What the upper layer lies on.
    pub(super) upper: FileSystem,
}

impl Findings<'_> {
    /// The cause of the first step that failed; `None` if none did.
    pub(super) fn cause(&self) -> Option<Cause> {
        let (phase, step) = self.notes.iter().find_map(|note| match note {
            Note::Step(phase, step) if matches!(step.outcome, Outcome::Failed { .. }) => {
                Some((*phase, step))
            }
            _ => None,
        })?;
        let errno = step.outcome.errno();
        let full = self.has(|note| matches!(note, Note::Full))
            || matches!(errno, Some(Errno::NOSPC | Errno::DQUOT));
        if full && phase != Phase::Space {
            return Some(Cause::UpperFull);
        }
        Some(match phase {
            Phase::Space => no_namespace(errno),
            Phase::Layout => denied(errno).unwrap_or(Cause::Unknown),
            Phase::Mount => self.not_mounted(step, errno),
            Phase::Work => self.did_not_work(errno),
            Phase::RealMount => self.real_not_mounted(errno),
            Phase::RealWork if errno == Some(Errno::OVERFLOW) => Cause::UnmappedOwners,
            Phase::RealWork => denied(errno).unwrap_or(Cause::Unknown),
            Phase::Owners => Cause::UnmappedOwners,
        })
    }

    fn has(&self, wanted: impl Fn(&Note) -> bool) -> bool {
        self.notes.iter().any(wanted)
    }

    fn not_mounted(&self, step: &Step, errno: Option<Errno>) -> Cause {
        let others_work = self.has(|note| matches!(note, Note::OtherMountsWork));
        match errno {
            Some(Errno::NODEV) => Cause::NoOverlay,
            Some(Errno::PERM | Errno::ACCESS) if !others_work => no_mounts(),
            Some(Errno::PERM) if self.privilege != Privilege::Machine => Cause::NotInUserNamespaces,
            Some(Errno::PERM | Errno::ACCESS) => denied(errno).unwrap_or(Cause::Unknown),
            Some(Errno::INVAL) => match &step.outcome {
                Outcome::Failed { detail, .. } if detail.contains("Unknown parameter") => {
                    Cause::UnknownOption
                }
                _ if self.upper != FileSystem::Other => Cause::UpperFileSystem,
                _ if !self.wanted.settings().is_empty() => Cause::UnknownOption,
                _ => Cause::Unknown,
            },
            _ if self.has(|note| matches!(note, Note::NoAttributes)) => {
                Cause::UpperWithoutAttributes
            }
            _ if self.upper != FileSystem::Other => Cause::UpperFileSystem,
            _ => Cause::Unknown,
        }
    }

    fn did_not_work(&self, errno: Option<Errno>) -> Cause {
        if self.has(|note| matches!(note, Note::NoAttributes)) {
            Cause::UpperWithoutAttributes
        } else if self.has(|note| matches!(note, Note::NoFileTypes)) {
            Cause::UpperWithoutFileTypes
        } else if let Some(cause) = denied(errno) {
            cause
        } else {
            Cause::UpperFileSystem
        }
    }

    fn real_not_mounted(&self, errno: Option<Errno>) -> Cause {
        let wanted = self.wanted;
        let layers = wanted.lower.len() + wanted.data_only.len();
        match errno {
            Some(Errno::INVAL) if wanted.upper.is_none() && layers == 1 => Cause::SingleLower,
            Some(Errno::INVAL)
                if self.privilege != Privilege::Machine
                    && self.has(|note| matches!(note, Note::SubmountsBelow(_))) =>
            {
                Cause::LockedSubmounts
            }
            Some(Errno::INVAL) if self.stacked() => Cause::NestedTooDeep,
            Some(Errno::INVAL) => Cause::LowerFileSystem,
            _ => denied(errno).unwrap_or(Cause::Unknown),
        }
    }

    fn stacked(&self) -> bool {
        let mut layers = self.wanted.lower.iter().chain(&self.wanted.data_only);
        layers.any(|lower| FileSystem::of(lower) == FileSystem::Overlay)
    }
}

/// Why no user or mount namespace could be made.
pub(crate) fn no_namespace(errno: Option<Errno>) -> Cause {
    if !has_user_namespaces() {
        Cause::NoUserNamespaces
    } else if sysctl("kernel.unprivileged_userns_clone") == Some(0) {
        Cause::UserNamespacesForRootOnly
    } else if matches!(errno, Some(Errno::NOSPC | Errno::USERS))
        || sysctl("user.max_user_namespaces") == Some(0)
    {
        Cause::UserNamespacesUsedUp
    } else if matches!(errno, Some(Errno::INVAL | Errno::NOSYS)) {
        Cause::NoUserNamespaces
    } else {
        no_mounts()
    }
}

/// Why a process that should be able to mount isn't.
fn no_mounts() -> Cause {
    if sysctl("kernel.apparmor_restrict_unprivileged_userns") == Some(1) {
        Cause::AppArmor
    } else if has_seccomp_filter() {
        Cause::Seccomp
    } else if selinux_enforces() {
        Cause::SeLinux
    } else {
        Cause::Unknown
    }
}

/// Who denied it, where nothing that the trial knows of does.
fn denied(errno: Option<Errno>) -> Option<Cause> {
    let denied = matches!(errno, Some(Errno::ACCESS | Errno::PERM));
    (denied && selinux_enforces()).then_some(Cause::SeLinux)
}

#[cfg(test)]
mod tests {
    use super::super::verdict::Failure;
    use super::*;

    fn failed(phase: Phase, errno: Errno) -> Note {
        let outcome = Failure::call("x", errno).into();
        Note::Step(
            phase,
            Step {
                name: "x".to_owned(),
                outcome,
            },
        )
    }

    fn cause(notes: &[Note], privilege: Privilege, upper: FileSystem) -> Option<Cause> {
        let wanted = Options {
            upper: Some("/u".into()),
            ..Options::default()
        };
        Findings {
            notes,
            wanted: &wanted,
            privilege,
            upper,
        }
        .cause()
    }

    #[test]
    fn causes_are_told_apart() {
        let other = FileSystem::Other;
        let inside = Privilege::None;
        let cases = [
            (vec![], inside, other, None),
            (
                vec![failed(Phase::Mount, Errno::NODEV)],
                inside,
                other,
                Some(Cause::NoOverlay),
            ),
            (
                vec![failed(Phase::Mount, Errno::PERM), Note::OtherMountsWork],
                inside,
                other,
                Some(Cause::NotInUserNamespaces),
            ),
            (
                vec![failed(Phase::Mount, Errno::INVAL), Note::OtherMountsWork],
                inside,
                FileSystem::NoUpper,
                Some(Cause::UpperFileSystem),
            ),
            (
                vec![Note::NoAttributes, failed(Phase::Work, Errno::IO)],
                inside,
                other,
                Some(Cause::UpperWithoutAttributes),
            ),
            (
                vec![failed(Phase::Work, Errno::NOSPC)],
                inside,
                other,
                Some(Cause::UpperFull),
            ),
            (
                vec![failed(Phase::Space, Errno::NOSPC)],
                inside,
                other,
                Some(Cause::UserNamespacesUsedUp),
            ),
            (
                vec![
                    failed(Phase::RealMount, Errno::INVAL),
                    Note::SubmountsBelow("/proc".to_owned()),
                ],
                inside,
                other,
                Some(Cause::LockedSubmounts),
            ),
            (
                vec![failed(Phase::Owners, Errno::ACCESS)],
                inside,
                other,
                Some(Cause::UnmappedOwners),
            ),
        ];
        for (notes, privilege, upper, wanted) in cases {
            assert_eq!(cause(&notes, privilege, upper), wanted, "{notes:?}");
        }
    }
}
