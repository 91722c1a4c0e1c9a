//! What an upper layer changed, read from the layers alone: nothing has to be mounted.

mod layer;
mod walk;

use std::fmt;
use std::ops::AddAssign;
use std::path::{Path, PathBuf};

pub use walk::walk;

use crate::Result;
use crate::format::XattrNamespace;
use crate::union::Owners;

/// What happened to a name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Change {
    /// No lower layer has it.
    Added,
    /// A lower layer has it too; data, attributes or type may differ.
    Changed,
    /// A lower layer has it, the merged tree doesn't. A removed directory is one change, whatever
    /// was in it.
    Removed,
}

/// How many names were changed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Summary {
    /// Names that no lower layer has.
    pub added: u64,
    /// Names that a lower layer has too.
    pub changed: u64,
    /// Names that are gone.
    pub removed: u64,
}

impl Summary {
    fn count(&mut self, change: Change) {
        match change {
            Change::Added => self.added += 1,
            Change::Changed => self.changed += 1,
            Change::Removed => self.removed += 1,
        }
    }
}

impl AddAssign for Summary {
    fn add_assign(&mut self, other: Self) {
        self.added += other.added;
        self.changed += other.changed;
        self.removed += other.removed;
    }
}

impl fmt::Display for Summary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if *self == Self::default() {
            return f.write_str("nothing changed");
        }
        write!(
            f,
            "{} added, {} changed, {} removed",
            self.added, self.changed, self.removed
        )
    }
}

/// Counts what `upper` changed over `lowers` (topmost first).
pub fn summary(
    upper: &Path,
    lowers: &[PathBuf],
    namespace: XattrNamespace,
    owners: Owners,
) -> Result<Summary> {
    let mut summary = Summary::default();
    walk(upper, lowers, namespace, owners, &mut |_, change| {
        summary.count(change);
    })?;
    Ok(summary)
}
