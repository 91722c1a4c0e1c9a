//! `overfall mount`.

use std::ffi::OsString;
use std::os::fd::AsFd;
use std::path::PathBuf;
use std::process::ExitCode;

use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};

use super::BackendArg;
use crate::backend::{self, End, Mounted};
use crate::error::Context;
use crate::options::Options;
use crate::sys::from_nix;
use crate::{Overlay, Result};

/// Mount an overlay
///
/// Returns when the tree is usable; `overfall umount` ends it. With `-o debug` and no `log=FILE` it
/// stays in the foreground, where the log can be seen.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Example:\n  overfall mount -o lowerdir=/srv/base,upperdir=/srv/up,workdir=/srv/work /srv/merged"
)]
pub(super) struct Args {
    /// Layers and options, in the syntax of the kernel's overlayfs
    #[arg(short = 'o', value_name = "OPTIONS", required = true)]
    options: Vec<OsString>,

    /// Who carries it
    #[arg(long, value_enum, default_value = "auto")]
    backend: BackendArg,

    /// Stay until it is unmounted; a signal unmounts it
    #[arg(short, long)]
    foreground: bool,

    /// Where the merged tree appears
    target: PathBuf,
}

pub(super) fn run(args: Args) -> Result<ExitCode> {
    let options = Options::parse_all(args.options.iter().map(OsString::as_os_str))?;
    let overlay = Overlay::from_options(options, args.target).backend(args.backend.into());
    carry(overlay, args.foreground)?;
    Ok(ExitCode::SUCCESS)
}

/// Mounts, and stays until the mount has gone where that is wanted.
pub(super) fn carry(overlay: Overlay, foreground: bool) -> Result<()> {
    let serving = &overlay.options.serving;
    let nowhere_to_tell = serving.debug && serving.log.is_none();
    if foreground || nowhere_to_tell {
        return stay(overlay);
    }
    let mounted = overlay.mount()?;
    tell(&mounted);
    mounted.forget();
    Ok(())
}

/// Mounts and waits until it is unmounted, by somebody or because of a signal.
fn stay(overlay: Overlay) -> Result<()> {
    const STEP: &str = "waiting for signals";
    let mut signals = SigSet::empty();
    for signal in [Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP] {
        signals.add(signal);
    }
    let at = overlay.target.clone();
    // Before the mount: a signal that comes meanwhile must find somebody who unmounts.
    signals
        .thread_block()
        .map_err(from_nix)
        .context(STEP, &at)?;
    let wake = SignalFd::with_flags(&signals, SfdFlags::SFD_CLOEXEC)
        .map_err(from_nix)
        .context(STEP, &at)?;
    let mounted = backend::mount_in_foreground(overlay)?;
    tell(&mounted);
    match mounted.gone_or(wake.as_fd())? {
        End::Gone => mounted.ended(),
        End::Woken => mounted.unmount_at_once(),
    }
}

fn tell(mounted: &Mounted) {
    log::info!(
        "{}: mounted, carried by {}",
        mounted.target().display(),
        mounted.backend()
    );
}
