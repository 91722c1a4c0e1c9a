//! Proves what works on this machine: never by a version number, always by doing it.
//!
//! [`trial`] does with the kernel's overlay what a user would do, in a forked child, and looks at
//! what that leaves; [`try_fuse`] tries whether a FUSE server could mount. What failed is turned
//! into a [`Cause`], which knows what to change on this distribution.

mod advice;
mod attempt;
mod cause;
mod diagnose;
mod distro;
mod fuse;
mod ids;
mod machine;
mod notes;
mod real;
mod room;
mod space;
mod synthetic;
mod trial;
mod unmapped;
mod upper;
mod verdict;

pub(crate) use attempt::{Refusal, SOURCE as NATIVE_SOURCE, attempt, ms_flags};
pub use cause::Cause;
pub(crate) use diagnose::no_namespace;
pub use fuse::{FuseVerdict, try_fuse};
pub use ids::{IdsVerdict, look_for_ids};
pub use machine::Kernel;
pub use trial::trial;
pub(crate) use trial::trial_in;
pub(crate) use unmapped::Unmapped;
pub use upper::{UpperVerdict, look_at_upper};
pub use verdict::{Outcome, Step, Verdict};
