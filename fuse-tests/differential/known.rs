//! The differences that may be: each with its reason. Everything else is a finding.
//!
//! Some are kept out of the sequences or of the comparison instead, since they'd drive the two
//! sides apart:
//!
//! - `O_TMPFILE` is never asked for: the FUSE library has no such request.
//! - A file opened for writing is copied up by the kernel at the open and by overfall at the first
//!   write; `execute.rs` brings both to the same point after each such open.
//! - Direct I/O is done in whole blocks only: FUSE doesn't insist on that, other file systems do.
//! - Special files aren't changed through descriptors: the kernel copies up one that was unlinked
//!   and gives it its name back.
//! - A mapping is synced after each write: FUSE sets the time of the last change only then.
//! - A rename over a full directory that fails may touch the source's directory on ext4; both sides
//!   do after it.
//! - Directories aren't read(2): the error depends on where a listing left the descriptor.
//! - Shared mappings are kept only of descriptors open for writing: a mapping made before the
//!   copy-up shows old data in the kernel's overlay and new data in overfall.
//! - In a user namespace, a write through a mapping takes setuid and setgid off: what the kernel
//!   writes back comes from our server, which isn't the machine's root. A case has one or the other.
//! - Root's write to a file with capabilities takes setuid and setgid off with them: FUSE doesn't
//!   tell it from chown(2) to nobody. A case has one or the other.
//! - The value of `origin` is a file handle or empty, as the mounter's rights allow.
//! - Names that are listed but aren't there are left out of listings: the kernel shows the
//!   whiteouts in a directory that is in one layer only.
//! - fallocate(2) is asked for what FUSE has: `KEEP_SIZE`, `PUNCH_HOLE`, `ZERO_RANGE`.
//! - truncate(2) to the size that a file has isn't done: whether that sets the time of the last change
//!   is up to the file system, and FUSE doesn't tell it from an open with `O_TRUNC`.
//! - Without privilege, a link made to a copied-up file has another `st_ino` in the kernel's overlay
//!   than the file; in overfall it has the same. Numbers aren't compared after that.
//! - A rename that fails may leave an `opaque` mark on a directory that needs none; overfall marks
//!   only what it moves.
//! - The kernel takes the `impure` mark off a directory when it lists it and finds nothing that was
//!   copied up; overfall leaves it, which costs a listing a look at each name.
//! - `d_ino` isn't compared where a layer has hard links. Each name of a lower one is a node of its
//!   own, and in a listing with attributes the FUSE library has one number for `d_ino` and node.
//! - Access times aren't compared: a read that the page cache answers doesn't reach us.

use super::execute::Outcome;
use super::ops::{On, Op, Step};

/// A difference in the result of an operation.
pub(crate) struct Known {
    /// Why it is there.
    pub(crate) why: &'static str,
    /// What is done about it.
    pub(crate) then: Then,
    applies: fn(&Step, &Outcome, &Outcome) -> bool,
}

/// How a case goes on after a known difference.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Then {
    /// As if nothing had been.
    GoOn,
    /// Without the open descriptors: in one of them, or more, the two sides have drifted apart.
    Close,
    /// Not at all: the trees have drifted apart.
    End,
}

/// How far file systems allocate ahead of the data.
const AHEAD: u64 = 1 << 17;

const KNOWN: &[Known] = &[
    Known {
        why: "the kernel's copy-up keeps only holes that begin at a whole megabyte, ours keeps all",
        then: Then::GoOn,
        applies: |step, kernel, overfall| {
            let (kernel, overfall) = (place(kernel), place(overfall));
            let near = kernel
                .zip(overfall)
                .is_some_and(|(a, b)| a.abs_diff(b) <= AHEAD);
            match step.op {
                Op::Seek { hole: true, .. } => near || overfall <= kernel,
                Op::Seek { hole: false, .. } => near || kernel <= overfall,
                _ => false,
            }
        },
    },
    Known {
        why: "an open file of a lower layer that was unlinked can't be changed in the kernel's overlay",
        then: Then::Close,
        applies: |step, kernel, overfall| {
            let on = match &step.op {
                Op::Chmod { on, .. }
                | Op::Chown { on, .. }
                | Op::Utimens { on, .. }
                | Op::Setxattr { on, .. }
                | Op::Removexattr { on, .. } => on,
                _ => return false,
            };
            matches!(on, On::Slot(_))
                && matches!(
                    kernel.result,
                    Err(libc::EEXIST | libc::ENOENT | libc::ENOTDIR)
                )
                && matches!(overfall.result, Ok(_) | Err(libc::ENOENT))
        },
    },
    Known {
        why: "an open file of a lower layer that was unlinked still has its links in the kernel's overlay",
        then: Then::GoOn,
        applies: |step, kernel, overfall| {
            let (Ok(kernel), Ok(overfall)) = (&kernel.result, &overfall.result) else {
                return false;
            };
            let without_links = |text: &str| {
                let (before, links) = text.split_once(" nlink ")?;
                let (links, after) = links.split_once(' ')?;
                Some((format!("{before} {after}"), links.to_owned()))
            };
            let (kernel, overfall) = (without_links(kernel), without_links(overfall));
            matches!(
                step.op,
                Op::Stat {
                    on: On::Slot(_),
                    ..
                }
            ) && kernel
                .zip(overfall)
                .is_some_and(|(kernel, overfall)| kernel.0 == overfall.0 && overfall.1 == "0")
        },
    },
    Known {
        why: "a whiteout in a directory that is in one layer alone is in the kernel's way",
        then: Then::End,
        applies: |step, kernel, overfall| {
            matches!(step.op, Op::Rmdir { .. } | Op::Rename { .. })
                && matches!(kernel.result, Err(libc::ENOTEMPTY | libc::EEXIST))
                && overfall.result.is_ok()
        },
    },
    Known {
        why: "without privilege the kernel loses track of a copied-up file with a second name",
        then: Then::End,
        applies: |step, kernel, overfall| {
            matches!(step.op, Op::Rename { .. })
                && kernel.result == Err(libc::ESTALE)
                && overfall.result.is_ok()
        },
    },
    Known {
        why: "FUSE lets a stranger change a file's owner to nothing, which does nothing",
        then: Then::GoOn,
        applies: |step, kernel, overfall| {
            matches!(
                step.op,
                Op::Chown {
                    uid: None,
                    gid: None,
                    ..
                }
            ) && kernel.result == Err(libc::EPERM)
                && overfall.result.is_ok()
        },
    },
    Known {
        why: "xfs says EEXIST of a directory that isn't empty",
        then: Then::GoOn,
        applies: |step, kernel, overfall| {
            matches!(step.op, Op::Rmdir { .. } | Op::Rename { .. })
                && kernel.result == Err(libc::EEXIST)
                && overfall.result == Err(libc::ENOTEMPTY)
        },
    },
];

/// Where a seek for data or a hole ended; nowhere is the farthest.
fn place(outcome: &Outcome) -> Option<u64> {
    match &outcome.result {
        Ok(text) => text.strip_prefix("at ")?.parse().ok(),
        Err(libc::ENXIO) => Some(u64::MAX),
        Err(_) => None,
    }
}

/// The table's entry for a difference.
pub(crate) fn find(step: &Step, kernel: &Outcome, overfall: &Outcome) -> Option<&'static Known> {
    KNOWN
        .iter()
        .find(|known| (known.applies)(step, kernel, overfall))
}
