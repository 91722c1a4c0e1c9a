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
//! - Access times aren't compared: a read that the page cache answers doesn't reach us.

use super::execute::Outcome;
use super::ops::Step;

/// A difference in the result of an operation that changes nothing.
pub(crate) struct Known {
    /// Why it is there.
    pub(crate) why: &'static str,
    applies: fn(&Step, &Outcome, &Outcome) -> bool,
}

const KNOWN: &[Known] = &[];

/// The table's entry for a difference.
pub(crate) fn find(step: &Step, kernel: &Outcome, overfall: &Outcome) -> Option<&'static Known> {
    KNOWN
        .iter()
        .find(|known| (known.applies)(step, kernel, overfall))
}
