//! `overfall umount`.

use std::path::PathBuf;
use std::process::ExitCode;

use crate::{Result, backend};

/// Unmount an overlay and wait until everything is written
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Where it is mounted
    target: PathBuf,
}

pub(super) fn run(args: Args) -> Result<ExitCode> {
    backend::unmount(&args.target)?;
    Ok(ExitCode::SUCCESS)
}
