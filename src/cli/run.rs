//! `overfall run`.

use std::ffi::{OsStr, OsString};
use std::io::{IsTerminal, Write};
use std::path::PathBuf;
use std::process::ExitCode;

use nix::sys::signal::Signal;

use super::BackendArg;
use crate::Result;
use crate::container::{
    Access, Bind, Command, Ended, Identity, Report, Run, State, die_of, parse_variable,
};

/// Run a command in a writable, throw-away view of this machine or of another root
///
/// The command sees the merged tree as its root: it may change and remove everything, and nothing
/// outside changes. A plain user is root in there.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Exit code: the command's own, or its signal; 127 not found, 126 not executable; 2 when overfall \
itself fails, with one line on stderr.")]
pub(super) struct Args {
    /// The directory that becomes the root
    #[arg(
        long,
        value_name = "DIR",
        default_value = "/",
        help_heading = "The tree"
    )]
    root: PathBuf,

    /// A layer on top of the root; repeated: the first one is the topmost
    #[arg(long, value_name = "DIR", help_heading = "The tree")]
    lower: Vec<PathBuf>,

    /// Keep what changes in DIR; another run with it goes on from there
    #[arg(long, value_name = "DIR", help_heading = "The tree")]
    keep: Option<PathBuf>,

    /// Show DIR as it is: changes in it are real
    #[arg(long, value_name = "DIR", help_heading = "The tree")]
    bind: Vec<PathBuf>,

    /// Show DIR as it is, read-only
    #[arg(long, value_name = "DIR", help_heading = "The tree")]
    bind_ro: Vec<PathBuf>,

    /// Who carries the tree
    #[arg(
        long,
        value_name = "WHO",
        default_value = "auto",
        help_heading = "The tree"
    )]
    backend: BackendArg,

    /// Start in DIR, a path inside [default: the current directory if it exists inside, else /]
    #[arg(long, value_name = "DIR", help_heading = "The command")]
    chdir: Option<PathBuf>,

    /// Set a variable of the environment; the others are passed on
    #[arg(long, value_name = "NAME=VALUE", help_heading = "The command")]
    env: Vec<OsString>,

    /// Stay yourself instead of being root inside (for plain users)
    #[arg(long, help_heading = "The command")]
    as_user: bool,

    /// The command and its arguments [default: $SHELL, or /bin/sh]
    #[arg(trailing_var_arg = true, value_name = "CMD")]
    command: Vec<OsString>,
}

pub(super) fn run(args: Args) -> Result<ExitCode> {
    let summary_wanted = std::io::stderr().is_terminal();
    let mut run = plan(args)?;
    if summary_wanted {
        run = run.count_changes();
    }
    let report = run.execute()?;
    if summary_wanted {
        say(&report);
    }
    Ok(ExitCode::from(match report.ended {
        Ended::Exited(code) => code,
        Ended::Killed(signal) => die_of(signal),
        Ended::NotStarted => 2,
    }))
}

fn plan(args: Args) -> Result<Run> {
    let mut command = Command::new(args.command);
    for variable in &args.env {
        let (key, value) = parse_variable(OsStr::new(variable))?;
        command = command.env(key, value);
    }
    if let Some(directory) = args.chdir {
        command = command.directory(directory);
    }
    let writable = args.bind.into_iter().map(|path| (path, Access::Writable));
    let read_only = args
        .bind_ro
        .into_iter()
        .map(|path| (path, Access::ReadOnly));
    let binds = writable
        .chain(read_only)
        .map(|(path, access)| Bind { path, access })
        .collect();
    let identity = if args.as_user {
        Identity::Oneself
    } else {
        Identity::FakeRoot
    };
    Ok(Run::new(command)
        .root(args.root)
        .lowers(args.lower)
        .binds(binds)
        .identity(identity)
        .backend(args.backend.into())
        .state(args.keep.map_or(State::Temporary, State::Kept)))
}

/// `overfall: fuse; 3 added, 1 changed, 2 removed`
fn say(report: &Report) {
    if let (Some(carrier), Some(changes)) = (report.carrier, report.changes) {
        // Behind the `^C` that the terminal shows.
        let start = match report.ended {
            Ended::Killed(Signal::SIGINT | Signal::SIGQUIT) => "\n",
            _ => "",
        };
        // A terminal that has gone doesn't change how the command ended.
        let _ = writeln!(std::io::stderr(), "{start}overfall: {carrier}; {changes}");
    }
}
