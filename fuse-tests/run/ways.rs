//! The ways in which each case runs, and what a case needs to run `overfall`.

#[allow(dead_code)] // each test binary uses its part
#[path = "../common/leftovers.rs"]
mod leftovers;
#[path = "../common/said.rs"]
mod said;
#[path = "../common/skip.rs"]
mod skip;
#[path = "../common/users.rs"]
mod users;

use std::ffi::OsStr;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitCode, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, LazyLock};
use std::time::{Duration, Instant};

use libtest_mimic::{Arguments, Completion, Trial};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

pub(crate) use leftovers::processes_about;
use said::Said;
pub(crate) use skip::skip;
use skip::{Skip, report_no_skips};
use users::command_as;

pub(crate) type Case = (&'static str, fn(&Way));

/// Who runs `overfall`, and with which backend.
#[derive(Debug, Clone)]
pub(crate) struct Way {
    pub(crate) name: &'static str,
    pub(crate) backend: &'static str,
    /// The plain user to become; `None` is whoever runs the suite.
    pub(crate) become_user: Option<u32>,
    pub(crate) is_root: bool,
    /// A directory of the case's own, which that user may write.
    pub(crate) home: PathBuf,
    program: PathBuf,
}

impl Said {
    /// The output of a run that must have gone well.
    #[track_caller]
    pub(crate) fn good(self) -> String {
        assert_eq!((self.code, self.err.as_str()), (Some(0), ""), "{self:?}");
        self.out
    }
}

/// No run of a case takes nearly as long.
const PATIENCE: Duration = Duration::from_secs(120);

impl Way {
    /// `overfall run OPTIONS`, to be completed with `-- CMD`.
    pub(crate) fn command(&self, options: &[&str]) -> Command {
        let mut command = self.command_of_user(&self.program);
        command
            .args(["run", "--backend", self.backend])
            .args(options)
            .current_dir("/")
            .env("TMPDIR", self.scratch())
            .env("SHELL", "/bin/sh")
            .stdin(Stdio::null());
        command
    }

    fn command_of_user(&self, program: impl AsRef<OsStr>) -> Command {
        command_as(self.become_user.map(|id| (id, id)), program)
    }

    /// The program under test.
    pub(crate) fn program(&self) -> &str {
        self.program.to_str().unwrap()
    }

    /// Where runs put their temporary directories.
    pub(crate) fn scratch(&self) -> PathBuf {
        self.home.join("tmp")
    }

    /// A path in the case's directory.
    pub(crate) fn path(&self, name: &str) -> String {
        self.home.join(name).to_str().unwrap().to_owned()
    }

    /// Makes a file in the case's directory that belongs to the user.
    pub(crate) fn plant(&self, name: &str, content: &str) -> String {
        let path = self.home.join(name);
        for parent in path.parent().unwrap().ancestors() {
            if parent == self.home {
                break;
            }
            if !parent.exists() {
                fs::create_dir_all(parent).unwrap();
            }
            self.give(parent);
        }
        fs::write(&path, content).unwrap();
        self.give(&path);
        path.to_str().unwrap().to_owned()
    }

    /// Makes a directory in the case's directory that belongs to the user.
    pub(crate) fn plant_dir(&self, name: &str) -> String {
        let path = self.home.join(name);
        fs::create_dir_all(&path).unwrap();
        self.give(&path);
        path.to_str().unwrap().to_owned()
    }

    fn give(&self, path: &Path) {
        if let Some(id) = self.become_user {
            std::os::unix::fs::lchown(path, Some(id), Some(id)).unwrap();
        }
    }

    /// Runs `words` with `options`.
    pub(crate) fn run(&self, options: &[&str], words: &[&str]) -> Said {
        finish(self.command(options).arg("--").args(words))
    }

    /// Runs a shell script.
    pub(crate) fn sh(&self, script: &str) -> Said {
        self.run(&[], &["sh", "-c", script])
    }

    /// Starts a shell script and goes on.
    pub(crate) fn start(&self, options: &[&str], script: &str) -> Child {
        self.command(options)
            .args(["--", "sh", "-c", script])
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap()
    }
}

/// Runs a command to its end, and not for ever.
pub(crate) fn finish(command: &mut Command) -> Said {
    let child = command
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let pid = Pid::from_raw(child.id().cast_signed());
    let (done, wait) = std::sync::mpsc::channel::<()>();
    let watchdog = std::thread::spawn(move || {
        if wait.recv_timeout(PATIENCE) == Err(std::sync::mpsc::RecvTimeoutError::Timeout) {
            let _ = kill(pid, Signal::SIGKILL);
        }
    });
    let output = child.wait_with_output().unwrap();
    let _ = done.send(());
    watchdog.join().unwrap();
    output.into()
}

/// Waits until `done` says so.
#[track_caller]
pub(crate) fn eventually(what: &str, done: impl Fn() -> bool) {
    let start = Instant::now();
    while !done() {
        assert!(start.elapsed() < PATIENCE / 4, "not in time: {what}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// Sends a signal to a run.
pub(crate) fn signal(child: &Child, signal: Signal) {
    kill(Pid::from_raw(child.id().cast_signed()), signal).unwrap();
}

/// Runs everything that the command line asks for.
pub(crate) fn main(cases: &'static [Case]) -> ExitCode {
    report_no_skips();
    isolate();
    let arguments = Arguments::from_args();
    // Not below $TMPDIR or /tmp alone: the state of a run must be able to lie below its root.
    let base = tempfile::Builder::new()
        .prefix("overfall-run-tests-")
        .permissions(fs::Permissions::from_mode(0o755))
        .tempdir_in("/var/tmp")
        .unwrap();
    let trials = trials(cases, base.path());
    let conclusion = libtest_mimic::run(&arguments, trials);
    let left = leftovers::about(base.path().to_str().unwrap());
    leftovers::exit_code(&conclusion, &left)
}

fn trials(cases: &'static [Case], base: &Path) -> Vec<Trial> {
    static COUNT: AtomicUsize = AtomicUsize::new(0);
    // A place where a plain user can run it from.
    let program = base.join("overfall");
    fs::copy(env!("CARGO_BIN_EXE_overfall"), &program).unwrap();
    let mut trials = Vec::new();
    for way in ways(base, &program) {
        let usable = {
            let way = way.clone();
            Arc::new(LazyLock::new(move || usable(&way)))
        };
        for (name, case) in cases {
            let (mut way, usable) = (way.clone(), Arc::clone(&usable));
            trials.push(Trial::ignorable_test(
                format!("{}::{name}", way.name),
                move || {
                    if let Err(why) = &**usable {
                        return Ok(skipped(way.name, why));
                    }
                    let number = COUNT.fetch_add(1, Ordering::Relaxed);
                    way.home = way.home.join(number.to_string());
                    fs::create_dir(&way.home).unwrap();
                    way.give(&way.home);
                    way.plant_dir("tmp");
                    let result = std::panic::catch_unwind(|| case(&way));
                    if let Err(payload) = result {
                        return match payload.downcast::<Skip>() {
                            Ok(skip) => Ok(skipped(way.name, &skip.0)),
                            Err(payload) => std::panic::resume_unwind(payload),
                        };
                    }
                    eventually("the temporary directories are gone", || {
                        fs::read_dir(way.scratch()).is_ok_and(|mut names| names.next().is_none())
                    });
                    fs::remove_dir_all(&way.home)?;
                    Ok(Completion::Completed)
                },
            ));
        }
    }
    trials
}

fn skipped(way: &str, why: &str) -> Completion {
    eprintln!("skipped: {way}: {why}");
    Completion::ignored_with(why)
}

fn ways(base: &Path, program: &Path) -> Vec<Way> {
    let way = |name, backend, become_user, is_root| Way {
        name,
        backend,
        become_user,
        is_root,
        home: base.to_path_buf(),
        program: program.to_path_buf(),
    };
    if nix::unistd::geteuid().is_root() {
        vec![
            way("root_native", "native", None, true),
            way("root_fuse", "fuse", None, true),
            way("user", "auto", Some(plain_user()), false),
        ]
    } else {
        vec![way("user", "auto", None, false)]
    }
}

/// One with subordinate ids where there is one; otherwise any number does.
fn plain_user() -> u32 {
    let file = fs::read_to_string("/etc/subuid").unwrap_or_default();
    let known = file.lines().find_map(|line| {
        let name = line.split(':').next()?;
        let user = nix::unistd::User::from_name(name).ok()??;
        (!user.uid.is_root()).then_some(user.uid.as_raw())
    });
    known.unwrap_or(54321)
}

/// Why a way can't be gone here.
fn usable(way: &Way) -> Result<(), String> {
    if way.backend == "native" {
        return Ok(());
    }
    let mut command = way.command_of_user("sh");
    let ran = finish(command.args(["-c", ": <>/dev/fuse"]));
    if ran.code == Some(0) {
        Ok(())
    } else {
        Err(format!("/dev/fuse can't be opened: {}", ran.err.trim()))
    }
}

/// Nothing that a failing case leaves mounted may reach the machine. Before the first thread.
fn isolate() {
    use nix::mount::{MsFlags, mount};
    use nix::sched::{CloneFlags, unshare};
    if nix::unistd::geteuid().is_root() && unshare(CloneFlags::CLONE_NEWNS).is_ok() {
        let flags = MsFlags::MS_REC | MsFlags::MS_PRIVATE;
        let _ = mount(None::<&str>, "/", None::<&str>, flags, None::<&str>);
    }
}
