//! Where the cases run: as the machine's root, or as root of a plain user's namespace.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Command, Stdio};

use clap::ValueEnum;
use tempfile::TempDir;

use crate::table::Findings;
use crate::{Args, Outcome, rivals};

/// The uid and gid of the plain user where root starts the run. Any number does.
const PLAIN_ID: u32 = 54321;

/// Who runs the cases.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Place {
    /// The machine's root.
    Root,
    /// A plain user in a user namespace.
    User,
}

impl Place {
    pub(crate) const ALL: [Place; 2] = [Place::Root, Place::User];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Place::Root => "as root",
            Place::User => "in a user namespace",
        }
    }
}

/// Whether this process is root outside every user namespace.
pub(crate) fn is_real_root() -> bool {
    let whole_range = |map: String| map.split_whitespace().eq(["0", "0", "4294967295"]);
    rustix::process::geteuid().is_root()
        && fs::read_to_string("/proc/self/uid_map").is_ok_and(whole_range)
}

/// Gives root mounts of its own, so that nothing which is left over reaches the machine.
pub(crate) fn isolate() -> Outcome<()> {
    use nix::mount::{MsFlags, mount};
    if is_real_root() {
        nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNS)?;
        let flags = MsFlags::MS_REC | MsFlags::MS_PRIVATE;
        mount(None::<&str>, "/", None::<&str>, flags, None::<&str>)?;
    }
    Ok(())
}

/// A fresh directory for the layers, open to the plain user.
pub(crate) fn base_dir(parent: Option<&Path>) -> Outcome<TempDir> {
    let mut builder = tempfile::Builder::new();
    builder
        .prefix("overfall-bench-")
        .permissions(fs::Permissions::from_mode(0o755));
    Ok(match parent {
        Some(parent) => builder.tempdir_in(parent)?,
        None => builder.tempdir()?,
    })
}

/// Runs this very program as root of a plain user's fresh namespaces.
pub(crate) fn measure_as_user(args: &Args, base: &Path, supplies: &Path) -> Outcome<Findings> {
    let dir = base.join("user");
    fs::create_dir(&dir)?;
    let own = std::env::current_exe()?;
    let mut command = if is_real_root() {
        std::os::unix::fs::chown(&dir, Some(PLAIN_ID), Some(PLAIN_ID))?;
        let id = PLAIN_ID.to_string();
        let mut command = Command::new("setpriv");
        command.args(["--reuid", &id, "--regid", &id, "--clear-groups", "unshare"]);
        command
    } else {
        Command::new("unshare")
    };
    // Root's own build may lie where others can't reach it.
    let (program, overfall) = (base.join("workloads"), base.join("overfall"));
    fs::copy(own, &program)?;
    fs::copy(crate::bed::overfall_binary(), &overfall)?;
    command
        .args(["--user", "--map-root-user", "--mount"])
        .arg(&program)
        .args(["--child", "--dir"])
        .arg(&dir)
        .arg("--supplies")
        .arg(supplies)
        .env("PATH", rivals::copy_for_others(&base.join("rivals"))?)
        .env("OVERFALL_BINARY", &overfall)
        .env("HOME", &dir)
        .current_dir("/")
        .stdout(Stdio::piped());
    for (flag, given) in [
        ("--quick", args.quick),
        ("--keep-caches", args.keep_caches),
        ("--ours", args.ours),
    ] {
        if given {
            command.arg(flag);
        }
    }
    if let Some(rounds) = args.rounds {
        command.arg("--rounds").arg(rounds.to_string());
    }
    let output = command.args(&args.filters).spawn()?.wait_with_output()?;
    if !output.status.success() {
        return Err(format!("the run in a user namespace: {}", output.status).into());
    }
    Ok(serde_json::from_slice(&output.stdout)?)
}
