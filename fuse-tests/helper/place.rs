//! Where the tests work: a mount namespace with the helper's names in it, and a user whom only this
//! namespace knows.

#[path = "../common/commands.rs"]
mod commands;
#[allow(dead_code)] // each test binary uses its part
#[path = "../common/leftovers.rs"]
pub(crate) mod leftovers;
#[path = "../common/said.rs"]
mod said;
#[path = "../common/users.rs"]
mod users;

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use nix::mount::{MntFlags, MsFlags, mount, umount2};

pub(crate) use commands::until;
use leftovers::{mounts_below, processes_about, within};
pub(crate) use said::Said;
use users::command_as;

/// How long anything may take.
pub(crate) const PATIENCE: Duration = Duration::from_secs(120);
/// The plain user, and the first of the ids that are given to him.
pub(crate) const USER: &str = "overfall-test";
pub(crate) const USER_ID: u32 = 54322;
const SUBORDINATE: u32 = 2_000_000;

/// The names that the binary is called by.
const NAMES: [&str; 5] = [
    "overfall",
    "overfall-mount",
    "fuse-overlayfs",
    "mount.fuse.overfall",
    "mount.overfall",
];

/// What all tests share.
#[derive(Debug)]
pub(crate) struct Bench {
    dir: PathBuf,
    /// Why nothing can be tested.
    cannot: Option<String>,
    /// Why mount(8) doesn't find the helper.
    no_helpers: Option<String>,
}

impl Bench {
    /// Before the first thread: it makes the mount namespace.
    pub(crate) fn set_up() -> Self {
        let dir = tempfile::Builder::new()
            .prefix("overfall-helper-")
            .tempdir();
        let dir = dir.unwrap().keep();
        fs::set_permissions(&dir, fs::Permissions::from_mode(0o755)).unwrap();
        let cannot = set_up(&dir).err();
        let no_helpers = match cannot {
            None => put_helpers_in_place(&dir).err(),
            Some(_) => None,
        };
        Self {
            dir,
            cannot,
            no_helpers,
        }
    }

    pub(crate) fn cannot(&self) -> Option<String> {
        self.cannot.clone()
    }

    /// A fresh place.
    pub(crate) fn place(&self, name: &str) -> Place {
        let dir = self.dir.join(name);
        for name in ["", "lower", "upper", "work", "merged"] {
            fs::create_dir(dir.join(name)).unwrap();
        }
        fs::write(dir.join("lower/hello"), "hello\n").unwrap();
        Place {
            names: self.dir.join("names"),
            dir,
            no_helpers: self.no_helpers.clone(),
        }
    }

    /// Mounts and processes that outlived their tests, which are ended now.
    pub(crate) fn leftovers(&self) -> Vec<String> {
        let ours = within(&self.dir);
        // Servers may be about to end.
        leftovers::let_end(&ours, Duration::from_secs(10));
        let mounts = leftovers::unmount_below(&self.dir);
        [mounts, leftovers::kill_about(&ours)].concat()
    }

    pub(crate) fn clear(&self) {
        let _ = fs::remove_dir_all(&self.dir);
    }
}

fn set_up(dir: &Path) -> Result<(), String> {
    if !rustix::process::geteuid().is_root() {
        return Err("needs root".into());
    }
    if !Path::new("/dev/fuse").exists() {
        return Err("there is no /dev/fuse".into());
    }
    nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNS)
        .map_err(|errno| format!("a mount namespace of its own: {errno}"))?;
    // Nothing gets out; shared among those that are made from it, as podman wants it.
    for how in [MsFlags::MS_PRIVATE, MsFlags::MS_SHARED] {
        let _ = bind(None, Path::new("/"), MsFlags::MS_REC | how);
    }
    let names = dir.join("names");
    fs::create_dir(&names).map_err(|error| error.to_string())?;
    fs::copy(env!("CARGO_BIN_EXE_overfall"), dir.join("overfall"))
        .map_err(|error| error.to_string())?;
    for name in NAMES {
        symlink(dir.join("overfall"), names.join(name)).map_err(|error| error.to_string())?;
    }
    know_the_user(dir)?;
    Ok(())
}

fn bind(from: Option<&Path>, to: &Path, flags: MsFlags) -> Result<(), String> {
    let none: Option<&str> = None;
    mount(from, to, none, flags, none).map_err(|errno| format!("mount on {to:?}: {errno}"))
}

/// Puts the helper's names where mount(8) looks: in a read-only overlay over /sbin.
fn put_helpers_in_place(dir: &Path) -> Result<(), String> {
    let sbin = fs::canonicalize("/sbin").map_err(|error| error.to_string())?;
    let data = format!(
        "lowerdir={}:{}",
        dir.join("names").display(),
        sbin.display()
    );
    let overlay = Some("overlay");
    mount(
        overlay,
        &sbin,
        overlay,
        MsFlags::MS_RDONLY,
        Some(data.as_str()),
    )
    .map_err(|errno| format!("an overlay over /sbin: {errno}"))
}

/// crun works with one version of cgroups at a time: where the second is there beside the first, it
/// gets that one.
pub(crate) fn bind_cgroup2() {
    let (all, second) = (
        Path::new("/sys/fs/cgroup"),
        Path::new("/sys/fs/cgroup/unified"),
    );
    if second.join("cgroup.procs").exists() {
        // Without it podman fails, and says so.
        let _ = bind(Some(second), all, MsFlags::MS_BIND);
    }
}

/// Covers a file of this namespace by another text.
pub(crate) fn cover(dir: &Path, file: &str, text: &str) -> Result<(), String> {
    let own = dir.join(file.replace('/', "_"));
    fs::write(&own, text).map_err(|error| error.to_string())?;
    if !Path::new(file).exists() {
        return Err(format!("there is no {file}"));
    }
    bind(Some(&own), Path::new(file), MsFlags::MS_BIND)
}

/// A user with subordinate ids, for this namespace.
fn know_the_user(dir: &Path) -> Result<(), String> {
    let home = dir.join("home");
    fs::create_dir(&home).map_err(|error| error.to_string())?;
    std::os::unix::fs::chown(&home, Some(USER_ID), Some(USER_ID))
        .map_err(|error| error.to_string())?;
    let lines = [
        (
            "/etc/passwd",
            format!("{USER}:x:{USER_ID}:{USER_ID}::{}:/bin/sh", home.display()),
        ),
        ("/etc/group", format!("{USER}:x:{USER_ID}:")),
        ("/etc/subuid", format!("{USER}:{SUBORDINATE}:65536")),
        ("/etc/subgid", format!("{USER}:{SUBORDINATE}:65536")),
    ];
    for (file, line) in lines {
        let before = fs::read_to_string(file).unwrap_or_default();
        cover(dir, file, &format!("{before}{line}\n"))?;
    }
    Ok(())
}

/// A test's directories.
#[derive(Debug)]
pub(crate) struct Place {
    names: PathBuf,
    pub(crate) dir: PathBuf,
    /// Why mount(8) doesn't find the helper.
    pub(crate) no_helpers: Option<String>,
}

impl Place {
    /// `-o` for a writable overlay of the place's own layers.
    pub(crate) fn options(&self) -> String {
        let dir = self.dir.display();
        format!("lowerdir={dir}/lower,upperdir={dir}/upper,workdir={dir}/work")
    }

    pub(crate) fn merged(&self) -> PathBuf {
        self.dir.join("merged")
    }

    /// A script of root's, in the place's directory, with the names of the program first in its
    /// PATH and `$O` for the options.
    pub(crate) fn shell(&self, script: &str) -> Said {
        let mut command = Command::new("sh");
        command.arg("-c").arg(script);
        self.run(command)
    }

    /// As [`Place::shell`]; it must end well. What it wrote to stdout.
    pub(crate) fn ok(&self, script: &str) -> String {
        let said = self.shell(script);
        assert_eq!(said.code, Some(0), "{script}: {said:?}");
        said.out
    }

    /// As [`Place::shell`], as the plain user.
    pub(crate) fn user_shell(&self, script: &str) -> Said {
        let mut command = command_as(Some((USER_ID, USER_ID)), "sh");
        command
            .args(["-c", script])
            .env("HOME", self.dir.parent().unwrap().join("home"))
            .env("USER", USER);
        self.run(command)
    }

    /// As [`Place::user_shell`]; it must end well.
    pub(crate) fn user_ok(&self, script: &str) -> String {
        let said = self.user_shell(script);
        assert_eq!(said.code, Some(0), "{script}: {said:?}");
        said.out
    }

    /// Gives everything in the place to the plain user.
    pub(crate) fn give_to_user(&self) {
        self.ok(&format!("chown -R {USER_ID}:{USER_ID} ."));
    }

    fn run(&self, mut command: Command) -> Said {
        let path = std::env::var("PATH").unwrap_or_default();
        command
            .current_dir(&self.dir)
            .env(
                "PATH",
                format!("{}:{path}:/usr/sbin:/sbin", self.names.display()),
            )
            .env("O", self.options())
            .env("NAMES", &self.names);
        commands::run(command)
    }

    /// The mount table's line about `merged`, if it is mounted.
    pub(crate) fn mounted(&self) -> Option<String> {
        let table = fs::read_to_string("/proc/self/mounts").unwrap();
        let merged = self.merged().display().to_string();
        let line = table
            .lines()
            .rfind(|line| line.split(' ').nth(1) == Some(&merged));
        line.map(str::to_owned)
    }

    /// Waits until no process has to do with this place.
    pub(crate) fn until_no_server(&self) {
        until("the server has gone", || {
            processes_about(&within(&self.dir)).is_empty()
        });
    }
}

impl Drop for Place {
    /// Whatever a failed test left is not in the way of the others.
    fn drop(&mut self) {
        for (_, target) in mounts_below(&self.dir).into_iter().rev() {
            let _ = umount2(&target, MntFlags::MNT_DETACH);
        }
    }
}

/// Whether a program is there.
pub(crate) fn has(program: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .chain(["/usr/sbin".into(), "/sbin".into()])
        .any(|folder| folder.join(program).is_file())
}
