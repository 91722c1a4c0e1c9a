//! `overfall vagga _clean`.

use std::fmt::Write as _;
use std::process::ExitCode;

use crate::container::{Identity, Standing, enter};
use crate::vagga::{Removal, clean_transient};
use crate::{Error, Result};

/// Remove what isn't needed any more
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Writable copies whose run has ended or was killed, kept ones included
    #[arg(long)]
    transient: bool,

    /// Only say what would be removed
    #[arg(short = 'n', long)]
    dry_run: bool,
}

pub(super) fn run(args: &Args) -> Result<ExitCode> {
    if !args.transient {
        return Err(Error::usage("reading the command")
            .because("nothing is to be cleaned")
            .remedy("say --transient"));
    }
    let project = super::project()?;
    let removal = if args.dry_run {
        Removal::DryRun
    } else {
        Removal::Real
    };
    // Much in there belongs to the user's other ids.
    enter(Standing::of_self(), &Identity::FakeRoot)?;
    let removed = clean_transient(&project, removal)?;
    let mut text = String::new();
    for path in removed {
        // Writing to a string never fails.
        let _never = writeln!(text, "{}", path.display());
    }
    crate::cli::print(&text)?;
    Ok(ExitCode::SUCCESS)
}
