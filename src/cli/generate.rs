//! `overfall generate`: man pages and shell completions, from the same definitions as `--help`.
//! Hidden: it is for who makes packages.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::CommandFactory;
use clap_complete::Shell;

use super::Cli;
use crate::Result;
use crate::error::Context;
use crate::sys::from_io;

/// Write man pages and shell completions into a directory
///
/// `man/man1`, `man/man8` and `completions` are made in it.
#[derive(Debug, clap::Args)]
#[command(hide = true)]
pub(super) struct Args {
    /// Where; it is made if need be
    directory: PathBuf,
}

/// The names by which mount(8) looks for us, with a page each.
const HELPERS: [&str; 2] = ["mount.fuse.overfall", "mount.overfall"];

pub(super) fn run(args: Args) -> Result<ExitCode> {
    let [man1, man8, completions] =
        ["man/man1", "man/man8", "completions"].map(|name| args.directory.join(name));
    for directory in [&man1, &man8, &completions] {
        written(directory, fs::create_dir_all(directory))?;
    }
    written(&man1, clap_mangen::generate_to(command(), &man1))?;
    for helper in HELPERS {
        let page = man8.join(format!("{helper}.8"));
        written(&page, fs::write(&page, ".so man1/overfall-mount.1\n"))?;
    }
    for shell in [Shell::Bash, Shell::Zsh, Shell::Fish] {
        let mut command = command();
        let done = clap_complete::generate_to(shell, &mut command, "overfall", &completions);
        written(&completions, done.map(drop))?;
    }
    Ok(ExitCode::SUCCESS)
}

/// What is shown to users, without the command `help`, which would have a page for each of the
/// others.
fn command() -> clap::Command {
    let bare = |command: clap::Command| match command.has_subcommands() {
        true => command.disable_help_subcommand(true),
        false => command,
    };
    let all = Cli::command();
    let shown = all
        .get_subcommands()
        .filter(|command| !command.is_hide_set());
    let whole = clap::Command::new("overfall")
        .version(env!("CARGO_PKG_VERSION"))
        .about(all.get_about().cloned().unwrap_or_default())
        .args(all.get_arguments())
        .subcommand_required(true)
        .subcommands(shown.cloned().map(bare));
    bare(whole)
}

fn written(path: &Path, done: std::io::Result<()>) -> Result<()> {
    done.map_err(|error| from_io(&error))
        .context("writing man pages and completions", path)
}
