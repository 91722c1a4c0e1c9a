//! `overfall upgrade-layer`.

use std::path::PathBuf;
use std::process::ExitCode;

use crate::Result;
use crate::dotted::{self, Upgraded};

/// Bring an upper layer from overfall's fallback form to the kernel's
///
/// Where a file system couldn't hold the kernel's form, overfall has written names that begin with
/// `.wh.` instead. This turns them into what the kernel's overlay reads, and checks it; the layer
/// must not be mounted. When it was interrupted, it is run again. Where the kernel's form still
/// isn't possible, nothing is changed.
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:\n  overfall upgrade-layer /srv/up --workdir /srv/work")]
pub(super) struct Args {
    /// The upper directory, or a layer that once was one
    upper: PathBuf,

    /// Its work directory, if it has one: that keeps the kernel's overlay away until then
    #[arg(long, value_name = "DIR")]
    workdir: Option<PathBuf>,
}

pub(super) fn run(args: Args) -> Result<ExitCode> {
    let said = match dotted::upgrade(&args.upper, args.workdir.as_deref())? {
        Upgraded::WasAlready => "in the kernel's form already".to_owned(),
        Upgraded::Now { whiteouts, opaque } => format!(
            "in the kernel's form now: {whiteouts} whiteouts made, {opaque} directories marked opaque"
        ),
    };
    super::print(&format!("{}: {said}\n", args.upper.display()))?;
    Ok(ExitCode::SUCCESS)
}
