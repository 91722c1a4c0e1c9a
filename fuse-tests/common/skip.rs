//! Ending a case that can't run here.

use std::panic::{panic_any, set_hook, take_hook};

/// What such a case panics with: why it can't.
pub(crate) struct Skip(pub(crate) String);

/// Ends the running case as skipped.
pub(crate) fn skip(reason: impl Into<String>) -> ! {
    panic_any(Skip(reason.into()))
}

/// Has panics reported as before, but not those that skip a case.
pub(crate) fn report_no_skips() {
    let usual = take_hook();
    set_hook(Box::new(move |info| {
        if !info.payload().is::<Skip>() {
            usual(info);
        }
    }));
}
