//! mount(8)'s helper: `mount.TYPE SOURCE TARGET [-sfnvrw] [-N NAMESPACE] [-o OPTIONS] [-t TYPE]`.
//!
//! mount(8) passes an exit code on as its own, so these are its codes: 1 for a wrong call, 32 for a
//! mount that failed.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::Parser;
use nix::sched::{CloneFlags, setns};

use super::{mount, not_taken, start_log};
use crate::error::{Class, Context};
use crate::options::{Foreign, MountFlags, check_layers};
use crate::say::say;
use crate::sys::{from_io, from_nix};
use crate::{Backend, Error, Overlay, Result, backend};

const WRONG_CALL: u8 = 1;
const NOT_MOUNTED: u8 = 32;

/// Mount an overlay for mount(8)
///
/// Called by `mount -t fuse.overfall` and by fstab; `overfall mount` is the command for people.
#[derive(Debug, Parser)]
#[command(version, max_term_width = 100)]
struct Args {
    /// What the mount table shall show as the source; any word
    source: OsString,

    /// Where the merged tree appears
    target: PathBuf,

    /// Layers and options, as in fstab
    #[arg(short = 'o', value_name = "OPTIONS")]
    options: Vec<OsString>,

    /// Do everything but the mount itself
    #[arg(short = 'f')]
    fake: bool,

    /// Pass over options that nobody knows
    #[arg(short = 's')]
    sloppy: bool,

    /// Tell more
    #[arg(short = 'v')]
    verbose: bool,

    /// Mount read-only
    #[arg(short = 'r', long = "read-only")]
    read_only: bool,

    /// Mount writable, which is what happens anyway
    #[arg(short = 'w', long = "rw")]
    writable: bool,

    /// Leave the mount table's file alone, which is what happens anyway
    #[arg(short = 'n')]
    no_table: bool,

    /// Mount in this mount namespace: a process or a file
    #[arg(short = 'N', value_name = "NAMESPACE")]
    namespace: Option<PathBuf>,

    /// The type that mount(8) was asked for
    #[arg(short = 't', value_name = "TYPE")]
    file_system: Option<OsString>,
}

/// Runs as the helper that mounts with `backend`.
pub(super) fn main(arguments: Vec<OsString>, backend: Backend) -> ExitCode {
    let args = match Args::try_parse_from(arguments) {
        Ok(args) => args,
        Err(error) => return not_taken(&error, WRONG_CALL),
    };
    start_log(u8::from(args.verbose));
    match run(&args, backend) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            say(&error);
            ExitCode::from(match error.class() {
                Class::Usage => WRONG_CALL,
                Class::System => NOT_MOUNTED,
            })
        }
    }
}

fn run(args: &Args, backend: Backend) -> Result<()> {
    if let Some(namespace) = &args.namespace {
        enter(namespace)?;
    }
    let mut found = Foreign::read(args.options.iter().map(OsString::as_os_str))?;
    if args.read_only {
        found.options.flags |= MountFlags::RO;
    }
    if found.remount {
        // mount(8) hands everything on that the mount table shows.
        return match args.fake {
            true => Ok(()),
            false => backend::remount(&args.target, found.options.flags),
        };
    }
    if args.sloppy {
        for item in &found.unknown {
            log::info!("option `{}` is passed over", item.display());
        }
    } else {
        found.refuse_unknown()?;
    }
    let mut options = found.options;
    options.check()?;
    if options.fsname.is_none() && !args.source.is_empty() {
        options.fsname = Some(args.source.clone());
    }
    if args.fake {
        return check_layers(&options, &args.target);
    }
    if options.serving.debug && options.serving.log.is_none() {
        // mount(8) waits for us, and who starts a machine for mount(8).
        options.serving.debug = false;
        log::warn!("`debug` is passed over: it needs `log=FILE` here");
    }
    mount::carry(
        Overlay::from_options(options, &args.target).backend(backend),
        false,
    )
}

/// Goes to the mount namespace of a process, or to the one that a file stands for.
fn enter(namespace: &Path) -> Result<()> {
    const STEP: &str = "entering the mount namespace";
    let is_number = |name: &OsStr| name.as_encoded_bytes().iter().all(u8::is_ascii_digit);
    let place = match is_number(namespace.as_os_str()) {
        true => Path::new("/proc").join(namespace).join("ns/mnt"),
        false => namespace.to_path_buf(),
    };
    let file =
        File::open(&place).map_err(|error| Error::usage(STEP).at(&place).errno(from_io(&error)))?;
    setns(file, CloneFlags::CLONE_NEWNS)
        .map_err(from_nix)
        .context(STEP, &place)
}
