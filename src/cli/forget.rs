//! `overfall forget`.

use std::path::PathBuf;
use std::process::ExitCode;

use crate::{Result, backend};

/// Make a mount read its layers anew, after they were changed under it
///
/// Only for a mount that our FUSE server carries: it remembers what it has read from the layers
/// for as long as it runs. `-o timeout=SECONDS` makes it look by itself.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Where it is mounted
    target: PathBuf,
}

pub(super) fn run(args: Args) -> Result<ExitCode> {
    backend::forget(&args.target)?;
    Ok(ExitCode::SUCCESS)
}
