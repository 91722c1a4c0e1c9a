//! `overfall vagga _check_overlayfs_support`.

use std::process::ExitCode;

use crate::Result;
use crate::options::Options;
use crate::probe::{self, Cause, Kernel};
use crate::say::say;

/// Tell whether the kernel's overlay works here for containers
///
/// `supported` on stdout and 0, or `unsupported` and 1 with an explanation on stderr; then the
/// kernel's version. 2 with nothing on stdout when the trial itself fails.
#[derive(Debug, clap::Args)]
pub(super) struct Args {}

pub(super) fn run(_args: &Args) -> Result<ExitCode> {
    // Where containers would be, if this is a project.
    let near = super::project()
        .ok()
        .map(|project| project.dir().join(".vagga"))
        .filter(|dir| dir.is_dir())
        .unwrap_or_else(std::env::temp_dir);
    let wanted = Options {
        upper: Some(near.clone()),
        work: Some(near.clone()),
        ..Options::default()
    };
    let verdict = probe::trial_in(&near, &wanted)?;
    let kernel = Kernel::current();
    let word = if verdict.supported {
        "supported"
    } else {
        "unsupported"
    };
    if !verdict.supported {
        let cause = verdict.cause.unwrap_or(Cause::Unknown);
        say(format_args!("{}: {}", near.display(), cause.words()));
        say(format_args!("to change that: {}", cause.remedy()));
        say(format_args!("meanwhile: {}", cause.instead()));
    }
    super::super::print(&format!("{word}\n{} {}\n", kernel.release, kernel.version))?;
    Ok(if verdict.supported {
        ExitCode::SUCCESS
    } else {
        ExitCode::from(1)
    })
}
