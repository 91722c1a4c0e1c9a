//! Proves what works on this machine: never by a version number, always by doing it.

mod attempt;
mod privilege;

pub(crate) use attempt::{Refusal, attempt};
pub use privilege::Privilege;
