//! The differences that may be: each with its reason. Everything else is a finding.
//!
//! Some are kept out of the sequences or of the comparison instead, since they'd drive the two
//! sides apart:
//!
//! - `O_TMPFILE` is never asked for: the FUSE library has no such request.
//! - A file opened for writing is copied up by the kernel at the open and by overfall at the first
//!   write; `execute.rs` brings both to the same point after each such open.
//! - Direct I/O is done in whole blocks only: FUSE doesn't insist on that, other file systems do.
//! - Shared mappings are kept only of descriptors open for writing: a mapping made before the
//!   copy-up shows old data in the kernel's overlay and new data in overfall.
//! - The value of `origin` is a file handle or empty, as the mounter's rights allow.
//! - Names that are listed but aren't there are left out of listings: the kernel shows the
//!   whiteouts in a directory that is in one layer only.
//! - fallocate(2) is asked for what FUSE has: `KEEP_SIZE`, `PUNCH_HOLE`, `ZERO_RANGE`.
//! - Without privilege, a link made to a copied-up file has another `st_ino` in the kernel's overlay
//!   than the file; in overfall it has the same. Numbers aren't compared after that.
//! - The kernel takes the `impure` mark off a directory when it lists it and finds nothing that was
//!   copied up; overfall leaves it, which costs a listing a look at each name.
//! - `d_ino` isn't compared where a layer has hard links. Each name of a lower one is a node of its
//!   own, and in a listing with attributes the FUSE library has one number for `d_ino` and node.
//! - Access times aren't compared: a read that the page cache answers doesn't reach us.

use super::execute::Outcome;
use super::ops::{Op, Step};

/// A difference in the result of an operation that changes nothing.
pub(crate) struct Known {
    /// Why it is there.
    pub(crate) why: &'static str,
    applies: fn(&Step, &Outcome, &Outcome) -> bool,
}

const KNOWN: &[Known] = &[Known {
    why: "the kernel's copy-up keeps only holes that begin at a whole megabyte, ours keeps all",
    applies: |step, kernel, overfall| match step.op {
        Op::Seek { hole: true, .. } => place(overfall) <= place(kernel),
        Op::Seek { hole: false, .. } => place(kernel) <= place(overfall),
        _ => false,
    },
}];

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
