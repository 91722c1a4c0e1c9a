//! `overfall check`.

use std::process::ExitCode;

use crate::{Error, Result};

/// Tell what this machine can do, and why not
#[derive(Debug, clap::Args)]
pub(super) struct Args {}

pub(super) fn run(_args: Args) -> Result<ExitCode> {
    Err(Error::usage("check"))
}
