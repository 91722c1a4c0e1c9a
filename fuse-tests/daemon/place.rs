//! Where the tests work and who they work as.

#[path = "../common/commands.rs"]
mod commands;
#[allow(dead_code)] // each test binary uses its part
#[path = "../common/leftovers.rs"]
pub(crate) mod leftovers;
#[path = "../common/said.rs"]
mod said;
#[path = "../common/users.rs"]
mod users;

use std::ffi::OsStr;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use rustix::process::Pid;

use commands::start;
pub(crate) use commands::{finish, run, until};
pub(crate) use leftovers::mounts_below;
use leftovers::{processes_about, within};
pub(crate) use said::Said;
pub(crate) use users::command_as;

/// How long anything may take.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);
/// The plain user where the suite runs as root: fusermount3 wants one with an account.
const PLAIN_NAME: &str = "nobody";

/// Who mounts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Who {
    /// The machine's root, by mount(2).
    Root,
    /// A plain user, by fusermount3 (or in a user namespace that a test makes).
    Plain,
}

impl Who {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Who::Root => "root",
            Who::Plain => "plain",
        }
    }
}

/// A number that nobody has, and a group's.
pub(crate) const STRANGER: (u32, u32) = (54321, 54321);

/// Number of the plain user and of his group.
fn plain_ids() -> Option<(u32, u32)> {
    let accounts = fs::read_to_string("/etc/passwd").ok()?;
    let account = accounts
        .lines()
        .find(|line| line.split(':').next() == Some(PLAIN_NAME))?;
    let mut fields = account.split(':').skip(2);
    Some((fields.next()?.parse().ok()?, fields.next()?.parse().ok()?))
}

fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

/// What all tests share: a directory, and a copy of the binary that everybody can reach.
#[derive(Debug)]
pub(crate) struct Bench {
    dir: PathBuf,
    count: AtomicUsize,
}

impl Bench {
    pub(crate) fn set_up() -> Self {
        let dir = tempfile::Builder::new()
            .prefix("overfall-daemon-")
            .tempdir();
        let dir = dir.unwrap().keep();
        fs::set_permissions(&dir, fs::Permissions::from_mode(0o755)).unwrap();
        fs::copy(env!("CARGO_BIN_EXE_overfall"), dir.join("overfall")).unwrap();
        Self {
            dir,
            count: AtomicUsize::new(0),
        }
    }

    /// Why nothing can be tested as `who` here.
    pub(crate) fn cannot(&self, who: Who) -> Option<String> {
        if !Path::new("/dev/fuse").exists() {
            return Some("there is no /dev/fuse".into());
        }
        match who {
            Who::Root if !is_root() => Some("needs root".into()),
            Who::Plain if Command::new("fusermount3").arg("-V").output().is_err() => {
                Some("fusermount3 isn't installed".into())
            }
            Who::Plain if is_root() && plain_ids().is_none() => {
                Some(format!("there is no user {PLAIN_NAME}"))
            }
            _ => None,
        }
    }

    /// A fresh place.
    pub(crate) fn place(&self, who: Who) -> Place {
        let number = self.count.fetch_add(1, Ordering::Relaxed);
        let dir = self.dir.join(format!("{}-{number}", who.name()));
        for name in ["", "lower", "upper", "work", "merged"] {
            let dir = dir.join(name);
            fs::create_dir(&dir).unwrap();
            if who == Who::Plain && is_root() {
                let (uid, gid) = plain_ids().unwrap();
                std::os::unix::fs::chown(&dir, Some(uid), Some(gid)).unwrap();
            }
        }
        fs::write(dir.join("lower/hello"), "hello\n").unwrap();
        Place {
            program: self.dir.join("overfall"),
            dir,
            who,
        }
    }

    /// Mounts and processes that outlived their tests, which are ended now.
    pub(crate) fn leftovers(&self) -> Vec<String> {
        let mounts = leftovers::unmount_below(&self.dir);
        [mounts, leftovers::kill_about(&within(&self.dir))].concat()
    }

    pub(crate) fn clear(&self) {
        // Work directories are closed even to their owner; root doesn't mind, others leave them.
        let _ = Command::new("chmod")
            .arg("-R")
            .arg("u+rwx")
            .arg(&self.dir)
            .status();
        let _ = fs::remove_dir_all(&self.dir);
    }
}

/// A test's directories and its user.
#[derive(Debug)]
pub(crate) struct Place {
    program: PathBuf,
    pub(crate) dir: PathBuf,
    pub(crate) who: Who,
}

impl Place {
    pub(crate) fn merged(&self) -> PathBuf {
        self.dir.join("merged")
    }

    /// Number of the place's user.
    pub(crate) fn uid(&self) -> u32 {
        match self.who {
            Who::Plain if is_root() => plain_ids().unwrap().0,
            _ => rustix::process::geteuid().as_raw(),
        }
    }

    pub(crate) fn program(&self) -> &Path {
        &self.program
    }

    /// `-o` for a writable overlay of the place's own layers.
    pub(crate) fn options(&self) -> String {
        let dir = self.dir.display();
        format!("lowerdir={dir}/lower,upperdir={dir}/upper,workdir={dir}/work")
    }

    /// A command of the place's user.
    pub(crate) fn command(&self, program: impl AsRef<OsStr>) -> Command {
        let becomes = self.who == Who::Plain && is_root();
        command_as(becomes.then(|| plain_ids().unwrap()), program)
    }

    pub(crate) fn overfall(&self, arguments: &[&str]) -> Command {
        let mut command = self.command(&self.program);
        command.args(arguments).current_dir(&self.dir);
        command
    }

    pub(crate) fn shell(&self, script: &str) -> Said {
        let mut command = self.command("sh");
        command.arg("-c").arg(script).current_dir(&self.dir);
        run(command)
    }

    /// Mounts the place's layers on `merged` with the FUSE server.
    pub(crate) fn mount(&self) {
        let options = self.options();
        let said = run(self.overfall(&["mount", "--backend", "fuse", "-o", &options, "merged"]));
        assert_eq!(said.code, Some(0), "{said:?}");
    }

    /// Mounts the place's layers with a command that stays, which has mounted.
    pub(crate) fn mount_and_stay(&self, arguments: &[&str]) -> Child {
        let mut command = self.overfall(&["mount", "--backend", "fuse"]);
        command.args(arguments).arg("merged");
        let child = start(command);
        until("it is mounted", || self.is_mounted());
        child
    }

    pub(crate) fn umount(&self) -> Said {
        run(self.overfall(&["umount", "merged"]))
    }

    pub(crate) fn is_mounted(&self) -> bool {
        mounts_below(&self.dir)
            .iter()
            .any(|(_, at)| *at == self.merged())
    }

    /// The server; there must be one.
    pub(crate) fn server(&self) -> Pid {
        match self.servers()[..] {
            [pid] => pid,
            ref other => panic!("{} servers", other.len()),
        }
    }

    /// Processes that have to do with this place and aren't over.
    pub(crate) fn servers(&self) -> Vec<Pid> {
        let all = processes_about(&within(&self.dir));
        all.into_iter().map(|(pid, _)| pid).collect()
    }

    pub(crate) fn until_unmounted(&self) {
        until("it is unmounted", || !self.is_mounted());
    }

    pub(crate) fn until_no_server(&self) {
        until("the server has gone", || self.servers().is_empty());
    }
}
