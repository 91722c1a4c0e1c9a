//! Who runs the cases and by which means, and a project to run them in.

#[path = "../common/said.rs"]
mod said;
#[path = "../common/skip.rs"]
mod skip;
#[path = "../common/users.rs"]
mod users;

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitCode, Stdio};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use libtest_mimic::{Arguments, Completion, Trial};

use said::Said;
pub(crate) use skip::skip;
use skip::{Skip, report_no_skips};
use users::command_as;

pub(crate) type Case = (&'static str, fn(&Project));

/// The user that cases run as.
#[derive(Debug, Clone)]
struct User {
    name: &'static str,
    /// To become; `None` is whoever runs the suite.
    become_id: Option<u32>,
    /// What vagga would have written beside a root that this user built.
    map: String,
}

/// A project of a case's own.
#[derive(Debug)]
pub(crate) struct Project {
    user: User,
    /// `kernel`, `fuse` or `copy`.
    pub(crate) means: &'static str,
    pub(crate) dir: PathBuf,
    program: PathBuf,
}

impl Said {
    /// The output of a command that must have gone well.
    #[track_caller]
    pub(crate) fn good(self) -> String {
        assert_eq!(self.code, Some(0), "{self:?}");
        self.out
    }

    /// The one line of a command that must have been refused.
    #[track_caller]
    pub(crate) fn refused(self) -> String {
        assert_eq!((self.code, self.out.as_str()), (Some(2), ""), "{self:?}");
        assert_eq!(self.err.lines().count(), 1, "{self:?}");
        self.err
    }
}

/// What a root of busybox has.
const ROOT: &str = "\
mkdir -p $R/bin $R/etc $R/dev $R/proc $R/sys $R/tmp $R/run $R/work $R/var/lib/data $R/usr/bin
cp $BUSYBOX $R/bin/busybox
for tool in sh ls cat echo id rm mkdir sleep env find grep dd cp chown chmod ln touch stat test kill mv ping; do
  ln -s busybox $R/bin/$tool
done
echo base > $R/etc/file; echo d > $R/var/lib/data/d; touch $R/etc/resolv.conf $R/etc/hosts
";

impl Project {
    /// Runs a shell script as the user, in the project.
    pub(crate) fn sh(&self, script: &str) -> Said {
        self.command("sh")
            .args(["-ec", script])
            .output()
            .unwrap()
            .into()
    }

    fn command(&self, program: impl AsRef<std::ffi::OsStr>) -> Command {
        let ids = self.user.become_id.map(|id| (id, id));
        let mut command = command_as(ids, program);
        command.current_dir(&self.dir).stdin(Stdio::null());
        for name in ["TERM", "OVERFALL_LOG", "VAGGA_SETTINGS"] {
            command.env_remove(name);
        }
        // Where vagga's settings are.
        command.env("HOME", self.dir.join("home"));
        command
    }

    /// `overfall vagga ARGUMENTS`.
    pub(crate) fn vagga(&self, arguments: &[&str]) -> Said {
        self.vagga_command(arguments).output().unwrap().into()
    }

    pub(crate) fn vagga_command(&self, arguments: &[&str]) -> Command {
        let mut command = self.command(&self.program);
        command.arg("vagga").args(arguments);
        command
    }

    /// `_run OPTIONS app sh -ec SCRIPT`, by the case's means.
    pub(crate) fn run(&self, options: &[&str], script: &str) -> Said {
        self.run_command(options, script).output().unwrap().into()
    }

    /// As [`Project::run`], in the background.
    pub(crate) fn start(&self, options: &[&str], script: &str) -> Child {
        self.run_command(options, script)
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap()
    }

    fn run_command(&self, options: &[&str], script: &str) -> Command {
        let mut command = self.vagga_command(&["_run", "--overlay", self.means]);
        command.args(options).args(["app", "sh", "-ec", script]);
        command
    }

    /// As [`Project::run`], by a shell that does `first` and becomes the run: `$$` is its number.
    pub(crate) fn run_after(&self, first: &str, options: &[&str], script: &str) -> Said {
        let mut command = self.command("sh");
        command
            .args(["-ec", &format!("{first}; exec \"$@\""), "sh"])
            .arg(&self.program)
            .args(["vagga", "_run", "--overlay", self.means])
            .args(options)
            .args(["app", "sh", "-ec", script]);
        command.output().unwrap().into()
    }

    /// `_build OPTIONS NAME`, by the case's means: copies are made where no overlay is wanted.
    pub(crate) fn build(&self, options: &[&str], name: &str) -> Said {
        self.build_command(options, name).output().unwrap().into()
    }

    pub(crate) fn build_command(&self, options: &[&str], name: &str) -> Command {
        let by: &[&str] = match self.means {
            "kernel" => &["--overlay", "--backend", "native"],
            "fuse" => &["--overlay", "--backend", "fuse"],
            _ => &[],
        };
        let mut command = self.vagga_command(&["_build"]);
        command.args(by).args(options).arg(name);
        command
    }

    /// Writes a file of the project.
    pub(crate) fn write(&self, name: &str, text: &str) {
        let path = self.dir.join(name);
        fs::write(&path, text).unwrap();
        if let Some(id) = self.user.become_id {
            std::os::unix::fs::lchown(&path, Some(id), Some(id)).unwrap();
        }
    }

    /// Reads a file of the project.
    #[track_caller]
    pub(crate) fn read(&self, name: &str) -> String {
        let path = self.dir.join(name);
        fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
    }

    pub(crate) fn exists(&self, name: &str) -> bool {
        fs::symlink_metadata(self.dir.join(name)).is_ok()
    }

    /// The names in a directory of the project, sorted; none where it isn't there.
    pub(crate) fn names(&self, dir: &str) -> Vec<String> {
        let entries = fs::read_dir(self.dir.join(dir)).into_iter().flatten();
        let mut names: Vec<String> = entries
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    }

    /// Puts a container in place as vagga's own build leaves it.
    pub(crate) fn built_by_vagga(&self, name: &str, more: &str) {
        let version = format!(".vagga/.roots/{name}.0123abcd");
        let script = format!(
            "BUSYBOX={}; V={version}; R=$V/root; mkdir -p $R; {ROOT} {more}
             printf '%s' '{map}' > $V/uid_map; printf '%s' '{map}' > $V/gid_map; touch $V/last_use
             ln -s .roots/{name}.0123abcd/root .vagga/{name}",
            busybox(),
            map = self.user.map,
        );
        self.sh(&script).good();
    }

    /// An archive of a root, `base.tar.gz`.
    pub(crate) fn pack_base(&self) {
        let script = format!(
            "BUSYBOX={}; R=base; mkdir -p $R; {ROOT} tar -C base -czf base.tar.gz .; rm -r base",
            busybox()
        );
        self.sh(&script).good();
    }

    /// Everything below a directory: names, types, permissions, owners, sizes, content.
    pub(crate) fn picture(&self, dir: &str) -> String {
        self.sh(&format!(
            "cd {dir}; find . -printf '%p %y %m %U %G %s %l\\n' | sort; \
             find . -type f -readable -exec md5sum {{}} + | sort"
        ))
        .good()
    }

    /// The processes of the program under test that work in this project.
    pub(crate) fn processes(&self) -> Vec<String> {
        let mut found = Vec::new();
        for entry in fs::read_dir("/proc").unwrap().flatten() {
            let path = entry.path();
            let ours = fs::read_link(path.join("exe")).is_ok_and(|exe| exe == self.program);
            if ours {
                let line = fs::read(path.join("cmdline")).unwrap_or_default();
                found.push(String::from_utf8_lossy(&line).replace('\0', " "));
            }
        }
        found
    }

    /// Ends what a failed case has left, so that the next one doesn't find it.
    fn end_what_is_left(&self) {
        for line in self.mounts() {
            let point = line.split(' ').nth(1).unwrap_or_default();
            let _ = rustix::mount::unmount(point, rustix::mount::UnmountFlags::DETACH);
        }
        for entry in fs::read_dir("/proc").unwrap().flatten() {
            let ours = fs::read_link(entry.path().join("exe")).is_ok_and(|exe| exe == self.program);
            let pid = entry
                .file_name()
                .to_str()
                .and_then(|name| name.parse().ok());
            if let Some(pid) = pid.filter(|_| ours) {
                let _ = nix::sys::signal::kill(
                    nix::unistd::Pid::from_raw(pid),
                    nix::sys::signal::Signal::SIGKILL,
                );
            }
        }
    }

    /// The mounts below the project, as this process sees them.
    pub(crate) fn mounts(&self) -> Vec<String> {
        let dir = self.dir.to_str().unwrap();
        // Somebody else's may have names of any bytes.
        let table = fs::read("/proc/self/mounts").unwrap();
        String::from_utf8_lossy(&table)
            .lines()
            .filter(|line| line.contains(dir))
            .map(str::to_owned)
            .collect()
    }

    /// Nothing that works on the project, nothing mounted, no copy.
    #[track_caller]
    pub(crate) fn nothing_is_left(&self) {
        eventually("all processes have gone", || self.processes().is_empty());
        assert_eq!(self.mounts(), [""; 0]);
        let copies = self.names(".vagga/.transient");
        assert_eq!(copies, [""; 0]);
    }
}

/// Waits until `done` says so.
#[track_caller]
pub(crate) fn eventually(what: &str, done: impl Fn() -> bool) {
    let start = Instant::now();
    while !done() {
        assert!(
            start.elapsed() < Duration::from_secs(40),
            "not in time: {what}"
        );
        std::thread::sleep(Duration::from_millis(20));
    }
}

fn busybox() -> &'static str {
    ["/bin/busybox", "/usr/bin/busybox"]
        .into_iter()
        .find(|path| Path::new(path).exists())
        .unwrap_or("/bin/busybox")
}

/// Runs everything that the command line asks for.
pub(crate) fn main(cases: &'static [Case]) -> ExitCode {
    report_no_skips();
    let mut arguments = Arguments::from_args();
    // What is left behind is looked for in the whole machine.
    arguments.test_threads = Some(1);
    if !Path::new(busybox()).exists() {
        eprintln!("skipped: no busybox; Debian's package is busybox-static");
        return ExitCode::SUCCESS;
    }
    let base = tempfile::Builder::new()
        .prefix("overfall-vagga-tests-")
        .permissions(fs::Permissions::from_mode(0o755))
        .tempdir_in("/var/tmp")
        .unwrap();
    let program = base.path().join("overfall");
    fs::copy(env!("CARGO_BIN_EXE_overfall"), &program).unwrap();
    let conclusion = libtest_mimic::run(&arguments, trials(cases, base.path(), &program));
    conclusion.exit_code()
}

fn trials(cases: &'static [Case], base: &Path, program: &Path) -> Vec<Trial> {
    static COUNT: AtomicUsize = AtomicUsize::new(0);
    let mut trials = Vec::new();
    for user in users() {
        for means in ["kernel", "fuse", "copy"] {
            for &(name, case) in cases {
                let (user, base, program) = (user.clone(), base.to_owned(), program.to_owned());
                let trial =
                    Trial::ignorable_test(format!("{}::{means}::{name}", user.name), move || {
                        let number = COUNT.fetch_add(1, Ordering::Relaxed);
                        let project = Project {
                            dir: base.join(number.to_string()),
                            user,
                            means,
                            program,
                        };
                        one(&project, case)
                    });
                trials.push(trial);
            }
        }
    }
    trials
}

fn one(project: &Project, case: fn(&Project)) -> Result<Completion, libtest_mimic::Failed> {
    fs::create_dir(&project.dir).unwrap();
    if let Some(id) = project.user.become_id {
        std::os::unix::fs::lchown(&project.dir, Some(id), Some(id)).unwrap();
    }
    if let Some(why) = unusable(project) {
        return Ok(Completion::ignored_with(why));
    }
    let run = std::panic::AssertUnwindSafe(|| case(project));
    let outcome = std::panic::catch_unwind(run);
    project.end_what_is_left();
    // What belongs to the user's other ids goes in a namespace that has them.
    project.sh("unshare -r --map-auto rm -rf .vagga 2>/dev/null || rm -rf .vagga || true");
    match outcome {
        Ok(()) => Ok(Completion::Completed),
        Err(payload) => match payload.downcast::<Skip>() {
            Ok(skip) => Ok(Completion::ignored_with(skip.0)),
            Err(payload) => Err(payload
                .downcast_ref::<String>()
                .cloned()
                .unwrap_or_else(|| "it panicked".to_owned())
                .into()),
        },
    }
}

/// Why this user can't use these means here; tried once for each pair.
fn unusable(project: &Project) -> Option<String> {
    static KNOWN: Mutex<Vec<(String, Option<String>)>> = Mutex::new(Vec::new());
    let key = format!("{} {}", project.user.name, project.means);
    let mut known = KNOWN.lock().unwrap();
    if let Some((_, why)) = known.iter().find(|(known, _)| *known == key) {
        return why.clone();
    }
    let mut why = None;
    if project.user.map.is_empty() {
        why = Some("the user has no ids in /etc/subuid".to_owned());
    } else if project.means == "kernel" {
        let inside = "unshare -Urm overfall check >/dev/null";
        let said = project.sh(&inside.replace("overfall", project.program.to_str().unwrap()));
        if said.code != Some(0) {
            why = Some("the kernel's overlay doesn't work here".to_owned());
        }
    } else if project.means == "fuse" && project.sh("exec 3<>/dev/fuse").code != Some(0) {
        why = Some("/dev/fuse can't be opened".to_owned());
    }
    known.push((key, why.clone()));
    why
}

/// Root and a plain user that has subordinate ids, or whoever runs the suite.
fn users() -> Vec<User> {
    let own = rustix::process::geteuid().as_raw();
    if own != 0 {
        let name = rustix_name(own);
        return vec![User {
            name: "user",
            become_id: None,
            map: map_of(own, name.as_deref().unwrap_or_default()),
        }];
    }
    let mut users = vec![User {
        name: "root",
        become_id: None,
        map: map_text(&[(0, 0, 1), (1, 1, 65535)]),
    }];
    let passwd = fs::read_to_string("/etc/passwd").unwrap_or_default();
    let plain = passwd.lines().find_map(|line| {
        let fields: Vec<&str> = line.split(':').collect();
        let id: u32 = fields.get(2)?.parse().ok()?;
        let map = map_of(id, fields[0]);
        (id != 0 && !map.is_empty()).then_some((id, map))
    });
    if let Some((id, map)) = plain {
        users.push(User {
            name: "user",
            become_id: Some(id),
            map,
        });
    }
    users
}

fn rustix_name(id: u32) -> Option<String> {
    let passwd = fs::read_to_string("/etc/passwd").ok()?;
    passwd.lines().find_map(|line| {
        let fields: Vec<&str> = line.split(':').collect();
        (fields.get(2)?.parse() == Ok(id)).then(|| fields[0].to_owned())
    })
}

/// The map that vagga gives a user; empty for one without subordinate ids.
fn map_of(id: u32, name: &str) -> String {
    let text = fs::read_to_string("/etc/subuid").unwrap_or_default();
    let first = text.lines().find_map(|line| {
        let fields: Vec<&str> = line.split(':').collect();
        let mine = fields[0] == name || fields[0] == id.to_string();
        mine.then(|| fields.get(1)?.parse::<u32>().ok()).flatten()
    });
    first.map_or_else(String::new, |first| {
        map_text(&[(0, id, 1), (1, first, 65535)])
    })
}

/// As the kernel writes it.
fn map_text(ranges: &[(u32, u32, u32)]) -> String {
    ranges
        .iter()
        .map(|(inside, outside, count)| format!("{inside:>10} {outside:>10} {count:>10}\n"))
        .collect()
}
