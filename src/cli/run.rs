//! `overfall run`.

use std::process::ExitCode;

use crate::{Error, Result};

/// Run a command in a writable, throw-away view of a root
#[derive(Debug, clap::Args)]
pub(super) struct Args {}

pub(super) fn run(_args: Args) -> Result<ExitCode> {
    Err(Error::usage("run"))
}
