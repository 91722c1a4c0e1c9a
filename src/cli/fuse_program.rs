//! A program that mounts, called as fuse-overlayfs is: `PROGRAM [-f] -o OPTIONS [SOURCE] TARGET`,
//! or with the options last, as mount.fuse3 does.

use std::ffi::OsString;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::Parser;

use super::role::FuseProgram;
use super::{FAILED, mount, not_taken, start_log};
use crate::options::{Foreign, Options, check_layers};
use crate::say::say;
use crate::{Backend, Overlay, Result, union};

/// Mount an overlay, called as fuse-overlayfs is
///
/// Returns when the tree is usable; `fusermount3 -u TARGET` or `overfall umount TARGET` ends it.
#[derive(Debug, Parser)]
#[command(version, max_term_width = 100)]
struct Args {
    /// Layers and options, in the syntax of the kernel's overlayfs and fuse-overlayfs
    #[arg(short = 'o', value_name = "OPTIONS")]
    options: Vec<OsString>,

    /// Stay until it is unmounted; a signal unmounts it
    #[arg(short = 'f', long)]
    foreground: bool,

    /// Stay, and tell everything on stderr
    #[arg(short = 'd', long)]
    debug: bool,

    /// Serve one request at a time
    #[arg(short = 's')]
    single: bool,

    /// Where the merged tree appears; with two names, the first is what the mount table shall show
    /// as the source
    #[arg(required = true, num_args = 1..=2, value_name = "TARGET")]
    places: Vec<PathBuf>,
}

/// Runs in the place of `program`.
pub(super) fn main(arguments: Vec<OsString>, program: FuseProgram) -> ExitCode {
    let outcome = match Args::try_parse_from(arguments) {
        Ok(args) => {
            start_log(if args.debug { 3 } else { 0 });
            run(args, program)
        }
        Err(error) => return not_taken(&error, FAILED),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            say(error);
            ExitCode::from(FAILED)
        }
    }
}

fn run(mut args: Args, program: FuseProgram) -> Result<()> {
    let mut found = Foreign::read(args.options.iter().map(OsString::as_os_str))?;
    let backend = match program {
        FuseProgram::FuseOverlayfs => {
            for item in &found.unknown {
                say(format_args!("unknown option ignored: {}", item.display()));
            }
            Backend::Fuse
        }
        FuseProgram::OverfallMount => {
            found.refuse_unknown()?;
            Backend::Auto
        }
    };
    if args.single {
        found.options.tuning.threads = crate::options::Threads::new(1);
    }
    found.options.check()?;
    // Not empty: clap has seen to that.
    let target = args.places.pop().unwrap_or_default();
    if let Some(source) = args.places.pop()
        && found.options.fsname.is_none()
        && !source.as_os_str().is_empty()
    {
        found.options.fsname = Some(source.into_os_string());
    }
    if program == FuseProgram::FuseOverlayfs {
        // Its callers unpack the layers of images as they come.
        found.options.shown.image_layers = true;
        check_layers(&found.options, &target)?;
        trust_again(&found.options);
    }
    let overlay = Overlay::from_options(found.options, target).backend(backend);
    mount::carry(overlay, args.foreground || args.debug)
}

/// An upper that was once mounted with `volatile` must not be mounted again by the kernel's rules.
/// Whoever calls fuse-overlayfs has never heard of them: a container that is stopped and started is
/// mounted twice.
fn trust_again(options: &Options) {
    if let Some(work) = &options.work
        && let Err(errno) = union::trust_again(work)
    {
        log::debug!("{}: the mark of a volatile mount: {errno}", work.display());
    }
}
