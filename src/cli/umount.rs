//! `overfall umount`.

use std::process::ExitCode;

use crate::{Error, Result};

/// Unmount an overlay and wait until everything is written
#[derive(Debug, clap::Args)]
pub(super) struct Args {}

pub(super) fn run(_args: Args) -> Result<ExitCode> {
    Err(Error::usage("umount"))
}
