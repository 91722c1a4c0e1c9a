//! `overfall mount`.

use std::process::ExitCode;

use crate::{Error, Result};

/// Mount an overlay
#[derive(Debug, clap::Args)]
pub(super) struct Args {}

pub(super) fn run(_args: Args) -> Result<ExitCode> {
    Err(Error::usage("mount"))
}
