//! `overfall umount`.

use std::path::PathBuf;
use std::process::ExitCode;

use crate::say::say;
use crate::{Result, backend};

/// Unmount an overlay and wait until everything is written
///
/// With --all, every overlay that `overfall list` has in its place `here` or `dead` and that is yours
/// and not your root. One that is in use stays, with a line on stderr and exit code 2, and the others
/// go.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Where it is mounted
    #[arg(required_unless_present = "all", conflicts_with = "all")]
    target: Option<PathBuf>,
    /// Unmount all of yours
    #[arg(long)]
    all: bool,
}

pub(super) fn run(args: Args) -> Result<ExitCode> {
    if let Some(target) = args.target {
        backend::unmount(&target)?;
        return Ok(ExitCode::SUCCESS);
    }
    let failures = backend::unmount_all()?;
    for failure in &failures {
        say(failure);
    }
    Ok(ExitCode::from(if failures.is_empty() { 0 } else { 2 }))
}
