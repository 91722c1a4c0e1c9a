//! The suite: which case runs on which variant, what is skipped and why, and that nothing is left
//! behind.

use std::any::Any;
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::fs;
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, LazyLock, Mutex, mpsc};
use std::time::{Duration, Instant};

use libtest_mimic::{Arguments, Completion, Failed, Trial};

use super::dotted;
use super::leftovers;
use super::machine::{self, PLAIN_ID, Program, Variant};
use super::older;
use super::skip::Skip;
use super::tree::{Carrier, Tree};

/// A test; runs on every variant that its limit allows.
#[derive(Clone, Copy)]
pub(crate) struct Case {
    pub(crate) name: &'static str,
    pub(crate) run: fn(&Tree),
    pub(crate) limit: Limit,
}

/// Where a test can't run, and why.
#[derive(Clone, Copy)]
pub(crate) enum Limit {
    /// It runs on every variant.
    Everywhere,
    /// Only as the machine's root.
    Root(&'static str),
    /// Only on the kernel's overlay: FUSE can't do it.
    Kernel(&'static str),
    /// Only on our server: a promise that the kernel doesn't make, or a check of our own.
    Fuse(&'static str),
}

impl Limit {
    fn excludes(self, variant: Variant) -> Option<&'static str> {
        match self {
            Limit::Root(why) if !variant.real_root => Some(why),
            Limit::Kernel(why) if variant.carrier == Carrier::Fuse => Some(why),
            Limit::Fuse(why) if variant.carrier == Carrier::Kernel => Some(why),
            _ => None,
        }
    }
}

/// How long a case may go without a sign of life before its mount is torn down under it.
const PATIENCE: Duration = Duration::from_secs(60);

/// Exit code of a case in another process that was skipped; its reason is on stdout.
const SKIPPED: i32 = 77;

/// The overfall binary under test.
pub(crate) fn overfall_binary() -> PathBuf {
    std::env::var_os("OVERFALL_BINARY").map_or_else(
        || PathBuf::from(env!("CARGO_BIN_EXE_overfall")),
        PathBuf::from,
    )
}

type Modules = &'static [(&'static str, &'static [Case])];

/// Runs everything that the command line asks for.
pub(crate) fn main(modules: Modules) -> ExitCode {
    std::panic::set_hook(Box::new(remember_panic));
    if let Some(child) = std::env::var_os("OVERFALL_TEST_CHILD") {
        return run_child(modules, &child.to_string_lossy());
    }
    machine::isolate();
    let arguments = Arguments::from_args();
    let base = tempfile::Builder::new()
        .prefix("overfall-tests-")
        .permissions(fs::Permissions::from_mode(0o755))
        .tempdir()
        .expect("a directory for the layers");
    let trials = trials(modules, base.path());
    let conclusion = libtest_mimic::run(&arguments, trials);
    report_skips();
    let left = leftovers_after_a_while(base.path());
    if !left.is_empty() {
        // What is still mounted must not be walked into by the removal.
        let _ = base.keep();
    }
    leftovers::exit_code(&conclusion, &left)
}

fn trials(modules: Modules, base: &Path) -> Vec<Trial> {
    let plain_dir = base.join("plain");
    fs::create_dir(&plain_dir).expect("the plain user's directory");
    if machine::is_real_root() {
        std::os::unix::fs::chown(&plain_dir, Some(PLAIN_ID), Some(PLAIN_ID)).expect("chown");
    }
    let program = Arc::new(Program::for_plain_user(base).map_err(|e| e.to_string()));
    let mut trials = Vec::new();
    for variant in Variant::ALL {
        let dir = if variant.real_root {
            base.to_path_buf()
        } else {
            plain_dir.clone()
        };
        // Asked once, and only if a test of the variant is wanted.
        let program = Arc::clone(&program);
        let probe_dir = dir.clone();
        let usable = Arc::new(LazyLock::new(move || usable(variant, &program, &probe_dir)));
        for (module, cases) in modules {
            for case in *cases {
                let name = format!("{}::{module}::{}", variant.name(), case.name);
                let (case, dir, usable) = (*case, dir.clone(), Arc::clone(&usable));
                let full_name = name.clone();
                let old = older::too_old(&format!("{module}::{}", case.name), variant);
                let excluded = case.limit.excludes(variant).map(str::to_owned).or(old);
                trials.push(Trial::ignorable_test(name, move || {
                    let dotted = || dotted::excludes(variant, module, case.name);
                    let excluded = excluded.clone().or_else(|| dotted().map(str::to_owned));
                    let outcome = match (excluded, &**usable) {
                        (Some(why), _) => Outcome::Skipped(why),
                        (None, Err(why)) => Outcome::Skipped(why.clone()),
                        (None, Ok(None)) => run_case(&case, variant, &dir),
                        (None, Ok(Some(program))) => run_elsewhere(program, &full_name, &dir),
                    };
                    outcome.complete(variant)
                }));
            }
        }
    }
    trials
}

/// Whether a variant can run: here, or as another user through the program.
fn usable(
    variant: Variant,
    program: &Result<Program, String>,
    dir: &Path,
) -> Result<Option<Program>, String> {
    if variant.real_root {
        if !machine::is_real_root() {
            return Err("needs root".to_owned());
        }
        return machine::probe(variant, &dir.join(format!("probe-{}", variant.name())))
            .map(|()| None);
    }
    let program = program.clone()?;
    match run_elsewhere(&program, &format!("{}::probe", variant.name()), dir) {
        Outcome::Passed => Ok(Some(program)),
        Outcome::Skipped(why) | Outcome::Failed(why) => Err(why),
    }
}

enum Outcome {
    Passed,
    Skipped(String),
    Failed(String),
}

static SKIPS: Mutex<BTreeMap<String, usize>> = Mutex::new(BTreeMap::new());

impl Outcome {
    fn complete(self, variant: Variant) -> Result<Completion, Failed> {
        match self {
            Outcome::Passed => Ok(Completion::Completed),
            Outcome::Failed(why) => Err(why.into()),
            Outcome::Skipped(why) => {
                let line = format!("{}: {why}", variant.name());
                *SKIPS.lock().expect("the list").entry(line).or_default() += 1;
                Ok(Completion::ignored_with(why))
            }
        }
    }
}

fn report_skips() {
    for (reason, count) in SKIPS.lock().expect("the list").iter() {
        let _ = writeln!(std::io::stderr(), "skipped {count}: {reason}");
    }
}

/// Runs a case in this process.
fn run_case(case: &Case, variant: Variant, dir: &Path) -> Outcome {
    static COUNT: AtomicUsize = AtomicUsize::new(0);
    let number = COUNT.fetch_add(1, Ordering::Relaxed);
    let dir = dir.join(format!("{}-{number}", std::process::id()));
    let watchdog = Watchdog::over(&dir);
    let result = catch_unwind(AssertUnwindSafe(|| {
        let tree = Tree::new(dir.clone(), variant.carrier, variant.real_root);
        tree.write_in(variant.upper);
        (case.run)(&tree);
        tree.finish();
    }));
    let stuck = watchdog.dismiss();
    if result.is_err() {
        Tree::abandon(&dir);
    }
    let removed = remove(&dir);
    match result {
        Err(payload) => match payload.downcast::<Skip>() {
            Ok(skip) => Outcome::Skipped(skip.0),
            Err(payload) => Outcome::Failed(message(&*payload, stuck)),
        },
        Ok(()) => match removed {
            Ok(()) => Outcome::Passed,
            Err(error) => Outcome::Failed(format!("removing the case's directory: {error}")),
        },
    }
}

/// Removes a case's directory; work directories are closed even to their owner.
pub(crate) fn remove(dir: &Path) -> std::io::Result<()> {
    for work in ["w/work", "w/index"] {
        let _ = fs::set_permissions(dir.join(work), fs::Permissions::from_mode(0o700));
    }
    fs::remove_dir_all(dir)
}

/// Runs one case, named in full, as a plain user in a namespace.
fn run_elsewhere(program: &Program, name: &str, dir: &Path) -> Outcome {
    let dir = dir.to_string_lossy();
    let vars = [
        ("OVERFALL_TEST_CHILD", name),
        ("OVERFALL_TEST_DIR", &*dir),
        ("HOME", &*dir),
    ];
    match machine::run_as_plain_user(program, &vars) {
        Err(why) => Outcome::Skipped(why),
        Ok(output) => {
            let said = |bytes: &[u8]| String::from_utf8_lossy(bytes).trim().to_owned();
            match output.status.code() {
                Some(0) => Outcome::Passed,
                Some(SKIPPED) => Outcome::Skipped(said(&output.stdout)),
                _ => Outcome::Failed(format!(
                    "{}\n{}\n{}",
                    output.status,
                    said(&output.stdout),
                    said(&output.stderr)
                )),
            }
        }
    }
}

/// The other end of [`run_elsewhere`].
fn run_child(modules: Modules, name: &str) -> ExitCode {
    let dir = PathBuf::from(std::env::var_os("OVERFALL_TEST_DIR").expect("OVERFALL_TEST_DIR"));
    let mut parts = name.splitn(3, "::");
    let variant = parts.next().and_then(Variant::named).expect("a variant");
    let module = parts.next().expect("a module");
    let outcome = match parts.next() {
        None => match machine::probe(variant, &dir.join(format!("probe-{}", variant.name()))) {
            Ok(()) => Outcome::Passed,
            Err(why) => Outcome::Skipped(why),
        },
        Some(wanted) => {
            let of_module = modules
                .iter()
                .find(|(name, _)| *name == module)
                .expect("the module");
            let case = of_module
                .1
                .iter()
                .find(|case| case.name == wanted)
                .expect("the case");
            run_case(case, variant, &dir)
        }
    };
    match outcome {
        Outcome::Passed => ExitCode::SUCCESS,
        Outcome::Skipped(why) => {
            println!("{why}");
            ExitCode::from(SKIPPED as u8)
        }
        Outcome::Failed(why) => {
            println!("{why}");
            ExitCode::FAILURE
        }
    }
}

/// Tears a case's mount down when it takes too long, so that a server that hangs fails one test
/// and not the suite.
struct Watchdog {
    wake: mpsc::Sender<Sign>,
    thread: std::thread::JoinHandle<bool>,
}

/// What a case tells its watchdog.
enum Sign {
    Alive,
    Done,
}

thread_local! {
    static WATCHDOG: RefCell<Option<mpsc::Sender<Sign>>> = const { RefCell::new(None) };
}

/// Says that the running case, which takes long, is getting on.
pub(crate) fn getting_on() {
    WATCHDOG.with_borrow(|watchdog| {
        if let Some(wake) = watchdog {
            let _ = wake.send(Sign::Alive);
        }
    });
}

impl Watchdog {
    fn over(dir: &Path) -> Self {
        let dir = dir.to_path_buf();
        let (wake, wait) = mpsc::channel();
        WATCHDOG.set(Some(wake.clone()));
        let thread = std::thread::spawn(move || {
            let stuck = loop {
                match wait.recv_timeout(PATIENCE) {
                    Ok(Sign::Alive) => {}
                    Ok(Sign::Done) | Err(mpsc::RecvTimeoutError::Disconnected) => break false,
                    Err(mpsc::RecvTimeoutError::Timeout) => break true,
                }
            };
            if stuck {
                Tree::abandon(&dir);
            }
            stuck
        });
        Self { wake, thread }
    }

    /// Whether it had to bite.
    fn dismiss(self) -> bool {
        let _ = self.wake.send(Sign::Done);
        WATCHDOG.set(None);
        self.thread.join().unwrap_or(false)
    }
}

static LAST_PANICS: Mutex<BTreeMap<String, String>> = Mutex::new(BTreeMap::new());

/// Keeps where a test's thread panicked: the payload alone doesn't say.
fn remember_panic(info: &std::panic::PanicHookInfo<'_>) {
    if info.payload().is::<Skip>() {
        return;
    }
    let place = info.location().map(ToString::to_string).unwrap_or_default();
    let text = payload_text(info.payload());
    LAST_PANICS.lock().expect("the list").insert(text, place);
}

fn message(payload: &(dyn Any + Send), stuck: bool) -> String {
    let text = payload_text(payload);
    let place = LAST_PANICS
        .lock()
        .expect("the list")
        .get(&text)
        .cloned()
        .unwrap_or_default();
    let hint = if stuck {
        " (took too long; the mount was torn down)"
    } else {
        ""
    };
    format!("{place}: {text}{hint}")
}

fn payload_text(payload: &(dyn Any + Send)) -> String {
    if let Some(text) = payload.downcast_ref::<&str>() {
        (*text).to_owned()
    } else if let Some(text) = payload.downcast_ref::<String>() {
        text.clone()
    } else {
        "a panic without text".to_owned()
    }
}

/// Mounts and processes that mention the suite's directory. Servers that are about to end get some
/// time.
fn leftovers_after_a_while(base: &Path) -> Vec<String> {
    let end = Instant::now() + Duration::from_secs(5);
    loop {
        let left = leftovers::about(&base.to_string_lossy());
        if left.is_empty() || Instant::now() > end {
            return left;
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}
