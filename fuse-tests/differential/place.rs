//! Where the cases run: file systems to put layers on, and processes with the rights to use them.

use std::fs::{self, File};
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use nix::mount::{MntFlags, MsFlags, mount, umount2};
use tempfile::TempDir;

use super::layers::{self, Power};
use super::manner::Manner;
use super::side::{self, Carrier, Mounted};
use super::users::command_as;

/// The uid and gid of the plain user where root runs the test. Any number does.
const PLAIN_ID: u32 = 54321;

/// A kind of file system.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Place {
    /// Where temporary files are, whatever that is.
    Tmp,
    Ext4,
    Xfs,
    Btrfs,
    Tmpfs,
    /// Each layer on one of several.
    Mixed,
}

impl Place {
    const ALL: [Place; 6] = [
        Place::Tmp,
        Place::Ext4,
        Place::Xfs,
        Place::Btrfs,
        Place::Tmpfs,
        Place::Mixed,
    ];

    /// Its name on the command line.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Place::Tmp => "tmp",
            Place::Ext4 => "ext4",
            Place::Xfs => "xfs",
            Place::Btrfs => "btrfs",
            Place::Tmpfs => "tmpfs",
            Place::Mixed => "mixed",
        }
    }

    /// The kind with this name.
    pub(crate) fn named(name: &str) -> Result<Place, String> {
        let found = Self::ALL.into_iter().find(|place| place.name() == name);
        found.ok_or_else(|| {
            format!("no file system {name}: there are ext4, xfs, btrfs, tmpfs, mixed and tmp")
        })
    }

    /// What statfs(2) says of it.
    fn magic(self) -> Option<i64> {
        match self {
            Place::Tmp | Place::Mixed => None,
            Place::Ext4 => Some(libc::EXT4_SUPER_MAGIC),
            Place::Xfs => Some(libc::XFS_SUPER_MAGIC),
            Place::Btrfs => Some(libc::BTRFS_SUPER_MAGIC),
            Place::Tmpfs => Some(libc::TMPFS_MAGIC),
        }
    }

    fn is_at(self, dir: &Path) -> bool {
        let there = rustix::fs::statfs(dir).ok().map(|stat| stat.f_type);
        self.magic().is_none() || self.magic() == there
    }
}

/// The directories of a run; all are removed at its end.
pub(crate) struct Ground {
    base: TempDir,
    memory: Result<TempDir, String>,
    workers: usize,
}

impl Ground {
    /// Makes them, in a mount namespace of its own where root runs the test.
    pub(crate) fn prepare() -> Result<Self, String> {
        isolate()?;
        let make = |dir: &Path| {
            let mut builder = tempfile::Builder::new();
            builder
                .prefix("overfall-differential-")
                .permissions(fs::Permissions::from_mode(0o777));
            builder
                .tempdir_in(dir)
                .map_err(|e| format!("{}: {e}", dir.display()))
        };
        let base = make(&std::env::temp_dir())?;
        let memory = make(Path::new("/dev/shm"));
        for (from, name) in [
            (std::env::current_exe().map_err(|e| e.to_string())?, "tests"),
            (side::binary(), "overfall"),
        ] {
            fs::copy(&from, base.path().join(name))
                .map_err(|e| format!("{}: {e}", from.display()))?;
        }
        Ok(Self {
            base,
            memory,
            workers: 0,
        })
    }

    /// The command of a worker, ready for its further arguments.
    pub(crate) fn command(&mut self, manner: &Manner) -> Result<Command, String> {
        let power = manner.power;
        if power == Power::Root && !is_real_root() {
            return Err("needs root".to_owned());
        }
        if power == Power::User && manner.drop_caches {
            return Err("dropping caches needs root".to_owned());
        }
        self.workers += 1;
        let name = format!("worker-{}", self.workers);
        let mut dirs = Vec::new();
        for place in self.dirs(manner.place)? {
            let dir = place.join(&name);
            fs::create_dir(&dir).map_err(|e| format!("{}: {e}", dir.display()))?;
            if power == Power::User && is_real_root() {
                chown(&dir, Some(PLAIN_ID), Some(PLAIN_ID)).map_err(|e| e.to_string())?;
            }
            dirs.push(dir);
        }
        let elsewhere = dirs.split_off(1);
        let tests = self.base.path().join("tests");
        let mut command;
        if power == Power::Root {
            command = Command::new(tests);
        } else {
            let ids = is_real_root().then_some((PLAIN_ID, PLAIN_ID));
            command = command_as(ids, "unshare");
            command
                .args(["--user", "--map-root-user", "--mount"])
                .arg(tests);
        }
        command
            .arg("--worker")
            .args(&dirs)
            .args(
                elsewhere
                    .iter()
                    .flat_map(|dir| [Path::new("--elsewhere"), dir]),
            )
            .env("OVERFALL_BINARY", self.base.path().join("overfall"))
            .current_dir("/");
        Ok(command)
    }

    /// One directory, or several on different file systems: what is to be had.
    fn dirs(&self, place: Place) -> Result<Vec<PathBuf>, String> {
        if place != Place::Mixed {
            return Ok(vec![self.dir(place)?]);
        }
        let several = [Place::Ext4, Place::Tmpfs, Place::Xfs, Place::Btrfs];
        let dirs: Vec<_> = several
            .into_iter()
            .filter_map(|place| self.dir(place).ok())
            .collect();
        match dirs.len() {
            0 | 1 => Err("there is one file system only, and an image needs root".to_owned()),
            _ => Ok(dirs),
        }
    }

    /// A directory on such a file system: one that is there, or an image.
    fn dir(&self, place: Place) -> Result<PathBuf, String> {
        let base = self.base.path();
        if place.is_at(base) {
            return Ok(base.to_path_buf());
        }
        if place == Place::Tmpfs {
            return match &self.memory {
                Ok(dir) if place.is_at(dir.path()) => Ok(dir.path().to_path_buf()),
                Ok(_) => Err("/dev/shm isn't a tmpfs".to_owned()),
                Err(why) => Err(why.clone()),
            };
        }
        let target = base.join(place.name());
        if target.is_dir() {
            return Ok(target);
        }
        if !is_real_root() {
            return Err(format!(
                "the temporary directory isn't on {}, and an image needs root",
                place.name()
            ));
        }
        self.image(place, &target)
    }

    fn image(&self, place: Place, target: &Path) -> Result<PathBuf, String> {
        let image = self.base.path().join(format!("{}.img", place.name()));
        let file = File::create_new(&image).map_err(|e| e.to_string())?;
        file.set_len(1 << 30).map_err(|e| e.to_string())?;
        run(Command::new(format!("mkfs.{}", place.name()))
            .arg("-q")
            .arg(&image))?;
        fs::create_dir(target).map_err(|e| e.to_string())?;
        let mounted = run(Command::new("mount")
            .args(["-o", "loop"])
            .arg(&image)
            .arg(target));
        if mounted.is_err() {
            let _ = fs::remove_dir(target);
        }
        mounted?;
        fs::set_permissions(target, fs::Permissions::from_mode(0o777))
            .map_err(|e| e.to_string())?;
        Ok(target.to_path_buf())
    }
}

impl Drop for Ground {
    fn drop(&mut self) {
        for place in Place::ALL {
            let _ = umount2(&self.base.path().join(place.name()), MntFlags::MNT_DETACH);
        }
    }
}

fn run(command: &mut Command) -> Result<(), String> {
    let output = command
        .stdin(Stdio::null())
        .output()
        .map_err(|e| format!("{command:?}: {e}"))?;
    if output.status.success() {
        return Ok(());
    }
    Err(format!(
        "{command:?}: {}",
        String::from_utf8_lossy(&output.stderr).trim()
    ))
}

/// Gives root a mount namespace of its own, so that nothing which is left mounted reaches the machine,
/// and no other worker takes a copy of a mount. Must run before the first thread.
pub(crate) fn isolate() -> Result<(), String> {
    let private = MsFlags::MS_REC | MsFlags::MS_PRIVATE;
    if is_real_root() {
        nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNS)
            .map_err(|e| format!("unshare: {e}"))?;
        mount(None::<&str>, "/", None::<&str>, private, None::<&str>)
            .map_err(|e| format!("private mounts: {e}"))?;
    }
    Ok(())
}

fn is_real_root() -> bool {
    let whole_range = |map: String| map.split_whitespace().eq(["0", "0", "4294967295"]);
    rustix::process::geteuid().is_root()
        && fs::read_to_string("/proc/self/uid_map").is_ok_and(whole_range)
}

/// Why cases can't run here, found by mounting an empty overlay of the kernel's and looking at
/// /dev/fuse. That overfall mounts is for the cases to show.
pub(crate) fn usable(manner: &Manner, dir: &Path) -> Result<(), String> {
    let device = fs::OpenOptions::new()
        .read(true)
        .write(true)
        .open("/dev/fuse");
    device.map_err(|e| format!("/dev/fuse: {e}"))?;
    let probe = dir.join("probe");
    layers::build(&probe, manner.power, 1, &[], &[]).map_err(|e| e.to_string())?;
    Mounted::new(&probe, Carrier::Kernel, manner, 1)?.unmount()
}
