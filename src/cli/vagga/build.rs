//! `overfall vagga _build`, `_steps` and `_mount`.

use std::fmt::Write as _;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use crate::Result;
use crate::cli::{BackendArg, print};
use crate::steps::Outcome;
use crate::vagga::{self, BuildOptions, Built};

/// Build a container of vagga.yaml into vagga's layout
///
/// `.vagga/NAME` is one plain directory afterwards, as vagga's own builds leave it.
#[derive(Debug, clap::Args)]
pub(super) struct BuildArgs {
    /// Build it even if it is built already
    #[arg(long)]
    force: bool,

    /// Keep what each step changed: a build begins again where a step failed or was changed
    #[arg(long)]
    cache_each_step: bool,

    /// Open a shell in the state that a step has failed in
    #[arg(long)]
    shell: bool,

    /// Keep the layers in place of one plain directory; `_mount` shows the tree
    #[arg(long)]
    layered: bool,

    /// Take the container of a `!Container` step as a layer, as `overlay: true` says in vagga.yaml
    #[arg(long)]
    overlay: bool,

    /// Who carries the overlays that steps work in
    #[arg(long, value_name = "WHO", default_value = "auto")]
    backend: BackendArg,

    /// The container's name in vagga.yaml
    container: String,
}

pub(super) fn build(args: &BuildArgs) -> Result<ExitCode> {
    let project = super::project()?;
    let options = BuildOptions {
        force: args.force,
        cache_each_step: args.cache_each_step,
        shell: args.shell,
        layered: args.layered,
        overlay: args.overlay,
        backend: args.backend.into(),
    };
    match vagga::build(&project, &args.container, options)? {
        Built::Already => eprintln!("overfall: {} is built already", args.container),
        Built::Now => eprintln!("overfall: {} is built", args.container),
        Built::Failed => return Ok(ExitCode::from(2)),
    }
    Ok(ExitCode::SUCCESS)
}

/// Show the steps of a container and what is cached of them
#[derive(Debug, clap::Args)]
pub(super) struct StepsArgs {
    /// Those of a build with --overlay
    #[arg(long)]
    overlay: bool,

    /// The container's name in vagga.yaml
    container: String,
}

pub(super) fn steps(args: &StepsArgs) -> Result<ExitCode> {
    let project = super::project()?;
    let states = vagga::steps(&project, &args.container, args.overlay)?;
    let mut text = format!(
        "{:>10} {:>7} {:>5} {:<6} STEP\n",
        "SIZE", "FILES", "AGE", ""
    );
    for state in states {
        // Writing to a string never fails.
        let _never = match &state.layer {
            Some(layer) => {
                let how = match layer.outcome() {
                    Outcome::Hit => "hit",
                    Outcome::Built => "built",
                };
                let age = layer.made.elapsed().unwrap_or_default();
                writeln!(
                    text,
                    "{:>10} {:>7} {:>5} {how:<6} {}",
                    size(layer.bytes),
                    layer.files,
                    short(age),
                    state.title
                )
            }
            None => writeln!(
                text,
                "{:>10} {:>7} {:>5} {:<6} {}",
                "-", "-", "-", "-", state.title
            ),
        };
    }
    print(&text)?;
    Ok(ExitCode::SUCCESS)
}

fn size(bytes: u64) -> String {
    match bytes {
        0..10_240 => format!("{bytes} B"),
        10_240..10_485_760 => format!("{} KiB", bytes >> 10),
        _ => format!("{} MiB", bytes >> 20),
    }
}

fn short(age: Duration) -> String {
    match age.as_secs() {
        seconds @ 0..120 => format!("{seconds}s"),
        seconds @ 120..7200 => format!("{}min", seconds / 60),
        seconds @ 7200..172_800 => format!("{}h", seconds / 3600),
        seconds => format!("{}d", seconds / 86400),
    }
}

/// Show the tree of a container that was built with --layered
///
/// `overfall umount DIR` ends it.
#[derive(Debug, clap::Args)]
pub(super) struct MountArgs {
    /// The container's name in vagga.yaml
    container: String,

    /// Where [default: where .vagga/NAME leads to]
    dir: Option<PathBuf>,
}

pub(super) fn mount(args: &MountArgs) -> Result<ExitCode> {
    let project = super::project()?;
    let target = vagga::show(&project, &args.container, args.dir.as_deref())?;
    let target = target.display();
    print(&format!("{target}\n"))?;
    eprintln!("overfall: overfall umount {target} ends it");
    Ok(ExitCode::SUCCESS)
}
