//! What is left of the work when the server is killed, the power fails, a disk is full or failing.
//!
//! `cargo test --test crash` kills the server a few times; `OVERFALL_CRASH=ci` does more of
//! everything; `cargo test --test crash -- --kills N --seed S kills` any number, with the choices of
//! an earlier run.
//!
//! What may be asked for:
//!
//! - The server caches no writes: a call that returned has changed the upper layer, and a killed
//!   process takes nothing of that along. So after a kill every call that returned must be there,
//!   fsync or not.
//! - The call that each writer was in has happened or has not. Only a write(2) may be half done:
//!   the kernel lets a killed process stop between two pages, on every file system. What is there
//!   is then a beginning of that write, and everything else in the file is as it was.
//! - A copy-up has no part that can be seen: neither in the mount nor in the upper.
//! - After a power failure what was fsynced is there, and a file that was copied up has the whole
//!   of its lower data or is still in the lower layer. What was not fsynced may be missing.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // a test fails by panicking

#[allow(dead_code, unused_imports)] // each test binary uses its part
#[path = "../common/mod.rs"]
mod common;

mod disk;
mod full;
mod inject;
mod kills;
mod layers;
mod model;
mod operations;
mod power;
mod shared;
mod tracer;
mod writer;

use std::os::unix::process::CommandExt;
use std::process::{Command, ExitCode};

use rustix::fs::Mode;

/// How many kills for each kind of user.
pub(crate) const KILLS: &str = "OVERFALL_CRASH_KILLS";
/// What chance starts from.
pub(crate) const SEED: &str = "OVERFALL_CRASH_SEED";

fn main() -> ExitCode {
    match own_options() {
        Ok(None) => {}
        Ok(Some(mut again)) => {
            // The harness doesn't know our options; a plain user's part reads the environment.
            eprintln!("running it again: {}", again.exec());
            return ExitCode::FAILURE;
        }
        Err(why) => {
            eprintln!("{why}");
            return ExitCode::from(2);
        }
    }
    // What the writers' models expect.
    rustix::process::umask(Mode::from_raw_mode(0o022));
    common::suite::main(&[
        ("kills", kills::CASES),
        ("inject", inject::CASES),
        ("full", full::CASES),
        ("power", power::CASES),
    ])
}

/// This very command with our options moved to the environment, if there are any.
fn own_options() -> Result<Option<Command>, String> {
    let mut command = Command::new(std::env::current_exe().map_err(|e| e.to_string())?);
    let mut found = false;
    let mut arguments = std::env::args_os().skip(1);
    while let Some(argument) = arguments.next() {
        let variable = match argument.to_str() {
            Some("--kills") => KILLS,
            Some("--seed") => SEED,
            _ => {
                command.arg(argument);
                continue;
            }
        };
        let number = arguments.next().and_then(|value| value.into_string().ok());
        let number = number.filter(|value| value.parse::<u64>().is_ok());
        let number =
            number.ok_or_else(|| format!("{}: a number is missing", argument.display()))?;
        command.env(variable, number);
        found = true;
    }
    Ok(found.then_some(command))
}

/// Whether as much is wanted as fits into a run of the CI.
pub(crate) fn thorough() -> bool {
    std::env::var_os("OVERFALL_CRASH").is_some_and(|value| value == "ci")
}

/// What chance starts from in this run.
pub(crate) fn seed() -> u64 {
    number(SEED).unwrap_or_else(|| u64::from(std::process::id()))
}

/// A number from the environment.
pub(crate) fn number(variable: &str) -> Option<u64> {
    std::env::var(variable).ok()?.parse().ok()
}
