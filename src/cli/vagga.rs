//! `overfall vagga …`: the names of its commands are vagga's.

mod build;
mod clean;
mod run;
mod support;

use std::process::ExitCode;

use clap::{Subcommand, ValueEnum};

use crate::Result;
use crate::snapshot::Means;
use crate::vagga::Project;

/// What vagga planned to do with overlays, in a project of vagga's
///
/// Works with the containers that an unpatched vagga has built.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    #[command(subcommand)]
    command: VaggaCommand,
}

#[derive(Debug, Subcommand)]
enum VaggaCommand {
    #[command(name = "_run")]
    Run(run::Args),
    #[command(name = "_build")]
    Build(build::BuildArgs),
    #[command(name = "_steps")]
    Steps(build::StepsArgs),
    #[command(name = "_mount")]
    Mount(build::MountArgs),
    #[command(name = "_clean")]
    Clean(clean::Args),
    #[command(name = "_check_overlayfs_support")]
    Support(support::Args),
}

/// `--overlay`, as typed.
#[derive(Debug, Clone, Copy, ValueEnum)]
enum MeansArg {
    /// The first of the others that works here
    Auto,
    /// The kernel's overlayfs
    Kernel,
    /// The FUSE server
    Fuse,
    /// A copy of everything
    Copy,
}

impl From<MeansArg> for Means {
    fn from(arg: MeansArg) -> Self {
        match arg {
            MeansArg::Auto => Means::Auto,
            MeansArg::Kernel => Means::Kernel,
            MeansArg::Fuse => Means::Fuse,
            MeansArg::Copy => Means::Copy,
        }
    }
}

pub(super) fn run(args: Args) -> Result<ExitCode> {
    match args.command {
        VaggaCommand::Run(args) => run::run(args),
        VaggaCommand::Build(args) => build::build(&args),
        VaggaCommand::Steps(args) => build::steps(&args),
        VaggaCommand::Mount(args) => build::mount(&args),
        VaggaCommand::Clean(args) => clean::run(&args),
        VaggaCommand::Support(args) => support::run(&args),
    }
}

/// The project that the user is in.
fn project() -> Result<Project> {
    Project::find(std::path::Path::new("."))
}
