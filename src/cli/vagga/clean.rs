//! `overfall vagga _clean`.

use std::fmt::Write as _;
use std::process::ExitCode;
use std::time::Duration;

use crate::cli::print;
use crate::container::{Identity, Standing, enter};
use crate::say::say;
use crate::vagga::{self, Removal};
use crate::{Error, Result};

/// Remove what overfall has made and nobody needs any more
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Writable copies whose run has ended or was killed, kept ones included
    #[arg(long)]
    transient: bool,

    /// Containers that no `.vagga/NAME` leads to and that no other container is built on
    #[arg(long)]
    unused: bool,

    /// Layers that no container is made of
    #[arg(long)]
    layers: bool,

    /// With --unused and --layers: what was used more recently stays
    #[arg(long, value_name = "10days", value_parser = age)]
    at_least: Option<Duration>,

    /// Only say what would be removed
    #[arg(short = 'n', long)]
    dry_run: bool,
}

fn age(text: &str) -> std::result::Result<Duration, String> {
    vagga::parse_age(text).ok_or_else(|| "a time such as `10days` or `2h`".to_owned())
}

pub(super) fn run(args: &Args) -> Result<ExitCode> {
    if !args.transient && !args.unused && !args.layers {
        return Err(Error::usage("reading the command")
            .because("nothing is to be cleaned")
            .remedy("say --transient, --unused or --layers"));
    }
    let project = super::project()?;
    let removal = if args.dry_run {
        Removal::DryRun
    } else {
        Removal::Real
    };
    let at_least = args.at_least.unwrap_or_default();
    // Much in there belongs to the user's other ids.
    enter(Standing::of_self(), &Identity::FakeRoot)?;
    let mut text = String::new();
    // Writing to a string never fails.
    if args.transient {
        for path in vagga::clean_transient(&project, removal)? {
            let _never = writeln!(text, "{}", path.display());
        }
    }
    if args.unused {
        let cleaned = vagga::clean_unused(&project, at_least, removal)?;
        for path in cleaned.removed {
            let _never = writeln!(text, "{}", path.display());
        }
        for (base, above) in cleaned.needed {
            say(format_args!(
                "{} stays: {} is built on it",
                base.display(),
                above.display()
            ));
        }
    }
    // Last: a container that has gone needs no layers any more.
    if args.layers {
        for layer in vagga::clean_layers(&project, at_least, removal)? {
            let _never = writeln!(text, "layer {}", layer.name);
        }
    }
    print(&text)?;
    Ok(ExitCode::SUCCESS)
}
