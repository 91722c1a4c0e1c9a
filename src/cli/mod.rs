//! The command line: one file for each command, with its arguments and its few lines of glue.
//!
//! Exit codes: 0 done; 1 the answer is no (`check`); 2 bad input or a refusing system, with one
//! line on stderr; `run` passes its command's own code on (128 + N for a signal N).

mod check;
mod forget;
mod fuse_program;
mod generate;
mod list;
mod mount;
mod mount_helper;
mod role;
mod run;
mod umount;
mod upgrade_layer;
mod vagga;

use std::process::ExitCode;

use clap::error::{ContextKind, ContextValue, ErrorKind};
use clap::{ArgAction, Parser, Subcommand, ValueEnum};
use log::LevelFilter;

use crate::say::say;
use crate::{Backend, Error, logging};

/// An overlay file system for every kernel.
#[derive(Debug, Parser)]
#[command(name = "overfall", version, about, max_term_width = 100)]
struct Cli {
    /// Tell more on stderr; twice and thrice tell even more (or set OVERFALL_LOG=debug)
    #[arg(short, long, global = true, action = ArgAction::Count)]
    verbose: u8,

    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    Run(run::Args),
    Mount(mount::Args),
    Umount(umount::Args),
    List(list::Args),
    Forget(forget::Args),
    Check(check::Args),
    UpgradeLayer(upgrade_layer::Args),
    Vagga(vagga::Args),
    Generate(generate::Args),
}

/// `--backend`, as typed.
#[derive(Debug, Clone, Copy, ValueEnum)]
enum BackendArg {
    /// The kernel's overlayfs where a trial proves that it works, FUSE otherwise
    Auto,
    /// The kernel's overlayfs
    Native,
    /// The FUSE server
    Fuse,
}

impl From<BackendArg> for Backend {
    fn from(arg: BackendArg) -> Self {
        match arg {
            BackendArg::Auto => Backend::Auto,
            BackendArg::Native => Backend::Native,
            BackendArg::Fuse => Backend::Fuse,
        }
    }
}

/// The exit code for bad input and a refusing system.
const FAILED: u8 = 2;

/// Runs the command that the process was started with.
pub fn main() -> ExitCode {
    let arguments: Vec<_> = std::env::args_os().collect();
    match role::Role::of(&arguments) {
        role::Role::Commands => {}
        role::Role::MountHelper(backend) => return mount_helper::main(arguments, backend),
        role::Role::FuseProgram(program) => return fuse_program::main(arguments, program),
    }
    let cli = match Cli::try_parse_from(arguments) {
        Ok(cli) => cli,
        Err(error) => return not_taken(&error, FAILED),
    };
    start_log(cli.verbose);
    let outcome = match cli.command {
        Command::Run(args) => run::run(args),
        Command::Mount(args) => mount::run(args),
        Command::Umount(args) => umount::run(args),
        Command::List(args) => list::run(args),
        Command::Forget(args) => forget::run(args),
        Command::Check(args) => check::run(args),
        Command::UpgradeLayer(args) => upgrade_layer::run(args),
        Command::Vagga(args) => vagga::run(args),
        Command::Generate(args) => generate::run(args),
    };
    outcome.unwrap_or_else(|error: Error| {
        say(error);
        ExitCode::from(FAILED)
    })
}

/// The log goes to stderr; OVERFALL_LOG says what of it, or else `-v`.
fn start_log(verbose: u8) {
    logging::start(match verbose {
        0 => LevelFilter::Warn,
        1 => LevelFilter::Info,
        2 => LevelFilter::Debug,
        _ => LevelFilter::Trace,
    });
}

/// Prints to stdout. A reader that has gone away is no error.
fn print(text: &str) -> crate::Result<()> {
    use std::io::Write as _;
    let mut out = std::io::stdout();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(error) if error.kind() != std::io::ErrorKind::BrokenPipe => Err(not_written(&error)),
        _ => Ok(()),
    }
}

fn not_written(error: &std::io::Error) -> Error {
    Error::system("writing to stdout").because(error.to_string())
}

/// Ends as a command line asks for that clap doesn't take: with the help that is wanted, or with a
/// line about what is wrong.
fn not_taken(error: &clap::Error, code: u8) -> ExitCode {
    match error.kind() {
        ErrorKind::DisplayHelp | ErrorKind::DisplayVersion => match error.print() {
            Err(error) if error.kind() != std::io::ErrorKind::BrokenPipe => {
                say(not_written(&error));
                ExitCode::from(code)
            }
            _ => ExitCode::SUCCESS,
        },
        ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand => {
            // It is all on stderr.
            let _ = error.print();
            ExitCode::from(code)
        }
        _ => {
            say(first_line(error));
            ExitCode::from(code)
        }
    }
}

/// What is wrong with a command line, without the usage that follows.
fn first_line(error: &clap::Error) -> String {
    let text = error.to_string();
    // What is missing, and which values there are, stands on lines of their own.
    let about = text.lines().map(str::trim);
    let about: Vec<_> = about.take_while(|line| !line.is_empty()).collect();
    let about = about.join(" ");
    let about = about.strip_prefix("error: ").unwrap_or(&about);
    match suggestion(error) {
        Some(meant) => format!("{about}; did you mean `{meant}`?"),
        None => format!("{about}; see --help"),
    }
}

/// What was perhaps meant.
fn suggestion(error: &clap::Error) -> Option<&str> {
    let kinds = [
        ContextKind::SuggestedSubcommand,
        ContextKind::SuggestedArg,
        ContextKind::SuggestedValue,
    ];
    match kinds.into_iter().find_map(|kind| error.get(kind))? {
        ContextValue::String(one) => Some(one),
        // The nearest is the last.
        ContextValue::Strings(all) => all.last().map(String::as_str),
        _ => None,
    }
}
