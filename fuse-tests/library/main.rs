//! The types that a builder of containers uses: `Overlay` as it is called from fresh namespaces,
//! `Snapshot` and `StepCache`.
//!
//! Each case runs in a process of its own, which has one thread: as the machine's root, as root of
//! a user namespace with many ids, as a plain user's root with one id; and by each means. Names are
//! `WAY::MEANS::MODULE::CASE`.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // a test fails by panicking

#[allow(dead_code, unused_imports, unused_macros)] // each test binary uses its part
#[path = "../common/mod.rs"]
mod common;

mod bench;
mod overlay;
mod planted;
mod snapshot;
mod steps;

use std::process::ExitCode;

fn main() -> ExitCode {
    bench::main(&[
        ("overlay", overlay::CASES),
        ("snapshot", snapshot::CASES),
        ("steps", steps::building::CASES),
        ("sharing", steps::sharing::CASES),
        ("damage", steps::damage::CASES),
        ("flat", steps::flat::CASES),
    ])
}
