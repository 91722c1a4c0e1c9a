//! Who runs the cases, how, and where.

use std::fs;
use std::os::fd::AsFd;
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};
use std::time::{Duration, Instant};

use libtest_mimic::{Arguments, Completion, Failed, Trial};
use nix::sched::{CloneFlags, unshare};
use nix::sys::wait::{WaitStatus, waitpid};
use overfall::sys::process;

use crate::common::leftovers;
pub(crate) use crate::common::leftovers::mounts_below;

/// A case: it gets its own place and the means that it is to be done by.
pub(crate) type Case = (&'static str, fn(&Place));

/// Who runs it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Way {
    /// The machine's root, in a mount namespace.
    Root,
    /// Root of a user namespace with 65536 ids.
    Mapped,
    /// Root of a plain user's namespace, which has no other id.
    Plain,
    /// A plain user without a namespace, for whom fusermount3 mounts.
    Bare,
}

/// What carries the tree. A case asks for `overfall::snapshot::Means` or a backend of this name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum By {
    Kernel,
    Fuse,
    Copy,
}

const WAYS: [(Way, &str); 4] = [
    (Way::Root, "root"),
    (Way::Mapped, "mapped"),
    (Way::Plain, "plain"),
    (Way::Bare, "bare"),
];
const MEANS: [(By, &str); 3] = [
    (By::Kernel, "kernel"),
    (By::Fuse, "fuse"),
    (By::Copy, "copy"),
];

/// The first id of the mapped namespace, and how many there are.
const FIRST: u32 = 1_000_000;
const COUNT: u32 = 65536;

/// No case takes nearly as long.
const PATIENCE: Duration = Duration::from_secs(120);
/// What a case exits with that can't be done here; the reason is on stdout.
const SKIPPED: i32 = 77;

/// Whom fusermount3 serves: a user with an account.
const NOBODY: u32 = 65534;

/// The plain user where root runs the suite. Any number does: it needs no account.
const PLAIN_ID: u32 = 54321;

/// Whether this process is root outside every user namespace.
fn is_real_root() -> bool {
    let whole_range = |map: String| map.split_whitespace().eq(["0", "0", "4294967295"]);
    rustix::process::geteuid().is_root()
        && fs::read_to_string("/proc/self/uid_map").is_ok_and(whole_range)
}

/// The first argument of a process that is to run a case.
const CASE: &str = "--case";

/// Where a case works.
#[derive(Debug)]
pub(crate) struct Place {
    pub(crate) dir: PathBuf,
    pub(crate) way: Way,
    pub(crate) by: By,
}

impl Place {
    /// Whether files can have several owners here.
    pub(crate) fn has_ids(&self) -> bool {
        matches!(self.way, Way::Root | Way::Mapped)
    }

    /// A fresh directory.
    pub(crate) fn make(&self, name: &str) -> PathBuf {
        let dir = self.dir.join(name);
        fs::create_dir_all(&dir).unwrap();
        dir
    }
}

/// Ends the case: it can't be done here.
pub(crate) fn skip(reason: &str) -> ! {
    println!("{reason}");
    std::process::exit(SKIPPED)
}

/// Waits for something to come true.
pub(crate) fn until(what: &str, is_so: impl Fn() -> bool) {
    let start = Instant::now();
    while !is_so() {
        assert!(
            start.elapsed() < PATIENCE / 4,
            "waited in vain until {what}"
        );
        std::thread::sleep(Duration::from_millis(5));
    }
}

pub(crate) fn main(modules: &'static [(&'static str, &'static [Case])]) -> ExitCode {
    let mut words = std::env::args().skip(1);
    if words.next().as_deref() == Some(CASE) {
        return inner(modules, &words.next().unwrap());
    }
    let arguments = Arguments::from_args();
    let dir = tempfile::Builder::new()
        .prefix("overfall-library-")
        .tempdir()
        .unwrap()
        .keep();
    fs::set_permissions(&dir, fs::Permissions::from_mode(0o755)).unwrap();
    let program = dir.join("library");
    fs::copy(std::env::current_exe().unwrap(), &program).unwrap();
    let mut trials = Vec::new();
    for (way, way_name) in WAYS {
        for (by, by_name) in MEANS {
            for (module, cases) in modules {
                for (case, _) in *cases {
                    if !is_possible(way, by, module) {
                        continue;
                    }
                    let name = format!("{way_name}::{by_name}::{module}::{case}");
                    let (dir, program) = (dir.clone(), program.clone());
                    trials.push(Trial::ignorable_test(name.clone(), move || {
                        trial(&dir, &program, way, &name)
                    }));
                }
            }
        }
    }
    let conclusion = libtest_mimic::run(&arguments, trials);
    let left = ended_leftovers(&dir);
    if left.is_empty() {
        fs::remove_dir_all(&dir).unwrap();
    }
    leftovers::exit_code(&conclusion, &left)
}

/// Only snapshots are made by copying; whoever may not mount makes none.
fn is_possible(way: Way, by: By, module: &str) -> bool {
    match (way, by) {
        (Way::Bare, By::Fuse) => !["overlay", "snapshot"].contains(&module),
        (Way::Bare, _) => false,
        (_, By::Copy) => module == "snapshot",
        _ => true,
    }
}

/// Runs a case in a process of its own.
fn trial(dir: &Path, program: &Path, way: Way, name: &str) -> Result<Completion, Failed> {
    if matches!(way, Way::Root | Way::Mapped) && !is_real_root() {
        return Ok(Completion::ignored_with("needs root"));
    }
    if way == Way::Bare && Command::new("fusermount3").arg("-V").output().is_err() {
        return Ok(Completion::ignored_with("fusermount3 isn't installed"));
    }
    let place = dir.join(name.replace("::", "-"));
    fs::create_dir(&place).unwrap();
    let owner = match way {
        Way::Root => None,
        Way::Mapped => Some(FIRST),
        Way::Plain => is_real_root().then_some(PLAIN_ID),
        Way::Bare => is_real_root().then_some(NOBODY),
    };
    chown(&place, owner, owner).unwrap();
    let apart = ["-m", "--propagation", "private"];
    let become_user = |id: u32| {
        let id = id.to_string();
        ["setpriv", "--reuid", &id, "--regid", &id, "--clear-groups"].map(String::from)
    };
    // One after the other, each starting the next.
    let mut words: Vec<String> = Vec::new();
    if is_real_root() {
        words.extend(["unshare"].iter().chain(&apart).map(ToString::to_string));
        words.extend(
            owner
                .filter(|_| way != Way::Mapped)
                .map(become_user)
                .into_iter()
                .flatten(),
        );
    }
    if way == Way::Plain {
        words.extend(
            ["unshare", "-Ur"]
                .iter()
                .chain(&apart)
                .map(ToString::to_string),
        );
    }
    let mut command = Command::new("/usr/bin/env");
    command.args(words);
    let child = command
        .arg(program)
        .args([CASE, name, place.file_name().unwrap().to_str().unwrap()])
        // vagga's has none, either.
        .env_clear()
        .current_dir(&place)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()?;
    let pid = rustix::process::Pid::from_child(&child);
    let (send, receive) = std::sync::mpsc::channel();
    std::thread::spawn(move || send.send(child.wait_with_output()));
    let output = match receive.recv_timeout(PATIENCE) {
        Ok(output) => output?,
        Err(_) => {
            rustix::process::kill_process(pid, rustix::process::Signal::KILL)?;
            return Err(format!("{name} hangs, or somebody holds its pipes").into());
        }
    };
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    match output.status.code() {
        Some(0) => Ok(Completion::Completed),
        Some(SKIPPED) => Ok(Completion::ignored_with(text(&output.stdout).trim())),
        _ => Err(format!(
            "{}\n{}{}",
            output.status,
            text(&output.stdout),
            text(&output.stderr)
        )
        .into()),
    }
}

/// In the case's own process.
fn inner(modules: &[(&'static str, &'static [Case])], name: &str) -> ExitCode {
    let parts: Vec<&str> = name.split("::").collect();
    let [way, by, module, case] = parts[..] else {
        panic!("{name}");
    };
    let way = WAYS.iter().find(|(_, name)| *name == way).unwrap().0;
    let by = MEANS.iter().find(|(_, name)| *name == by).unwrap().0;
    let (_, cases) = modules.iter().find(|(name, _)| *name == module).unwrap();
    let (_, run) = cases.iter().find(|(name, _)| *name == case).unwrap();
    if way == Way::Mapped {
        return in_mapped_namespace(|| go(*run, way, by));
    }
    go(*run, way, by)
}

fn go(run: fn(&Place), way: Way, by: By) -> ExitCode {
    let dir = std::env::current_dir().unwrap();
    if by == By::Fuse && fs::File::options().write(true).open("/dev/fuse").is_err() {
        skip("/dev/fuse can't be opened here");
    }
    run(&Place {
        dir: dir.clone(),
        way,
        by,
    });
    let left = mounts_below(&dir);
    assert!(left.is_empty(), "still mounted: {left:?}");
    ExitCode::SUCCESS
}

/// Runs the rest as root of a user namespace with many ids, whose map only somebody outside of it
/// may write.
fn in_mapped_namespace(run: impl FnOnce() -> ExitCode) -> ExitCode {
    let (ready, tell) = std::io::pipe().unwrap();
    let (wait, mapped) = std::io::pipe().unwrap();
    let child = process::fork(|| {
        unshare(CloneFlags::CLONE_NEWUSER | CloneFlags::CLONE_NEWNS).unwrap();
        rustix::io::write(&tell, b"x").unwrap();
        rustix::io::read(&wait, &mut [0; 1][..]).unwrap();
        // The case checks for descriptors that are left.
        process::close_others(&[]);
        nix::unistd::setgroups(&[]).unwrap();
        nix::unistd::setgid(0.into()).unwrap();
        nix::unistd::setuid(0.into()).unwrap();
        // Or what is in /proc/self would be the machine's root's.
        let dumpable = rustix::process::DumpableBehavior::Dumpable;
        rustix::process::set_dumpable_behavior(dumpable).unwrap();
        let code = run();
        u8::from(code != ExitCode::SUCCESS)
    })
    .unwrap();
    rustix::io::read(ready.as_fd(), &mut [0; 1][..]).unwrap();
    for map in ["uid_map", "gid_map"] {
        let text = format!("0 {FIRST} {COUNT}");
        fs::write(format!("/proc/{child}/{map}"), text).unwrap();
    }
    rustix::io::write(&mapped, b"x").unwrap();
    match waitpid(child, None).unwrap() {
        WaitStatus::Exited(_, code) => ExitCode::from(u8::try_from(code).unwrap()),
        _ => ExitCode::FAILURE,
    }
}

/// Mounts and processes that outlived their cases, which are ended now.
fn ended_leftovers(dir: &Path) -> Vec<String> {
    let mounts = leftovers::unmount_below(dir);
    let program = format!("{}/library", dir.display());
    // A server that was left to its namespace takes a moment.
    leftovers::let_end(&program, Duration::from_secs(20));
    [mounts, leftovers::kill_about(&program)].concat()
}
