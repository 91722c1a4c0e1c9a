//! What people are told on stderr. The standard macros panic where it can't be written, and a full
//! disk or a reader that has gone away must not change what is done, nor the exit code.

use std::fmt::Display;
use std::io::Write as _;

/// Tells one line.
pub(crate) fn say(line: impl Display) {
    // There is nowhere to tell that it can't be told.
    let _ = writeln!(std::io::stderr(), "overfall: {line}");
}
