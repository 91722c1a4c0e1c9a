//! `overfall vagga _run`.

use std::ffi::OsString;
use std::path::PathBuf;
use std::process::ExitCode;

use super::MeansArg;
use crate::Result;
use crate::container::{Ended, die_of, parse_variable};
use crate::say::say;
use crate::vagga::{RunPlan, Wishes, Writing, variable_name};

/// Run a command in a built container
///
/// Its root is read-only, or with -W a writable copy that costs nothing and goes away at the end.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Exit code: the command's own, or its signal; 127 not found, 126 not executable; 2 when overfall \
itself fails, with one line on stderr.")]
pub(super) struct Args {
    /// Let the command write to the root, and throw that away at the end
    #[arg(short = 'W', long, visible_alias = "writable")]
    writeable: bool,

    /// Keep what -W throws away, and say how to go on in it
    #[arg(long, conflicts_with = "resume")]
    keep: bool,

    /// Go on in a copy that was kept
    #[arg(long, value_name = "COPY")]
    resume: Option<OsString>,

    /// Who carries the writable root, and snapshots whose volume doesn't say
    #[arg(long, value_name = "WHO", default_value = "auto")]
    overlay: MeansArg,

    /// Set a variable of the environment
    #[arg(
        short = 'E',
        long = "environ",
        visible_alias = "env",
        value_name = "NAME=VALUE"
    )]
    set: Vec<OsString>,

    /// Pass a variable of the environment on
    #[arg(short = 'e', long = "use-env", value_name = "NAME")]
    pass: Vec<OsString>,

    /// Start in DIR, relative to /work [default: where you are in the project]
    #[arg(long, value_name = "DIR")]
    work_dir: Option<PathBuf>,

    /// The container's name in vagga.yaml
    container: String,

    /// The command and its arguments
    #[arg(
        trailing_var_arg = true,
        allow_hyphen_values = true,
        required = true,
        value_name = "CMD"
    )]
    command: Vec<OsString>,
}

pub(super) fn run(args: Args) -> Result<ExitCode> {
    let writing = match (args.resume, args.keep, args.writeable) {
        (Some(name), _, _) => Writing::Resumed(name),
        (None, true, _) => Writing::Kept,
        (None, false, true) => Writing::Transient,
        (None, false, false) => Writing::Refused,
    };
    let project = super::project()?;
    let plan = RunPlan {
        project: &project,
        container: &args.container,
        writing,
        means: args.overlay.into(),
        words: args.command,
        wishes: Wishes {
            set: args
                .set
                .iter()
                .map(|text| parse_variable(text))
                .collect::<Result<_>>()?,
            pass: args
                .pass
                .iter()
                .map(|text| variable_name(text))
                .collect::<Result<_>>()?,
        },
        directory: args.work_dir,
    };
    let outcome = plan.execute()?;
    if let Some(kept) = &outcome.kept {
        let name = kept.display();
        say(format_args!(
            "kept; go on with: overfall vagga _run --resume {name} {} CMD",
            args.container
        ));
    }
    Ok(ExitCode::from(match outcome.ended {
        Ended::Exited(code) => code,
        Ended::Killed(signal) => die_of(signal),
        Ended::NotStarted => 2,
    }))
}
