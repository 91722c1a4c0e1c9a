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
//! - A write through a mapping takes capabilities off in overfall, whose server then writes, and not in the kernel's
//!   overlay. A case has one or the other.
//! - Root's write to a file with capabilities takes setuid and setgid off with them: FUSE doesn't
//!   tell it from chown(2) to nobody. A case has one or the other.
//! - Of the caller's groups FUSE tells the first alone: who isn't in the file's group by that one loses its
//!   setgid. Nobody is in two groups where there are such modes.
//! - The value of `origin` is a file handle or empty, as the mounter's rights allow.
//! - Names that are listed but aren't there are left out of listings: the kernel shows the
//!   whiteouts in a directory that is in one layer only.
//! - fallocate(2) that FUSE hasn't may set the time and take setuid and setgid off though it fails; both sides
//!   set the time after that, and a case has one or the other.
//! - truncate(2) to the size that a file has isn't done: whether that sets the time of the last change
//!   is up to the file system, and FUSE doesn't tell it from an open with `O_TRUNC`.
//! - Without privilege, the kernel forgets the number of a copied-up file that nobody uses, when it is short of
//!   memory or somebody drops the caches; overfall keeps it. The new number is taken for the old one.
//! - Without privilege, a link made to a copied-up file has another `st_ino` in the kernel's overlay
//!   than the file; in overfall it has the same. Numbers aren't compared after that.
//! - A rename that fails may leave an `opaque` mark, or a `redirect` to where it is, on a directory that needs
//!   none; overfall marks only what it moves.
//! - A redirect in the same directory is a path instead of a name in the kernel's overlay after a rename to elsewhere that
//!   failed, and in overfall for a copy of a metadata copy whose data has several names. Both lead to the same.
//! - Without privilege, a link made to a copied-up file has permission bits of its own in the kernel's memory: a
//!   setuid set by one name doesn't fall at a truncate by the other. A case has one or the other.
//! - The kernel takes the `impure` mark off a directory when it lists it and finds nothing that was
//!   copied up; overfall leaves it, which costs a listing a look at each name.
//! - With `index=on` and hard links in a lower layer, the kernel copies up the name that was used, and its
//!   directories, and overfall the name that it met first. All names show the same file. Of the uppers, names of such
//!   files, directories that are there for these alone, and the links of directories aren't compared then (nor
//!   how many a merged one shows); all else is, the objects themselves in the index, too.
//! - With `metacopy=on`, the kernel copies data at an open for writing and sets the time; `execute.rs`
//!   evens it out.
//! - Over several file systems no layer has inode flags to begin with: the kernel's copy-up fails where the upper's
//!   file system hasn't them, ours leaves them out.
//! - btrfs sets the time of a hole that is punched into a hole, or doesn't, by what it has in memory; both
//!   sides set it after that.
//! - A block of zeros isn't looked for as data: it is up to the file system whether it is a hole.
//! - A reflink is made as `cp --reflink=auto` does: FUSE has none, so overfall's side copies. The kernel's overlay
//!   takes setuid and setgid off first; a case has one or the other.
//! - statx(2) isn't asked with `AT_STATX_DONT_SYNC`: what FUSE remembers may be from before a write.
//! - Inode flags of special files aren't asked for: the devices' drivers and FUSE refuse in other words.
//! - `d_ino` of anything but directories isn't compared where a layer has hard links. Each name of a lower one is a node of its
//!   own, and in a listing with attributes the FUSE library has one number for `d_ino` and node.
//! - Before Linux 6.7 the kernel's overlay doesn't escape attributes of its own name, and knows no whiteouts that
//!   are attributes: sequences have none there.
//! - FUSE takes fallocate(2)'s `ZERO_RANGE` since Linux 5.14: it is asked for from there on.
//! - Before Linux 5.15 the kernel's overlay doesn't copy inode flags up: none are set there.
//! - Access times aren't compared: a read that the page cache answers doesn't reach us.

use super::execute::Outcome;
use super::layers::Power;
use super::manner::Manner;
use super::ops::{MOVING, On, Op, Step, Whence};

/// A step whose results differ.
pub(crate) struct Met<'a> {
    pub(crate) manner: &'a Manner,
    pub(crate) step: &'a Step,
    pub(crate) kernel: &'a Outcome,
    pub(crate) overfall: &'a Outcome,
    /// Whether the case makes something append-only or immutable.
    pub(crate) protects: bool,
}

impl Met<'_> {
    fn kernel_fails(&self, errors: &[i32]) -> bool {
        matches!(&self.kernel.result, Err(errno) if errors.contains(errno))
    }
}

/// A difference in the result of an operation.
pub(crate) struct Known {
    /// Why it is there.
    pub(crate) why: &'static str,
    /// What is done about it.
    pub(crate) then: Then,
    applies: fn(&Met<'_>) -> bool,
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
        applies: |met| {
            let (kernel, overfall) = (place(met.kernel), place(met.overfall));
            let near = kernel
                .zip(overfall)
                .is_some_and(|(a, b)| a.abs_diff(b) <= AHEAD);
            let hole = Whence::Hole;
            matches!(met.step.op, Op::Seek { whence, .. } if whence == hole)
                && (near || overfall <= kernel)
        },
    },
    Known {
        why: "an open file of a lower layer that was unlinked can't be changed in the kernel's overlay",
        then: Then::Close,
        applies: |met| {
            let change = matches!(
                met.step.op,
                Op::Chmod { .. }
                    | Op::Chown { .. }
                    | Op::Utimens { .. }
                    | Op::Setxattr { .. }
                    | Op::Removexattr { .. }
                    | Op::Flags { set: Some(_), .. }
            );
            change
                && (met.overfall.nameless || met.overfall.result == Err(libc::ENOENT))
                && met.kernel_fails(&[libc::EEXIST, libc::ENOENT, libc::ENOTDIR])
        },
    },
    Known {
        why: "an open file of a lower layer that was unlinked still has its links in the kernel's overlay",
        then: Then::GoOn,
        applies: |met| {
            let (Ok(kernel), Ok(overfall)) = (&met.kernel.result, &met.overfall.result) else {
                return false;
            };
            let without_links = |text: &str| {
                let (before, links) = text.split_once(" nlink ")?;
                let (_, after) = links.split_once(' ')?;
                Some(format!("{before} {after}"))
            };
            let (kernel, overfall) = (without_links(kernel), without_links(overfall));
            met.overfall.nameless && kernel.is_some() && kernel == overfall
        },
    },
    Known {
        why: "a whiteout in a directory that is in one layer alone is in the kernel's way",
        then: Then::End,
        applies: |met| {
            matches!(met.step.op, Op::Rmdir { .. } | Op::Rename { .. })
                && met.kernel_fails(&[libc::ENOTEMPTY, libc::EEXIST])
                && met.overfall.result.is_ok()
        },
    },
    Known {
        why: "without privilege the kernel loses track of a copied-up file with a second name",
        then: Then::End,
        applies: |met| {
            met.manner.power == Power::User
                && matches!(met.step.op, Op::Rename { .. })
                && met.kernel_fails(&[libc::ESTALE])
                && met.overfall.result.is_ok()
        },
    },
    Known {
        why: "FUSE lets a stranger change a file's owner to nothing, which does nothing",
        then: Then::GoOn,
        applies: |met| {
            matches!(
                met.step.op,
                Op::Chown {
                    uid: None,
                    gid: None,
                    ..
                }
            ) && met.kernel_fails(&[libc::EPERM])
                && met.overfall.result.is_ok()
        },
    },
    Known {
        why: "xfs says EEXIST of a directory that isn't empty",
        then: Then::GoOn,
        applies: |met| {
            matches!(met.step.op, Op::Rmdir { .. } | Op::Rename { .. })
                && met.kernel_fails(&[libc::EEXIST])
                && met.overfall.result == Err(libc::ENOTEMPTY)
        },
    },
    Known {
        why: "the kernel counts names that it doesn't show when it is asked how much room a list needs",
        then: Then::GoOn,
        applies: |met| match (&met.step.op, &met.kernel.result, &met.overfall.result) {
            (Op::Listxattr { room: 0, .. }, Ok(kernel), Ok(overfall)) => {
                bytes(kernel) > bytes(overfall)
            }
            (Op::Listxattr { room, .. }, Err(libc::ERANGE), Ok(names)) => {
                *room < 70_000 && names.is_empty()
            }
            _ => false,
        },
    },
    Known {
        why: "append-only and immutable are for an open in the kernel's overlay, for a write in overfall, which sees no open",
        then: Then::End,
        applies: |met| {
            let forbidden = |outcome: &Outcome| outcome.result == Err(libc::EPERM);
            let allowed = |outcome: &Outcome| outcome.result.is_ok();
            met.protects
                && match met.step.op {
                    Op::Open { .. } => forbidden(met.kernel) && allowed(met.overfall),
                    Op::Write { .. }
                    | Op::Truncate {
                        on: On::Slot(_), ..
                    }
                    | Op::Fallocate { .. }
                    | Op::CopyRange { .. }
                    | Op::Clone { .. }
                    | Op::Send { .. } => allowed(met.kernel) && forbidden(met.overfall),
                    _ => false,
                }
        },
    },
    Known {
        why: "append-only and immutable come before permissions and kinds, which the kernel looks at before it asks overfall",
        then: Then::GoOn,
        applies: |met| {
            let first = match met.step.op {
                // access(2) never gets to us, nor flags of a rename that we haven't.
                Op::Access { .. } => matches!(met.overfall.result, Ok(_) | Err(libc::EACCES)),
                // An ACL that isn't there.
                Op::Removexattr { name, .. } if name.starts_with("system.") => {
                    met.overfall.result.is_ok()
                }
                Op::Rename { .. } if met.overfall.result == Err(libc::EINVAL) => true,
                _ => matches!(
                    met.overfall.result,
                    Err(libc::EACCES | libc::EISDIR | libc::ENOTDIR)
                ),
            };
            met.protects && met.kernel_fails(&[libc::EPERM]) && first
        },
    },
    Known {
        why: "what became append-only while it was open isn't mapped to be written in the kernel's overlay; FUSE asks nobody",
        then: Then::End,
        applies: |met| {
            let maps = matches!(met.step.op, Op::Map { .. });
            met.protects && maps && met.kernel_fails(&[libc::EACCES]) && met.overfall.result.is_ok()
        },
    },
    Known {
        why: "where two file systems are in it, the FUSE client does copy_file_range(2) by itself",
        then: Then::End,
        applies: |met| {
            let copies = matches!(met.step.op, Op::CopyRange { .. });
            copies && met.kernel_fails(&[libc::EXDEV]) && met.overfall.result.is_ok()
        },
    },
    Known {
        why: "what another user makes doesn't inherit inode flags of its directory",
        then: Then::GoOn,
        applies: |met| match (&met.step.op, &met.kernel.result, &met.overfall.result) {
            (Op::Flags { set: None, .. }, Ok(kernel), Ok(overfall)) => {
                let ((kernel, owner), (overfall, _)) = (flags(kernel), flags(overfall));
                owner != "0" && overfall.iter().all(|flag| kernel.contains(flag))
            }
            _ => false,
        },
    },
    Known {
        why: "FUSE has no fallocate(2) that moves data",
        then: Then::End,
        applies: |met| moves_data(met) && met.kernel.result.is_ok(),
    },
    Known {
        why: "FUSE has no fallocate(2) that moves data, and doesn't say what is wrong with it",
        then: Then::GoOn,
        applies: moves_data,
    },
];

fn bytes(text: &str) -> Option<u64> {
    text.split(' ').next()?.parse().ok()
}

/// The names of inode flags, and whose file has them.
fn flags(text: &str) -> (Vec<&str>, &str) {
    let (names, owner) = text.split_once(" of ").unwrap_or((text, ""));
    let names = names.split('|').filter(|flag| !flag.is_empty());
    (names.collect(), owner)
}

fn moves_data(met: &Met<'_>) -> bool {
    matches!(met.step.op, Op::Fallocate { mode, .. } if mode & MOVING != 0)
        && met.overfall.result == Err(libc::EOPNOTSUPP)
}

/// Where a seek for data or a hole ended; nowhere is the farthest.
fn place(outcome: &Outcome) -> Option<u64> {
    match &outcome.result {
        Ok(text) => text.strip_prefix("at ")?.parse().ok(),
        Err(libc::ENXIO) => Some(u64::MAX),
        Err(_) => None,
    }
}

/// The table's entry for a difference.
pub(crate) fn find(met: &Met<'_>) -> Option<&'static Known> {
    KNOWN.iter().find(|known| (known.applies)(met))
}
